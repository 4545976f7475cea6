//! What is written of which nobody heard: it comes to nothing once the record was written after it.

use std::sync::Arc;

use sconce_schemas::ScoSize;
use sconce_schemas::access::{Access, AccessHolder};

use super::*;

const VOLUME: VolumeId = VolumeId([1; 16]);

fn name(text: &str) -> NodeName {
    text.parse().unwrap()
}

fn own() -> Ownership {
    Ownership {
        node: name("a"),
        epoch: Epoch(3),
    }
}

fn holder(released: bool) -> Access {
    let holder = AccessHolder {
        node: name("fs-1"),
        since_us: 1,
        released,
    };
    Access {
        generation: 1,
        holder: Some(holder),
        ..Access::default()
    }
}

/// A volume of this node in a registry of its own, and a change of its record that is under way.
struct Scene {
    registry: Registry,
    late: (VolumeRecord, Revision),
}

impl Scene {
    async fn with(record: impl FnOnce(&mut VolumeRecord), late: impl FnOnce(&mut VolumeRecord)) -> Self {
        let registry = Registry::memory();
        let (size, sco_size) = (VolumeSize::default(), ScoSize::default());
        let mut written = VolumeRecord {
            epoch: Epoch(3),
            ..VolumeRecord::unowned(VOLUME, size, sco_size, "fast".to_owned(), name("a"))
        };
        record(&mut written);
        let key = keys::volume(VOLUME);
        let revision = registry.put_record(&key, None, &written, None).await.unwrap();
        late(&mut written);
        Self {
            registry,
            late: (written, revision),
        }
    }

    /// The change arrives; whether the record says so from then on.
    async fn arrives(self) -> bool {
        let (record, revision) = &self.late;
        let key = keys::volume(VOLUME);
        self.registry
            .put_record(&key, Some(*revision), record, None)
            .await
            .is_ok()
    }
}

fn moving(record: &mut VolumeRecord) {
    record.set_dtl_mode(DtlMode::Sync);
    record.moving = Some(Moving {
        from: name("a"),
        to: name("b"),
        mode: DtlMode::None,
        why: MoveWhy::Asked,
    });
}

#[tokio::test]
async fn a_move_that_was_ended_does_not_begin_late() {
    let clock = Arc::new(Clock::system());
    let scene = Scene::with(|_| {}, moving).await;
    let mode = end_move(&scene.registry, VOLUME, &own(), &clock).await.unwrap();
    assert_eq!(mode, DtlMode::None);
    assert!(!scene.arrives().await);
}

#[tokio::test]
async fn a_way_of_waiting_that_was_settled_is_not_another_late() {
    let scene = Scene::with(|_| {}, |record| record.set_dtl_mode(DtlMode::Sync)).await;
    let mode = settle_dtl_mode(&scene.registry, VOLUME, &own()).await.unwrap();
    assert_eq!(mode, DtlMode::None);
    assert!(!scene.arrives().await);
}

#[tokio::test]
async fn access_that_was_released_in_doubt_is_not_taken_late() {
    for before in [Access::default(), holder(true)] {
        let scene = Scene::with(
            |record| record.access = before,
            |record| record.access = holder(false),
        )
        .await;
        release_access(&scene.registry, VOLUME, &own(), true)
            .await
            .unwrap();
        assert!(!scene.arrives().await);
    }
    // Where nothing is in doubt, nothing is written that is written already.
    let scene = Scene::with(|record| record.access = holder(true), |_| {}).await;
    release_access(&scene.registry, VOLUME, &own(), false)
        .await
        .unwrap();
    assert!(scene.arrives().await, "nobody wrote it anew");
}
