//! An analysis, shown: on a terminal, and in a page.
//!
//! Keeps: nothing.
//! Order: kinds of operations as the analysis has them, steps in path order.
//! Crash: nothing.
//! Knows no event.

use anyhow::Result;

use super::figures::{Analysis, Class, Slow, Step};
use crate::report::page::Page;
use crate::report::picture::{self, Axes, Line, Mark, Piece};
use crate::report::{Grid, Times, percent, ratio, shown};

/// Steps with less than this of the time, among all operations and among the slow ones, are one line of a table.
const SMALL: f64 = 0.005;
const CLOCKS: &str = "Events of several machines: each machine has its own clock. Times within a machine hold; a step from one machine to \
                      another is wrong by the difference of their clocks, and the steps there and back are wrong by the same in \
                      opposite directions, so that only their sum can be relied on.";

impl Analysis {
    /// What a reader has to know before any figure.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.lost > 0 {
            warnings.push(format!(
                "LTTng lost at least {} events: operations that they were of are incomplete, or look as if they had fewer steps. \
                 Record with larger sub-buffers. It said: {}",
                self.lost,
                self.lost_told.first().map_or("", String::as_str)
            ));
        }
        if self.hosts.len() > 1 {
            warnings.push(format!("{CLOCKS} The machines: {}.", self.hosts.join(", ")));
        }
        if self.classes.is_empty() {
            warnings.push(format!(
                "No operation was recorded from its begin to its end; the trace has {} events of Sconce and {} of other programs. \
                 Were the points on (lttng enable-event -u 'sconce_*') and the services built with LTTng's headers?",
                self.events + self.of_no_operation,
                self.others
            ));
        }
        warnings
    }

    fn summary(&self) -> String {
        let hits = match self.buffer_bytes + self.stored_bytes {
            0 => String::new(),
            read => format!(
                " Of the bytes that were read, {} were in the write buffer, the others on back ends.",
                percent(ratio(self.buffer_bytes as f64, read as f64))
            ),
        };
        format!(
            "{} events in {:.3} s; {} operations, {} of them incomplete (begun before the recording, or ended after it); {} events of \
             no operation; {} events lost.{hits}",
            self.events, self.seconds, self.operations, self.incomplete, self.of_no_operation, self.lost
        )
    }

    fn kinds(&self) -> Grid {
        let mut grid = Grid::new(
            1,
            &[
                "operations",
                "count",
                "a second",
                "failed",
                "mean",
                "p50",
                "p90",
                "p99",
                "p99.9",
                "max",
            ],
        );
        for class in &self.classes {
            let mut row = vec![
                class.name.clone(),
                class.times.count.to_string(),
                format!("{:.1}", ratio(class.times.count as f64, self.seconds)),
                class.failed.to_string(),
                shown(class.times.mean_us),
            ];
            row.extend(class.times.cells());
            grid.row(row);
        }
        grid
    }

    /// For a terminal.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        for warning in self.warnings() {
            text.push_str(&format!("WARNING: {warning}\n\n"));
        }
        text.push_str(&format!("{}\n\n{}\n", self.summary(), self.kinds().text()));
        for class in &self.classes {
            text.push_str(&format!(
                "\n{}: where the time goes, step by step. {}\n{}\n",
                class.name,
                class.verdict(),
                class.step_table().text()
            ));
            if let Some(slow) = class.slowest.first() {
                text.push_str(&format!("\n{}\n{}\n", class.title_of(slow), slow.table().text()));
            }
        }
        text
    }

    /// Adds all of it to a page; `marks` are what happened meanwhile.
    pub(crate) fn add_to(&self, page: &mut Page, marks: &[Mark]) -> Result<()> {
        for warning in self.warnings() {
            page.warning(&warning);
        }
        page.paragraph(&self.summary());
        page.table(&self.kinds());
        for class in &self.classes {
            class.add_to(page, marks)?;
        }
        page.subheading("Events");
        let mut events = Grid::new(1, &["point", "events"]);
        for (point, count) in &self.points {
            events.row(vec![point.clone(), count.to_string()]);
        }
        page.table(&events);
        Ok(())
    }
}

impl Class {
    fn title_of(&self, slow: &Slow) -> String {
        format!(
            "{} {}, {} from second {:.3} on, volume {}",
            self.name,
            slow.operation,
            shown(slow.duration_us),
            slow.begin_s,
            slow.volume
        )
    }

    /// Where most of the time goes, and where that of the slow ones does, in a sentence.
    pub(super) fn verdict(&self) -> String {
        let most = |share: fn(&Step) -> f64| self.steps.iter().max_by(|a, b| share(a).total_cmp(&share(b)));
        let told = |step: &Step| format!("{} → {} ({})", step.from, step.to, step.place);
        let (Some(all), Some(slow)) = (most(|step| step.share), most(|step| step.slow_share)) else {
            return "They have no steps.".to_owned();
        };
        if (&all.from, &all.to) == (&slow.from, &slow.to) {
            return format!(
                "Most of it, {}, and {} of the slowest 1 %, goes into {}.",
                percent(all.share),
                percent(slow.slow_share),
                told(all)
            );
        }
        format!(
            "Most of it, {}, goes into {}; most of the slowest 1 %, {}, into {} (of all: {}).",
            percent(all.share),
            told(all),
            percent(slow.slow_share),
            told(slow),
            percent(slow.share)
        )
    }

