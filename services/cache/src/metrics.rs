//! A cache's counters as metrics.
//!
//! Keeps: nothing.
//! Order: none.
//! Crash: the next process begins at zero, as counters do.
//! Knows no reader.

use sconce_tracing::metrics::{Metric, Page};

use crate::counters::Counters;

impl Counters {
    /// Puts them on a page. `cache` tells caches apart.
    pub fn tell(&self, page: &mut Page, cache: &str) {
        for (metric, value) in [
            (Metric::CacheHits, self.hits),
            (Metric::CacheMisses, self.misses),
            (Metric::CacheHitBytes, self.hit_bytes),
            (Metric::CacheAdmitted, self.admitted),
            (Metric::CacheAdmittedBytes, self.admitted_bytes),
            (Metric::CacheEvicted, self.evicted),
            (Metric::CacheSkipped, self.skipped),
            (Metric::CacheDamaged, self.damaged),
            (Metric::CacheErrors, self.errors),
            (Metric::CachePieces, self.pieces),
            (Metric::CacheCapacity, self.capacity_bytes),
            (Metric::CacheOff, u64::from(self.off)),
        ] {
            page.number(metric, &[cache], value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_counter_has_a_line_of_its_own() {
        let counters = Counters {
            hits: 1,
            misses: 2,
            hit_bytes: 3,
            admitted: 4,
            admitted_bytes: 5,
            evicted: 6,
            skipped: 7,
            damaged: 8,
            errors: 9,
            pieces: 10,
            capacity_bytes: 11,
            off: true,
        };
        let mut page = Page::default();
        counters.tell(&mut page, "clusters");
        let text = page.to_string();
        let values: Vec<&str> = text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.rsplit(' ').next())
            .collect();
        assert_eq!(
            values,
            ["1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "1"]
        );
        assert!(text.contains("\nsconce_cache_hits_total{cache=\"clusters\"} 1\n"));
    }
}
