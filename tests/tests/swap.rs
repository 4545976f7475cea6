//! The fs-router is replaced under load: what clients have open goes on.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sconce_tests::cluster::{Cluster, SOON, Service};
use sconce_tests::load::{Watch, fio, pauses};
use sconce_tests::nbd::{Ask, Nbd};
use sconce_tests::{client, full, rounds, wait};

/// What a guest may wait for an answer at a swap, as the median over the rounds: none of its timeouts is as short.
const PAUSE_MEDIAN: Duration = Duration::from_secs(2);
/// Beside other tests.
const PAUSE_MEDIAN_SHORT: Duration = Duration::from_secs(10);
/// At a hand-over the server ends handshakes that are not through within this (LAST_OPTIONS_MAX in the fs-router's listener): who was
/// so slow comes again.
const HANDSHAKE_MAX: Duration = Duration::from_secs(2);

#[test]
fn nbd_clients_keep_their_connections_while_the_fs_router_is_swapped() -> Result<()> {
    let cluster = Cluster::start()?;
    for volume in ["/fio.raw", "/timed.raw"] {
        cluster.create(volume, "64M")?;
    }
    let swaps = rounds(5, 20);
    let uri = format!("--uri={}", cluster.nbd_uri("/fio.raw"));
    let mut load = fio(5 + swaps, &["--ioengine=nbd".to_owned(), uri]);
    let (timing, loading, connecting) = (Watch::default(), Watch::default(), Watch::default());
    let mut timed = Nbd::connect(&cluster.nbd_socket(), "/timed.raw", SOON)?;
    let one_write = || {
        timed.send(Ask::Write, 0, 4096, &[7; 4096])?;
        let answer = timed.receive()?;
        ensure!(answer.error == 0, "a write ended with error {}", answer.error);
        Ok(())
    };
    // Nobody who comes meanwhile is turned away.
    let connect = || {
        loop {
            let begun = Instant::now();
            match Nbd::connect(&cluster.nbd_socket(), "/timed.raw", SOON) {
                Ok(_) => return Ok(()),
                Err(error) if begun.elapsed() < HANDSHAKE_MAX || error.kind() == ErrorKind::WouldBlock => {
                    return Err(error).context("connecting");
                }
                Err(_) => {}
            }
        }
    };
    let log = cluster.path("fs-router.log");
    let swap = || {
        let is_loading = || {
            Ok(fs::read_to_string(&log)?
                .contains("export=\"/fio.raw\"")
                .then_some(()))
        };
        wait::until("fio to connect", SOON, is_loading)?;
        (0..swaps).try_for_each(|_| {
            timing.at_work()?;
            cluster.swap(Service::FsRouter)
        })?;
        timing.at_work()
    };
    loading.during(
        || client::run(&mut load).map(drop),
        || {
            let swap_and_connect = || connecting.during(|| connecting.time(connect).map(drop), swap);
            let waits = timing.during(|| timing.time(one_write), swap_and_connect)?;
            let (requests, pauses) = (waits.len(), pauses(waits, swaps));
            eprintln!("{swaps} swaps, {requests} requests, pauses of {pauses:?}");
            let median = pauses.get(pauses.len() / 2).copied().unwrap_or_default();
            let bound = if full() { PAUSE_MEDIAN } else { PAUSE_MEDIAN_SHORT };
            ensure!(median < bound, "pauses of {pauses:?}");
            Ok(())
        },
    )?;
    cluster.finish()
}

#[test]
fn a_request_that_had_come_in_half_is_whole_after_the_swap() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.create("/disk.raw", "4M")?;
    let mut client = Nbd::connect(&cluster.nbd_socket(), "/disk.raw", SOON)?;
    // Of a large write the data is read to another place than that of a small one.
    for (offset, length) in [(0, 4096), (1 << 20, 512 << 10)] {
        let data: Vec<u8> = (0..length).map(|at: u32| at.to_le_bytes()[1]).collect();
        let rest = client.send_one_and_a_half(offset, &data)?;
        ensure!(client.receive()?.error == 0, "the whole write failed");
        cluster.swap(Service::FsRouter)?;
        client.send_rest(&rest)?;
        ensure!(client.receive()?.error == 0, "the write in two halves failed");
        client.send(Ask::Read, offset, 2 * length, &[])?;
        let found = client.receive()?.data;
        ensure!(
            found == [&data[..], &data].concat(),
            "{length} bytes at {offset} are not what was written"
        );
    }
    cluster.finish()
}

