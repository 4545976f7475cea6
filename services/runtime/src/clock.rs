//! The time, real or simulated.
//!
//! Keeps: the link between the wall clock and the runtime's clock, and between that and the one that goes on in a suspended machine.
//! Order: `now` never goes back; `unix_micros` may where the machine's clock is set.
//! Crash: nothing.
//! Knows no time zones.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};
use tokio::time::Instant;

use crate::simulated;

/// A clock: a component that is passed in, so that a simulation decides what time it is.
#[derive(Debug, Clone)]
pub struct Clock {
    kind: Kind,
}

#[derive(Debug, Clone)]
enum Kind {
    System,
    Simulated {
        origin: Instant,
        unix_micros: Arc<AtomicU64>,
    },
}

impl Clock {
    /// The machine's clock.
    #[must_use]
    pub fn system() -> Clock {
        Clock { kind: Kind::System }
    }

    /// A wall clock that reads `unix_micros` now and from here on follows the runtime's clock, which a test
    /// pauses and moves (`tokio::time::pause`, `advance`).
    #[must_use]
    pub fn simulated(unix_micros: u64) -> Clock {
        let origin = Instant::now();
        Clock {
            kind: Kind::Simulated {
                origin,
                unix_micros: Arc::new(AtomicU64::new(unix_micros)),
            },
        }
    }

    /// Somebody sets a simulated wall clock, and with it its clones, `micros` forward or back. The machine's is left alone.
    pub fn set_by(&self, micros: i64) {
        if let Kind::Simulated { unix_micros, .. } = &self.kind {
            let set = |before: u64| Some(before.saturating_add_signed(micros));
            // It never gives `None`.
            let _ = unix_micros.fetch_update(Ordering::Relaxed, Ordering::Relaxed, set);
        }
    }

    /// Microseconds since 1970 by the wall clock; 0 where the machine's clock is set before that.
    #[must_use]
    pub fn unix_micros(&self) -> u64 {
        match &self.kind {
            Kind::System => micros(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()),
            Kind::Simulated { origin, unix_micros } => {
                let begun = unix_micros.load(Ordering::Relaxed);
                begun.saturating_add(micros(origin.elapsed()))
            }
        }
    }

    /// The moment, for intervals and deadlines: never goes back.
    #[must_use]
    pub fn now(&self) -> Instant {
        Instant::now()
    }
}

/// A moment on two clocks: the runtime's, and one that goes on while the machine is suspended. The runtime's stands still then, and
/// what ends by it alone has not ended when the machine wakes up an hour later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    runtime: Instant,
    /// Since the machine was booted, `CLOCK_BOOTTIME` of clock_gettime(2); in a simulation, which is never suspended, nothing.
    boot: Duration,
}

impl Moment {
    /// Now.
    #[must_use]
    pub fn now() -> Moment {
        let boot = if simulated::is_here() {
            Duration::ZERO
        } else {
            let boot = clock_gettime(ClockId::Boottime);
            Duration::try_from(boot).unwrap_or_default()
        };
        Moment {
            runtime: Instant::now(),
            boot,
        }
    }

    /// That much later, on both.
    #[must_use]
    pub fn after(self, time: Duration) -> Moment {
        Moment {
            runtime: self.runtime + time,
            boot: self.boot + time,
        }
    }

    /// What it would be had the machine been suspended for `time`.
    #[must_use]
    pub fn suspended_for(self, time: Duration) -> Moment {
        Moment {
            boot: self.boot + time,
            ..self
        }
    }

    /// How long it is after `earlier`, by each of the clocks.
    #[must_use]
    pub fn since(self, earlier: Moment) -> [Duration; 2] {
        [
            self.runtime.saturating_duration_since(earlier.runtime),
            self.boot.saturating_sub(earlier.boot),
        ]
    }

    /// Whether it is before the other one by both clocks: where they do not agree it is not.
    #[must_use]
    pub fn is_before(self, other: Moment) -> bool {
        self.runtime < other.runtime && self.boot < other.boot
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_simulated_wall_clock_follows_the_paused_runtime() {
        let clock = Clock::simulated(5_000_000);
        assert_eq!(clock.unix_micros(), 5_000_000);
        let before = clock.now();
        tokio::time::advance(Duration::from_millis(1500)).await;
        assert_eq!(clock.unix_micros(), 6_500_000);
        assert_eq!(clock.now() - before, Duration::from_millis(1500));
        clock.clone().set_by(-2_000_000);
        assert_eq!(clock.unix_micros(), 4_500_000, "set back");
    }

    #[tokio::test(start_paused = true)]
    async fn a_moment_is_past_as_soon_as_one_of_the_clocks_says_so() {
        let asked = Moment::now();
        let end = asked.after(Duration::from_secs(3600));
        assert!(asked.is_before(end) && Moment::now().is_before(end));
        let woken = asked.suspended_for(Duration::from_secs(3600));
        assert!(!woken.is_before(end), "the machine was suspended for an hour");
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert!(!Moment::now().is_before(end));
    }

    #[test]
    fn the_system_clock_reads_after_2020() {
        assert!(Clock::system().unix_micros() > 1_577_836_800_000_000);
    }
}
