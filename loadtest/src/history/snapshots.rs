//! Writes while a snapshot is taken each 100 ms against writes without, and a clone's first byte against its parent's.
//!
//! Keeps: figures until the report.
//! Order: rounds alternate which of the two comes first.
//! Crash: see `history`.
//! Knows fio for the writes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;

use super::client::{self, Client};
use super::{Place, judged, median};
use crate::fio::{self, Figures, Load};
use crate::sconce::Sconce;

const VOLUME: &str = "/disk.raw";
const FILLER: &str = "/filler.raw";
const EACH: Duration = Duration::from_millis(100);
/// What both may be at most, of the figure without.
const GOAL: f64 = 1.5;
const WRITES: Load<'static> = Load {
    rw: "randwrite",
    block: "4k",
    depth: 4,
    flush_each: None,
    per_second_max: None,
};

/// What to measure.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Seconds of each run of fio.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: u32,
    /// Rounds of each.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// MiB of the volume.
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(16..=16384))]
    size_mib: u32,
    /// Clones whose first byte is read.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    clones: u32,
    /// Where, and whereto.
    #[command(flatten)]
    place: Place,
}

/// One round: the writes without and with snapshots, and how many those were.
struct Round {
    without: Figures,
    with: Figures,
    taken: u32,
}

/// First bytes, in milliseconds.
#[derive(Default)]
struct FirstBytes {
    made: Vec<f64>,
    fresh: Vec<f64>,
    parent: Vec<f64>,
    clone: Vec<f64>,
}

/// Measures and reports.
pub(crate) fn run(options: &Options) -> Result<()> {
    let dir = options.place.fresh("snapshots")?;
    let sconce = Sconce::prepare(&dir)?;
    // Small, so that what a clone shares with its parent is read from the back end, as after a while.
    let buffer = options.size_mib * 2 + 128;
    sconce.replace_settings(
        "volume-router",
        "size = \"4 GiB\"",
        &format!("size = \"{buffer} MiB\""),
    )?;
    sconce.up()?;
    let size = format!("{}M", options.size_mib);
    sconce.command(&["volume", "create", VOLUME, "--size", &size])?;
    let uri = sconce.uri(VOLUME);
    fio::fill(&uri, options.size_mib)?;
    let mut rounds = Vec::new();
    for number in 0..options.rounds {
        rounds.push(round(&sconce, &uri, options, number)?);
    }
    let first = first_bytes(&sconce, options)?;
    sconce.stop()?;
    Place::clear(&dir)?;
    let command = format!(
        "loadtest snapshots --seconds {} --rounds {} --size-mib {} --clones {}",
        options.seconds, options.rounds, options.size_mib, options.clones
    );
    options
        .place
        .report("snapshots", &command, &table(&rounds, first, options.seconds))
}

fn round(sconce: &Sconce, uri: &str, options: &Options, number: u32) -> Result<Round> {
    let writes = || fio::run(&WRITES, uri, options.size_mib, options.seconds);
    let with = || -> Result<(Figures, u32)> {
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let taking =
                scope.spawn(|| client::with(sconce, async |client| take_until(client, number, &stop).await));
            let figures = writes();
            stop.store(true, Ordering::Relaxed);
            let Ok(taken) = taking.join() else {
                bail!("the thread that takes snapshots panicked");
            };
            Ok((figures?, taken.context("taking snapshots")?))
        })
    };
    if number.is_multiple_of(2) {
        let without = writes()?;
        let (with, taken) = with()?;
        Ok(Round { without, with, taken })
    } else {
        let (with, taken) = with()?;
        let without = writes()?;
        Ok(Round { without, with, taken })
    }
}

/// Takes a snapshot each 100 ms until told to stop; gives how many.
async fn take_until(client: &mut Client, round: u32, stop: &AtomicBool) -> Result<u32> {
    let file = client.file(VOLUME).await?;
    let mut taken = 0;
    let mut next = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        client.take(&file, &format!("{round}-{taken}")).await?;
        taken += 1;
        next += EACH;
        tokio::time::sleep(next.saturating_duration_since(Instant::now())).await;
    }
    Ok(taken)
}

