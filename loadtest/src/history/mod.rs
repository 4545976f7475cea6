//! What a volume's history costs: snapshots, clones, space, restarts (issue 3's proofs 2, 3 and 5).
//!
//! Keeps: nothing between runs.
//! Order: each measurement has a Sconce of its own, below its directory.
//! Crash: an interrupted run writes nothing; the next one replaces its directory.
//! Knows the cluster by the `sconce` command's library, so that no process is started within what is timed.

pub(crate) mod client;
mod fabricate;
pub(crate) mod growth;
mod plot;
pub(crate) mod snapshots;
pub(crate) mod space;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;

use crate::document;
use crate::machine::Machine;

/// Where a measurement works and where it writes.
#[derive(Debug, Args)]
pub(crate) struct Place {
    /// Directory for the cluster's files; replaced.
    #[arg(long, default_value = "target/bench-history")]
    dir: PathBuf,
    /// Replaces this measurement's table between its markers in this Markdown file.
    #[arg(long)]
    write: Option<PathBuf>,
}

impl Place {
    /// An empty directory of this name.
    pub(crate) fn fresh(&self, name: &str) -> Result<PathBuf> {
        let dir = self.dir.join(name);
        if dir.exists() {
            fs::remove_dir_all(&dir).with_context(|| format!("removing {}", dir.display()))?;
        }
        fs::create_dir_all(&dir)?;
        Ok(dir.canonicalize()?)
    }

    /// Prints what was measured, and writes it down.
    pub(crate) fn report(&self, name: &str, command: &str, found: &str) -> Result<()> {
        let text = format!("{}\n\n{found}", Machine::here(command.to_owned())?);
        println!("{text}");
        match &self.write {
            Some(path) => document::write_between(path, name, &text),
            None => Ok(()),
        }
    }

    /// Removes a measurement's files.
    pub(crate) fn clear(dir: &Path) -> Result<()> {
        fs::remove_dir_all(dir).with_context(|| format!("removing {}", dir.display()))
    }
}

pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let upper = values.get(middle).copied().unwrap_or(0.0);
    match middle.checked_sub(1).and_then(|lower| values.get(lower)) {
        Some(lower) if values.len().is_multiple_of(2) => (lower + upper) / 2.0,
        _ => upper,
    }
}

/// A figure with its goal, which it may not exceed.
pub(crate) fn judged(found: f64, most: f64) -> &'static str {
    if found <= most { "reached" } else { "missed" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert!((median(vec![3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!((median(vec![4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-9);
        assert!(median(Vec::new()).abs() < 1e-9);
    }
}
