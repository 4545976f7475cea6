//! Proof 3: file systems and verifying clients find what they wrote.

use std::time::Duration;

use anyhow::Result;
use sconce_tests::cluster::Cluster;
use sconce_tests::fsx::Fsx;
use sconce_tests::loop_device::LoopDevice;
use sconce_tests::{client, rounds, seed};

const MIB: usize = 1 << 20;

#[test]
fn ext4_on_a_loop_device_over_fuse_survives_random_io_as_root() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.create("/vm1/disk.raw", "512M")?;
    let mut device = LoopDevice::attach(&cluster.mounted("/vm1/disk.raw"))?;
    device.format()?;
    let at = cluster.path("ext4");
    device.mount(&at, "discard")?;
    let seed = seed();
    let mut files = Vec::new();
    for number in 0..4 {
        files.push(Fsx::create(
            &at.join(format!("file{number}")),
            24 * MIB,
            seed + number,
        )?);
    }
    for _ in 0..rounds(4, 40) {
        for file in &mut files {
            file.run(150)?;
        }
    }
    drop(files);
    device.unmount()?;
    device.check()?;
    drop(device);
    cluster.finish()
}

#[test]
fn a_file_in_the_mount_takes_random_io() -> Result<()> {
    let cluster = Cluster::start()?;
    let mut file = Fsx::create(&cluster.mounted("/file"), 8 * MIB, seed())?;
    file.run(rounds(600, 10_000))?;
    drop(file);
    cluster.finish()
}

#[test]
fn fio_verifies_blocks_of_all_sizes_in_two_jobs() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.create("/fio.raw", "512M")?;
    let size = if sconce_tests::full() { "224m" } else { "64m" };
    client::run(
        client::command("fio", Duration::from_secs(1200))
            .args([
                "--name=verify",
                "--ioengine=nbd",
                "--rw=randwrite",
                "--bsrange=4k-1m",
            ])
            .args([
                "--blockalign=4k",
                "--iodepth=16",
                "--numjobs=2",
                "--verify=crc32c",
                "--verify_fatal=1",
            ])
            .args([
                "--verify_backlog=64",
                "--offset_increment=256m",
                "--group_reporting",
            ])
            .arg(format!("--size={size}"))
            .arg(format!("--uri={}", cluster.nbd_uri("/fio.raw"))),
    )?;
    cluster.finish()
}
