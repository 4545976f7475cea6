//! A pool of fragments with all services real: compressed, encrypted, and read back after the write buffer and as many back ends are
//! lost as its policy allows.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use sconce_tests::cluster::{Cluster, SOON};
use sconce_tests::edit;
use sconce_tests::nbd::{Ask, Nbd};
use toml::Table;

const MIB: u32 = 1 << 20;
/// More than a SCO.
const BLOCKS: u64 = 12;
const BACKENDS: [&str; 6] = ["disk-1", "disk-2", "disk-3", "disk-4", "disk-5", "disk-6"];
/// What a guest keeps secret, in each cluster.
const SECRET: &[u8] = b"the guest's own words, which are nobody else's";

/// A block whose one half is words and whose other half does not compress.
fn block(number: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(number);
    let mut bytes = vec![0; MIB as usize];
    for cluster in bytes.chunks_exact_mut(4096) {
        let (words, noise) = cluster.split_at_mut(2048);
        for place in words.chunks_exact_mut(SECRET.len()) {
            place.copy_from_slice(SECRET);
        }
        random.fill(noise);
    }
    bytes
}

fn directory(cluster: &Cluster, backend: &str) -> PathBuf {
    cluster.path("coded").join(backend)
}

fn with_a_coded_pool(cluster: &Cluster) -> Result<()> {
    let key = cluster.path("pool.key");
    fs::write(&key, [7; 32])?;
    fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    let mut backends = Vec::new();
    for name in BACKENDS {
        let directory = directory(cluster, name);
        fs::create_dir_all(&directory)?;
        let directory = directory.to_str().context("a path that is no text")?.to_owned();
        backends.push(Table::from_iter([
            ("name".to_owned(), name.into()),
            ("dir".to_owned(), toml::Value::from(directory)),
        ]));
    }
    let pool = Table::from_iter([
        ("name".to_owned(), "default".into()),
        ("protect".to_owned(), "ec:4+2".into()),
        ("compress".to_owned(), "zstd".into()),
        ("encrypt".to_owned(), true.into()),
        ("backends".to_owned(), BACKENDS.to_vec().into()),
    ]);
    let key = Table::from_iter([
        ("pool".to_owned(), "default".into()),
        ("id".to_owned(), toml::Value::from(1)),
        (
            "file".to_owned(),
            key.to_str().context("a path that is no text")?.into(),
        ),
    ]);
    edit::set(cluster.run_dir(), "storage-router", "backends", backends)?;
    edit::set(cluster.run_dir(), "storage-router", "pools", vec![pool])?;
    edit::set(cluster.run_dir(), "storage-router", "keys", vec![key])
}

/// The files below a directory that hold the secret, and how many bytes there are in all.
fn holding_the_secret(directory: &Path) -> Result<(Vec<PathBuf>, u64)> {
    let (mut found, mut bytes) = (Vec::new(), 0);
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            let (within, more) = holding_the_secret(&path)?;
            found.extend(within);
            bytes += more;
            continue;
        }
        let content = fs::read(&path)?;
        bytes += content.len() as u64;
        if content.windows(SECRET.len()).any(|place| place == SECRET) {
            found.push(path);
        }
    }
    Ok((found, bytes))
}

fn check(cluster: &Cluster) -> Result<()> {
    let mut nbd = Nbd::connect(&cluster.nbd_socket(), "/disk", SOON)?;
    for number in 0..BLOCKS {
        let found = nbd.ask(Ask::Read, number * u64::from(MIB), MIB, &[])?;
        ensure!(found == block(number), "MiB {number} is not what was written");
    }
    Ok(())
}

#[test]
fn a_coded_pool_keeps_secrets_and_outlives_its_buffer_and_two_back_ends() -> Result<()> {
    let mut cluster = Cluster::prepare()?;
    with_a_coded_pool(&cluster)?;
    cluster.script(&["up"])?;
    cluster.create("/disk", "64M")?;
    let mut nbd = Nbd::connect(&cluster.nbd_socket(), "/disk", SOON)?;
    for number in 0..BLOCKS {
        nbd.ask(Ask::Write, number * u64::from(MIB), MIB, &block(number))?;
    }
    nbd.ask(Ask::Flush, 0, 0, &[])?;
    cluster.sconce(["volume", "sync", "/disk"])?;
    drop(nbd);
    cluster.script(&["down"])?;
    let (found, bytes) = holding_the_secret(&cluster.path("coded"))?;
    ensure!(found.is_empty(), "in clear: {found:?}");
    // One and a half times for the policy, and half of what was written compresses to next to nothing.
    let written = BLOCKS * u64::from(MIB);
    ensure!(
        bytes > written / 2 && bytes < written,
        "{bytes} bytes on the back ends for {written} of the guest"
    );
    // The machine's SSD and two of its disks are gone.
    fs::remove_dir_all(cluster.path("buffer"))?;
    for backend in &BACKENDS[1..3] {
        fs::remove_dir_all(directory(&cluster, backend))?;
    }
    cluster.announce("back end fails");
    cluster.script(&["up"])?;
    check(&cluster)?;
    let status = cluster.sconce(["status", "--services"]);
    ensure!(status.is_err(), "nobody says that back ends are gone: {status:?}");
    cluster.finish()
}
