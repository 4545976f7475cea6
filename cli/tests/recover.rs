//! `sconce recover` against a real storage-router over a back end in a directory: what manifests tell is found again.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use clap::Parser;
use sconce_bus::{Caller, Hello, Network, Protocol, Role, Version, ZeromqSettings};
use sconce_cli::args::Cli;
use sconce_cli::cluster::Cluster;
use sconce_fs_router::names::PoolPath;
use sconce_runtime::Stop;
use sconce_schemas::manifest::Manifest;
use sconce_schemas::records::{EpochStart, NodeRecord, Origin, Record, keys};
use sconce_schemas::wire::registry::Change;
use sconce_schemas::wire::storage::{StorageReply, StorageRequest};
use sconce_schemas::{Epoch, ManifestSeq, ObjectName, ScoId, SnapshotId, VolumeId, VolumeSize};
use sconce_storage_router::{Components, Settings, run};
use tempfile::TempDir;
use tokio::task::LocalSet;

const DEADLINE: Duration = Duration::from_secs(20);

struct Place {
    dir: TempDir,
    cluster: Cluster,
    storage: Caller<StorageRequest, StorageReply>,
    stop: Stop,
}

fn write_settings(dir: &Path) {
    let run = dir.display();
    let registry = format!("ipc://{run}/bus/registry.sock");
    let storage = format!(
        "[node]\nname = \"sr-1\"\nrun_dir = \"{run}\"\nendpoints = [\"ipc://{run}/bus/sr.sock\"]\n\
         [registry]\nhome = \"sled\"\ndir = \"{run}/registry\"\nlisten = \"{registry}\"\n\
         [[backends]]\nname = \"disk-1\"\ndir = \"{run}/backend\"\n\
         [[pools]]\nname = \"default\"\nprotect = \"replica:1\"\nbackends = [\"disk-1\"]\n"
    );
    std::fs::write(dir.join("sr.toml"), storage).unwrap();
    let client = format!("run_dir = \"{run}\"\n[registry]\nhome = \"remote\"\nendpoint = \"{registry}\"\n");
    std::fs::write(dir.join("sconce.toml"), client).unwrap();
}

impl Place {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        write_settings(dir.path());
        let network = Network::zeromq(ZeromqSettings {
            run_dir: dir.path().join("bus"),
        });
        let stop = Stop::new();
        let settings: Settings = sconce_runtime::settings::load(&dir.path().join("sr.toml")).unwrap();
        let components = Components {
            network: network.clone(),
            stop: stop.clone(),
        };
        tokio::task::spawn_local(async move { run(settings, components).await.unwrap() });
        let hello = Hello {
            version: Version::CURRENT,
            protocol: Protocol::Storage,
            role: Role::Client,
            node: "test".parse().unwrap(),
        };
        let endpoint = format!("ipc://{}/bus/sr.sock", dir.path().display())
            .parse()
            .unwrap();
        let storage = Caller::new(&network, &endpoint, hello);
        let cluster = Cluster::open(Some(&dir.path().join("sconce.toml")))
            .await
            .unwrap();
        let place = Self {
            dir,
            cluster,
            storage,
            stop,
        };
        place.announce_owner().await;
        place
    }

    /// A volume-router that runs, as far as the registry knows.
    async fn announce_owner(&self) {
        let owner = NodeRecord {
            name: "vr-1".parse().unwrap(),
            role: Role::VolumeRouter,
            endpoints: Vec::new(),
            version: "0.1.0".to_owned(),
            pid: 1,
            place: None,
            buffer: None,
        };
        let change = Change::put(keys::node(&owner.name), None, owner.to_bytes());
        // The storage-router hosts the registry and has just been started: it is waited for.
        tokio::time::timeout(DEADLINE, async {
            while self
                .cluster
                .names
                .registry()
                .commit(vec![change.clone()])
                .await
                .is_err()
            {
                tokio::task::yield_now().await;
            }
            while self.cluster.storage.running().await.unwrap().is_empty() {
                tokio::task::yield_now().await;
            }
        })
        .await
        .unwrap();
    }

    async fn put(&self, name: ObjectName, bytes: Vec<u8>) {
        let request = StorageRequest::Put {
            pool: "default".to_owned(),
            name,
        };
        let (reply, _) = self
            .storage
            .call(&request, Bytes::from(bytes), 0, DEADLINE)
            .await
            .unwrap();
        assert_eq!(reply, StorageReply::Done);
    }

    async fn put_manifest(&self, manifest: &Manifest) {
        self.put(name_of(manifest), manifest.to_bytes()).await;
    }

    async fn sconce(&self, line: &str) -> anyhow::Result<()> {
        let cli = Cli::try_parse_from(line.split(' ')).unwrap();
        sconce_cli::on_cluster(&self.cluster, cli.command, cli.output).await
    }

    async fn volume_at(&self, path: &str) -> Option<VolumeId> {
        let path: PoolPath = path.parse().unwrap();
        self.cluster
            .names
            .resolve(&path)
            .await
            .ok()
            .map(|file| file.volume)
    }
}

