//! A page of metrics in Prometheus' text form (version 0.0.4).
//!
//! Keeps: the lines that were told so far, by metric.
//! Order: the list's; the lines of one metric follow one another, as the form asks.
//! Crash: nothing.
//! Knows no numbers of its own.

use std::collections::BTreeMap;
use std::fmt::{Display, Write as _};
use std::sync::atomic::Ordering;

use super::count::{FAILURES, Histogram, Operations, Read};
use super::{Kind, Metric};
use crate::Action;

/// What a service tells of itself at one time.
#[derive(Debug, Default)]
pub struct Page {
    lines: BTreeMap<Metric, String>,
    is_incomplete: bool,
}

/// The metrics of a service's operations.
#[derive(Debug, Clone, Copy)]
pub struct OfOperations {
    /// What they took.
    pub seconds: Metric,
    /// Their bytes.
    pub bytes: Metric,
    /// Those that were not done; has the label `status` beside those of the others.
    pub errors: Metric,
}

impl Page {
    /// What its form is called in HTTP.
    pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

    /// A metric's number. `labels` has a value for each label of the metric, in their order.
    pub fn number(&mut self, metric: Metric, labels: &[&str], value: u64) {
        self.line(metric, "", labels, None, value);
    }

    /// Something did not tell its numbers in time.
    pub fn left_out(&mut self) {
        self.is_incomplete = true;
    }

    pub(super) const fn is_incomplete(&self) -> bool {
        self.is_incomplete
    }

    /// Yes as 1, no as 0.
    pub fn yes_or_no(&mut self, metric: Metric, labels: &[&str], value: bool) {
        self.number(metric, labels, u64::from(value));
    }

    /// A metric's number in seconds.
    pub fn seconds(&mut self, metric: Metric, labels: &[&str], value: f64) {
        self.line(metric, "", labels, None, value);
    }

    /// How many took how long, of all these together.
    pub fn histogram<'a>(
        &mut self,
        metric: Metric,
        labels: &[&str],
        histograms: impl IntoIterator<Item = &'a Histogram>,
    ) {
        let mut read = Read::default();
        histograms.into_iter().for_each(|histogram| read.add(histogram));
        for (bound, count) in read.cumulative() {
            self.line(metric, "_bucket", labels, Some(&bound), count);
        }
        self.line(metric, "_bucket", labels, Some(&"+Inf"), read.count());
        self.line(metric, "_sum", labels, None, read.seconds());
        self.line(metric, "_count", labels, None, read.count());
    }

    /// How the operations of all these threads went, of each of these kinds. Each metric has the labels, and then `operation`.
    pub fn operations(
        &mut self,
        metrics: OfOperations,
        labels: &[&str],
        actions: &[Action],
        threads: &[&Operations],
    ) {
        for action in actions {
            let kinds = || threads.iter().map(|thread| thread.of(*action));
            let mut labels = [labels, &[action.name()]].concat();
            self.histogram(metrics.seconds, &labels, kinds().map(|kind| &kind.took));
            let bytes = kinds().map(|kind| kind.bytes.load(Ordering::Relaxed)).sum();
            self.number(metrics.bytes, &labels, bytes);
            for (at, status) in FAILURES.iter().enumerate() {
                labels.push(status.name());
                let failed = kinds().map(|kind| kind.failed[at].load(Ordering::Relaxed));
                self.number(metrics.errors, &labels, failed.sum());
                labels.pop();
            }
        }
    }

    fn line(
        &mut self,
        metric: Metric,
        suffix: &str,
        labels: &[&str],
        bound: Option<&dyn Display>,
        value: impl Display,
    ) {
        let about = metric.about();
        debug_assert_eq!(about.labels.len(), labels.len(), "{about:?}");
        debug_assert_eq!(about.kind == Kind::Histogram, !suffix.is_empty(), "{about:?}");
        let text = self.lines.entry(metric).or_default();
        text.push_str(about.name);
        text.push_str(suffix);
        let mut between = '{';
        for (label, value) in about.labels.iter().zip(labels) {
            // Writing to a text does not fail.
            let _ = write!(text, "{between}{label}=\"{}\"", Escaped(value));
            between = ',';
        }
        if let Some(bound) = bound {
            let _ = write!(text, "{between}le=\"{bound}\"");
            between = ',';
        }
        if between == ',' {
            text.push('}');
        }
        let _ = writeln!(text, " {value}");
    }
}

/// The page.
impl Display for Page {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (metric, lines) in &self.lines {
            let about = metric.about();
            writeln!(f, "# HELP {} {}", about.name, about.help)?;
            writeln!(f, "# TYPE {} {}", about.name, about.kind.name())?;
            f.write_str(lines)?;
        }
        Ok(())
    }
}

/// A label's value as the form wants it.
struct Escaped<'a>(&'a str);

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for part in self.0.split_inclusive(['\\', '"', '\n']) {
            match part.as_bytes().last() {
                Some(b'\\') => write!(f, "{part}\\")?,
                Some(b'"') => write!(f, "{}\\\"", &part[..part.len() - 1])?,
                Some(b'\n') => write!(f, "{}\\n", &part[..part.len() - 1])?,
                _ => f.write_str(part)?,
            }
        }
        Ok(())
    }
}
