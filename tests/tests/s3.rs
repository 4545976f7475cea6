//! A pool on a bucket, with all services real: what was written is read by other processes, and nobody asks the bucket
//! for anything while nobody asks the pool.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use sconce_test_s3::{ACCESS_KEY, Counts, Faults, Options, S3Server, SECRET_KEY};
use sconce_tests::cluster::{Cluster, SOON, Service};
use sconce_tests::nbd::{Ask, Nbd};
use sconce_tests::writer::Writer;
use sconce_tests::{edit, full, rounds, seed, wait};
use toml::Table;

const MIB: u32 = 1 << 20;
/// More than a SCO.
const BLOCKS: u64 = 24;

fn block(number: u64) -> Vec<u8> {
    let mut bytes = vec![0; MIB as usize];
    fastrand::Rng::with_seed(number).fill(&mut bytes);
    bytes
}

/// Settings with one back end, a folder in the server's bucket, and the access key in the environment.
fn on_a_bucket(cluster: &mut Cluster, server: &S3Server) -> Result<()> {
    cluster.give("AWS_ACCESS_KEY_ID", ACCESS_KEY);
    cluster.give("AWS_SECRET_ACCESS_KEY", SECRET_KEY);
    let bucket = Table::from_iter([
        ("bucket".to_owned(), "vms".into()),
        ("folder".to_owned(), "pool-1".into()),
        ("endpoint".to_owned(), server.endpoint().into()),
    ]);
    let backend = Table::from_iter([("name".to_owned(), "s3".into()), ("s3".to_owned(), bucket.into())]);
    let pool = Table::from_iter([
        ("name".to_owned(), "default".into()),
        ("protect".to_owned(), "replica:1".into()),
        ("backends".to_owned(), vec!["s3"].into()),
    ]);
    edit::set(cluster.run_dir(), "storage-router", "backends", vec![backend])?;
    edit::set(cluster.run_dir(), "storage-router", "pools", vec![pool])
}

fn server() -> Result<S3Server> {
    Ok(S3Server::start(
        &["vms"],
        Options {
            seed: seed(),
            ..Options::default()
        },
    )?)
}

/// Takes away every copy that is not in the bucket; the services are down.
fn forget_what_is_here(cluster: &Cluster) -> Result<()> {
    for kept in ["buffer", "cache"] {
        let path = cluster.path(kept);
        if path.exists() {
            fs::remove_dir_all(path)?;
        }
    }
    Ok(())
}

/// The counts once nothing was asked for so long. What is measured is time that passes: nothing else can end it.
fn quiet_for(server: &S3Server, long: Duration) -> Result<Counts> {
    let (mut last, mut since) = (server.counts(), Instant::now());
    let (counts, _) = wait::until("a bucket that nobody asks", long + SOON, || {
        let now = server.counts();
        if now != last {
            (last, since) = (now, Instant::now());
        }
        Ok((since.elapsed() >= long).then_some(now))
    })?;
    Ok(counts)
}

#[test]
fn a_volume_on_a_bucket_is_read_back_by_other_processes() -> Result<()> {
    let server = server()?;
    let mut cluster = Cluster::prepare()?;
    on_a_bucket(&mut cluster, &server)?;
    cluster.script(&["up"])?;
    cluster.create("/disk", "64M")?;
    let mut nbd = Nbd::connect(&cluster.nbd_socket(), "/disk", SOON)?;
    for number in 0..BLOCKS {
        nbd.ask(Ask::Write, number * u64::from(MIB), MIB, &block(number))?;
    }
    nbd.ask(Ask::Flush, 0, 0, &[])?;
    cluster.sconce(["volume", "sync", "/disk"])?;
    // Its guest stays connected, and its services stay up.
    let before = quiet_for(&server, Duration::from_secs(if full() { 60 } else { 3 }))?;
    ensure!(before.puts >= BLOCKS / 4, "{before:?}");
    drop(nbd);
    cluster.script(&["down"])?;
    forget_what_is_here(&cluster)?;
    cluster.script(&["up"])?;
    let mut nbd = Nbd::connect(&cluster.nbd_socket(), "/disk", SOON)?;
    for number in 0..BLOCKS {
        let found = nbd.ask(Ask::Read, number * u64::from(MIB), MIB, &[])?;
        ensure!(found == block(number), "MiB {number} is not what was written");
    }
    ensure!(
        server.counts().gets > before.gets,
        "nothing was read from the bucket"
    );
    let status = cluster.sconce(["status"])?;
    ensure!(status.contains("s3"), "{status}");
    for service in Service::ALL {
        let log = fs::read_to_string(cluster.path(&format!("{}.log", service.name())))?;
        ensure!(!log.contains(SECRET_KEY), "{} tells the secret", service.name());
    }
    drop(nbd);
    cluster.finish()
}

