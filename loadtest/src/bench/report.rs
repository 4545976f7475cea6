//! The report: medians over rounds, ratios, as a table for the terminal, as Markdown and as JSON.
//!
//! Keeps: one row a workload.
//! Order: rows in the order of the workloads.
//! Crash: a file that is written into is replaced whole.
//! Knows figures, not how they came about.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Result;
use comfy_table::presets::UTF8_HORIZONTAL_ONLY;
use comfy_table::{CellAlignment, Table};
use serde::Serialize;

use super::Run;
use super::server::{Idle, Kind};
use super::workload::{WORKLOADS, Workload};
use crate::document;
use crate::machine::Machine;

/// The idle measurement's name for `--only`.
pub(super) const IDLE: &str = "idle";
const MARKER: &str = "bench";
const HEADINGS: [&str; 9] = [
    "workload",
    "Sconce",
    "qemu-nbd",
    "of it",
    "goal",
    "p50 us",
    "p50 us qemu-nbd",
    "CPU-s / 10,000",
    "CPU-s / 10,000 qemu-nbd",
];

/// What was measured.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    machine: Machine,
    rows: Vec<Row>,
    idle: Option<Idle>,
}

#[derive(Debug, Serialize)]
struct Row {
    workload: &'static str,
    unit: &'static str,
    sconce: Medians,
    /// The better of the two kinds of caching in this workload.
    qemu: Medians,
    qemu_cache: Kind,
    ratio: f64,
    goal: f64,
    reached: bool,
}

/// Medians over the rounds.
#[derive(Debug, Clone, Copy, Serialize)]
struct Medians {
    /// Operations a second, or MB a second.
    rate: f64,
    median_us: f64,
    p99_us: f64,
    cpu_seconds_per_10k: f64,
}

impl Report {
    pub(super) fn new(runs: &[Run], idle: Option<Idle>, machine: Machine) -> Report {
        let rows = WORKLOADS
            .iter()
            .filter_map(|workload| row(workload, runs))
            .collect();
        Report { machine, rows, idle }
    }

    /// For the terminal.
    pub(super) fn table(&self) -> String {
        let mut table = Table::new();
        table.load_style(UTF8_HORIZONTAL_ONLY).set_header(HEADINGS);
        for row in &self.rows {
            table.add_row(row.cells());
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        format!("{table}\n{}", self.idle_line())
    }

    /// Replaces what is between the markers of the file.
    pub(super) fn write_into(&self, path: &Path) -> Result<()> {
        document::write_between(path, MARKER, &self.markdown())
    }

    fn markdown(&self) -> String {
        let mut text = format!(
            "{}\n\n| {} |\n|---|{}\n",
            self.machine,
            HEADINGS.join(" | "),
            "---:|".repeat(HEADINGS.len() - 1)
        );
        for row in &self.rows {
            // Writing into a String cannot fail.
            let _ = writeln!(text, "| {} |", row.cells().join(" | "));
        }
        let _ = writeln!(text, "\n{}", self.idle_line());
        text
    }

    fn idle_line(&self) -> String {
        self.idle.map_or_else(String::new, |idle| {
            format!(
                "Idle for {} s: {:.2} % of a core (goal: under 1 %), {} back-end requests (goal: 0).",
                idle.seconds,
                idle.core_share * 100.0,
                idle.backend_requests
            )
        })
    }
}

impl Row {
    fn cells(&self) -> Vec<String> {
        let cache = if self.qemu_cache == Kind::QemuNone {
            "none"
        } else {
            "writeback"
        };
        vec![
            self.workload.to_owned(),
            format!("{:.0} {}", self.sconce.rate, self.unit),
            format!("{:.0} ({cache})", self.qemu.rate),
            format!("{:.2}{}", self.ratio, if self.reached { "" } else { " (below)" }),
            format!("{:.1}", self.goal),
            format!("{:.0}", self.sconce.median_us),
            format!("{:.0}", self.qemu.median_us),
            format!("{:.3}", self.sconce.cpu_seconds_per_10k),
            format!("{:.3}", self.qemu.cpu_seconds_per_10k),
        ]
    }
}

fn row(workload: &'static Workload, runs: &[Run]) -> Option<Row> {
    let of = |kind: Kind| {
        let runs: Vec<&Run> = runs
            .iter()
            .filter(|run| run.workload == workload && run.server == kind)
            .collect();
        (!runs.is_empty()).then(|| medians(workload, &runs))
    };
    let sconce = of(Kind::Sconce)?;
    let (none, writeback) = (of(Kind::QemuNone)?, of(Kind::QemuWriteback)?);
    let (qemu, qemu_cache) = if none.rate >= writeback.rate {
        (none, Kind::QemuNone)
    } else {
        (writeback, Kind::QemuWriteback)
    };
    let ratio = sconce.rate / qemu.rate;
    Some(Row {
        workload: workload.name,
        unit: if workload.by_bytes { "MB/s" } else { "/s" },
        sconce,
        qemu,
        qemu_cache,
        ratio,
        goal: workload.goal,
        reached: ratio >= workload.goal,
    })
}

fn medians(workload: &Workload, runs: &[&Run]) -> Medians {
    let rate = |run: &Run| {
        if workload.by_bytes {
            run.figures.bytes_per_second / 1e6
        } else {
            run.figures.per_second
        }
    };
    #[expect(
        clippy::cast_precision_loss,
        reason = "operations of a run are far below 2^52"
    )]
    let cpu = |run: &Run| run.cpu_seconds * 1e4 / (run.figures.operations.max(1) as f64);
    Medians {
        rate: median(runs, rate),
        median_us: median(runs, |run| run.figures.median_us),
        p99_us: median(runs, |run| run.figures.p99_us),
        cpu_seconds_per_10k: median(runs, cpu),
    }
}

