//! Sconce as containers: etcd, two volume-routers, two storage-routers, mutual TLS between them.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sconce_tests::containers::Containers;
use sconce_tests::{client, wait};

const STARTING: Duration = Duration::from_secs(120);
const COPY: Duration = Duration::from_secs(120);
/// How long a connection to what is reached may take.
const REACHED: Duration = Duration::from_secs(60);
/// After so long it is not reached: on one bridge a connection takes no time at all.
const NOT_REACHED: Duration = Duration::from_secs(10);
const NBD: &str = "nbd://127.0.0.1:10809";

#[test]
fn containers_serve_a_disk_and_survive_their_restart_with_docker() -> Result<()> {
    let containers = Containers::up(&["volume-router=2", "storage-router=2"])?;
    let served = serve(&containers);
    if served.is_err() {
        let logs = client::output(&mut containers.compose(&["logs", "--tail=40"]))?;
        eprintln!("{}", String::from_utf8_lossy(&logs.stdout));
    }
    served
}

#[test]
fn a_machine_that_is_cut_off_is_replaced_and_comes_back_with_docker() -> Result<()> {
    let containers = Containers::cluster()?;
    let replaced = cut_off(&containers);
    if replaced.is_err() {
        let logs = client::output(&mut containers.compose(&["logs", "--tail=40"]))?;
        eprintln!("{}", String::from_utf8_lossy(&logs.stdout));
    }
    replaced
}

fn cut_off(containers: &Containers) -> Result<()> {
    let record = || -> Result<serde_json::Value> {
        let shown = containers.sconce(&["volume", "show", "/disk", "--output", "json"])?;
        Ok(serde_json::from_str(&shown)?)
    };
    let in_sync = |what: &str| {
        wait::until(what, STARTING, || {
            Ok((record()?["dtl_state"] == "in_sync").then_some(()))
        })
    };
    let create = "volume create /disk --size 48M --dtl sync --owner volume-router-1";
    let create: Vec<&str> = create.split(' ').collect();
    wait::until("a volume to be created", STARTING, || {
        Ok(containers.sconce(&create).ok())
    })?;
    let dir = tempfile::tempdir()?;
    let (disk, out) = (dir.path().join("disk.raw"), dir.path().join("out.raw"));
    let mut bytes = vec![0; 48 << 20];
    fastrand::Rng::with_seed(2).fill(&mut bytes);
    std::fs::write(&disk, &bytes)?;
    // The second fs-router, of which no other test knows.
    let uri = "nbd://127.0.0.1:10810/disk";
    wait::until("the disk to be written", STARTING, || {
        Ok(client::run(client::command("nbdcopy", COPY).arg(&disk).arg(uri)).ok())
    })?;
    in_sync("the twin to be in sync")?;
    for network in ["registry", "bus"] {
        containers.disconnect("volume-router-1", network)?;
    }
    wait::until("the disk to be read from its next owner", STARTING, || {
        Ok(client::run(client::command("nbdcopy", COPY).arg(uri).arg(&out)).ok())
    })?;
    client::same_bytes(&disk, &out)?;
    ensure!(
        record()?["owner"] != "volume-router-1",
        "it is cut off, and owns the volume"
    );
    // The third takes the twin's part; with that one gone as well only the one that was cut off is left.
    in_sync("another twin")?;
    for (network, address) in [("registry", "10.83.0.31"), ("bus", "10.83.1.31")] {
        containers.connect("volume-router-1", network, address)?;
    }
    let twin = record()?["dtl_host"]
        .as_str()
        .context("no twin is shown")?
        .to_owned();
    let id = containers.ids(&twin)?.swap_remove(0);
    docker(&["kill", "--signal=KILL", &id])?;
    wait::until("the machine that came back to be the twin", STARTING, || {
        let now = record()?;
        Ok((now["dtl_host"] == "volume-router-1" && now["dtl_state"] == "in_sync").then_some(()))
    })?;
    Ok(())
}

