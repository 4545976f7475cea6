//! Two hypervisors, one volume: one of them writes it, whatever becomes of the other.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sconce_tests::another::Another;
use sconce_tests::cluster::{Cluster, SOON, Service};
use sconce_tests::nbd::{Ask, Nbd};
use sconce_tests::{client, full, wait};

const VOLUME: &str = "/disk.raw";
/// NBD's word for "you may not".
const EPERM: u32 = 1;
/// A process that goes on in place of another waits for no lease: that of a node takes six seconds. Beside other tests it may take as long.
const AT_ONCE: Duration = Duration::from_secs(2);
/// What the owner tells where access was had only once a lease was over. Who waits for none is not told so, however slow the machine.
const WAITED: &str = "which had it, is not in the registry any more";
/// What it tells where the first fs-router has access that had none.
const FIRST_HAS_ACCESS: &str = "fs-router has write access";
/// What the tests provoke.
const PROVOKED: [&str; 3] = [
    "writes are refused",
    "are refused: volume",
    "write access was taken from",
];

/// A cluster with a second fs-router, `hv-2`, and a volume.
fn two() -> Result<(Cluster, Another)> {
    let mut cluster = Cluster::start()?;
    PROVOKED.into_iter().for_each(|told| cluster.announce(told));
    let socket = cluster.path("hv-2/nbd.sock").display().to_string();
    let mut second = Another::prepare(&cluster, Service::FsRouter, "hv-2", |settings| {
        settings.remove("fuse");
        let nbd = settings.get_mut("nbd").and_then(toml::Value::as_table_mut);
        nbd.map(|nbd| nbd.insert("socket".to_owned(), socket.into()));
    })?;
    second.start(&cluster)?;
    cluster.create(VOLUME, "64M")?;
    Ok((cluster, second))
}

fn connect_first(cluster: &Cluster) -> Result<Nbd> {
    let connect = || Ok(Nbd::connect(&cluster.nbd_socket(), VOLUME, SOON).ok());
    Ok(wait::until("the first fs-router", SOON, connect)?.0)
}

fn connect_second(cluster: &Cluster) -> Result<Nbd> {
    let connect = || Ok(Nbd::connect(&cluster.path("hv-2/nbd.sock"), VOLUME, SOON).ok());
    Ok(wait::until("the second fs-router", SOON, connect)?.0)
}

/// Writes a cluster at the start of the volume; gives NBD's error number.
fn write(nbd: &mut Nbd, byte: u8) -> Result<u32> {
    nbd.send(Ask::Write, 0, 4096, &[byte; 4096])?;
    Ok(nbd.receive()?.error)
}

fn wrote(nbd: &mut Nbd, byte: u8) -> Result<()> {
    let error = write(nbd, byte)?;
    ensure!(error == 0, "a write ended with error {error}");
    Ok(())
}

fn is_refused(nbd: &mut Nbd) -> Result<()> {
    let error = write(nbd, 0xee)?;
    ensure!(error == EPERM, "a write ended with {error}, not with EPERM");
    Ok(())
}

fn holds(nbd: &mut Nbd, byte: u8) -> Result<()> {
    let found = nbd.ask(Ask::Read, 0, 4096, &[])?;
    ensure!(found == [byte; 4096], "{} is there, not {byte}", found[0]);
    Ok(())
}

fn access(cluster: &Cluster, arguments: &[&str]) -> Result<serde_json::Value> {
    let command = ["volume", "access", VOLUME, "--output", "json"];
    let told = cluster.sconce(command.iter().chain(arguments))?;
    Ok(serde_json::from_str(&told)?)
}

fn is_at_once(begun: Instant) -> Result<()> {
    let took = begun.elapsed();
    ensure!(!full() || took < AT_ONCE, "{took:?}");
    Ok(())
}

/// How often the owner has told this.
fn times_told(cluster: &Cluster, text: &str) -> Result<usize> {
    let log = std::fs::read_to_string(cluster.path("volume-router.log"))?;
    Ok(log.matches(text).count())
}

/// Nobody has access because a lease is over.
fn waited_for_no_lease(cluster: &Cluster) -> Result<()> {
    let waited = times_told(cluster, WAITED)?;
    ensure!(waited == 0, "a lease was waited for {waited} times");
    Ok(())
}

fn is_held_by(cluster: &Cluster, holder: &str) -> Result<()> {
    let told = access(cluster, &[])?;
    ensure!(told["mode"] == "exclusive" && told["holder"] == holder, "{told}");
    Ok(())
}

