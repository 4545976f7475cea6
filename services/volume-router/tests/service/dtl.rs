//! An owner and its twins: every acknowledged write is on two nodes, or the record says that it is not.

use sconce_registry::Change;
use sconce_schemas::records::{DtlMode, DtlState, Record as _, VolumePhase, VolumeRecord, keys};
use sconce_schemas::wire::Remedy;
use sconce_schemas::wire::volume::VolumeControl;

use crate::client::Client;
use crate::cluster::{Cluster, NODE, block_on, until};
use crate::peer::Peer;
use crate::scene::{PATIENT, SOON, Scene, scos};

/// A volume whose changes are only in write buffers, as the back ends are away.
async fn unstored(settings: &str) -> Scene {
    let mut scene = Scene::begin_with(settings, 41).await;
    scene.cluster.stop_storage();
    // More than a SCO: some are closed and not stored when a twin comes.
    scene.change(120).await;
    scene
}

impl Scene {
    /// Waits until the record relies on this node.
    async fn in_sync_at(&self, peer: &Peer) {
        until("the twin to be in sync", async || {
            let record = self.record().await;
            let host = record.dtl_host.as_ref().map(|host| host.as_str());
            (record.dtl_state == DtlState::InSync && host == Some(peer.name)).then_some(())
        })
        .await;
    }

    async fn is_degraded(&self) {
        let record = self.record().await;
        assert_eq!(
            (record.dtl_state, record.dtl_host, record.dtl_buffer),
            (DtlState::Degraded, None, None)
        );
    }
}

#[test]
fn a_twin_has_everything_or_the_record_says_that_there_is_none() {
    block_on(async {
        let mut scene = unstored(PATIENT).await;
        scene.set(DtlMode::Sync).await;
        scene.is_degraded().await;
        let mut first = Peer::start(&scene.cluster, "first", PATIENT).await;
        scene.in_sync_at(&first).await;
        // The volume hears of it a little after the record says so.
        let shown = until("the status", async || {
            let shown = scene.client.show().await;
            (shown.dtl_state == DtlState::InSync).then_some(shown)
        });
        let shown = shown.await;
        assert_eq!(shown.dtl_mode, Some(DtlMode::Sync));
        assert_eq!(shown.dtl_host.as_ref().map(|host| host.as_str()), Some("first"));
        assert_eq!(scene.record().await.dtl_mode, DtlMode::Sync);
        scene.change(50).await;
        scene.client.flush().await;

        // It dies: what is acknowledged from then on is acknowledged by a record that says so.
        first.kill();
        scene.is_gone(first.name).await;
        scene.change(1).await;
        scene.is_degraded().await;
        assert_eq!(scene.client.show().await.dtl_state, DtlState::Degraded);
        scene.change(50).await;

        // Another one has all that happened meanwhile, and goes on when the owner dies.
        let second = Peer::start(&scene.cluster, "second", PATIENT).await;
        scene.in_sync_at(&second).await;
        scene.change(50).await;
        scene.client.flush().await;
        scene.cluster.kill();
        scene.cluster.start_storage();
        scene.is_gone(NODE).await;
        let mut successor = Client::connect_to(&scene.cluster, second.name, scene.client.volume);
        until("the twin to take over", async || successor.reopen().await.ok()).await;
        scene.model.check(&mut successor).await;
        assert_eq!(scene.record().await.owner.as_str(), "second");
    });
}

#[test]
fn a_twin_that_says_nothing_holds_writes_up_no_longer_than_is_set() {
    block_on(async {
        let mut scene = unstored(SOON).await;
        let peer = Peer::start(&scene.cluster, "silent", SOON).await;
        scene.set(DtlMode::Sync).await;
        scene.in_sync_at(&peer).await;
        peer.hold().await;
        scene.change(1).await;
        scene.is_degraded().await;
        peer.signal("-CONT");
        // It is asked again, and what it had before is worth nothing.
        scene.in_sync_at(&peer).await;
        scene.change(20).await;
        scene.model.check(&mut scene.client).await;
    });
}

#[test]
fn an_owner_that_writes_nothing_notices_that_its_twin_is_gone() {
    block_on(async {
        let scene = unstored(SOON).await;
        let mut peer = Peer::start(&scene.cluster, "gone", SOON).await;
        scene.set(DtlMode::Async).await;
        scene.in_sync_at(&peer).await;
        peer.kill();
        until("the record to say so", async || {
            (scene.record().await.dtl_state == DtlState::Degraded).then_some(())
        })
        .await;
    });
}

