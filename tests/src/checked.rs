//! What the back ends hold, judged by `sconce check` while no service runs.
//!
//! Keeps: nothing.
//! Order: the services are stopped before, and started again by whoever goes on.
//! Crash: nothing; a check changes nothing.
//! Knows the command and its JSON.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::client;
use crate::cluster::Cluster;

/// The back end of a cluster's settings.
#[must_use]
pub fn backend(cluster: &Cluster) -> std::path::PathBuf {
    cluster.path("backend/local")
}

/// Runs `sconce check --data` on a back end; gives its exit code and its report.
///
/// # Errors
/// It prints no JSON.
pub fn check(cluster: &Cluster, backend: &Path) -> Result<(Option<i32>, Value)> {
    report(&mut check_command(cluster.command()?, backend))
}

/// The command `sconce` with what makes it check a back end.
#[must_use]
pub fn check_command(mut sconce: Command, backend: &Path) -> Command {
    sconce.arg("check").arg(backend).args(["--data", "--json"]);
    sconce
}

fn report(check: &mut Command) -> Result<(Option<i32>, Value)> {
    let output = client::output(check)?;
    let text = String::from_utf8_lossy(&output.stdout);
    let report = serde_json::from_str(&text).with_context(|| {
        format!(
            "sconce check printed {text:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        )
    })?;
    Ok((output.status.code(), report))
}

/// Stops the cluster, proves all its volumes consistent, and gives the report; the cluster stays down.
///
/// # Errors
/// Something is not consistent: the problems are told.
pub fn stopped_and_consistent(cluster: &Cluster) -> Result<Value> {
    cluster.script(&["down"])?;
    consistent(&mut check_command(cluster.command()?, &backend(cluster)))
}

/// Runs a [`check_command`], and gives its report.
///
/// # Errors
/// Something is not consistent: the problems are told.
pub fn consistent(check: &mut Command) -> Result<Value> {
    let (code, report) = report(check)?;
    ensure!(
        code == Some(0) && report["verdict"] == "consistent",
        "exit code {code:?}: {}",
        problems(&report).join("\n")
    );
    Ok(report)
}

/// The texts of all problems.
#[must_use]
pub fn problems(report: &Value) -> Vec<String> {
    let volumes = report["volumes"].as_array().into_iter().flatten();
    let problems = volumes.flat_map(|volume| volume["problems"].as_array().into_iter().flatten());
    problems
        .map(|problem| problem["text"].as_str().unwrap_or_default().to_owned())
        .collect()
}
