//! Proof 7: a back end that is slow, full, absent, or returns other bytes than it was given.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use sconce_tests::cluster::{Cluster, SOON, Service};
use sconce_tests::nbd::{Ask, Nbd};
use sconce_tests::writer::Writer;
use sconce_tests::{client, edit, rounds, seed};

const MIB: u32 = 1 << 20;

fn block(number: u64) -> Vec<u8> {
    let mut bytes = vec![0; MIB as usize];
    fastrand::Rng::with_seed(number).fill(&mut bytes);
    bytes
}

#[test]
fn a_slow_back_end_slows_writes_and_loses_none() -> Result<()> {
    let seed = seed();
    let mut random = fastrand::Rng::with_seed(seed);
    let mut cluster = Cluster::start()?;
    // Only where the machine itself is slow, too.
    for told in ["storing does not work now", "cannot announce this node"] {
        cluster.announce(told);
    }
    cluster.create("/stamped", "64M")?;
    let mut writer = Writer::connect(&cluster.nbd_socket(), "/stamped", seed)?;
    // The first write takes write access from the registry, which the storage-router hosts.
    ensure!(
        writer.write_for(Duration::from_millis(50))?,
        "the connection broke"
    );
    for _ in 0..rounds(10, 100) {
        // The storage-router answers in fits and starts.
        cluster.signal(Service::StorageRouter, "STOP")?;
        ensure!(
            writer.write_for(Duration::from_millis(random.u64(50..400)))?,
            "the connection broke"
        );
        cluster.signal(Service::StorageRouter, "CONT")?;
        ensure!(
            writer.write_for(Duration::from_millis(random.u64(5..60)))?,
            "the connection broke"
        );
    }
    writer.check()?;
    cluster.finish()
}

#[test]
fn an_absent_back_end_holds_what_it_cannot_take_and_goes_on_when_it_is_back() -> Result<()> {
    let seed = seed();
    let mut cluster = Cluster::start()?;
    for told in ["back end fails", "storing does not work now"] {
        cluster.announce(told);
    }
    cluster.create("/stamped", "32M")?;
    let mut writer = Writer::connect(&cluster.nbd_socket(), "/stamped", seed)?;
    ensure!(
        writer.write_for(Duration::from_millis(500))?,
        "the connection broke"
    );
    let (there, away) = (cluster.path("backend"), cluster.path("backend.away"));
    fs::rename(&there, &away)?;
    ensure!(writer.write_for(Duration::from_secs(2))?, "the connection broke");
    fs::remove_dir_all(&there).or_else(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    })?;
    fs::rename(&away, &there)?;
    ensure!(
        writer.write_for(Duration::from_millis(500))?,
        "the connection broke"
    );
    writer.check()?;
    cluster.sconce(["volume", "sync", "/stamped"])?;
    cluster.finish()
}

/// A small file system in memory, unmounted when dropped.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn mount(at: &Path, size: &str) -> Result<Tmpfs> {
        fs::create_dir_all(at)?;
        let tmpfs = Tmpfs(at.to_owned());
        tmpfs.options(&format!("size={size}"))?;
        Ok(tmpfs)
    }

    fn resize(&self, size: &str) -> Result<()> {
        self.options(&format!("remount,size={size}"))
    }

    /// Bytes that are free.
    fn room(&self) -> Result<u64> {
        let free = rustix::fs::statvfs(&self.0)?;
        Ok(free.f_bavail * free.f_frsize)
    }

    fn options(&self, options: &str) -> Result<()> {
        let mut mount = client::command("mount", SOON);
        client::run(mount.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(&self.0)).map(drop)
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // A test that fails is not to fail twice.
        let _ = client::output(client::command("umount", SOON).arg("--lazy").arg(&self.0));
    }
}

/// An answer that takes longer stays away.
const QUIET: Duration = Duration::from_secs(2);
/// A back end with less room than this takes no SCO of the default size: 4 MiB, its TLog area and the envelope.
const SCO_OBJECT: u64 = 5 << 20;

#[test]
fn a_full_back_end_holds_writes_until_there_is_room_as_root() -> Result<()> {
    let mut cluster = Cluster::prepare()?;
    for told in ["back end fails", "storing does not work now"] {
        cluster.announce(told);
    }
    let small = Tmpfs::mount(&cluster.path("backend"), "48m")?;
    edit::set(cluster.run_dir(), "volume-router", "buffer.size", "64 MiB")?;
    cluster.script(&["up"])?;
    cluster.create("/disk", "256M")?;
    let mut nbd = Nbd::connect(&cluster.nbd_socket(), "/disk", SOON)?;
    // More than back end and write buffer hold together: sooner or later an answer stays away.
    let total = 200_u64;
    let (mut sent, mut answered, mut grown) = (0, 0, false);
    let mut last = Instant::now();
    while answered < total {
        while sent < total && nbd.in_flight() < 8 {
            nbd.send(Ask::Write, sent * u64::from(MIB), MIB, &block(sent))?;
            sent += 1;
        }
        match nbd.receive_within(QUIET)? {
            Some(answer) => {
                ensure!(answer.error == 0, "error {} after {answered} MiB", answer.error);
                answered += 1;
                last = Instant::now();
            }
            // As much as the back end alone holds is acknowledged, and nothing more fits there.
            None if !grown && answered >= 48 && small.room()? < SCO_OBJECT => {
                small.resize("512m")?;
                grown = true;
                last = Instant::now();
            }
            None => ensure!(
                last.elapsed() < 2 * SOON,
                "no answer for {:?} after {answered} MiB; made room: {grown}, room: {}",
                last.elapsed(),
                small.room()?
            ),
        }
    }
    ensure!(grown, "200 MiB went into 48 and 64");
    for number in 0..total {
        let found = nbd.ask(Ask::Read, number * u64::from(MIB), MIB, &[])?;
        ensure!(found == block(number), "MiB {number} is not what was written");
    }
    drop(nbd);
    // The run directory can only be removed once nothing is mounted in it.
    cluster.script(&["down"])?;
    drop(small);
    cluster.finish()
}

