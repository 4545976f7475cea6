//! A checkpoint: frozen trees become map objects, on the back ends and as local copies.
//!
//! Keeps: nothing.
//! Order: all objects of a checkpoint are stored before the volume hears of it.
//! Crash: objects without a manifest that names them are garbage.
//! Knows no trees: the engine encodes.

use std::sync::Arc;

use sconce_runtime::crash::{Point, hit};
use sconce_schemas::ObjectName;
use sconce_volume::{CheckpointObject, Event, Frozen};

use super::Shared;
use super::outage::Tried;
use crate::actor::Owner;

/// Runs until the checkpoint is stored or its owner is owner no more.
pub(super) async fn run(shared: &Shared, owner: &Owner, frozen: Arc<Frozen>) {
    let encoded = sconce_runtime::blocking(move || frozen.encode()).await;
    let (objects, roots) = match encoded {
        Ok(Ok(encoded)) => encoded,
        Ok(Err(error)) => return owner.broken(&format!("a checkpoint cannot be encoded: {error}")),
        Err(panic) => return owner.broken(&format!("encoding a checkpoint panicked: {panic}")),
    };
    for object in &objects {
        keep(shared, owner, object).await;
        if !put(shared, owner, object).await {
            return;
        }
    }
    hit(Point::AfterCheckpointStored);
    owner.happened(Event::CheckpointStored { roots });
}

async fn put(shared: &Shared, owner: &Owner, object: &CheckpointObject) -> bool {
    let subject = owner.subject();
    let name = ObjectName::Map {
        volume: subject.volume,
        id: object.id,
        epoch: object.epoch,
    };
    let put = || async {
        let _room = shared.room.take(&subject.pool, object.bytes.len() as u64).await;
        match shared.store.put(&subject.pool, name, object.bytes.clone()).await {
            Ok(()) => Tried::Over(()),
            Err(error) => Tried::Again(error),
        }
    };
    let stored = owner
        .outage()
        .endure("storing", &subject.path, || owner.is_current(), put);
    stored.await.is_some()
}

/// The local copy saves loads from the back ends; without it the volume works all the same.
async fn keep(shared: &Shared, owner: &Owner, object: &CheckpointObject) {
    let (copies, volume) = (Arc::clone(&shared.checkpoints), owner.subject().volume);
    let (id, epoch, bytes) = (object.id, object.epoch, object.bytes.clone());
    let kept = sconce_runtime::blocking(move || copies.keep(volume, id, epoch, &bytes)).await;
    if let Ok(Err(error)) = kept {
        tracing::info!(volume = %owner.subject().path, checkpoint = %id, %error, "no local copy of the checkpoint");
    }
}