#[test]
fn files_stay_open_while_the_fs_router_is_swapped_or_killed() -> Result<()> {
    let cluster = Cluster::start()?;
    // Without a name only what the kernel has open keeps it.
    let nameless = cluster.mounted("/nameless");
    let held = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&nameless)?;
    held.write_all_at(b"kept", 0)?;
    fs::remove_file(&nameless)?;
    let rounds = rounds(6, 20);
    let file = cluster.mounted("/fio.raw");
    let name = format!("--filename={}", file.display());
    let direct = ["--ioengine=libaio", "--direct=1"].map(str::to_owned);
    let mut load = fio(5 + rounds, &[&direct[..], &[name]].concat());
    let (timing, loading) = (Watch::default(), Watch::default());
    let timed = File::create(cluster.mounted("/timed.raw"))?;
    let one_write = || Ok(timed.write_all_at(&[7; 4096], 0)?);
    let before = mounts(&cluster)?;
    let disturb = || {
        wait::until("fio to begin", SOON, || Ok(file.exists().then_some(())))?;
        (0..rounds).try_for_each(|round| {
            timing.at_work()?;
            let made = cluster.mounted(&format!("/made-{round}"));
            fs::write(&made, "made")?;
            if round % 2 == 0 {
                cluster.swap(Service::FsRouter)?;
            } else {
                let pid = cluster.kill(Service::FsRouter)?;
                cluster.restarted(Service::FsRouter, pid)?;
            }
            ensure!(fs::read(&made)? == b"made", "{} changed", made.display());
            Ok(fs::remove_file(&made)?)
        })?;
        timing.at_work()
    };
    loading.during(
        || client::run(&mut load).map(drop),
        || {
            let waits = timing.during(|| timing.time(one_write), disturb)?;
            let (requests, pauses) = (waits.len(), pauses(waits, rounds));
            eprintln!("{rounds} swaps and kills in turn, {requests} requests, pauses of {pauses:?}");
            Ok(())
        },
    )?;
    ensure!(before == mounts(&cluster)?, "it was mounted anew");
    let mut found = [0; 4];
    held.read_exact_at(&mut found, 0)?;
    ensure!(&found == b"kept", "the file without a name holds {found:?}");
    ensure!(
        held.metadata()?.nlink() == 0,
        "the file without a name has one again"
    );
    drop(held);
    cluster.finish()
}

/// The mounts of the tree: each one's number, and that of its device.
fn mounts(cluster: &Cluster) -> Result<Vec<String>> {
    let at = format!(" {} ", cluster.path("mnt").display());
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let ours = table.lines().filter(|line| line.contains(&at));
    Ok(ours
        .map(|line| line.split(' ').take(3).collect::<Vec<_>>().join(" "))
        .collect())
}

/// A client of a snapshot that has selected contexts: looks, waits for the file `swapped`, and looks again.
const LOOKS_TWICE: &str = "
import nbd, os, time
h = nbd.NBD()
h.add_meta_context('base:allocation')
h.add_meta_context('qemu:dirty-bitmap:monday')
h.connect_uri(uri)
def look():
    found = {}
    def more(context, offset, entries, error):
        found.setdefault(context, []).extend(entries)
    h.block_status(1 << 20, 0, more)
    return bytes(h.pread(12288, 0)), found
before = look()
assert before[0] == b'm' * 8192 + b't' * 4096, before
assert len(before[1]) == 2, before
open(connected, 'w').close()
while not os.path.exists(swapped):
    time.sleep(0.01)
after = look()
assert after == before, (before, after)
h.shutdown()
";

#[test]
fn clients_of_a_snapshot_stay_on_it_whatever_has_its_name_after_the_swap() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.create("/disk.raw", "1M")?;
    let write = |content: u8, length: usize, offset: u64| -> Result<()> {
        let disk = File::options().write(true).open(cluster.mounted("/disk.raw"))?;
        Ok(disk.write_all_at(&vec![content; length], offset)?)
    };
    write(b'm', 65536, 0)?;
    cluster.sconce(["snapshot", "create", "/disk.raw@monday"])?;
    write(b't', 4096, 8192)?;
    cluster.sconce(["snapshot", "create", "/disk.raw@tuesday"])?;
    write(b'n', 65536, 0)?;
    let (connected, swapped) = (cluster.path("connected"), cluster.path("swapped"));
    let uri = cluster.nbd_uri("/disk.raw@tuesday");
    let names = format!("uri, connected, swapped = {uri:?}, {connected:?}, {swapped:?}\n");
    let script = names + LOOKS_TWICE;
    let mut looking = client::command("/usr/bin/python3", SOON);
    looking.args(["-c", &script]);
    let file = File::open(cluster.mounted("/.snapshots/disk.raw@tuesday"))?;
    Watch::default().during(
        || client::run(&mut looking).map(drop),
        || {
            wait::until("the client to connect", SOON, || {
                Ok(connected.exists().then_some(()))
            })?;
            fs::rename(cluster.mounted("/disk.raw"), cluster.mounted("/other.raw"))?;
            cluster.create("/disk.raw", "1M")?;
            cluster.sconce(["snapshot", "create", "/disk.raw@tuesday"])?;
            cluster.swap(Service::FsRouter)?;
            Ok(fs::write(&swapped, "")?)
        },
    )?;
    let mut found = vec![0; 12288];
    file.read_exact_at(&mut found, 0)?;
    ensure!(
        found == [[b'm'; 8192].as_slice(), &[b't'; 4096]].concat(),
        "the file of the snapshot changed"
    );
    ensure!(file.metadata()?.len() == 1 << 20, "its size changed");
    drop(file);
    cluster.finish()
}
