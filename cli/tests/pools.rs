//! `sconce pool …` and `sconce backend …` against a real storage-router that has no pool and no back end in its settings.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::time::Duration;

use clap::Parser;
use sconce_bus::{Network, Role, ZeromqSettings};
use sconce_cli::args::Cli;
use sconce_cli::cluster::Cluster;
use sconce_runtime::Stop;
use sconce_schemas::records::{BackendPlace, NodeRecord, Protection, Record as _, keys};
use sconce_schemas::wire::registry::Change;
use sconce_storage_router::{Components, Settings, run};
use tokio::task::LocalSet;

const DEADLINE: Duration = Duration::from_secs(20);

async fn cluster(dir: &Path) -> Cluster {
    let run_dir = dir.display();
    let registry = format!("ipc://{run_dir}/bus/registry.sock");
    let settings = format!(
        "[node]\nname = \"sr-1\"\nrun_dir = \"{run_dir}\"\nendpoints = [\"ipc://{run_dir}/bus/sr.sock\"]\n\
         [registry]\nhome = \"sled\"\ndir = \"{run_dir}/registry\"\nlisten = \"{registry}\"\n"
    );
    std::fs::write(dir.join("sr.toml"), settings).unwrap();
    let client =
        format!("run_dir = \"{run_dir}\"\n[registry]\nhome = \"remote\"\nendpoint = \"{registry}\"\n");
    std::fs::write(dir.join("sconce.toml"), client).unwrap();
    let settings: Settings = sconce_runtime::settings::load(&dir.join("sr.toml")).unwrap();
    let components = Components {
        network: Network::zeromq(ZeromqSettings {
            run_dir: dir.join("bus"),
        }),
        stop: Stop::new(),
    };
    tokio::task::spawn_local(async move { run(settings, components).await.unwrap() });
    let cluster = Cluster::open(Some(&dir.join("sconce.toml"))).await.unwrap();
    let owner = NodeRecord {
        name: "vr-1".parse().unwrap(),
        role: Role::VolumeRouter,
        endpoints: Vec::new(),
        version: "0.1.0".to_owned(),
        pid: 1,
        place: None,
        buffer: None,
    };
    let owner = Change::put(keys::node(&owner.name), None, owner.to_bytes());
    // The storage-router hosts the registry and has just been started: it is waited for.
    tokio::time::timeout(DEADLINE, async {
        let registry = cluster.names.registry();
        while registry.commit(vec![owner.clone()]).await.is_err() {
            tokio::task::yield_now().await;
        }
        while cluster.storage.running().await.unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    cluster
}

async fn sconce(cluster: &Cluster, line: &str) -> Result<(), String> {
    let cli = Cli::try_parse_from(line.split(' ')).map_err(|error| error.to_string())?;
    let done = sconce_cli::on_cluster(cluster, cli.command, cli.output).await;
    done.map_err(|error| format!("{error:#}"))
}

#[test]
fn a_pool_is_made_used_and_removed_by_commands_alone() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, async {
        let cluster = cluster(dir.path()).await;
        let at = dir.path().display();
        for disk in ["disk-1", "disk-2", "disk-3"] {
            sconce(&cluster, &format!("sconce backend add {disk} --dir {at}/{disk}"))
                .await
                .unwrap();
        }
        let create =
            "sconce pool create vms --protect ec:2+1 --backends disk-1,disk-2=2,disk-3 --compress zstd";
        sconce(&cluster, create).await.unwrap();
        let pool = cluster.names.pool("vms").await.unwrap();
        assert_eq!(pool.protection, Protection::Erasure { data: 2, parity: 1 });
        let weights: Vec<u32> = pool.backends.iter().map(|entry| entry.weight).collect();
        assert_eq!(weights, [1, 2, 1]);
        let backends = cluster.names.backends().await.unwrap();
        let place = BackendPlace::Directory(format!("{at}/disk-2"));
        assert_eq!(backends[1].place, Some(place));

        sconce(
            &cluster,
            "sconce volume create /vm1/disk.raw --size 1G --pool vms",
        )
        .await
        .unwrap();
        for line in [
            "sconce pool list",
            "sconce pool deep-scrub vms",
            "sconce pool show vms",
            "sconce pool show vms --output json",
            "sconce backend list",
        ] {
            sconce(&cluster, line).await.unwrap();
        }
        for (line, told) in [
            (
                "sconce pool remove vms",
                vec!["pool vms is in use", "/vm1/disk.raw"],
            ),
            ("sconce backend remove disk-2", vec!["disk-2", "in use by: vms"]),
            ("sconce pool show fast", vec!["no storage pool fast", "vms"]),
            ("sconce pool remove fast", vec!["no storage pool fast", "vms"]),
            (
                "sconce backend remove disk-9",
                vec!["no back end disk-9", "disk-1, disk-2, disk-3"],
            ),
            (
                "sconce pool create vms --protect replica:1 --backends disk-1",
                vec!["vms is there already", "ec:2+1"],
            ),
        ] {
            let error = sconce(&cluster, line).await.unwrap_err();
            for part in told {
                assert!(error.contains(part), "{line}: {part:?} is not in {error}");
            }
        }

        // Its owner, which does not run, would give the space back and take the record away.
        let file = cluster.resolve(&"/vm1/disk.raw".parse().unwrap()).await.unwrap();
        let gone = Change::delete(keys::volume(file.volume), None);
        cluster.names.registry().commit(vec![gone]).await.unwrap();
        sconce(&cluster, "sconce pool remove vms").await.unwrap();
        sconce(&cluster, "sconce backend remove disk-2").await.unwrap();
        assert_eq!(cluster.names.pools().await.unwrap(), []);
        assert_eq!(cluster.names.backends().await.unwrap().len(), 2);
    });
}