    fn step_table(&self) -> Grid {
        let mut headings = vec!["from", "to", "where", "count", "share", "of the slowest 1 %"];
        headings.extend(Times::HEADINGS);
        let mut grid = Grid::new(3, &headings);
        let (mut small, mut count, mut slow) = (0.0, 0, 0.0);
        for step in &self.steps {
            if step.share < SMALL && step.slow_share < SMALL {
                small += step.share;
                slow += step.slow_share;
                count += 1;
                continue;
            }
            let mut row = vec![
                step.from.clone(),
                step.to.clone(),
                step.place.clone(),
                step.times.count.to_string(),
                percent(step.share),
                percent(step.slow_share),
            ];
            row.extend(step.times.cells());
            grid.row(row);
        }
        if count > 0 {
            let mut row = vec![
                format!("{count} smaller steps"),
                String::new(),
                String::new(),
                String::new(),
            ];
            row.extend([percent(small), percent(slow)]);
            row.resize(headings.len(), String::new());
            grid.row(row);
        }
        grid
    }

    fn place_table(&self) -> Grid {
        let mut headings = vec!["where", "operations", "share", "of the slowest 1 %"];
        headings.extend(Times::HEADINGS);
        let mut grid = Grid::new(1, &headings);
        for place in &self.places {
            let mut row = vec![
                place.name.clone(),
                place.times.count.to_string(),
                percent(place.share),
                percent(place.slow_share),
            ];
            row.extend(place.times.cells());
            grid.row(row);
        }
        grid
    }

    fn add_to(&self, page: &mut Page, marks: &[Mark]) -> Result<()> {
        page.heading(&self.name);
        page.paragraph(&self.verdict());
        let line = |name: &str, at: fn(&Times) -> f64| Line {
            name: name.to_owned(),
            points: self
                .over_time
                .iter()
                .map(|second| (second.second as f64 + 0.5, at(&second.times) / 1000.0))
                .collect(),
        };
        let axes = Axes {
            title: "time of an operation, by the second in which it began",
            x: "s",
            y: "ms",
            log: true,
            x_shown: |x| format!("{x:.0}"),
        };
        let lines = [
            line("p50", |times| times.p50_us),
            line("p99", |times| times.p99_us),
            line("max", |times| times.max_us),
        ];
        page.figure(&picture::lines(&axes, &lines, marks)?, "");
        let names: Vec<String> = self.places.iter().map(|place| place.name.clone()).collect();
        let shares = [
            (
                "all".to_owned(),
                self.places.iter().map(|place| place.share).collect(),
            ),
            (
                "the slowest 1 %".to_owned(),
                self.places.iter().map(|place| place.slow_share).collect(),
            ),
        ];
        page.figure(
            &picture::shares(&shares, &names)?,
            "Where the time of these operations goes: within a service, or between two (batching, the socket, the peer's wake-up).",
        );
        page.table(&self.place_table());
        page.subheading(&format!("{}: step by step", self.name));
        page.table(&self.step_table());
        if self.volumes.len() > 1 {
            page.subheading(&format!("{}: by volume", self.name));
            let mut headings = vec!["volume", "count"];
            headings.extend(Times::HEADINGS);
            let mut grid = Grid::new(1, &headings);
            for volume in &self.volumes {
                let mut row = vec![volume.volume.clone(), volume.times.count.to_string()];
                row.extend(volume.times.cells());
                grid.row(row);
            }
            page.table(&grid);
        }
        page.subheading(&format!("{}: the slowest", self.name));
        for slow in &self.slowest {
            page.figure(&slow.waterfall(&self.title_of(slow))?, "");
        }
        Ok(())
    }
}

impl Slow {
    fn table(&self) -> Grid {
        let mut grid = Grid::new(
            2,
            &[
                "event",
                "process",
                "at",
                "since the last",
                "address",
                "length",
                "status",
            ],
        );
        let mut before = 0.0;
        for event in &self.events {
            grid.row(vec![
                event.place.clone(),
                event.pid.to_string(),
                shown(event.at_us),
                shown(event.at_us - before),
                event.address.to_string(),
                event.length.to_string(),
                event.status.clone(),
            ]);
            before = event.at_us;
        }
        grid
    }

    fn waterfall(&self, title: &str) -> Result<String> {
        let mut groups: Vec<&str> = Vec::new();
        let mut pieces = Vec::new();
        for pair in self.events.windows(2) {
            let [from, to] = pair else { continue };
            let service = |place: &str| place.split(' ').next().unwrap_or_default().to_owned();
            // What is between processes has a color of its own.
            let group = if from.pid == to.pid {
                from.place.split(' ').next().unwrap_or_default()
            } else {
                "between"
            };
            let known = groups.iter().position(|known| *known == group);
            let group = known.unwrap_or_else(|| {
                groups.push(group);
                groups.len() - 1
            });
            let name = match service(&from.place) == service(&to.place) {
                true => format!(
                    "{} → {}",
                    from.place,
                    to.place.split(' ').next_back().unwrap_or_default()
                ),
                false => format!("{} → {}", from.place, to.place),
            };
            pieces.push(Piece {
                name,
                from: from.at_us,
                to: to.at_us,
                group,
            });
        }
        picture::waterfall(title, &pieces, "us")
    }
}
