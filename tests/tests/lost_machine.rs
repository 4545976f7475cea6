//! Proof 5: what a machine kept is gone; the back ends bring the volume back, even without the registry.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sconce_tests::cluster::{Cluster, SOON, Service};
use sconce_tests::nbd::{Ask, Nbd};
use sconce_tests::seed;
use sconce_tests::writer::Writer;

const MIB: u32 = 1 << 20;

fn open(cluster: &Cluster, volume: &str) -> Result<Nbd> {
    Nbd::connect(&cluster.nbd_socket(), volume, SOON).with_context(|| format!("connecting to {volume}"))
}

/// A MiB that depends on `number` alone.
fn block(number: u64) -> Vec<u8> {
    let mut bytes = vec![0; MIB as usize];
    fastrand::Rng::with_seed(number).fill(&mut bytes);
    bytes
}

fn write(nbd: &mut Nbd, numbers: std::ops::Range<u64>) -> Result<()> {
    for number in numbers {
        nbd.ask(Ask::Write, number * u64::from(MIB), MIB, &block(number))?;
    }
    nbd.ask(Ask::Flush, 0, 0, &[]).map(drop).map_err(Into::into)
}

fn holds(nbd: &mut Nbd, numbers: std::ops::Range<u64>) -> Result<()> {
    for number in numbers {
        let found = nbd.ask(Ask::Read, number * u64::from(MIB), MIB, &[])?;
        ensure!(found == block(number), "MiB {number} is not what was written");
    }
    Ok(())
}

fn lose(cluster: &Cluster, directory: &str) -> Result<()> {
    fs::remove_dir_all(cluster.path(directory)).with_context(|| format!("removing {directory}"))
}

#[test]
fn a_lost_write_buffer_comes_back_as_of_the_last_sync() -> Result<()> {
    let mut cluster = Cluster::start()?;
    cluster.create("/disk", "64M")?;
    let mut nbd = open(&cluster, "/disk")?;
    write(&mut nbd, 0..24)?;
    cluster.sconce(["volume", "sync", "/disk"])?;
    drop(nbd);

    for service in Service::ALL {
        cluster.kill_for_good(service)?;
    }
    lose(&cluster, "buffer")?;
    cluster.announce("only in the write buffer");
    for service in [Service::StorageRouter, Service::VolumeRouter, Service::FsRouter] {
        cluster.start_service(service)?;
    }
    cluster.ready()?;
    // Acknowledged writes may have been in that buffer only, so an operator has to say that the loss is accepted.
    cluster.sconce(["volume", "takeover", "/disk", "--force"])?;
    let mut nbd = open(&cluster, "/disk")?;
    holds(&mut nbd, 0..24)?;
    write(&mut nbd, 24..32)?;
    holds(&mut nbd, 0..32)?;
    cluster.finish()
}

#[test]
fn a_write_buffer_lost_while_writing_leaves_a_consistent_moment() -> Result<()> {
    let seed = seed();
    let mut cluster = Cluster::start()?;
    cluster.create("/stamped", "32M")?;
    let mut writer = Writer::connect(&cluster.nbd_socket(), "/stamped", seed)?;
    ensure!(writer.write_for(Duration::from_secs(2))?, "the connection broke");
    writer.check()?;
    cluster.sconce(["volume", "sync", "/stamped"])?;
    let synced = writer.written();
    ensure!(writer.write_for(Duration::from_secs(1))?, "the connection broke");
    for service in Service::ALL {
        cluster.kill_for_good(service)?;
    }
    lose(&cluster, "buffer")?;
    cluster.announce("only in the write buffer");
    for service in [Service::StorageRouter, Service::VolumeRouter, Service::FsRouter] {
        cluster.start_service(service)?;
    }
    cluster.ready()?;
    cluster.sconce(["volume", "takeover", "/stamped", "--force"])?;
    // A prefix that has at least what was synced; what was acknowledged later is what the operator gave up.
    writer.accept_loss_beyond(synced);
    writer.reconnect()?;
    cluster.finish()
}

#[test]
fn a_lost_registry_is_written_again_from_the_back_ends() -> Result<()> {
    let cluster = Cluster::start()?;
    let volumes = ["/vm1/disk.raw", "/vm2/a/b/disk.raw", "/top"];
    for volume in volumes {
        cluster.create(volume, "64M")?;
        write(&mut open(&cluster, volume)?, 0..8)?;
        cluster.sconce(["volume", "sync", volume])?;
    }
    for service in Service::ALL {
        cluster.kill_for_good(service)?;
    }
    lose(&cluster, "buffer")?;
    lose(&cluster, "registry")?;
    for service in [Service::StorageRouter, Service::VolumeRouter, Service::FsRouter] {
        cluster.start_service(service)?;
    }
    cluster.ready()?;
    cluster.sconce(["recover"])?;
    for volume in volumes {
        holds(&mut open(&cluster, volume)?, 0..8).with_context(|| volume.to_owned())?;
    }
    // It can be run again, and changes nothing.
    cluster.sconce(["recover"])?;
    holds(&mut open(&cluster, volumes[0])?, 0..8)?;
    cluster.finish()
}

#[test]
fn an_orderly_restart_needs_nothing_from_the_write_buffer() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.create("/disk", "64M")?;
    write(&mut open(&cluster, "/disk")?, 0..24)?;
    cluster.script(&["down"])?;
    lose(&cluster, "buffer")?;
    let begun = Instant::now();
    cluster.script(&["up"])?;
    holds(&mut open(&cluster, "/disk")?, 0..24)?;
    eprintln!("up and read again after {:?}", begun.elapsed());
    cluster.finish()
}
