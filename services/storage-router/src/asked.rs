//! What a back end was asked, and how that went, for metrics.
//!
//! Keeps: times and bytes of each kind of operation.
//! Order: none.
//! Crash: gone with the process.
//! Knows no back end.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use sconce_tracing::metrics::{Histogram, Metric, Page};

/// What a back end is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    Put,
    Get,
    Stat,
    List,
    Delete,
}

impl Asked {
    const ALL: [(Self, &str); 5] = [
        (Self::Put, "put"),
        (Self::Get, "get"),
        (Self::Stat, "stat"),
        (Self::List, "list"),
        (Self::Delete, "delete"),
    ];
}

/// How that went.
#[derive(Debug, Default)]
pub(crate) struct AskedCounts {
    kinds: [Kind; Asked::ALL.len()],
}

#[derive(Debug, Default)]
struct Kind {
    took: Histogram,
    bytes: AtomicU64,
}

impl AskedCounts {
    /// An operation has ended; `bytes` of it count, which is none where it failed.
    pub(crate) fn ended(&self, asked: Asked, took: Duration, bytes: u64) {
        let kind = &self.kinds[asked as usize];
        kind.took.took(took);
        kind.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Puts them on a page.
    pub(crate) fn tell(&self, page: &mut Page, backend: &str) {
        for (asked, name) in Asked::ALL {
            let (kind, labels) = (&self.kinds[asked as usize], [backend, name]);
            page.histogram(Metric::BackendSeconds, &labels, [&kind.took]);
            page.number(Metric::BackendBytes, &labels, kind.bytes.load(Ordering::Relaxed));
        }
    }
}
