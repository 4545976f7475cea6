//! The benchmark: workloads, in rounds, against three servers in turn.
//!
//! Keeps: every run's figures until the report.
//! Order: within a round each workload goes to all servers before the next one, and each round begins with another
//! server, so that what the machine does meanwhile hits all alike.
//! Crash: an interrupted benchmark reports nothing and leaves `target/bench`, which the next one replaces.
//! Knows no protocol; fio speaks NBD.

mod report;
mod server;
mod workload;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};

use report::Report;
use server::{Kind, Server};
use workload::{WORKLOADS, Workload};

use crate::fio::{self, Figures};
use crate::machine::Machine;

/// What to measure and where the results go.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Seconds of each run.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=3600))]
    seconds: u32,
    /// Rounds; the table shows medians over them.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Only workloads whose name contains this (may be given more than once).
    #[arg(long)]
    only: Vec<String>,
    /// MiB of the disk that are written and read.
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(64..=65536))]
    size_mib: u32,
    /// Directory for the disks of all servers.
    #[arg(long, default_value = "target/bench")]
    dir: PathBuf,
    /// How the results are printed.
    #[arg(long, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// Also replaces the table between the markers in this Markdown file.
    #[arg(long)]
    write: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
}

/// One run of one workload against one server.
#[derive(Debug, Clone, Copy)]
struct Run {
    workload: &'static Workload,
    server: Kind,
    figures: Figures,
    /// CPU seconds of all server processes, background work that the run left to do included.
    cpu_seconds: f64,
}

/// Runs the benchmark and reports it.
pub(crate) fn run(options: &Options) -> Result<()> {
    let wanted: Vec<&'static Workload> = WORKLOADS.iter().filter(|w| chosen(w, &options.only)).collect();
    let idle = chosen_name(report::IDLE, &options.only);
    ensure!(
        !wanted.is_empty() || idle,
        "--only {:?} names no workload; they are: {}, {}",
        options.only,
        WORKLOADS.each_ref().map(|w| w.name).join(", "),
        report::IDLE
    );
    if options.dir.exists() {
        fs::remove_dir_all(&options.dir).with_context(|| format!("removing {}", options.dir.display()))?;
    }
    fs::create_dir_all(&options.dir)?;
    let dir = options.dir.canonicalize()?;
    let mut servers = Vec::new();
    for kind in Kind::ALL {
        let server = Server::start(kind, &dir, options.size_mib)?;
        fio::fill(server.uri(), options.size_mib).with_context(|| format!("filling {}", kind.name()))?;
        server.settle()?;
        servers.push(server);
    }

    let mut runs = Vec::new();
    let bar = progress(wanted.len() * servers.len() * usize::try_from(options.rounds)?);
    for round in 0..options.rounds {
        for workload in &wanted {
            servers.rotate_left(1);
            for server in &servers {
                bar.set_message(format!(
                    "round {}: {} on {}",
                    round + 1,
                    workload.name,
                    server.kind().name()
                ));
                runs.push(measure(workload, server, options)?);
                bar.inc(1);
            }
        }
    }
    bar.finish_and_clear();
    let sconce = servers.iter().find(|server| server.kind() == Kind::Sconce);
    let idle = match sconce {
        Some(server) if idle => Some(server.idle(options.seconds)?),
        _ => None,
    };
    for server in servers {
        server.stop()?;
    }
    fs::remove_dir_all(&dir)?;

    let report = Report::new(&runs, idle, Machine::here(command(options))?);
    match options.output {
        Output::Table => println!("{}", report.table()),
        Output::Json => println!("{}", serde_json::to_string_pretty(&report)?),
    }
    match &options.write {
        Some(path) => report.write_into(path),
        None => Ok(()),
    }
}

/// The command line that does the same again.
fn command(options: &Options) -> String {
    let mut command = format!(
        "loadtest bench --seconds {} --rounds {} --size-mib {}",
        options.seconds, options.rounds, options.size_mib
    );
    for part in &options.only {
        command.push_str(&format!(" --only {part}"));
    }
    command
}

fn measure(workload: &'static Workload, server: &Server, options: &Options) -> Result<Run> {
    if workload.reads_fresh {
        // What was written last is what the write buffer holds.
        fio::fill(server.uri(), options.size_mib)?;
    }
    server.settle()?;
    let before = server.cpu_seconds()?;
    let figures = fio::run(&workload.load(), server.uri(), options.size_mib, options.seconds)
        .with_context(|| format!("{} on {}", workload.name, server.kind().name()))?;
    server.settle()?;
    let cpu_seconds = server.cpu_seconds()? - before;
    Ok(Run {
        workload,
        server: server.kind(),
        figures,
        cpu_seconds,
    })
}

fn chosen(workload: &Workload, only: &[String]) -> bool {
    chosen_name(workload.name, only)
}

fn chosen_name(name: &str, only: &[String]) -> bool {
    only.is_empty() || only.iter().any(|part| name.contains(part.as_str()))
}

fn progress(runs: usize) -> ProgressBar {
    let bar = ProgressBar::new(runs as u64);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}") {
        bar.set_style(style);
    }
    bar
}