fn id(number: u8) -> VolumeId {
    VolumeId([number; 16])
}

fn name_of(manifest: &Manifest) -> ObjectName {
    ObjectName::Manifest {
        volume: manifest.volume,
        seq: manifest.seq,
        epoch: manifest.epoch,
    }
}

fn manifest(volume: VolumeId, epoch: u64, seq: u64, path: &str, size: u64) -> Manifest {
    Manifest {
        volume,
        seq: ManifestSeq(seq),
        epoch: Epoch(epoch),
        path: path.to_owned(),
        pool: "default".to_owned(),
        size: VolumeSize::new(size).unwrap(),
        lineage: vec![volume],
        epochs: vec![EpochStart {
            epoch: Epoch(epoch),
            first_sco: ScoId::FIRST,
        }],
        ..Manifest::default()
    }
}

fn on_place<F: Future<Output = ()>>(test: impl FnOnce(Place) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, async { test(Place::new().await).await });
}

#[test]
fn every_volume_comes_back_from_its_newest_whole_manifest() {
    on_place(async |place| {
        // The number grows within an ownership; a newer ownership counts more.
        place
            .put_manifest(&manifest(id(1), 2, 9, "/vm1/old.raw", 1 << 20))
            .await;
        place
            .put_manifest(&manifest(id(1), 3, 4, "/vm1/disk.raw", 5 << 20))
            .await;
        // The newest is damaged: the one before it counts.
        let damaged = manifest(id(2), 1, 2, "/vm2/disk.raw", 9 << 20);
        place
            .put(name_of(&damaged), b"MFT1 but not really".to_vec())
            .await;
        place
            .put_manifest(&manifest(id(2), 1, 1, "/vm2/disk.raw", 7 << 20))
            .await;
        // Two volumes at one path, and one whose path is none.
        place
            .put_manifest(&manifest(id(3), 1, 1, "/vm1/disk.raw", 1))
            .await;
        place.put_manifest(&manifest(id(4), 1, 1, "(volume 4)", 1)).await;
        place.sconce("sconce recover --dry-run").await.unwrap();
        assert_eq!(place.volume_at("/vm1/disk.raw").await, None);
        place.sconce("sconce recover").await.unwrap();
        assert_eq!(place.volume_at("/vm1/disk.raw").await, Some(id(1)));
        assert_eq!(place.volume_at("/vm2/disk.raw").await, Some(id(2)));
        assert_eq!(
            place.volume_at(&format!("/vm1/disk.raw.{}", id(3))).await,
            Some(id(3))
        );
        assert_eq!(
            place.volume_at(&format!("/lost+found/{}", id(4))).await,
            Some(id(4))
        );
        let record = place.cluster.names.volume(id(1)).await.unwrap();
        assert_eq!((record.epoch, record.initial_size.bytes()), (Epoch(3), 5 << 20));
        assert_eq!(record.manifest.map(|manifest| manifest.seq), Some(ManifestSeq(4)));
        assert_eq!(
            place
                .cluster
                .names
                .volume(id(2))
                .await
                .unwrap()
                .initial_size
                .bytes(),
            7 << 20
        );
        // Again: what is known stays, and what came since is added.
        place.put_manifest(&manifest(id(5), 1, 1, "/vm5", 1)).await;
        place.sconce("sconce recover").await.unwrap();
        assert_eq!(place.volume_at("/vm5").await, Some(id(5)));
        assert_eq!(
            place
                .cluster
                .names
                .files(&PoolPath::root(), 100)
                .await
                .unwrap()
                .len(),
            5
        );
        place.stop.request();
    });
}

