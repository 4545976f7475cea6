//! The mounted tree, used as programs use it, over volumes in memory.

mod content;
mod lives;
mod snapshots;
mod tree;
mod volumes;

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::mpsc;
use std::thread::JoinHandle;

use sconce_registry::Registry;
use sconce_runtime::{Chance, Clock, DescriptorStore, Stop};
use sconce_schemas::records::{NodeRecord, PoolRecord, Protection, Record, keys};
use sconce_schemas::wire::Role;
use sconce_schemas::wire::registry::{Change, Revision};
use sconce_schemas::{NodeName, VolumeId};
use tempfile::TempDir;
use tokio::task::LocalSet;

use super::{FuseSettings, Mount};
use crate::in_use::InUse;
use crate::names::Names;
use volumes::MemoryVolumes;

/// The fs-router in these tests.
const NODE: &str = "fs-1";

/// A mounted tree, served by a thread of its own.
struct Mounted {
    volumes: MemoryVolumes,
    registry: Registry,
    in_use: InUse,
    stop: Stop,
    point: PathBuf,
    serving: Option<JoinHandle<()>>,
    _dir: Rc<TempDir>,
}

impl Mounted {
    fn new() -> Self {
        let registry = registry();
        Self::over(
            registry,
            MemoryVolumes::default(),
            Rc::new(tempfile::tempdir().unwrap()),
        )
    }

    fn over(registry: Registry, volumes: MemoryVolumes, dir: Rc<TempDir>) -> Self {
        let in_use = InUse::default();
        let (stop, point) = (Stop::new(), dir.path().join("mnt"));
        let (ready, is_ready) = mpsc::channel();
        let settings = FuseSettings {
            mount: point.clone(),
            threads: 2,
        };
        let serving = std::thread::spawn({
            let (registry, volumes, stop) = (registry.clone(), volumes.clone(), stop.clone());
            let in_use = in_use.clone();
            move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .unwrap();
                LocalSet::new().block_on(&runtime, async {
                    let names = Names::new(registry, Clock::system(), Chance::from_os());
                    let clock = Clock::system();
                    let mounting = Mount::new(
                        &settings,
                        names,
                        volumes,
                        node(),
                        clock,
                        in_use,
                        DescriptorStore::default(),
                    );
                    let mount = mounting.await.unwrap();
                    ready.send(()).unwrap();
                    mount.serve(&stop).await;
                });
            }
        });
        is_ready.recv().unwrap();
        Self {
            volumes,
            registry,
            in_use,
            stop,
            point,
            serving: Some(serving),
            _dir: dir,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.point.join(name)
    }

    /// The volume of a file at the top.
    fn volume_of(&self, name: &str) -> VolumeId {
        let names = Names::new(self.registry.clone(), Clock::system(), Chance::seeded(1));
        let path = format!("/{name}").parse().unwrap();
        block_on(names.resolve(&path)).unwrap().volume
    }

    fn point(&self) -> &Path {
        &self.point
    }

    fn stop(&mut self) {
        self.stop.request();
        if let Some(serving) = self.serving.take() {
            serving.join().unwrap();
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        self.stop();
    }
}

fn node() -> NodeName {
    NODE.parse().unwrap()
}

/// A registry with one pool and one volume-router.
fn registry() -> Registry {
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
    let owner = NodeRecord {
        name: "vr-1".parse().unwrap(),
        role: Role::VolumeRouter,
        endpoints: Vec::new(),
        version: "0.1.0".to_owned(),
        pid: 1,
        place: None,
        buffer: None,
    };
    let put = |key, value| Change::put(key, Some(Revision::ABSENT), value);
    let changes = vec![
        put(keys::pool("default"), pool.to_bytes()),
        put(keys::node(&owner.name), owner.to_bytes()),
    ];
    block_on(registry.commit(changes)).unwrap();
    registry
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap()
        .block_on(future)
}
