//! A pool whose back ends change with all services real, while a volume in it is written: a disk joins and gets its share, another one
//! dies and is given up, and the volume is whole without its write buffer.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sconce_tests::cluster::Cluster;
use sconce_tests::writer::Writer;
use sconce_tests::{seed, wait};

const VOLUME: &str = "/stamped";
const FIRST: [&str; 6] = ["ec-1", "ec-2", "ec-3", "ec-4", "ec-5", "ec-6"];
/// A debug build moves some hundred fragments in that time.
const SETTLED_WITHIN: Duration = Duration::from_secs(600);

fn add(cluster: &Cluster, name: &str) -> Result<()> {
    let directory = cluster.path(name);
    fs::create_dir_all(&directory)?;
    let directory = directory.to_str().context("a path that is no text")?;
    cluster
        .sconce(["backend", "add", name, "--dir", directory])
        .map(drop)
}

/// Writes until the pool is settled.
fn settled(cluster: &Cluster, writer: &mut Writer) -> Result<()> {
    wait::until("the pool to be settled", SETTLED_WITHIN, || {
        ensure!(
            writer.write_for(Duration::from_millis(100))?,
            "the connection broke"
        );
        let shown = cluster.sconce(["pool", "show", "vms", "--output", "json"])?;
        let shown: serde_json::Value = serde_json::from_str(&shown)?;
        Ok((shown["settled"] == true).then_some(()))
    })
    .map(drop)
}

/// Bytes of what a back end has.
fn bytes_on(cluster: &Cluster, backend: &str) -> Result<u64> {
    let files = cluster.files_in(backend)?;
    // One may be deleted in this moment.
    let bytes = files.iter().filter_map(|file| fs::metadata(file).ok());
    Ok(bytes.map(|metadata| metadata.len()).sum())
}

#[test]
fn a_pool_gets_a_disk_and_over_another_one_while_its_volume_is_written() -> Result<()> {
    let mut cluster = Cluster::start()?;
    FIRST.iter().try_for_each(|name| add(&cluster, name))?;
    let first = FIRST.join(",");
    cluster.sconce([
        "pool",
        "create",
        "vms",
        "--protect",
        "ec:4+2",
        "--backends",
        &first,
    ])?;
    cluster.sconce(["volume", "create", VOLUME, "--size", "64M", "--pool", "vms"])?;
    let mut writer = Writer::connect(&cluster.nbd_socket(), VOLUME, seed())?;
    ensure!(writer.write_for(Duration::from_secs(3))?, "the connection broke");

    add(&cluster, "ec-7")?;
    cluster.sconce(["pool", "place", "vms", "ec-7=1"])?;
    settled(&cluster, &mut writer)?;
    writer.check()?;
    cluster.sconce(["volume", "sync", VOLUME])?;
    let on = |name: &str| bytes_on(&cluster, name);
    let all = FIRST.iter().map(|name| on(name)).sum::<Result<u64>>()?;
    let share = on("ec-7")? * 6 / all.max(1);
    ensure!(
        (0..=1).contains(&share) && on("ec-7")? > all / 30,
        "ec-7 has {} bytes beside {all}",
        on("ec-7")?
    );

    cluster.announce("back end fails");
    cluster.announce("bad copy");
    cluster.announce("repaired");
    // At once, with what is written to it meanwhile.
    fs::rename(cluster.path("ec-2"), cluster.path("dead"))?;
    cluster.sconce(["backend", "drain", "ec-2", "--lost"])?;
    settled(&cluster, &mut writer)?;
    cluster.sconce(["backend", "remove", "ec-2"])?;
    writer.check()?;
    cluster.sconce(["volume", "sync", VOLUME])?;

    // Two others may go now, and the write buffer.
    cluster.script(&["down"])?;
    fs::remove_dir_all(cluster.path("buffer"))?;
    for name in ["ec-4", "ec-7"] {
        fs::remove_dir_all(cluster.path(name))?;
    }
    cluster.script(&["up"])?;
    writer.reconnect()?;
    writer.check()?;
    cluster.finish()
}
