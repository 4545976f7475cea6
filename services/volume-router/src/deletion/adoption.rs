//! Deletions whose owner is gone: another node takes them over.
//!
//! Keeps: since when each such owner has been gone, as far as this node saw.
//! Order: a look at the start and one after each `adopt_after`; what is adopted is the next epoch's before anything of it
//! goes. Two nodes that adopt the same at the same moment: the registry lets one.
//! Crash: a new process counts anew how long others are gone; what it had adopted is its own.
//! Knows no objects, and touches no volume that is not marked as deleted.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use sconce_registry::record::decode;
use sconce_registry::{RegistryError, Revision};
use sconce_schemas::records::{VolumePhase, VolumeRecord, keys};
use sconce_schemas::{NodeName, VolumeId};
use tokio::time::Instant;

use super::{begin, erase};
use crate::node::Node;
use crate::owner::erasure::{self, Erased, Right};
use crate::owner::record::RecordError;

/// After this long nobody waits for a write buffer any more: it was lost with its machine.
const BUFFERS_AWAITED: Duration = Duration::from_hours(30 * 24);

/// Looks for deletions that nobody is at.
pub(crate) struct Adoption {
    node: Arc<Node>,
    gone_since: HashMap<NodeName, Instant>,
}

/// What the registry knows of volumes.
struct Volumes {
    deleted: Vec<(VolumeRecord, Revision)>,
    /// Volumes that clones began as snapshots of, by the clones' records.
    needed: HashSet<VolumeId>,
    /// Keys of records that cannot be read.
    damaged: Vec<String>,
}

impl Adoption {
    pub(crate) fn new(node: Arc<Node>) -> Self {
        Self {
            node,
            gone_since: HashMap::new(),
        }
    }

    /// Runs until it is aborted.
    pub(crate) async fn run(mut self) {
        loop {
            if let Err(error) = self.look().await {
                tracing::debug!(%error, "deletions of others are looked for again later");
            }
            tokio::time::sleep(self.node.adopt_after).await;
        }
    }

    async fn look(&mut self) -> Result<(), RegistryError> {
        give_up_erased(&self.node).await?;
        let volumes = volumes(&self.node).await?;
        // By their keys: a node's record may be damaged, and the node runs.
        let nodes = self.node.registry.list(keys::NODES, None, usize::MAX).await?;
        let running: HashSet<String> = nodes.into_iter().map(|entry| entry.key).collect();
        let runs = |node: &NodeName| running.contains(&keys::node(node));
        let owners = || volumes.deleted.iter().map(|(record, _)| &record.owner);
        self.gone_since
            .retain(|owner, _| !runs(owner) && owners().any(|known| known == owner));
        for (record, revision) in &volumes.deleted {
            if record.owner == self.node.name {
                // One that could not be begun when its record changed.
                let _ = begin(&self.node, record).await;
            } else if !runs(&record.owner) && self.is_gone(&record.owner) {
                self.adopt(record, *revision, &volumes).await?;
            }
        }
        Ok(())
    }

    /// Whether a node that does not run has not for long enough.
    fn is_gone(&mut self, owner: &NodeName) -> bool {
        let since = self.gone_since.entry(owner.clone()).or_insert_with(Instant::now);
        since.elapsed() >= self.node.adopt_after
    }

    async fn adopt(
        &self,
        record: &VolumeRecord,
        revision: Revision,
        known: &Volumes,
    ) -> Result<(), RegistryError> {
        let (volume, owner) = (record.id, &record.owner);
        if let Some(key) = known.damaged.first() {
            tracing::warn!(%volume, %owner, key, "the deletion of a volume is not taken over from its owner, which is gone: \
                a record is damaged, and may be that of a clone of it");
            return Ok(());
        }
        if known.needed.contains(&volume) {
            tracing::warn!(%volume, %owner, "a volume that was deleted is not erased: the record of a clone says that it needs it");
            return Ok(());
        }
        if self.node.registry.get(&keys::node(owner)).await?.is_some() {
            return Ok(());
        }
        match erasure::adopt(&self.node.registry, (record, revision), &self.node.name).await {
            Ok(adopted) => {
                tracing::info!(%volume, %owner, epoch = %adopted.epoch, "takes the deletion of a volume over: its owner is gone");
                let _ = begin(&self.node, &adopted).await;
            }
            Err(RecordError::Refused(refusal)) => tracing::debug!(%volume, %refusal, "not adopted"),
            Err(RecordError::Unavailable(cause)) => {
                tracing::warn!(%volume, %owner, cause, "the deletion of a volume is not taken over from its owner, which is gone");
            }
        }
        Ok(())
    }
}

