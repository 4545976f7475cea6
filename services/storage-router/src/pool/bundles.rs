//! Bundles: what a reader asks of a SCO, out of the object that holds what is left of it and of its neighbours
//! (docs/decisions/0115).
//!
//! Keeps: nothing of its own; the heads that it makes of an index are kept with those of packed SCOs.
//! Order: the index is read before what it describes.
//! Crash: indexes are read again.
//! Knows no scrub: an index says what is there.

use std::sync::Arc;

use bytes::Bytes;
use sconce_schemas::bundle::{BUNDLE_FROM, BundleIndex};
use sconce_schemas::packed_sco::PackedHead;
use sconce_schemas::{Epoch, ObjectName, ScoId};

use super::read::Source;
use super::{Answer, Pool};
use crate::backend::BackendError;
use crate::checked::damaged;

/// Most indexes are not longer: a second read is seldom.
const INDEX_GUESS: u64 = 32 << 10;

/// Whether this is the name of a bundle. By that name it is read as it is stored; by the names of the SCOs in it, their
/// ranges are.
pub(super) const fn is_bundle(name: &ObjectName) -> bool {
    matches!(
        name,
        ObjectName::Sco {
            version: BUNDLE_FROM..,
            ..
        }
    )
}

impl Pool {
    /// Reads `length` bytes of a SCO from `offset`, zeros where they were dropped.
    pub(super) async fn get_bundled(
        self: &Arc<Self>,
        bundle: ObjectName,
        (sco, epoch): (ScoId, Epoch),
        offset: u64,
        length: u64,
    ) -> Result<Bytes, Vec<Answer>> {
        let head = self.head_in(bundle, sco, epoch).await?;
        self.get_by(bundle, head, offset, length).await
    }

    /// Length of a SCO as its readers see it.
    pub(super) async fn length_of_bundled(
        self: &Arc<Self>,
        bundle: ObjectName,
        (sco, epoch): (ScoId, Epoch),
    ) -> Result<u64, Vec<Answer>> {
        self.first_good(bundle, |source| async move { source.stat(bundle).await })
            .await?;
        Ok(self.head_in(bundle, sco, epoch).await?.length())
    }

    async fn head_in(
        self: &Arc<Self>,
        bundle: ObjectName,
        sco: ScoId,
        epoch: Epoch,
    ) -> Result<Arc<PackedHead>, Vec<Answer>> {
        if let Some(head) = self.heads.get(&(bundle, sco, epoch)) {
            return Ok(head);
        }
        self.members(bundle).await?;
        let head = self.heads.get(&(bundle, sco, epoch));
        // Not in it, or so many are read that it was dropped at once: whoever asked looks anew.
        head.ok_or_else(|| {
            let error = BackendError::NotFound;
            vec![Answer { backend: 0, error }]
        })
    }

    /// The SCOs of a bundle, ascending; their heads are kept.
    pub(super) async fn members(
        self: &Arc<Self>,
        bundle: ObjectName,
    ) -> Result<Vec<(ScoId, Epoch)>, Vec<Answer>> {
        let read = |source: Source| async move {
            let mut bytes = source.get(bundle, 0, INDEX_GUESS).await?;
            let len = BundleIndex::len_of(&bytes).map_err(|error| damaged(&error))?;
            if len > bytes.len() {
                bytes = source.get(bundle, 0, len as u64).await?;
            }
            BundleIndex::from_bytes(&bytes).map_err(|error| damaged(&error))
        };
        let index = self.first_good(bundle, read).await?;
        for (at, member) in index.members.iter().enumerate() {
            // Whatever was decoded is within the limits.
            if let Ok(Some(head)) = index.view(at) {
                self.heads
                    .insert((bundle, member.sco, member.epoch), Arc::new(head));
            }
        }
        Ok(index
            .members
            .iter()
            .map(|member| (member.sco, member.epoch))
            .collect())
    }
}
