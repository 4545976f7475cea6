//! A cluster of one fs-router in this process, with a model of an owner behind the bus: a volume in memory that
//! speaks the volume protocol, can be stopped and started under load, and counts what was applied twice.

mod owner;
mod volume;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use sconce_bus::{Network, ZeromqSettings};
use sconce_fs_router::names::{Names, NewEntry, NewVolume, PoolPath};
use sconce_fs_router::nbd::NbdSettings;
use sconce_fs_router::service::{self, Components};
use sconce_fs_router::settings::{RoutingSettings, Settings};
use sconce_registry::{Change, Registry, RegistrySettings};
use sconce_runtime::settings::{ByteSize, NodeSettings};
use sconce_runtime::{Chance, Clock, DescriptorStore, Stop};
use sconce_schemas::records::{DtlMode, NodeRecord, PoolRecord, Protection, VolumeRecord, keys};
use sconce_schemas::wire::Role;
use sconce_schemas::{NodeName, ScoSize, VolumeId, VolumeSize};

pub(crate) use owner::{Owner, Trouble};
pub(crate) use volume::Models;

pub(crate) const LONG: Duration = Duration::from_secs(60);

/// One fs-router with its owner.
pub(crate) struct Cluster {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) registry: Registry,
    pub(crate) names: Names,
    pub(crate) network: Network,
    pub(crate) models: Models,
    pub(crate) owner: Owner,
    pub(crate) tcp_port: u16,
    runtime: tokio::runtime::Runtime,
    stop: Stop,
    service: Option<JoinHandle<()>>,
}

static CLUSTERS: AtomicU64 = AtomicU64::new(0);

impl Cluster {
    pub(crate) fn start() -> Cluster {
        Self::with(1, 256)
    }

    pub(crate) fn with(threads: usize, clients_max: usize) -> Cluster {
        Self::with_memory(threads, clients_max, ByteSize::new(1 << 30))
    }

