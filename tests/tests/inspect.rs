//! A cluster's back end, looked at while nothing runs: it is consistent, on a read-only mount too, and damage is named.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sconce_tests::cluster::{Cluster, SOON};
use sconce_tests::{checked, client, edit, wait};

const DISK: &str = "/vm1/disk.raw";
const CLONE: &str = "/vm2/disk.raw";

/// Random 4 KiB writes with fio, `mib` MiB of them, to the first 32 MiB.
fn write(cluster: &Cluster, volume: &str, mib: u32) -> Result<()> {
    let mut fio = client::command("fio", SOON);
    fio.args([
        "--name=w",
        "--ioengine=nbd",
        "--rw=randwrite",
        "--bs=4k",
        "--iodepth=8",
        "--size=32m",
    ]);
    fio.args(["--norandommap", "--refill_buffers"]);
    fio.arg(format!("--io_size={mib}m"))
        .arg(format!("--uri={}", cluster.nbd_uri(volume)));
    client::run(&mut fio).map(drop)
}

fn scos(cluster: &Cluster) -> Result<Vec<PathBuf>> {
    let mut files = cluster.files_in("backend/local")?;
    files.retain(|file| file.to_string_lossy().contains("/sco/"));
    Ok(files)
}

fn flip(file: &Path, at: usize) -> Result<()> {
    let mut bytes = fs::read(file)?;
    let byte = bytes
        .get_mut(at)
        .with_context(|| format!("{} is shorter", file.display()))?;
    *byte ^= 0x10;
    fs::write(file, bytes).map_err(Into::into)
}

#[test]
fn a_cluster_that_was_stopped_is_consistent_and_damage_is_named() -> Result<()> {
    let cluster = Cluster::start_with(|run| {
        edit::set(run, "volume-router", "scrub.grace", "200ms")?;
        edit::set(run, "volume-router", "scrub.bandwidth", "1GiB")
    })?;
    cluster.create(DISK, "64M")?;
    write(&cluster, DISK, 32)?;
    cluster.sconce(["snapshot", "create", "/vm1/disk.raw@monday"])?;
    write(&cluster, DISK, 32)?;
    cluster.sconce(["snapshot", "create", "/vm1/disk.raw@tuesday"])?;
    cluster.sconce(["clone", "/vm1/disk.raw@monday", CLONE])?;
    write(&cluster, CLONE, 16)?;
    cluster.sconce([
        "snapshot",
        "rollback",
        "/vm1/disk.raw@monday",
        "--keep-as",
        "wednesday",
    ])?;
    for _ in 0..3 {
        write(&cluster, DISK, 24)?;
        cluster.sconce(["volume", "sync", DISK])?;
    }
    cluster.sconce(["snapshot", "delete", "/vm1/disk.raw@tuesday"])?;
    cluster.sconce(["volume", "sync", CLONE])?;
    let is_scrubbed = |file: &PathBuf| file.extension().is_some_and(|version| version != "0000");
    wait::until("a SCO to be scrubbed", Duration::from_secs(120), || {
        Ok(scos(&cluster)?.iter().any(is_scrubbed).then_some(()))
    })?;
    let report = checked::stopped_and_consistent(&cluster)?;
    let volumes = report["volumes"].as_array().context("volumes")?;
    ensure!(volumes.len() == 2, "{report:#}");
    ensure!(
        volumes[0]["path"] == DISK && volumes[1]["path"] == CLONE && volumes[0]["snapshots"] == 2,
        "{report:#}"
    );
    ensure!(
        volumes
            .iter()
            .all(|volume| volume["clusters_read"].as_u64() > Some(0)),
        "{report:#}"
    );

    // Where nothing can be written it is the same.
    let backend = checked::backend(&cluster);
    let mounted = cluster.path("read-only");
    fs::create_dir(&mounted)?;
    let mut mount = client::command("mount", SOON);
    client::run(mount.args(["--bind", "-o", "ro"]).arg(&backend).arg(&mounted))?;
    let judged = checked::check(&cluster, &mounted);
    let written = fs::write(mounted.join("x"), "x");
    client::run(client::command("umount", SOON).arg(&mounted))?;
    let (code, read_only) = judged?;
    ensure!(written.is_err(), "the mount was not read-only");
    ensure!(
        code == Some(0) && read_only["volumes"] == report["volumes"],
        "{read_only:#}"
    );

    // One byte of one object.
    let orphans: Vec<&str> = volumes
        .iter()
        .flat_map(|volume| volume["orphans"].as_array().into_iter().flatten())
        .filter_map(|orphan| orphan["object"].as_str())
        .collect();
    let living = scos(&cluster)?.into_iter().find(|file| {
        let name = file.strip_prefix(&backend).ok().and_then(Path::to_str);
        name.is_some_and(|name| !orphans.contains(&name))
    });
    let file = living.context("no SCO is left")?;
    flip(&file, 100_000)?;
    let (code, report) = checked::check(&cluster, &backend)?;
    let name = file.strip_prefix(&backend)?.display().to_string();
    let told = checked::problems(&report);
    ensure!(code == Some(1), "exit code {code:?}: {told:?}");
    ensure!(
        told.iter().any(|text| text.contains(&name)),
        "{name} is not in {told:?}"
    );
    let shown = client::refused(cluster.command()?.args(["inspect", "sco"]).arg(&file))?;
    ensure!(shown.contains(&name), "{shown}");
    flip(&file, 100_000)?;
    checked::stopped_and_consistent(&cluster)?;
    cluster.script(&["up"])?;
    cluster.finish()
}
