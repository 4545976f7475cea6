//! Planned moves: the volume goes with everything that is acknowledged, or stays as it was.

use sconce_schemas::records::{DtlMode, DtlState, VolumeRecord};
use sconce_schemas::wire::volume::VolumeControl;
use sconce_schemas::wire::{Refusal, RefusalCode};

use crate::client::Client;
use crate::cluster::{NODE, block_on, until};
use crate::peer::Peer;
use crate::scene::{PATIENT, SOON, Scene, scos};

/// A volume that was written to.
async fn written(mode: DtlMode) -> Scene {
    written_with(PATIENT, mode).await
}

async fn written_with(settings: &str, mode: DtlMode) -> Scene {
    let mut scene = Scene::begin_with(settings, 43).await;
    scene.set(mode).await;
    scene.change(120).await;
    scene
}

impl Scene {
    /// Asks whoever the client talks to.
    async fn move_to(&self, node: &str) -> Result<(), Refusal> {
        let (volume, to) = (self.client.volume, node.parse().unwrap());
        let moved = self.client.control(VolumeControl::Move { volume, to }).await;
        moved.map(drop)
    }

    async fn is_owned_by(&self, node: &str) -> VolumeRecord {
        until("the next ownership", async || {
            let record = self.record().await;
            (record.owner.as_str() == node && record.moving.is_none()).then_some(record)
        })
        .await
    }
}

#[test]
fn a_volume_moves_there_and_back_with_everything_that_is_acknowledged() {
    block_on(async {
        let mut scene = written(DtlMode::None).await;
        let _peer = Peer::start(&scene.cluster, "there", PATIENT).await;
        let epoch = scene.record().await.epoch;
        scene.move_to("there").await.unwrap();

        // Who asks the former owner is told where to go.
        let refused = scene.client.reopen().await.unwrap_err();
        assert_eq!(refused.code, RefusalCode::NotOwner, "{refused}");
        scene.client.go_to(&scene.cluster, "there").await;
        let record = scene.is_owned_by("there").await;
        assert_eq!(record.epoch, epoch.next());
        assert_eq!(
            (record.dtl_mode, record.dtl_state),
            (DtlMode::None, DtlState::Off)
        );
        scene.model.check(&mut scene.client).await;
        until("the former owner to give its SCOs up", async || {
            (scos(&scene.cluster, NODE) == 0).then_some(())
        })
        .await;

        // Numbers of the session go on.
        scene.change(100).await;
        scene.client.flush().await;
        scene.move_to(NODE).await.unwrap();
        scene.client.go_to(&scene.cluster, NODE).await;
        scene.is_owned_by(NODE).await;
        scene.model.check(&mut scene.client).await;
        scene.change(20).await;
        scene.model.check(&mut scene.client).await;
    });
}

#[test]
fn the_former_owner_keeps_the_twin() {
    block_on(async {
        let mut scene = written(DtlMode::Sync).await;
        let mut first = Peer::start(&scene.cluster, "first", PATIENT).await;
        let _second = Peer::start(&scene.cluster, "second", PATIENT).await;
        let mut third = Peer::start(&scene.cluster, "third", PATIENT).await;
        for (from, to) in [
            (NODE, "first"),
            ("first", "second"),
            ("second", "third"),
            ("third", "first"),
        ] {
            scene.move_to(to).await.unwrap();
            scene.client.go_to(&scene.cluster, to).await;
            scene.change(40).await;
            let record = until("the twin at the former owner", async || {
                let record = scene.is_owned_by(to).await;
                (record.dtl_state == DtlState::InSync).then_some(record)
            });
            let record = record.await;
            assert_eq!(record.dtl_mode, DtlMode::Sync);
            assert_eq!(record.dtl_host.as_ref().map(|host| host.as_str()), Some(from));
            scene.model.check(&mut scene.client).await;
        }
        // It is one.
        scene.change(40).await;
        first.kill();
        scene.is_gone(first.name).await;
        let mut successor = Client::connect_to(&scene.cluster, "third", scene.client.volume);
        until("the twin to take over", async || successor.reopen().await.ok()).await;
        scene.model.check(&mut successor).await;
        third.kill();
    });
}

