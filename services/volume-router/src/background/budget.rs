//! What scrubbing may take of a node: bytes and requests a second, and less while guests are at work.
//!
//! Keeps: whose turn it is, when the next turn is due, and how many operations guests had sent at the last one.
//! Order: one turn at a time for all volumes of a pool, in the order in which they ask: each has at most one request, so
//! they take turns. A pool whose back ends do not answer keeps no other one from its own.
//! Crash: nothing.
//! Knows no scrub.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::settings::ScrubSettings;

/// Guests are at work from so many operations a second on.
const BUSY_FROM: u64 = 200;
/// While they are, a turn is followed by a rest of so many times its own duration.
const REST_TIMES: u32 = 3;
/// Longest rest: however busy guests are, space comes back.
const REST_MAX: Duration = Duration::from_secs(2);
/// What came in less than this says nothing of a rate.
const LOOK_MIN: Duration = Duration::from_millis(100);

/// Counts the operations that guests send to this node.
#[derive(Debug, Clone, Default)]
pub(crate) struct Guests(Arc<AtomicU64>);

impl Guests {
    /// So many more came.
    pub(crate) fn came(&self, operations: usize) {
        self.0.fetch_add(operations as u64, Ordering::Relaxed);
    }
}

/// What scrubbing may take.
#[derive(Debug)]
pub(crate) struct Budget {
    turns: RefCell<HashMap<String, Arc<Semaphore>>>,
    bandwidth: u64,
    operations: u64,
    guests: Guests,
    due: Cell<Option<Instant>>,
    seen: Cell<Seen>,
}

/// What guests had sent when that was looked at last, and whether they were at work then.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    at: Option<Instant>,
    count: u64,
    worked: bool,
}

/// A turn; the next one begins after it.
pub(crate) struct Turn<'a> {
    budget: &'a Budget,
    _permit: Option<OwnedSemaphorePermit>,
    begun: Instant,
    is_urgent: bool,
    bytes: Cell<u64>,
    requests: Cell<u64>,
}

impl Budget {
    pub(crate) fn new(settings: &ScrubSettings, guests: Guests) -> Self {
        Self {
            turns: RefCell::default(),
            bandwidth: settings.bandwidth.bytes().max(1),
            operations: u64::from(settings.operations).max(1),
            guests,
            due: Cell::default(),
            seen: Cell::default(),
        }
    }

    /// Waits for a turn of the pool. What is urgent, because space runs out, does not make way for guests.
    pub(crate) async fn turn(&self, pool: &str, is_urgent: bool) -> Turn<'_> {
        // Never closed.
        let permit = self.of(pool).acquire_owned().await.ok();
        // Another pool's turn may end meanwhile, and has to be paid for too.
        while let Some(due) = self.due.get().filter(|due| *due > Instant::now()) {
            tokio::time::sleep_until(due).await;
        }
        self.begin(permit, is_urgent)
    }

    fn of(&self, pool: &str) -> Arc<Semaphore> {
        let mut turns = self.turns.borrow_mut();
        if let Some(turn) = turns.get(pool) {
            return Arc::clone(turn);
        }
        let turn = Arc::new(Semaphore::new(1));
        turns.insert(pool.to_owned(), Arc::clone(&turn));
        turn
    }

    /// A turn, if there is one at once and it takes nothing from anybody: no volume of this node has or awaits one, what the
    /// last one took is paid for, and no guests are at work, unless it is urgent.
    pub(crate) fn turn_now(&self, pool: &str, is_urgent: bool) -> Option<Turn<'_>> {
        let (permit, now) = (self.of(pool).try_acquire_owned().ok()?, Instant::now());
        let is_free =
            |(other, turn): (&String, &Arc<Semaphore>)| other == pool || turn.available_permits() > 0;
        if !self.turns.borrow().iter().all(is_free) {
            return None;
        }
        let is_due = self.due.get().is_none_or(|due| due <= now);
        (is_due && (is_urgent || !self.guests_work(now))).then(|| self.begin(Some(permit), is_urgent))
    }

    fn begin(&self, permit: Option<OwnedSemaphorePermit>, is_urgent: bool) -> Turn<'_> {
        Turn {
            budget: self,
            _permit: permit,
            begun: Instant::now(),
            is_urgent,
            bytes: Cell::new(0),
            requests: Cell::new(0),
        }
    }

    /// Whether guests were at work since this was asked last, or then, if that was just now.
    fn guests_work(&self, now: Instant) -> bool {
        let (count, seen) = (self.guests.0.load(Ordering::Relaxed), self.seen.get());
        let elapsed = seen.at.map(|at| now.duration_since(at));
        if elapsed.is_some_and(|elapsed| elapsed < LOOK_MIN) {
            return seen.worked;
        }
        let worked = elapsed.is_some_and(|elapsed| {
            let micros = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
            count.saturating_sub(seen.count).saturating_mul(1_000_000) / micros.max(1) >= BUSY_FROM
        });
        self.seen.set(Seen {
            at: Some(now),
            count,
            worked,
        });
        worked
    }

    /// How long a turn takes that moved this much in so many requests, at the rates that are allowed.
    fn time_for(&self, bytes: u64, requests: u64) -> Duration {
        let micros = |amount: u64, rate: u64| amount.saturating_mul(1_000_000) / rate;
        Duration::from_micros(micros(bytes, self.bandwidth).max(micros(requests, self.operations)))
    }
}