async fn volumes(node: &Node) -> Result<Volumes, RegistryError> {
    let mut volumes = Volumes {
        deleted: Vec::new(),
        needed: HashSet::new(),
        damaged: Vec::new(),
    };
    for entry in node.registry.list(keys::VOLUMES, None, usize::MAX).await? {
        match decode::<VolumeRecord>(&entry) {
            Ok(record) if record.phase == VolumePhase::Deleting => {
                volumes.deleted.push((record, entry.revision));
            }
            Ok(record) => volumes.needed.extend(record.origin.map(|origin| origin.volume)),
            Err(_) => volumes.damaged.push(entry.key),
        }
    }
    Ok(volumes)
}

/// Sees to the notes of volumes that others erased: what this node's write buffer holds of them goes, and what it stored
/// of them while it did not know. Notes that nobody comes back for are forgotten.
pub(crate) async fn give_up_erased(node: &Node) -> Result<(), RegistryError> {
    give_up_twins(node).await?;
    for erased in erasure::erased(&node.registry).await? {
        let over = match erased.note.buffer == node.device.id() {
            true => give_up(node, &erased).await?,
            false => is_past(node, erased.note.erased_us),
        };
        if over {
            // One that stays is found again.
            let _ = erasure::forget_erased(&node.registry, &erased).await;
        }
    }
    Ok(())
}

/// The same for twins that the volume's record did not name any more when it went. Which nodes had one nobody knows, so these notes stay until nobody
/// is waited for.
async fn give_up_twins(node: &Node) -> Result<(), RegistryError> {
    let notes = erasure::gone(&node.registry).await?;
    if notes.is_empty() {
        return Ok(());
    }
    let left: Vec<_> = notes
        .iter()
        .map(|gone| node.device.unclaimed_of(gone.volume))
        .collect();
    let there = node.registry.list(keys::VOLUMES, None, usize::MAX).await?;
    let there: HashSet<String> = there.into_iter().map(|entry| entry.key).collect();
    for (gone, left) in notes.into_iter().zip(left) {
        let volume = gone.volume;
        // A record that came back since, from a registry's backup or the back ends, is believed more than the note.
        if there.contains(&keys::volume(volume)) || is_past(node, gone.note.erased_us) {
            let _ = erasure::forget_gone(&node.registry, &gone).await;
        } else if let Some(handle) = node.volumes.get(volume) {
            handle.verify().await;
        } else if let Some(left) = left {
            let scos = node.device.give_up(left, |_| true);
            tracing::info!(%volume, scos, "gave up what was left of the twin of a volume that was erased");
        }
    }
    Ok(())
}

/// Whether nobody is waited for any more that was away then.
fn is_past(node: &Node, erased_us: u64) -> bool {
    let awaited_us = u64::try_from(BUFFERS_AWAITED.as_micros()).unwrap_or(u64::MAX);
    node.clock.unix_micros().saturating_sub(erased_us) > awaited_us
}

/// Whether the note is worth nothing; otherwise its volume is erased once more, and the note goes with that.
async fn give_up(node: &Node, erased: &Erased) -> Result<bool, RegistryError> {
    let volume = erased.volume;
    let left = node.device.unclaimed_of(volume);
    // A record that came back since, from a registry's backup or the back ends, is believed more than the note.
    if node.registry.get(&keys::volume(volume)).await?.is_some() {
        return Ok(true);
    }
    if let Some(handle) = node.volumes.get(volume) {
        // It finds that it is over, and is looked for again.
        handle.verify().await;
        return Ok(false);
    }
    let scos = left.map_or(0, |left| node.device.give_up(left, |_| true));
    if scos > 0 {
        tracing::info!(%volume, scos, "gave up what was left of a volume that another node erased");
    }
    let right = Right::Noted(erased.note.buffer.clone());
    erase(node, volume, &erased.note.pool, right);
    Ok(false)
}
