//! `loadtest run`: a scenario, from the first volume to the report.
//!
//! Keeps: figures until the report; the trace and the report stay.
//! Order: LTTng's session, cluster, volumes, what fills them; then all loads, chaos and meters begin at the same instant.
//! Crash: what was brought up is stopped; there is no report.
//! Knows each part by what it does, and none of their inside.

mod chaos;
mod cluster;
mod file;
mod gate;
mod loads;
mod meter;
pub(crate) mod outcome;
mod recording;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use cluster::{Cluster, Prepared};
use file::{Scenario, Trace};
use gate::Gate;
use meter::Meter;
use outcome::{Happened, OfLoad, Outcome};
use recording::Recording;

use crate::analyze;
use crate::document;
use crate::generator::Live;
use crate::machine::Machine;
use crate::sconce::SERVICES;

const DIR: &str = "target/loadtest";
/// Of each kind of operation, in the report.
const SLOWEST: usize = 5;
const LOOK_EACH: Duration = Duration::from_millis(50);
/// From when all are ready to the begin of the load.
const HEAD_START: Duration = Duration::from_millis(100);

/// What to run, and where the report goes.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The scenario (loadtest/scenarios has some; docs/operating/tracing.md says what can be in one).
    scenario: PathBuf,
    /// Directory for report.html, report.json, the trace, and the cluster's files; replaced. Else `target/loadtest/NAME`.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Leaves the files of the cluster that was brought up: settings, logs, data.
    #[arg(long)]
    keep: bool,
}

/// What all threads of a run have in common.
struct Run<'a> {
    scenario: &'a Scenario,
    cluster: &'a Cluster,
    volumes: &'a [Prepared],
    dir: &'a Path,
    gate: Gate,
    over: AtomicBool,
}

/// What a run measured.
struct Measured {
    loads: Vec<OfLoad>,
    chaos: Vec<Happened>,
    meter: Meter,
    problems: Vec<String>,
}

/// Runs a scenario.
pub(crate) fn run(options: &Options) -> Result<()> {
    let scenario = Scenario::load(&options.scenario)?;
    let dir = options
        .dir
        .clone()
        .unwrap_or_else(|| Path::new(DIR).join(&scenario.name));
    let dir = fresh(&dir)?;
    let (recording, no_trace) = recording(&scenario, &dir)?;
    let cluster = Cluster::open(&scenario, &dir.join("run"), recording.as_ref())?;
    let volumes = scenario.volumes.iter().map(|volume| {
        let prepared = cluster.prepare(volume);
        prepared.with_context(|| format!("preparing volume {}", volume.path))
    });
    let volumes: Vec<Prepared> = volumes.collect::<Result<_>>()?;
    let run = Run {
        scenario: &scenario,
        cluster: &cluster,
        volumes: &volumes,
        dir: &dir,
        gate: Gate::new(scenario.loads.len()),
        over: AtomicBool::new(false),
    };
    let measured = run.measure(recording.as_ref())?;
    let trace = recording.as_ref().map(Recording::finish).transpose()?;
    let attached = scenario.cluster.attach.is_some();
    cluster.close(attached)?;
    let outcome = outcome(
        options,
        &scenario,
        measured,
        (trace.as_deref(), no_trace),
        &volumes,
    )?;
    document::replace(
        &dir.join("report.json"),
        serde_json::to_string_pretty(&outcome)?.as_bytes(),
    )?;
    document::replace(&dir.join("report.html"), outcome.page()?.as_bytes())?;
    if !attached && !options.keep {
        fs::remove_dir_all(dir.join("run"))?;
    }
    println!(
        "{}\nThe report is {}",
        outcome.text(),
        dir.join("report.html").display()
    );
    ensure!(
        outcome.problems.is_empty(),
        "{} problems, the first: {}",
        outcome.problems.len(),
        outcome.problems.first().map_or("", String::as_str)
    );
    Ok(())
}

/// An empty directory; what an earlier run left there is removed, and nothing else.
fn fresh(dir: &Path) -> Result<PathBuf> {
    fs::create_dir_all(dir)?;
    for name in ["report.json", "report.html", "trace", "run", "lttng", "fio"] {
        let path = dir.join(name);
        let removed = match path.is_dir() {
            true => fs::remove_dir_all(&path),
            false if path.exists() => fs::remove_file(&path),
            false => Ok(()),
        };
        removed.with_context(|| format!("removing {}", path.display()))?;
    }
    Ok(dir.canonicalize()?)
}

fn recording(scenario: &Scenario, dir: &Path) -> Result<(Option<Recording>, Option<String>)> {
    if scenario.trace == Trace::Off {
        return Ok((None, None));
    }
    let attached = scenario.cluster.attach.is_some();
    let prepared = match recording::missing() {
        Some(program) => bail_missing(program),
        None => Recording::prepare(dir, attached).context("recording with LTTng"),
    };
    match prepared {
        Ok(recording) => Ok((Some(recording), None)),
        Err(why) if scenario.trace == Trace::IfPossible => Ok((None, Some(format!("{why:#}")))),
        Err(why) => Err(why),
    }
}

fn bail_missing(program: &str) -> Result<Recording> {
    bail!("{program} is not installed (Debian packages lttng-tools, babeltrace2)")
}

