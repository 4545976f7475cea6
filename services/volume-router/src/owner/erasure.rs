//! The record of a volume that is being deleted: whether its objects may go, who takes that over, and its end.
//!
//! Keeps: nothing; the registry does.
//! Order: nothing goes of what has a name, a clone or another owner; that is looked up again as long as it goes on. The
//! epoch is raised before another node deletes anything, the record goes when nothing is left.
//! Crash: the record says that it is not over, whoever its owner is by then.
//! Knows no objects.

use sconce_registry::record::decode;
use sconce_registry::{Change, CommitError, Registry, RegistryError, Revision};
use sconce_schemas::records::{
    ErasedRecord, GoneRecord, InodeKind, InodeRecord, Record as _, VolumePhase, VolumeRecord, keys,
};
use sconce_schemas::wire::registry::Entry;
use sconce_schemas::wire::{Refusal, RefusalCode};
use sconce_schemas::{NodeName, VolumeId};

use super::record::{Ownership, RecordError, read, retry_or};

/// By what right the objects of a volume are removed.
#[derive(Debug, Clone)]
pub(crate) enum Right {
    /// Its record is this ownership's and says that it is deleted.
    Owned(Ownership),
    /// Another node erased it, and the registry has a note for this write buffer: what this node stored of it since, not
    /// knowing that, is nobody's.
    Noted(String),
}

/// Whether all of the volume's objects may go now.
///
/// # Errors
/// `Refused`: not by this right, or it is over. `Unavailable`: not now; the text says who needs them.
pub(crate) async fn may_erase(
    registry: &Registry,
    volume: VolumeId,
    right: &Right,
) -> Result<(), RecordError> {
    match right {
        Right::Owned(own) => owned(registry, volume, own).await.map(drop),
        Right::Noted(buffer) => noted(registry, volume, buffer).await.map(drop),
    }
}

async fn owned(
    registry: &Registry,
    volume: VolumeId,
    own: &Ownership,
) -> Result<(VolumeRecord, Revision), RecordError> {
    let (record, revision) = read(registry, volume).await?;
    own.holds(&record).map_err(RecordError::Refused)?;
    unneeded(registry, &record).await?;
    Ok((record, revision))
}

async fn noted(registry: &Registry, volume: VolumeId, buffer: &str) -> Result<Revision, RecordError> {
    let refused = |text| Err(RecordError::Refused(Refusal::reject(RefusalCode::Conflict, text)));
    let note = registry.get_record::<ErasedRecord>(&keys::erased(volume)).await?;
    let Some((_, revision)) = note.filter(|(note, _)| note.buffer == buffer) else {
        return refused(format!("no note says that volume {volume} was erased"));
    };
    if registry.get(&keys::volume(volume)).await?.is_some() {
        return refused(format!("volume {volume} has a record again"));
    }
    Ok(revision)
}

/// Whether the record says that the volume is deleted, and nothing else in the registry that it is needed. The name goes
/// with the mark, and clones go before: whatever is there nevertheless was put right by hand or recovered, and is believed.
async fn unneeded(registry: &Registry, record: &VolumeRecord) -> Result<(), RecordError> {
    let volume = record.id;
    if record.phase != VolumePhase::Deleting {
        let text = format!("volume {volume} is not being deleted: its name is still there");
        return Err(RecordError::Refused(Refusal::reject(RefusalCode::Conflict, text)));
    }
    let clones = keys::clones_of(volume);
    if let Some(clone) = registry.list(&clones, None, 1).await?.first() {
        let id = clone.key.strip_prefix(&clones).unwrap_or(&clone.key);
        return Err(RecordError::Unavailable(format!(
            "volume {id} is a clone of it and needs it"
        )));
    }
    match registry
        .get_record::<InodeRecord>(&keys::inode(record.inode))
        .await?
    {
        Some((file, _)) if file.kind == InodeKind::File(volume) => Err(RecordError::Unavailable(format!(
            "its file {:?} is still there, inode {:016x}",
            file.name, record.inode
        ))),
        _ => Ok(()),
    }
}

/// Takes a deletion over from an owner that is gone, as a takeover takes a volume: with the next epoch, so that the owner
/// before is refused from here on. `seen`: the record and its revision.
///
/// # Errors
/// `Refused`: the record is another by now. `Unavailable`: as [`may_erase`].
pub(crate) async fn adopt(
    registry: &Registry,
    seen: (&VolumeRecord, Revision),
    node: &NodeName,
) -> Result<VolumeRecord, RecordError> {
    let (record, revision) = seen;
    unneeded(registry, record).await?;
    let adopted = VolumeRecord {
        owner: node.clone(),
        epoch: record.epoch.next(),
        ..record.clone()
    };
    let key = keys::volume(record.id);
    match registry.put_record(&key, Some(revision), &adopted, None).await {
        Ok(_) => Ok(adopted),
        Err(CommitError::Conflict { .. }) => {
            let text = format!("the record of volume {} changed meanwhile", record.id);
            Err(RecordError::Refused(Refusal::retry(RefusalCode::Conflict, text)))
        }
        // What came of an unknown commit, the next look shows.
        Err(error) => Err(RecordError::Unavailable(error.to_string())),
    }
}

