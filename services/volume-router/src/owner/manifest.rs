//! Which manifest a recovery begins with.
//!
//! Keeps: nothing.
//! Order: the newest is that of the highest epoch, then number.
//! Crash: a manifest that is stored and not named in the record yet is as good as one that is.
//! Knows no trees.

use std::sync::Arc;

use sconce_schemas::Epoch;
use sconce_schemas::manifest::Manifest;
use sconce_schemas::records::VolumeRecord;

use super::{StartError, is_of_the_log};
use crate::background::Subject;
use crate::node::Node;

/// The newest manifest. Where the write buffer is the one that the record names, everything since the record's
/// manifest is in it, so its local copy does and nobody else is asked: a restart needs no back end. Otherwise the
/// back ends are searched, in case that the registry was restored from an older state. `nothing_here`: the buffer holds
/// no SCO of the volume.
pub(super) async fn newest(
    node: &Arc<Node>,
    subject: &Subject,
    record: &VolumeRecord,
    nothing_here: bool,
) -> Result<Option<Manifest>, StartError> {
    let ours = record.buffer.as_deref() == Some(node.device.id());
    let local = local(node, subject).await.filter(|local| {
        is_newer(local, record) && is_of_the_log(local.epoch, local.covered_sco, &record.epochs)
    });
    // A record that knows of no owner, although something of one is here, is from before it.
    let never_owned = record.epoch == Epoch::NONE && record.manifest.is_none();
    if never_owned && nothing_here && local.is_none() {
        return Ok(None);
    }
    if ours && (local.is_some() || record.manifest.is_none()) {
        return Ok(local);
    }
    let background = &node.background;
    Ok(match record.manifest.filter(|_| ours) {
        Some(recorded) => Some(background.recorded_manifest(subject.clone(), recorded).await?),
        None => background.newest_manifest(subject.clone(), record).await?,
    })
}

async fn local(node: &Arc<Node>, subject: &Subject) -> Option<Manifest> {
    let (copies, volume) = (Arc::clone(&node.checkpoints), subject.volume);
    sconce_runtime::blocking(move || copies.manifest(volume))
        .await
        .ok()
        .flatten()
}

/// Whether it is the one that the record names, or one after it.
fn is_newer(manifest: &Manifest, record: &VolumeRecord) -> bool {
    record
        .manifest
        .is_none_or(|named| (manifest.epoch, manifest.seq) >= (named.epoch, named.seq))
}
