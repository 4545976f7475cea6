//! `loadtest`: real clients against Sconce, and what they measured.
//!
//! Keeps: nothing; a run leaves its table.
//! Order: none.
//! Crash: a server that a run started ends with it.
//! Knows Sconce as its users do: sockets, the `sconce` command and its library, process ids.

mod analyze;
mod bench;
mod compare;
mod cpu;
mod document;
mod fio;
mod generator;
mod history;
mod machine;
mod report;
mod scenario;
mod sconce;
mod twin;

use clap::{Parser, Subcommand};

/// Real clients against Sconce.
#[derive(Debug, Parser)]
#[command(name = "loadtest", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs a scenario: a cluster, its loads, what is done to its services meanwhile, a trace; writes a report.
    Run(scenario::Options),
    /// Says what changed from one run to another, and whether it is more than noise.
    Compare(compare::Options),
    /// Says where the time of operations goes, from a trace that LTTng recorded.
    Analyze(analyze::Options),
    /// Measures fio's nbd engine against Sconce and against qemu-nbd on a raw file, alternately on the same disk.
    Bench(bench::Options),
    /// Measures writes while snapshots are taken, and a clone's first byte against its parent's.
    Snapshots(history::snapshots::Options),
    /// Measures what a full volume under random overwrites costs on the back ends.
    Space(history::space::Options),
    /// Measures what a synchronous twin costs, and how long guests wait for a move.
    Twin(twin::Options),
    /// Measures restarts and clones against the number of snapshots and the size of the volume.
    Growth(history::growth::Options),
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().command {
        Command::Run(options) => scenario::run(&options),
        Command::Compare(options) => compare::run(&options),
        Command::Analyze(options) => analyze::run(&options),
        Command::Bench(options) => bench::run(&options),
        Command::Snapshots(options) => history::snapshots::run(&options),
        Command::Space(options) => history::space::run(&options),
        Command::Twin(options) => twin::run(&options),
        Command::Growth(options) => history::growth::run(&options),
    }
}
