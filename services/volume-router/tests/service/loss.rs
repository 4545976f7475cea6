//! A write buffer that is gone.

use sconce_registry::Registry;
use sconce_runtime::crash::{CRASH_ENV, Point};
use sconce_schemas::records::keys;
use sconce_schemas::wire::volume::VolumeControl;
use sconce_schemas::wire::{RefusalCode, Remedy};
use sconce_schemas::{ObjectName, VolumeId};

use crate::client::{Client, Model, bytes};
use crate::cluster::{Cluster, block_on, until};
use crate::peer::Peer;

const MIB: u64 = 1 << 20;

#[test]
fn a_volume_waits_for_its_buffer_unless_an_operator_accepts_the_loss() {
    block_on(async {
        let mut cluster = Cluster::started();
        let registry = cluster.registry().await;
        let volume = cluster.create(&registry, 1, 8 * MIB).await;
        let mut client = Client::open(&cluster, volume).await;
        let mut model = Model::new(8 << 20, 1);
        for _ in 0..100 {
            model.change(&mut client).await;
        }
        client.sync().await;
        cluster.kill();
        std::fs::rename(cluster.path("buffer"), cluster.path("buffer.kept")).unwrap();
        cluster.start();

        let refusal = client.reopen().await.unwrap_err();
        assert_eq!(refusal.code, RefusalCode::WaitsForOwner);
        for wanted in ["/disk-1", "sconce volume takeover /disk-1 --force", "manifest"] {
            assert!(refusal.text.contains(wanted), "{wanted:?} is not in {refusal}");
        }
        let unforced = VolumeControl::TakeOver { volume, force: false };
        assert_eq!(
            client.control(unforced).await.unwrap_err().code,
            RefusalCode::WaitsForOwner
        );
        assert!(client.show().await.state.contains("--force"));

        // The buffer comes back: nothing is lost, and nobody has to force anything.
        cluster.kill();
        std::fs::remove_dir_all(cluster.path("buffer")).unwrap();
        std::fs::rename(cluster.path("buffer.kept"), cluster.path("buffer")).unwrap();
        cluster.start();
        model.check(&mut client).await;
        client.sync().await;

        // It is gone for good.
        cluster.kill();
        std::fs::remove_dir_all(cluster.path("buffer")).unwrap();
        cluster.start();
        assert_eq!(
            client.reopen().await.unwrap_err().code,
            RefusalCode::WaitsForOwner
        );
        let forced = VolumeControl::TakeOver { volume, force: true };
        client.control(forced).await.unwrap();
        client.reopen().await.unwrap();
        model.check(&mut client).await;
        assert!(client.located > 0);
        for _ in 0..50 {
            model.change(&mut client).await;
        }
        // What was taken over from the back end is not in the new buffer: the next restart still finds it.
        cluster.kill();
        cluster.start();
        model.check(&mut client).await;
    });
}

/// A volume whose only cluster is stored, and its node again with an empty write buffer, while the back end is away.
async fn started_without_its_buffer() -> (Cluster, Registry, VolumeId, Client) {
    let mut cluster = Cluster::started();
    let registry = cluster.registry().await;
    let volume = cluster.create(&registry, 1, MIB).await;
    let mut client = Client::open(&cluster, volume).await;
    client.write(0, bytes(1, 4096)).await;
    client.sync().await;
    cluster.kill();
    std::fs::remove_dir_all(cluster.path("buffer")).unwrap();
    cluster.stop_storage();
    cluster.start();
    (cluster, registry, volume, client)
}

#[test]
fn a_loss_that_was_accepted_once_is_not_asked_about_again_after_a_failure_that_passes() {
    block_on(async {
        let (mut cluster, _, volume, mut client) = started_without_its_buffer().await;
        assert_eq!(
            client.reopen().await.unwrap_err().code,
            RefusalCode::WaitsForOwner
        );
        // The operator is told that the back end is away, and has said all that there is to say.
        let forced = VolumeControl::TakeOver { volume, force: true };
        let refusal = client.control(forced).await.unwrap_err();
        assert_eq!(
            (refusal.remedy, refusal.code),
            (Remedy::Retry, RefusalCode::Unavailable),
            "{refusal}"
        );
        cluster.start_storage();
        client.reopen().await.unwrap();
        assert_eq!(client.read(0, 4096).await, bytes(1, 4096));
    });
}

#[test]
fn a_loss_that_was_accepted_is_not_that_of_an_owner_that_came_later() {
    block_on(async {
        let (mut cluster, registry, volume, mut client) = started_without_its_buffer().await;
        let forced = VolumeControl::TakeOver { volume, force: true };
        client.control(forced).await.unwrap_err();
        let mut record = cluster.record(&registry, volume).await;
        (record.owner, record.epoch) = ("somebody-else".parse().unwrap(), record.epoch.next());
        record.buffer = Some("another buffer".to_owned());
        registry
            .put_record(&keys::volume(volume), None, &record, None)
            .await
            .unwrap();
        cluster.start_storage();
        let refusal = client.reopen().await.unwrap_err();
        assert_eq!(refusal.code, RefusalCode::NotOwner, "{refusal}");
        assert_eq!(cluster.record(&registry, volume).await, record);
    });
}