fn first_bytes(sconce: &Sconce, options: &Options) -> Result<FirstBytes> {
    let mut found = FirstBytes::default();
    let bytes = u64::from(options.size_mib) << 20;
    client::with(sconce, async |client| {
        let file = client.file(VOLUME).await?;
        client.take(&file, "base").await?;
        client.sync(&file).await
    })?;
    // Takes what the volume has in the write buffer away.
    let filler = options.size_mib * 2 + 256;
    sconce.command(&["volume", "create", FILLER, "--size", &format!("{filler}M")])?;
    fio::fill(&sconce.uri(FILLER), filler)?;
    sconce.command(&["volume", "sync", FILLER])?;
    client::with(sconce, async |client| {
        let file = client.file(VOLUME).await?;
        let base = client.snapshot(&file, "base").await?;
        for number in 0..options.clones {
            let (clone, made) = client
                .clone(&file, &base, &format!("/clones/{number}.raw"))
                .await?;
            let address = client.any_address(bytes);
            found.made.push(millis(made));
            found
                .fresh
                .push(millis(client.first_byte(&clone, address).await?));
        }
        Ok(())
    })?;
    for number in 0..options.clones {
        // Nothing is in memory: each volume's map is read again.
        sconce.stop_service("volume-router")?;
        sconce.start_service("volume-router")?;
        client::with(sconce, async |client| {
            let parent = client.file(VOLUME).await?;
            let clone = client.file(&format!("/clones/{number}.raw")).await?;
            for file in [&parent, &clone] {
                client.served(file).await?;
            }
            let mut pair = [(&parent, &mut found.parent), (&clone, &mut found.clone)];
            if number % 2 == 1 {
                pair.reverse();
            }
            for (file, into) in pair {
                let address = client.any_address(bytes);
                into.push(millis(client.first_byte(file, address).await?));
            }
            Ok(())
        })?;
    }
    Ok(found)
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn table(rounds: &[Round], first: FirstBytes, seconds: u32) -> String {
    let mut text = "| round | p99 us without snapshots | with one each 100 ms | of it | writes/s without | with | snapshots |\n\
                    |---:|---:|---:|---:|---:|---:|---:|\n"
        .to_owned();
    let mut ratios = Vec::new();
    for (number, round) in (1..).zip(rounds) {
        let ratio = round.with.p99_us / round.without.p99_us.max(1.0);
        ratios.push(ratio);
        text.push_str(&format!(
            "| {number} | {:.0} | {:.0} | {ratio:.2} | {:.0} | {:.0} | {} |\n",
            round.without.p99_us,
            round.with.p99_us,
            round.without.per_second,
            round.with.per_second,
            round.taken
        ));
    }
    let ratio = median(ratios);
    text.push_str(&format!(
        "\n4 KiB random writes at depth 4, {seconds} s each. Median: {ratio:.2} times the p99 without snapshots (goal: at most {GOAL}; {}).\n",
        judged(ratio, GOAL)
    ));
    let (parent, clone) = (median(first.parent), median(first.clone));
    let of_it = clone / parent.max(1e-6);
    text.push_str(&format!(
        "\n| clones | made in ms | opened and read first, new | parent's first byte after a restart | a clone's | of it |\n\
         |---:|---:|---:|---:|---:|---:|\n\
         | {} | {:.1} | {:.1} | {parent:.2} | {clone:.2} | {of_it:.2} |\n\
         \nMedians in ms; 4 KiB from the back end. Goal: a clone's first byte at most {GOAL} times its parent's; {}.\n",
        first.made.len(),
        median(first.made.clone()),
        median(first.fresh),
        judged(of_it, GOAL)
    ));
    text
}