#[test]
fn the_second_that_writes_is_refused_until_access_is_handed_over_or_broken() -> Result<()> {
    let (cluster, mut hv_2) = two()?;
    let (mut one, mut two) = (connect_first(&cluster)?, connect_second(&cluster)?);
    holds(&mut two, 0)?;
    wrote(&mut one, 1)?;
    is_refused(&mut two)?;
    is_refused(&mut two)?;
    holds(&mut two, 1)?;
    is_held_by(&cluster, "fs-router")?;
    let told = std::fs::read_to_string(cluster.path("hv-2.log"))?;
    let lines: Vec<&str> = told
        .lines()
        .filter(|line| line.contains("writes are refused"))
        .collect();
    ensure!(
        lines.len() == 1
            && lines[0].contains("is written by fs-router since")
            && lines[0].contains("--hand-over"),
        "once, with what would be right: {lines:#?}"
    );

    // The first one is at full load when the second takes over.
    let uri = format!("--uri={}", cluster.nbd_uri(VOLUME));
    let mut load = client::command("fio", Duration::from_secs(120));
    load.args([
        "--name=load",
        "--rw=randwrite",
        "--bs=4k",
        "--iodepth=32",
        "--ioengine=nbd",
    ])
    .args(["--size=64m", "--offset=1m", "--time_based", "--runtime=60"])
    .arg(uri);
    let log = cluster.path("fs-router.log");
    let connected = || {
        let told = std::fs::read_to_string(&log)?;
        Ok((told.matches("export=\"/disk.raw\"").count() > 1).then_some(()))
    };
    std::thread::scope(|scope| {
        let loading = scope.spawn(|| client::refused(&mut load));
        wait::until("fio to connect", SOON, connected)?;
        let told = access(&cluster, &["--hand-over", "--within", "1m"])?;
        ensure!(told["hand_over_until"].is_string(), "{told}");
        wrote(&mut two, 2)?;
        is_held_by(&cluster, "hv-2")?;
        let ended = loading
            .join()
            .map_err(|_| anyhow::anyhow!("fio's thread panicked"))?;
        let said = ended.context("fio wrote on")?;
        ensure!(said.contains("Operation not permitted"), "{said}");
        Ok(())
    })?;
    is_refused(&mut one)?;
    is_refused(&mut connect_first(&cluster)?)?;
    holds(&mut one, 2)?;

    // hv-2 dies, and nobody wants to wait for its lease.
    hv_2.kill()?;
    access(&cluster, &["--break"])?;
    let before = times_told(&cluster, FIRST_HAS_ACCESS)?;
    let begun = Instant::now();
    wrote(&mut connect_first(&cluster)?, 3)?;
    is_at_once(begun)?;
    is_held_by(&cluster, "fs-router")?;
    let is_told = || Ok((times_told(&cluster, FIRST_HAS_ACCESS)? > before).then_some(()));
    wait::until("the access to be told", SOON, is_told)?;
    waited_for_no_lease(&cluster)?;
    // What had lost access has lost it for good.
    is_refused(&mut one)?;
    holds(&mut one, 3)?;
    cluster.finish()
}

#[test]
fn the_next_process_of_an_fs_router_writes_on_at_once_and_another_only_when_the_node_is_gone() -> Result<()> {
    let (cluster, mut hv_2) = two()?;
    let mut two = connect_second(&cluster)?;
    wrote(&mut connect_first(&cluster)?, 1)?;
    let given_up = || Ok(access(&cluster, &[])?["holder"].is_null().then_some(()));
    wait::until("access to be given up with the connection", SOON, given_up)?;
    wrote(&mut two, 2)?;
    drop(two);
    wait::until("access to be given up with the connection", SOON, given_up)?;

    let mut one = connect_first(&cluster)?;
    wrote(&mut one, 3)?;
    cluster.swap(Service::FsRouter)?;
    wrote(&mut one, 4)?;
    let before = cluster.kill(Service::FsRouter)?;
    cluster.restarted(Service::FsRouter, before)?;
    let begun = Instant::now();
    let mut one = connect_first(&cluster)?;
    wrote(&mut one, 5)?;
    is_at_once(begun)?;
    let mut two = connect_second(&cluster)?;
    is_refused(&mut two)?;
    ensure!(
        times_told(&cluster, FIRST_HAS_ACCESS)? > 0,
        "its access was not told"
    );
    waited_for_no_lease(&cluster)?;

    // Refused until the lease is over, and that may be before this asks.
    cluster.kill_for_good(Service::FsRouter)?;
    let is_free = || Ok((write(&mut two, 6)? == 0).then_some(()));
    wait::until("hv-2 to have access", SOON, is_free)?;
    is_held_by(&cluster, "hv-2")?;
    let is_told = || Ok((times_told(&cluster, WAITED)? > 0).then_some(()));
    wait::until("why hv-2 has access to be told", SOON, is_told)?;
    hv_2.stop()?;
    cluster.start_service(Service::FsRouter)?;
    cluster.ready()?;
    let mut one = connect_first(&cluster)?;
    wrote(&mut one, 7)?;
    cluster.finish()
}