    pub(crate) fn with_memory(threads: usize, clients_max: usize, memory: ByteSize) -> Cluster {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let registry = Registry::memory();
        let network = Network::zeromq(ZeromqSettings {
            run_dir: dir.path().to_owned(),
        });
        let models = Models::default();
        let owner = Owner::start(&network, dir.path(), "vr-1", models.clone());
        let names = Names::new(registry.clone(), Clock::system(), Chance::from_os());
        runtime.block_on(async {
            announce(&registry, &owner.record()).await;
            announce(&registry, &owner.storage_record()).await;
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
            registry
                .put_record(&keys::pool("default"), None, &pool, None)
                .await
                .unwrap();
        });
        let stop = Stop::new();
        let tcp_port = free_port();
        let name = format!("fs-{}", CLUSTERS.fetch_add(1, Ordering::Relaxed));
        let node: NodeName = name.parse().unwrap();
        let settings = Settings {
            node: NodeSettings {
                name: node.clone(),
                run_dir: dir.path().to_owned(),
                endpoints: Vec::new(),
                host: None,
                failure_domain: None,
            },
            registry: RegistrySettings::Remote {
                endpoint: "ipc:///not/used".to_owned(),
            },
            log: Default::default(),
            telemetry: Default::default(),
            metrics: None,
            tls: None,
            routing: RoutingSettings {
                threads: Some(threads),
            },
            nbd: Some(NbdSettings {
                socket: dir.path().join("nbd.sock"),
                tcp: Some(([127, 0, 0, 1], tcp_port).into()),
                clients_max,
                memory,
            }),
            fuse: None,
            nameless: Default::default(),
            cache: None,
        };
        let components = Components {
            network: network.clone(),
            registry: registry.clone(),
            clock: Clock::system(),
            descriptors: DescriptorStore::default(),
        };
        let service = std::thread::spawn({
            let stop = stop.clone();
            move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .unwrap();
                let local = tokio::task::LocalSet::new();
                local
                    .block_on(&runtime, service::run(settings, components, stop))
                    .unwrap();
            }
        });
        let cluster = Cluster {
            dir,
            registry,
            names,
            network,
            models,
            owner,
            tcp_port,
            runtime,
            stop,
            service: Some(service),
        };
        // It is announced once it listens.
        let key = keys::node(&node);
        wait_for("the NBD socket", || {
            let found = cluster.block_on(cluster.registry.get_record::<NodeRecord>(&key));
            found.unwrap().is_some()
        });
        cluster
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("nbd.sock")
    }

    pub(crate) fn uri(&self, path: &str) -> String {
        format!("nbd+unix://{path}?socket={}", self.socket().display())
    }

    pub(crate) fn tcp_uri(&self, path: &str) -> String {
        format!("nbd://127.0.0.1:{}{path}", self.tcp_port)
    }

    /// Makes a volume of `size` bytes at `path`.
    pub(crate) fn create(&self, path: &str, size: u64) -> VolumeId {
        let path: PoolPath = path.parse().unwrap();
        let size = VolumeSize::new(size).unwrap();
        let created = self.runtime.block_on(async {
            let new = NewVolume {
                size,
                sco_size: ScoSize::default(),
                pool: None,
                owner: None,
                dtl: DtlMode::None,
            };
            self.names
                .create_volume(&path, &new, NewEntry::FILE, true)
                .await
                .unwrap()
        });
        self.models.create(created.volume, size.bytes());
        created.volume
    }

    /// Another node becomes the volume's owner.
    pub(crate) fn move_volume(&self, volume: VolumeId, to: &Owner) {
        self.runtime.block_on(async {
            announce(&self.registry, &to.record()).await;
            let key = keys::volume(volume);
            let (mut record, revision) = self
                .registry
                .get_record::<VolumeRecord>(&key)
                .await
                .unwrap()
                .unwrap();
            record.owner = to.record().name;
            record.epoch = record.epoch.next();
            self.registry
                .put_record(&key, Some(revision), &record, None)
                .await
                .unwrap();
        });
    }

    /// A node that has gone: the registry has no record of it any more.
    pub(crate) fn forget_node(&self, name: &str) {
        let key = keys::node(&name.parse().unwrap());
        let delete = Change::delete(key, None);
        self.block_on(self.registry.commit(vec![delete])).unwrap();
    }

    /// What the registry was told of the volume's size.
    pub(crate) fn note_size(&self, volume: VolumeId, size: u64) {
        self.block_on(async {
            let key = keys::volume(volume);
            let found = self.registry.get_record::<VolumeRecord>(&key).await.unwrap();
            let (mut record, revision) = found.unwrap();
            record.size = Some(VolumeSize::new(size).unwrap());
            let put = self.registry.put_record(&key, Some(revision), &record, None);
            put.await.unwrap();
        });
    }

    /// From now on the volume's data is on the back ends, in SCOs of its ancestor.
    pub(crate) fn chill(&self, volume: VolumeId) {
        let ancestor = volume::ANCESTOR;
        let record = VolumeRecord::unowned(
            ancestor,
            VolumeSize::default(),
            ScoSize::new(volume::CHUNK as u64).unwrap(),
            "default".to_owned(),
            self.owner.record().name,
        );
        self.block_on(async {
            self.registry
                .put_record(&keys::volume(ancestor), None, &record, None)
                .await
                .unwrap();
        });
        self.models.with(volume, |model| model.cold = true);
    }

    pub(crate) fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    /// Stops the service in order, as SIGTERM would.
    pub(crate) fn stop(&mut self) {
        self.stop.request();
        if let Some(service) = self.service.take() {
            service.join().expect("the service ends in order");
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.stop();
        }
    }
}

async fn announce(registry: &Registry, record: &NodeRecord) {
    registry
        .put_record(&keys::node(&record.name), None, record, None)
        .await
        .unwrap();
}

pub(crate) fn node_record(name: &str, role: Role, endpoint: &str) -> NodeRecord {
    NodeRecord {
        name: name.parse().unwrap(),
        role,
        endpoints: vec![endpoint.to_owned()],
        version: "test".to_owned(),
        pid: 0,
        place: None,
        buffer: None,
    }
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// Waits for something that will be so, with a deadline.
pub(crate) fn wait_for(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + LONG;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what} did not come");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Runs a client to its end; it has to succeed.
pub(crate) fn succeed(program: &str, arguments: &[&str]) -> String {
    let output = run(program, arguments);
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs a client to its end; a client that hangs fails the test.
pub(crate) fn run(program: &str, arguments: &[&str]) -> Output {
    Command::new("timeout")
        .args(["--kill-after=5", "120", program])
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"))
}

/// Runs a script as nbdsh would, with the system's Python, which has libnbd's module.
pub(crate) fn nbdsh(script: &str) -> String {
    let script = format!("import nbd\nh = nbd.NBD()\n{script}");
    succeed("/usr/bin/python3", &["-c", &script])
}

/// A file in the cluster's directory with contents that no block repeats.
pub(crate) fn random_file(dir: &Path, name: &str, length: usize, seed: u64) -> PathBuf {
    let mut bytes = vec![0; length];
    Chance::seeded(seed).fill(&mut bytes);
    let path = dir.join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}
