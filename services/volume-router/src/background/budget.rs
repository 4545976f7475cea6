//! What scrubbing may take of a node: bytes and requests a second, and less while guests are at work.
//!
//! Keeps: whose turn it is, when the next turn is due, and how many operations guests had sent at the last one.
//! Order: one turn at a time for all volumes of the node, in the order in which they ask: each has at most one request, so
//! they take turns.
//! Crash: nothing.
//! Knows no scrub.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;

use crate::settings::ScrubSettings;

/// Guests are at work from so many operations a second on.
const BUSY_FROM: u64 = 200;
/// While they are, a turn is followed by a rest of so many times its own duration.
const REST_TIMES: u32 = 3;
/// Longest rest: however busy guests are, space comes back.
const REST_MAX: Duration = Duration::from_secs(2);

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
    turn: Semaphore,
    bandwidth: u64,
    operations: u64,
    guests: Guests,
    due: Cell<Option<Instant>>,
    seen: Cell<(Option<Instant>, u64)>,
}

/// A turn; the next one begins after it.
pub(crate) struct Turn<'a> {
    budget: &'a Budget,
    _permit: Option<SemaphorePermit<'a>>,
    begun: Instant,
    is_urgent: bool,
    bytes: Cell<u64>,
    requests: Cell<u64>,
}

impl Budget {
    pub(crate) fn new(settings: &ScrubSettings, guests: Guests) -> Self {
        Self {
            turn: Semaphore::new(1),
            bandwidth: settings.bandwidth.bytes().max(1),
            operations: u64::from(settings.operations).max(1),
            guests,
            due: Cell::default(),
            seen: Cell::default(),
        }
    }

    /// Waits for a turn. What is urgent, because space runs out, does not make way for guests.
    pub(crate) async fn turn(&self, is_urgent: bool) -> Turn<'_> {
        // Never closed.
        let permit = self.turn.acquire().await.ok();
        if let Some(due) = self.due.get() {
            tokio::time::sleep_until(due).await;
        }
        Turn {
            budget: self,
            _permit: permit,
            begun: Instant::now(),
            is_urgent,
            bytes: Cell::new(0),
            requests: Cell::new(0),
        }
    }

    /// Whether guests were at work since this was asked last.
    fn guests_work(&self, now: Instant) -> bool {
        let count = self.guests.0.load(Ordering::Relaxed);
        let (since, before) = self.seen.replace((Some(now), count));
        let Some(since) = since else { return false };
        let micros = u64::try_from(now.duration_since(since).as_micros()).unwrap_or(u64::MAX);
        count.saturating_sub(before).saturating_mul(1_000_000) / micros.max(1) >= BUSY_FROM
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
        let at_the_rate = self.begun + budget.time_for(self.bytes.get(), self.requests.get());
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
            budget.turn(false).await.moved(2 << 20);
        }
        drop(budget.turn(false).await);
        assert_eq!(begun.elapsed(), Duration::from_secs(10), "10 MiB at 1 MiB/s");
        let begun = Instant::now();
        for _ in 0..20 {
            budget.turn(false).await.moved(1);
        }
        drop(budget.turn(false).await);
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
        drop(budget.turn(false).await);
        for (is_urgent, rest) in [(false, 300), (true, 0), (false, 300)] {
            let turn = budget.turn(is_urgent).await;
            guests.came(1_000_000);
            tokio::time::sleep(Duration::from_millis(100)).await;
            drop(turn);
            let ended = Instant::now();
            drop(budget.turn(false).await);
            assert_eq!(ended.elapsed(), Duration::from_millis(rest));
        }
    }
}
