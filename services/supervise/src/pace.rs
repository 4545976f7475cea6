//! How soon a service that ended is started again.
//!
//! Keeps: how often in a row it ended as soon as it was started.
//! Order: each such end doubles the pause; one that was up for a while, was killed or ended well starts anew.
//! Crash: nothing.
//! Knows no process.

use std::time::Duration;

/// An end within this time of the start counts as a failed start.
const QUICK: Duration = Duration::from_secs(2);
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
pub(crate) struct Pace {
    failed: u32,
}

/// What is known of an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct End {
    pub(crate) ran: Duration,
    /// SIGKILL comes from outside, status 0 from one that was asked to end: neither is a service that cannot run.
    pub(crate) is_failure: bool,
}

impl Pace {
    /// The service ended; how long to wait before it is started again.
    pub(crate) fn ended(&mut self, end: End) -> Duration {
        if !end.is_failure || end.ran >= QUICK {
            self.failed = 0;
            return Duration::ZERO;
        }
        self.failed = self.failed.saturating_add(1);
        let doubled = 1_u32.checked_shl(self.failed - 1).unwrap_or(u32::MAX);
        PAUSE_MIN.saturating_mul(doubled).min(PAUSE_MAX)
    }

    /// Failed starts in a row.
    pub(crate) fn failed(&self) -> u32 {
        self.failed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_failed_starts_make_it_wait() {
        let end = |ran_ms, is_failure| End {
            ran: Duration::from_millis(ran_ms),
            is_failure,
        };
        let mut pace = Pace::default();
        assert_eq!(pace.ended(end(5, false)), Duration::ZERO);
        let pauses: Vec<u128> = (0..40).map(|_| pace.ended(end(5, true)).as_millis()).collect();
        assert_eq!(pauses[..4], [100, 200, 400, 800]);
        assert_eq!((pauses[39], pace.failed()), (5000, 40));
        assert_eq!(pace.ended(end(2000, true)), Duration::ZERO);
        assert_eq!(pace.failed(), 0);
    }
}
