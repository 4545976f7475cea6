//! Who serves a volume, and for how long.

use sconce_registry::Change;
use sconce_schemas::SnapshotId;
use sconce_schemas::records::{Record as _, RemovalRecord, VolumePhase, VolumeRecord, keys};
use sconce_schemas::wire::volume::VolumeControl;
use sconce_schemas::wire::{Refusal, RefusalCode, Remedy};

use crate::client::{Client, Model};
use crate::cluster::{Cluster, block_on, until};

const MIB: u64 = 1 << 20;

#[test]
fn another_nodes_volume_is_not_served_and_one_that_does_not_exist_is_not_found() {
    block_on(async {
        let cluster = Cluster::started();
        let registry = cluster.registry().await;
        let volume = cluster.create(&registry, 1, MIB).await;
        let mut record = cluster.record(&registry, volume).await;
        record.owner = "somebody-else".parse().unwrap();
        registry
            .put_record(&keys::volume(volume), None, &record, None)
            .await
            .unwrap();
        let refusal = Client::connect(&cluster, volume).reopen().await.unwrap_err();
        assert_eq!(
            (refusal.remedy, refusal.code),
            (Remedy::Reroute, RefusalCode::NotOwner)
        );
        assert!(refusal.text.contains("somebody-else"), "{refusal}");

        let nothing = sconce_schemas::VolumeId([9; 16]);
        let refusal = Client::connect(&cluster, nothing).reopen().await.unwrap_err();
        assert_eq!(
            (refusal.remedy, refusal.code),
            (Remedy::Reject, RefusalCode::NotFound)
        );

        // Nothing was ever written to it, so it may be taken over without force.
        let mut client = Client::connect(&cluster, volume);
        client
            .control(VolumeControl::TakeOver { volume, force: false })
            .await
            .unwrap();
        client.reopen().await.unwrap();
        client.write(0, vec![1; 512]).await;
        assert_eq!(
            cluster.record(&registry, volume).await.owner.as_str(),
            "volume-router"
        );
    });
}

#[test]
fn an_owner_that_is_passed_stops_serving_at_once() {
    block_on(async {
        let cluster = Cluster::started();
        let registry = cluster.registry().await;
        let volume = cluster.create(&registry, 1, MIB).await;
        let mut client = Client::open(&cluster, volume).await;
        client.write(0, vec![1; 4096]).await;
        let mut record = cluster.record(&registry, volume).await;
        record.owner = "somebody-else".parse().unwrap();
        record.epoch = record.epoch.next();
        registry
            .put_record(&keys::volume(volume), None, &record, None)
            .await
            .unwrap();
        let refusal = until("the owner to notice", async || {
            client.try_read(0, 4096).await.err()
        })
        .await;
        assert_eq!(
            (refusal.remedy, refusal.code),
            (Remedy::Reroute, RefusalCode::NotOwner)
        );
        let unchanged: VolumeRecord = cluster.record(&registry, volume).await;
        assert_eq!(unchanged, record);
    });
}

#[test]
fn an_epoch_that_was_used_is_never_given_out_again() {
    block_on(async {
        let mut cluster = Cluster::started();
        let registry = cluster.registry().await;
        let volume = cluster.create(&registry, 1, MIB).await;
        let old = cluster.record(&registry, volume).await;
        let mut model = Model::new(1 << 20, 1);
        let mut client = Client::open(&cluster, volume).await;
        model.change(&mut client).await;
        assert_eq!(cluster.stop(), Some(0));
        cluster.start();
        model.check(&mut client).await;
        assert_eq!(cluster.stop(), Some(0));
        let newest = cluster.record(&registry, volume).await;
        // A registry that was restored from before the first write: only the back ends know better.
        let mut restored = old;
        restored.epoch = sconce_schemas::Epoch(1);
        registry
            .put_record(&keys::volume(volume), None, &restored, None)
            .await
            .unwrap();
        cluster.start();
        model.check(&mut client).await;
        let record = cluster.record(&registry, volume).await;
        assert!(record.epoch > newest.manifest.unwrap().epoch, "{record:?}");
    });
}

