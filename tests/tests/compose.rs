//! Sconce as containers: etcd, two volume-routers, two storage-routers, mutual TLS between them.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sconce_tests::containers::Containers;
use sconce_tests::{client, wait};

const STARTING: Duration = Duration::from_secs(120);
const COPY: Duration = Duration::from_secs(120);
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
    for volume in ["/one", "/two"] {
        let uri = format!("{NBD}/{volume}");
        client::run(client::command("nbdcopy", COPY).arg(&uri).arg(&out))
            .with_context(|| volume.to_owned())?;
        client::same_bytes(&disk, &out)?;
        std::fs::remove_file(&out)?;
    }
    Ok(())
}
