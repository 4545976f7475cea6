//! A thread that hosts a registry on a bus of its own, over a unix socket.

use std::os::unix::fs::PermissionsExt as _;
use std::thread::JoinHandle;

use sconce_bus::{Endpoint, Hello, Identity, Limits, Network, Protocol, Role, Version, ZeromqSettings, bind};
use sconce_registry::{Registry, host};
use sconce_runtime::Stop;
use tokio::sync::oneshot;

/// The hosting thread; stopped in order when dropped.
pub(crate) struct BusHost {
    dir: tempfile::TempDir,
    stop: Stop,
    thread: Option<JoinHandle<()>>,
}

impl BusHost {
    pub(crate) async fn start(registry: Registry) -> Self {
        let dir = private_dir();
        let stop = Stop::new();
        let (network, endpoint) = bus(dir.path());
        let (listens, listening) = oneshot::channel();
        let stopping = stop.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            tokio::task::LocalSet::new().block_on(&runtime, async {
                let server = bind(&network, &endpoint, identity()).await.unwrap();
                listens.send(()).unwrap();
                host(registry, server, stopping).await;
            });
        });
        listening.await.unwrap();
        Self {
            dir,
            stop,
            thread: Some(thread),
        }
    }

    /// A remote handle.
    pub(crate) fn connect(&self, node: &str) -> Registry {
        connect(self.dir.path(), node)
    }
}

impl Drop for BusHost {
    fn drop(&mut self) {
        self.stop.request();
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || std::thread::panicking(), "the host panicked");
    }
}

/// A directory for sockets.
pub(crate) fn private_dir() -> tempfile::TempDir {
    let mode = std::fs::Permissions::from_mode(0o700);
    tempfile::Builder::new().permissions(mode).tempdir().unwrap()
}

pub(crate) fn bus(dir: &std::path::Path) -> (Network, Endpoint) {
    let settings = ZeromqSettings {
        run_dir: dir.to_owned(),
    };
    let endpoint = Endpoint::ipc(&dir.join("registry.sock")).unwrap();
    (Network::zeromq(settings), endpoint)
}

pub(crate) fn identity() -> Identity {
    Identity {
        node: "host".parse().unwrap(),
        role: Role::StorageRouter,
        protocol: Protocol::Registry,
        limits: Limits::of(Protocol::Registry),
    }
}

/// A remote handle to whatever hosts a registry in `dir`.
pub(crate) fn connect(dir: &std::path::Path, node: &str) -> Registry {
    let (network, endpoint) = bus(dir);
    let hello = Hello {
        version: Version::CURRENT,
        protocol: Protocol::Registry,
        role: Role::Client,
        node: node.parse().unwrap(),
    };
    Registry::remote(&network, &endpoint, hello).unwrap()
}
