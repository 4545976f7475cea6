//! Tracepoints on real processes: each operation is seen at each step of its path, in every service. A tracepoint that is not
//! registered fails in silence, so the list of those that came is held against the list of all.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use anyhow::{Context, Result, ensure};
use sconce_tests::another::Another;
use sconce_tests::cluster::{Cluster, SOON, Service};
use sconce_tests::lttng::{self, Recorded, Recording};
use sconce_tests::nbd::{Ask, Nbd};
use sconce_tests::wait;
use sconce_tracing::Point;

const DISK: &str = "/vm1/disk.raw";
const TWINNED: &str = "/vm1/twinned.raw";
const CLONE: &str = "/vm1/clone.raw";
const BLOCK: u32 = 4096;
/// So many operations have to have gone exactly their way. More are done: on a busy machine one of them is sent again at times, or waits
/// for what another one does.
const BLOCKS: u64 = 16;
const BLOCKS_DONE: u64 = 2 * BLOCKS;
const FLUSHES: usize = 3;
const FLUSHES_DONE: usize = FLUSHES + 3;
/// Likewise: one of them has to come from the back end.
const CLONE_READS: usize = 8;

const FS: Service = Service::FsRouter;
const VOLUME: Service = Service::VolumeRouter;
const STORAGE: Service = Service::StorageRouter;

type Path = &'static [(Service, &'static str)];

/// What every operation comes by on its way in and on its way out.
const IN: Path = &[
    (FS, "sconce_nbd:entry"),
    (FS, "sconce_bus:request_out"),
    (VOLUME, "sconce_bus:request_in"),
    (VOLUME, "sconce_volume:receive"),
];
const OUT: Path = &[
    (VOLUME, "sconce_volume:ack"),
    (VOLUME, "sconce_bus:reply_out"),
    (FS, "sconce_bus:reply_in"),
];
const WRITE: Path = &[(VOLUME, "sconce_volume:append")];
const WRITE_TWINNED: Path = &[
    (VOLUME, "sconce_volume:append"),
    (VOLUME, "sconce_volume:twin_held"),
];
/// What a batch comes by on its way to the twin, which is another volume-router's.
const TWIN: Path = &[
    (VOLUME, "sconce_volume:twin_send"),
    (VOLUME, "sconce_bus:request_out"),
    (VOLUME, "sconce_bus:request_in"),
    (VOLUME, "sconce_volume:twin_receive"),
    (VOLUME, "sconce_bus:reply_out"),
    (VOLUME, "sconce_bus:reply_in"),
    (VOLUME, "sconce_volume:twin_ack"),
];
const FLUSH: Path = &[
    (VOLUME, "sconce_volume:flush_entry"),
    (VOLUME, "sconce_volume:flush_exit"),
];
const READ: Path = &[
    (VOLUME, "sconce_volume:map_lookup"),
    (VOLUME, "sconce_volume:buffer_hit"),
];
const READ_STORED: Path = &[
    (VOLUME, "sconce_volume:map_lookup"),
    (VOLUME, "sconce_volume:stored_location"),
];
/// What a read of stored clusters comes by once the owner has answered.
const STORED: Path = &[
    (FS, "sconce_bus:request_out"),
    (STORAGE, "sconce_bus:request_in"),
    (STORAGE, "sconce_storage:get"),
    (STORAGE, "sconce_backend:get"),
    (STORAGE, "sconce_backend:exit"),
    (STORAGE, "sconce_storage:exit"),
    (STORAGE, "sconce_bus:reply_out"),
    (FS, "sconce_bus:reply_in"),
];
const EXIT: Path = &[(FS, "sconce_nbd:exit")];
const UPLOAD: Path = &[
    (VOLUME, "sconce_volume:upload_entry"),
    (VOLUME, "sconce_bus:request_out"),
    (STORAGE, "sconce_bus:request_in"),
    (STORAGE, "sconce_storage:put"),
    (STORAGE, "sconce_backend:put"),
    (STORAGE, "sconce_backend:exit"),
    (STORAGE, "sconce_storage:exit"),
    (STORAGE, "sconce_bus:reply_out"),
    (VOLUME, "sconce_bus:reply_in"),
    (VOLUME, "sconce_volume:upload_exit"),
];
/// A volume this small has nothing to scrub; `background::run` brackets a scrub's work as it does an upload's.
const NOT_HERE: [&str; 2] = ["sconce_volume:scrub_entry", "sconce_volume:scrub_exit"];

