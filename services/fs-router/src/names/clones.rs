//! Keeps: which volumes are clones of which snapshots.
//! Order: a clone's commit and whatever would take its parent or its snapshot away (`removals`) both rewrite the parent's
//! record: of the two, one conflicts, is planned again, and sees the other.
//! Crash: a clone is there with its file, or not at all.
//! Knows no owner: what a volume's snapshots are, its owner says; whether one may have been removed since then, the parent's record.

use sconce_schemas::records::{CloneRecord, InodeRecord, Origin, VolumePhase, VolumeRecord, keys};
use sconce_schemas::{SnapshotId, VolumeId, VolumeSize};
use sconce_tracing::Span;

use super::changes::{Changes, Seen};
use super::remove::NAMELESS;
use super::{Names, NamesError, NewEntry, PoolPath, Resolved};

/// Clones that an error names.
const NAMED_MAX: usize = 5;

/// A snapshot of a volume, as its owner told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Snapshot {
    /// The volume.
    pub volume: VolumeId,
    /// The snapshot.
    pub id: SnapshotId,
    /// The volume's size then.
    pub size: VolumeSize,
    /// [`Names::removals`] before the owner told of it.
    pub removals: u64,
}

impl Names {
    /// Makes a volume at `path` that begins as a snapshot; directories that are missing are made. It lies where its parent
    /// lies, with the parent's owner.
    ///
    /// # Errors
    /// The path is taken; the snapshot's volume is gone, or the snapshot is being removed; snapshots were removed since the owner told of
    /// this one ([`NamesError::SnapshotsRemoved`]: the owner is to be asked again); the registry is unreachable.
    pub async fn create_clone(
        &self,
        from: Snapshot,
        path: &PoolPath,
        entry: NewEntry,
    ) -> Result<Resolved, NamesError> {
        let (parent, name) = path.split()?;
        // Before directories are made that a refusal would leave behind.
        let of = self.parent(from.volume).await?.record;
        refuse_unless_told_since(&of, from.removals)?;
        self.refuse_being_removed(from.volume, from.id).await?;
        let directory = self.make_directories(&parent).await?;
        let record = VolumeRecord {
            origin: Some(Origin {
                volume: from.volume,
                snapshot: from.id,
            }),
            ..self.fresh_record(from.size, of.sco_size, of.pool, of.owner)
        };
        let volume = record.id;
        let added = self.add_file(directory, name, record, entry, Some(from.removals));
        let added = Span::control("volume.clone").scope(added).await;
        let inode = added.map_err(|error| error.placed(path))?;
        Ok(Resolved {
            inode,
            volume,
            path: path.clone(),
        })
    }

    /// Plans what a clone's commit has beside its file.
    pub(super) async fn plan_origin(
        &self,
        changes: &mut Changes,
        record: &VolumeRecord,
        removals: Option<u64>,
    ) -> Result<(), NamesError> {
        let Some(origin) = record.origin else {
            return Ok(());
        };
        let key = keys::clone(origin.volume, record.id);
        let clone = CloneRecord {
            snapshot: origin.snapshot,
            inode: record.inode,
        };
        if record.manifest.is_some() {
            return self.plan_known_clone(changes, key, clone, origin).await;
        }
        // The parent's record first: a removal that begins after this look rewrites it.
        let parent = self.parent(origin.volume).await?;
        refuse_unless_told_since(&parent.record, removals.unwrap_or(parent.record.removals))?;
        self.refuse_being_removed(origin.volume, origin.snapshot).await?;
        changes.hold(&parent);
        changes.create(key, &clone);
        Ok(())
    }

    /// A clone that was there before the registry was lost: it needs its parent, which may be recovered after it. One that
    /// came back before it is kept from going, if it is not gone already.
    async fn plan_known_clone(
        &self,
        changes: &mut Changes,
        key: String,
        clone: CloneRecord,
        origin: Origin,
    ) -> Result<(), NamesError> {
        let parent = self.read::<VolumeRecord>(keys::volume(origin.volume)).await?;
        if let Some(parent) = parent.filter(|seen| seen.record.phase == VolumePhase::Active) {
            self.refuse_being_removed(origin.volume, origin.snapshot).await?;
            changes.hold(&parent);
        }
        match self.read::<CloneRecord>(key.clone()).await? {
            Some(mut seen) => {
                seen.record = clone;
                changes.replace(&seen);
            }
            None => changes.create(key, &clone),
        }
        Ok(())
    }

    /// Plans that a volume needs its parent no more; nothing if it has none.
    pub(super) async fn drop_origin(
        &self,
        changes: &mut Changes,
        record: &VolumeRecord,
    ) -> Result<(), NamesError> {
        let Some(origin) = record.origin else {
            return Ok(());
        };
        let key = keys::clone(origin.volume, record.id);
        if let Some(seen) = self.read::<CloneRecord>(key).await? {
            changes.remove(&seen);
        }
        Ok(())
    }

    /// Refuses if there are clones of the volume, or of one of its snapshots.
    pub(super) async fn refuse_cloned(
        &self,
        volume: VolumeId,
        snapshot: Option<SnapshotId>,
        what: &'static str,
    ) -> Result<(), NamesError> {
        let mut names = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let prefix = keys::clones_of(volume);
            let page = self
                .read_many::<CloneRecord>(&prefix, after.as_deref(), super::LIST_MAX)
                .await?;
            for clone in page
                .iter()
                .filter(|clone| snapshot.is_none_or(|id| clone.record.snapshot == id))
            {
                if names.len() == NAMED_MAX {
                    names.push("…".to_owned());
                    break;
                }
                let path = self.path_of(clone.record.inode).await;
                names.push(
                    path.map_or_else(|_| clone.key[prefix.len()..].to_owned(), |path| path.to_string()),
                );
            }
            if page.len() < super::LIST_MAX || names.len() > NAMED_MAX {
                break;
            }
            after = page.last().map(|clone| clone.key.clone());
        }
        if names.is_empty() {
            return Ok(());
        }
        Err(NamesError::Cloned {
            what,
            clones: names.join(", "),
        })
    }

    /// The record of a volume that can be a parent: one that exists and whose file has a name. One without is gone as
    /// soon as it is closed.
    pub(super) async fn parent(&self, volume: VolumeId) -> Result<Seen<VolumeRecord>, NamesError> {
        let gone = || NamesError::NotFound {
            at: format!("volume {volume}"),
        };
        let found = self.read::<VolumeRecord>(keys::volume(volume)).await?;
        let parent = found
            .filter(|seen| seen.record.phase == VolumePhase::Active)
            .ok_or_else(gone)?;
        // After the look at the volume's record: whatever takes the name away rewrites that too.
        let file = self.read::<InodeRecord>(keys::inode(parent.record.inode)).await?;
        let named = file.is_some_and(|file| file.record.parent != NAMELESS);
        named.then_some(parent).ok_or_else(gone)
    }
}

/// What its owner told of its snapshots was told after the last of them was gone.
fn refuse_unless_told_since(parent: &VolumeRecord, removals: u64) -> Result<(), NamesError> {
    match parent.removals == removals {
        true => Ok(()),
        false => Err(NamesError::SnapshotsRemoved { volume: parent.id }),
    }
}
