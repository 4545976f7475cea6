//! The tree against a plain in-memory model, alone and with competitors, and its errors.

mod clones;
mod competitors;
mod errors;
mod lossy;
mod model;
mod nameless;
mod pools;

use std::time::Duration;

use sconce_registry::Registry;
use sconce_runtime::{Chance, Clock};
use sconce_schemas::records::{NodeRecord, PoolRecord, Protection, Record, keys};
use sconce_schemas::wire::Role;
use sconce_schemas::wire::registry::{Change, Revision};

use super::{Names, NewVolume, PoolPath};

/// An empty tree with the pool `default` and one volume-router.
async fn tree(seed: u64) -> Names {
    let registry = Registry::memory();
    put(&registry, keys::pool("default"), &pool("default")).await;
    put(
        &registry,
        keys::node(&"vr-1".parse().unwrap()),
        &node("vr-1", Role::VolumeRouter),
    )
    .await;
    names(registry, seed)
}

fn names(registry: Registry, seed: u64) -> Names {
    Names::new(registry, Clock::system(), Chance::seeded(seed)).patient(Duration::from_millis(50))
}

fn pool(name: &str) -> PoolRecord {
    PoolRecord {
        name: name.to_owned(),
        protection: Protection::Replicas(1),
        backends: Vec::new(),
        placement_version: 1,
        compression: None,
        encrypted: false,
        keys: Vec::new(),
        change: None,
    }
}

fn node(name: &str, role: Role) -> NodeRecord {
    NodeRecord {
        name: name.parse().unwrap(),
        role,
        endpoints: vec!["inproc://nobody".to_owned()],
        version: "0.1.0".to_owned(),
        pid: 1,
        place: None,
        buffer: None,
    }
}

async fn put(registry: &Registry, key: String, record: &impl Record) {
    let change = Change {
        key,
        expected: Some(Revision(0)),
        value: Some(record.to_bytes()),
        lease: None,
    };
    registry.commit(vec![change]).await.unwrap();
}

fn path(text: &str) -> PoolPath {
    text.parse().unwrap()
}

fn volume() -> NewVolume {
    NewVolume::default()
}
