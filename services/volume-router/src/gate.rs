//! Whether this node may serve: only while the registry is sure to keep its lease.
//!
//! Keeps: until when the lease is held at least.
//! Order: it is asked before each round of operations and before each answer, so nothing is served after the end.
//! Crash: a new process waits for its own lease.
//! Knows no volumes.

use std::sync::atomic::{AtomicU64, Ordering};

use sconce_runtime::simulated::{Planted, leaves_out};
use sconce_schemas::wire::{Refusal, RefusalCode};
use tokio::time::{Duration, Instant};

/// The node's lease, as the shards see it.
#[derive(Debug)]
pub(crate) struct Gate {
    origin: Instant,
    /// Microseconds after `origin`; 0: not held.
    held_until: AtomicU64,
}

impl Gate {
    pub(crate) fn new() -> Self {
        Self {
            origin: Instant::now(),
            held_until: AtomicU64::new(0),
        }
    }

    /// The lease is held until then at least.
    pub(crate) fn hold(&self, until: Instant) {
        let micros = micros(until.saturating_duration_since(self.origin));
        self.held_until.store(micros, Ordering::Release);
    }

    /// The lease is gone.
    pub(crate) fn close(&self) {
        self.held_until.store(0, Ordering::Release);
    }

    /// Whether the node may serve now.
    pub(crate) fn is_open(&self) -> bool {
        let until = self.held_until.load(Ordering::Acquire);
        micros(self.origin.elapsed()) < until || (until > 0 && leaves_out(Planted::NoLease))
    }
}

/// What to answer while it is closed.
pub(crate) fn no_lease() -> Refusal {
    let text = "the volume-router has no lease from the registry now";
    Refusal::retry(RefusalCode::Unavailable, text)
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_gate_closes_by_itself_when_the_lease_is_not_renewed() {
        let gate = Gate::new();
        assert!(!gate.is_open());
        gate.hold(Instant::now() + Duration::from_secs(5));
        tokio::time::advance(Duration::from_millis(4999)).await;
        assert!(gate.is_open());
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(!gate.is_open());
        gate.hold(Instant::now() + Duration::from_secs(5));
        assert!(gate.is_open());
        gate.close();
        assert!(!gate.is_open());
    }
}