#[test]
fn each_operation_is_seen_at_each_step_in_every_service() -> Result<()> {
    if !lttng::is_here()? {
        return Ok(());
    }
    let recording = Recording::start()?;
    let mut cluster = Cluster::prepare()?;
    let (name, home) = recording.environment();
    cluster.give(name, home);
    cluster.script(&["up"])?;
    let mut pids = Vec::new();
    for service in Service::ALL {
        pids.push((cluster.pid(service)?, service));
    }
    work(&cluster)?;
    let (mut second, _) = Another::volume_router(&cluster, "vr-2")?;
    let (name, home) = recording.environment();
    let home = home.to_str().context("the recording's directory is no text")?;
    second.start_with(&cluster, &[(name, home)])?;
    pids.push((second.pid()?, VOLUME));
    write_twinned(&cluster)?;
    second.stop()?;
    cluster.announce("the twin of the write buffer is lost");
    cluster.announce("cannot be reached");
    cluster.finish()?;
    let trace = Trace::of(recording.finish()?, pids)?;
    trace.has("write", BLOCKS, &[IN, WRITE, OUT, EXIT])?;
    trace.has("write", BLOCKS, &[IN, WRITE_TWINNED, OUT, EXIT])?;
    trace.has("write", BLOCKS, &[TWIN])?;
    trace.has("flush", FLUSHES as u64, &[IN, FLUSH, OUT, EXIT])?;
    trace.has("read", BLOCKS, &[IN, READ, OUT, EXIT])?;
    trace.has("read", 1, &[IN, READ_STORED, OUT, STORED, EXIT])?;
    trace.has("put", 1, &[UPLOAD])?;
    trace.is_complete()
}

/// A library that cannot be loaded stands for one that is not there: the binaries must not be linked to it.
#[test]
fn without_liblttng_ust_the_services_run_and_say_so_once() -> Result<()> {
    let shadow = tempfile::tempdir()?;
    for library in ["liblttng-ust.so.1", "liblttng-ust-tracepoint.so.1"] {
        fs::write(shadow.path().join(library), "no library")?;
    }
    let mut cluster = Cluster::prepare()?;
    cluster.give("LD_LIBRARY_PATH", shadow.path());
    cluster.give("SCONCE_LOG", "info,sconce_tracing=debug");
    cluster.script(&["up"])?;
    cluster.create(DISK, "64M")?;
    let mut disk = Nbd::connect(&cluster.nbd_socket(), DISK, SOON)?;
    disk.ask(Ask::Write, 0, BLOCK, &[7; BLOCK as usize])?;
    for service in Service::ALL {
        let log = fs::read_to_string(cluster.path(&format!("{}.log", service.name())))?;
        let said = log.matches("tracepoints cannot be recorded").count();
        ensure!(said == 1, "{} said it {said} times:\n{log}", service.name());
    }
    drop(disk);
    cluster.finish()
}

