use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use super::*;
use crate::{Action, Status};

#[test]
fn names_are_of_the_fields_form_and_once_in_the_list() {
    let names: HashSet<&str> = Metric::ALL.iter().map(|metric| metric.about().name).collect();
    assert_eq!(names.len(), Metric::ALL.len());
    for about in Metric::ALL.iter().map(|metric| metric.about()) {
        let is_of_process = about.name.starts_with("process_") && about.service == "all";
        assert!(
            about.name.starts_with("sconce_") || is_of_process,
            "{}",
            about.name
        );
        assert_eq!(
            about.name.ends_with("_total"),
            about.kind == Kind::Counter,
            "{}",
            about.name
        );
        assert_eq!(
            about.name.ends_with("_seconds") && !about.name.ends_with("time_seconds"),
            about.kind == Kind::Histogram,
            "{}",
            about.name
        );
        assert!(
            about.help.ends_with('.') && !about.help.contains(['\n', '\\', '|']),
            "{}",
            about.name
        );
        assert!(!about.labels.contains(&"le"), "{}", about.name);
    }
}

#[test]
fn the_operators_table_is_the_list() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/operating/metrics.md");
    let text = std::fs::read_to_string(path).unwrap();
    let unit = |about: &About| match about.name.trim_end_matches("_total").rsplit_once('_') {
        Some((_, "bytes")) => "bytes",
        Some((_, "seconds")) => "seconds",
        _ => "",
    };
    let mut wanted = String::new();
    for about in Metric::ALL.iter().map(|metric| metric.about()) {
        let labels: Vec<String> = about.labels.iter().map(|label| format!("`{label}`")).collect();
        let (name, kind, labels) = (about.name, about.kind.name(), labels.join(", "));
        wanted += &format!(
            "| `{name}` | {kind} | {} | {labels} | {} | {} |\n",
            unit(&about),
            about.service,
            about.help
        );
    }
    let table: String = text
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| line.to_owned() + "\n")
        .collect();
    assert!(table == wanted, "{path}: its table is to be\n\n{wanted}");
}

/// Each line's value by what is before it.
fn values(page: &Page) -> BTreeMap<String, String> {
    let text = page.to_string();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .filter_map(|line| line.rsplit_once(' '))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

const OF_VOLUMES: page::OfOperations = page::OfOperations {
    seconds: Metric::VolumeSeconds,
    bytes: Metric::VolumeBytes,
    errors: Metric::VolumeErrors,
};

#[test]
fn operations_of_all_threads_are_counted_by_kind_time_and_end() {
    let (one, other) = (Operations::default(), Operations::default());
    let threads = [&one, &other];
    let (micros, second) = (Duration::from_micros, Duration::from_secs(1));
    threads[0].ended(Action::Write, micros(10), 4096, Status::Ok);
    threads[1].ended(Action::Write, micros(11), 512, Status::Retry);
    threads[1].ended(Action::Write, 31 * second, 0, Status::Damaged);
    threads[1].ended(Action::Read, second, 1, Status::Ok);
    // What a flush or a question names is no data.
    threads[1].ended(Action::Extents, second, 1 << 40, Status::Ok);
    let mut page = Page::default();
    page.operations(
        OF_VOLUMES,
        &[],
        &[Action::Read, Action::Write, Action::Extents],
        &threads,
    );
    let values = values(&page);
    let of = |name: &str| values[&format!("sconce_volume_router_operation_{name}")].as_str();
    // A bound is within its bucket.
    assert_eq!(of("seconds_bucket{operation=\"write\",le=\"0.00001\"}"), "1");
    assert_eq!(of("seconds_bucket{operation=\"write\",le=\"0.000025\"}"), "2");
    assert_eq!(of("seconds_bucket{operation=\"write\",le=\"30\"}"), "2");
    assert_eq!(of("seconds_bucket{operation=\"write\",le=\"+Inf\"}"), "3");
    assert_eq!(of("seconds_count{operation=\"write\"}"), "3");
    assert_eq!(of("seconds_sum{operation=\"write\"}"), "31.000021");
    assert_eq!(of("seconds_sum{operation=\"read\"}"), "1");
    // Those of what was done.
    assert_eq!(of("bytes_total{operation=\"write\"}"), "4096");
    assert_eq!(of("bytes_total{operation=\"extents\"}"), "0");
    assert_eq!(of("errors_total{operation=\"write\",status=\"retry\"}"), "1");
    assert_eq!(of("errors_total{operation=\"write\",status=\"damaged\"}"), "1");
    assert_eq!(of("errors_total{operation=\"write\",status=\"reject\"}"), "0");
    assert_eq!(of("errors_total{operation=\"read\",status=\"retry\"}"), "0");
}

#[test]
fn a_page_groups_what_was_told_of_a_metric_and_escapes_what_labels_say() {
    let mut page = Page::default();
    page.number(Metric::VolumeUnstored, &["b"], 2);
    page.number(Metric::VolumeInfo, &["a", "/vm \"1\"\\\n.raw"], 1);
    page.yes_or_no(Metric::VolumeServing, &["a"], true);
    page.number(Metric::VolumeUnstored, &["a"], 1);
    let wanted = "\
# HELP sconce_volume_info 1 for each volume of the node: joins `volume`, which the other metrics have, with its path.
# TYPE sconce_volume_info gauge
sconce_volume_info{volume=\"a\",path=\"/vm \\\"1\\\"\\\\\\n.raw\"} 1
# HELP sconce_volume_serving 1 while it is served, else 0.
# TYPE sconce_volume_serving gauge
sconce_volume_serving{volume=\"a\"} 1
# HELP sconce_volume_unstored_bytes Acknowledged data that is only in the write buffer.
# TYPE sconce_volume_unstored_bytes gauge
sconce_volume_unstored_bytes{volume=\"b\"} 2
sconce_volume_unstored_bytes{volume=\"a\"} 1
";
    assert_eq!(page.to_string(), wanted);
}

#[test]
fn a_process_tells_what_the_system_knows_of_it() {
    let mut page = Page::default();
    page.process("tester", "node-1", "0");
    let values = values(&page);
    let number = |name: &str| values[name].parse::<f64>().unwrap();
    assert_eq!(
        values["sconce_build_info{service=\"tester\",node=\"node-1\",version=\"0\"}"],
        "1"
    );
    assert!(number("process_resident_memory_bytes") > 1e6);
    assert!(number("process_virtual_memory_bytes") >= number("process_resident_memory_bytes"));
    assert!(number("process_open_fds") >= 3.0);
    assert!(number("process_max_fds") >= number("process_open_fds"));
    assert!(number("process_threads") >= 1.0);
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    let started = number("process_start_time_seconds");
    // To a second, and to what the machine's clock was set since it booted.
    assert!((now.as_secs_f64() - started).abs() < 86400.0, "{started}");
    let before = number("process_cpu_seconds_total");
    let begun = std::time::Instant::now();
    let mut after = before;
    // It counts in hundredths: until one has been used.
    while after <= before && begun.elapsed() < Duration::from_secs(60) {
        let mut page = Page::default();
        page.process("tester", "node-1", "0");
        after = self::values(&page)["process_cpu_seconds_total"].parse().unwrap();
    }
    assert!(after > before);
}
