//! Packed SCOs: what a reader asks of a SCO as it was written, out of what a scrub kept of it (docs/decisions/0100).
//!
//! Keeps: heads that were read, up to a bound in bytes.
//! Order: the head is read before what it describes, both through the checks that every read has.
//! Crash: heads are read again.
//! Knows no scrub and no slots: a head says which chunks are there.

use std::sync::Arc;

use bytes::Bytes;
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use sconce_schemas::bundle::BUNDLE_FROM;
use sconce_schemas::packed_sco::{HEAD_BYTES, PackedHead};
use sconce_schemas::{Epoch, ObjectName, ScoId};

use super::read::Source;
use super::{Answer, Pool};
use crate::checked::{CHECK_HERE_BYTES, damaged};

/// Memory for heads: those of some 50,000 SCOs of 4 MiB, 200 GiB before they were scrubbed.
const HEADS_BYTES_MAX: u64 = 16 << 20;
/// What the cache itself takes for a head, about: key, links and the counters of the `Arc`.
const ENTRY_BYTES: usize = 128;
const HEADS_EXPECTED: usize = 1 << 15;

/// Heads that were read. A name stands for one content, so none is ever out of date.
pub(super) struct Heads(Cache<Key, Arc<PackedHead>, ByBytes>);

/// An object, and the SCO that is read out of it.
type Key = (ObjectName, ScoId, Epoch);

#[derive(Clone)]
struct ByBytes;

impl Weighter<Key, Arc<PackedHead>> for ByBytes {
    fn weight(&self, _: &Key, head: &Arc<PackedHead>) -> u64 {
        (ENTRY_BYTES + head.memory()) as u64
    }
}

impl Default for Heads {
    fn default() -> Self {
        Self(Cache::with_weighter(HEADS_EXPECTED, HEADS_BYTES_MAX, ByBytes))
    }
}

impl Heads {
    /// Forgets the head of an object that is being deleted.
    pub(super) fn forget(&self, name: &ObjectName) {
        if let ObjectName::Sco { id, epoch, .. } = name {
            self.0.remove(&(*name, *id, *epoch));
        }
    }

    pub(super) fn get(&self, key: &Key) -> Option<Arc<PackedHead>> {
        self.0.get(key)
    }

    pub(super) fn insert(&self, key: Key, head: Arc<PackedHead>) {
        self.0.insert(key, head);
    }
}

/// Whether the content of this object is a packed SCO.
pub(super) const fn is_packed(name: &ObjectName) -> bool {
    matches!(
        name,
        ObjectName::Sco {
            version: 1..BUNDLE_FROM,
            ..
        }
    )
}

impl Pool {
    /// Reads `length` bytes of the SCO from `offset`, zeros where they were dropped; fewer, or none, where it ends before.
    pub(super) async fn get_packed(
        self: &Arc<Self>,
        name: ObjectName,
        offset: u64,
        length: u64,
    ) -> Result<Bytes, Vec<Answer>> {
        let head = self.head(name).await?;
        self.get_by(name, head, offset, length).await
    }

    /// The same by the head of what is read.
    pub(super) async fn get_by(
        self: &Arc<Self>,
        name: ObjectName,
        head: Arc<PackedHead>,
        offset: u64,
        length: u64,
    ) -> Result<Bytes, Vec<Answer>> {
        // Where it is empty a back end is asked too: a version that is gone must not be answered for by its head.
        let range = head.packed_range(offset, length);
        let (start, due) = (range.start, range.end - range.start);
        self.first_good(name, |source| {
            let head = Arc::clone(&head);
            async move {
                let packed = source.get(name, start, due).await?;
                // A copy that was cut off before the range reads as fewer bytes: that is noticed here.
                let expand = move || {
                    head.expand(offset, length, packed)
                        .map_err(|error| damaged(&error))
                };
                if length > CHECK_HERE_BYTES as u64 {
                    self.workers.run(length, expand).await
                } else {
                    expand()
                }
            }
        })
        .await
    }

    /// Length of the SCO as its readers see it.
    pub(super) async fn length_of_packed(self: &Arc<Self>, name: ObjectName) -> Result<u64, Vec<Answer>> {
        self.first_good(name, |source| async move { source.stat(name).await })
            .await?;
        Ok(self.head(name).await?.length())
    }

    async fn head(self: &Arc<Self>, name: ObjectName) -> Result<Arc<PackedHead>, Vec<Answer>> {
        let key = key_of(name);
        if let Some(head) = self.heads.get(&key) {
            return Ok(head);
        }
        let read = |source: Source| async move {
            let bytes = source.get(name, 0, HEAD_BYTES as u64).await?;
            PackedHead::from_bytes(&bytes).map_err(|error| damaged(&error))
        };
        let head = Arc::new(self.first_good(name, read).await?);
        self.heads.insert(key, Arc::clone(&head));
        Ok(head)
    }
}

const fn key_of(name: ObjectName) -> Key {
    match name {
        ObjectName::Sco { id, epoch, .. } => (name, id, epoch),
        // None other is packed.
        _ => (name, ScoId::NONE, Epoch::NONE),
    }
}

#[cfg(test)]
mod tests {
    use sconce_schemas::packed_sco::PackedSco;
    use sconce_schemas::sco::ScoHeader;
    use sconce_schemas::{BatchSeq, ScoSize, VolumeId};

    use super::*;

    #[test]
    fn heads_are_kept_within_their_bytes() {
        let name = |id| ObjectName::Sco {
            volume: VolumeId::from_u128(1),
            id: ScoId(id),
            epoch: Epoch(1),
            version: 1,
        };
        let header = ScoHeader {
            volume: VolumeId::from_u128(1),
            id: ScoId(1),
            epoch: Epoch(1),
            size: ScoSize::new(16384).unwrap(),
            first_batch: BatchSeq(1),
            synced_below: ScoId(1),
        };
        let mut object = header.to_bytes().to_vec();
        object.resize(usize::try_from(header.size.file_len()).unwrap(), 0);
        let packed = PackedSco::pack(&object, |_| false).unwrap();
        let head = PackedHead::from_bytes(&packed).unwrap();
        let heads = Heads::default();
        for id in 1..20_000 {
            // Each with memory of its own, as those that are read.
            heads.insert(key_of(name(id)), Arc::new(head.clone()));
        }
        let kept = heads.0.len();
        assert!(
            kept * head.memory() <= 16 << 20,
            "{kept} of {} bytes",
            head.memory()
        );
        assert!(
            kept * head.memory() > 8 << 20,
            "{kept} of {} bytes",
            head.memory()
        );
        heads.insert(key_of(name(0)), Arc::new(head));
        heads.forget(&name(0));
        assert!(heads.get(&key_of(name(0))).is_none());
    }
}
