//! What a synchronous twin on the same machine costs, and how long guests wait for a planned move (issue 4's proof 5, and its pause).
//!
//! Keeps: figures until the report.
//! Order: rounds alternate which of the two volumes comes first.
//! Crash: see `history`.
//! Knows fio for the writes.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::cpu;
use crate::fio::{self, Figures, Load};
use crate::history::{Place, client, judged, median};
use crate::sconce::{Another, SERVICES, Sconce};

const SECOND: &str = "volume-router-2";
const NODES: [&str; 2] = [SECOND, "volume-router"];
/// The volume, and what its twin is waited for.
const ALONE: (&str, &str) = ("/alone.raw", "none");
const TWINNED: (&str, &str) = ("/twinned.raw", "sync");
/// Of the latency without, at depth 1, at most.
const LATENCY_GOAL: f64 = 1.4;
/// Of the writes per second without, at depth 32, at least.
const THROUGHPUT_GOAL: f64 = 0.7;
/// Milliseconds that a guest waits for a move at most.
const PAUSE_GOAL: f64 = 300.0;
/// Seconds of the writes that a move falls into.
const MOVE_SECONDS: u32 = 3;
const IN_SYNC_WITHIN: Duration = Duration::from_secs(60);

/// What to measure.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Seconds of each run of fio.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: u32,
    /// Rounds of each depth.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Moves.
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u32).range(1..=1000))]
    moves: u32,
    /// MiB of each volume.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(16..=16384))]
    size_mib: u32,
    /// Where, and whereto.
    #[command(flatten)]
    place: Place,
}

/// Writes of one run, and the CPU seconds of all services for them.
#[derive(Debug, Clone, Copy)]
struct Run {
    figures: Figures,
    cpu_seconds: f64,
}

impl Run {
    fn cpu_per_10_000(&self) -> f64 {
        self.cpu_seconds * 10_000.0 / (self.figures.operations.max(1) as f64)
    }
}

/// One round at one depth.
struct Round {
    depth: u32,
    alone: Run,
    twinned: Run,
}

/// Measures and reports.
pub(crate) fn run(options: &Options) -> Result<()> {
    let dir = options.place.fresh("twin")?;
    let sconce = Sconce::prepare(&dir)?;
    sconce.up()?;
    let second = sconce.another_volume_router(SECOND, "4 GiB")?;
    let size = format!("{}M", options.size_mib);
    for (volume, mode) in [ALONE, TWINNED] {
        sconce.command(&[
            "volume", "create", volume, "--size", &size, "--owner", NODES[1], "--dtl", mode,
        ])?;
        fio::fill(&sconce.uri(volume), options.size_mib)?;
    }
    let mut rounds = Vec::new();
    for number in 0..options.rounds {
        for depth in [1, 32] {
            rounds.push(round(&sconce, &second, options, (number, depth))?);
        }
    }
    let mut pauses = Vec::new();
    for number in 0..options.moves {
        for (volume, _) in [ALONE, TWINNED] {
            let to = NODES[usize::try_from(number)? % NODES.len()];
            pauses.push(pause(&sconce, options, volume, to)?);
        }
    }
    sconce.stop()?;
    drop(second);
    Place::clear(&dir)?;
    let command = format!(
        "loadtest twin --seconds {} --rounds {} --moves {} --size-mib {}",
        options.seconds, options.rounds, options.moves, options.size_mib
    );
    let found = format!("{}\n{}", costs(&rounds, options.seconds), moves(pauses));
    options.place.report("twin", &command, &found)
}

const fn writes(depth: u32) -> Load<'static> {
    Load {
        rw: "randwrite",
        block: "4k",
        depth,
        flush_each: None,
        per_second_max: None,
    }
}

fn round(sconce: &Sconce, second: &Another, options: &Options, (number, depth): (u32, u32)) -> Result<Round> {
    let run = |(volume, _): (&str, &str)| -> Result<Run> {
        let before = cpu_seconds(sconce, second)?;
        let figures = fio::run(
            &writes(depth),
            &sconce.uri(volume),
            options.size_mib,
            options.seconds,
        )?;
        // What is left to be stored is this run's.
        sconce.command(&["volume", "sync", volume])?;
        Ok(Run {
            figures,
            cpu_seconds: cpu_seconds(sconce, second)? - before,
        })
    };
    in_sync(sconce)?;
    let (alone, twinned) = if number.is_multiple_of(2) {
        let alone = run(ALONE)?;
        (alone, run(TWINNED)?)
    } else {
        let twinned = run(TWINNED)?;
        (run(ALONE)?, twinned)
    };
    // It would have been measured without its twin.
    in_sync(sconce)?;
    Ok(Round {
        depth,
        alone,
        twinned,
    })
}

