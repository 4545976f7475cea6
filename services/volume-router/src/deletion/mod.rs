//! Deleted volumes: erased by their owner, or by another node if the owner does not come back.
//!
//! Keeps: nothing; the registry's records say what is deleted.
//! Order: a volume's actor ends before anything of the volume is erased.
//! Crash: the start, and each look at the records, begins again what is not over.
//! Knows no objects.

mod adoption;

use sconce_schemas::VolumeId;
use sconce_schemas::records::{VolumePhase, VolumeRecord};
use sconce_schemas::wire::{Refusal, RefusalCode};

use crate::background::Subject;
use crate::node::Node;
use crate::owner::erasure::Right;
use crate::owner::record::{self, Ownership, refusal_of};

pub(crate) use adoption::{Adoption, give_up_erased};

/// Somebody says that a volume was deleted: it may be that this node saw that by itself, and is at it.
///
/// # Errors
/// It is not deleted, or not this node's.
pub(crate) async fn asked(node: &Node, volume: VolumeId) -> Result<(), Refusal> {
    let (record, _) = record::read(&node.registry, volume).await.map_err(refusal_of)?;
    if record.phase != VolumePhase::Deleting {
        let text = format!("volume {volume} is not being deleted: its name is still there");
        return Err(Refusal::reject(RefusalCode::Invalid, text));
    }
    begin(node, &record).await
}

/// Begins the erasure of a deleted volume of this node's, if it is not under way.
///
/// # Errors
/// The record names another owner, or the volume's actor could not be ended now.
pub(crate) async fn begin(node: &Node, record: &VolumeRecord) -> Result<(), Refusal> {
    let own = Ownership {
        node: node.name.clone(),
        epoch: record.epoch,
    };
    own.holds(record)?;
    if let Some(volume) = node.volumes.get(record.id)
        && let Err(refusal) = volume.delete().await
        // One that ended while it was asked, because it saw the record itself, answers nothing.
        && node.volumes.get(record.id).is_some()
    {
        return Err(refusal);
    }
    if let Some(left) = node.device.unclaimed_of(record.id) {
        node.device.give_up(left, |_| true);
    }
    erase(node, record.id, &record.pool, Right::Owned(own));
    Ok(())
}

fn erase(node: &Node, volume: VolumeId, pool: &str, right: Right) {
    let subject = Subject {
        volume,
        path: format!("(volume {volume})").into(),
        pool: pool.into(),
    };
    node.background.erase(subject, right);
}
