//! The time, real or simulated.
//!
//! Keeps: the link between the wall clock and the runtime's clock.
//! Order: `now` never goes back; `unix_micros` may where the machine's clock is set.
//! Crash: nothing.
//! Knows no time zones.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

/// A clock: a component that is passed in, so that a simulation decides what time it is.
#[derive(Debug, Clone)]
pub struct Clock {
    kind: Kind,
}

#[derive(Debug, Clone)]
enum Kind {
    System,
    Simulated { origin: Instant, unix_micros: u64 },
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
            kind: Kind::Simulated { origin, unix_micros },
        }
    }

    /// Microseconds since 1970 by the wall clock; 0 where the machine's clock is set before that.
    #[must_use]
    pub fn unix_micros(&self) -> u64 {
        match self.kind {
            Kind::System => micros(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()),
            Kind::Simulated { origin, unix_micros } => unix_micros.saturating_add(micros(origin.elapsed())),
        }
    }

    /// The moment, for intervals and deadlines: never goes back.
    #[must_use]
    pub fn now(&self) -> Instant {
        Instant::now()
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
    }

    #[test]
    fn the_system_clock_reads_after_2020() {
        assert!(Clock::system().unix_micros() > 1_577_836_800_000_000);
    }
}
