//! What the command asks an owner for when others change the same snapshots at the same time.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use bytes::Bytes;
use clap::Parser;
use futures_util::FutureExt as _;
use sconce_bus::{Identity, InProcess, Limits, Network, Protocol, Role, Server, ServerEvent, bind};
use sconce_cli::args::Cli;
use sconce_cli::cluster::Cluster;
use sconce_cli::settings::Settings;
use sconce_fs_router::names::{NewEntry, NewVolume, PoolPath, Snapshot};
use sconce_fs_router::peers;
use sconce_registry::Registry;
use sconce_schemas::records::{NodeRecord, PoolRecord, Protection, Record, keys};
use sconce_schemas::wire::registry::Change;
use sconce_schemas::wire::volume::{
    SnapshotStatus, VolumeControl, VolumeControlReply, VolumeReply, VolumeRequest,
};
use sconce_schemas::wire::{Refusal, RefusalCode};
use sconce_schemas::{ByteLen, NodeName, SnapshotId, VolumeId, VolumeSize};
use tokio::task::LocalSet;

/// What another client does right after an owner has told its snapshots.
type Meanwhile = Box<dyn FnOnce(&mut Vec<(u64, String)>)>;

/// A volume-router's snapshots: of whichever volume is asked about.
#[derive(Default)]
struct Owner {
    snapshots: Vec<(u64, String)>,
    meanwhile: Option<Meanwhile>,
    /// Why removals are refused.
    refuses: Option<Refusal>,
    asked: Vec<VolumeControl>,
}

impl Owner {
    fn answer(&mut self, control: VolumeControl) -> VolumeReply {
        let not_found = || {
            let text = "there is no such snapshot";
            VolumeReply::Refused(Refusal::reject(RefusalCode::NotFound, text))
        };
        self.asked.push(control.clone());
        match control {
            VolumeControl::ListSnapshots { .. } => {
                let status = |(id, name): &(u64, String)| SnapshotStatus {
                    id: SnapshotId(*id),
                    name: name.clone(),
                    created_us: 0,
                    size: VolumeSize::new(1 << 20).unwrap(),
                    allocated: ByteLen(0),
                    synced: true,
                    metadata: BTreeMap::new(),
                };
                let snapshots = self.snapshots.iter().map(status).collect();
                if let Some(meanwhile) = self.meanwhile.take() {
                    meanwhile(&mut self.snapshots);
                }
                VolumeReply::Control(VolumeControlReply::Snapshots { snapshots })
            }
            VolumeControl::RemoveSnapshot { name, id, .. } => {
                if let Some(refusal) = &self.refuses {
                    return VolumeReply::Refused(refusal.clone());
                }
                let is_it = |(known, called): &(u64, String)| {
                    id.map_or(*called == name, |id| SnapshotId(*known) == id)
                };
                match self.snapshots.iter().position(is_it) {
                    Some(at) => {
                        self.snapshots.remove(at);
                        VolumeReply::Control(VolumeControlReply::Done)
                    }
                    None => not_found(),
                }
            }
            VolumeControl::RollBack { id, keep, .. } => {
                self.snapshots.extend(keep.map(|name| (id.0, name)));
                VolumeReply::Control(VolumeControlReply::Done)
            }
            _ => VolumeReply::Control(VolumeControlReply::Done),
        }
    }

    fn names(&self) -> Vec<(u64, &str)> {
        self.snapshots
            .iter()
            .map(|(id, name)| (*id, name.as_str()))
            .collect()
    }
}

type Shared = Rc<RefCell<Owner>>;

fn owner() -> NodeName {
    "vr-1".parse().unwrap()
}

async fn serve(network: Network, owner_of: Shared) {
    let identity = Identity {
        node: owner(),
        role: Role::VolumeRouter,
        protocol: Protocol::Volume,
        limits: Limits::of(Protocol::Volume),
    };
    let endpoint = "inproc://vr-1".parse().unwrap();
    let mut server: Server<VolumeRequest, VolumeReply> = bind(&network, &endpoint, identity).await.unwrap();
    loop {
        let ServerEvent::Requests(requests) = server.next().await else {
            continue;
        };
        for request in requests {
            if let VolumeRequest::Control(control) = request.body {
                let answer = owner_of.borrow_mut().answer(control);
                request.reply.send(answer, Bytes::new());
            }
        }
    }
}

/// A cluster with the volume `/disk` and its snapshot `monday`, of id 1.
struct Place {
    cluster: Cluster,
    owner: Shared,
    volume: VolumeId,
}

impl Place {
    async fn new() -> Place {
        let network = Network::in_process(InProcess::new(1));
        let registry = Registry::memory();
        let pool = PoolRecord {
            name: "default".to_owned(),
            protection: Protection::Replicas(1),
            backends: Vec::new(),
            placement_version: 1,
            compression: None,
            encrypted: false,
            keys: Vec::new(),
            change: None,
        };
        let node = NodeRecord {
            name: owner(),
            role: Role::VolumeRouter,
            endpoints: vec!["inproc://vr-1".to_owned()],
            version: "0.1.0".to_owned(),
            pid: 1,
            place: None,
            buffer: None,
        };
        let changes = vec![
            Change::put(keys::pool("default"), None, pool.to_bytes()),
            Change::put(keys::node(&node.name), None, node.to_bytes()),
        ];
        registry.commit(changes).await.unwrap();
        let settings: Settings =
            toml::from_str("run_dir = '/r'\n[registry]\nhome = 'remote'\nendpoint = 'inproc://none'\n")
                .unwrap();
        let identity = peers::Identity {
            network: network.clone(),
            role: Role::Client,
            node: "test".parse().unwrap(),
        };
        let shared = Shared::default();
        shared.borrow_mut().snapshots = vec![(1, "monday".to_owned())];
        tokio::task::spawn_local(serve(network, Rc::clone(&shared)));
        let cluster = Cluster::over(settings, registry, identity);
        let path: PoolPath = "/disk".parse().unwrap();
        let made = cluster
            .names
            .create_volume(&path, &NewVolume::default(), NewEntry::FILE, true)
            .await;
        let volume = made.unwrap().volume;
        Place {
            cluster,
            owner: shared,
            volume,
        }
    }

