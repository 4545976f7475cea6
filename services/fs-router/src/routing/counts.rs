//! What a router's thread counts of its front ends' operations.
//!
//! Keeps: how they went, by front end, and how many are under way.
//! Order: none.
//! Crash: gone with the process.
//! Knows no page. The router's thread counts, whoever is asked for metrics reads.

use std::sync::atomic::{AtomicU64, Ordering};

use sconce_tracing::metrics::Operations;

/// The counts of one router.
#[derive(Debug, Default)]
pub struct Counts {
    /// Operations of NBD clients.
    pub nbd: Operations,
    /// Operations on files.
    pub fuse: Operations,
    under_way: AtomicU64,
}

impl Counts {
    /// This many operations were taken on and have not ended.
    pub(super) fn are_under_way(&self, count: usize) {
        self.under_way.store(count as u64, Ordering::Relaxed);
    }

    /// Operations that were taken on and have not ended.
    #[must_use]
    pub fn under_way(&self) -> u64 {
        self.under_way.load(Ordering::Relaxed)
    }
}
