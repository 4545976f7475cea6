//! `loadtest compare`: what changed from one run to another, and whether it is more than noise.
//!
//! Keeps: nothing.
//! Order: figures in the order of the first run's loads.
//! Crash: nothing; reports are only read.
//! Knows `report.json`.
//!
//! A run has a sample for each interval. Two runs are compared by their samples: the Mann-Whitney test says how probable such a
//! difference is where both are of one distribution, whatever that is; a bootstrap says within what the difference of the medians is.
//! Samples of one run are not independent (a slow second is followed by another), so both are asked for more than the usual, and
//! a difference below one percent is none.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Args;
use statrs::stats_tests::Alternative;
use statrs::stats_tests::mannwhitneyu::{MannWhitneyUMethod, mannwhitneyu};

use crate::history::median;
use crate::report::{Grid, ratio, shown};
use crate::scenario::outcome::{OfLoad, Outcome};

/// Of all figures together, how often chance alone may be taken for a change; it is divided by their number (Bonferroni).
const ALPHA: f64 = 0.01;
/// A change below this is none, however sure.
const LEAST: f64 = 0.01;
/// Fewer samples say nothing: of 5 against 5 the least probability is 1 %.
const SAMPLES_MIN: usize = 5;
const RESAMPLES: usize = 1000;
/// Neighbours in time that are drawn together, so that what hangs together stays so.
const BLOCK: usize = 3;
/// Whoever compares the same reports gets the same answer.
const SEED: u64 = 1;

/// What to compare.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// A run: its directory, or its report.json.
    before: PathBuf,
    /// Another one.
    after: PathBuf,
    /// Leaves so many seconds at the begin of each out.
    #[arg(long, default_value_t = 2.0)]
    warm_up: f64,
}

/// A figure of two runs, by interval.
struct Figure {
    name: String,
    before: Vec<f64>,
    after: Vec<f64>,
    shown: fn(f64) -> String,
}

/// What became of a figure.
#[derive(Debug, Clone, Copy)]
struct Change {
    before: f64,
    after: f64,
    /// Of the medians, relative to the first.
    change: f64,
    /// Within this it is with 99 %.
    within: (f64, f64),
    /// How probable a difference like this is by chance.
    probability: f64,
}

/// Compares and shows.
pub(crate) fn run(options: &Options) -> Result<()> {
    let (before, after) = (read(&options.before)?, read(&options.after)?);
    println!("{}", compared(&before, &after, options.warm_up)?);
    Ok(())
}

fn read(path: &Path) -> Result<Outcome> {
    let path = match path.is_dir() {
        true => path.join("report.json"),
        false => path.to_owned(),
    };
    let text = fs::read_to_string(&path).with_context(|| format!("report {}", path.display()))?;
    serde_json::from_str(&text)
        .with_context(|| format!("report {}: no report of `loadtest run`", path.display()))
}

fn compared(before: &Outcome, after: &Outcome, warm_up: f64) -> Result<String> {
    let figures = figures(before, after, warm_up);
    ensure!(
        !figures.is_empty(),
        "the runs have no load in common: {} has {}, {} has {}",
        before.name,
        names(before),
        after.name,
        names(after)
    );
    let mut text = String::new();
    if before.scenario != after.scenario {
        text.push_str("NOTE: the runs' scenarios differ; what changed may be the scenario's doing.\n");
    }
    let heads =
        [&before.machine, &after.machine].map(|machine| (&machine.cpu, machine.cores, &machine.kernel));
    if heads[0] != heads[1] {
        text.push_str("NOTE: the runs are of different machines.\n");
    }
    for outcome in [before, after]
        .into_iter()
        .filter(|outcome| !outcome.problems.is_empty())
    {
        text.push_str(&format!(
            "NOTE: a run of {} had problems: {}\n",
            outcome.name,
            outcome.problems.join("; ")
        ));
    }
    let headings = [
        "figure",
        "before",
        "after",
        "change",
        "within (99 %)",
        "p",
        "verdict",
    ];
    let mut grid = Grid::new(1, &headings);
    let alpha = ALPHA / figures.len() as f64;
    for figure in &figures {
        grid.row(row(figure, alpha));
    }
    text.push_str(&format!(
        "before: {}\nafter:  {}\n{}\nMedians over the intervals of {} s. A change is one where p (Mann-Whitney) is below {alpha:.4}, the bootstrap's \
         99 % has no zero, and it is 1 % at least; runs that follow each other differ by what else the machine does: repeat what matters.\n",
        before.machine,
        after.machine,
        grid.text(),
        before.interval_s
    ));
    Ok(text)
}