#[test]
fn what_clones_depend_on_is_known_again_in_whatever_order_they_come_back() {
    on_place(async |place| {
        // The clone's id sorts before its parent's.
        let clone = Manifest {
            lineage: vec![id(2), id(1)],
            origin: Some(Origin {
                volume: id(2),
                snapshot: SnapshotId(7),
            }),
            ..manifest(id(1), 1, 1, "/clone", 1 << 20)
        };
        place.put_manifest(&clone).await;
        place
            .put_manifest(&manifest(id(2), 1, 1, "/parent", 1 << 20))
            .await;
        place.sconce("sconce recover").await.unwrap();
        let names = &place.cluster.names;
        let parent: PoolPath = "/parent".parse().unwrap();
        let refused = names.remove_file(&parent).await.unwrap_err().to_string();
        assert!(refused.contains("/clone"), "{refused}");
        let refused = names.begin_removal(id(2), SnapshotId(7)).await.unwrap_err();
        assert!(refused.to_string().contains("/clone"), "{refused}");
        names.remove_file(&"/clone".parse().unwrap()).await.unwrap();
        names.remove_file(&parent).await.unwrap();
        place.stop.request();
    });
}

#[test]
fn a_parent_is_not_there_before_its_clones_are() {
    on_place(async |place| {
        // Each a clone of the one before, whose id sorts before its own.
        for number in 1..=4 {
            let clone = Manifest {
                lineage: (1..=number).map(id).collect(),
                origin: (number > 1).then(|| Origin {
                    volume: id(number - 1),
                    snapshot: SnapshotId(7),
                }),
                ..manifest(id(number), 1, 1, &format!("/{number}"), 1 << 20)
            };
            place.put_manifest(&clone).await;
        }
        let names = &place.cluster.names;
        // As soon as the first is there somebody deletes it.
        let deletes = async {
            let first: PoolPath = "/1".parse().unwrap();
            while names.resolve(&first).await.is_err() {}
            names.remove_file(&first).await.unwrap_err().to_string()
        };
        let deletes = tokio::time::timeout(DEADLINE, deletes);
        let (recovered, refused) = tokio::join!(place.sconce("sconce recover"), deletes);
        recovered.unwrap();
        let refused = refused.unwrap();
        assert!(refused.contains("clones that depend on it: /2"), "{refused}");
        place.stop.request();
    });
}

#[test]
fn a_damaged_record_is_told_and_does_not_keep_others_from_coming_back() {
    on_place(async |place| {
        for number in 1..=3 {
            let path = format!("/{number}");
            place
                .put_manifest(&manifest(id(number), 1, 1, &path, 1 << 20))
                .await;
        }
        let rubbish = Change::put(keys::volume(id(2)), None, b"rubbish".to_vec());
        let registry = place.cluster.names.registry();
        registry.commit(vec![rubbish]).await.unwrap();
        let error = place.sconce("sconce recover").await.unwrap_err().to_string();
        assert!(
            error.starts_with("1 of 3 volumes could not be recovered"),
            "{error}"
        );
        for number in [1, 3] {
            assert_eq!(place.volume_at(&format!("/{number}")).await, Some(id(number)));
        }
        place.stop.request();
    });
}

#[test]
fn a_volume_without_a_manifest_is_told_and_does_not_keep_others_from_coming_back() {
    on_place(async |place| {
        let sco = ObjectName::Sco {
            volume: id(1),
            id: ScoId::FIRST,
            epoch: Epoch::FIRST,
            version: 0,
        };
        place.put(sco, vec![1; 5000]).await;
        place.put_manifest(&manifest(id(2), 1, 1, "/vm2", 1)).await;
        let error = place.sconce("sconce recover").await.unwrap_err().to_string();
        assert!(
            error.starts_with("1 of 2 volumes could not be recovered"),
            "{error}"
        );
        assert_eq!(place.volume_at("/vm2").await, Some(id(2)));
        assert!(place.dir.path().join("backend").is_dir());
        place.stop.request();
    });
}
