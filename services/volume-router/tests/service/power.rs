//! Machines that lose power: what is gone on with is a write buffer that has all that was acknowledged, wherever one is.
//!
//! A machine that was booted anew is one whose earlier boot a record names.

use sconce_schemas::records::{DtlMode, DtlState, VolumeRecord, keys};
use sconce_schemas::wire::RefusalCode;
use sconce_schemas::wire::volume::VolumeControl;

use crate::client::Client;
use crate::cluster::{NODE, block_on, until};
use crate::peer::Peer;
use crate::scene::{PATIENT, Scene};

const BEFORE: &str = "an earlier boot";
const TWIN: &str = "twin";

/// A volume with a twin, of which the back ends have nothing, after both machines were killed.
async fn killed() -> Scene {
    let mut scene = Scene::begin(47).await;
    scene.cluster.stop_storage();
    let mut twin = Peer::start(&scene.cluster, TWIN, PATIENT).await;
    scene.set(DtlMode::Sync).await;
    until("the twin to be in sync", async || {
        (scene.record().await.dtl_state == DtlState::InSync).then_some(())
    })
    .await;
    scene.change(50).await;
    scene.cluster.kill();
    twin.kill();
    for node in [NODE, TWIN] {
        scene.is_gone(node).await;
    }
    scene.cluster.start_storage();
    let record = scene.record().await;
    assert_eq!(record.dtl_state, DtlState::InSync);
    assert!(
        record.buffer_boot.is_some() && record.buffer_boot == record.dtl_boot,
        "{record:?}"
    );
    scene
}

impl Scene {
    async fn rewrite(&self, edit: impl FnOnce(&mut VolumeRecord)) {
        let mut record = self.record().await;
        edit(&mut record);
        let key = keys::volume(record.id);
        self.registry.put_record(&key, None, &record, None).await.unwrap();
    }

    /// All is there, at the twin's host.
    async fn goes_on_at_the_twin(&self) {
        let mut successor = Client::connect_to(&self.cluster, TWIN, self.client.volume);
        until("the twin to take over", async || successor.reopen().await.ok()).await;
        self.model.check(&mut successor).await;
        assert_eq!(self.record().await.owner.as_str(), TWIN);
    }

    async fn goes_on_at_the_owner(&mut self) {
        until("the owner to go on", async || self.client.reopen().await.ok()).await;
        self.model.check(&mut self.client).await;
        assert_eq!(self.record().await.owner.as_str(), NODE);
    }
}

#[test]
fn an_owner_that_lost_power_leaves_the_volume_to_the_twin() {
    block_on(async {
        let mut scene = killed().await;
        scene
            .rewrite(|record| record.buffer_boot = Some(BEFORE.to_owned()))
            .await;
        let before = scene.record().await;
        scene.cluster.start();
        let refusal = scene.client.reopen().await.unwrap_err();
        assert_eq!(refusal.code, RefusalCode::WaitsForOwner, "{refusal}");
        for told in [
            "booted anew",
            TWIN,
            "not flushed",
            "sconce volume takeover /disk-1",
        ] {
            assert!(refusal.text.contains(told), "{told:?} is not in {refusal}");
        }
        assert_eq!(scene.record().await, before, "nothing was claimed");
        // The owner is in the registry, and its volume is taken over all the same.
        let twin = Peer::start(&scene.cluster, TWIN, PATIENT).await;
        scene.goes_on_at_the_twin().await;
        drop(twin);
    });
}

#[test]
fn a_twin_that_lost_power_leaves_the_volume_to_the_owner() {
    block_on(async {
        let mut scene = killed().await;
        scene
            .rewrite(|record| record.dtl_boot = Some(BEFORE.to_owned()))
            .await;
        let twin = Peer::start(&scene.cluster, TWIN, PATIENT).await;
        let (there, volume) = (
            Client::connect_to(&scene.cluster, TWIN, scene.client.volume),
            scene.client.volume,
        );
        let refusal = there
            .control(VolumeControl::TakeOver { volume, force: false })
            .await
            .unwrap_err();
        assert_eq!(refusal.code, RefusalCode::WaitsForOwner, "{refusal}");
        assert!(refusal.text.contains("booted anew"), "{refusal}");
        scene.cluster.start();
        scene.goes_on_at_the_owner().await;
        drop(twin);
    });
}

#[test]
fn where_both_lost_power_the_owner_goes_on_once_it_sees_that() {
    block_on(async {
        let mut scene = killed().await;
        scene
            .rewrite(|record| {
                record.buffer_boot = Some(BEFORE.to_owned());
                record.dtl_boot = Some(BEFORE.to_owned());
            })
            .await;
        scene.cluster.start();
        let refusal = scene.client.reopen().await.unwrap_err();
        assert_eq!(refusal.code, RefusalCode::WaitsForOwner, "{refusal}");
        let twin = Peer::start(&scene.cluster, TWIN, PATIENT).await;
        scene.goes_on_at_the_owner().await;
        drop(twin);
    });
}

#[test]
fn an_owner_that_comes_back_without_its_disk_leaves_the_volume_to_the_twin() {
    block_on(async {
        let mut scene = killed().await;
        std::fs::remove_dir_all(scene.cluster.path("buffer")).unwrap();
        scene.cluster.start();
        let refusal = scene.client.reopen().await.unwrap_err();
        assert_eq!(refusal.code, RefusalCode::WaitsForOwner, "{refusal}");
        let twin = Peer::start(&scene.cluster, TWIN, PATIENT).await;
        scene.goes_on_at_the_twin().await;
        drop(twin);
    });
}

#[test]
fn an_operator_may_go_on_with_what_a_loss_of_power_left() {
    block_on(async {
        let mut scene = killed().await;
        scene
            .rewrite(|record| record.buffer_boot = Some(BEFORE.to_owned()))
            .await;
        scene.cluster.start();
        assert_eq!(
            scene.client.reopen().await.unwrap_err().code,
            RefusalCode::WaitsForOwner
        );
        let volume = scene.client.volume;
        scene
            .client
            .control(VolumeControl::TakeOver { volume, force: true })
            .await
            .unwrap();
        // Nothing was really lost.
        scene.goes_on_at_the_owner().await;
    });
}