fn names(outcome: &Outcome) -> String {
    let names: Vec<&str> = outcome.loads.iter().map(|load| load.name.as_str()).collect();
    names.join(", ")
}

fn row(figure: &Figure, alpha: f64) -> Vec<String> {
    let shown = figure.shown;
    let mut row = vec![figure.name.clone()];
    let percent = |share: f64| format!("{:+.1} %", share * 100.0);
    match change(&figure.before, &figure.after) {
        None => {
            row.extend([
                shown(median(figure.before.clone())),
                shown(median(figure.after.clone())),
            ]);
            row.resize(6, String::new());
            row.push(format!("too few intervals ({SAMPLES_MIN} are needed)"));
        }
        Some(change) => {
            row.extend([shown(change.before), shown(change.after), percent(change.change)]);
            row.push(format!(
                "{} to {}",
                percent(change.within.0),
                percent(change.within.1)
            ));
            row.push(format!("{:.4}", change.probability));
            row.push(change.verdict(alpha).to_owned());
        }
    }
    row
}

impl Change {
    fn verdict(&self, alpha: f64) -> &'static str {
        let is_sure = self.probability < alpha && (self.within.0 > 0.0 || self.within.1 < 0.0);
        match (is_sure && self.change.abs() >= LEAST, self.change > 0.0) {
            (false, _) => "noise",
            (true, true) => "MORE",
            (true, false) => "LESS",
        }
    }
}

fn figures(before: &Outcome, after: &Outcome, warm_up: f64) -> Vec<Figure> {
    let mut figures = Vec::new();
    for load in &before.loads {
        let Some(other) = after.loads.iter().find(|other| other.name == load.name) else {
            continue;
        };
        type Of = fn(&crate::generator::Sample, f64) -> f64;
        let rate: Of = |sample, interval| sample.answered as f64 / interval;
        let latencies: &[(&str, Of)] = match load.is_open {
            true => &[
                ("p50", |sample, _| sample.times.p50_us),
                ("p99", |sample, _| sample.times.p99_us),
                ("max", |sample, _| sample.times.max_us),
            ],
            false => &[("mean", |sample, _| sample.times.mean_us)],
        };
        let of = |outcome: &Outcome, load: &OfLoad, figure: Of| -> Vec<f64> {
            let within = |sample: &&crate::generator::Sample| {
                sample.at_s >= warm_up && sample.at_s < outcome.seconds && sample.times.count > 0
            };
            let samples = load.found.samples.iter().filter(within);
            samples.map(|sample| figure(sample, outcome.interval_s)).collect()
        };
        let mut add = |what: &str, figure: Of, shown: fn(f64) -> String| {
            figures.push(Figure {
                name: format!("{} {what}", load.name),
                before: of(before, load, figure),
                after: of(after, other, figure),
                shown,
            });
        };
        add("answers a second", rate, |rate| format!("{rate:.0}"));
        for (what, figure) in latencies {
            add(what, *figure, shown);
        }
    }
    if !figures.is_empty() {
        figures.push(Figure {
            name: "CPU-s / 10,000 requests, all services".to_owned(),
            before: cpu(before, warm_up),
            after: cpu(after, warm_up),
            shown: |seconds| format!("{seconds:.3}"),
        });
    }
    figures
}

/// By interval.
fn cpu(outcome: &Outcome, warm_up: f64) -> Vec<f64> {
    let samples = outcome.cpu.iter().zip(0_usize..);
    let of = samples.filter_map(|(sample, number)| {
        let answered = outcome
            .loads
            .iter()
            .filter_map(|load| load.found.samples.get(number));
        let answered: u64 = answered.map(|sample| sample.answered).sum();
        let within = sample.at_s - outcome.interval_s >= warm_up
            && sample.at_s <= outcome.seconds + outcome.interval_s;
        (within && answered > 0).then(|| sample.seconds.values().sum::<f64>() * 10_000.0 / answered as f64)
    });
    of.collect()
}

/// `None`: too few samples.
fn change(before: &[f64], after: &[f64]) -> Option<Change> {
    if before.len().min(after.len()) < SAMPLES_MIN {
        return None;
    }
    // With ties it takes the normal approximation by itself.
    let (_, probability) = mannwhitneyu(
        before,
        after,
        MannWhitneyUMethod::Automatic,
        Alternative::TwoSided,
    )
    .ok()?;
    let relative = |one: f64, other: f64| ratio(other - one, one);
    let mut chance = fastrand::Rng::with_seed(SEED);
    let mut changes: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            relative(
                median(drawn(before, &mut chance)),
                median(drawn(after, &mut chance)),
            )
        })
        .collect();
    changes.sort_by(f64::total_cmp);
    let at = |share: usize| changes.get(RESAMPLES * share / 1000).copied().unwrap_or(0.0);
    let (one, other) = (median(before.to_vec()), median(after.to_vec()));
    Some(Change {
        before: one,
        after: other,
        change: relative(one, other),
        within: (at(5), at(995)),
        // The exact test of equal samples gives a little more than 1.
        probability: probability.min(1.0),
    })
}

