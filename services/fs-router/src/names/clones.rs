//! Keeps: which volumes are clones of which snapshots, and which snapshots are being removed.
//! Order: a clone's commit and whatever would take its parent or its snapshot away both rewrite the parent's record: of
//! the two, one conflicts, is planned again, and sees the other.
//! Crash: a removal that was cut short leaves its mark: no clone of that snapshot is made, and it can be removed again.
//! Knows no owner: what a volume's snapshots are, its owner says.

use sconce_schemas::records::{
    CloneRecord, InodeRecord, Origin, RemovalRecord, VolumePhase, VolumeRecord, keys,
};
use sconce_schemas::{SnapshotId, VolumeId, VolumeSize};

use super::changes::{Changes, Plan, Seen};
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
}

impl Names {
    /// Makes a volume at `path` that begins as a snapshot; directories that are missing are made. It lies where its parent
    /// lies, with the parent's owner.
    ///
    /// # Errors
    /// The path is taken; the snapshot's volume is gone, or the snapshot is being removed; the registry is unreachable.
    pub async fn create_clone(
        &self,
        from: Snapshot,
        path: &PoolPath,
        entry: NewEntry,
    ) -> Result<Resolved, NamesError> {
        let (parent, name) = path.split()?;
        let directory = self.make_directories(&parent).await?;
        let of = self.parent(from.volume).await?.record;
        let record = VolumeRecord {
            origin: Some(Origin {
                volume: from.volume,
                snapshot: from.id,
            }),
            ..self.fresh_record(from.size, of.sco_size, of.pool, of.owner)
        };
        let volume = record.id;
        let added = self.add_file(directory, name, record, entry).await;
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
            return self.plan_known_clone(changes, key, clone).await;
        }
        // The parent's record first: a removal that begins after this look rewrites it.
        let parent = self.parent(origin.volume).await?;
        let removal = keys::removal(origin.volume, origin.snapshot);
        if self.read::<RemovalRecord>(removal).await?.is_some() {
            return Err(NamesError::BeingRemoved {
                snapshot: origin.snapshot,
            });
        }
        changes.hold(&parent);
        changes.create(key, &clone);
        Ok(())
    }

    /// A clone that was there before the registry was lost: it needs its parent, which may be recovered after it.
    async fn plan_known_clone(
        &self,
        changes: &mut Changes,
        key: String,
        clone: CloneRecord,
    ) -> Result<(), NamesError> {
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

    /// Marks a snapshot as being removed, so that nobody clones it meanwhile. Afterwards its owner is told, and once that
    /// has decided [`Names::end_removal`] called; without an answer the mark stays, for the owner may still do it.
    ///
    /// # Errors
    /// It has clones; its volume is gone; the registry is unreachable.
    pub async fn begin_removal(&self, volume: VolumeId, snapshot: SnapshotId) -> Result<(), NamesError> {
        let key = || keys::removal(volume, snapshot);
        let marked = self
            .change(
                || format!("snapshot {snapshot}"),
                async |_| {
                    let parent = self.parent(volume).await?;
                    let mut changes = Changes::default();
                    if self.read::<RemovalRecord>(key()).await?.is_none() {
                        changes.hold(&parent);
                        changes.create(key(), &RemovalRecord::default());
                    }
                    Ok(Plan { changes, outcome: () })
                },
            )
            .await;
        marked?;
        let cloned = self.refuse_cloned(volume, Some(snapshot), "snapshot").await;
        if cloned.is_err() {
            self.end_removal(volume, snapshot).await?;
        }
        cloned
    }

    /// The snapshot is gone, or stays after all.
    ///
    /// # Errors
    /// The registry is unreachable.
    pub async fn end_removal(&self, volume: VolumeId, snapshot: SnapshotId) -> Result<(), NamesError> {
        self.change(
            || format!("snapshot {snapshot}"),
            async |_| {
                let mut changes = Changes::default();
                if let Some(seen) = self
                    .read::<RemovalRecord>(keys::removal(volume, snapshot))
                    .await?
                {
                    changes.remove(&seen);
                }
                Ok(Plan { changes, outcome: () })
            },
        )
        .await
    }

    /// The record of a volume that can be a parent: one that exists and whose file has a name. One without is gone as
    /// soon as it is closed.
    async fn parent(&self, volume: VolumeId) -> Result<Seen<VolumeRecord>, NamesError> {
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