fn median(runs: &[&Run], figure: impl Fn(&Run) -> f64) -> f64 {
    let mut values: Vec<f64> = runs.iter().map(|run| figure(run)).collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let upper = values.get(middle).copied().unwrap_or(0.0);
    if values.len() % 2 == 1 {
        return upper;
    }
    values
        .get(middle.saturating_sub(1))
        .map_or(upper, |lower| (lower + upper) / 2.0)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::fio::Figures;

    const BEGIN: &str = "<!-- bench:begin -->";
    const END: &str = "<!-- bench:end -->";

    fn run(server: Kind, per_second: f64) -> Run {
        let figures = Figures {
            per_second,
            bytes_per_second: per_second * 4096.0,
            operations: 10_000,
            mean_us: 25.0,
            median_us: 20.0,
            p90_us: 60.0,
            p99_us: 90.0,
            p999_us: 95.0,
            longest_us: 0.0,
        };
        Run {
            workload: &WORKLOADS[0],
            server,
            figures,
            cpu_seconds: 0.5,
        }
    }

    fn report() -> Report {
        let mut runs = vec![run(Kind::QemuNone, 1000.0), run(Kind::QemuWriteback, 800.0)];
        runs.extend([400.0, 900.0, 600.0].map(|rate| run(Kind::Sconce, rate)));
        let machine = Machine {
            command: "loadtest bench".to_owned(),
            date: "2026-11-22".to_owned(),
            commit: "abc".to_owned(),
            cpu: "cpu".to_owned(),
            cores: 2,
            kernel: "6".to_owned(),
        };
        Report::new(&runs, None, machine)
    }

    #[test]
    fn the_median_meets_the_better_of_the_two() {
        let report = report();
        assert_eq!(report.rows.len(), 1);
        let row = &report.rows[0];
        assert_eq!((row.qemu_cache, row.reached), (Kind::QemuNone, true));
        assert!((row.ratio - 0.6).abs() < 1e-9, "{}", row.ratio);
        assert!((row.sconce.cpu_seconds_per_10k - 0.5).abs() < 1e-9);
    }

    #[test]
    fn only_what_is_between_the_markers_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("benchmarks.md");
        fs::write(&path, format!("before\n{BEGIN}\nold\n{END}\nafter\n")).unwrap();
        report().write_into(&path).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert!(
            text.starts_with("before\n") && text.ends_with("after\n") && !text.contains("old"),
            "{text}"
        );
        assert!(
            text.contains("| randwrite-4k-1 | 600 /s | 1000 (none) | 0.60 |"),
            "{text}"
        );
        fs::write(&path, "no markers").unwrap();
        assert!(report().write_into(&path).is_err());
    }
}
