//! How long to wait before the next attempt.
//!
//! Keeps: the number of failed attempts since the last good one.
//! Order: waits double up to their limit; each is drawn from its upper half, so that peers that failed
//! together do not come back together.
//! Crash: nothing.
//! Knows no clock: it gives a duration, the caller waits.

use std::time::Duration;

use crate::Chance;

/// Waits between attempts: doubling, limited, jittered.
#[derive(Debug)]
pub struct Backoff {
    first: Duration,
    limit: Duration,
    next: Duration,
    chance: Chance,
}

impl Backoff {
    /// Waits that start at `first` and end at `limit`.
    #[must_use]
    pub fn new(first: Duration, limit: Duration, chance: Chance) -> Self {
        Self {
            first,
            limit,
            next: first,
            chance,
        }
    }

    /// How long to wait now.
    pub fn wait(&mut self) -> Duration {
        let whole = self.next.min(self.limit);
        self.next = whole.saturating_mul(2).min(self.limit);
        let half = whole / 2;
        let spread = u64::try_from((whole - half).as_nanos()).unwrap_or(u64::MAX);
        half + Duration::from_nanos(self.chance.below(spread.saturating_add(1)))
    }

    /// An attempt went well: the next wait is the first again.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_within_their_upper_half_up_to_the_limit() {
        let ms = Duration::from_millis;
        let mut backoff = Backoff::new(ms(10), ms(50), Chance::seeded(3));
        for whole in [10, 20, 40, 50, 50] {
            let wait = backoff.wait();
            assert!(
                wait >= ms(whole) / 2 && wait <= ms(whole),
                "{wait:?} of {whole} ms"
            );
        }
        backoff.reset();
        assert!(backoff.wait() <= ms(10));
    }
}
