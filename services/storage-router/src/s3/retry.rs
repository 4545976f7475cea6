//! Sending a request again: when, how often, and when not any more.
//!
//! Keeps: the budget and the places that all requests to one back end share, and the source of the jitter.
//! Order: none; each request stands for itself.
//! Crash: nothing. Every request of this back end may be sent twice: see docs/decisions/0156.
//! Knows no S3: it asks again where a fault passes.

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use sconce_runtime::Chance;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::fault::{Fault, Kind};

/// The first pause; each one after it is up to twice as long.
const PAUSE_MIN: Duration = Duration::from_millis(50);
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// Retries that may be sent in a row while nothing succeeds, by all requests together. A server that is overloaded
/// is not asked twice for everything.
const BUDGET: u64 = 100;
/// Successes that pay for one retry: a server that fails one request in six can be asked for ever.
const SUCCESSES_FOR_ONE: u64 = 5;
/// Requests at once: each takes a connection, and more of them would only wait at the server.
const REQUESTS_AT_ONCE: usize = 64;
/// What is moved in a second at the least: a request of many bytes has more time.
const BYTES_A_SECOND_MIN: u64 = 1 << 20;

/// A request that is sent until it succeeds.
#[derive(Debug)]
pub(super) struct Call {
    /// When it has to be over.
    pub(super) until: Instant,
    /// Bytes that it moves.
    pub(super) bytes: u64,
    /// What it is, for people: where no answer comes nobody else says it.
    pub(super) what: String,
}

/// How requests are sent again.
#[derive(Debug)]
pub(super) struct Retries {
    /// How long one request may take, beside the time for its bytes.
    request: Duration,
    /// How long an operation may take with all its requests and pauses.
    total: Duration,
    /// In successes: each retry costs [`SUCCESSES_FOR_ONE`].
    budget: AtomicU64,
    chance: Mutex<Chance>,
    at_once: Semaphore,
}

impl Retries {
    pub(super) fn new(request: Duration, total: Duration, chance: Chance) -> Self {
        Self {
            request,
            total,
            budget: AtomicU64::new(BUDGET * SUCCESSES_FOR_ONE),
            chance: Mutex::new(chance),
            at_once: Semaphore::new(REQUESTS_AT_ONCE),
        }
    }

    /// When an operation that begins now has to be over.
    pub(super) fn until(&self) -> Instant {
        Instant::now() + self.total
    }

    /// Asks until it succeeds, a fault does not pass, the time is over or the budget is used up.
    pub(super) async fn run<T, F: Future<Output = Result<T, Fault>>>(
        &self,
        call: Call,
        ask: impl Fn() -> F,
    ) -> Result<T, Fault> {
        let Call { until, bytes, what } = call;
        let mut tries = 0;
        let mut last: Option<Fault> = None;
        loop {
            let place = timeout_at(until, self.at_once.acquire()).await;
            if place.is_err() || Instant::now() >= until {
                return Err(not_sent(&what, last));
            }
            let time = self
                .time_for(bytes)
                .min(until.saturating_duration_since(Instant::now()));
            let answer = timeout(time, ask()).await;
            drop(place);
            tries += 1;
            let fault = match answer {
                Ok(Ok(done)) => {
                    self.refill();
                    return Ok(done);
                }
                Ok(Err(fault)) if fault.is_passing() => fault,
                Ok(Err(fault)) => return Err(fault),
                Err(_) => too_late(&what, time, last.take()),
            };
            let pause = self.pause(tries);
            if Instant::now() + pause >= until {
                return Err(given_up(fault, tries, "the time for it is over"));
            }
            if !self.spend() {
                return Err(given_up(
                    fault,
                    tries,
                    "too many requests failed to send it again",
                ));
            }
            last = Some(fault);
            sleep(pause).await;
        }
    }

    fn time_for(&self, bytes: u64) -> Duration {
        self.request + Duration::from_secs(bytes / BYTES_A_SECOND_MIN)
    }

    /// A pause drawn from all of what it may be: requests that failed together do not come back together.
    fn pause(&self, tries: u32) -> Duration {
        let most = PAUSE_MIN.saturating_mul(1 << tries.min(10)).min(PAUSE_MAX);
        let micros = u64::try_from((most - PAUSE_MIN / 2).as_micros()).unwrap_or(u64::MAX);
        let mut chance = self.chance.lock().unwrap_or_else(PoisonError::into_inner);
        PAUSE_MIN / 2 + Duration::from_micros(chance.below(micros))
    }

    fn spend(&self) -> bool {
        let spend = |left: u64| left.checked_sub(SUCCESSES_FOR_ONE);
        self.budget
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, spend)
            .is_ok()
    }

    fn refill(&self) {
        let refill = |left: u64| (left < BUDGET * SUCCESSES_FOR_ONE).then_some(left + 1);
        // Full already is no failure.
        let _ = self
            .budget
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, refill);
    }
}

fn not_sent(what: &str, last: Option<Fault>) -> Fault {
    let before = last.map_or_else(String::new, |fault| format!("; before that: {}", fault.what));
    let what = format!("{what}: the time for it was over before it could be sent (again){before}");
    Fault::new(Kind::Passing, what)
}

