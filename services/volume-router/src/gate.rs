//! Whether this node may serve: only while the registry is sure to keep its lease.
//!
//! Keeps: until when the lease is held at least.
//! Order: it is asked before each round of operations and before each answer, so nothing is served after the end.
//! Crash: a new process waits for its own lease.
//! Knows no volumes.

use std::sync::atomic::{AtomicU64, Ordering};

use sconce_runtime::Moment;
use sconce_runtime::simulated::{Planted, leaves_out};
use sconce_schemas::wire::{Refusal, RefusalCode};
use tokio::time::Duration;

/// The node's lease, as the shards see it.
#[derive(Debug)]
pub(crate) struct Gate {
    origin: Moment,
    /// Microseconds after `origin`, by each clock; 0: not held. Each for itself: whoever sees one of them new and the other one old sees
    /// the gate closed rather than open.
    held_until: [AtomicU64; 2],
}

impl Gate {
    pub(crate) fn new() -> Self {
        Self {
            origin: Moment::now(),
            held_until: [AtomicU64::new(0), AtomicU64::new(0)],
        }
    }

    /// The lease is held until then at least.
    pub(crate) fn hold(&self, until: Moment) {
        self.set(until.since(self.origin).map(micros));
    }

    /// The lease is gone.
    pub(crate) fn close(&self) {
        self.set([0, 0]);
    }

    fn set(&self, micros: [u64; 2]) {
        for (held, until) in self.held_until.iter().zip(micros) {
            held.store(until, Ordering::Release);
        }
    }

    /// Whether the node may serve now.
    pub(crate) fn is_open(&self) -> bool {
        self.is_open_at(Moment::now())
    }

    fn is_open_at(&self, now: Moment) -> bool {
        let until = self
            .held_until
            .each_ref()
            .map(|until| until.load(Ordering::Acquire));
        let holds = now
            .since(self.origin)
            .into_iter()
            .zip(until)
            .all(|(now, until)| micros(now) < until);
        holds || (until[0] > 0 && leaves_out(Planted::NoLease))
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
        // So long that what the machine's own clock goes on by meanwhile, which nothing pauses, is nothing.
        const TTL: Duration = Duration::from_secs(3600);
        let gate = Gate::new();
        assert!(!gate.is_open());
        gate.hold(Moment::now().after(TTL));
        tokio::time::advance(TTL - Duration::from_millis(1)).await;
        assert!(gate.is_open());
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(!gate.is_open());
        gate.hold(Moment::now().after(TTL));
        assert!(gate.is_open());
        assert!(
            !gate.is_open_at(Moment::now().suspended_for(TTL)),
            "the machine was suspended, and the runtime's clock with it"
        );
        gate.close();
        assert!(!gate.is_open());
    }
}
