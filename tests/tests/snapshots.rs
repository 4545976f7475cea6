//! Snapshots, clones and templates for real: a Debian image as a template, clones of it that boot, and what it all costs.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use sconce_tests::cluster::{Cluster, SOON};
use sconce_tests::image::DebianImage;
use sconce_tests::{client, full, guest};

const COPY: Duration = Duration::from_secs(300);
const TEMPLATE: &str = "/images/debian.raw";
const BASE: &str = "/images/debian.raw@base";
const CLONES: usize = 50;
/// What is promised; an unoptimized build on a machine with other tests gets three times that.
const CLONES_WITHIN: Duration = Duration::from_secs(if cfg!(debug_assertions) { 15 } else { 5 });

fn clone_path(number: usize) -> String {
    format!("/vm{number}/disk.raw")
}

/// The image as a template with a snapshot `base`.
fn template(cluster: &Cluster, image: &DebianImage) -> Result<()> {
    let disk = image.disk().display().to_string();
    cluster.sconce(["import", &disk, TEMPLATE])?;
    cluster.sconce(["snapshot", "create", BASE, "--wait-synced"])?;
    cluster.sconce(["template", "set", TEMPLATE]).map(drop)
}

fn compare(cluster: &Cluster, image: &DebianImage, export: &str) -> Result<String> {
    let disk = image.disk().display().to_string();
    let uri = cluster.nbd_uri(export);
    client::qemu_img(COPY, ["compare", "-f", "raw", "-F", "raw", &disk, &uri])
}

/// Writes to an export with qemu, as a guest would.
fn write(cluster: &Cluster, export: &str, pattern: u8) -> std::process::Command {
    let mut write = client::command("qemu-io", SOON);
    let uri = cluster.nbd_uri(export);
    write.args([
        "-f",
        "raw",
        "-c",
        &format!("write -P {pattern} 512M 1M"),
        "-c",
        "flush",
        &uri,
    ]);
    write
}

fn holds(cluster: &Cluster, export: &str, pattern: u8) -> Result<()> {
    let uri = cluster.nbd_uri(export);
    let read = format!("read -P {pattern} 512M 1M");
    let told = client::run(client::command("qemu-io", SOON).args(["-r", "-f", "raw", "-c", &read, &uri]))?;
    ensure!(!told.contains("verification failed"), "{export}: {told}");
    Ok(())
}

/// The guest's own file in its ext4, if it is there.
fn boots_in(disk: &Path) -> Result<String> {
    let mut debugfs = client::command("debugfs", SOON);
    let found = client::run(debugfs.args(["-R", "cat /var/lib/boots"]).arg(disk))?;
    Ok(found.trim().to_owned())
}

fn names(cluster: &Cluster, volume: &str) -> Result<Vec<String>> {
    let text = cluster.sconce(["snapshot", "list", volume, "--output", "json"])?;
    let list: Vec<serde_json::Value> = serde_json::from_str(&text)?;
    Ok(list
        .iter()
        .map(|snapshot| snapshot["name"].as_str().unwrap_or_default().to_owned())
        .collect())
}

