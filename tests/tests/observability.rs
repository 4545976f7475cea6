//! What is provided for Prometheus and Grafana names only metrics that there are, and is of the form that these take.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use sconce_tests::checkout;
use sconce_tracing::metrics::{Kind, Metric};
use serde_json::Value;

const DASHBOARD: &str = "compose/observability/grafana/sconce.json";
const PROMETHEUS: &str = "compose/observability/prometheus.yaml";
/// Everything that names metrics.
const NAMING: [&str; 4] = [
    DASHBOARD,
    "compose/observability/alerts.yaml",
    "docs/operating/metrics.md",
    "docs/operating/cache.md",
];

/// What a reader of a page can ask for by name.
fn names() -> BTreeSet<String> {
    let names = Metric::ALL.iter().map(|metric| metric.about()).flat_map(|about| {
        let of_histogram = ["_bucket", "_sum", "_count"].map(|suffix| about.name.to_owned() + suffix);
        let of_histogram = of_histogram
            .into_iter()
            .filter(move |_| about.kind == Kind::Histogram);
        of_histogram.chain([about.name.to_owned()])
    });
    names.collect()
}

/// Words that look like a metric's name; one that goes on in other letters, as `sconce_cache_…`, is none.
fn words(text: &str) -> Vec<&str> {
    let is_of_name = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    text.split(|letter: char| !is_of_name(letter))
        .filter(|word| word.starts_with("sconce_") || word.starts_with("process_"))
        .filter(|word| !word.ends_with('_'))
        .collect()
}

#[test]
fn every_metric_that_is_named_is_in_the_closed_list() -> Result<()> {
    let known = names();
    for file in NAMING {
        let text = fs::read_to_string(checkout().join(file)).context(file)?;
        let named = words(&text);
        ensure!(!named.is_empty(), "{file} names no metric");
        let unknown: Vec<&&str> = named.iter().filter(|name| !known.contains(**name)).collect();
        ensure!(unknown.is_empty(), "{file} names {unknown:?}, which nobody tells");
    }
    Ok(())
}

/// All values of this key, however deep.
fn all<'a>(value: &'a Value, key: &str, found: &mut Vec<&'a Value>) {
    match value {
        Value::Object(fields) => {
            found.extend(fields.get(key));
            fields.values().for_each(|value| all(value, key, found));
        }
        Value::Array(values) => values.iter().for_each(|value| all(value, key, found)),
        _ => {}
    }
}

#[test]
fn each_panel_of_the_dashboard_shows_a_metric() -> Result<()> {
    let dashboard: Value = serde_json::from_str(&fs::read_to_string(checkout().join(DASHBOARD))?)?;
    let panels = dashboard["panels"].as_array().context("panels")?;
    let mut ids = BTreeSet::new();
    for panel in panels {
        ensure!(ids.insert(panel["id"].as_u64()), "two panels have an id: {panel}");
        let mut expressions = Vec::new();
        all(panel, "expr", &mut expressions);
        for expression in &expressions {
            let expression = expression.as_str().context("an expression")?;
            ensure!(!words(expression).is_empty(), "{expression} shows nothing");
        }
        ensure!(
            panel["type"] == "row" || !expressions.is_empty(),
            "an empty panel: {panel}"
        );
    }
    Ok(())
}

#[test]
fn what_compose_mounts_is_there() -> Result<()> {
    let compose = fs::read_to_string(checkout().join("compose/compose.yaml"))?;
    let mounts = compose
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- ./")?.split(':').next());
    let mut count = 0;
    for mount in mounts {
        ensure!(
            checkout().join("compose").join(mount).exists(),
            "compose/{mount} is missing"
        );
        count += 1;
    }
    ensure!(count == 4, "{count} mounts");
    Ok(())
}

/// Its package is large, so that it is only asked where it is.
#[test]
fn prometheus_takes_its_settings() -> Result<()> {
    let check = Command::new("promtool")
        .args(["check", "config"])
        .arg(checkout().join(PROMETHEUS))
        .output();
    match check {
        Ok(check) => {
            let said = String::from_utf8_lossy(&check.stderr);
            ensure!(check.status.success(), "{said}");
        }
        Err(_) => eprintln!("promtool is not installed: {PROMETHEUS} is not checked"),
    }
    Ok(())
}
