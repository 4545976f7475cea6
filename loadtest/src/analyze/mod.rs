//! `loadtest analyze`: where the time of operations goes, from a trace that LTTng recorded.
//!
//! Keeps: nothing; a trace is read, figures are shown.
//! Order: events are joined by their operation's id, over all services.
//! Crash: nothing; the trace is not changed.
//! Knows the tracepoints' names and fields (docs/operating/tracing.md).

pub(crate) mod figures;
mod operations;
mod read;
mod shown;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use clap::Args;

pub(crate) use figures::Analysis;
use operations::Operations;

use crate::document;
use crate::report::page::Page;

/// What to analyze, and where the figures go.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The directory that `lttng create --output` named, or a file with what `babeltrace2 --clock-seconds` printed of it.
    trace: PathBuf,
    /// Only operations of this volume (its id, as `sconce volume show` says it; may be given more than once).
    #[arg(long)]
    volume: Vec<String>,
    /// How many of the slowest operations of each kind are told event by event.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(0..=1000))]
    slowest: u16,
    /// Writes all figures into this file, as JSON; `-`: to standard output, in place of the tables.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Writes a page with tables, plots and waterfalls into this file.
    #[arg(long)]
    html: Option<PathBuf>,
}

/// Analyzes and shows.
pub(crate) fn run(options: &Options) -> Result<()> {
    let analysis = analysis(&options.trace, &options.volume, usize::from(options.slowest))?;
    if let Some(path) = &options.html {
        let mut page = Page::new(&format!("Trace {}", options.trace.display()));
        analysis.add_to(&mut page, &[])?;
        document::replace(path, page.finish().as_bytes())?;
    }
    let json = || serde_json::to_string_pretty(&analysis);
    match &options.json {
        Some(path) if path == Path::new("-") => println!("{}", json()?),
        Some(path) => {
            document::replace(path, json()?.as_bytes())?;
            println!("{}", analysis.text());
        }
        None => println!("{}", analysis.text()),
    }
    Ok(())
}

/// The figures of a trace; of these volumes only, where any is named.
pub(crate) fn analysis(trace: &Path, volumes: &[String], slowest: usize) -> Result<Analysis> {
    let mut operations = Operations::of(read::read(trace)?);
    if !volumes.is_empty() {
        operations.keep(volumes);
        ensure!(
            operations.len() > 0,
            "trace {} has no operation of {}; a volume is named by its id, as `sconce volume show` says it",
            trace.display(),
            volumes.join(", ")
        );
    }
    figures::of(&operations, slowest)
}
