//! What was left behind on a back end goes by itself, and what is needed stays.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sconce_tests::cluster::{Cluster, SOON};
use sconce_tests::{checked, client, edit, wait};

const DISK: &str = "/vm1/disk.raw";
const CLONE: &str = "/vm2/disk.raw";
const WITHIN: Duration = Duration::from_secs(120);
/// Rounds of writes and checkpoints until the map was stored anew and old checkpoints were swept: some thirty are enough.
const ROUNDS_MAX: u32 = 120;

/// Random 4 KiB writes to all of a volume, then a checkpoint.
fn write(cluster: &Cluster, volume: &str, seed: u32) -> Result<()> {
    let mut fio = client::command("fio", SOON);
    fio.args([
        "--name=w",
        "--ioengine=nbd",
        "--rw=randwrite",
        "--bs=4k",
        "--iodepth=32",
        "--size=64m",
    ]);
    fio.args(["--norandommap", "--refill_buffers", "--io_size=64m"]);
    fio.arg(format!("--randseed={seed}"))
        .arg(format!("--uri={}", cluster.nbd_uri(volume)));
    client::run(&mut fio)?;
    cluster.sconce(["volume", "sync", volume]).map(drop)
}

fn objects(cluster: &Cluster, kind: &str) -> Result<Vec<PathBuf>> {
    let mut files = cluster.files_in("backend/local")?;
    files.retain(|file| file.to_string_lossy().contains(&format!("/{kind}/")));
    files.sort();
    Ok(files)
}

/// A copy of the newest object of a kind, under the name that it would have of the first ownership: as if that one had gone on.
fn plant(cluster: &Cluster, kind: &str) -> Result<PathBuf> {
    let found = objects(cluster, kind)?;
    let newest = found
        .last()
        .with_context(|| format!("no object of kind {kind}"))?;
    let name = newest.file_name().context("name")?.to_string_lossy();
    ensure!(
        name.contains(".00000002"),
        "{name} is not of the second ownership"
    );
    let planted = newest.with_file_name(name.replace(".00000002", ".00000001"));
    fs::copy(newest, &planted)?;
    Ok(planted)
}

#[test]
fn what_was_left_behind_is_swept_and_what_is_needed_is_not() -> Result<()> {
    let cluster = Cluster::start_with(|run| {
        edit::set(run, "volume-router", "scrub.grace", "200ms")?;
        edit::set(run, "volume-router", "scrub.bandwidth", "1GiB")?;
        edit::set(run, "volume-router", "sweep.pause", "200ms")?;
        edit::set(run, "volume-router", "sweep.every", "1s")
    })?;
    cluster.create(DISK, "64M")?;
    write(&cluster, DISK, 1)?;
    cluster.script(&["down"])?;
    cluster.script(&["up"])?;
    write(&cluster, DISK, 2)?;
    cluster.script(&["down"])?;
    let planted = [plant(&cluster, "sco")?, plant(&cluster, "manifest")?];
    cluster.script(&["up"])?;
    cluster.sconce(["snapshot", "create", "/vm1/disk.raw@monday", "--wait-synced"])?;
    cluster.sconce(["clone", "/vm1/disk.raw@monday", CLONE])?;
    write(&cluster, CLONE, 3)?;
    wait::until("what was planted to be swept", WITHIN, || {
        Ok(planted.iter().all(|file| !file.exists()).then_some(()))
    })?;

    // The map is stored anew, and old checkpoints go; not those that the snapshot and its clone need.
    let mut before = 0;
    for seed in 4.. {
        write(&cluster, DISK, seed)?;
        let there = objects(&cluster, "map")?.len();
        if there < before {
            break;
        }
        before = there;
        ensure!(
            seed < ROUNDS_MAX,
            "{there} checkpoints: they grow with the number of changes"
        );
    }
    write(&cluster, CLONE, 1)?;
    checked::stopped_and_consistent(&cluster).map(drop)
}