/// Writes a volume, has it stored, and takes away every other copy than the back end's.
fn only_on_the_back_end(cluster: &Cluster) -> Result<()> {
    cluster.create("/disk", "64M")?;
    let mut nbd = Nbd::connect(&cluster.nbd_socket(), "/disk", SOON)?;
    for number in 0..16 {
        nbd.ask(Ask::Write, number * u64::from(MIB), MIB, &block(number))?;
    }
    nbd.ask(Ask::Flush, 0, 0, &[])?;
    drop(nbd);
    cluster.sconce(["volume", "sync", "/disk"])?;
    cluster.script(&["down"])?;
    for kept in ["buffer", "cache"] {
        let path = cluster.path(kept);
        if path.exists() {
            fs::remove_dir_all(path)?;
        }
    }
    Ok(())
}

/// Flips one bit in the middle of each SCO object below a directory; returns how many there are.
fn flip(cluster: &Cluster, directory: &str) -> Result<usize> {
    let files = cluster.files_in(directory)?;
    let scos: Vec<_> = files
        .iter()
        .filter(|path| path.to_string_lossy().contains("/sco/"))
        .collect();
    for sco in &scos {
        let file = fs::OpenOptions::new().read(true).write(true).open(sco)?;
        let middle = file.metadata()?.len() / 2;
        let mut byte = [0];
        file.read_exact_at(&mut byte, middle)?;
        file.write_all_at(&[byte[0] ^ 0x10], middle)?;
    }
    Ok(scos.len())
}

#[test]
fn flipped_bits_are_reported_and_never_returned() -> Result<()> {
    let mut cluster = Cluster::start()?;
    only_on_the_back_end(&cluster)?;
    cluster.announce("no good copy is left");
    ensure!(flip(&cluster, "backend")? > 0, "there is no SCO on the back end");
    cluster.script(&["up"])?;
    let mut nbd = Nbd::connect(&cluster.nbd_socket(), "/disk", SOON)?;
    let mut refused = 0;
    for number in 0..16_u64 {
        let request = nbd.send(Ask::Read, number * u64::from(MIB), MIB, &[])?;
        let answer = nbd.receive()?;
        ensure!(answer.request == request, "an answer to something else");
        refused += u32::from(answer.error != 0);
        ensure!(
            answer.error != 0 || answer.data == block(number),
            "MiB {number}: other bytes than written, no error"
        );
    }
    ensure!(refused > 0, "no read met a flipped bit");
    let logs = sconce_tests::logs::ends(cluster.run_dir());
    ensure!(
        logs.contains("ERROR") && logs.contains("/sco/"),
        "no ERROR that names the object:\n{logs}"
    );
    cluster.finish()
}

#[test]
fn a_copy_on_another_back_end_answers_for_a_flipped_one() -> Result<()> {
    let mut cluster = Cluster::prepare()?;
    two_copies(&cluster)?;
    cluster.script(&["up"])?;
    only_on_the_back_end(&cluster)?;
    for told in ["bad copy", "repaired"] {
        cluster.announce(told);
    }
    ensure!(
        flip(&cluster, "backend/first")? > 0,
        "there is no SCO on the first back end"
    );
    cluster.script(&["up"])?;
    let mut nbd = Nbd::connect(&cluster.nbd_socket(), "/disk", SOON)?;
    for number in 0..16_u64 {
        let found = nbd.ask(Ask::Read, number * u64::from(MIB), MIB, &[])?;
        ensure!(found == block(number), "MiB {number} is not what was written");
    }
    cluster.finish()
}

/// Settings with two back ends and every object on both.
fn two_copies(cluster: &Cluster) -> Result<()> {
    let backend = |name: &str| {
        let dir = cluster.path("backend").join(name).display().to_string();
        toml::Table::from_iter([("name".to_owned(), name.into()), ("dir".to_owned(), dir.into())])
    };
    let pool = toml::Table::from_iter([
        ("name".to_owned(), "default".into()),
        ("protect".to_owned(), "replica:2".into()),
        ("backends".to_owned(), vec!["first", "second"].into()),
    ]);
    edit::set(
        cluster.run_dir(),
        "storage-router",
        "backends",
        vec![backend("first"), backend("second")],
    )?;
    edit::set(cluster.run_dir(), "storage-router", "pools", vec![pool])
}
