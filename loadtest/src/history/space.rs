//! What uniform random overwrites of a full volume cost on the back ends, once what comes and what goes are even.
//!
//! Keeps: figures until the report.
//! Order: both clusters are filled and overwritten alike; then runs alternate, the other cluster idle.
//! Crash: see `history`.
//! Knows fio for the writes, `sconce status` and the back end's directory for what was stored.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use clap::Args;
use indicatif::ProgressBar;

use super::{Place, judged, median};
use crate::fio::{self, Figures, Load};
use crate::sconce::Sconce;

const VOLUME: &str = "/disk.raw";
const COST_GOAL: f64 = 3.0;
const P99_GOAL: f64 = 1.5;
const PUTS_GOAL: f64 = 256.0;
/// What the number of puts may differ from the goal.
const PUTS_WITHIN: f64 = 0.05;

/// What to measure.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// MiB of the volume.
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(16..=65536))]
    size_mib: u32,
    /// Writes a second, at most.
    #[arg(long, default_value_t = 6000, value_parser = clap::value_parser!(u32).range(100..=1_000_000))]
    per_second: u32,
    /// Times that the volume is overwritten before anything is measured.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(0..=100))]
    warm: u32,
    /// Runs with each of the two clusters.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Percent of what the back end holds that is to be live.
    #[arg(long, default_value_t = 80, value_parser = clap::value_parser!(u32).range(50..=95))]
    utilisation: u32,
    /// Where, and whereto.
    #[command(flatten)]
    place: Place,
}

/// A cluster under measurement.
struct Subject {
    sconce: Sconce,
    uri: String,
    runs: Vec<Figures>,
}

