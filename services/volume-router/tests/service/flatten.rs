//! Flattening: a clone that needs nothing of its parent any more, with real files and a real registry.

use sconce_registry::{Change, Registry, Revision};
use sconce_schemas::SnapshotId;
use sconce_schemas::VolumeId;
use sconce_schemas::records::{CloneRecord, Origin, Record as _, VolumePhase, keys};
use sconce_schemas::wire::volume::VolumeControl;
use sconce_schemas::wire::{Refusal, RefusalCode};

use crate::client::{Client, Model};
use crate::cluster::{Cluster, block_on, until};
use crate::snapshots::{ask, take, take_over};

const MIB: u64 = 1 << 20;
const SIZE: usize = 4 << 20;

async fn flatten(client: &Client) {
    let volume = client.volume;
    ask(client, VolumeControl::Flatten { volume }).await.unwrap();
}

async fn remove_snapshot(client: &Client, name: &str) {
    let remove = VolumeControl::RemoveSnapshot {
        volume: client.volume,
        name: name.to_owned(),
        id: None,
    };
    ask(client, remove).await.unwrap();
}

async fn change(model: &mut Model, client: &mut Client) {
    for _ in 0..30 {
        model.change(client).await;
    }
}

/// A parent with a snapshot, and a clone of it with its record below the parent.
async fn family(cluster: &Cluster, registry: &Registry) -> (Client, Client, Model) {
    let parent = cluster.create(registry, 1, 4 * MIB).await;
    let mut parent = Client::open(cluster, parent).await;
    let mut model = Model::new(SIZE, 71);
    for _ in 0..80 {
        model.change(&mut parent).await;
    }
    take(&parent, 1, "base").await.unwrap();
    let clones = Model {
        bytes: model.bytes.clone(),
        rng: fastrand::Rng::with_seed(72),
    };
    change(&mut model, &mut parent).await;
    parent.sync().await;
    let origin = Origin {
        volume: parent.volume,
        snapshot: SnapshotId(1),
    };
    let clone = cluster.clone_of(registry, 1, origin, 4 * MIB).await;
    let below = CloneRecord {
        snapshot: SnapshotId(1),
        inode: 1001,
    };
    registry
        .put_record(
            &keys::clone(parent.volume, clone),
            Some(Revision::ABSENT),
            &below,
            None,
        )
        .await
        .unwrap();
    let clone = Client::open(cluster, clone).await;
    (parent, clone, clones)
}

async fn is_dependent(cluster: &Cluster, registry: &Registry, clone: VolumeId, parent: VolumeId) -> bool {
    let below = keys::clone(parent, clone);
    // Both go in one commit: what was read around it is read again.
    until("both records to say the same", async || {
        let origin = cluster.record(registry, clone).await.origin.is_some();
        let below = registry.get_record::<CloneRecord>(&below).await.unwrap();
        (origin == below.is_some()).then_some(origin)
    })
    .await
}

/// As the command line deletes a volume; returns once nothing of it is on the back ends.
async fn delete(cluster: &Cluster, registry: &Registry, parent: &Client) {
    let key = keys::volume(parent.volume);
    until("the parent to be marked", async || {
        let (mut record, revision) = registry
            .get_record::<sconce_schemas::records::VolumeRecord>(&key)
            .await
            .unwrap()?;
        record.phase = VolumePhase::Deleting;
        let put = Change::put(key.clone(), Some(revision), record.to_bytes());
        let unlink = Change::delete(keys::inode(record.inode), None);
        registry.commit(vec![put, unlink]).await.ok().map(drop)
    })
    .await;
    let volume = parent.volume;
    let below = format!("{volume}");
    let gone = until("the parent's objects to go", async || {
        let files = cluster.files("backend");
        let left = files.iter().any(|path| path.to_string_lossy().contains(&below));
        (!left).then_some(())
    });
    // It may be over by now: an owner sees the mark by itself.
    let answer = ask(parent, VolumeControl::Delete { volume }).await;
    let is_over = |refusal: &Refusal| refusal.code == RefusalCode::NotFound;
    assert!(answer.as_ref().err().is_none_or(is_over), "{answer:?}");
    gone.await;
}