/// As many as there are, drawn with replacement in blocks of neighbours.
fn drawn(samples: &[f64], chance: &mut fastrand::Rng) -> Vec<f64> {
    let mut drawn = Vec::with_capacity(samples.len() + BLOCK);
    while drawn.len() < samples.len() {
        let first = chance.usize(..samples.len());
        drawn.extend((first..first + BLOCK).map(|at| samples[at % samples.len()]));
    }
    drawn.truncate(samples.len());
    drawn
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generator::{Found, Sample};
    use crate::machine::Machine;
    use crate::report::Times;

    /// Around `middle`, each by up to `noise` of it.
    fn around(middle: f64, noise: f64, seed: u64) -> Vec<f64> {
        let mut chance = fastrand::Rng::with_seed(seed);
        (0..30)
            .map(|_| middle * (1.0 + noise * (chance.f64() * 2.0 - 1.0)))
            .collect()
    }

    fn verdict(before: &[f64], after: &[f64]) -> &'static str {
        change(before, after).unwrap().verdict(ALPHA / 10.0)
    }

    #[test]
    fn noise_is_noise_and_a_change_is_one() {
        let before = around(100.0, 0.2, 1);
        for seed in 2..22 {
            assert_eq!(verdict(&before, &around(100.0, 0.2, seed)), "noise", "{seed}");
        }
        assert_eq!(verdict(&before, &around(130.0, 0.2, 2)), "MORE");
        assert_eq!(verdict(&before, &around(75.0, 0.2, 3)), "LESS");
        // Sure, and too small to matter.
        assert_eq!(verdict(&around(100.0, 1e-4, 1), &around(100.5, 1e-4, 2)), "noise");
        assert_eq!(verdict(&before, &before), "noise");
        assert!(change(&before, &[1.0; 4]).is_none());
    }

    #[test]
    fn the_interval_holds_the_change() {
        let change = change(&around(100.0, 0.05, 1), &around(120.0, 0.05, 2)).unwrap();
        assert!((change.change - 0.2).abs() < 0.04, "{change:?}");
        assert!(
            change.within.0 < change.change && change.change < change.within.1,
            "{change:?}"
        );
        assert!(change.within.0 > 0.1 && change.within.1 < 0.3, "{change:?}");
    }

    fn outcome(p99_us: f64, seed: u64) -> Outcome {
        let sample = |(number, us): (u32, f64)| Sample {
            at_s: f64::from(number),
            answered: 500,
            times: Times {
                count: 500,
                p50_us: 100.0,
                p99_us: us,
                max_us: 1000.0,
                ..Times::default()
            },
        };
        Outcome {
            name: "test".to_owned(),
            scenario: String::new(),
            machine: Machine {
                command: "loadtest run".to_owned(),
                date: String::new(),
                commit: "abc".to_owned(),
                cpu: String::new(),
                cores: 2,
                kernel: String::new(),
            },
            seconds: 30.0,
            interval_s: 1.0,
            loads: vec![OfLoad {
                name: "writes".to_owned(),
                volume: "/a".to_owned(),
                is_open: true,
                block: 4096,
                found: Found {
                    samples: (0..).zip(around(p99_us, 0.1, seed)).map(sample).collect(),
                    ..Found::default()
                },
            }],
            chaos: Vec::new(),
            cpu: Vec::new(),
            status: Vec::new(),
            trace: None,
            no_trace: None,
            problems: Vec::new(),
        }
    }

    #[test]
    fn of_two_reports_the_figure_that_changed_is_told() {
        let text = compared(&outcome(500.0, 1), &outcome(900.0, 2), 2.0).unwrap();
        let line = |of: &str| text.lines().find(|line| line.contains(of)).unwrap().to_owned();
        assert!(line("writes p99").contains("MORE"), "{text}");
        assert!(line("writes p50").contains("noise"), "{text}");
        assert!(line("answers a second").contains("noise"), "{text}");
        assert!(line("CPU-s").contains("too few"), "{text}");
        let mut other = outcome(500.0, 1);
        other.loads[0].name = "reads".to_owned();
        let error = compared(&outcome(500.0, 1), &other, 2.0).unwrap_err();
        assert!(error.to_string().contains("test has reads"), "{error}");
    }
}
