//! `loadtest`: real clients against Sconce, and what they measured.
//!
//! Keeps: nothing; a run leaves its table.
//! Order: none.
//! Crash: a server that a run started ends with it.
//! Knows Sconce as its users do: sockets, the `sconce` command, process ids.

mod bench;

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
    /// Measures fio's nbd engine against Sconce and against qemu-nbd on a raw file, alternately on the same disk.
    Bench(bench::Options),
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().command {
        Command::Bench(options) => bench::run(&options),
    }
}