async fn settled(cluster: &Cluster, pool: &str) -> Vec<String> {
    let settled = async {
        loop {
            let pool = cluster.names.pool(pool).await.unwrap();
            if pool.change.is_none() {
                return pool
                    .backends
                    .into_iter()
                    .map(|entry| entry.backend)
                    .collect::<Vec<String>>();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(DEADLINE, settled).await.unwrap()
}

#[test]
fn back_ends_join_and_leave_a_pool_by_commands_alone() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, async {
        let cluster = cluster(dir.path()).await;
        let at = dir.path().display();
        for disk in ["disk-1", "disk-2", "disk-3"] {
            sconce(&cluster, &format!("sconce backend add {disk} --dir {at}/{disk}"))
                .await
                .unwrap();
        }
        sconce(
            &cluster,
            "sconce pool create vms --protect replica:2 --backends disk-1,disk-2",
        )
        .await
        .unwrap();
        for (line, told) in [
            ("sconce backend drain disk-9", "no back end disk-9"),
            ("sconce backend drain disk-3", "sconce backend remove disk-3"),
            ("sconce backend drain disk-1", "needs 2"),
            ("sconce pool place fast disk-3=1", "fast"),
        ] {
            let error = sconce(&cluster, line).await.unwrap_err();
            assert!(error.contains(told), "{line}: {told:?} is not in {error}");
        }

        sconce(&cluster, "sconce pool place vms disk-3=2").await.unwrap();
        assert_eq!(settled(&cluster, "vms").await, ["disk-1", "disk-2", "disk-3"]);
        sconce(&cluster, "sconce backend drain disk-1 --lost")
            .await
            .unwrap();
        assert_eq!(settled(&cluster, "vms").await, ["disk-2", "disk-3"]);
        for line in [
            "sconce pool show vms",
            "sconce pool show vms --output json",
            "sconce pool list",
            "sconce backend list",
            "sconce backend remove disk-1",
        ] {
            sconce(&cluster, line).await.unwrap();
        }
    });
}
