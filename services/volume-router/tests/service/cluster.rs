//! A volume-router with a real storage-router around it: the one as a process that can be killed, the other as a
//! thread that can be taken away.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use sconce_bus::{Endpoint, Hello, Network, Protocol, Role, Version, ZeromqSettings};
use sconce_registry::{Registry, Revision};
use sconce_runtime::Stop;
use sconce_schemas::records::{InodeKind, InodeRecord, Origin, ROOT_INODE, VolumeRecord, keys};
use sconce_schemas::{ScoSize, VolumeId, VolumeSize};
use tempfile::TempDir;
use tokio::task::LocalSet;

/// Longer than anything takes that works.
pub(crate) const LONG: Duration = Duration::from_secs(30);
pub(crate) const NODE: &str = "volume-router";

/// Runs a test's body on a thread as clients have it.
pub(crate) fn block_on<T>(body: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, body)
}

/// A storage-router in a thread.
pub(crate) struct Storage {
    stop: Stop,
    thread: JoinHandle<()>,
}

/// A registry host and a storage-router are one process, so that the storage can be absent alone they are two here.
pub(crate) struct Cluster {
    pub(crate) dir: TempDir,
    pub(crate) network: Network,
    registry_host: Option<Storage>,
    storage: Option<Storage>,
    router: Option<Child>,
    environment: Vec<(String, String)>,
    buffer_size: String,
    extra: String,
    /// The machine and failure domain that the volume-router says it is in.
    domain: String,
}

