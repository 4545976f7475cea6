//! What the services said: a WARN or ERROR that a test did not announce fails it (STYLE.md 16).
//!
//! Keeps: the announced patterns, and what a busy machine provokes in any test.
//! Order: logs are judged after the services stopped, so that nothing is said later.
//! Crash: a panic's message counts as an ERROR, whoever printed it.
//! Knows the log files only as lines.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

/// What a machine provokes that has not run a service for the length of its lease, beside other tests. That nothing comes of it but these
/// lines is what the tests judge.
const BUSY: [&str; 2] = ["the lease had ended", "lease not renewed"];

/// The warnings that a test provokes, as texts that their lines contain.
#[derive(Debug, Default)]
pub struct Announced(Vec<&'static str>);

impl Announced {
    /// Lines that contain `text` are expected from now on.
    pub fn add(&mut self, text: &'static str) {
        self.0.push(text);
    }

    fn covers(&self, line: &str) -> bool {
        BUSY.iter().chain(&self.0).any(|text| line.contains(text))
    }
}

/// Whether a person would have to look at this line.
fn alarms(line: &str) -> bool {
    [
        " WARN ",
        " ERROR ",
        "panicked at",
        "memory allocation of",
        "AddressSanitizer",
    ]
    .iter()
    .any(|mark| line.contains(mark))
}

/// Judges the service logs of a run directory.
///
/// # Errors
/// A log cannot be read, or has lines at WARN or above that were not announced: the first ones are in the error.
pub fn judge(run_dir: &Path, announced: &Announced) -> Result<()> {
    let mut unexpected = Vec::new();
    for (name, text) in read_all(run_dir)? {
        let alarming = text
            .lines()
            .filter(|line| alarms(line) && !announced.covers(line));
        unexpected.extend(alarming.map(|line| format!("{name}: {line}")));
    }
    if unexpected.is_empty() {
        return Ok(());
    }
    let count = unexpected.len();
    unexpected.truncate(10);
    bail!(
        "{count} unannounced lines in the logs, first:\n{}",
        unexpected.join("\n")
    )
}

/// The ends of all logs of a run directory, for a test that failed.
#[must_use]
pub fn ends(run_dir: &Path) -> String {
    let Ok(logs) = read_all(run_dir) else {
        return format!("no logs in {}", run_dir.display());
    };
    let end = |(name, text): (String, String)| {
        let lines: Vec<&str> = text.lines().collect();
        format!(
            "--- {name}\n{}",
            lines[lines.len().saturating_sub(20)..].join("\n")
        )
    };
    logs.into_iter().map(end).collect::<Vec<_>>().join("\n")
}

fn read_all(run_dir: &Path) -> Result<Vec<(String, String)>> {
    let mut logs = Vec::new();
    for entry in fs::read_dir(run_dir).with_context(|| format!("logs in {}", run_dir.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "log") {
            let bytes = fs::read(&path).with_context(|| format!("log {}", path.display()))?;
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            logs.push((name, String::from_utf8_lossy(&bytes).into_owned()));
        }
    }
    logs.sort();
    Ok(logs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_announced_alarms_pass() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(
            dir.path().join("fs-router.log"),
            "2026 INFO up\n2026  WARN owner lost volume=1\n2026  WARN lease not renewed: trying again\n\
             thread 'main' panicked at src/x.rs\n",
        )
        .unwrap();
        let mut announced = Announced::default();
        let error = judge(dir.path(), &announced).unwrap_err().to_string();
        assert!(
            error.contains("2 unannounced") && error.contains("owner lost"),
            "{error}"
        );
        announced.add("owner lost");
        announced.add("panicked at");
        judge(dir.path(), &announced).unwrap();
    }
}
