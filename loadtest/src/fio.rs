//! fio: the client of all measurements.
//!
//! Keeps: nothing.
//! Order: a run's figures count from fio's own start of the clock, not from the process's start.
//! Crash: a fio that overstays is ended by `timeout`.
//! Knows fio 3.33's options and its JSON.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

/// Seconds that a fio may take beyond its run time: connecting, and the last requests of a stalled server.
const GRACE: u32 = 60;

/// What fio is asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load<'a> {
    /// fio's `rw`.
    pub(crate) rw: &'a str,
    /// Bytes of a request, as fio takes them.
    pub(crate) block: &'a str,
    /// Requests under way.
    pub(crate) depth: u32,
    /// A flush after so many writes.
    pub(crate) flush_each: Option<u32>,
    /// No more operations a second than this.
    pub(crate) per_second_max: Option<u32>,
}

/// What a run reached.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Figures {
    /// Operations per second.
    pub(crate) per_second: f64,
    /// Bytes per second.
    pub(crate) bytes_per_second: f64,
    /// Operations of the whole run.
    pub(crate) operations: u64,
    /// Mean time of an operation in microseconds.
    pub(crate) mean_us: f64,
    /// Median time of an operation in microseconds.
    pub(crate) median_us: f64,
    /// Percentiles of an operation's time in microseconds.
    pub(crate) p90_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) p999_us: f64,
    /// The longest time of an operation in microseconds.
    pub(crate) longest_us: f64,
}

#[derive(Debug, Deserialize)]
struct Told {
    jobs: Vec<Job>,
}

#[derive(Debug, Deserialize)]
struct Job {
    error: i64,
    read: Side,
    write: Side,
}

#[derive(Debug, Deserialize)]
struct Side {
    iops: f64,
    bw_bytes: f64,
    total_ios: u64,
    clat_ns: Latency,
}

#[derive(Debug, Deserialize)]
struct Latency {
    #[serde(default)]
    mean: f64,
    #[serde(default)]
    max: f64,
    #[serde(default)]
    percentile: std::collections::BTreeMap<String, f64>,
}

/// Writes the whole disk once, in order.
pub(crate) fn fill(uri: &str, size_mib: u32) -> Result<()> {
    let mut command = fio(uri, size_mib, 600);
    command.args(["--rw=write", "--bs=1m", "--iodepth=4", "--end_fsync=1"]);
    figures(&mut command, true).map(drop)
}

/// Runs a workload for so many seconds.
pub(crate) fn run(load: &Load<'_>, uri: &str, size_mib: u32, seconds: u32) -> Result<Figures> {
    figures(
        &mut workload(load, uri, size_mib, seconds),
        load.rw.ends_with("write"),
    )
}

/// The same, with figures over time.
pub(crate) fn run_logged(
    load: &Load<'_>,
    (uri, size_mib, seconds): (&str, u32, u32),
    log: &Path,
    interval: Duration,
) -> Result<(Figures, Vec<Logged>)> {
    let mut command = workload(load, uri, size_mib, seconds);
    let named = |what: &str| format!("--write_{what}_log={}", log.display());
    command
        .args([named("iops"), named("lat")])
        .arg(format!("--log_avg_msec={}", interval.as_millis()));
    let figures = figures(&mut command, load.rw.ends_with("write"))?;
    let (rates, times) = (averages(log, "iops")?, averages(log, "lat")?);
    let logged = rates.into_iter().zip(times);
    let logged = logged.map(|((at_s, per_second), (_, nanos))| Logged {
        at_s,
        per_second,
        mean_us: nanos / 1000.0,
    });
    Ok((figures, logged.collect()))
}

/// Averages of an interval.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Logged {
    /// Its end.
    pub(crate) at_s: f64,
    pub(crate) per_second: f64,
    /// From when requests were sent.
    pub(crate) mean_us: f64,
}

/// A log of fio's: `milliseconds, value, …`.
fn averages(log: &Path, what: &str) -> Result<Vec<(f64, f64)>> {
    let path = format!("{}_{what}.1.log", log.display());
    let text = std::fs::read_to_string(&path).with_context(|| path.clone())?;
    let line = |line: &str| {
        let mut fields = line.split(',').map(|field| field.trim().parse::<f64>());
        match (fields.next(), fields.next()) {
            (Some(Ok(ms)), Some(Ok(value))) => Ok((ms / 1000.0, value)),
            _ => bail!("{path} has the line {line:?}; fio's logs begin with a time and a value"),
        }
    };
    text.lines().map(line).collect()
}

fn workload(load: &Load<'_>, uri: &str, size_mib: u32, seconds: u32) -> Command {
    let mut command = fio(uri, size_mib, seconds + GRACE);
    command
        .arg(format!("--rw={}", load.rw))
        .arg(format!("--bs={}", load.block))
        .arg(format!("--iodepth={}", load.depth))
        .arg(format!("--runtime={seconds}"))
        .args(["--time_based", "--norandommap"]);
    if let Some(writes) = load.flush_each {
        command.arg(format!("--fsync={writes}"));
    }
    if let Some(per_second) = load.per_second_max {
        command.arg(format!("--rate_iops={per_second}"));
    }
    command
}

fn fio(uri: &str, size_mib: u32, limit: u32) -> Command {
    let mut command = Command::new("timeout");
    command
        .args([
            &limit.to_string(),
            "fio",
            "--name=bench",
            "--ioengine=nbd",
            "--output-format=json",
        ])
        .arg(format!("--uri={uri}"))
        .arg(format!("--size={size_mib}m"));
    command
}

fn figures(command: &mut Command, writes: bool) -> Result<Figures> {
    let output = command.output().context("fio (Debian package fio)")?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        // What fio says before its JSON is the reason, or leads to it.
        let (before, said) = (
            text.split('{').next().unwrap_or_default(),
            String::from_utf8_lossy(&output.stderr),
        );
        bail!(
            "{command:?}: {}: {} {}",
            output.status,
            before.trim(),
            said.trim()
        );
    }
    // fio tells of its connection before the JSON begins.
    let json = text.find('{').and_then(|at| text.get(at..)).unwrap_or_default();
    let told: Told = serde_json::from_str(json).context("fio's JSON")?;
    let Some(job) = told.jobs.into_iter().next() else {
        bail!("fio told of no job");
    };
    if job.error != 0 {
        bail!("fio's job ended with error {}", job.error);
    }
    let side = if writes { job.write } else { job.read };
    let percentile = |name: &str| side.clat_ns.percentile.get(name).map_or(0.0, |ns| ns / 1000.0);
    Ok(Figures {
        per_second: side.iops,
        bytes_per_second: side.bw_bytes,
        operations: side.total_ios,
        mean_us: side.clat_ns.mean / 1000.0,
        median_us: percentile("50.000000"),
        p90_us: percentile("90.000000"),
        p99_us: percentile("99.000000"),
        p999_us: percentile("99.900000"),
        longest_us: side.clat_ns.max / 1000.0,
    })
}
