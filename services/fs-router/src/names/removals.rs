//! Keeps: which snapshots are being removed.
//! Order: a mark is made where there are no clones, in a commit that one of a clone conflicts with; while it is there no
//! clone is made. The owner is asked after that, and the mark goes when the snapshot is gone: in a commit that is counted, so
//! that who was told of the snapshot before does not clone it after.
//! Crash: a removal that was cut short leaves its mark, for its owner may still do it; it can be done again.
//! Knows no owner: its caller asks it.

use sconce_schemas::records::{RemovalRecord, VolumeRecord, keys};
use sconce_schemas::{SnapshotId, VolumeId};

use super::changes::{Changes, Plan};
use super::{Names, NamesError};

/// A snapshot's removal that was begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Removal {
    /// The volume.
    pub volume: VolumeId,
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// Whose mark it is: others may remove the same snapshot at the same time.
    token: u64,
}

impl Names {
    /// Marks a snapshot as being removed, so that nobody clones it meanwhile. Afterwards its owner is told; once the
    /// snapshot is gone [`Names::end_removal`] is called, and where the owner says that it stays
    /// [`Names::withdraw_removal`]. Without an answer the mark stays.
    ///
    /// # Errors
    /// It has clones; its volume is gone; the registry is unreachable.
    pub async fn begin_removal(&self, volume: VolumeId, snapshot: SnapshotId) -> Result<Removal, NamesError> {
        let token = self.random().max(1);
        let removal = Removal {
            volume,
            snapshot,
            token,
        };
        self.change(
            || format!("snapshot {snapshot}"),
            async |_| {
                // The parent's record before its clones: one that is made after this look rewrites it.
                let parent = self.parent(volume).await?;
                let key = keys::removal(volume, snapshot);
                let mark = self.read::<RemovalRecord>(key.clone()).await?;
                if mark.as_ref().is_some_and(|seen| seen.record.asked_by == token) {
                    return Ok(Plan::done(removal));
                }
                self.refuse_cloned(volume, Some(snapshot), "snapshot").await?;
                let mut changes = Changes::default();
                changes.hold(&parent);
                match mark {
                    None => changes.create(
                        key,
                        &RemovalRecord {
                            asked_by: token,
                            others: false,
                        },
                    ),
                    Some(mut seen) => {
                        seen.record = RemovalRecord {
                            asked_by: token,
                            others: true,
                        };
                        changes.replace(&seen);
                    }
                }
                Ok(Plan {
                    changes,
                    outcome: removal,
                })
            },
        )
        .await
    }

    /// How many removals of a volume's snapshots are over: asked before the owner is asked which there are, by who wants to clone one.
    ///
    /// # Errors
    /// The volume is gone; the registry is unreachable.
    pub async fn removals(&self, volume: VolumeId) -> Result<u64, NamesError> {
        Ok(self.parent(volume).await?.record.removals)
    }

    /// The snapshot is gone: nobody's mark is needed any more, for no other has its id. Who was told of it before cannot clone it.
    ///
    /// # Errors
    /// The registry is unreachable.
    pub async fn end_removal(&self, volume: VolumeId, snapshot: SnapshotId) -> Result<(), NamesError> {
        self.unmark(volume, snapshot, true, |_| true).await
    }

    /// The owner says that the snapshot stays. The mark goes, unless another has asked the owner too, who may yet be
    /// answered otherwise.
    ///
    /// # Errors
    /// The registry is unreachable.
    pub async fn withdraw_removal(&self, removal: Removal) -> Result<(), NamesError> {
        let own = |mark: &RemovalRecord| mark.asked_by == removal.token && !mark.others;
        self.unmark(removal.volume, removal.snapshot, false, own).await
    }

    async fn unmark(
        &self,
        volume: VolumeId,
        snapshot: SnapshotId,
        is_gone: bool,
        wanted: impl Fn(&RemovalRecord) -> bool,
    ) -> Result<(), NamesError> {
        self.change(
            || format!("snapshot {snapshot}"),
            async |_| {
                let mut changes = Changes::default();
                let mark = self
                    .read::<RemovalRecord>(keys::removal(volume, snapshot))
                    .await?;
                if let Some(seen) = mark.filter(|seen| wanted(&seen.record)) {
                    changes.remove(&seen);
                    let parent = self.read::<VolumeRecord>(keys::volume(volume)).await?;
                    if let Some(mut parent) = parent.filter(|_| is_gone) {
                        parent.record.removals += 1;
                        changes.replace(&parent);
                    }
                }
                Ok(Plan { changes, outcome: () })
            },
        )
        .await
    }

    /// Refuses where a snapshot is being removed.
    pub(super) async fn refuse_being_removed(
        &self,
        volume: VolumeId,
        snapshot: SnapshotId,
    ) -> Result<(), NamesError> {
        match self
            .read::<RemovalRecord>(keys::removal(volume, snapshot))
            .await?
        {
            Some(_) => Err(NamesError::BeingRemoved { snapshot }),
            None => Ok(()),
        }
    }
}
