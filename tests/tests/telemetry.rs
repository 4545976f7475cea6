//! Spans on real processes: one write is one trace through all services, and a collector that is away holds nobody up.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sconce_tests::another::Another;
use sconce_tests::cluster::{Cluster, SOON, Service};
use sconce_tests::collector::{Collector, Span};
use sconce_tests::nbd::{Ask, Nbd};
use sconce_tests::{edit, own_address, wait};

const DISK: &str = "/vm1/disk.raw";
const BLOCK: u32 = 4096;
/// So long the spans of one write are waited for before there is another: several times what a service keeps them for.
const ONE_WRITE: Duration = Duration::from_secs(20);

/// Settings with which each operation is recorded, or one in so many.
fn record(run_dir: &Path, address: SocketAddr, sample: i64) -> Result<()> {
    for service in Service::ALL {
        let otlp = format!("http://{address}");
        edit::set(run_dir, service.name(), "telemetry.otlp", otlp)?;
        edit::set(run_dir, service.name(), "telemetry.sample", sample)?;
        edit::set(run_dir, service.name(), "log.form", "json")?;
    }
    Ok(())
}

/// Waits until the collector has what is looked for.
fn until<T>(collector: &Collector, what: &str, mut find: impl FnMut(&[Span]) -> Option<T>) -> Result<T> {
    let found = wait::until(what, SOON, || Ok(find(&collector.spans())));
    Ok(found.with_context(|| came(collector))?.0)
}

/// For an error: how many came of each kind.
fn came(collector: &Collector) -> String {
    let mut names: BTreeMap<(String, String), usize> = BTreeMap::new();
    for span in collector.spans() {
        *names.entry((span.node, span.name)).or_default() += 1;
    }
    format!("these spans came: {names:?}")
}

/// Of a trace: node and name of each span.
fn of_trace<'a>(spans: &'a [Span], trace_id: &str) -> BTreeSet<(&'a str, &'a str)> {
    spans
        .iter()
        .filter(|span| span.trace_id == trace_id)
        .map(|span| (span.node.as_str(), span.name.as_str()))
        .collect()
}

#[test]
fn a_write_is_one_trace_from_its_front_end_to_the_back_end() -> Result<()> {
    let collector = Collector::start()?;
    let address = collector.address();
    let mut cluster = Cluster::start_with(|run_dir| record(run_dir, address, 1))?;
    // With the settings of the first.
    let (mut second, _) = Another::volume_router(&cluster, "vr-2")?;
    second.start(&cluster)?;
    let create = [
        "volume",
        "create",
        DISK,
        "--size",
        "64M",
        "--dtl",
        "sync",
        "--owner",
        "volume-router",
    ];
    cluster.sconce(create)?;
    let mut disk = Nbd::connect(&cluster.nbd_socket(), DISK, SOON)?;
    let wanted = BTreeSet::from([
        ("fs-router", "nbd.write"),
        ("fs-router", "volume.write"),
        ("volume-router", "volume.write"),
        ("volume-router", "twin.append"),
        ("vr-2", "twin.append"),
        ("volume-router", "volume.upload"),
        ("volume-router", "storage.put"),
        ("storage-router", "storage.put"),
        ("storage-router", "backend.put"),
    ]);
    // The spans of a trace come one after the other, from four processes.
    let mut lacks = None;
    let mut whole = |spans: &[Span]| {
        let front = spans.iter().filter(|span| span.name == "nbd.write");
        let mut traces = front.map(|span| span.trace_id.clone());
        traces.find(|trace| {
            let is_all = of_trace(spans, trace).is_superset(&wanted);
            is_all
                && is_a_tree(spans, trace)
                    .map_err(|error| lacks = Some(error))
                    .is_ok()
        })
    };
    // On a busy machine a write is sent twice, or its twin is given up meanwhile: then the next one is looked at too.
    let (trace, _) = wait::until("a write's spans of all services", 5 * SOON, || {
        wait::until("the twin to be in sync", SOON, || {
            Ok((cluster.show(DISK)?["dtl_state"] == "in_sync").then_some(()))
        })?;
        disk.ask(Ask::Write, 0, BLOCK, &[7; BLOCK as usize])?;
        cluster.sconce(["volume", "sync", DISK])?;
        let seen = wait::until("its spans", ONE_WRITE, || Ok(whole(&collector.spans())));
        Ok(seen.ok().map(|(trace, _)| trace))
    })
    .with_context(|| format!("of the last one: {lacks:?}; {}", came(&collector)))?;
    let spans = collector.spans();
    let front = spans
        .iter()
        .find(|span| span.name == "nbd.write" && span.trace_id == trace);
    let operation = &front.context("the first span")?.attributes["sconce.operation"];
    ensure!(
        trace.ends_with(operation.as_str()),
        "trace {trace} of operation {operation}: LTTng's events of it would not be found"
    );
    // What changes volumes is recorded always, and by the log lines that it leads to.
    until(&collector, "a takeover", |spans| {
        spans
            .iter()
            .find(|span| span.name == "volume.takeover" && !span.failed)
            .cloned()
    })?;
    cluster.sconce(["snapshot", "create", &format!("{DISK}@one"), "--wait-synced"])?;
    until(&collector, "a snapshot", |spans| {
        spans.iter().find(|span| span.name == "snapshot.take").cloned()
    })?;
    drop(disk);
    second.stop()?;
    cluster.announce("the twin of the write buffer is lost");
    cluster.announce("cannot be reached");
    cluster.finish()
}

