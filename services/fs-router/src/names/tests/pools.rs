//! Pools and back ends are not removed from under what uses them.

use sconce_schemas::BackendId;
use sconce_schemas::records::{BackendRecord, PlacementEntry, PoolRecord, VolumePhase, VolumeRecord, keys};
use sconce_schemas::wire::registry::Change;

use super::{path, pool, put, tree, volume};
use crate::names::{NamesError, NewEntry, NewVolume};

#[tokio::test]
async fn a_pool_with_volumes_is_not_removed_and_they_are_told() {
    let names = tree(1).await;
    put(names.registry(), keys::pool("fast"), &pool("fast")).await;
    let fast = NewVolume {
        pool: Some("fast".to_owned()),
        ..volume()
    };
    let mut made = Vec::new();
    for at in ["/vm1/a", "/vm1/b"] {
        let file = names.create_volume(&path(at), &fast, NewEntry::FILE, true).await;
        made.push(file.unwrap().volume);
    }
    let refused = async || names.remove_pool("fast").await.unwrap_err().to_string();
    let error = refused().await;
    assert!(
        error.contains("pool fast") && error.contains("/vm1/a") && error.contains("/vm1/b"),
        "{error}"
    );

    // One whose space is still being given back is in it too.
    let registry = names.registry();
    for id in &made {
        let key = keys::volume(*id);
        let (mut record, revision) = registry.get_record::<VolumeRecord>(&key).await.unwrap().unwrap();
        record.phase = VolumePhase::Deleting;
        registry
            .put_record(&key, Some(revision), &record, None)
            .await
            .unwrap();
    }
    let error = refused().await;
    assert!(
        error.contains(&made[0].to_string()) && error.contains("given back"),
        "{error}"
    );
    for id in &made {
        registry
            .commit(vec![Change::delete(keys::volume(*id), None)])
            .await
            .unwrap();
    }
    names.remove_pool("fast").await.unwrap();
    let error = names.remove_pool("fast").await.unwrap_err().to_string();
    assert_eq!(error, "there is no storage pool fast; the pools are: default");
    let error = names
        .create_volume(&path("/c"), &fast, NewEntry::FILE, false)
        .await
        .unwrap_err();
    assert!(matches!(error, NamesError::NoPool { .. }), "{error}");
}

#[tokio::test]
async fn whoever_removes_a_pool_conflicts_with_a_volume_that_is_made_meanwhile() {
    let names = tree(1).await;
    let registry = names.registry();
    let revision = async || {
        let found = registry.get_record::<PoolRecord>(&keys::pool("default")).await;
        found.unwrap().unwrap().1
    };
    // What a removal saw that looked before the volume was there.
    let seen = revision().await;
    names
        .create_volume(&path("/a"), &volume(), NewEntry::FILE, false)
        .await
        .unwrap();
    let removed = registry
        .commit(vec![Change::delete(keys::pool("default"), Some(seen))])
        .await;
    assert!(removed.is_err(), "the pool went from under a volume");
}

#[tokio::test]
async fn a_back_end_of_a_pool_is_not_removed_and_the_pool_is_told() {
    let names = tree(1).await;
    let backend = BackendRecord {
        name: "disk-1".to_owned(),
        id: BackendId(7),
        place: None,
    };
    put(names.registry(), keys::backend("disk-1"), &backend).await;
    let fast = PoolRecord {
        backends: vec![PlacementEntry {
            backend: "disk-1".to_owned(),
            weight: 1,
        }],
        ..pool("fast")
    };
    put(names.registry(), keys::pool("fast"), &fast).await;
    let error = names.remove_backend("disk-1").await.unwrap_err().to_string();
    assert_eq!(error, "back end disk-1 is in use by: fast");
    names.remove_pool("fast").await.unwrap();
    assert_eq!(names.remove_backend("disk-1").await.unwrap(), backend);
    let error = names.remove_backend("disk-1").await.unwrap_err().to_string();
    assert_eq!(error, "there is no back end disk-1; the back ends are: none");
}
