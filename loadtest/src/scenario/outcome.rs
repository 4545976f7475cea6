//! What a run found, and how it is shown: on the terminal, in a page, and as JSON for `loadtest compare`.
//!
//! Keeps: all figures of a run.
//! Order: loads as in the scenario.
//! Crash: nothing.
//! Knows no process.

use std::collections::BTreeMap;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::meter::{Cpu, Status};
use crate::analyze::Analysis;
use crate::generator::Found;
use crate::machine::Machine;
use crate::report::page::Page;
use crate::report::picture::{self, Axes, Line, Mark};
use crate::report::{Grid, Times, shown};

/// A run.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Outcome {
    pub(crate) name: String,
    /// The scenario's text.
    pub(crate) scenario: String,
    pub(crate) machine: Machine,
    pub(crate) seconds: f64,
    pub(crate) interval_s: f64,
    pub(crate) loads: Vec<OfLoad>,
    pub(crate) chaos: Vec<Happened>,
    pub(crate) cpu: Vec<Cpu>,
    pub(crate) status: Vec<Status>,
    /// What LTTng recorded of the loads' volumes.
    pub(crate) trace: Option<Analysis>,
    /// Why there is none.
    pub(crate) no_trace: Option<String>,
    /// What must not be: errors, mismatches, chaos that could not be done.
    pub(crate) problems: Vec<String>,
}

/// A load.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct OfLoad {
    pub(crate) name: String,
    pub(crate) volume: String,
    /// The generator's schedule; false: fio's closed loop, whose times count from the sending.
    pub(crate) is_open: bool,
    /// Bytes of a request.
    pub(crate) block: u64,
    pub(crate) found: Found,
}

/// Something that was done to a service.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Happened {
    pub(crate) at_s: f64,
    pub(crate) until_s: f64,
    pub(crate) name: String,
}

const OPEN: &str = "Latency counts from when a request was due by the schedule, whether or not it could be sent then: requests that were due \
                    while the server stalled have waited for it. “Service” counts from when it was sent, as a closed loop does.";

impl Outcome {
    fn marks(&self) -> Vec<Mark> {
        let mark = |happened: &Happened| Mark {
            from: happened.at_s,
            to: happened.until_s,
            name: happened.name.clone(),
        };
        self.chaos.iter().map(mark).collect()
    }

    fn answered(&self) -> u64 {
        self.loads.iter().map(|load| load.found.all.count).sum()
    }

    fn load_table(&self) -> Grid {
        let mut headings = vec!["load", "volume", "requests", "a second", "MB/s"];
        headings.extend(Times::HEADINGS);
        headings.extend(["service p99", "errors", "verified", "mismatches", "reconnects"]);
        let mut grid = Grid::new(2, &headings);
        for load in &self.loads {
            let found = &load.found;
            let per_second = found.all.count as f64 / self.seconds;
            let mut row = vec![
                load.name.clone(),
                load.volume.clone(),
                found.all.count.to_string(),
                format!("{per_second:.0}"),
                format!("{:.1}", per_second * load.block as f64 / 1e6),
            ];
            row.extend(found.all.cells());
            row.push(shown(found.service.p99_us));
            row.extend([found.errors, found.verified, found.mismatches].map(|count| count.to_string()));
            row.push(found.reconnects.to_string());
            grid.row(row);
        }
        grid
    }

    fn kind_table(&self) -> Grid {
        let mut headings = vec!["load", "kind", "count"];
        headings.extend(Times::HEADINGS);
        let mut grid = Grid::new(2, &headings);
        for load in &self.loads {
            for (kind, times) in &load.found.latency {
                let mut row = vec![load.name.clone(), kind.clone(), times.count.to_string()];
                row.extend(times.cells());
                grid.row(row);
            }
        }
        grid
    }

