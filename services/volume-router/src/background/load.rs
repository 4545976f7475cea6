//! Loads: map nodes, clusters and SCOs that a volume needs and has not in memory or in the write buffer.
//!
//! Keeps: nothing.
//! Order: local copies first; one that is damaged is dropped and read again from the back ends.
//! Crash: nothing.
//! Knows no trees: a node is a record with a CRC.

use std::sync::Arc;

use bytes::Bytes;
use sconce_schemas::checkpoint::{DELTA_CHAIN_MAX, NodeRecord, NodeRef, decode_node};
use sconce_schemas::crc::crc32c;
use sconce_schemas::wire::{Refusal, RefusalCode};
use sconce_schemas::{ByteLen, CLUSTER_LEN, Epoch, ObjectName, ScoId, VolumeId};
use sconce_volume::{Origin, ScoImage};

use super::{LoadCluster, LoadNode, Shared, StoreError, Subject};

/// A node and what it is a delta on.
pub(super) async fn node(shared: &Shared, load: &LoadNode) -> Result<Vec<NodeRecord>, Refusal> {
    let mut records = Vec::with_capacity(1 + usize::from(load.reference.chain));
    let mut next = Some(load.reference);
    while let Some(reference) = next {
        if records.len() > usize::from(DELTA_CHAIN_MAX) {
            let text = format!(
                "volume {}: the chain of deltas of a map node is longer than {DELTA_CHAIN_MAX}",
                load.subject.path
            );
            return Err(Refusal::damaged(text));
        }
        let record = one(shared, load, &reference).await?;
        if record.place != load.place {
            let text = format!(
                "volume {}: checkpoint {} holds {:?} where {:?} should be",
                load.subject.path, reference.checkpoint, record.place, load.place
            );
            return Err(Refusal::damaged(text));
        }
        next = record.base;
        records.push(record);
    }
    Ok(records)
}

async fn one(shared: &Shared, load: &LoadNode, reference: &NodeRef) -> Result<NodeRecord, Refusal> {
    let subject = &load.subject;
    let lineage = usize::from(reference.lineage.0);
    let volume = *load.lineage.get(lineage).ok_or_else(|| {
        let text = format!(
            "volume {}: a map node is of ancestor {lineage}, but there are {}",
            subject.path,
            load.lineage.len()
        );
        Refusal::damaged(text)
    })?;
    if let Some(record) = local(shared, subject, volume, *reference).await {
        return Ok(record);
    }
    let name = ObjectName::Map {
        volume,
        id: reference.checkpoint,
        epoch: reference.epoch,
    };
    let bytes = shared
        .store
        .get_cached(&subject.pool, name, u64::from(reference.offset), reference.length)
        .await
        .map_err(|error| named(subject, name, &error))?;
    decode_node(volume, reference, &bytes)
        .map_err(|error| Refusal::damaged(format!("volume {}: object {name}: {error}", subject.path)))
}

/// The node in the checkpoint's local copy, if there is a good one.
async fn local(
    shared: &Shared,
    subject: &Subject,
    volume: VolumeId,
    reference: NodeRef,
) -> Option<NodeRecord> {
    let (copies, path) = (Arc::clone(&shared.checkpoints), Arc::clone(&subject.path));
    let read = move || {
        let (id, epoch, length) = (reference.checkpoint, reference.epoch, reference.length as usize);
        let bytes = copies.read(volume, id, epoch, u64::from(reference.offset), length)?;
        match decode_node(volume, &reference, &bytes) {
            Ok(record) => Some(record),
            Err(error) => {
                tracing::warn!(
                    volume = %path,
                    checkpoint = %id,
                    %error,
                    "the local copy of a checkpoint is damaged: dropped, the back end's is used"
                );
                copies.discard(volume, id, epoch);
                None
            }
        }
    };
    sconce_runtime::blocking(read).await.ok().flatten()
}

/// A cluster of a stored SCO.
pub(super) async fn cluster(shared: &Shared, load: &LoadCluster) -> Result<Bytes, Refusal> {
    let length = u32::try_from(CLUSTER_LEN).unwrap_or(u32::MAX);
    let bytes = shared
        .store
        .get_cached(&load.subject.pool, load.name, load.offset, length)
        .await
        .map_err(|error| named(&load.subject, load.name, &error))?;
    let found = crc32c(&bytes);
    if bytes.len() != CLUSTER_LEN || found != load.crc {
        return Err(Refusal::damaged(format!(
            "volume {}: object {}: the cluster at {} has CRC32C {found:#010x}, not {:#010x}",
            load.subject.path, load.name, load.offset, load.crc
        )));
    }
    Ok(bytes)
}

/// A stored SCO's first `length` bytes.
pub(super) async fn sco(
    shared: &Shared,
    subject: &Subject,
    id: ScoId,
    epoch: Epoch,
    length: ByteLen,
) -> Result<Option<ScoImage>, StoreError> {
    let name = ObjectName::Sco {
        volume: subject.volume,
        id,
        epoch,
        version: 0,
    };
    let bytes = shared.store.get_whole(&subject.pool, name, length.0).await?;
    Ok(bytes.map(|bytes| ScoImage {
        bytes,
        origin: Origin::Stored,
    }))
}

/// What to answer where an object cannot be had; one that should be there and is not counts as damage.
fn named(subject: &Subject, name: ObjectName, error: &StoreError) -> Refusal {
    let text = format!("volume {}: object {name}: {error}", subject.path);
    match error {
        StoreError::Unavailable(_) => Refusal::retry(RefusalCode::Unavailable, text),
        StoreError::NotFound(_) => Refusal::damaged(text),
        StoreError::Refused(refusal) => Refusal {
            text,
            ..refusal.clone()
        },
    }
}
