//! The fs-router's cache of clusters spares the storage-router, the storage-router's cache of objects the back ends; both outlive
//! their processes, and whatever is done to their files a guest reads what was written.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use sconce_tests::cluster::{Cluster, SOON, Service};
use sconce_tests::metrics::Metrics;
use sconce_tests::nbd::{Ask, Nbd};
use sconce_tests::{edit, wait};

const DISK: &str = "/vm1/disk.raw";
const MIB: u32 = 1 << 20;
const MIBS: u64 = 8;
/// Clusters of that.
const CLUSTERS: u64 = MIBS * 256;
/// So often it is tried to read all from the cache.
const ALONE_MAX: u32 = 3;

fn block(number: u64) -> Vec<u8> {
    let mut bytes = vec![0; MIB as usize];
    fastrand::Rng::with_seed(number).fill(&mut bytes);
    bytes
}

fn open(cluster: &Cluster, volume: &str) -> Result<Nbd> {
    Ok(Nbd::connect(&cluster.nbd_socket(), volume, SOON)?)
}

fn read_all(client: &mut Nbd) -> Result<()> {
    try_to_read_all(client)?.context("reading")
}

/// The inner error is that of a read that was not answered, or with an error; the outer one says that what was read was wrong.
fn try_to_read_all(client: &mut Nbd) -> Result<io::Result<()>> {
    for number in 0..MIBS {
        match client.ask(Ask::Read, number * u64::from(MIB), MIB, &[]) {
            Ok(read) => ensure!(read == block(number), "MiB {number} is not what was written"),
            Err(error) => return Ok(Err(error)),
        }
    }
    Ok(Ok(()))
}

/// Reads all while no storage-router answers. A cache whose disk was too slow is off for a while, and then what it had is not to be had:
/// that is tried again once it is on and whole. Gives how often it had missed before.
fn read_all_alone(cluster: &Cluster, client: &mut Nbd, counters: Counters) -> Result<f64> {
    for _ in 0..ALONE_MAX {
        let misses = counters.get("misses_total");
        cluster.signal(Service::StorageRouter, "STOP")?;
        let read = try_to_read_all(client);
        cluster.signal(Service::StorageRouter, "CONT")?;
        let Err(error) = read? else {
            return Ok(misses);
        };
        eprintln!("read without a storage-router: {error}");
        cluster.ready()?;
        counters.is_on()?;
        // What was asked of the last one may still be answered.
        *client = open(cluster, DISK)?;
        // What comes while too much waits to be written is not taken: then it is read once more.
        wait::until("all to be in the cache", SOON, || {
            read_all(client)?;
            Ok((counters.get("pieces") >= CLUSTERS as f64).then_some(()))
        })?;
    }
    bail!("{ALONE_MAX} times not all was read without a storage-router")
}

/// A cache's counters.
#[derive(Clone, Copy)]
struct Counters {
    metrics: Metrics,
    cache: &'static str,
}

impl Counters {
    /// 0 while the service is away.
    fn get(self, name: &str) -> f64 {
        let name = format!("sconce_cache_{name}{{cache=\"{}\"}}", self.cache);
        self.metrics.number(&name).unwrap_or(0.0)
    }

    fn reach(self, name: &str, least: u64) -> Result<()> {
        let what = format!("the cache's {name} to be {least} or more");
        wait::until(&what, SOON, || Ok((self.get(name) >= least as f64).then_some(())))?;
        Ok(())
    }

    /// Waits until the cache has a disk that it works with.
    fn is_on(self) -> Result<()> {
        let name = format!("sconce_cache_off{{cache=\"{}\"}}", self.cache);
        let is_on = || Ok((self.metrics.number(&name) == Some(0.0)).then_some(()));
        wait::until("the cache to be on", SOON, is_on)?;
        Ok(())
    }

    fn has_misses(self, count: f64) -> bool {
        self.get("misses_total") == count
    }
}

/// A cluster in which this service has a cache.
fn start(service: Service, cache: &'static str) -> Result<(Cluster, Counters)> {
    let mut metrics = None;
    let mut cluster = Cluster::start_with(|run| {
        // Longer than a storage-router is stopped here: the registry is its own.
        edit::set(run, "volume-router", "volumes.lease", "60s")?;
        let directory = run.join(cache).display().to_string();
        edit::set(run, service.name(), "cache.directory", directory)?;
        edit::set(run, service.name(), "cache.size", "64 MiB")?;
        metrics = Some(Metrics::switch_on(run, service)?);
        Ok(())
    })?;
    // Of a disk that others keep busy.
    cluster.announce("the cache is off");
    let metrics = metrics.context("its metrics")?;
    Ok((cluster, Counters { metrics, cache }))
}

