//! What a clone begins as: the snapshot of its parent, from the back ends.
//!
//! Keeps: nothing.
//! Order: the parent's newest manifest; if it does not have the snapshot yet, the parent's owner is asked to store it.
//! Crash: begun again; the clone's own first manifest ends the need for its parent's.
//! Knows no trees.

use std::sync::Arc;

use sconce_schemas::LineageIndex;
use sconce_schemas::manifest::Manifest;
use sconce_schemas::records::Origin;
use sconce_schemas::wire::{Refusal, RefusalCode};
use sconce_volume::CloneOf;

use super::{StartError, path_of, record};
use crate::background::Subject;
use crate::node::Node;

/// A manifest of the parent that has the snapshot.
pub(super) async fn find(node: &Arc<Node>, clone: &Subject, origin: Origin) -> Result<CloneOf, StartError> {
    let (parent, _) = record::read(&node.registry, origin.volume).await?;
    let path = path_of(&node.registry, &parent).await?;
    let subject = Subject {
        volume: origin.volume,
        path: path.as_str().into(),
        pool: parent.pool.as_str().into(),
    };
    let newest = node
        .background
        .newest_manifest(subject, parent.epochs.clone())
        .await?;
    if newest
        .as_ref()
        .is_some_and(|manifest| manifest.lineage.len() > usize::from(LineageIndex::MAX.0))
    {
        let text = format!(
            "volume {}: it is a clone of a clone of a clone, {} in all, as many as a volume can have: copy its parent with \
             `sconce export` and `sconce import`, and clone that",
            clone.path,
            LineageIndex::MAX.0
        );
        return Err(StartError::Stuck(Refusal::reject(RefusalCode::Invalid, text)));
    }
    if let Some(manifest) = newest.filter(|manifest| has(manifest, origin)) {
        return Ok(CloneOf {
            manifest: Box::new(manifest),
            snapshot: origin.snapshot,
        });
    }
    if let Some(handle) = node.volumes.get(origin.volume) {
        handle.store_soon();
    }
    // The owner stores a new snapshot by itself soon, wherever it is.
    let text = format!(
        "volume {}: it is a clone of a snapshot of {path} that is not on the back ends yet; {} is to store it",
        clone.path, parent.owner
    );
    Err(StartError::Soon(Refusal::retry(RefusalCode::Unavailable, text)))
}

fn has(manifest: &Manifest, origin: Origin) -> bool {
    let states = &mut manifest.snapshots.iter();
    states.any(|state| state.label.id == origin.snapshot && state.removed.is_none())
}
