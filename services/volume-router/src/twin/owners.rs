//! Owners that are gone, whose volumes' twins are on this node.
//!
//! Keeps: the volumes of other nodes whose records rely on what this node's write buffer has, as the records were last seen: on a twin, or
//! on the buffer itself, where the next owner has not begun its ownership.
//! Order: an owner is gone once its record is: its lease is over, and it serves nothing. What the volume's record says then is read
//! again before the volume is claimed.
//! Crash: the next start lists the records anew.
//! Knows no streams: also one that was started anew has the files.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sconce_registry::{Entry, RegistryError};
use sconce_schemas::records::{Buffer, VolumePhase, VolumeRecord, keys};
use sconce_schemas::{NodeName, VolumeId};
use tokio::sync::mpsc;

use crate::node::Node;
use crate::owner::record::can_go_on;
use crate::shard::Begin;

const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Volumes of other nodes whose records rely on this node's write buffer, with their owners.
#[derive(Debug, Default)]
pub(crate) struct Relied {
    records: Mutex<BTreeMap<VolumeId, VolumeRecord>>,
}

impl Relied {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<VolumeId, VolumeRecord>> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A volume's record was seen by the node of this name with this write buffer.
    pub(crate) fn note(&self, record: &VolumeRecord, name: &NodeName, buffer: &Buffer) {
        let has_all = record.relied().any(|named| buffer.has_all_of(&named));
        let relied = record.phase == VolumePhase::Active && record.owner != *name && has_all;
        let mut records = self.lock();
        match relied {
            true => drop(records.insert(record.id, record.clone())),
            false => drop(records.remove(&record.id)),
        }
    }

    /// A record is gone.
    pub(crate) fn gone(&self, key: &str) {
        self.lock().retain(|volume, _| keys::volume(*volume) != key);
    }

    /// All records are about to be seen again.
    pub(crate) fn forget(&self) {
        self.lock().clear();
    }

    fn all(&self) -> Vec<VolumeRecord> {
        self.lock().values().cloned().collect()
    }
}

/// Takes over what gone owners leave, until it is aborted.
pub(crate) async fn watch_owners(node: Arc<Node>, begin: Vec<mpsc::Sender<Begin>>) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        if let Err(error) = look(&node, &begin).await {
            tracing::debug!(%error, "the registry does not tell which owners are gone");
        }
    }
}

async fn look(node: &Node, begin: &[mpsc::Sender<Begin>]) -> Result<(), RegistryError> {
    let relied = node.relied.all();
    if relied.is_empty() {
        return Ok(());
    }
    let nodes = node.registry.list(keys::NODES, None, usize::MAX).await?;
    let nodes: HashMap<&str, &Entry> = nodes.iter().map(|entry| (entry.key.as_str(), entry)).collect();
    for record in relied {
        let (volume, owner) = (record.id, &record.owner);
        if can_go_on(&record, nodes.get(keys::node(owner).as_str()).copied()) {
            continue;
        }
        tracing::debug!(%volume, %owner, "an owner is gone, or lost power: its volume is gone on with from the write buffer here");
        if let Some(shard) = begin.get(node.shard_of(volume)) {
            // A shard that takes none is stopping.
            let _ = shard.send(Begin::Orphan(volume)).await;
        }
    }
    Ok(())
}