impl Cluster {
    /// A cluster with everything but the volume-router running.
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let network = Network::zeromq(ZeromqSettings {
            run_dir: dir.path().join("bus"),
        });
        std::fs::create_dir(dir.path().join("bus")).unwrap();
        set_private(&dir.path().join("bus"));
        let mut cluster = Self {
            dir,
            network,
            registry_host: None,
            storage: None,
            router: None,
            environment: Vec::new(),
            buffer_size: "64 MiB".to_owned(),
            // A deletion is over when nothing is left, not two minutes later.
            domain: NODE.to_owned(),
            extra: "[erase]\ngrace = \"0s\"\n".to_owned(),
        };
        cluster.registry_host = Some(cluster.host_registry());
        cluster.start_storage();
        cluster
    }

    /// The same with the volume-router.
    pub(crate) fn started() -> Self {
        let mut cluster = Self::new();
        cluster.start();
        cluster
    }

    pub(crate) fn with_buffer(mut self, size: &str) -> Self {
        self.buffer_size = size.to_owned();
        self
    }

    /// Where the volume-router says it is.
    pub(crate) fn in_domain(mut self, domain: &str) -> Self {
        self.domain = domain.to_owned();
        self
    }

    /// More settings.
    pub(crate) fn with_settings(mut self, text: &str) -> Self {
        self.extra = text.to_owned();
        self
    }

    pub(crate) fn with_env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn clear_env(&mut self) {
        self.environment.clear();
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn endpoint(&self, name: &str) -> String {
        format!("ipc://{}/bus/{name}.sock", self.dir.path().display())
    }

    fn host_registry(&self) -> Storage {
        let (network, stop) = (self.network.clone(), Stop::new());
        let endpoint: Endpoint = self.endpoint("registry").parse().unwrap();
        let (stopped, dir) = (stop.clone(), self.path("registry"));
        let thread = std::thread::spawn(move || {
            block_on(async move {
                let registry = Registry::sled(&dir).unwrap();
                let identity = sconce_bus::Identity {
                    node: "registry".parse().unwrap(),
                    role: Role::StorageRouter,
                    protocol: Protocol::Registry,
                    limits: sconce_bus::Limits::of(Protocol::Registry),
                };
                let server = sconce_bus::bind(&network, &endpoint, identity).await.unwrap();
                sconce_registry::host(registry, server, stopped).await;
            });
        });
        Storage { stop, thread }
    }

    pub(crate) fn stop_registry(&mut self) {
        if let Some(host) = self.registry_host.take() {
            host.stop.request();
            host.thread.join().unwrap();
        }
    }

    pub(crate) fn start_registry(&mut self) {
        self.registry_host = Some(self.host_registry());
    }

    pub(crate) fn start_storage(&mut self) {
        let settings = format!(
            "[node]\nname = \"storage-router\"\nrun_dir = \"{run}\"\nendpoints = [\"{endpoint}\"]\n\
             [registry]\nhome = \"remote\"\nendpoint = \"{registry}\"\n\
             [[backends]]\nname = \"local\"\ndir = \"{run}/backend\"\n\
             [[pools]]\nname = \"default\"\nprotect = \"replica:1\"\nbackends = [\"local\"]\n",
            run = self.dir.path().display(),
            endpoint = self.endpoint("storage-router"),
            registry = self.endpoint("registry"),
        );
        let path = self.path("storage-router.toml");
        std::fs::write(&path, settings).unwrap();
        let settings: sconce_storage_router::Settings = sconce_runtime::settings::load(&path).unwrap();
        let (network, stop) = (self.network.clone(), Stop::new());
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let components = sconce_storage_router::Components {
                network,
                stop: stopped,
            };
            block_on(sconce_storage_router::run(settings, components)).unwrap();
        });
        self.storage = Some(Storage { stop, thread });
    }

    pub(crate) fn stop_storage(&mut self) {
        if let Some(storage) = self.storage.take() {
            storage.stop.request();
            storage.thread.join().unwrap();
        }
    }

    /// The volume-router's settings file.
    pub(crate) fn settings(&self) -> PathBuf {
        let text = format!(
            "[node]\nname = \"{NODE}\"\nrun_dir = \"{run}\"\nendpoints = [\"{endpoint}\"]\nhost = \"{domain}\"\n\
             [registry]\nhome = \"remote\"\nendpoint = \"{registry}\"\n\
             [buffer]\ndir = \"{run}/buffer\"\nsize = \"{size}\"\n{extra}",
            run = self.dir.path().display(),
            endpoint = self.endpoint(NODE),
            domain = self.domain,
            registry = self.endpoint("registry"),
            size = self.buffer_size,
            extra = self.extra,
        );
        let path = self.path("volume-router.toml");
        std::fs::write(&path, text).unwrap();
        path
    }

    /// Starts the volume-router's process.
    pub(crate) fn start(&mut self) {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.path("volume-router.log"))
            .unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_volume-router"));
        command
            .arg("--config")
            .arg(self.settings())
            .envs(self.environment.iter().cloned())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        self.router = Some(command.spawn().unwrap());
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) {
        let mut router = self.router.take().unwrap();
        router.kill().unwrap();
        router.wait().unwrap();
    }

    /// Whether the process ended by itself, as at a crash point.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.router.as_mut().unwrap().try_wait().unwrap().is_some()
    }

    /// Waits for the process to end by itself.
    pub(crate) fn wait_for_end(&mut self) {
        let mut router = self.router.take().unwrap();
        let until = Instant::now() + LONG;
        while router.try_wait().unwrap().is_none() {
            assert!(Instant::now() < until, "the process lives:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// An orderly stop; gives the exit code.
    pub(crate) fn stop(&mut self) -> Option<i32> {
        self.begin_stop();
        self.router.take().unwrap().wait().unwrap().code()
    }

    /// Asks for an orderly stop.
    pub(crate) fn begin_stop(&self) {
        let pid = self.router.as_ref().unwrap().id().to_string();
        let mut kill = Command::new("kill");
        assert!(kill.args(["-TERM", &pid]).status().unwrap().success());
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.path("volume-router.log")).unwrap_or_default()
    }

    pub(crate) async fn registry(&self) -> Registry {
        let endpoint: Endpoint = self.endpoint("registry").parse().unwrap();
        Registry::remote(&self.network, &endpoint, hello(Protocol::Registry)).unwrap()
    }

    /// A volume's record, as the fs-router would write it.
    pub(crate) async fn create(&self, registry: &Registry, number: u8, size: u64) -> VolumeId {
        let (id, inode) = (VolumeId([number; 16]), 100 + u64::from(number));
        self.add(registry, id, inode, size, None).await;
        id
    }

    /// The record of a clone, as the fs-router would write it.
    pub(crate) async fn clone_of(
        &self,
        registry: &Registry,
        number: u16,
        origin: Origin,
        size: u64,
    ) -> VolumeId {
        let mut id = VolumeId([0xcc; 16]);
        id.0[..2].copy_from_slice(&number.to_be_bytes());
        self.add(registry, id, 1000 + u64::from(number), size, Some(origin))
            .await;
        id
    }

    async fn add(&self, registry: &Registry, id: VolumeId, inode: u64, size: u64, origin: Option<Origin>) {
        let record = VolumeRecord {
            inode,
            origin,
            ..VolumeRecord::unowned(
                id,
                VolumeSize::new(size).unwrap(),
                ScoSize::new(256).unwrap(),
                "default".to_owned(),
                NODE.parse().unwrap(),
            )
        };
        let file = InodeRecord {
            kind: InodeKind::File(id),
            parent: ROOT_INODE,
            name: format!("disk-{}", inode - 100),
            mode: 0o600,
            uid: 0,
            gid: 0,
            mtime_ns: 0,
            ctime_ns: 0,
        };
        registry
            .put_record(&keys::inode(inode), None, &file, None)
            .await
            .unwrap();
        registry
            .put_record(&keys::volume(id), Some(Revision::ABSENT), &record, None)
            .await
            .unwrap();
    }

    pub(crate) async fn record(&self, registry: &Registry, id: VolumeId) -> VolumeRecord {
        registry.get_record(&keys::volume(id)).await.unwrap().unwrap().0
    }

    /// Files below a directory of the cluster.
    pub(crate) fn files(&self, dir: &str) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut dirs = vec![self.path(dir)];
        while let Some(dir) = dirs.pop() {
            let Ok(entries) = std::fs::read_dir(&dir) else {
                continue;
            };
            for entry in entries {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    dirs.push(path);
                } else {
                    found.push(path);
                }
            }
        }
        found.sort();
        found
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(mut router) = self.router.take() {
            let _ = router.kill();
            let _ = router.wait();
        }
        if std::thread::panicking() {
            eprintln!("volume-router:\n{}", self.log());
        }
        for part in [self.storage.take(), self.registry_host.take()]
            .into_iter()
            .flatten()
        {
            part.stop.request();
            let _ = part.thread.join();
        }
    }
}

pub(crate) fn hello(protocol: Protocol) -> Hello {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    Hello {
        version: Version::CURRENT,
        protocol,
        role: Role::Client,
        node: format!("test-{count}").parse().unwrap(),
    }
}

fn set_private(dir: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700)).unwrap();
}

/// Waits until `done` gives something.
pub(crate) async fn until<T>(what: &str, mut done: impl AsyncFnMut() -> Option<T>) -> T {
    let end = Instant::now() + LONG;
    loop {
        if let Some(found) = done().await {
            return found;
        }
        assert!(Instant::now() < end, "{what} did not come about");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