fn restart_fs_router(cluster: &Cluster) -> Result<Nbd> {
    let before = cluster.kill(Service::FsRouter)?;
    cluster.restarted(Service::FsRouter, before)?;
    cluster.ready()?;
    open(cluster, DISK)
}

/// Writes all, and has none of it in the write buffer any more.
fn write_and_forget(cluster: &Cluster) -> Result<()> {
    cluster.create(DISK, "16M")?;
    let mut client = open(cluster, DISK)?;
    for number in 0..MIBS {
        client.ask(Ask::Write, number * u64::from(MIB), MIB, &block(number))?;
    }
    drop(client);
    cluster.sconce(["volume", "sync", DISK])?;
    // What was written is in the write buffer no more.
    cluster.stop_service(Service::VolumeRouter)?;
    fs::remove_dir_all(cluster.path("buffer"))?;
    cluster.start_service(Service::VolumeRouter)?;
    cluster.ready()
}

#[test]
fn what_was_read_is_read_again_without_a_storage_router_and_never_wrong() -> Result<()> {
    let (mut cluster, counters) = start(Service::FsRouter, "clusters")?;
    cluster.announce("cannot announce this node");
    write_and_forget(&cluster)?;

    let mut client = open(&cluster, DISK)?;
    read_all(&mut client)?;
    counters.reach("misses_total", CLUSTERS)?;
    let misses = read_all_alone(&cluster, &mut client, counters)?;
    counters.reach("hits_total", CLUSTERS)?;
    counters.reach("pieces", CLUSTERS)?;
    ensure!(counters.has_misses(misses), "a second read missed");

    // A clone reads the clusters of what it is a clone of.
    cluster.sconce(["snapshot", "create", &format!("{DISK}@golden")])?;
    for clone in ["/vm2/disk.raw", "/vm3/disk.raw"] {
        cluster.sconce(["clone", &format!("{DISK}@golden"), clone])?;
        let mut clone = open(&cluster, clone)?;
        clone.ask(Ask::Read, 15 << 20, 4096, &[])?;
        read_all(&mut clone)?;
    }
    counters.reach("hits_total", 3 * CLUSTERS)?;
    ensure!(counters.has_misses(misses), "a clone fetched");

    drop(client);
    let mut client = restart_fs_router(&cluster)?;
    counters.reach("pieces", CLUSTERS)?;
    read_all_alone(&cluster, &mut client, counters).context("after a restart")?;

    let file = cluster.path("clusters/pieces");
    let opened = OpenOptions::new().write(true).open(&file)?;
    let length = opened.metadata()?.len();
    for at in (0..length).step_by(4096) {
        opened.write_all_at(b"not what was here", at + 1000)?;
    }
    read_all(&mut client).context("with a damaged cache")?;
    counters.reach("damaged_total", CLUSTERS)?;
    counters.reach("pieces", CLUSTERS)?;
    read_all_alone(&cluster, &mut client, counters).context("once it was fetched anew")?;

    fs::remove_dir_all(cluster.path("clusters"))?;
    read_all(&mut client).context("with a deleted cache")?;
    drop(client);
    let mut client = restart_fs_router(&cluster)?;
    read_all(&mut client).context("after a restart without a cache")?;
    counters.reach("pieces", CLUSTERS)?;
    read_all_alone(&cluster, &mut client, counters)?;
    drop(client);
    cluster.finish()
}

/// Where an object is put so that its back end does not find it.
fn away(object: &Path) -> PathBuf {
    let mut path = object.as_os_str().to_owned();
    path.push(".away");
    path.into()
}

/// Pieces of 64 KiB of what was written.
const PIECES: u64 = MIBS * 16;

#[test]
fn what_a_storage_router_read_is_read_again_without_its_back_end() -> Result<()> {
    let (mut cluster, counters) = start(Service::StorageRouter, "objects")?;
    for told in [
        "cannot announce this node",
        "back end fails",
        "storing does not work now",
    ] {
        cluster.announce(told);
    }
    write_and_forget(&cluster)?;
    let mut client = open(&cluster, DISK)?;
    read_all(&mut client)?;
    counters.reach("pieces", PIECES)?;
    let before = cluster.kill(Service::StorageRouter)?;
    cluster.restarted(Service::StorageRouter, before)?;
    cluster.ready()?;
    counters.reach("pieces", PIECES).context("in the next process")?;

    let mut objects = cluster.files_in("backend/local")?;
    objects.retain(|file| file.to_string_lossy().contains("/sco/"));
    ensure!(!objects.is_empty(), "nothing was stored");
    for object in &objects {
        fs::rename(object, away(object))?;
    }
    let read = read_all(&mut client);
    for object in &objects {
        fs::rename(away(object), object)?;
    }
    read?;
    drop(client);
    cluster.finish()
}
