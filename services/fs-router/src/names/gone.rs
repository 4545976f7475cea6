//! Keeps: what is gone for its users and not yet for the pool: files without a name, deleted volumes, and volumes that are
//! erased but for a write buffer that was away.
//! Order: none; these are looks.
//! Crash: nothing is written.
//! Knows no owner at work.

use sconce_registry::record::decode;
use sconce_schemas::records::{ErasedRecord, InodeKind, NameRecord, VolumePhase, VolumeRecord, keys};
use sconce_schemas::{NodeName, VolumeId};

use super::changes::Seen;
use super::remove::NAMELESS;
use super::{Names, NamesError};

/// A file that was removed while it was open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamelessFile {
    /// The fs-router that has it open.
    pub holder: NodeName,
    /// Its inode.
    pub inode: u64,
    /// Its volume.
    pub volume: VolumeId,
}

/// Volumes that have a record.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct KnownVolumes {
    /// Those that exist.
    pub active: Vec<VolumeRecord>,
    /// Those that were deleted and are not erased yet.
    pub deleted: Vec<VolumeRecord>,
    /// Volume records that cannot be read: while there are any, no node takes another's deletions over.
    pub damaged: Vec<String>,
}

impl Names {
    /// The nameless files of all fs-routers.
    ///
    /// # Errors
    /// The registry is unreachable.
    pub async fn all_nameless(&self) -> Result<Vec<NamelessFile>, NamesError> {
        let prefix = keys::names_in(NAMELESS);
        let found = self.read_many::<NameRecord>(&prefix, None, usize::MAX).await?;
        let file = |seen: Seen<NameRecord>| {
            let (holder, _) = seen.key.strip_prefix(&prefix)?.rsplit_once(':')?;
            let InodeKind::File(volume) = seen.record.kind else {
                return None;
            };
            Some(NamelessFile {
                holder: holder.parse().ok()?,
                inode: seen.record.inode,
                volume,
            })
        };
        Ok(found.into_iter().filter_map(file).collect())
    }

    /// All volumes that have a record, by id.
    ///
    /// # Errors
    /// The registry is unreachable.
    pub async fn known_volumes(&self) -> Result<KnownVolumes, NamesError> {
        let entries = self
            .patiently(async || self.registry.list(keys::VOLUMES, None, usize::MAX).await)
            .await?;
        let mut known = KnownVolumes::default();
        for entry in entries {
            match decode::<VolumeRecord>(&entry) {
                Ok(record) if record.phase == VolumePhase::Deleting => known.deleted.push(record),
                Ok(record) => known.active.push(record),
                Err(_) => known.damaged.push(entry.key),
            }
        }
        Ok(known)
    }

    /// The volumes that are erased, and of which a write buffer that is away may hold SCOs.
    ///
    /// # Errors
    /// The registry is unreachable.
    pub async fn erased_volumes(&self) -> Result<Vec<(VolumeId, ErasedRecord)>, NamesError> {
        let found = self
            .read_many::<ErasedRecord>(keys::ERASED, None, usize::MAX)
            .await?;
        let volume = |seen: Seen<ErasedRecord>| {
            let id = seen.key.strip_prefix(keys::ERASED)?.parse().ok()?;
            Some((id, seen.record))
        };
        Ok(found.into_iter().filter_map(volume).collect())
    }
}
