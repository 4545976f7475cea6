//! The fs-router's cache of clusters: it spares the storage-router, outlives its process, and whatever is done to its file
//! a guest reads what was written.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;

use anyhow::{Context, Result, ensure};
use sconce_tests::cluster::{Cluster, SOON, Service};
use sconce_tests::nbd::{Ask, Nbd};
use sconce_tests::{edit, wait};

const DISK: &str = "/vm1/disk.raw";
const MIB: u32 = 1 << 20;
const MIBS: u64 = 8;
/// Clusters of that.
const CLUSTERS: u64 = MIBS * 256;

fn block(number: u64) -> Vec<u8> {
    let mut bytes = vec![0; MIB as usize];
    fastrand::Rng::with_seed(number).fill(&mut bytes);
    bytes
}

fn open(cluster: &Cluster, volume: &str) -> Result<Nbd> {
    Ok(Nbd::connect(&cluster.nbd_socket(), volume, SOON)?)
}

fn read_all(client: &mut Nbd) -> Result<()> {
    for number in 0..MIBS {
        let read = client.ask(Ask::Read, number * u64::from(MIB), MIB, &[])?;
        ensure!(read == block(number), "MiB {number} is not what was written");
    }
    Ok(())
}

/// Reads all while no storage-router answers.
fn read_all_alone(cluster: &Cluster, client: &mut Nbd) -> Result<()> {
    cluster.signal(Service::StorageRouter, "STOP")?;
    let read = read_all(client);
    cluster.signal(Service::StorageRouter, "CONT")?;
    read
}

fn counter(cluster: &Cluster, name: &str) -> Result<u64> {
    let text = fs::read_to_string(cluster.path("fs-router.prom")).unwrap_or_default();
    let line = format!("sconce_cache_{name}{{cache=\"clusters\"}} ");
    let value = text.lines().find_map(|found| found.strip_prefix(line.as_str()));
    value.map_or(Ok(0), |value| value.parse().context("a counter"))
}

fn counted(cluster: &Cluster, name: &str, least: u64) -> Result<()> {
    let what = format!("the cache's {name} to be {least} or more");
    wait::until(&what, SOON, || {
        Ok((counter(cluster, name)? >= least).then_some(()))
    })?;
    Ok(())
}

fn restart_fs_router(cluster: &Cluster) -> Result<Nbd> {
    let before = cluster.kill(Service::FsRouter)?;
    cluster.restarted(Service::FsRouter, before)?;
    cluster.ready()?;
    open(cluster, DISK)
}

#[test]
fn what_was_read_is_read_again_without_a_storage_router_and_never_wrong() -> Result<()> {
    let mut cluster = Cluster::start_with(|run| {
        let directory = run.join("cache").display().to_string();
        edit::set(run, "fs-router", "cache.directory", directory)?;
        edit::set(run, "fs-router", "cache.size", "64 MiB")
    })?;
    cluster.announce("cannot announce this node");
    cluster.create(DISK, "16M")?;
    let mut client = open(&cluster, DISK)?;
    for number in 0..MIBS {
        client.ask(Ask::Write, number * u64::from(MIB), MIB, &block(number))?;
    }
    drop(client);
    cluster.sconce(["volume", "sync", DISK])?;
    // What was written is in the write buffer no more.
    cluster.stop_service(Service::VolumeRouter)?;
    fs::remove_dir_all(cluster.path("buffer"))?;
    cluster.start_service(Service::VolumeRouter)?;
    cluster.ready()?;

    let mut client = open(&cluster, DISK)?;
    read_all(&mut client)?;
    counted(&cluster, "misses_total", CLUSTERS)?;
    read_all_alone(&cluster, &mut client)?;
    counted(&cluster, "hits_total", CLUSTERS)?;
    counted(&cluster, "pieces", CLUSTERS)?;
    ensure!(
        counter(&cluster, "misses_total")? == CLUSTERS,
        "a second read missed"
    );

    // A clone reads the clusters of what it is a clone of.
    cluster.sconce(["snapshot", "create", &format!("{DISK}@golden")])?;
    for clone in ["/vm2/disk.raw", "/vm3/disk.raw"] {
        cluster.sconce(["clone", &format!("{DISK}@golden"), clone])?;
        let mut clone = open(&cluster, clone)?;
        clone.ask(Ask::Read, 15 << 20, 4096, &[])?;
        read_all(&mut clone)?;
    }
    counted(&cluster, "hits_total", 3 * CLUSTERS)?;
    ensure!(counter(&cluster, "misses_total")? == CLUSTERS, "a clone fetched");

    drop(client);
    let mut client = restart_fs_router(&cluster)?;
    counted(&cluster, "pieces", CLUSTERS)?;
    read_all_alone(&cluster, &mut client).context("after a restart")?;

    let file = cluster.path("cache/pieces");
    let opened = OpenOptions::new().write(true).open(&file)?;
    let length = opened.metadata()?.len();
    for at in (0..length).step_by(4096) {
        opened.write_all_at(b"not what was here", at + 1000)?;
    }
    read_all(&mut client).context("with a damaged cache")?;
    counted(&cluster, "damaged_total", CLUSTERS)?;
    counted(&cluster, "pieces", CLUSTERS)?;
    read_all_alone(&cluster, &mut client).context("once it was fetched anew")?;

    fs::remove_dir_all(cluster.path("cache"))?;
    read_all(&mut client).context("with a deleted cache")?;
    drop(client);
    let mut client = restart_fs_router(&cluster)?;
    read_all(&mut client).context("after a restart without a cache")?;
    counted(&cluster, "pieces", CLUSTERS)?;
    read_all_alone(&cluster, &mut client)?;
    drop(client);
    cluster.finish()
}