#[test]
fn a_takeover_that_was_carried_out_is_asked_for_no_more() {
    block_on(async {
        let cluster = Cluster::started();
        let registry = cluster.registry().await;
        let volume = cluster.create(&registry, 1, MIB).await;
        let mut client = Client::open(&cluster, volume).await;
        client.write(0, bytes(1, 4096)).await;
        client.sync().await;
        // A node that had nothing to do with the volume so far.
        let peer = Peer::start(&cluster, "peer", "").await;
        let mut there = Client::connect_to(&cluster, peer.name, volume);
        let forced = VolumeControl::TakeOver { volume, force: true };
        there.control(forced).await.unwrap();
        there.reopen().await.unwrap();
        // Somebody else takes it over: what that acknowledges nobody has given up.
        let mut record = cluster.record(&registry, volume).await;
        (record.owner, record.epoch) = ("somebody-else".parse().unwrap(), record.epoch.next());
        record.buffer = Some("another buffer".to_owned());
        let key = keys::volume(volume);
        registry.put_record(&key, None, &record, None).await.unwrap();
        let refusal = until("the owner before to notice", async || there.reopen().await.err()).await;
        assert_eq!(refusal.code, RefusalCode::NotOwner, "{refusal}");
        assert_eq!(cluster.record(&registry, volume).await, record);
    });
}

#[test]
fn scos_that_only_the_back_end_has_survive_two_restarts_after_a_takeover() {
    block_on(async {
        let mut cluster = Cluster::new().with_settings(
            // No checkpoint by itself: SCOs are stored, but no manifest covers them.
            "[volumes]\ncheckpoint_idle = \"2h\"\ncheckpoint_age = \"2h\"\n",
        );
        cluster.start();
        let registry = cluster.registry().await;
        let volume = cluster.create(&registry, 1, 8 * MIB).await;
        let mut client = Client::open(&cluster, volume).await;
        client.sync().await;
        let mut model = Model::new(8 << 20, 7);
        // Uploads end in any order, and what is taken over is a prefix: the first ones have to be there.
        let stored = |cluster: &Cluster| {
            let files = cluster.files("backend");
            let has = |id| {
                let name = format!("/sco/{id:012x}.");
                files.iter().any(|path| path.to_string_lossy().contains(&name))
            };
            (1..=3).all(has)
        };
        while !stored(&cluster) {
            model.change(&mut client).await;
        }
        cluster.kill();
        std::fs::remove_dir_all(cluster.path("buffer")).unwrap();
        // It dies again before any manifest covers what it took over.
        let mut cluster = cluster.with_env(CRASH_ENV, Point::AfterCheckpointStored.name());
        cluster.start();
        let refusal = client.reopen().await.unwrap_err();
        assert_eq!(refusal.code, RefusalCode::WaitsForOwner);
        let forced = VolumeControl::TakeOver { volume, force: true };
        client.control(forced).await.unwrap();
        cluster.wait_for_end();
        cluster.clear_env();
        cluster.start();
        client.reopen().await.unwrap();
        let taken_over = client.read(0, 8 << 20).await;
        assert!(taken_over.iter().any(|byte| *byte != 0), "three SCOs were stored");
        client.write(0, vec![9; 4096]).await;
        for _ in 0..2 {
            cluster.kill();
            cluster.start();
            assert_eq!(client.read(0, 4096).await, vec![9; 4096]);
            assert!(
                client.read(4096, (8 << 20) - 4096).await == taken_over[4096..],
                "not what was taken over"
            );
        }
    });
}

#[test]
fn a_manifest_that_the_record_names_and_nobody_has_is_missed() {
    block_on(async {
        let mut cluster = Cluster::started();
        let registry = cluster.registry().await;
        let volume = cluster.create(&registry, 1, MIB).await;
        let mut client = Client::open(&cluster, volume).await;
        for seed in 1..=3 {
            client.write(0, bytes(seed, 4096)).await;
            client.sync().await;
        }
        assert_eq!(cluster.stop(), Some(0));
        std::fs::remove_dir_all(cluster.path("buffer")).unwrap();
        let named = cluster.record(&registry, volume).await.manifest.unwrap();
        let manifests = || {
            let mut files = cluster.files("backend");
            files.retain(|path| path.to_string_lossy().contains("/manifest/"));
            files
        };
        assert!(manifests().len() >= 2, "an older one is there: {:?}", manifests());
        let newest = manifests().pop().unwrap();
        let away = cluster.path("manifest.away");
        std::fs::rename(&newest, &away).unwrap();

        cluster.start();
        let refusal = client.reopen().await.unwrap_err();
        assert_eq!(refusal.remedy, Remedy::Damaged, "{refusal}");
        let name = ObjectName::Manifest {
            volume,
            seq: named.seq,
            epoch: named.epoch,
        };
        assert!(
            refusal.text.contains(&name.to_string()),
            "{name} is not in {refusal}"
        );
        cluster.kill();
        std::fs::rename(&away, &newest).unwrap();
        cluster.start();
        assert_eq!(client.read(0, 4096).await, bytes(3, 4096));
    });
}
