//! What a clone begins as: the snapshot of its parent, from the back ends.
//!
//! Keeps: nothing.
//! Order: the parent's newest manifest; if it does not have the snapshot yet, the parent is asked to store it, where it is
//! on this node, and whether it has it at all.
//! Crash: begun again; the clone's own first manifest ends the need for its parent's.
//! Knows no trees.

use std::sync::Arc;
use std::time::Duration;

use sconce_schemas::LineageIndex;
use sconce_schemas::manifest::Manifest;
use sconce_schemas::records::Origin;
use sconce_schemas::wire::{Refusal, RefusalCode};
use sconce_volume::CloneOf;
use tokio::time::timeout;

use super::record::{self, RecordError};
use super::{StartError, path_of};
use crate::background::Subject;
use crate::node::Node;

/// How long the parent may take to say which snapshots it has: it may be starting.
const PARENT_ASKED: Duration = Duration::from_secs(2);

/// A manifest of the parent that has the snapshot.
pub(super) async fn find(node: &Arc<Node>, clone: &Subject, origin: Origin) -> Result<CloneOf, StartError> {
    let parent = match record::read(&node.registry, origin.volume).await {
        Ok((parent, _)) => parent,
        Err(RecordError::Refused(refusal)) => {
            let text = format!("volume {}: its parent is gone: {}", clone.path, refusal.text);
            return Err(stuck(text));
        }
        Err(error) => return Err(error.into()),
    };
    let path = path_of(&node.registry, &parent).await?;
    let subject = Subject {
        volume: origin.volume,
        path: path.as_str().into(),
        pool: parent.pool.as_str().into(),
    };
    let newest = node.background.newest_manifest(subject, &parent).await?;
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
        // A parent that does not answer now is asked at the next try.
        if let Ok(Ok(snapshots)) = timeout(PARENT_ASKED, handle.snapshots()).await
            && snapshots.iter().all(|known| known.label.id != origin.snapshot)
        {
            let text = format!(
                "volume {}: the snapshot {} of {path} that it is to begin as is gone: it was lost with a write buffer before \
                 it was stored, or removed. Nothing was ever in this volume; delete it: sconce volume delete {}",
                clone.path, origin.snapshot, clone.path
            );
            return Err(stuck(text));
        }
    }
    // The owner stores a new snapshot by itself soon, wherever it is.
    let text = format!(
        "volume {}: it is a clone of a snapshot of {path} that is not on the back ends yet; {} is to store it",
        clone.path, parent.owner
    );
    Err(StartError::Soon(Refusal::retry(RefusalCode::Unavailable, text)))
}

/// It waits for a person.
fn stuck(text: String) -> StartError {
    StartError::Stuck(Refusal::retry(RefusalCode::WaitsForOwner, text))
}

fn has(manifest: &Manifest, origin: Origin) -> bool {
    let states = &mut manifest.snapshots.iter();
    states.any(|state| state.label.id == origin.snapshot && state.removed.is_none() && !state.hidden)
}
