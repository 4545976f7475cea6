//! The host's part of a flattening: what a clone has of its ancestors is read for it, and once it needs nothing of them the
//! registry hears of it.
//!
//! Keeps: nothing; it takes turns with scrubs, within their budget.
//! Order: the registry says that a clone is independent only after a stored manifest does: from then on its parent, and the
//! snapshot that it came from, may go.
//! Crash: what was read is read again. A manifest that the registry did not hear of is found at the next start.
//! Knows no map: the volume says what is to be read.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _};
use sconce_schemas::wire::Refusal;
use sconce_schemas::{CLUSTER_BYTES, CLUSTER_LEN, ScoSize};
use sconce_volume::{Event, Extent};

use super::Shared;
use super::outage::Tried;
use crate::actor::Owner;
use crate::device::check_clusters;
use crate::owner::record::drop_origin;

/// Ranges that are read at the same time for one volume.
const READS: usize = 4;
/// How often a write buffer that is short of room is looked at again.
const PRESSED: Duration = Duration::from_millis(200);

/// Reads what is to be copied; the volume asks again in time for what cannot be had.
pub(super) async fn copy(shared: &Shared, owner: &Owner, size: ScoSize, extents: Vec<Extent>) {
    let subject = owner.subject();
    // Its copies go through the write buffer: not while guests are short of it.
    while shared.level.is_pressed() && owner.is_current() {
        tokio::time::sleep(PRESSED).await;
    }
    let turn = shared.scrubs.turn(&subject.pool, false).await;
    let bytes: u64 = extents
        .iter()
        .map(|extent| clusters_of(extent) * CLUSTER_BYTES)
        .sum();
    let room = shared.room.take(&subject.pool, bytes).await;
    if !owner.is_current() {
        return;
    }
    let reads = extents.iter().map(|extent| read(shared, owner, size, extent));
    let read: Result<Vec<Vec<Bytes>>, Refusal> = futures_util::stream::iter(reads)
        .buffered(READS)
        .inspect_ok(|clusters| {
            let moved = clusters.len() * CLUSTER_LEN;
            // It is read, and will be written.
            turn.moved(2 * moved);
        })
        .try_collect()
        .await;
    drop((room, turn));
    if let Err(refusal) = &read {
        tracing::debug!(volume = %subject.path, %refusal, "not copied now");
    }
    owner.happened(Event::Copied {
        result: read.map(|clusters| clusters.concat()),
    });
}

fn clusters_of(extent: &Extent) -> u64 {
    match extent {
        Extent::Zeros { length } => u64::from(*length) / CLUSTER_BYTES,
        Extent::Local { crcs, .. } | Extent::Stored { crcs, .. } => crcs.len() as u64,
    }
}

async fn read(shared: &Shared, owner: &Owner, size: ScoSize, extent: &Extent) -> Result<Vec<Bytes>, Refusal> {
    let subject = owner.subject();
    let (Some(name), Extent::Stored { first_slot, crcs, .. }) = (extent.object(), extent) else {
        let text = format!("volume {}: {extent:?} is no ancestor's", subject.path);
        return Err(Refusal::damaged(text));
    };
    let length = u32::try_from(crcs.len() * CLUSTER_LEN).unwrap_or(u32::MAX);
    let offset = size.slot_offset(*first_slot);
    let got = shared.store.get(&subject.pool, name, offset, length).await;
    let bytes = got.map_err(|error| {
        let refusal = error.refusal();
        let text = format!("object {name}: {}", refusal.text);
        Refusal { text, ..refusal }
    })?;
    if let Err(bad) = check_clusters(&bytes, crcs) {
        let slot = usize::from(first_slot.0) + bad.at;
        let text = format!("object {name}: slot {slot} does not hold what was written there");
        tracing::error!(volume = %subject.path, "{text}");
        return Err(Refusal::damaged(text));
    }
    let cluster = |at: usize| bytes.slice(at * CLUSTER_LEN..(at + 1) * CLUSTER_LEN);
    Ok((0..crcs.len()).map(cluster).collect())
}

/// Runs until the registry says that the clone is independent, or its owner is owner no more.
pub(super) async fn independent(shared: &Shared, owner: &Owner) {
    let subject = owner.subject();
    let drop_it =
        || async { Tried::from(drop_origin(&shared.registry, subject.volume, owner.ownership()).await) };
    let dropped = owner.outage().endure(
        "noting in the registry that a clone is independent",
        &subject.path,
        || owner.is_current(),
        drop_it,
    );
    match dropped.await {
        Some(Ok(true)) => tracing::info!(volume = %subject.path, "is independent of what it was cloned from"),
        Some(Err(refusal)) => owner.lost(refusal),
        Some(Ok(false)) | None => {}
    }
}