impl Run<'_> {
    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// Fills the volumes, then lets all begin.
    fn measure(&self, recording: Option<&Recording>) -> Result<Measured> {
        let lives: Vec<Arc<Live>> = self.scenario.loads.iter().map(|_| Arc::default()).collect();
        let services = match &self.scenario.cluster.attach {
            Some(_) => SERVICES.iter().map(|&name| name.to_owned()).collect(),
            None => self.scenario.services(),
        };
        thread::scope(|scope| {
            let loads = self.scenario.loads.iter().zip(&lives);
            let loads: Vec<_> = loads
                .map(|(load, live)| scope.spawn(|| self.load(load, Arc::clone(live))))
                .collect();
            let begun = self.gate.open(|| {
                if let Some(recording) = recording {
                    recording.start()?;
                }
                Ok(Instant::now() + HEAD_START)
            });
            let others = begun.as_ref().ok().map(|begin| {
                let begin = *begin;
                let interval = self.scenario.interval.duration();
                let services = &services;
                (
                    scope.spawn(move || self.chaos(begin)),
                    scope.spawn(move || {
                        Meter::run(self.cluster, services, (begin, interval), || {
                            self.is_over() || self.is_past(begin)
                        })
                    }),
                    scope.spawn({
                        let lives = &lives;
                        move || self.show(begin, lives)
                    }),
                )
            });
            let stopped = match (&begun, recording) {
                (Ok(begin), Some(recording)) => {
                    self.wait_for_the_end(*begin);
                    recording.stop()
                }
                _ => Ok(()),
            };
            let mut measured = Measured {
                loads: Vec::new(),
                chaos: Vec::new(),
                meter: Meter::default(),
                problems: Vec::new(),
            };
            for (load, thread) in self.scenario.loads.iter().zip(loads) {
                match joined(thread).and_then(|done| done) {
                    Ok(found) => measured.loads.push(found),
                    Err(why) => measured.problems.push(format!("load {}: {why:#}", load.name)),
                }
            }
            self.over.store(true, Ordering::Relaxed);
            if let Some((chaos, meter, shown)) = others {
                let (happened, problems) = joined(chaos)?;
                measured.chaos = happened;
                measured.problems.extend(problems);
                measured.meter = joined(meter)?;
                joined(shown)?;
            }
            stopped.context("ending LTTng's recording")?;
            // Without a begin there is nothing to report but why.
            begun.with_context(|| measured.problems.join("; "))?;
            Ok(measured)
        })
    }

    /// No request is due any more: the reading back comes after, and is in no figure.
    fn is_past(&self, begin: Instant) -> bool {
        begin.elapsed() >= self.scenario.duration.duration()
    }

    fn wait_for_the_end(&self, begin: Instant) {
        while !self.is_past(begin) {
            thread::sleep(LOOK_EACH);
        }
    }

    /// A bar until the loads are over.
    fn show(&self, begin: Instant, lives: &[Arc<Live>]) {
        let duration = self.scenario.duration.duration();
        let bar = ProgressBar::new(duration.as_secs());
        if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} s {msg}") {
            bar.set_style(style);
        }
        let sum = |figure: fn(&Live) -> u64| lives.iter().map(|live| figure(live)).sum::<u64>();
        let (mut before, mut last) = (0, begin);
        while !self.is_over() {
            thread::sleep(Duration::from_millis(100));
            let since = Instant::now().saturating_duration_since(last);
            if since < Duration::from_secs(1) {
                continue;
            }
            last = Instant::now();
            let answered = sum(|live| live.answered.load(Ordering::Relaxed));
            let problems = sum(|live| live.problems.load(Ordering::Relaxed));
            bar.set_position(begin.elapsed().min(duration).as_secs());
            bar.set_message(format!(
                "{:.0} requests/s of the generators, {problems} problems",
                (answered - before) as f64 / since.as_secs_f64()
            ));
            before = answered;
        }
        bar.finish_and_clear();
    }
}

fn joined<T>(thread: thread::ScopedJoinHandle<'_, T>) -> Result<T> {
    let Ok(done) = thread.join() else {
        bail!("a thread of the run panicked");
    };
    Ok(done)
}

fn outcome(
    options: &Options,
    scenario: &Scenario,
    measured: Measured,
    (trace, no_trace): (Option<&Path>, Option<String>),
    volumes: &[Prepared],
) -> Result<Outcome> {
    let ids: Vec<String> = volumes.iter().map(|volume| volume.id.clone()).collect();
    let analyzed = trace.map(|trace| analyze::analysis(trace, &ids, SLOWEST));
    let (trace, no_trace) = match analyzed {
        None => (None, no_trace),
        Some(Ok(analysis)) => (Some(analysis), None),
        Some(Err(why)) if scenario.trace == Trace::Required => return Err(why),
        // Services without LTTng's headers record nothing.
        Some(Err(why)) => (None, Some(format!("{why:#}"))),
    };
    let mut problems = measured.problems;
    for load in &measured.loads {
        let found = &load.found;
        if found.errors + found.mismatches > 0 {
            problems.push(format!(
                "load {} on {}: {} errors, {} mismatches; {}",
                load.name,
                load.volume,
                found.errors,
                found.mismatches,
                found.told.join("; ")
            ));
        }
    }
    Ok(Outcome {
        name: scenario.name.clone(),
        scenario: fs::read_to_string(&options.scenario)?,
        machine: Machine::here(format!("loadtest run {}", options.scenario.display()))?,
        seconds: scenario.duration.duration().as_secs_f64(),
        interval_s: scenario.interval.duration().as_secs_f64(),
        loads: measured.loads,
        chaos: measured.chaos,
        cpu: measured.meter.cpu,
        status: measured.meter.status,
        trace,
        no_trace,
        problems,
    })
}
