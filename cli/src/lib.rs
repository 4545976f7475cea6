//! The `sconce` command: see docs/operating/cli.md.
//!
//! Keeps: nothing between calls.
//! Order: arguments are checked before anything is asked.
//! Crash: a command that was cut short can be given again.
//! Knows no storage: it talks to the services as their other clients do.

pub mod access;
pub mod args;
pub mod backend;
pub mod cluster;
pub mod deletions;
pub mod diff;
pub mod events;
pub mod flatten;
pub mod group;
pub mod inspect;
pub mod node;
pub mod owned;
pub mod pool;
pub mod pool_init;
pub mod recover;
mod rounds;
pub mod scrub;
pub mod settings;
pub mod size;
pub mod snapshot;
pub mod status;
#[cfg(test)]
mod testing;
pub mod transfer;
pub mod view;
pub mod volume;

use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::CommandFactory;
use tokio::task::LocalSet;

use args::{Cli, Command, Format, Pool};
use cluster::Cluster;

/// Does what a command line says; gives the exit code.
///
/// # Errors
/// It could not be done; the text says what to do next.
pub fn run(cli: Cli) -> Result<ExitCode> {
    let Cli {
        cluster,
        output,
        command,
    } = cli;
    match command {
        Command::Completion { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "sconce", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
        Command::Pool(Pool::Init(init)) => pool_init::run(&init, output).map(|()| ExitCode::SUCCESS),
        Command::Verify(verify) => transfer::verify(&verify, output).map(|()| ExitCode::SUCCESS),
        Command::Inspect(command) => run_to_end(inspect::run(&command, output))?.map(|()| ExitCode::SUCCESS),
        Command::Check(check) => {
            let checked = run_to_end(inspect::run_check(&check, output))?;
            Ok(checked.unwrap_or_else(|error| inspect::not_judged(&error)))
        }
        command => run_to_end(async {
            let cluster = Cluster::open(cluster.as_deref()).await?;
            on_cluster(&cluster, command, output).await
        })?
        .map(|()| ExitCode::SUCCESS),
    }
}

fn run_to_end<T>(work: impl Future<Output = T>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    Ok(LocalSet::new().block_on(&runtime, work))
}

/// Does what a command that concerns a cluster says. In a `LocalSet`.
///
/// # Errors
/// It could not be done; the text says what to do next.
pub async fn on_cluster(cluster: &Cluster, command: Command, output: Format) -> Result<()> {
    match command {
        Command::Volume(command) => volume::run(cluster, command, output).await,
        Command::Snapshot(command) => snapshot::run(cluster, command, output).await,
        Command::Clone(from) => snapshot::clone(cluster, from, output).await,
        Command::Template(command) => snapshot::template(cluster, command, output).await,
        Command::Scrub(command) => scrub::run(cluster, &command, output).await,
        Command::Diff(diff) => diff::run(cluster, &diff, output).await,
        Command::Import(import) => transfer::import(cluster, &import, output).await,
        Command::Verify(verify) => transfer::verify(&verify, output),
        Command::Export(export) => transfer::export(cluster, &export, output).await,
        Command::Node(command) => node::run(cluster, command, output).await,
        Command::Status(status) => status::run(cluster, &status, output).await,
        Command::Events(events) => events::run(cluster, &events, output).await,
        Command::Recover(recover) => recover::run(cluster, &recover, output).await,
        Command::Pool(command) => pool::run(cluster, command, output).await,
        Command::Backend(command) => backend::run(cluster, command, output).await,
        Command::Inspect(command) => inspect::run(&command, output).await,
        Command::Check(check) => {
            let code = inspect::run_check(&check, output).await?;
            ensure!(code == ExitCode::SUCCESS, "not all is consistent");
            Ok(())
        }
        Command::Completion { .. } => Ok(()),
    }
}
