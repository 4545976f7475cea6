//! `simulate --seeds 10000`

use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use clap::Parser;
use sconce_runtime::simulated::Planted;
use sconce_simulation::{Fault, Plan, run};

/// Runs whole clusters under faults, one for each seed, and judges what their guests saw.
#[derive(Parser)]
struct Arguments {
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// How many seeds.
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// Threads; each runs one seed at a time.
    #[arg(long, default_value_t = 2)]
    threads: u64,
    /// A folder in memory for the machines' disks.
    #[arg(long, default_value = "/dev/shm")]
    dir: PathBuf,
    /// A rule that the services leave out (builds with debug assertions): ack-before-twin, no-seal, no-lease, resend-anew.
    #[arg(long, value_parser = planted)]
    planted: Vec<Planted>,
    /// Kinds of faults that the storm is made of; the seed decides where there are none.
    #[arg(long, value_parser = fault)]
    fault: Vec<Fault>,
    /// Guests do not read while there are faults.
    #[arg(long)]
    no_reads: bool,
    /// Writes the trace of each seed that fails, or of the only one, to this folder, with all that services log.
    #[arg(long)]
    trace: Option<PathBuf>,
}

fn fault(name: &str) -> Result<Fault, String> {
    let found = Fault::ALL.iter().find(|fault| fault.name() == name).copied();
    let names = || {
        Fault::ALL
            .iter()
            .map(|fault| fault.name())
            .collect::<Vec<_>>()
            .join(", ")
    };
    found.ok_or_else(|| format!("right would be one of {}", names()))
}

fn planted(name: &str) -> Result<Planted, String> {
    match name {
        "ack-before-twin" => Ok(Planted::AckBeforeTwin),
        "no-seal" => Ok(Planted::NoSeal),
        "no-lease" => Ok(Planted::NoLease),
        "resend-anew" => Ok(Planted::ResendAnew),
        _ => Err("right would be ack-before-twin, no-seal, no-lease or resend-anew".to_owned()),
    }
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let dir = tempfile::Builder::new()
        .prefix("simulate-")
        .tempdir_in(&arguments.dir)?;
    let (next, begun) = (AtomicU64::new(0), Instant::now());
    let (operations, failed) = (AtomicU64::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..arguments.threads {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= arguments.seeds {
                        return;
                    }
                    let seed = arguments.from + number;
                    let failures = one(seed, &arguments, dir.path(), &operations);
                    if !failures.is_empty() {
                        println!("seed {seed}: {}", failures.join("\n    "));
                        failed
                            .lock()
                            .unwrap_or_else(std::sync::PoisonError::into_inner)
                            .push(seed);
                    }
                    if (number + 1) % 100 == 0 {
                        eprintln!("{} seeds, {:.0} s", number + 1, begun.elapsed().as_secs_f64());
                    }
                }
            });
        }
    });
    let failed = failed
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    println!(
        "{} seeds, {} operations, {:.1} s: {} failed {failed:?}",
        arguments.seeds,
        operations.into_inner(),
        begun.elapsed().as_secs_f64(),
        failed.len()
    );
    match failed.is_empty() {
        true => Ok(()),
        false => anyhow::bail!("seeds that failed: {failed:?}"),
    }
}

fn one(seed: u64, arguments: &Arguments, dir: &std::path::Path, operations: &AtomicU64) -> Vec<String> {
    let plan = Plan {
        planted: arguments.planted.clone(),
        faults: arguments.fault.clone(),
        reads: !arguments.no_reads,
        ..Plan::of(seed)
    };
    let report = match run(&plan, dir) {
        Ok(report) => report,
        Err(error) => return vec![format!("{error:#}")],
    };
    operations.fetch_add(report.operations, Ordering::Relaxed);
    let mut failures = report.failures;
    if let Some(folder) = &arguments.trace
        && (!failures.is_empty() || arguments.seeds == 1)
    {
        let detailed = Plan {
            is_detailed: true,
            ..plan
        };
        let written = run(&detailed, dir).and_then(|again| {
            Ok(std::fs::write(
                folder.join(format!("seed-{seed}.txt")),
                again.trace,
            )?)
        });
        failures.extend(written.err().map(|error| format!("its trace: {error:#}")));
    }
    failures
}