#[test]
fn a_deleted_volume_gives_everything_back_even_after_a_kill() {
    block_on(async {
        let mut cluster = Cluster::started();
        let registry = cluster.registry().await;
        for (number, killed) in [(1, false), (2, true)] {
            let volume = cluster.create(&registry, number, 8 * MIB).await;
            let mut client = Client::open(&cluster, volume).await;
            let mut model = Model::new(8 << 20, number.into());
            for _ in 0..50 {
                model.change(&mut client).await;
            }
            client.sync().await;
            let refusal = client
                .control(VolumeControl::Delete { volume })
                .await
                .unwrap_err();
            assert_eq!(
                refusal.remedy,
                Remedy::Reject,
                "its name is still there: {refusal}"
            );
            assert!(!cluster.files("backend").is_empty());
            if killed {
                cluster.kill();
            }
            // Removals of snapshots that were cut short, more than a commit takes.
            for id in 0..120 {
                let mark = keys::removal(volume, SnapshotId(id));
                let record = RemovalRecord::default();
                registry.put_record(&mark, None, &record, None).await.unwrap();
            }
            let mut record = cluster.record(&registry, volume).await;
            record.phase = VolumePhase::Deleting;
            let changes = vec![
                Change::put(keys::volume(volume), None, record.to_bytes()),
                Change::delete(keys::inode(record.inode), None),
            ];
            registry.commit(changes).await.unwrap();
            if killed {
                cluster.start();
            } else {
                let asked = client.control(VolumeControl::Delete { volume }).await;
                // It may be over by now: an owner sees the mark by itself.
                let is_over = |refusal: &Refusal| refusal.code == RefusalCode::NotFound;
                assert!(asked.as_ref().err().is_none_or(is_over), "{asked:?}");
            }
            until("the record to go", async || {
                let found = registry.get(&keys::volume(volume)).await.unwrap();
                found.is_none().then_some(())
            })
            .await;
            let marks = registry
                .list(&keys::removals_of(volume), None, 1000)
                .await
                .unwrap();
            assert!(marks.is_empty(), "{} marks are left", marks.len());
            let text = volume.to_string();
            let left: Vec<_> = cluster
                .files("backend")
                .into_iter()
                .filter(|path| path.to_string_lossy().contains(&text))
                .collect();
            assert!(left.is_empty(), "{left:?}");
        }
        let volume = cluster.create(&registry, 3, MIB).await;
        let client = Client::open(&cluster, volume).await;
        assert_eq!(client.node().await.buffer_unstored.0, 0);
    });
}

#[test]
fn a_rename_is_in_the_next_manifest() {
    block_on(async {
        let cluster = Cluster::started();
        let registry = cluster.registry().await;
        let volume = cluster.create(&registry, 1, MIB).await;
        let client = Client::open(&cluster, volume).await;
        client.sync().await;
        let before = cluster.record(&registry, volume).await;
        let key = keys::inode(before.inode);
        let (mut inode, _) = registry
            .get_record::<sconce_schemas::records::InodeRecord>(&key)
            .await
            .unwrap()
            .unwrap();
        inode.name = "another".to_owned();
        registry.put_record(&key, None, &inode, None).await.unwrap();
        client.control(VolumeControl::Renamed { volume }).await.unwrap();
        client.sync().await;
        let newest = cluster
            .files("buffer/map")
            .into_iter()
            .find(|path| path.ends_with("manifest"))
            .unwrap();
        let manifest =
            sconce_schemas::manifest::Manifest::from_bytes(&std::fs::read(newest).unwrap()).unwrap();
        assert_eq!(manifest.path, "/another");
        assert_ne!(cluster.record(&registry, volume).await.manifest, before.manifest);
    });
}
