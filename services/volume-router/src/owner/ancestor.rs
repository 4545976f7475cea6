//! A snapshot of an ancestor, to compare a clone with: from the back ends.
//!
//! Keeps: nothing.
//! Order: the ancestor's newest manifest; if it does not have the snapshot yet, its owner is asked to store it.
//! Crash: nothing.
//! Knows no trees.

use std::sync::Arc;

use sconce_schemas::manifest::TreeRoot;
use sconce_schemas::wire::{Refusal, RefusalCode};
use sconce_schemas::{SnapshotId, VolumeId};

use super::path_of;
use super::record::{self, refusal_of};
use crate::background::Subject;
use crate::node::Node;

/// The map of a snapshot of another volume.
#[derive(Debug)]
pub(crate) struct AncestorRoot {
    /// The snapshot.
    pub(crate) id: SnapshotId,
    /// Its map.
    pub(crate) map: TreeRoot,
    /// Volume ids of that volume's lineage, itself last: the map's locations count in it.
    pub(crate) lineage: Vec<VolumeId>,
}

/// The snapshot of this name, as the volume's newest manifest has it.
pub(crate) async fn find(node: &Arc<Node>, volume: VolumeId, name: &str) -> Result<AncestorRoot, Refusal> {
    let (record, _) = record::read(&node.registry, volume).await.map_err(refusal_of)?;
    let path = path_of(&node.registry, &record)
        .await
        .map_err(|error| refusal_of(error.into()))?;
    let subject = Subject {
        volume,
        path: path.as_str().into(),
        pool: record.pool.as_str().into(),
    };
    let newest = node.background.newest_manifest(subject, &record).await;
    let newest = newest.map_err(|error| error.refusal())?;
    let lineage = newest
        .as_ref()
        .map(|manifest| manifest.lineage.clone())
        .unwrap_or_default();
    let mut states = newest.iter().flat_map(|manifest| &manifest.snapshots);
    let found = states.find(|state| state.label.name == name && state.removed.is_none() && !state.hidden);
    if let Some(state) = found {
        return Ok(AncestorRoot {
            id: state.label.id,
            map: state.map,
            lineage,
        });
    }
    if let Some(handle) = node.volumes.get(volume) {
        handle.store_soon();
    }
    let text = format!(
        "the newest manifest of {path} has no snapshot {name:?}: either there is none, or it is not on the back ends yet \
         (`sconce snapshot list {path}` shows it as synced once it is)"
    );
    Err(Refusal::reject(RefusalCode::NotFound, text))
}