/// The volume's objects are gone: so is its record, or the note. One that is gone already is as good.
pub(crate) async fn end(
    registry: &Registry,
    volume: VolumeId,
    right: &Right,
    buffer: &str,
    now_us: u64,
) -> Result<(), RecordError> {
    match right {
        Right::Owned(own) => remove(registry, volume, own, buffer, now_us).await,
        Right::Noted(buffer) => {
            let revision = noted(registry, volume, buffer).await?;
            forget(registry, keys::erased(volume), revision).await
        }
    }
}

/// Where the record names another write buffer than this node's, `buffer`, that buffer's node is left a note; and one for all nodes where there may be
/// twins that the record does not name.
async fn remove(
    registry: &Registry,
    volume: VolumeId,
    own: &Ownership,
    buffer: &str,
    now_us: u64,
) -> Result<(), RecordError> {
    let key = keys::volume(volume);
    loop {
        let (record, revision) = match owned(registry, volume, own).await {
            Err(RecordError::Refused(refusal)) if refusal.code == RefusalCode::NotFound => return Ok(()),
            allowed => allowed?,
        };
        remove_marks(registry, volume).await?;
        let mut changes = vec![Change::delete(key.clone(), Some(revision))];
        if record.may_have_twins() {
            let note = GoneRecord { erased_us: now_us };
            changes.push(Change::put(keys::gone(volume), None, note.to_bytes()));
        }
        if let Some(other) = record.buffer.filter(|other| other != buffer) {
            let note = ErasedRecord {
                buffer: other,
                pool: record.pool,
                erased_us: now_us,
            };
            changes.push(Change::put(keys::erased(volume), None, note.to_bytes()));
        }
        match registry.commit(changes).await {
            Ok(_) => return Ok(()),
            Err(error) => retry_or(error)?,
        }
    }
}

/// Removals of snapshots that were cut short leave marks, which nobody needs once the volume is gone. In commits of their
/// own: there may be more than fit one.
async fn remove_marks(registry: &Registry, volume: VolumeId) -> Result<(), RecordError> {
    loop {
        let marks = registry
            .list(&keys::removals_of(volume), None, MARKS_AT_ONCE)
            .await?;
        if marks.is_empty() {
            return Ok(());
        }
        let gone = |mark: Entry| Change::delete(mark.key, None);
        match registry.commit(marks.into_iter().map(gone).collect()).await {
            Ok(_) => {}
            Err(error) => retry_or(error)?,
        }
    }
}

/// Marks that one commit removes.
const MARKS_AT_ONCE: usize = 50;

/// A volume that was erased by another node than the one whose write buffer may hold SCOs of it.
pub(crate) struct Erased {
    /// The volume.
    pub(crate) volume: VolumeId,
    /// What the note says.
    pub(crate) note: ErasedRecord,
    revision: Revision,
}

/// All of them. A note that cannot be read says nothing, and holds up nothing.
pub(crate) async fn erased(registry: &Registry) -> Result<Vec<Erased>, RegistryError> {
    let notes = registry.list(keys::ERASED, None, usize::MAX).await?;
    let erased = |entry: Entry| {
        Some(Erased {
            volume: entry.key.strip_prefix(keys::ERASED)?.parse().ok()?,
            note: decode(&entry).ok()?,
            revision: entry.revision,
        })
    };
    Ok(notes.into_iter().filter_map(erased).collect())
}

/// An erased volume that any write buffer may have a twin of.
pub(crate) struct Gone {
    /// The volume.
    pub(crate) volume: VolumeId,
    /// What the note says.
    pub(crate) note: GoneRecord,
    revision: Revision,
}

/// All of them. A note that cannot be read says nothing, and holds up nothing.
pub(crate) async fn gone(registry: &Registry) -> Result<Vec<Gone>, RegistryError> {
    let notes = registry.list(keys::GONE, None, usize::MAX).await?;
    let gone = |entry: Entry| {
        Some(Gone {
            volume: entry.key.strip_prefix(keys::GONE)?.parse().ok()?,
            note: decode(&entry).ok()?,
            revision: entry.revision,
        })
    };
    Ok(notes.into_iter().filter_map(gone).collect())
}

/// Whether a volume that has no record was erased, so that no twin of it is worth anything.
pub(crate) async fn is_gone(registry: &Registry, volume: VolumeId) -> Result<bool, RegistryError> {
    let note = registry.get_record::<GoneRecord>(&keys::gone(volume)).await?;
    // In this order: a record that came back is believed more than the note.
    Ok(note.is_some() && registry.get(&keys::volume(volume)).await?.is_none())
}

/// Nobody needs the note any more.
pub(crate) async fn forget_gone(registry: &Registry, gone: &Gone) -> Result<(), RecordError> {
    forget(registry, keys::gone(gone.volume), gone.revision).await
}

/// Nobody needs the note any more.
pub(crate) async fn forget_erased(registry: &Registry, erased: &Erased) -> Result<(), RecordError> {
    forget(registry, keys::erased(erased.volume), erased.revision).await
}

/// One that is another by now stays.
async fn forget(registry: &Registry, key: String, revision: Revision) -> Result<(), RecordError> {
    let delete = Change::delete(key, Some(revision));
    match registry.commit(vec![delete]).await {
        Ok(_) => Ok(()),
        Err(error) => retry_or(error),
    }
}

#[cfg(test)]
mod tests;