    fn cpu_table(&self) -> Grid {
        let mut grid = Grid::new(
            1,
            &["service", "CPU seconds", "of a core", "CPU-s / 10,000 requests"],
        );
        let mut sums: BTreeMap<&str, f64> = BTreeMap::new();
        for (service, seconds) in self.cpu.iter().flat_map(|sample| &sample.seconds) {
            *sums.entry(service).or_default() += seconds;
            *sums.entry("all").or_default() += seconds;
        }
        for (service, seconds) in sums {
            grid.row(vec![
                service.to_owned(),
                format!("{seconds:.2}"),
                format!("{:.2}", seconds / self.seconds),
                format!("{:.3}", seconds * 10_000.0 / self.answered().max(1) as f64),
            ]);
        }
        grid
    }

    fn chaos_table(&self) -> Grid {
        let mut grid = Grid::new(1, &["chaos", "at, s", "until, s"]);
        for happened in &self.chaos {
            grid.row(vec![
                happened.name.clone(),
                format!("{:.2}", happened.at_s),
                format!("{:.2}", happened.until_s),
            ]);
        }
        grid
    }

    /// For a terminal.
    pub(crate) fn text(&self) -> String {
        let mut text = format!(
            "{}: {:.0} s of load\n{}\n",
            self.name,
            self.seconds,
            self.load_table().text()
        );
        for grid in [self.kind_table(), self.chaos_table(), self.cpu_table()] {
            if !grid.is_empty() {
                text.push_str(&format!("{}\n", grid.text()));
            }
        }
        match (&self.trace, &self.no_trace) {
            (Some(trace), _) => text.push_str(&format!("\n{}", trace.text())),
            (None, Some(why)) => text.push_str(&format!("\nNo trace: {why}\n")),
            (None, None) => {}
        }
        for problem in &self.problems {
            text.push_str(&format!("PROBLEM: {problem}\n"));
        }
        text
    }

    /// A whole page.
    pub(crate) fn page(&self) -> Result<String> {
        let mut page = Page::new(&format!("Load test {}", self.name));
        page.paragraph(&self.machine.to_string());
        for problem in &self.problems {
            page.warning(problem);
        }
        page.table(&self.load_table());
        page.paragraph(OPEN);
        page.table(&self.kind_table());
        let marks = self.marks();
        page.heading("Over time");
        page.figure(
            &picture::lines(&axes("answers a second", "1/s", false), &self.rates(), &marks)?,
            "",
        );
        for load in &self.loads {
            let title = format!(
                "{}: latency of the requests that were due in each interval",
                load.name
            );
            page.figure(
                &picture::lines(&axes(&title, "ms", true), &load.latencies(), &marks)?,
                "",
            );
        }
        if !self.chaos.is_empty() {
            page.table(&self.chaos_table());
        }
        page.heading("Latency");
        page.figure(
            &picture::lines(&percentile_axes(), &self.percentiles(), &[])?,
            "How long the slowest part of the requests took.",
        );
        for load in self.loads.iter().filter(|load| !load.found.spread.is_empty()) {
            page.figure(&load.histogram()?, "");
        }
        page.heading("CPU");
        page.figure(
            &picture::lines(&axes("CPU by service", "cores", false), &self.cores(), &marks)?,
            "",
        );
        page.table(&self.cpu_table());
        self.add_status(&mut page, &marks)?;
        page.heading("Where the time of an operation goes");
        match (&self.trace, &self.no_trace) {
            (Some(trace), _) => trace.add_to(&mut page, &marks)?,
            (None, why) => page.paragraph(&format!(
                "Not recorded: {}",
                why.as_deref().unwrap_or("trace = \"off\"")
            )),
        }
        page.heading("Scenario");
        let mut grid = Grid::new(1, &["its file"]);
        for line in self.scenario.lines().filter(|line| !line.trim().is_empty()) {
            grid.row(vec![line.to_owned()]);
        }
        page.table(&grid);
        Ok(page.finish())
    }

    fn rates(&self) -> Vec<Line> {
        let line = |load: &OfLoad| {
            // The last answers come after the schedule's end.
            let within = load
                .found
                .samples
                .iter()
                .filter(|sample| sample.at_s < self.seconds);
            let points = within.map(|sample| {
                let middle = sample.at_s + self.interval_s / 2.0;
                (middle, sample.answered as f64 / self.interval_s)
            });
            Line {
                name: load.name.clone(),
                points: points.collect(),
            }
        };
        self.loads.iter().map(line).collect()
    }

