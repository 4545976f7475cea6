//! Acknowledgements of writes that leave late because the write buffer fills up.
//!
//! Keeps: the acknowledgements and when each may leave.
//! Order: they leave in the order in which they came.
//! Crash: what was not acknowledged was not promised.
//! Knows no device: it is told how full it is.

use std::collections::VecDeque;
use std::time::Duration;

use sconce_volume::Ticket;
use tokio::time::Instant;

/// From here on writes are slowed down, in thousandths of the buffer.
pub(crate) const SLOW_FROM: u64 = 750;
/// How late an acknowledgement leaves when the buffer is all but full: uploads that are only somewhat slower than
/// the writers then never fill it.
const LATE_MAX: Duration = Duration::from_millis(50);

/// Acknowledgements that wait.
#[derive(Debug, Default)]
pub(super) struct Pace {
    waiting: VecDeque<(Instant, Ticket)>,
}

/// How late a write's acknowledgement leaves: nothing up to three quarters, then steeply more.
fn lateness(fullness: u64) -> Duration {
    let over = u32::try_from(fullness.clamp(SLOW_FROM, 1000) - SLOW_FROM).unwrap_or(0);
    let span = u32::try_from(1000 - SLOW_FROM).unwrap_or(1);
    LATE_MAX * (over * over) / (span * span)
}

impl Pace {
    /// Whether an acknowledgement may have to wait at all.
    pub(super) fn may_delay(&self, fullness: u64) -> bool {
        fullness > SLOW_FROM || !self.waiting.is_empty()
    }

    /// An acknowledgement is ready: keeps it if it has to leave late.
    pub(super) fn delay(&mut self, ticket: Ticket, fullness: u64) -> bool {
        if !self.may_delay(fullness) {
            return false;
        }
        let now = Instant::now();
        let after = self.waiting.back().map_or(now, |(due, _)| *due);
        self.waiting
            .push_back((after.max(now + lateness(fullness)), ticket));
        true
    }

    /// When the next one may leave.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.waiting.front().map(|(due, _)| *due)
    }

    /// The next one that may leave now.
    pub(super) fn pop(&mut self, now: Instant) -> Option<Ticket> {
        let (due, _) = self.waiting.front()?;
        if *due > now {
            return None;
        }
        self.waiting.pop_front().map(|(_, ticket)| ticket)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lateness_grows_from_nothing_to_its_limit() {
        assert_eq!(lateness(0), Duration::ZERO);
        assert_eq!(lateness(750), Duration::ZERO);
        assert_eq!(lateness(875), LATE_MAX / 4);
        assert_eq!(lateness(1000), LATE_MAX);
        assert_eq!(lateness(5000), LATE_MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn acknowledgements_leave_in_order_even_when_the_buffer_empties() {
        let mut pace = Pace::default();
        assert!(!pace.delay(Ticket(1), 700), "nothing to wait for");
        assert!(pace.delay(Ticket(2), 1000));
        assert!(pace.delay(Ticket(3), 100), "not before the one ahead of it");
        assert_eq!(pace.pop(Instant::now()), None);
        tokio::time::advance(LATE_MAX).await;
        let now = Instant::now();
        assert_eq!(pace.pop(now), Some(Ticket(2)));
        assert_eq!(pace.pop(now), Some(Ticket(3)));
        assert_eq!(pace.next_due(), None);
    }
}