#[test]
fn fifty_clones_of_a_template_are_made_boot_and_leave_it_as_it_is() -> Result<()> {
    let image = DebianImage::get()?;
    let cluster = Cluster::start()?;
    template(&cluster, &image)?;
    let begun = Instant::now();
    for number in 0..CLONES {
        cluster.sconce(["clone", BASE, &clone_path(number)])?;
    }
    let took = begun.elapsed();
    eprintln!("{CLONES} clones, one command after the other: {took:?}");
    // Of an unoptimized build beside other tests the time says more of them than of clones.
    if full() || !cfg!(debug_assertions) {
        ensure!(took < CLONES_WITHIN, "{CLONES} clones took {took:?}");
    }

    // Each is the image, and its own.
    let (first, last) = (clone_path(0), clone_path(CLONES - 1));
    let before = format!("{first}@before");
    cluster.sconce(["snapshot", "create", &before])?;
    compare(&cluster, &image, &last)?;
    let booted = if full() { 4 } else { 1 };
    for number in 0..booted {
        let uri = cluster.nbd_uri(&clone_path(number));
        let boots = guest::boot(&image, &uri)?;
        ensure!(boots == 1, "clone {number} saw {boots} boots: it is not its own");
    }
    client::run(&mut write(&cluster, &last, 7))?;
    holds(&cluster, &last, 7)?;

    // A guest's disk goes back to before its boot, and forward to what its guest left.
    let disk = cluster.mounted(&first);
    ensure!(boots_in(&disk)? == "1", "the guest's file is not in the mount");
    cluster.sconce(["snapshot", "rollback", &before, "--keep-as", "after"])?;
    ensure!(names(&cluster, &first)? == ["before", "after"]);
    ensure!(boots_in(&disk)?.is_empty(), "it was not gone back to");
    ensure!(boots_in(&cluster.mounted("/vm0/.snapshots/disk.raw@after"))? == "1");
    let after = format!("{first}@after");
    cluster.sconce(["snapshot", "rollback", &after, "--discard"])?;
    ensure!(boots_in(&disk)? == "1", "the old file is not back");
    ensure!(names(&cluster, &first)? == ["before", "after"]);
    if full() {
        let boots = guest::boot(&image, &cluster.nbd_uri(&first))?;
        ensure!(boots == 2, "after the rollback the guest saw {boots} boots");
    }

    // The template takes no writes, and nothing of all that is in it.
    ensure!(
        client::run(&mut write(&cluster, TEMPLATE, 1)).is_err(),
        "a template was written to"
    );
    ensure!(
        client::run(&mut write(&cluster, BASE, 1)).is_err(),
        "a snapshot was written to"
    );
    compare(&cluster, &image, BASE)?;
    if full() {
        for export in [TEMPLATE, &clone_path(CLONES - 2)] {
            compare(&cluster, &image, export)?;
        }
    }
    cluster.finish()
}

fn refused(cluster: &Cluster, arguments: &[&str], wanted: &[&str]) -> Result<()> {
    let told = client::refused(cluster.command()?.args(arguments))?;
    for wanted in wanted {
        ensure!(
            told.contains(wanted),
            "{wanted:?} is not in what {arguments:?} says: {told}"
        );
    }
    Ok(())
}

#[test]
fn what_clones_depend_on_is_not_deleted_and_the_command_names_them() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.create("/a/disk.raw", "1G")?;
    cluster.sconce([
        "snapshot",
        "create",
        "/a/disk.raw@one",
        "--metadata",
        "why=a test",
    ])?;
    cluster.sconce(["clone", "/a/disk.raw@one", "/b/disk.raw"])?;
    client::run(&mut write(&cluster, "/b/disk.raw", 3))?;
    cluster.sconce(["snapshot", "create", "/b/disk.raw@two"])?;
    cluster.sconce(["clone", "/b/disk.raw@two", "/c/disk.raw"])?;
    holds(&cluster, "/c/disk.raw", 3)?;

    refused(&cluster, &["volume", "delete", "/a/disk.raw"], &["/b/disk.raw"])?;
    refused(
        &cluster,
        &["snapshot", "delete", "/a/disk.raw@one"],
        &["/b/disk.raw"],
    )?;
    refused(&cluster, &["volume", "delete", "/b/disk.raw"], &["/c/disk.raw"])?;
    ensure!(
        fs::remove_file(cluster.mounted("/a/disk.raw")).is_err(),
        "removed in the mount"
    );
    refused(
        &cluster,
        &["snapshot", "create", "/a/disk.raw@one"],
        &["\"one\" exists"],
    )?;
    refused(
        &cluster,
        &["clone", "/a/disk.raw@nine", "/d"],
        &["/a/disk.raw@nine", "snapshot list"],
    )?;
    refused(
        &cluster,
        &["clone", "/a/disk.raw@one", "/b/disk.raw"],
        &["/b/disk.raw"],
    )?;
    refused(
        &cluster,
        &["snapshot", "rollback", "/a/disk.raw@nine"],
        &["/a/disk.raw@nine"],
    )?;

    for delete in [
        ["volume", "delete", "/c/disk.raw"],
        ["snapshot", "delete", "/b/disk.raw@two"],
        ["volume", "delete", "/b/disk.raw"],
        ["snapshot", "delete", "/a/disk.raw@one"],
        ["volume", "delete", "/a/disk.raw"],
    ] {
        cluster.sconce(delete)?;
    }
    cluster.finish()
}

