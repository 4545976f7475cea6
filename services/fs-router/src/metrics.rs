//! What the service tells of itself as metrics.
//!
//! Keeps: handles on what counts.
//! Order: none.
//! Crash: nothing.
//! Knows no reader.

use std::sync::Arc;

use sconce_tracing::Action;
use sconce_tracing::metrics::{Metric, OfOperations, Operations, Page};

use crate::routing::{ClusterCache, Counts};

/// The service's numbers.
pub(crate) struct Metrics {
    /// Of each IO thread.
    pub(crate) threads: Vec<Arc<Counts>>,
    pub(crate) cache: Option<ClusterCache>,
    pub(crate) has_nbd: bool,
    pub(crate) has_fuse: bool,
}

impl Metrics {
    /// Puts them on a page.
    pub(crate) fn tell(&self, page: &mut Page) {
        let of = OfOperations {
            seconds: Metric::FrontEndSeconds,
            bytes: Metric::FrontEndBytes,
            errors: Metric::FrontEndErrors,
        };
        let mut front_end = |name: &str, counts: fn(&Counts) -> &Operations| {
            let threads: Vec<&Operations> = self.threads.iter().map(|thread| counts(thread)).collect();
            page.operations(of, &[name], &Action::OF_CLIENTS, &threads);
        };
        if self.has_nbd {
            front_end("nbd", |counts| &counts.nbd);
        }
        if self.has_fuse {
            front_end("fuse", |counts| &counts.fuse);
        }
        for (number, thread) in self.threads.iter().enumerate() {
            page.number(
                Metric::RoutedOperations,
                &[&number.to_string()],
                thread.under_way(),
            );
        }
        if let Some(cache) = &self.cache {
            cache.cache().counters().tell(page, "clusters");
        }
    }
}
