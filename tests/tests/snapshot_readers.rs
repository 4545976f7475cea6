//! Snapshots through the front ends, with all services real: what was is read over NBD and in the mount, while the volume
//! is written on, its owner dies, and the snapshot goes.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use anyhow::{Result, ensure};
use sconce_tests::client;
use sconce_tests::cluster::{Cluster, SOON, Service};
use sconce_tests::nbd::{Ask, Nbd};

const MIB: u32 = 1 << 20;
/// What a file says whose content is gone for good (Linux).
const ESTALE: i32 = 116;
const VOLUME: &str = "/vm1/disk.raw";
const SNAPSHOT: &str = "/vm1/disk.raw@monday";

/// Writes 8 MiB of this byte to the volume, durably.
fn fill(cluster: &Cluster, byte: u8) -> Result<()> {
    let mut writer = Nbd::connect(&cluster.nbd_socket(), VOLUME, SOON)?;
    for at in 0..8 {
        writer.ask(Ask::Write, u64::from(at * MIB), MIB, &vec![byte; MIB as usize])?;
    }
    writer.ask(Ask::Flush, 0, 0, &[])?;
    Ok(())
}

#[test]
fn a_snapshot_is_read_through_the_death_of_its_owner_and_until_it_is_removed() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.create(VOLUME, "16M")?;
    fill(&cluster, b'm')?;
    // Read before anything of it is on a back end, and after.
    cluster.sconce(["snapshot", "create", SNAPSHOT])?;
    fill(&cluster, b't')?;
    let path = cluster.mounted("/vm1/.snapshots/disk.raw@monday");
    let file = File::open(&path)?;
    let mut reader = Nbd::connect(&cluster.nbd_socket(), SNAPSHOT, SOON)?;
    ensure!(reader.size() == u64::from(16 * MIB) && fs::metadata(&path)?.len() == reader.size());
    let mut check = || -> Result<()> {
        let mut found = vec![0; MIB as usize];
        for (at, wanted) in [(0, b'm'), (7, b'm'), (8, 0)] {
            let offset = u64::from(at * MIB);
            file.read_exact_at(&mut found, offset)?;
            ensure!(found.iter().all(|byte| *byte == wanted), "in the mount, MiB {at}");
            let found = reader.ask(Ask::Read, offset, MIB, &[])?;
            ensure!(found.iter().all(|byte| *byte == wanted), "over NBD, MiB {at}");
        }
        Ok(())
    };
    check()?;
    let pid = cluster.kill(Service::VolumeRouter)?;
    check()?;
    cluster.restarted(Service::VolumeRouter, pid)?;
    cluster.sconce(["volume", "sync", VOLUME])?;
    check()?;
    let copy = cluster.path("copy");
    let uri = cluster.nbd_uri(SNAPSHOT);
    client::run(client::command("nbdcopy", SOON).arg(&uri).arg(&copy))?;
    client::same_bytes(&copy, &path)?;

    // Another takes its name: who reads the first one does not go on in it.
    cluster.sconce(["snapshot", "delete", SNAPSHOT])?;
    cluster.sconce(["snapshot", "create", SNAPSHOT])?;
    let pid = cluster.kill(Service::VolumeRouter)?;
    ensure!(check().is_err(), "a reader went over to another snapshot");
    cluster.restarted(Service::VolumeRouter, pid)?;
    let gone = file.read_at(&mut [0; 512], 0);
    ensure!(
        gone.is_err_and(|error| error.raw_os_error() == Some(ESTALE)),
        "ESTALE"
    );
    let mut fresh = Nbd::connect(&cluster.nbd_socket(), SNAPSHOT, SOON)?;
    ensure!(fresh.ask(Ask::Read, 0, 512, &[])? == vec![b't'; 512]);
    drop((file, reader, fresh));
    cluster.finish()
}