/// Writes and flushes for so long as a guest would, 16 at a time; returns how many were answered.
fn write_for(nbd: &mut Nbd, time: Duration, random: &mut fastrand::Rng) -> Result<u32> {
    let clusters = nbd.size() / 4096;
    let data = vec![random.u8(..); 4096];
    let (begun, mut answered) = (Instant::now(), 0);
    while begun.elapsed() < time {
        while nbd.in_flight() < 16 {
            match random.u32(0..32) {
                0 => nbd.send(Ask::Flush, 0, 0, &[])?,
                _ => nbd.send(Ask::Write, random.u64(0..clusters) * 4096, 4096, &data)?,
            };
        }
        ensure!(nbd.receive()?.error == 0, "an error");
        answered += 1;
    }
    while nbd.in_flight() > 0 {
        nbd.receive()?;
    }
    Ok(answered)
}

#[test]
fn guests_write_as_fast_before_a_slow_bucket() -> Result<()> {
    let server = server()?;
    let mut cluster = Cluster::prepare()?;
    on_a_bucket(&mut cluster, &server)?;
    cluster.script(&["up"])?;
    cluster.create("/disk", "256M")?;
    let mut nbd = Nbd::connect(&cluster.nbd_socket(), "/disk", SOON)?;
    let mut random = fastrand::Rng::with_seed(seed());
    let slow = Faults {
        put_delay: Duration::from_millis(20),
        get_delay: Duration::from_millis(10),
        ..Faults::default()
    };
    // In turns, so that what else this machine does meets both alike.
    let mut best = 0_f64;
    for _ in 0..rounds(4, 20) {
        let mut answered = [0; 2];
        for (faults, count) in [Faults::default(), slow].into_iter().zip(&mut answered) {
            server.set(faults);
            *count = write_for(&mut nbd, Duration::from_secs(1), &mut random)?;
        }
        let [fast_ones, slow_ones] = answered;
        let ratio = f64::from(slow_ones) / f64::from(fast_ones);
        eprintln!(
            "{fast_ones} writes and flushes before a fast bucket, {slow_ones} before a slow one: {ratio:.2}"
        );
        best = best.max(ratio);
    }
    // 0.9 is what is wanted; the rest is for what else the machine does. That makes single turns slow, and guests who wait for the
    // bucket wait in each of them.
    ensure!(best > 0.7, "guests wait for the bucket: {best:.2}");
    drop(nbd);
    cluster.finish()
}

#[test]
fn a_bucket_that_goes_wrong_loses_nothing_and_guests_do_not_wait_for_it() -> Result<()> {
    let server = server()?;
    let seed = seed();
    let mut random = fastrand::Rng::with_seed(seed);
    let mut cluster = Cluster::prepare()?;
    on_a_bucket(&mut cluster, &server)?;
    // So that everything is listed early, and what is listed is soon gone.
    edit::set(cluster.run_dir(), "volume-router", "sweep.every", "1s")?;
    edit::set(cluster.run_dir(), "volume-router", "sweep.pause", "200ms")?;
    // Where all of an operation's tries went wrong; where the storage-router starts after the volume-router.
    for told in [
        "back end fails",
        "storing does not work now",
        "volume cannot be served now",
    ] {
        cluster.announce(told);
    }
    cluster.script(&["up"])?;
    cluster.create("/stamped", "4M")?;
    server.set(Faults {
        slow_down: 50,
        reset_request: 20,
        reset_answer: 20,
        lost_answer: 50,
        put_delay: Duration::from_millis(20),
        get_delay: Duration::from_millis(10),
        stale_lists: true,
        ..Faults::default()
    });
    let mut writer = Writer::connect(&cluster.nbd_socket(), "/stamped", seed)?;
    for _ in 0..rounds(3, 20) {
        let service = *random
            .choice(&[Service::VolumeRouter, Service::StorageRouter])
            .unwrap_or(&Service::StorageRouter);
        ensure!(
            writer.write_for(Duration::from_millis(random.u64(200..800)))?,
            "the connection broke"
        );
        let pid = cluster.kill(service)?;
        ensure!(
            writer.write_for(Duration::from_millis(200))?,
            "the connection broke"
        );
        cluster.restarted(service, pid)?;
    }
    writer.check()?;
    cluster.sconce(["volume", "sync", "/stamped"])?;
    cluster.script(&["down"])?;
    forget_what_is_here(&cluster)?;
    // Lists stay as they were the first time: what is read must not depend on them.
    cluster.script(&["up"])?;
    writer.reconnect()?;
    writer.check()?;
    ensure!(
        server.counts().faults > 0,
        "nothing went wrong: {:?}",
        server.counts()
    );
    drop(writer);
    cluster.finish()
}