    fn percentiles(&self) -> Vec<Line> {
        let line = |load: &OfLoad| {
            let (mut seen, all) = (0, load.found.all.count.max(1) as f64);
            let mut points = Vec::new();
            for (us, count) in &load.found.spread {
                let above = 1.0 - f64::from(u32::try_from(seen).unwrap_or(u32::MAX)) / all;
                points.push((-above.max(1e-9).log10(), us / 1000.0));
                seen += count;
            }
            Line {
                name: load.name.clone(),
                points,
            }
        };
        self.loads.iter().map(line).collect()
    }

    fn cores(&self) -> Vec<Line> {
        let mut lines: BTreeMap<&str, Vec<(f64, f64)>> = BTreeMap::new();
        let mut before = 0.0;
        for sample in &self.cpu {
            for (service, seconds) in &sample.seconds {
                let point = (sample.at_s, seconds / (sample.at_s - before).max(1e-3));
                lines.entry(service).or_default().push(point);
            }
            before = sample.at_s;
        }
        let line = |(name, points): (&str, Vec<(f64, f64)>)| Line {
            name: name.to_owned(),
            points,
        };
        lines.into_iter().map(line).collect()
    }

    fn add_status(&self, page: &mut Page, marks: &[Mark]) -> Result<()> {
        let (Some(first), true) = (self.status.first(), self.status.len() > 1) else {
            return Ok(());
        };
        let line = |name: &str, figure: fn(&Status) -> u64, from: u64| Line {
            name: name.to_owned(),
            points: self
                .status
                .iter()
                .map(|status| (status.at_s, figure(status).saturating_sub(from) as f64 / 1e6))
                .collect(),
        };
        let lines = [
            line("in write buffers only", |status| status.unstored_bytes, 0),
            line(
                "written to back ends",
                |status| status.backend_written_bytes,
                first.backend_written_bytes,
            ),
        ];
        page.figure(
            &picture::lines(
                &axes("data on its way to the back ends", "MB", false),
                &lines,
                marks,
            )?,
            "",
        );
        Ok(())
    }
}

impl OfLoad {
    fn latencies(&self) -> Vec<Line> {
        let line = |name: &str, at: fn(&Times) -> f64| {
            let points = self.found.samples.iter().filter(|sample| sample.times.count > 0);
            Line {
                name: name.to_owned(),
                points: points
                    .map(|sample| (sample.at_s, at(&sample.times) / 1000.0))
                    .collect(),
            }
        };
        match self.is_open {
            true => vec![
                line("p50", |times| times.p50_us),
                line("p99", |times| times.p99_us),
                line("max", |times| times.max_us),
            ],
            false => vec![line("mean (of those that were sent)", |times| times.mean_us)],
        }
    }

    /// Counts by latency; each step is 10 % wide or more.
    fn histogram(&self) -> Result<String> {
        let mut steps: Vec<(f64, f64)> = Vec::new();
        for (us, count) in &self.found.spread {
            let x = us.max(1.0).log10();
            match steps.last_mut() {
                Some((last, sum)) if x - *last < 0.04 => *sum += *count as f64,
                _ => steps.push((x, *count as f64)),
            }
        }
        let axes = Axes {
            title: &format!("{}: requests by latency", self.name),
            x: "latency",
            y: "requests",
            log: false,
            x_shown: |x| shown(10_f64.powf(x)),
        };
        let line = Line {
            name: self.name.clone(),
            points: steps,
        };
        picture::lines(&axes, &[line], &[])
    }
}

fn axes<'a>(title: &'a str, y: &'a str, log: bool) -> Axes<'a> {
    Axes {
        title,
        x: "s",
        y,
        log,
        x_shown: |x| format!("{x:.0}"),
    }
}

fn percentile_axes() -> Axes<'static> {
    Axes {
        title: "latency by percentile",
        x: "percent of the requests that were faster",
        y: "ms",
        log: true,
        x_shown: |x| {
            format!("{:.5}", 100.0 * (1.0 - 10_f64.powf(-x)))
                .trim_end_matches('0')
                .trim_end_matches('.')
                .to_owned()
        },
    }
}