    async fn sconce(&self, line: &str) -> Result<(), String> {
        let cli = Cli::try_parse_from(line.split(' ')).unwrap();
        let done = sconce_cli::on_cluster(&self.cluster, cli.command, cli.output).await;
        done.map_err(|error| format!("{error:#}"))
    }

    fn meanwhile(&self, change: impl FnOnce(&mut Vec<(u64, String)>) + 'static) {
        self.owner.borrow_mut().meanwhile = Some(Box::new(change));
    }

    /// Whether a snapshot can be cloned, as far as the registry knows.
    async fn can_be_cloned(&self, id: u64) -> bool {
        let snapshot = Snapshot {
            volume: self.volume,
            id: SnapshotId(id),
            size: VolumeSize::new(1 << 20).unwrap(),
            removals: self.cluster.names.removals(self.volume).await.unwrap(),
        };
        let path: PoolPath = "/probe".parse().unwrap();
        let names = &self.cluster.names;
        let cloned = names.create_clone(snapshot, &path, NewEntry::FILE).await;
        if cloned.is_ok() {
            names.remove_file(&path).await.unwrap();
        }
        cloned.is_ok()
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
fn a_removal_is_of_the_snapshot_that_was_found_whatever_has_its_name_by_then() {
    on_place(async |place| {
        place.meanwhile(|snapshots| *snapshots = vec![(2, "monday".to_owned())]);
        place.sconce("sconce snapshot delete /disk@monday").await.unwrap();
        assert_eq!(place.owner.borrow().names(), [(2, "monday")]);
        assert!(place.can_be_cloned(1).await && place.can_be_cloned(2).await);
        place.sconce("sconce snapshot delete /disk@monday").await.unwrap();
        assert_eq!(place.owner.borrow().names(), []);
    });
}

#[test]
fn a_removal_that_the_owner_refuses_leaves_the_snapshot_as_it_was() {
    on_place(async |place| {
        let refusal = Refusal::reject(RefusalCode::Invalid, "not today");
        place.owner.borrow_mut().refuses = Some(refusal);
        let told = place.sconce("sconce snapshot delete /disk@monday").await;
        assert_eq!(told, Err("/disk@monday: not today".to_owned()));
        assert!(place.can_be_cloned(1).await);
        // Nor is anything left where another client's removal may yet be heard.
        let other = place
            .cluster
            .names
            .begin_removal(place.volume, SnapshotId(1))
            .await;
        place
            .sconce("sconce snapshot delete /disk@monday")
            .await
            .unwrap_err();
        assert!(!place.can_be_cloned(1).await);
        place
            .cluster
            .names
            .withdraw_removal(other.unwrap())
            .await
            .unwrap();
        assert!(!place.can_be_cloned(1).await);
        // Once it is gone, it is nobody's.
        place.owner.borrow_mut().refuses = None;
        place.sconce("sconce snapshot delete /disk@monday").await.unwrap();
        assert!(place.can_be_cloned(1).await);
    });
}

#[test]
fn a_clone_of_a_snapshot_that_was_removed_meanwhile_is_not_made() {
    on_place(async |place| {
        let (names, volume) = (place.cluster.names.clone(), place.volume);
        place.meanwhile(move |snapshots| {
            snapshots.clear();
            // A registry in memory answers at once.
            let removed = async {
                names.begin_removal(volume, SnapshotId(1)).await?;
                names.end_removal(volume, SnapshotId(1)).await
            };
            removed.now_or_never().unwrap().unwrap();
        });
        let told = place
            .sconce("sconce clone /disk@monday /vm1/disk")
            .await
            .unwrap_err();
        assert!(told.contains("/disk@monday does not exist"), "{told}");
        let clone: PoolPath = "/vm1/disk".parse().unwrap();
        assert!(place.cluster.names.resolve(&clone).await.is_err());
        // Nothing keeps the parent.
        place.sconce("sconce volume delete /disk").await.unwrap();
    });
}

#[test]
fn a_rollback_that_discards_can_be_told_from_one_that_was_sent_again() {
    on_place(async |place| {
        place
            .sconce("sconce snapshot rollback /disk@monday --discard")
            .await
            .unwrap();
        assert_eq!(place.owner.borrow().names(), [(1, "monday")]);
        let asked = place.owner.borrow().asked.clone();
        let kept = asked.iter().find_map(|control| match control {
            VolumeControl::RollBack { id, keep, .. } => Some((*id, keep.clone())),
            _ => None,
        });
        let (id, keep) = kept.unwrap();
        let name = keep.unwrap();
        let removal = VolumeControl::RemoveSnapshot {
            volume: place.volume,
            name,
            id: Some(id),
        };
        assert!(asked.contains(&removal), "{asked:?}");
    });
}