/// 99 % of fio's 4 KiB writes to the volume take at most this long, in microseconds.
fn p99(cluster: &Cluster, volume: &str, seconds: u32) -> Result<f64> {
    let uri = cluster.nbd_uri(volume);
    let text = client::run(client::command("fio", SOON).args([
        "--name=writes",
        "--ioengine=nbd",
        &format!("--uri={uri}"),
        "--rw=randwrite",
        "--bs=4k",
        "--iodepth=4",
        "--size=256m",
        "--time_based",
        &format!("--runtime={seconds}"),
        "--output-format=json",
    ]))?;
    let json = text.find('{').and_then(|at| text.get(at..)).unwrap_or_default();
    let found: serde_json::Value = serde_json::from_str(json).with_context(|| text.clone())?;
    let nanos = found["jobs"][0]["write"]["clat_ns"]["percentile"]["99.000000"].as_f64();
    nanos.map(|nanos| nanos / 1000.0).context("fio tells no p99")
}

/// Takes a snapshot each 100 ms until told to stop; gives how many.
fn snapshots_until(cluster: &Cluster, volume: &str, run: u32, stop: &AtomicBool) -> Result<u32> {
    let mut taken = 0;
    let mut next = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        cluster.sconce(["snapshot", "create", &format!("{volume}@{run}-{taken}")])?;
        taken += 1;
        // This is the load itself, not a wait for something.
        next += Duration::from_millis(100);
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    Ok(taken)
}

#[test]
fn writes_do_not_wait_for_snapshots() -> Result<()> {
    let cluster = Cluster::start()?;
    let volume = "/disk.raw";
    cluster.create(volume, "256M")?;
    let seconds = if full() { 20 } else { 2 };
    p99(&cluster, volume, 1)?;
    let mut ratios = Vec::new();
    for run in 0..if full() { 3 } else { 2 } {
        let without = p99(&cluster, volume, seconds)?;
        let stop = AtomicBool::new(false);
        let (with, taken) = thread::scope(|scope| {
            let taking = scope.spawn(|| snapshots_until(&cluster, volume, run, &stop));
            let with = p99(&cluster, volume, seconds);
            stop.store(true, Ordering::Relaxed);
            (with, taking.join())
        });
        let Ok(taken) = taken else {
            bail!("the thread that takes snapshots panicked");
        };
        let (with, taken) = (with?, taken?);
        eprintln!(
            "p99 of 4 KiB writes: {without:.0} µs; with {taken} snapshots in {seconds} s: {with:.0} µs, {:.2} times",
            with / without
        );
        let least = if full() { 5 } else { 1 };
        ensure!(taken >= least, "{taken} snapshots were taken");
        ratios.push(with / without);
    }
    // Other tests have the machine at the same time: what is told apart is a pause from none, and in a short run not even that.
    let best = ratios.into_iter().fold(f64::INFINITY, f64::min);
    eprintln!("snapshots slow writes down {best:.1} times");
    ensure!(
        !full() || best < 10.0,
        "snapshots slow writes down {best:.1} times"
    );
    cluster.finish()
}