/// Measures and reports.
pub(crate) fn run(options: &Options) -> Result<()> {
    let dir = options.place.fresh("space")?;
    let mut scrubbed = subject(&dir.join("on"), options, true)?;
    let mut plain = subject(&dir.join("off"), options, false)?;
    let once = seconds_for(options.size_mib, options.per_second);
    let steps = u64::from(2 * options.warm + 2 * options.rounds);
    let bar = ProgressBar::new(steps);
    for _ in 0..options.warm {
        for subject in [&mut scrubbed, &mut plain] {
            write(subject, options, once)?;
            bar.inc(1);
        }
    }
    for subject in [&scrubbed, &plain] {
        sync(subject)?;
    }
    scrubbed.runs.clear();
    plain.runs.clear();
    let (before, scos_before) = (scrubbed.sconce.written()?, scos(&scrubbed)?);
    for round in 0..options.rounds {
        let mut pair = [&mut scrubbed, &mut plain];
        if round % 2 == 1 {
            pair.reverse();
        }
        for subject in pair {
            write(subject, options, once)?;
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    sync(&scrubbed)?;
    let after = scrubbed.sconce.written()?;
    let counted = Counted {
        bytes: after.bytes.saturating_sub(before.bytes),
        puts: after.objects.saturating_sub(before.objects),
        guest_puts: scos(&scrubbed)?.saturating_sub(scos_before),
        stored: bytes_below(&scrubbed.sconce.path("backend/local"))?,
        live_of_kept: live_of_kept(&scrubbed)?,
    };
    let found = table(options, &scrubbed, &plain, &counted);
    scrubbed.sconce.stop()?;
    plain.sconce.stop()?;
    Place::clear(&dir)?;
    let command = format!(
        "loadtest space --size-mib {} --per-second {} --warm {} --rounds {} --utilisation {}",
        options.size_mib, options.per_second, options.warm, options.rounds, options.utilisation
    );
    options.place.report("space", &command, &found)
}

/// Seconds in which a volume is overwritten once.
fn seconds_for(size_mib: u32, per_second: u32) -> u32 {
    (size_mib * 256).div_ceil(per_second).max(1)
}

fn subject(run: &Path, options: &Options, scrubs: bool) -> Result<Subject> {
    let sconce = Sconce::prepare(run)?;
    sconce.add_settings(
        "volume-router",
        // Bytes that wait for their grace are neither live nor dead: a short one shows what stays.
        &format!(
            "\n[scrub]\nenabled = {scrubs}\nutilisation = {}\ngrace = \"1s\"\n",
            options.utilisation
        ),
    )?;
    sconce.up()?;
    let size = format!("{}M", options.size_mib);
    sconce.command(&["volume", "create", VOLUME, "--size", &size])?;
    let uri = sconce.uri(VOLUME);
    fio::fill(&uri, options.size_mib).context("filling the volume")?;
    let subject = Subject {
        sconce,
        uri,
        runs: Vec::new(),
    };
    sync(&subject)?;
    Ok(subject)
}

fn write(subject: &mut Subject, options: &Options, seconds: u32) -> Result<()> {
    let load = Load {
        rw: "randwrite",
        block: "4k",
        depth: 4,
        flush_each: None,
        per_second_max: Some(options.per_second),
    };
    let run = fio::run(&load, &subject.uri, options.size_mib, seconds)?;
    subject.runs.push(run);
    Ok(())
}

fn sync(subject: &Subject) -> Result<()> {
    subject.sconce.command(&["volume", "sync", VOLUME]).map(drop)
}

/// What the scrubbed cluster wrote while it was measured, and holds then.
struct Counted {
    bytes: u64,
    puts: u64,
    /// SCOs as guests wrote them, each of them one put.
    guest_puts: u64,
    stored: u64,
    live_of_kept: f64,
}

/// How many SCOs guests have filled: the newest on the back end has that number.
fn scos(subject: &Subject) -> Result<u64> {
    let mut newest = 0;
    each_file_below(&subject.sconce.path("backend/local"), |path, _| {
        let is_sco = path
            .parent()
            .and_then(Path::file_name)
            .is_some_and(|dir| dir == "sco");
        let name = path.file_name().and_then(OsStr::to_str).filter(|_| is_sco);
        let number = name.and_then(|name| u64::from_str_radix(name.split('.').next()?, 16).ok());
        newest = newest.max(number.unwrap_or(0));
    })?;
    ensure!(newest > 0, "the back end of {VOLUME} holds no SCO");
    Ok(newest)
}

/// What part of what is stored and not condemned something refers to, by the scrubber's last pass.
fn live_of_kept(subject: &Subject) -> Result<f64> {
    let text = subject
        .sconce
        .command(&["scrub", "status", VOLUME, "--output", "json"])?;
    let status: serde_json::Value =
        serde_json::from_str(&text).context("sconce scrub status --output json")?;
    let figure = |name: &str| status[0][name].as_f64();
    let (stored, dead) = figure("stored_bytes")
        .zip(figure("dead_bytes"))
        .with_context(|| format!("sconce scrub status does not tell how much of {VOLUME} is dead: {text}"))?;
    Ok((stored - dead) / stored.max(1.0))
}

fn bytes_below(dir: &Path) -> Result<u64> {
    let mut sum = 0;
    each_file_below(dir, |_, length| sum += length)?;
    Ok(sum)
}

fn each_file_below(dir: &Path, mut file: impl FnMut(&Path, u64)) -> Result<()> {
    let mut open = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir)? {
            let path = entry?.path();
            // One may be deleted meanwhile.
            match fs::symlink_metadata(&path) {
                Ok(found) if found.is_dir() => open.push(path),
                Ok(found) => file(&path, found.len()),
                Err(_) => {}
            }
        }
    }
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "figures of a run are far below 2^52")]
fn table(options: &Options, scrubbed: &Subject, plain: &Subject, counted: &Counted) -> String {
    let operations: u64 = scrubbed.runs.iter().map(|run| run.operations).sum();
    let guest = operations as f64 * 4096.0;
    let cost = counted.bytes as f64 / guest.max(1.0);
    let gib = (guest / f64::from(1 << 30)).max(1e-9);
    let per_gib = counted.guest_puts as f64 / gib;
    let live = f64::from(options.size_mib) * f64::from(1 << 20);
    let p99 = |subject: &Subject| median(subject.runs.iter().map(|run| run.p99_us).collect());
    let (with, without) = (p99(scrubbed), p99(plain));
    let ratio = with / without.max(1.0);
    let rate = |subject: &Subject| median(subject.runs.iter().map(|run| run.per_second).collect());
    let puts_judged = if (per_gib - PUTS_GOAL).abs() <= PUTS_GOAL * PUTS_WITHIN {
        "reached"
    } else {
        "missed"
    };
    format!(
        "| figure | found | goal | |\n|---|---:|---:|---|\n\
         | back-end bytes written for one of a guest | {cost:.2} | at most {COST_GOAL} | {} |\n\
         | PUTs of what guests write, for each GiB of it | {per_gib:.0} | {PUTS_GOAL} ± 5 % | {puts_judged} |\n\
         | all PUTs for each GiB, those of scrubbing and of checkpoints too | {:.0} | | |\n\
         | p99 of writes with the scrubber, us | {with:.0} | | |\n\
         | p99 without, us | {without:.0} | | |\n\
         | of it | {ratio:.2} | at most {P99_GOAL} | {} |\n\
         | writes/s with, without | {:.0}, {:.0} | | |\n\
         | live of what is kept | {:.0} % | {} % | |\n\
         | live of all bytes, those of condemned objects too | {:.0} % | | |\n\
         \n{} MiB volume, written full, then {} times over before anything was measured, then {:.1} GiB in {} runs of uniform \
         random 4 KiB writes, {} a second at most.\n",
        judged(cost, COST_GOAL),
        counted.puts as f64 / gib,
        judged(ratio, P99_GOAL),
        rate(scrubbed),
        rate(plain),
        counted.live_of_kept * 100.0,
        options.utilisation,
        live * 100.0 / (counted.stored as f64).max(1.0),
        options.size_mib,
        options.warm,
        guest / f64::from(1 << 30),
        options.rounds,
        options.per_second,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_as_long_as_one_overwrite_takes() {
        assert_eq!(seconds_for(512, 6000), 22);
        assert_eq!(seconds_for(16, 1_000_000), 1);
    }
}