fn serve(containers: &Containers) -> Result<()> {
    let status = || containers.sconce(&["status", "--output", "json"]);
    wait::until("all services to be in the registry", STARTING, || {
        let told = status().unwrap_or_default();
        let wanted = [
            "volume-router-1",
            "volume-router-2",
            "storage-router-1",
            "storage-router-2",
            "fs-router-1",
        ];
        Ok(wanted.iter().all(|name| told.contains(name)).then_some(()))
    })?;
    let told = status()?;
    ensure!(
        told.contains("tls://") && !told.contains("tcp://"),
        "endpoints are not TLS: {told}"
    );

    is_closed(containers)?;

    let dir = tempfile::tempdir()?;
    let (disk, out) = (dir.path().join("disk.raw"), dir.path().join("out.raw"));
    let mut bytes = vec![0; 48 << 20];
    fastrand::Rng::with_seed(1).fill(&mut bytes);
    std::fs::write(&disk, &bytes)?;
    for (volume, owner) in [("/one", "volume-router-1"), ("/two", "volume-router-2")] {
        containers.sconce(&["volume", "create", volume, "--size", "48M", "--owner", owner])?;
        let uri = format!("{NBD}/{volume}");
        client::run(client::command("nbdcopy", COPY).arg(&disk).arg(&uri))?;
    }
    // Killed containers come back with their own write buffers.
    for service in ["volume-router", "storage-router"] {
        for id in containers.ids(service)? {
            client::run(client::command("docker", COPY).args(["kill", "--signal=KILL", &id]))?;
            client::run(client::command("docker", COPY).args(["start", &id]))?;
        }
    }
    // Containers that are made again do, too: names and write buffers are in the slots.
    client::run(&mut containers.compose(&[
        "up",
        "--detach",
        "--force-recreate",
        "--no-deps",
        "--scale",
        "volume-router=2",
        "volume-router",
    ]))?;
    wait::until("all services to be healthy", STARTING, || {
        let format = "{{.State.Health.Status}}";
        let mut told = Vec::new();
        for service in ["fs-router", "volume-router", "storage-router", "etcd"] {
            for id in containers.ids(service)? {
                told.push(docker(&["inspect", "--format", format, &id])?);
            }
        }
        Ok(told.iter().all(|health| health.trim() == "healthy").then_some(()))
    })?;
    for volume in ["/one", "/two"] {
        let uri = format!("{NBD}/{volume}");
        client::run(client::command("nbdcopy", COPY).arg(&uri).arg(&out))
            .with_context(|| volume.to_owned())?;
        client::same_bytes(&disk, &out)?;
        std::fs::remove_file(&out)?;
    }
    Ok(())
}

fn docker(arguments: &[&str]) -> Result<String> {
    client::run(client::command("docker", COPY).args(arguments))
}

/// Who takes one container has that part's certificates and nothing more; who gets into the front network has NBD.
fn is_closed(containers: &Containers) -> Result<()> {
    for service in ["fs-router", "volume-router", "storage-router", "etcd"] {
        let id = containers.ids(service)?.swap_remove(0);
        ensure!(
            docker(&["exec", &id, "test", "-e", "/authority"]).is_err(),
            "{service} mounts the authority"
        );
        let keys = docker(&["exec", &id, "find", "/certificates", "-name", "*.key"])?;
        ensure!(
            !keys.is_empty() && keys.lines().all(|key| key.contains(service)),
            "{service} sees the keys of others: {keys}"
        );
        ensure!(
            docker(&["exec", &id, "touch", "/certificates/x"]).is_err(),
            "{service} can change its certificates"
        );
    }
    let from_front = |host: &str, port: u16, within: Duration| {
        let network = containers.network("front");
        // What is not reached gives no answer at all: left to itself, that takes the kernel more than two minutes.
        let seconds = within.as_secs();
        let connect = format!("timeout {seconds} bash -c 'exec 3<>/dev/tcp/{host}/{port}'");
        let image = "sconce/sconce:latest";
        docker(&[
            "run",
            "--rm",
            "--network",
            &network,
            "--entrypoint",
            "bash",
            image,
            "-c",
            &connect,
        ])
    };
    from_front("fs-router", 10809, REACHED)?;
    let etcd = containers.ids("etcd")?.swap_remove(0);
    let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
    let address = docker(&["inspect", "--format", format, &etcd])?;
    for host in ["etcd", address.trim()] {
        ensure!(
            from_front(host, 2379, NOT_REACHED).is_err(),
            "{host} is reached from the front network"
        );
    }
    Ok(())
}
