//! `loadtest run` on real processes: a scenario with a load that verifies, chaos and a trace, to its report.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sconce_tests::client;
use sconce_tests::cluster::{Cluster, PATIENCE};
use sconce_tests::lttng;
use serde_json::Value;

const WITHIN: Duration = Duration::from_secs(600);
/// A swap of the front end and a kill of the back end's service fall into three seconds of load.
const SCENARIO: &str = r#"
name = "short"
duration = "3s"
interval = "500ms"
[[volumes]]
path = "/load/nbd.raw"
size = "4 MiB"
fill = true
[[volumes]]
path = "/load/bus.raw"
size = "2 MiB"
[[loads]]
name = "over-nbd"
volume = "/load/nbd.raw"
client = "nbd"
per_second = 150
reads = 40
flush_each = 16
[[loads]]
name = "over-the-bus"
volume = "/load/bus.raw"
client = "bus"
per_second = 50
reads = 40
[[chaos]]
at = "500ms"
action = "swap"
service = "fs-router"
[[chaos]]
at = "1500ms"
action = "pause"
service = "volume-router"
for = "300ms"
"#;

fn run(dir: &Path, scenario: &str) -> Result<(std::process::Output, Value)> {
    let file = dir.join("short.toml");
    fs::write(&file, scenario)?;
    let mut command = client::command(Cluster::binaries()?.join("loadtest"), WITHIN);
    command.arg("run").arg(&file).arg("--dir").arg(dir.join("out"));
    command.envs(PATIENCE);
    let output = client::output(&mut command)?;
    let report = fs::read_to_string(dir.join("out/report.json")).with_context(|| {
        format!(
            "no report; loadtest said {}",
            String::from_utf8_lossy(&output.stderr)
        )
    })?;
    Ok((output, serde_json::from_str(&report)?))
}

#[test]
fn a_scenario_goes_from_its_file_to_its_report() -> Result<()> {
    // Short, because a unix socket's path has at most 107 bytes.
    let dir = tempfile::Builder::new().prefix("sconce-").tempdir()?;
    let recorded = lttng::is_here()?;
    let (output, report) = run(dir.path(), SCENARIO)?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success(),
        "{}: {said}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    let loads = report["loads"].as_array().context("the report has no loads")?;
    for (load, due) in loads.iter().zip([100, 20]) {
        let found = &load["found"];
        let count = found["all"]["count"].as_u64().context("no count")?;
        ensure!(count >= due, "{count} requests of {}, not {due}", load["name"]);
        ensure!(
            found["errors"] == 0 && found["mismatches"] == 0,
            "{}",
            found["told"]
        );
        ensure!(found["verified"].as_u64() > Some(400), "{}", found["verified"]);
        // The pause of 300 ms was waited for by what was due in its first half.
        let longest = found["all"]["max_us"].as_f64().context("no longest time")?;
        ensure!(
            longest > 150_000.0,
            "the longest time of {} is {longest} us",
            load["name"]
        );
    }
    let chaos: Vec<&str> = report["chaos"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|one| one["name"].as_str())
        .collect();
    ensure!(chaos == ["swap fs-router", "pause volume-router"], "{chaos:?}");
    ensure!(
        report["cpu"].as_array().is_some_and(|cpu| !cpu.is_empty()),
        "{}",
        report["cpu"]
    );
    if recorded {
        let classes = report["trace"]["classes"]
            .as_array()
            .context("no trace was analyzed")?;
        let names: Vec<&str> = classes
            .iter()
            .filter_map(|class| class["name"].as_str())
            .collect();
        for wanted in ["nbd write", "nbd read", "nbd flush", "bus write"] {
            ensure!(names.contains(&wanted), "{wanted} is not among {names:?}");
        }
    }
    let page = fs::read_to_string(dir.path().join("out/report.html"))?;
    ensure!(
        page.contains("swap fs-router") && page.contains("</svg>"),
        "{page}"
    );
    ensure!(
        !dir.path().join("out/run").exists(),
        "the cluster's files are still there"
    );
    Ok(())
}