#[test]
fn a_volume_that_wants_no_twin_any_more_leaves_none() {
    block_on(async {
        let mut scene = unstored(PATIENT).await;
        let peer = Peer::start(&scene.cluster, "unwanted", PATIENT).await;
        let empty = scos(&scene.cluster, peer.name);
        scene.set(DtlMode::Sync).await;
        scene.in_sync_at(&peer).await;
        assert!(scos(&scene.cluster, peer.name) > empty);
        scene.set(DtlMode::None).await;
        until("the record to say that there is none", async || {
            let record = scene.record().await;
            let is_off = record.dtl_mode == DtlMode::None && record.dtl_state == DtlState::Off;
            (is_off && record.dtl_host.is_none() && record.dtl_buffer.is_none()).then_some(())
        })
        .await;
        until("the twin to be forgotten", async || {
            (scos(&scene.cluster, peer.name) == empty).then_some(())
        })
        .await;
        scene.change(20).await;
        scene.model.check(&mut scene.client).await;
    });
}

#[test]
fn a_host_that_was_away_gives_up_the_twin_of_a_volume_that_is_erased_by_then() {
    block_on(async {
        let settings = format!("{PATIENT}[erase]\ngrace = \"0s\"\nadopt_after = \"1s\"\n");
        let mut scene = Scene::of(Cluster::new().with_settings(&settings), 42).await;
        // A service whose record is damaged runs, and is nobody's business here.
        let damaged = keys::node(&"damaged".parse().unwrap());
        let damaged = Change::put(damaged, None, b"no record".to_vec());
        scene.registry.commit(vec![damaged]).await.unwrap();
        scene.change(20).await;
        scene.client.sync().await;
        scene.cluster.stop_storage();
        scene.change(20).await;
        let mut peer = Peer::start(&scene.cluster, "away", &settings).await;
        scene.set(DtlMode::Sync).await;
        scene.in_sync_at(&peer).await;
        peer.kill();
        scene.is_gone(peer.name).await;
        scene.change(1).await;
        scene.is_degraded().await;
        scene.cluster.start_storage();
        until("the record to be marked", async || {
            let key = keys::volume(scene.client.volume);
            let (mut record, revision) = scene.registry.get_record::<VolumeRecord>(&key).await.unwrap()?;
            record.phase = VolumePhase::Deleting;
            let changes = vec![
                Change::put(key, Some(revision), record.to_bytes()),
                Change::delete(keys::inode(record.inode), None),
            ];
            scene.registry.commit(changes).await.ok()
        })
        .await;
        until("the record to go", async || {
            let found = scene
                .registry
                .get(&keys::volume(scene.client.volume))
                .await
                .unwrap();
            found.is_none().then_some(())
        })
        .await;
        assert!(scos(&scene.cluster, peer.name) > 0);
        let peer = Peer::start(&scene.cluster, "away", &settings).await;
        until("the twin to be given up", async || {
            (scos(&scene.cluster, peer.name) == 0).then_some(())
        })
        .await;
    });
}

#[test]
fn a_mode_that_could_not_be_noted_is_not_the_volumes() {
    block_on(async {
        // The lease lasts longer than the registry is away.
        let mut scene = Scene::of(Cluster::new().with_settings("[volumes]\nlease = \"30s\"\n"), 43).await;
        scene.cluster.stop_registry();
        let volume = scene.client.volume;
        let mode = DtlMode::Sync;
        let refusal = scene
            .client
            .control(VolumeControl::SetDtl { volume, mode })
            .await
            .unwrap_err();
        assert_eq!(refusal.remedy, Remedy::Retry, "{refusal}");
        scene.cluster.start_registry();
        until("the volume to want what its record says", async || {
            let shown = scene.client.show().await;
            (shown.dtl_mode == Some(scene.record().await.dtl_mode)).then_some(())
        })
        .await;
        scene.change(20).await;
        scene.set(DtlMode::Async).await;
        assert_eq!(scene.client.show().await.dtl_mode, Some(DtlMode::Async));
    });
}

#[test]
fn an_orderly_stop_leaves_no_twin() {
    block_on(async {
        let mut scene = unstored(PATIENT).await;
        let peer = Peer::start(&scene.cluster, "left", PATIENT).await;
        let empty = scos(&scene.cluster, peer.name);
        scene.set(DtlMode::Sync).await;
        scene.in_sync_at(&peer).await;
        scene.cluster.start_storage();
        assert_eq!(scene.cluster.stop(), Some(0));
        scene.is_degraded().await;
        assert_eq!(scene.record().await.buffer, None);
        until("the twin to be forgotten", async || {
            (scos(&scene.cluster, peer.name) == empty).then_some(())
        })
        .await;
    });
}
