//! Reads of what is stored: clusters from the disk and the back end, map nodes from checkpoint objects.
//!
//! Keeps: nothing.
//! Order: none.
//! Crash: what is asked for and not there ends the test.
//! Knows no world.

use bytes::Bytes;
use sconce_schemas::bundle::{BundleIndex, Member};
use sconce_schemas::checkpoint::{NodeRecord, NodeRef, decode_node};
use sconce_schemas::records::EpochStart;
use sconce_schemas::wire::Refusal;
use sconce_schemas::{Epoch, ObjectName, ScoId, ScoSize};
use sconce_volume::{Extent, ScoObject};

use super::World;
use crate::scrub::{name_of, place_in};

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
        let own = || (self.id, epoch_at(&self.epochs, sco), 0);
        let (volume, epoch, version) = stored.unwrap_or_else(own);
        let own = name_of(volume, ScoObject { sco, epoch, version });
        let from = self.store.get(&own);
        // Every bundle that has anything of the SCO, also one that a crash left, has all that is referred to.
        let mut holding: Vec<(&Bytes, &BundleIndex)> = Vec::new();
        for (name, index) in self.bundles.range(own..) {
            let is_it = |member: &Member| (member.sco, member.epoch) == (sco, epoch);
            if name.volume() == volume && index.members.iter().any(is_it) {
                holding.push((&self.store[name], index));
            }
        }
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
                    let mut found = from.map(|object| {
                        let at = usize::try_from(size.slot_offset(slot)).unwrap();
                        object.slice(at..at + 4096)
                    });
                    for (bundle, index) in &holding {
                        let at = place_in(index, sco, slot);
                        let at = at.unwrap_or_else(|| {
                            panic!("a bundle of SCO {sco} lacks slot {}: {index:?}", slot.0)
                        });
                        found.get_or_insert_with(|| bundle.slice(at..at + 4096));
                    }
                    found.filter(good)
                };
                let in_store = from_store();
                let found = if stored.is_none() {
                    from_disk().or(in_store)
                } else {
                    in_store
                };
                found.unwrap_or_else(|| {
                    panic!("SCO {sco} slot {} ({stored:?}) is not what was written", slot.0)
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
