//! One log line for each cause and interval, however often a stranger brings the cause about.
//!
//! Keeps: when a line was let through last, and how many were not since.
//! Order: the first line of an interval passes at once; the next that passes says how many were left out.
//! Crash: the count of lines that were left out is gone.
//! Knows no log: it says whether to write.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Lets one line of a cause through in each interval. Make it a `static` beside the line.
#[derive(Debug)]
pub struct Throttle {
    every: Duration,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    last: Option<Instant>,
    unsaid: u64,
}

impl Throttle {
    /// One line in each `every`.
    #[must_use]
    pub const fn every(every: Duration) -> Self {
        Self {
            every,
            state: Mutex::new(State {
                last: None,
                unsaid: 0,
            }),
        }
    }

    /// Whether to write a line now, and then how many like it were left out since the last.
    pub fn pass(&self) -> Option<u64> {
        let now = Instant::now();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.last.is_some_and(|last| now - last < self.every) {
            state.unsaid = state.unsaid.saturating_add(1);
            return None;
        }
        state.last = Some(now);
        Some(std::mem::take(&mut state.unsaid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_line_in_an_interval_passes_and_says_what_was_left_out() {
        let throttle = Throttle::every(Duration::from_secs(10));
        assert_eq!(throttle.pass(), Some(0));
        assert_eq!((throttle.pass(), throttle.pass()), (None, None));
        tokio::time::advance(Duration::from_secs(10)).await;
        assert_eq!((throttle.pass(), throttle.pass()), (Some(2), None));
    }
}
