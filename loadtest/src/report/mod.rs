//! What reports are made of: tables for the terminal and for pages, pages, pictures, and times in the units of people.
//!
//! Keeps: nothing.
//! Order: none.
//! Crash: a page is one file that is replaced whole.
//! Knows no measurement.

pub(crate) mod page;
pub(crate) mod picture;

use comfy_table::presets::UTF8_HORIZONTAL_ONLY;
use comfy_table::{CellAlignment, ContentArrangement, Table};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// A table that is shown on terminals and in pages.
#[derive(Debug, Default)]
pub(crate) struct Grid {
    headings: Vec<String>,
    rows: Vec<Vec<String>>,
    /// Columns that hold text, from the left; the others hold figures.
    texts: usize,
}

impl Grid {
    /// An empty one, of whose columns the first `texts` hold text.
    pub(crate) fn new(texts: usize, headings: &[&str]) -> Self {
        Self {
            headings: headings.iter().map(|&heading| heading.to_owned()).collect(),
            rows: Vec::new(),
            texts,
        }
    }

    pub(crate) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// For a terminal.
    pub(crate) fn text(&self) -> String {
        let mut table = Table::new();
        table
            .load_style(UTF8_HORIZONTAL_ONLY)
            .set_content_arrangement(ContentArrangement::Disabled)
            .set_header(&self.headings);
        for row in &self.rows {
            table.add_row(row);
        }
        for index in self.texts..self.headings.len() {
            if let Some(column) = table.column_mut(index) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        table.to_string()
    }
}

/// Times of many operations, in microseconds.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct Times {
    pub(crate) count: u64,
    pub(crate) mean_us: f64,
    pub(crate) p50_us: f64,
    pub(crate) p90_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) p999_us: f64,
    pub(crate) max_us: f64,
}

impl Times {
    /// The headings of [`Times::cells`].
    pub(crate) const HEADINGS: [&'static str; 5] = ["p50", "p90", "p99", "p99.9", "max"];

    /// Of nanoseconds.
    pub(crate) fn of(histogram: &Histogram<u64>) -> Self {
        let at = |percent: f64| micros(histogram.value_at_percentile(percent));
        Self {
            count: histogram.len(),
            mean_us: histogram.mean() / 1000.0,
            p50_us: at(50.0),
            p90_us: at(90.0),
            p99_us: at(99.0),
            p999_us: at(99.9),
            max_us: micros(histogram.max()),
        }
    }

    pub(crate) fn cells(&self) -> impl Iterator<Item = String> {
        [self.p50_us, self.p90_us, self.p99_us, self.p999_us, self.max_us]
            .into_iter()
            .map(shown)
    }
}

/// Counts of times; nanoseconds, to 1 %.
///
/// # Errors
/// None: two significant digits are within what the crate takes.
pub(crate) fn histogram() -> anyhow::Result<Histogram<u64>> {
    Ok(Histogram::new(2)?)
}

pub(crate) fn micros(nanos: u64) -> f64 {
    nanos as f64 / 1000.0
}

/// A time of so many microseconds, as people read it.
pub(crate) fn shown(us: f64) -> String {
    match us.abs() {
        at if at >= 10_000_000.0 => format!("{:.1} s", us / 1e6),
        at if at >= 1_000_000.0 => format!("{:.2} s", us / 1e6),
        at if at >= 100_000.0 => format!("{:.0} ms", us / 1e3),
        at if at >= 1_000.0 => format!("{:.1} ms", us / 1e3),
        at if at >= 100.0 => format!("{us:.0} us"),
        _ => format!("{us:.1} us"),
    }
}

/// A share as people read it.
pub(crate) fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

/// `part` of `whole`; nothing of nothing is nothing.
pub(crate) fn ratio(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_shown_in_units_of_their_size() {
        let found = [12.34, 512.3, 1_512.0, 250_000.0, 1_250_000.0, 12_500_000.0].map(shown);
        assert_eq!(
            found,
            ["12.3 us", "512 us", "1.5 ms", "250 ms", "1.25 s", "12.5 s"]
        );
    }
}