fn cpu_seconds(sconce: &Sconce, second: &Another) -> Result<f64> {
    let services = SERVICES.iter().map(|service| sconce.pid(service));
    let all = services.chain([Ok(second.pid())]);
    all.map(|pid| cpu::seconds(pid?)).sum()
}

/// Waits until the record says so.
fn in_sync(sconce: &Sconce) -> Result<()> {
    let begun = std::time::Instant::now();
    while begun.elapsed() < IN_SYNC_WITHIN {
        let shown = sconce.command(&["volume", "show", TWINNED.0, "--output", "json"])?;
        let shown: serde_json::Value = serde_json::from_str(&shown)?;
        if shown["dtl_state"] == "in_sync" {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(50));
    }
    bail!(
        "{} has no twin that is in sync after {IN_SYNC_WITHIN:?}",
        TWINNED.0
    )
}

/// The longest time of a write, in milliseconds, while its volume moves.
fn pause(sconce: &Sconce, options: &Options, volume: &str, to: &str) -> Result<f64> {
    in_sync(sconce)?;
    let figures = thread::scope(|scope| {
        let uri = sconce.uri(volume);
        let writing = scope.spawn(move || fio::run(&writes(32), &uri, options.size_mib, MOVE_SECONDS));
        // It has begun to write by then.
        thread::sleep(Duration::from_secs(1));
        let moved = client::with(sconce, async |client| {
            let file = client.file(volume).await?;
            client.move_to(&file, to).await
        });
        let Ok(figures) = writing.join() else {
            bail!("the thread that writes panicked");
        };
        moved.with_context(|| format!("moving {volume} to {to}"))?;
        figures
    })?;
    Ok(figures.longest_us / 1000.0)
}

fn costs(rounds: &[Round], seconds: u32) -> String {
    let mut text = "| depth | round | p50 us alone | with a twin | of it | writes/s alone | with a twin | of it | CPU-s / 10,000 alone | with a twin |\n\
                    |---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n"
        .to_owned();
    let (mut latencies, mut throughputs) = (Vec::new(), Vec::new());
    for (number, round) in (0..).zip(rounds) {
        let (alone, twinned) = (&round.alone.figures, &round.twinned.figures);
        let latency = twinned.median_us / alone.median_us.max(1.0);
        let throughput = twinned.per_second / alone.per_second.max(1.0);
        match round.depth {
            1 => latencies.push(latency),
            _ => throughputs.push(throughput),
        }
        text.push_str(&format!(
            "| {} | {} | {:.0} | {:.0} | {latency:.2} | {:.0} | {:.0} | {throughput:.2} | {:.3} | {:.3} |\n",
            round.depth,
            number / 2 + 1,
            alone.median_us,
            twinned.median_us,
            alone.per_second,
            twinned.per_second,
            round.alone.cpu_per_10_000(),
            round.twinned.cpu_per_10_000(),
        ));
    }
    let (latency, throughput) = (median(latencies), median(throughputs));
    text.push_str(&format!(
        "\n4 KiB random writes, {seconds} s each; both volume-routers, the back end and fio on this machine. Medians: {latency:.2} times the \
         latency at depth 1 (goal: at most {LATENCY_GOAL}; {}), {throughput:.2} of the writes per second at depth 32 (goal: at least \
         {THROUGHPUT_GOAL}; {}).\n",
        judged(latency, LATENCY_GOAL),
        judged(-throughput, -THROUGHPUT_GOAL),
    ));
    text
}

fn moves(mut pauses: Vec<f64>) -> String {
    pauses.sort_by(f64::total_cmp);
    let at = |tenths: usize| {
        let last = pauses.len().saturating_sub(1);
        pauses.get((last * tenths).div_ceil(10)).copied().unwrap_or(0.0)
    };
    format!(
        "| moves | shortest | median | 90 % | longest, ms |\n|---:|---:|---:|---:|---:|\n\
         | {} | {:.0} | {:.0} | {:.0} | {:.0} |\n\
         \nThe longest time of a 4 KiB write at depth 32 in {MOVE_SECONDS} s in which its volume moves to the other volume-router, half of \
         the moves with mode `none`, half with `sync`. Goal: under {PAUSE_GOAL} ms; the longest: {}.\n",
        pauses.len(),
        at(0),
        at(5),
        at(9),
        at(10),
        judged(at(10), PAUSE_GOAL)
    )
}
