//! What the command shows of a volume whose owner answers, and of one whose owner does not.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use clap::Parser;
use sconce_bus::{Identity, InProcess, Limits, Network, Protocol, Role, Server, ServerEvent, bind};
use sconce_cli::args::Cli;
use sconce_cli::cluster::{Cluster, LIVE_DEADLINE};
use sconce_cli::settings::Settings;
use sconce_fs_router::peers;
use sconce_registry::Registry;
use sconce_schemas::records::{
    DtlState, NodeRecord, PoolRecord, Protection, Record, VolumePhase, VolumeRecord, keys,
};
use sconce_schemas::wire::registry::Change;
use sconce_schemas::wire::volume::{
    VolumeControl, VolumeControlReply, VolumeReply, VolumeRequest, VolumeStatus,
};
use sconce_schemas::{ByteLen, Epoch, NodeName, ScoSize, VolumeSize};
use tokio::task::LocalSet;
use tokio::time::Instant;

type Told = Rc<RefCell<Vec<VolumeControl>>>;

fn owner() -> NodeName {
    "vr-1".parse().unwrap()
}

/// A cluster of a registry in memory and a volume-router that is announced.
async fn cluster() -> (Cluster, Network) {
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
    let settings: Settings = toml::from_str(
        "run_dir = '/r'\nnbd_socket = '/r/nbd.sock'\n[registry]\nhome = 'remote'\nendpoint = 'inproc://none'\n",
    )
    .unwrap();
    let identity = peers::Identity {
        network: network.clone(),
        role: Role::Client,
        node: "test".parse().unwrap(),
    };
    (Cluster::over(settings, registry, identity), network)
}

/// Answers control requests as an owner does, and notes them.
async fn serve(network: Network, told: Told) {
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
            let VolumeRequest::Control(control) = request.body else {
                continue;
            };
            told.borrow_mut().push(control.clone());
            let reply = match control {
                VolumeControl::Show { volume } => VolumeControlReply::Volume(Box::new(VolumeStatus {
                    id: volume,
                    size: VolumeSize::new(7 << 30).unwrap(),
                    allocated: ByteLen(1 << 20),
                    owner: owner(),
                    epoch: Epoch(2),
                    dtl_state: DtlState::Off,
                    dtl_mode: None,
                    dtl_host: None,
                    flatten: None,
                    sco_size: ScoSize::default(),
                    unstored: ByteLen(4096),
                    map_memory: ByteLen(0),
                    state: "serving".to_owned(),
                    state_since_us: None,
                    path: None,
                    dtl_trouble: None,
                    history: None,
                    scrub: None,
                })),
                _ => VolumeControlReply::Done,
            };
            request.reply.send(VolumeReply::Control(reply), Bytes::new());
        }
    }
}

async fn sconce(cluster: &Cluster, line: &str) -> anyhow::Result<()> {
    let cli = Cli::try_parse_from(line.split(' ')).unwrap();
    sconce_cli::on_cluster(cluster, cli.command, cli.output).await
}

/// Everything is on this thread, so the clock goes on only where all of it waits, and what is measured is exact.
fn block_on<F: Future<Output = ()>>(test: F) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, test);
}

#[test]
fn live_figures_come_from_the_owner_and_it_is_told_of_a_deletion() {
    block_on(async {
        let (cluster, network) = cluster().await;
        let told = Told::default();
        tokio::task::spawn_local(serve(network, Rc::clone(&told)));
        sconce(&cluster, "sconce volume create /vm1/disk.raw --size 5G")
            .await
            .unwrap();
        let file = cluster.resolve(&"/vm1/disk.raw".parse().unwrap()).await.unwrap();
        let view = cluster.view(&file).await.unwrap();
        assert!(view.live);
        assert_eq!((view.size_bytes, view.allocated_bytes), (7 << 30, Some(1 << 20)));
        assert_eq!(
            (view.epoch, view.state.as_str(), view.unstored_bytes),
            (2, "serving", Some(4096))
        );
        assert_eq!(
            view.nbd_uri.as_deref(),
            Some("nbd+unix:////vm1/disk.raw?socket=/r/nbd.sock")
        );
        assert_eq!(view.mount_path, None);
        sconce(&cluster, "sconce volume sync /vm1/disk.raw")
            .await
            .unwrap();
        sconce(&cluster, "sconce volume delete /vm1/disk.raw")
            .await
            .unwrap();
        let volume = file.volume;
        let changes: Vec<VolumeControl> = told
            .take()
            .into_iter()
            .filter(|control| !matches!(control, VolumeControl::Show { .. }))
            .collect();
        assert_eq!(
            changes,
            [VolumeControl::Sync { volume }, VolumeControl::Delete { volume }]
        );
        assert_eq!(
            cluster.names.volume(volume).await.unwrap().phase,
            VolumePhase::Deleting
        );
        let error = sconce(&cluster, "sconce volume show /vm1/disk.raw")
            .await
            .unwrap_err()
            .to_string();
        assert_eq!(
            error,
            "/vm1/disk.raw does not exist\n`sconce volume list` shows the volumes that there are"
        );
    });
}

#[test]
fn a_silent_owner_does_not_hold_up_what_the_registry_knows() {
    block_on(async {
        let (cluster, _) = cluster().await;
        let started = Instant::now();
        sconce(&cluster, "sconce volume create /disk.raw --size 5G")
            .await
            .unwrap();
        let file = cluster.resolve(&"/disk.raw".parse().unwrap()).await.unwrap();
        let view = cluster.view(&file).await.unwrap();
        assert!(started.elapsed() < Duration::from_secs(10));
        assert!(!view.live);
        assert_eq!(
            (view.size_bytes, view.allocated_bytes, view.state.as_str()),
            (5 << 30, None, "unknown")
        );
        assert_eq!(view.owner, "vr-1");
    });
}

#[test]
fn the_size_of_a_volume_whose_owner_is_gone_is_shown_at_once() {
    block_on(async {
        let (cluster, _) = cluster().await;
        sconce(&cluster, "sconce volume create /disk.raw --size 5G")
            .await
            .unwrap();
        let file = cluster.resolve(&"/disk.raw".parse().unwrap()).await.unwrap();
        let registry = cluster.names.registry();
        let key = keys::volume(file.volume);
        let found = registry.get_record::<VolumeRecord>(&key).await.unwrap();
        let (mut record, revision) = found.unwrap();
        record.size = Some(VolumeSize::new(6 << 30).unwrap());
        let changes = vec![
            Change::put(key, Some(revision), record.to_bytes()),
            Change::delete(keys::node(&owner()), None),
        ];
        registry.commit(changes).await.unwrap();
        let started = Instant::now();
        let view = cluster.view(&file).await.unwrap();
        assert!(started.elapsed() < LIVE_DEADLINE, "{:?}", started.elapsed());
        assert_eq!((view.size_bytes, view.live), (6 << 30, false));
        assert_eq!(view.state, "waits for its owner vr-1, which is not running");
    });
}

#[test]
fn a_status_with_something_missing_is_an_error() {
    block_on(async {
        let (cluster, _) = cluster().await;
        let error = sconce(&cluster, "sconce status").await.unwrap_err().to_string();
        assert!(error.contains("no fs-router is running"), "{error}");
        assert!(error.contains("vr-1 does not answer"), "{error}");
    });
}
