//! Announcing nodes: kept, put back, taken over, taken away.

use std::time::Duration;

use sconce_registry::announce::{AnnounceError, Announcement};
use sconce_registry::{Change, Registry};
use sconce_runtime::Stop;
use sconce_schemas::records::{NodeRecord, keys};
use sconce_schemas::wire::Role;

/// So long that what the machine's own clock goes on by meanwhile, which nothing pauses, is nothing.
const TTL: Duration = Duration::from_secs(3600);

fn record(pid: u32) -> NodeRecord {
    NodeRecord {
        name: "vr-1".parse().unwrap(),
        role: Role::VolumeRouter,
        endpoints: vec![format!("ipc:///run/vr-1-{pid}.sock")],
        version: "0.1.0".to_owned(),
        pid,
        place: None,
        buffer: None,
    }
}

async fn announced(registry: &Registry) -> Option<u32> {
    let key = keys::node(&record(1).name);
    let found = registry.get_record::<NodeRecord>(&key).await.unwrap();
    found.map(|(record, _)| record.pid)
}

/// Waits for the node's record to change, with tokio's clock going on as fast as nothing happens.
async fn next_change(registry: &Registry) {
    let after = registry.revision().await.unwrap();
    let watched = registry.watch(keys::NODES, after, TTL * 3).await.unwrap();
    assert!(!watched.events.is_empty(), "no change of the record");
}

#[tokio::test(start_paused = true)]
async fn a_node_is_announced_until_it_stops() {
    let registry = Registry::memory();
    let stop = Stop::new();
    let announcement = Announcement::register(&registry, &record(1), TTL).await.unwrap();
    let tenure = announcement.tenure();
    assert!(tenure.is_held());
    let since = tenure.held_since();
    let keeping = tokio::spawn(announcement.keep(stop.clone()));
    for _ in 0..10 {
        tokio::time::sleep(TTL / 2).await;
        assert!(tenure.is_held());
        assert_eq!(tenure.held_since(), since, "it never ended");
        assert_eq!(announced(&registry).await, Some(1));
    }
    stop.request();
    keeping.await.unwrap().unwrap();
    assert_eq!(announced(&registry).await, None);
}

#[tokio::test(start_paused = true)]
async fn a_record_that_went_is_put_back() {
    let registry = Registry::memory();
    let announcement = Announcement::register(&registry, &record(1), TTL).await.unwrap();
    let tenure = announcement.tenure();
    // The process was stopped for so long that its lease ended.
    tokio::time::sleep(TTL * 2).await;
    assert_eq!(announced(&registry).await, None);
    assert!(
        !tenure.is_held(),
        "whoever relies on the lease knows that it is over"
    );
    let since = tenure.held_since();
    let keeping = tokio::spawn(announcement.keep(Stop::new()));
    next_change(&registry).await;
    assert_eq!(announced(&registry).await, Some(1));
    assert!(tenure.is_held());
    assert_ne!(tenure.held_since(), since, "it was another's perhaps");
    registry
        .commit(vec![Change::delete(keys::node(&record(1).name), None)])
        .await
        .unwrap();
    next_change(&registry).await;
    assert_eq!(announced(&registry).await, Some(1), "nor may another delete it");
    keeping.abort();
}

#[tokio::test(start_paused = true)]
async fn a_second_process_of_the_name_replaces_the_first() {
    let registry = Registry::memory();
    let first = Announcement::register(&registry, &record(1), TTL).await.unwrap();
    let tenure = first.tenure();
    let keeping = tokio::spawn(first.keep(Stop::new()));
    let _second = Announcement::register(&registry, &record(2), TTL).await.unwrap();
    let error = keeping.await.unwrap().unwrap_err();
    let AnnounceError::Replaced { name, pid } = &error else {
        panic!("{error}");
    };
    assert_eq!((name.as_str(), *pid), ("vr-1", 2));
    assert!(!tenure.is_held());
    assert_eq!(announced(&registry).await, Some(2), "and leaves its record alone");
}
