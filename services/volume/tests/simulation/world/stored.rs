//! Reads of what is stored: clusters from the disk and the back end, map nodes from checkpoint objects.
//!
//! Keeps: nothing.
//! Order: none.
//! Crash: what is asked for and not there ends the test.
//! Knows no world.

use bytes::Bytes;
use sconce_schemas::checkpoint::{NodeRecord, NodeRef, decode_node};
use sconce_schemas::records::EpochStart;
use sconce_schemas::wire::Refusal;
use sconce_schemas::{Epoch, ObjectName, ScoId, ScoSize};
use sconce_volume::{Extent, ScoObject};

use super::World;
use crate::scrub::name_of;

pub(super) fn epoch_at(epochs: &[EpochStart], sco: ScoId) -> Epoch {
    epochs
        .iter()
        .rev()
        .find(|start| start.first_sco <= sco)
        .expect("an epoch for every SCO")
        .epoch
}

impl World {
    /// The clusters of an extent, CRCs checked. A local copy that does not hold (after a power loss a recycled file may have
    /// its old header back) gives way to the stored one.
    pub(super) fn clusters(&self, extent: &Extent) -> Vec<Bytes> {
        let size = ScoSize::new(64).unwrap();
        let (sco, first, crcs, stored) = match extent {
            Extent::Zeros { .. } => return vec![Bytes::from_static(&[0; 4096])],
            Extent::Local {
                sco,
                first_slot,
                crcs,
            } => (*sco, *first_slot, crcs, None),
            Extent::Stored {
                volume,
                sco,
                first_slot,
                crcs,
                epoch,
                version,
            } => {
                assert!(*volume != self.id || *epoch == epoch_at(&self.epochs, *sco));
                (*sco, *first_slot, crcs, Some((*volume, *epoch, *version)))
            }
        };
        let name = match stored {
            // An ancestor's: as a storage-router does, the newest where that version is gone.
            Some((volume, epoch, version)) => {
                let object = ScoObject { sco, epoch, version };
                let name = name_of(volume, object);
                match volume == self.id || self.store.contains_key(&name) {
                    true => Some(name),
                    false => self.newest_version(volume, object),
                }
            }
            // In place of a local copy that does not hold, the newest.
            None => {
                let (epoch, version) = (epoch_at(&self.epochs, sco), 0);
                self.newest_version(self.id, ScoObject { sco, epoch, version })
            }
        };
        let content = (first.0..)
            .map(sconce_schemas::Slot)
            .zip(crcs)
            .map(|(slot, crc)| {
                let good = |bytes: &Bytes| sconce_schemas::crc::crc32c(bytes) == *crc;
                let from_disk = || {
                    let local = self.disk.cluster(sco, slot);
                    local.map(Bytes::copy_from_slice).filter(good)
                };
                let from_store = || {
                    let at = usize::try_from(size.slot_offset(slot)).unwrap();
                    name.and_then(|name| self.store.get(&name))
                        .map(|object| object.slice(at..at + 4096))
                        .filter(good)
                };
                let found = if stored.is_none() {
                    from_disk().or_else(from_store)
                } else {
                    from_store()
                };
                found.unwrap_or_else(|| {
                    panic!(
                        "SCO {sco} slot {} ({stored:?}, {name:?}) is not what was written",
                        slot.0
                    )
                })
            });
        content.collect()
    }

    /// A node, from checkpoints of the volume or of its ancestors.
    pub(crate) fn load_node(&self, reference: &NodeRef) -> Result<Vec<NodeRecord>, Refusal> {
        let mut records = Vec::new();
        let mut at = Some(*reference);
        while let Some(reference) = at {
            let volume = self.lineage[usize::from(reference.lineage.0)];
            let name = ObjectName::Map {
                volume,
                id: reference.checkpoint,
                epoch: reference.epoch,
            };
            let object = self.store.get(&name).unwrap_or_else(|| panic!("{name} is gone"));
            let from = reference.offset as usize;
            let stored = &object[from..from + reference.length as usize];
            let record = decode_node(volume, &reference, stored).unwrap();
            at = record.base;
            records.push(record);
        }
        Ok(records)
    }
}