fn too_late(what: &str, time: Duration, last: Option<Fault>) -> Fault {
    let before = last.map_or_else(String::new, |fault| format!("; before that: {}", fault.what));
    Fault::new(
        Kind::Passing,
        format!("{what}: no answer within {} ms{before}", time.as_millis()),
    )
}

fn given_up(fault: Fault, tries: u32, why: &str) -> Fault {
    let Fault { kind, what } = fault;
    Fault::new(kind, format!("{what} (sent {tries} times; {why})"))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use super::*;

    fn retries() -> Retries {
        Retries::new(Duration::from_secs(1), Duration::from_secs(20), Chance::seeded(7))
    }

    fn fault(kind: Kind) -> Fault {
        Fault::new(kind, "on purpose".to_owned())
    }

    fn call(retries: &Retries, bytes: u64) -> Call {
        Call {
            until: retries.until(),
            bytes,
            what: "GET x".to_owned(),
        }
    }

    async fn failing(retries: &Retries, kind: Kind, times: u32) -> (Result<u32, Fault>, u32) {
        let asked = AtomicU32::new(0);
        let ask = || {
            let number = asked.fetch_add(1, Ordering::Relaxed);
            async move {
                if number < times {
                    Err(fault(kind))
                } else {
                    Ok(number)
                }
            }
        };
        let done = retries.run(call(retries, 0), ask).await;
        (done, asked.into_inner())
    }

    #[tokio::test(start_paused = true)]
    async fn what_passes_is_asked_again_and_what_stays_is_not() {
        assert_eq!(failing(&retries(), Kind::Passing, 5).await, (Ok(5), 6));
        for kind in [
            Kind::NoSuchKey,
            Kind::Exists,
            Kind::Denied,
            Kind::Full,
            Kind::Range,
        ] {
            assert_eq!(failing(&retries(), kind, 5).await, (Err(fault(kind)), 1));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_operation_ends_in_time_and_says_what_failed_last() {
        let begin = Instant::now();
        let (done, asked) = failing(&retries(), Kind::Passing, u32::MAX).await;
        let what = done.unwrap_err().what;
        assert!(
            what.contains("on purpose") && what.contains(&format!("sent {asked} times")),
            "{what}"
        );
        assert!(
            begin.elapsed() <= Duration::from_secs(20),
            "{:?}",
            begin.elapsed()
        );
        assert!((10..60).contains(&asked), "{asked} times in 20 s");
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_without_an_answer_is_sent_again_and_large_ones_have_more_time() {
        let retries = retries();
        for (bytes, times) in [(0, 20), (9 << 20, 2)] {
            let asked = AtomicU32::new(0);
            let ask = || {
                asked.fetch_add(1, Ordering::Relaxed);
                std::future::pending::<Result<(), Fault>>()
            };
            let what = retries.run(call(&retries, bytes), ask).await.unwrap_err().what;
            assert!(what.contains("GET x: no answer within"), "{what}");
            assert!(asked.into_inner() <= times);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn many_failures_use_the_budget_up_and_successes_pay_for_new_ones() {
        let retries = retries();
        let mut asked = 0;
        for _ in 0..100 {
            asked += failing(&retries, Kind::Passing, 3).await.1;
        }
        // Each of the first ones takes 3 retries and pays a fifth of one back.
        assert!((200..=220).contains(&asked), "{asked} requests");
        let (done, asked) = failing(&retries, Kind::Passing, 1).await;
        assert_eq!(asked, 1);
        assert!(done.unwrap_err().what.contains("too many requests failed"));
        for _ in 0..SUCCESSES_FOR_ONE {
            failing(&retries, Kind::Passing, 0).await.0.unwrap();
        }
        assert_eq!(failing(&retries, Kind::Passing, 1).await, (Ok(1), 2));
    }

    #[tokio::test(start_paused = true)]
    async fn only_so_many_are_asked_at_once_and_who_finds_no_place_says_so() {
        let retries = Retries::new(
            Duration::from_secs(30),
            Duration::from_secs(20),
            Chance::seeded(7),
        );
        let asked = AtomicU32::new(0);
        let ask = || {
            asked.fetch_add(1, Ordering::Relaxed);
            std::future::pending::<Result<(), Fault>>()
        };
        let calls = (0..=REQUESTS_AT_ONCE).map(|_| retries.run(call(&retries, 0), ask));
        let answers = futures_util::future::join_all(calls).await;
        assert_eq!(asked.load(Ordering::Relaxed) as usize, REQUESTS_AT_ONCE);
        let texts: Vec<String> = answers
            .into_iter()
            .map(|answer| answer.unwrap_err().what)
            .collect();
        let waited = texts
            .iter()
            .filter(|text| text.contains("GET x: the time for it was over"));
        assert_eq!(waited.count(), 1, "{texts:?}");
    }

    #[test]
    fn pauses_grow_and_never_agree() {
        let retries = retries();
        for tries in 1..40 {
            let pause = retries.pause(tries);
            assert!(pause >= PAUSE_MIN / 2 && pause <= PAUSE_MAX, "{pause:?}");
        }
        let drawn: std::collections::BTreeSet<_> = (0..20).map(|_| retries.pause(5)).collect();
        assert!(drawn.len() > 15);
    }
}
