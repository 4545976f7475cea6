//! The fs-router is replaced under load: what clients have open goes on.

use std::fs;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sconce_tests::client;
use sconce_tests::cluster::{Cluster, SOON, Service};
use sconce_tests::nbd::{Ask, Nbd};
use sconce_tests::rounds;

/// What a guest may wait for an answer at a swap, as the median over the rounds: none of its timeouts is as short.
const PAUSE_MEDIAN: Duration = Duration::from_secs(2);

/// `fio` that writes a volume or file over and over, and reads each block back, for as long as it is left to.
fn fio(arguments: &[String]) -> std::process::Command {
    let mut fio = client::command("fio", Duration::from_secs(1200));
    fio.args(["--name=verify", "--rw=randwrite", "--bs=4k", "--size=32m"])
        .args(["--verify=crc32c", "--verify_fatal=1", "--verify_backlog=256"])
        .args(["--time_based", "--group_reporting"])
        .args(arguments);
    fio
}

/// Runs `client` while `disturb` runs, and both to their ends.
fn during<T>(client: &mut std::process::Command, disturb: impl FnOnce() -> Result<T>) -> Result<T> {
    thread::scope(|scope| {
        let running = scope.spawn(|| client::run(client));
        let disturbed = disturb();
        let told = running.join().map_err(|_| anyhow::anyhow!("the client's thread panicked"))?;
        // What the client met says more than what the disturber did.
        told.context("the client met an error")?;
        disturbed
    })
}

/// How long each of several waits was, longest last.
fn sorted(mut waits: Vec<Duration>) -> Vec<Duration> {
    waits.sort();
    waits
}

#[test]
fn nbd_clients_keep_their_connections_while_the_fs_router_is_swapped() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.create("/fio.raw", "64M")?;
    cluster.create("/timed.raw", "1M")?;
    let swaps = rounds(5, 20);
    // Longer than the swaps take; what is left is load without a swap.
    let seconds = 10 + swaps * 2;
    let mut load = fio(&[
        "--ioengine=nbd".to_owned(),
        "--iodepth=16".to_owned(),
        format!("--runtime={seconds}"),
        format!("--uri={}", cluster.nbd_uri("/fio.raw")),
    ]);
    let mut timed = Nbd::connect(&cluster.nbd_socket(), "/timed.raw", SOON)?;
    let is_over = AtomicBool::new(false);
    let waits = during(&mut load, || {
        thread::scope(|scope| {
            let timing = scope.spawn(|| longest_waits(&mut timed, &is_over));
            let swapped = (0..swaps).try_for_each(|_| {
                cluster.swap(Service::FsRouter)?;
                // So that each swap meets clients that are at work again.
                cluster.ready()
            });
            is_over.store(true, Ordering::Relaxed);
            let waits = timing.join().map_err(|_| anyhow::anyhow!("the timing thread panicked"))?;
            swapped?;
            waits
        })
    })?;
    let waits = sorted(waits);
    // One of each swap, at least: the others are shorter.
    let pauses = waits.get(waits.len().saturating_sub(swaps as usize)..).unwrap_or_default();
    let median = pauses.get(pauses.len() / 2).copied().unwrap_or_default();
    eprintln!("{swaps} swaps, {} requests; pauses: median {median:?}, all {pauses:?}", waits.len());
    ensure!(median < PAUSE_MEDIAN, "pauses of {pauses:?}");
    cluster.finish()
}

/// How long each answer took, of one request after the other on one connection that is never made anew.
fn longest_waits(client: &mut Nbd, is_over: &AtomicBool) -> Result<Vec<Duration>> {
    let mut waits = Vec::new();
    while !is_over.load(Ordering::Relaxed) {
        let sent = Instant::now();
        client.send(Ask::Write, 0, 4096, &[7; 4096])?;
        let answer = client.receive()?;
        ensure!(answer.error == 0, "a write ended with error {}", answer.error);
        waits.push(sent.elapsed());
    }
    Ok(waits)
}

#[test]
fn files_stay_open_while_the_fs_router_is_swapped_or_killed() -> Result<()> {
    let cluster = Cluster::start()?;
    // Open all the time, and without a name: only this process's table and the registry know it.
    let nameless = cluster.mounted("/nameless");
    let held = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&nameless)?;
    held.write_all_at(b"kept", 0)?;
    fs::remove_file(&nameless)?;
    let rounds = rounds(6, 20);
    let seconds = 10 + rounds * 2;
    let mut load = fio(&[
        "--ioengine=libaio".to_owned(),
        "--direct=1".to_owned(),
        "--iodepth=16".to_owned(),
        format!("--runtime={seconds}"),
        format!("--filename={}", cluster.mounted("/fio.raw").display()),
    ]);
    let timed = cluster.mounted("/timed.raw");
    let is_over = AtomicBool::new(false);
    let mounts = mounts(&cluster)?;
    let waits = during(&mut load, || {
        thread::scope(|scope| {
            let timing = scope.spawn(|| waits_of_file(&timed, &is_over));
            let disturbed = (0..rounds).try_for_each(|round| {
                // Files that are made and removed meanwhile: their names are the registry's business, their opens ours.
                let file = cluster.mounted(&format!("/made-{round}"));
                fs::write(&file, "made")?;
                if round % 2 == 0 {
                    cluster.swap(Service::FsRouter)?;
                } else {
                    let before = cluster.kill(Service::FsRouter)?;
                    cluster.restarted(Service::FsRouter, before)?;
                }
                ensure!(fs::read(&file)? == b"made", "{} changed", file.display());
                fs::remove_file(&file)?;
                Ok(())
            });
            is_over.store(true, Ordering::Relaxed);
            let waits = timing.join().map_err(|_| anyhow::anyhow!("the timing thread panicked"))?;
            disturbed?;
            waits
        })
    })?;
    let waits = sorted(waits);
    let pauses = waits.get(waits.len().saturating_sub(rounds as usize)..).unwrap_or_default();
    eprintln!("{rounds} swaps and kills in turn, {} requests; pauses {pauses:?}", waits.len());
    ensure!(mounts == self::mounts(&cluster)?, "it was mounted anew");
    let mut found = [0; 4];
    held.read_exact_at(&mut found, 0)?;
    ensure!(&found == b"kept", "the file without a name holds {found:?}");
    ensure!(held.metadata()?.nlink() == 0, "the file without a name has one");
    drop(held);
    cluster.finish()
}

/// Where the tree is mounted, and as which mount.
fn mounts(cluster: &Cluster) -> Result<Vec<String>> {
    let at = cluster.path("mnt");
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let ours = table.lines().filter(|line| line.contains(&format!(" {} ", at.display())));
    // Its number, and that of its device.
    Ok(ours.map(|line| line.split(' ').take(3).collect::<Vec<_>>().join(" ")).collect())
}

/// How long each write to a file took that is opened once.
fn waits_of_file(path: &Path, is_over: &AtomicBool) -> Result<Vec<Duration>> {
    let file = fs::File::create(path)?;
    let mut waits = Vec::new();
    while !is_over.load(Ordering::Relaxed) {
        let sent = Instant::now();
        file.write_all_at(&[7; 4096], 0)?;
        waits.push(sent.elapsed());
    }
    Ok(waits)
}