impl Turn<'_> {
    /// A request moved so many bytes.
    pub(crate) fn moved(&self, bytes: usize) {
        self.bytes.set(self.bytes.get().saturating_add(bytes as u64));
        self.requests.set(self.requests.get() + 1);
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let (budget, now) = (self.budget, Instant::now());
        // One after the other, also of turns that two pools had at the same time.
        let begun = budget.due.get().map_or(self.begun, |due| due.max(self.begun));
        let at_the_rate = begun + budget.time_for(self.bytes.get(), self.requests.get());
        let rest = (now - self.begun).saturating_mul(REST_TIMES).min(REST_MAX);
        let after_rest = match budget.guests_work(now) && !self.is_urgent {
            true => now + rest,
            false => now,
        };
        budget.due.set(Some(at_the_rate.max(after_rest)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(guests: &Guests) -> Budget {
        let settings = ScrubSettings {
            bandwidth: sconce_runtime::settings::ByteSize::new(1 << 20),
            operations: 10,
            ..ScrubSettings::default()
        };
        Budget::new(&settings, guests.clone())
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_and_requests_keep_within_their_rates() {
        let budget = budget(&Guests::default());
        let begun = Instant::now();
        for _ in 0..5 {
            budget.turn("main", false).await.moved(2 << 20);
        }
        drop(budget.turn("main", false).await);
        assert_eq!(begun.elapsed(), Duration::from_secs(10), "10 MiB at 1 MiB/s");
        let begun = Instant::now();
        for _ in 0..20 {
            budget.turn("main", false).await.moved(1);
        }
        drop(budget.turn("main", false).await);
        assert_eq!(
            begun.elapsed(),
            Duration::from_secs(2),
            "20 requests at 10 a second"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn guests_at_work_get_the_most_of_the_time_unless_it_is_urgent() {
        let guests = Guests::default();
        let budget = budget(&guests);
        drop(budget.turn("main", false).await);
        for (is_urgent, rest) in [(false, 300), (true, 0), (false, 300)] {
            let turn = budget.turn("main", is_urgent).await;
            guests.came(1_000_000);
            tokio::time::sleep(Duration::from_millis(100)).await;
            drop(turn);
            let ended = Instant::now();
            drop(budget.turn("main", false).await);
            assert_eq!(ended.elapsed(), Duration::from_millis(rest));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_at_once_is_one_that_nobody_else_wants() {
        let guests = Guests::default();
        let budget = budget(&guests);
        let turn = budget.turn_now("main", false).unwrap();
        assert!(budget.turn_now("main", true).is_none(), "somebody has it");
        turn.moved(1 << 20);
        drop(turn);
        assert!(budget.turn_now("main", true).is_none(), "it is not paid for");
        tokio::time::advance(Duration::from_secs(1)).await;
        drop(budget.turn_now("main", false).unwrap());
        tokio::time::advance(Duration::from_secs(1)).await;
        guests.came(1000);
        assert!(budget.turn_now("main", false).is_none(), "guests are at work");
        tokio::time::advance(LOOK_MIN / 2).await;
        assert!(budget.turn_now("main", false).is_none(), "nothing is known since");
        drop(budget.turn_now("main", true).unwrap());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(budget.turn_now("main", false).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_pool_that_does_not_answer_holds_up_no_other_and_all_keep_within_the_rates() {
        let budget = budget(&Guests::default());
        let hangs = budget.turn("away", true).await;
        let begun = Instant::now();
        for _ in 0..5 {
            budget.turn("main", false).await.moved(1 << 20);
        }
        drop(budget.turn("main", false).await);
        assert_eq!(begun.elapsed(), Duration::from_secs(5));
        assert!(budget.turn_now("main", true).is_none(), "somebody has one");
        drop(hangs);
        // At the same time: each pays for what it moved.
        let begun = Instant::now();
        let (one, other) = (budget.turn("main", false).await, budget.turn("away", false).await);
        for turn in [one, other] {
            turn.moved(2 << 20);
        }
        drop(budget.turn("main", false).await);
        assert_eq!(begun.elapsed(), Duration::from_secs(4));
    }
}
