//! A cache's counters as a file in Prometheus' text form, for a node exporter's textfile collector, and for people.
//!
//! Keeps: the file, written anew when a counter changed, at most each [`EVERY`].
//! Order: the file is replaced as a whole.
//! Crash: the file stays as it was; the next process begins at zero, as counters do.
//! Knows no network.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sconce_runtime::{Stop, Throttle};

use crate::cache::Cache;
use crate::counters::Counters;

/// The shortest time between two versions of the file.
pub const EVERY: Duration = Duration::from_secs(1);
const TOLD_EVERY: Duration = Duration::from_secs(600);

/// Keeps `path` up to date until the stop. `name` tells a service's caches apart: the label `cache`.
pub async fn keep_file(path: PathBuf, name: &'static str, cache: Cache, stop: Stop) {
    static TOLD: Throttle = Throttle::every(TOLD_EVERY);
    let mut shown = None;
    loop {
        let counters = cache.counters();
        if shown != Some(counters) {
            let (target, text) = (path.clone(), counters.to_prometheus(name));
            let written = sconce_runtime::blocking(move || replace(&target, &text)).await;
            match written {
                Ok(Ok(())) => shown = Some(counters),
                Ok(Err(error)) => {
                    if TOLD.pass().is_some() {
                        tracing::info!(path = %path.display(), %error, "the cache's counters cannot be written");
                    }
                }
                // The runtime ends.
                Err(_) => return,
            }
        }
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            () = stop.requested() => return,
        }
    }
}

fn replace(path: &Path, text: &str) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    fs::write(&temporary, text)?;
    fs::rename(&temporary, path)
}

impl Counters {
    /// In Prometheus' text form, with the label `cache="name"`.
    #[must_use]
    pub fn to_prometheus(&self, name: &str) -> String {
        let mut text = String::new();
        for (metric, kind, help, value) in [
            ("hits_total", "counter", "Pieces given, unharmed.", self.hits),
            (
                "misses_total",
                "counter",
                "Pieces asked for and not given.",
                self.misses,
            ),
            ("hit_bytes_total", "counter", "Bytes given.", self.hit_bytes),
            (
                "admitted_total",
                "counter",
                "Pieces written to the file.",
                self.admitted,
            ),
            (
                "admitted_bytes_total",
                "counter",
                "Bytes written to the file.",
                self.admitted_bytes,
            ),
            (
                "evicted_total",
                "counter",
                "Pieces that made room for others.",
                self.evicted,
            ),
            (
                "skipped_total",
                "counter",
                "Pieces that were not taken.",
                self.skipped,
            ),
            (
                "damaged_total",
                "counter",
                "Pieces dropped because their CRC32C did not hold.",
                self.damaged,
            ),
            (
                "errors_total",
                "counter",
                "Calls on the file that failed.",
                self.errors,
            ),
            ("pieces", "gauge", "Pieces in the file.", self.pieces),
            (
                "capacity_bytes",
                "gauge",
                "Bytes that all pieces may take.",
                self.capacity_bytes,
            ),
            (
                "off",
                "gauge",
                "1 while an error or a start keeps it from giving or taking.",
                u64::from(self.off),
            ),
        ] {
            // Writing to a text does not fail.
            let _ = writeln!(
                text,
                "# HELP sconce_cache_{metric} {help}\n# TYPE sconce_cache_{metric} {kind}\nsconce_cache_{metric}{{cache=\"{name}\"}} {value}"
            );
        }
        text
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
        let text = counters.to_prometheus("clusters");
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
