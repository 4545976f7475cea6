//! The commands that run Sconce on one machine: `make up` and `make down` are these scripts.

use std::fs;

use anyhow::{Result, ensure};
use sconce_tests::client;
use sconce_tests::cluster::{Cluster, SOON, Service};

#[test]
fn up_twice_is_harmless_and_up_again_finds_all_data() -> Result<()> {
    let cluster = Cluster::start()?;
    let pids = Service::ALL.map(|service| cluster.pid(service).ok());
    cluster.create("/vm1/disk.raw", "1G")?;
    fs::write(cluster.mounted("/vm1/notes.txt"), "kept")?;
    let told = cluster.script(&["up"])?;
    ensure!(
        told.contains("nbd+unix:"),
        "it does not say how to connect: {told}"
    );
    ensure!(
        pids == Service::ALL.map(|service| cluster.pid(service).ok()),
        "`up` restarted a service that ran"
    );
    cluster.script(&["down"])?;
    cluster.script(&["down"])?;
    cluster.script(&["up"])?;
    ensure!(
        fs::read_to_string(cluster.mounted("/vm1/notes.txt"))? == "kept",
        "the file changed"
    );
    let shown = cluster.show("/vm1/disk.raw")?;
    ensure!(shown["size_bytes"] == 1 << 30, "{shown}");
    cluster.finish()
}

#[test]
fn what_clients_are_told_is_where_they_find_the_volume() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.create("/vm 1/disk.raw", "64M")?;
    let shown = cluster.show("/vm 1/disk.raw")?;
    let uri = shown["nbd_uri"].as_str().unwrap_or_default();
    let size = client::run(client::command("nbdinfo", SOON).args(["--size", uri]))?;
    ensure!(size.trim() == "67108864", "nbdinfo tells {size}");
    let size = client::qemu_img(SOON, ["info", "-f", "raw", uri])?;
    ensure!(size.contains("64 MiB"), "qemu-img tells {size}");
    let mounted = shown["mount_path"].as_str().unwrap_or_default();
    ensure!(
        fs::metadata(mounted)?.len() == 64 << 20,
        "{mounted} has another size"
    );
    let list = client::run(client::command("nbdinfo", SOON).args([
        "--list",
        &format!("nbd+unix:///?socket={}", cluster.nbd_socket().display()),
    ]))?;
    ensure!(list.contains("vm 1/disk.raw"), "not listed: {list}");
    cluster.finish()
}

#[test]
fn a_killed_service_comes_back_and_answers() -> Result<()> {
    let cluster = Cluster::start()?;
    for service in Service::ALL {
        let pid = cluster.kill(service)?;
        cluster.restarted(service, pid)?;
    }
    cluster.ready()?;
    cluster.create("/disk", "1M")?;
    Ok(())
}

#[test]
fn a_service_that_fails_at_its_start_is_told_with_the_reason() -> Result<()> {
    let cluster = Cluster::prepare()?;
    let path = cluster.path("volume-router.toml");
    let settings = fs::read_to_string(&path)?;
    fs::write(&path, format!("{settings}\nno_such_key = 1\n"))?;
    let told = client::refused(&mut cluster.script_command(&["up"])?)?;
    for wanted in [
        "volume-router ends as soon as it is started",
        "volume-router.toml",
        "no_such_key",
    ] {
        ensure!(told.contains(wanted), "{wanted:?} is not in: {told}");
    }
    ensure!(
        cluster.pid(Service::FsRouter).is_err(),
        "the others were left running"
    );
    Ok(())
}