#[test]
fn a_clone_that_was_flattened_is_whole_when_its_parent_is_gone() {
    block_on(async {
        let mut cluster = Cluster::new().with_settings("[volumes]\ncheckpoint_idle = \"100ms\"\n");
        cluster.start();
        let registry = cluster.registry().await;
        let (parent, mut clone, mut model) = family(&cluster, &registry).await;
        model.check(&mut clone).await;
        // Written in between, over what is there and beside it.
        change(&mut model, &mut clone).await;
        take(&clone, 5, "early").await.unwrap();
        let early = model.bytes.clone();
        flatten(&clone).await;
        flatten(&clone).await;
        cluster.kill();
        cluster.start();
        clone.reopen().await.unwrap();
        change(&mut model, &mut clone).await;
        // A snapshot that is older needs the parent.
        until("only the snapshot to be waited for", async || {
            let progress = clone.show().await.flatten?;
            (progress.percent == 100 && progress.waits_for == ["early"]).then_some(())
        })
        .await;
        // Stored, or a replay after the kill looks at all of it again, and "late" is older than that.
        change(&mut model, &mut clone).await;
        clone.sync().await;
        take(&clone, 6, "late").await.unwrap();
        let late = model.bytes.clone();
        change(&mut model, &mut clone).await;
        assert!(is_dependent(&cluster, &registry, clone.volume, parent.volume).await);
        let mut snapshot = Client::open_snapshot(&cluster, clone.volume, "early")
            .await
            .unwrap();
        let early = Model {
            bytes: early,
            rng: fastrand::Rng::with_seed(0),
        };
        early.check(&mut snapshot).await;
        cluster.kill();
        cluster.start();
        remove_snapshot(&clone, "early").await;
        until("the clone to be independent", async || {
            let dependent = is_dependent(&cluster, &registry, clone.volume, parent.volume).await;
            (!dependent).then_some(())
        })
        .await;
        assert_eq!(clone.show().await.flatten, None);

        delete(&cluster, &registry, &parent).await;
        clone.reopen().await.unwrap();
        model.check(&mut clone).await;
        change(&mut model, &mut clone).await;
        clone.sync().await;
        // Cold: neither SCOs nor checkpoints are here, and the parent is nowhere.
        cluster.kill();
        std::fs::remove_dir_all(cluster.path("buffer")).unwrap();
        cluster.start();
        take_over(&mut clone).await;
        model.check(&mut clone).await;
        assert!(clone.located > 0, "nothing came from the back end");
        let mut snapshot = Client::open_snapshot(&cluster, clone.volume, "late")
            .await
            .unwrap();
        let late = Model {
            bytes: late,
            rng: fastrand::Rng::with_seed(0),
        };
        late.check(&mut snapshot).await;
        change(&mut model, &mut clone).await;
        model.check(&mut clone).await;
        // It is asked for once more, and nothing is left to be done.
        flatten(&clone).await;
        assert_eq!(clone.show().await.flatten, None);
    });
}

#[test]
fn a_manifest_that_the_registry_did_not_hear_of_is_found_at_the_next_start() {
    block_on(async {
        let mut cluster = Cluster::new().with_settings("[volumes]\ncheckpoint_idle = \"100ms\"\n");
        cluster.start();
        let registry = cluster.registry().await;
        let (parent, mut clone, model) = family(&cluster, &registry).await;
        let before = cluster.record(&registry, clone.volume).await.origin;
        flatten(&clone).await;
        until("the clone to be independent", async || {
            let dependent = is_dependent(&cluster, &registry, clone.volume, parent.volume).await;
            (!dependent).then_some(())
        })
        .await;
        cluster.kill();
        // As if the process had died just before its last commit.
        let key = keys::volume(clone.volume);
        let (mut record, revision) = registry
            .get_record::<sconce_schemas::records::VolumeRecord>(&key)
            .await
            .unwrap()
            .unwrap();
        record.origin = before;
        registry
            .put_record(&key, Some(revision), &record, None)
            .await
            .unwrap();
        let below = CloneRecord {
            snapshot: SnapshotId(1),
            inode: 1001,
        };
        registry
            .put_record(
                &keys::clone(parent.volume, clone.volume),
                Some(Revision::ABSENT),
                &below,
                None,
            )
            .await
            .unwrap();
        cluster.start();
        clone.reopen().await.unwrap();
        until("the registry to hear of it", async || {
            let dependent = is_dependent(&cluster, &registry, clone.volume, parent.volume).await;
            (!dependent).then_some(())
        })
        .await;
        delete(&cluster, &registry, &parent).await;
        model.check(&mut clone).await;
    });
}

#[test]
fn a_volume_that_is_no_clone_says_so() {
    block_on(async {
        let cluster = Cluster::started();
        let registry = cluster.registry().await;
        let volume = cluster.create(&registry, 1, MIB).await;
        let client = Client::open(&cluster, volume).await;
        let refused = ask(&client, VolumeControl::Flatten { volume }).await.unwrap_err();
        assert_eq!(
            refused.code,
            RefusalCode::Invalid,
            "{refusal}",
            refusal = refused.text
        );
    });
}