#[test]
fn a_volume_stays_while_the_back_end_is_away_with_what_is_asked_for_meanwhile() {
    block_on(async {
        let mut scene = written(DtlMode::None).await;
        let _peer = Peer::start(&scene.cluster, "there", PATIENT).await;
        scene.cluster.stop_storage();
        scene.change(60).await;
        let set = async {
            until("the volume to be ready to move", async || {
                let record = scene.record().await;
                (record.dtl_state == DtlState::InSync && record.moving.is_some()).then_some(())
            })
            .await;
            let (volume, mode) = (scene.client.volume, DtlMode::Sync);
            let set = scene.client.control(VolumeControl::SetDtl { volume, mode });
            set.await.map(drop)
        };
        let (moved, set) = tokio::join!(scene.move_to("there"), set);
        assert_eq!(set, Ok(()));
        // The next owner could not begin.
        let refused = moved.unwrap_err();
        assert!(refused.text.contains("as it needs the back ends"), "{refused}");
        scene.change(20).await;
        assert_eq!(scene.is_owned_by(NODE).await.dtl_mode, DtlMode::Sync);

        scene.cluster.start_storage();
        scene.move_to("there").await.unwrap();
        scene.client.go_to(&scene.cluster, "there").await;
        assert_eq!(scene.is_owned_by("there").await.dtl_mode, DtlMode::Sync);
        scene.model.check(&mut scene.client).await;
        scene.change(20).await;
    });
}

#[test]
fn a_move_to_a_node_that_is_not_there_costs_no_twin() {
    block_on(async {
        let mut scene = written(DtlMode::Sync).await;
        let _peer = Peer::start(&scene.cluster, "twin", PATIENT).await;
        let is_in_sync = async |scene: &Scene| {
            let record = scene.record().await;
            (record.dtl_state == DtlState::InSync && record.moving.is_none()).then_some(record.dtl_since_us)
        };
        let since = until("the twin to be in sync", async || is_in_sync(&scene).await).await;
        scene.move_to("nowhere").await.unwrap_err();
        scene.change(20).await;
        assert_eq!(is_in_sync(&scene).await, Some(since), "it was never given up");
    });
}

#[test]
fn a_volume_that_cannot_go_stays() {
    block_on(async {
        let mut scene = written_with(SOON, DtlMode::None).await;
        let refused = scene.move_to("nowhere").await.unwrap_err();
        assert!(
            refused.text.contains("/disk-1")
                && refused
                    .text
                    .contains("nowhere is no volume-router that is in the registry"),
            "{refused}"
        );
        scene.change(20).await;
        until("the record to say that it stays", async || {
            let record = scene.record().await;
            let stays = (record.dtl_mode, record.dtl_state) == (DtlMode::None, DtlState::Off);
            (stays && record.moving.is_none()).then_some(())
        })
        .await;

        // One that is said to run and answers nothing.
        let silent = Peer::start(&scene.cluster, "silent", SOON).await;
        silent.hold().await;
        scene.move_to("silent").await.unwrap_err();
        scene.change(20).await;
        assert_eq!(scene.record().await.owner.as_str(), NODE);
        scene.model.check(&mut scene.client).await;
        silent.signal("-CONT");
    });
}

#[test]
fn the_former_owner_goes_on_where_the_next_one_is_lost_before_it_serves() {
    block_on(async {
        let mut scene = written(DtlMode::None).await;
        let armed = [("SCONCE_CRASH_AT", "during-recovery")];
        let mut peer = Peer::start_with(&scene.cluster, "lost", PATIENT, &armed).await;
        scene.move_to("lost").await.unwrap();
        until("the next owner to be lost", async || {
            peer.has_ended().then_some(())
        })
        .await;
        assert_eq!(scene.record().await.owner.as_str(), "lost");
        scene.is_gone(peer.name).await;
        scene.is_owned_by(NODE).await;
        until("the volume to be served", async || {
            scene.client.reopen().await.ok()
        })
        .await;
        scene.model.check(&mut scene.client).await;
        scene.change(20).await;
    });
}
