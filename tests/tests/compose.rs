//! Sconce as containers: etcd, two volume-routers, two storage-routers, mutual TLS between them.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sconce_tests::containers::Containers;
use sconce_tests::load::{Reconnecting, Watch, fio};
use sconce_tests::nbd::{Ask, Nbd};
use sconce_tests::{client, wait};

const STARTING: Duration = Duration::from_secs(120);
const COPY: Duration = Duration::from_secs(120);
/// How long a connection to what is reached may take.
const REACHED: Duration = Duration::from_secs(60);
/// After so long it is not reached: on one bridge a connection takes no time at all.
const NOT_REACHED: Duration = Duration::from_secs(10);
/// So long a guest's driver waits for its disk (SCSI).
const PATIENCE: Duration = Duration::from_secs(30);
/// One volume-router less than three.
const FEWER: &str = "--no-recreate --scale volume-router=2 volume-router";
const NBD: &str = "nbd://127.0.0.1:10809";

#[test]
fn containers_serve_a_disk_and_survive_their_restart_with_docker() -> Result<()> {
    let containers = Containers::up(&["volume-router=2", "storage-router=2"])?;
    logged(&containers, || serve(&containers))
}

#[test]
fn a_machine_that_is_cut_off_is_replaced_and_comes_back_with_docker() -> Result<()> {
    let containers = Containers::cluster()?;
    logged(&containers, || cut_off(&containers))
}

#[test]
fn machines_are_replaced_one_after_the_other_under_verification_with_docker() -> Result<()> {
    let containers = Containers::cluster()?;
    // One of each kind, and a second volume-router: by then it owns, or has a twin.
    logged(&containers, || {
        changed_under_verification(
            &containers,
            &[
                "--force-recreate volume-router-1",
                "--force-recreate fs-router-1",
                "--force-recreate storage-router-1",
                "--force-recreate etcd-1",
                "--force-recreate volume-router-2",
            ],
        )
    })
}

#[test]
fn services_are_scaled_and_replaced_under_verification_with_docker() -> Result<()> {
    let containers = Containers::up(&["volume-router=2", "storage-router=1"])?;
    logged(&containers, || {
        changed_under_verification(
            &containers,
            &[
                "--no-recreate --scale volume-router=3 volume-router",
                "--no-recreate --scale storage-router=2 storage-router",
                "--force-recreate fs-router",
                "--force-recreate --scale volume-router=3 volume-router",
                "--force-recreate --scale storage-router=2 storage-router",
                FEWER,
                "--no-recreate --scale storage-router=1 storage-router",
            ],
        )
    })
}

/// Carries out each of `changes` (what is added to `docker-compose up`) while two volumes are written: one by fio, which reads
/// back what it wrote, one by a client that looks how long it waits. Both are served by a client that reconnects, as qemu does for
/// a guest: the connections to an fs-router whose container goes end with it.
fn changed_under_verification(containers: &Containers, changes: &[&str]) -> Result<()> {
    let volumes = ["/fio", "/timed"];
    for volume in volumes {
        let create = ["volume", "create", volume, "--size", "48M", "--dtl", "sync"];
        wait::until("a volume to be created", STARTING, || {
            Ok(containers.sconce(&create).ok())
        })?;
    }
    let are_in_sync = || {
        wait::until("the twins to be in sync", STARTING, || {
            let states = volumes.map(|volume| state_of(containers, volume));
            Ok(states.iter().all(|state| state == "in_sync").then_some(()))
        })
    };
    are_in_sync()?;
    let dir = tempfile::tempdir()?;
    let disks = Reconnecting::start(dir.path(), ("127.0.0.1", 10809), &volumes)?;
    let uri = format!("--uri=nbd+unix:////fio?socket={}", disks.socket().display());
    let mut timed = Nbd::connect(disks.socket(), "/timed", STARTING)?;
    let mut one_write = || {
        timed.send(Ask::Write, 0, 4096, &[7; 4096])?;
        let answer = timed.receive()?;
        ensure!(answer.error == 0, "a write ended with error {}", answer.error);
        Ok(())
    };
    let loading = Watch::default();
    let verify = || client::run(&mut fio(20, &["--ioengine=nbd".to_owned(), uri.clone()])).map(drop);
    let change_all = || {
        for change in changes {
            are_in_sync()?;
            let timing = Watch::default();
            let change_one = || {
                timing.at_work()?;
                // Its volumes would wait for it: it stores them and stops, and may come back.
                if *change == FEWER {
                    let id = last_of(containers, "volume-router")?;
                    let name = docker(&["exec", &id, "cat", "/run/sconce/name"])?;
                    containers.sconce(&["node", "drain", name.trim()])?;
                }
                let mut up = containers.compose(&["up", "--detach", "--no-deps"]);
                client::run(up.args(change.split(' ')))?;
                timing.at_work()
            };
            let waits = timing.during(|| timing.time(&mut one_write), change_one)?;
            let pause = waits.iter().max().copied().unwrap_or_default();
            eprintln!("{change}: {} writes, the longest wait {pause:?}", waits.len());
            ensure!(pause < PATIENCE, "{change}: a write took {pause:?}");
        }
        are_in_sync().map(drop)
    };
    let runs = loading.during(|| loading.time(verify), change_all)?;
    eprintln!("{} runs of fio, each verified", runs.len());
    Ok(())
}

/// The container of a scaled service that goes when there is to be one less: that with the highest number.
fn last_of(containers: &Containers, service: &str) -> Result<String> {
    let mut numbered = Vec::new();
    for id in containers.ids(service)? {
        let format = "{{index .Config.Labels \"com.docker.compose.container-number\"}}";
        let number: u32 = docker(&["inspect", "--format", format, &id])?.trim().parse()?;
        numbered.push((number, id));
    }
    let last = numbered.into_iter().max();
    Ok(last.with_context(|| format!("no container of {service} runs"))?.1)
}

/// The state of a volume's twin; empty while nobody says.
fn state_of(containers: &Containers, volume: &str) -> String {
    let shown = containers.sconce(&["volume", "show", volume, "--output", "json"]);
    let shown = shown.ok().and_then(|text| serde_json::from_str(&text).ok());
    let shown: serde_json::Value = shown.unwrap_or_default();
    shown["dtl_state"].as_str().unwrap_or_default().to_owned()
}

/// What the containers say, where a test failed.
fn logged(containers: &Containers, test: impl FnOnce() -> Result<()>) -> Result<()> {
    let done = test();
    if done.is_err() {
        let logs = client::output(&mut containers.compose(&["logs", "--tail=40"]))?;
        eprintln!("{}", String::from_utf8_lossy(&logs.stdout));
    }
    done
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