/// Each span of the trace but one is below another one of it, and begins within its process's view of time after that.
fn is_a_tree(spans: &[Span], trace: &str) -> Result<()> {
    let spans: Vec<&Span> = spans.iter().filter(|span| span.trace_id == trace).collect();
    let by_id: BTreeMap<&str, &Span> = spans.iter().map(|span| (span.span_id.as_str(), *span)).collect();
    ensure!(by_id.len() == spans.len(), "two spans have one id: {spans:#?}");
    let roots = spans
        .iter()
        .filter(|span| span.parent.trim_matches('0').is_empty());
    ensure!(roots.count() == 1, "a trace has one first span: {spans:#?}");
    for span in &spans {
        ensure!(span.end >= span.start, "{span:#?} ends before it begins");
        if let Some(above) = by_id.get(span.parent.as_str()) {
            ensure!(span.start >= above.start, "{span:#?} begins before {above:#?}");
        } else {
            ensure!(
                span.parent.trim_matches('0').is_empty(),
                "{span:#?}: what it is below did not come"
            );
        }
    }
    Ok(())
}

#[test]
fn a_collector_that_is_away_holds_no_operation_up_and_gets_later_spans() -> Result<()> {
    let collector = Collector::start()?;
    let address = collector.address();
    let cluster = Cluster::start_with(|run_dir| record(run_dir, address, 10))?;
    cluster.create(DISK, "64M")?;
    let mut disk = Nbd::connect(&cluster.nbd_socket(), DISK, SOON)?;
    let mut write = |count: u64| -> Result<()> {
        for block in 0..count {
            disk.ask(Ask::Write, block * u64::from(BLOCK), BLOCK, &[7; BLOCK as usize])?;
        }
        Ok(())
    };
    let writes = |spans: &[Span]| spans.iter().filter(|span| span.name == "nbd.write").count();
    write(100)?;
    until(&collector, "the sampled writes", |spans| {
        (writes(spans) == 10).then_some(())
    })?;
    let log = || std::fs::read_to_string(cluster.path("fs-router.log"));
    let told = || -> Result<usize> { Ok(log()?.matches("takes no spans").count()) };
    // One that waits for the machine may have been told of before.
    let before = told()?;
    drop(collector);
    write(1000)?;
    wait::until("the outage to be noticed", SOON, || {
        Ok((told()? > before).then_some(()))
    })?;
    write(1000)?;
    let collector = Collector::start_at(address)?;
    write(100)?;
    // What waited comes too: an outage this short loses nothing.
    until(&collector, "the writes of the outage and after it", |spans| {
        (writes(spans) >= 210).then_some(())
    })?;
    // Each outage is told once, however often it is tried to end it.
    let log = log()?;
    let mut is_away = false;
    for line in log.lines() {
        let is_told = line.contains("takes no spans");
        ensure!(
            !(is_told && is_away),
            "the fs-router told of one outage twice:\n{log}"
        );
        is_away = is_told || is_away && !line.contains("takes spans again");
    }
    drop(disk);
    cluster.finish()
}

/// A collector that others wrote: `rotel`, where it is installed (`pip install rotel`).
#[test]
fn rotel_takes_the_spans() -> Result<()> {
    let Some(rotel) = rotel_is_here() else {
        eprintln!("no rotel here (pip install rotel): not tried");
        return Ok(());
    };
    let free =
        || -> Result<SocketAddr> { Ok(std::net::TcpListener::bind((own_address(), 0))?.local_addr()?) };
    let (grpc, http) = (free()?, free()?);
    let cluster = Cluster::prepare()?;
    record(cluster.run_dir(), http, 1)?;
    let said = cluster.path("rotel.out");
    let _rotel = Ended(
        Command::new(rotel)
            .args(["start", "--exporter", "blackhole", "--debug-log", "traces"])
            .args(["--debug-log-verbosity", "detailed"])
            .args(["--otlp-grpc-endpoint", &grpc.to_string()])
            .args(["--otlp-http-endpoint", &http.to_string()])
            .stdin(Stdio::null())
            .stdout(std::fs::File::create(&said)?)
            .stderr(std::fs::File::create(cluster.path("rotel.err"))?)
            .spawn()?,
    );
    cluster.script(&["up"])?;
    cluster.create(DISK, "64M")?;
    let mut disk = Nbd::connect(&cluster.nbd_socket(), DISK, SOON)?;
    disk.ask(Ask::Write, 0, BLOCK, &[7; BLOCK as usize])?;
    wait::until("rotel to tell of the write", SOON, || {
        let said = std::fs::read_to_string(&said)? + &std::fs::read_to_string(cluster.path("rotel.err"))?;
        Ok(said.contains("nbd.write").then_some(()))
    })?;
    drop(disk);
    cluster.finish()
}

struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The program of the Python package.
fn rotel_is_here() -> Option<std::path::PathBuf> {
    let found = Command::new("python3")
        .args([
            "-c",
            "import rotel, os; print(os.path.join(os.path.dirname(rotel.__file__), 'rotel-agent'))",
        ])
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let path = std::path::PathBuf::from(String::from_utf8(found.stdout).ok()?.trim());
    path.is_file().then_some(path)
}