/// Writes, flushes and reads each block for itself, then reads what only the back ends may give.
fn work(cluster: &Cluster) -> Result<()> {
    cluster.create(DISK, "64M")?;
    let mut disk = Nbd::connect(&cluster.nbd_socket(), DISK, SOON)?;
    let offsets = || (0..BLOCKS_DONE).map(|block| block * 3 * u64::from(BLOCK));
    let flush_after = usize::try_from(BLOCKS_DONE)? / FLUSHES_DONE;
    let mut flushed = 0;
    for (index, offset) in offsets().enumerate() {
        disk.ask(Ask::Write, offset, BLOCK, &[7; BLOCK as usize])?;
        // Each has something to sync.
        if index % flush_after == 0 && flushed < FLUSHES_DONE {
            disk.ask(Ask::Flush, 0, 0, &[])?;
            flushed += 1;
        }
    }
    for offset in offsets() {
        ensure!(disk.ask(Ask::Read, offset, BLOCK, &[])? == [7; BLOCK as usize]);
    }
    cluster.sconce(["snapshot", "create", &format!("{DISK}@one"), "--wait-synced"])?;
    cluster.sconce(["clone", &format!("{DISK}@one"), CLONE])?;
    let mut clone = Nbd::connect(&cluster.nbd_socket(), CLONE, SOON)?;
    for offset in offsets().take(CLONE_READS) {
        ensure!(clone.ask(Ask::Read, offset, BLOCK, &[])? == [7; BLOCK as usize]);
    }
    // The same through FUSE; that these steps are there is judged by the list.
    fs::write(cluster.mounted("/vm1/notes.txt"), "seen")?;
    ensure!(fs::read(cluster.mounted("/vm1/notes.txt"))? == b"seen");
    cluster.sconce(["volume", "sync", "/vm1/notes.txt"]).map(drop)
}

/// Writes one block after the other to a volume with a twin that is in sync.
fn write_twinned(cluster: &Cluster) -> Result<()> {
    cluster.sconce([
        "volume",
        "create",
        TWINNED,
        "--size",
        "64M",
        "--dtl",
        "sync",
        "--owner",
        "volume-router",
    ])?;
    let mut disk = Nbd::connect(&cluster.nbd_socket(), TWINNED, SOON)?;
    wait::until("the twin to be in sync", SOON, || {
        let shown = cluster.show(TWINNED)?;
        Ok((shown["dtl_state"] == "in_sync").then_some(()))
    })?;
    for block in 0..BLOCKS_DONE {
        disk.ask(Ask::Write, block * u64::from(BLOCK), BLOCK, &[9; BLOCK as usize])?;
    }
    Ok(())
}

/// The events, by operation.
struct Trace {
    operations: BTreeMap<String, Vec<Recorded>>,
    pids: Vec<(u32, Service)>,
}

impl Trace {
    fn of(events: Vec<Recorded>, pids: Vec<(u32, Service)>) -> Result<Trace> {
        let mut operations: BTreeMap<String, Vec<Recorded>> = BTreeMap::new();
        for event in events {
            let operation = event.field("operation")?.to_owned();
            operations.entry(operation).or_default().push(event);
        }
        Ok(Trace { operations, pids })
    }

    fn service(&self, event: &Recorded) -> Option<Service> {
        let found = self.pids.iter().find(|(pid, _)| *pid == event.pid);
        found.map(|(_, service)| *service)
    }

    /// At least `count` operations that do `action` went exactly this way, each step once and in order of time.
    fn has(&self, action: &str, count: u64, path: &[Path]) -> Result<()> {
        let path: Vec<(Service, &str)> = path.concat();
        let mut nearest = Vec::new();
        let mut found = 0;
        for steps in self.operations.values() {
            if steps.first().and_then(|first| first.field("action").ok()) != Some(action) {
                continue;
            }
            let mut went = Vec::new();
            let mut is_ok = true;
            for step in steps {
                let service = self.service(step).with_context(|| format!("whose is {step:?}"))?;
                went.push((service, step.point.as_str()));
                is_ok &= step.field("status")? == "ok";
            }
            if went == path && is_ok {
                found += 1;
            } else {
                nearest = went;
            }
        }
        ensure!(
            found >= count,
            "{found} operations that {action} went the way {path:?}, not {count}; another went {nearest:?}"
        );
        Ok(())
    }

    /// Every tracepoint of the list came at least once.
    fn is_complete(&self) -> Result<()> {
        let seen: BTreeSet<&str> = self
            .operations
            .values()
            .flatten()
            .map(|event| event.point.as_str())
            .collect();
        let names = Point::ALL.iter().map(|point| point.name());
        let missing: Vec<&str> = names
            .filter(|name| !seen.contains(name) && !NOT_HERE.contains(name))
            .collect();
        ensure!(missing.is_empty(), "never recorded: {missing:?}");
        Ok(())
    }
}
