//! Keeps: how files and directories go: a file's name at once, its volume's space through its owner.
//! Order, crash: name, inode and the volume's phase are one commit. A file that is open when its name goes becomes
//! a nameless file of the fs-router that has it open: after a crash that fs-router finds and removes it.
//! Knows no open files: its caller says which are.

use sconce_schemas::records::{InodeKind, InodeRecord, NameRecord, VolumePhase, VolumeRecord, keys};
use sconce_schemas::{NodeName, VolumeId};

use super::changes::{Attempt, Changes, Plan, Seen};
use super::create::touch;
use super::error::place;
use super::{Entry, LIST_MAX, Names, NamesError, PoolPath};

/// The directory of files without a name that are still open. No path leads to it.
pub(super) const NAMELESS: u64 = 0;
/// Inodes up to this one are never given to a file.
pub(super) const RESERVED_INODES: u64 = 15;

/// Which files outlive their name for now.
#[derive(Clone, Copy)]
pub enum Keep<'a> {
    /// None.
    Nothing,
    /// Those that are open at this fs-router, until it calls [`Names::remove_nameless`].
    Open {
        /// The fs-router.
        holder: &'a NodeName,
        /// Whether the inode is open there.
        is_open: &'a dyn Fn(u64) -> bool,
        /// Whether a client that cannot outlive the name uses the volume there: the name stays.
        is_used: &'a dyn Fn(VolumeId) -> bool,
    },
}

/// A file whose name is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Removed {
    /// Its inode.
    pub inode: u64,
    /// Its volume.
    pub volume: VolumeId,
    /// Whether it lives on without a name; otherwise the volume's owner is to be told to delete it.
    pub kept: bool,
}

impl Names {
    /// Removes the file at `path`; its volume is deleted.
    ///
    /// # Errors
    /// As [`Names::unlink`].
    pub async fn remove_file(&self, path: &PoolPath) -> Result<Removed, NamesError> {
        let (parent, name) = path.split()?;
        let parent = self
            .resolve_directory(&parent)
            .await
            .map_err(|error| error.placed(path))?;
        self.unlink(parent, name, Keep::Nothing)
            .await
            .map_err(|error| error.placed(path))
    }

    /// Removes the file `name` in the directory `parent`.
    ///
    /// # Errors
    /// It does not exist or is a directory; it has clones; the registry is unreachable.
    pub async fn unlink(&self, parent: u64, name: &str, keep: Keep<'_>) -> Result<Removed, NamesError> {
        let mut tried: Option<Removed> = None;
        self.change(
            || place(parent, name),
            async |attempt| {
                let found = self.name(parent, name).await?;
                if let Some(done) = done_before(attempt, tried, found.as_ref())
                    && !self.is_named(done.inode).await?
                {
                    return Ok(Plan::done(done));
                }
                let seen = found.ok_or_else(|| NamesError::NotFound {
                    at: place(parent, name),
                })?;
                let InodeKind::File(volume) = seen.record.kind else {
                    return Err(NamesError::IsDirectory {
                        at: place(parent, name),
                    });
                };
                let mut changes = Changes::default();
                touch(&mut changes, self.directory(parent).await?, self.now_ns());
                changes.remove(&seen);
                let removed = self
                    .drop_file(&mut changes, seen.record.inode, volume, keep)
                    .await?;
                tried = Some(removed);
                Ok(Plan {
                    changes,
                    outcome: removed,
                })
            },
        )
        .await
    }

    /// Whether a file has a name: one that is missing where it was removed may have been moved.
    async fn is_named(&self, inode: u64) -> Result<bool, NamesError> {
        let file = self.read::<InodeRecord>(keys::inode(inode)).await?;
        Ok(file.is_some_and(|file| file.record.parent != NAMELESS))
    }

    /// Removes the empty directory `name` in the directory `parent`, and answers its inode.
    ///
    /// # Errors
    /// It does not exist, is a file or not empty; the registry is unreachable.
    pub async fn remove_directory(&self, parent: u64, name: &str) -> Result<u64, NamesError> {
        let mut tried: Option<u64> = None;
        self.change(
            || place(parent, name),
            async |attempt| {
                let found = self.name(parent, name).await?;
                let still = found.as_ref().map(|seen| seen.record.inode);
                if let Some(tried) = tried.filter(|tried| attempt.unsure && still != Some(*tried)) {
                    return Ok(Plan::done(tried));
                }
                let seen = found.ok_or_else(|| NamesError::NotFound {
                    at: place(parent, name),
                })?;
                if seen.record.kind != InodeKind::Directory {
                    return Err(NamesError::NotDirectory {
                        at: place(parent, name),
                    });
                }
                let mut changes = Changes::default();
                touch(&mut changes, self.directory(parent).await?, self.now_ns());
                changes.remove(&seen);
                let at = || place(parent, name);
                self.drop_directory(&mut changes, seen.record.inode, at).await?;
                tried = Some(seen.record.inode);
                Ok(Plan {
                    changes,
                    outcome: seen.record.inode,
                })
            },
        )
        .await
    }

    /// The nameless files that `holder` left, at most [`LIST_MAX`].
    ///
    /// # Errors
    /// The registry is unreachable.
    pub async fn nameless(&self, holder: &NodeName) -> Result<Vec<Entry>, NamesError> {
        let prefix = nameless_key(holder, "");
        let found = self.read_many::<NameRecord>(&prefix, None, LIST_MAX).await?;
        let entry = |seen: Seen<NameRecord>| Entry {
            name: seen.key[prefix.len()..].to_owned(),
            inode: seen.record.inode,
            kind: seen.record.kind,
        };
        Ok(found.into_iter().map(entry).collect())
    }

    /// Removes a nameless file that `holder` has closed; `None` where it is gone already.
    ///
    /// # Errors
    /// The registry is unreachable.
    pub async fn remove_nameless(
        &self,
        holder: &NodeName,
        inode: u64,
    ) -> Result<Option<Removed>, NamesError> {
        self.change(
            || format!("nameless file {inode:016x}"),
            async |_| {
                let key = nameless_key(holder, &format!("{inode:016x}"));
                let Some(seen) = self.read::<NameRecord>(key).await? else {
                    return Ok(Plan::done(None));
                };
                let mut changes = Changes::default();
                changes.remove(&seen);
                let InodeKind::File(volume) = seen.record.kind else {
                    return Ok(Plan {
                        changes,
                        outcome: None,
                    });
                };
                let removed = self.drop_file(&mut changes, inode, volume, Keep::Nothing).await?;
                Ok(Plan {
                    changes,
                    outcome: Some(removed),
                })
            },
        )
        .await
    }

    /// Plans that a file without a name goes, or becomes a nameless file.
    pub(super) async fn drop_file(
        &self,
        changes: &mut Changes,
        inode: u64,
        volume: VolumeId,
        keep: Keep<'_>,
    ) -> Result<Removed, NamesError> {
        if let Keep::Open { is_used, .. } = keep
            && is_used(volume)
        {
            return Err(NamesError::InUse { volume });
        }
        let of_volume = self.read::<VolumeRecord>(keys::volume(volume)).await?;
        if of_volume.is_some() {
            // After the look at the record: a clone that is made meanwhile rewrites it.
            self.refuse_cloned(volume, None, "volume").await?;
        }
        let record = self.read::<InodeRecord>(keys::inode(inode)).await?;
        if let (Keep::Open { holder, is_open, .. }, Some(mut seen)) = (keep, record.clone())
            && is_open(inode)
        {
            seen.record.parent = NAMELESS;
            seen.record.ctime_ns = self.now_ns();
            changes.replace(&seen);
            let key = nameless_key(holder, &format!("{inode:016x}"));
            changes.create(
                key,
                &NameRecord {
                    inode,
                    kind: InodeKind::File(volume),
                },
            );
            // A clone that is made meanwhile would keep it for ever.
            if let Some(of_volume) = of_volume {
                changes.hold(&of_volume);
            }
            return Ok(Removed {
                inode,
                volume,
                kept: true,
            });
        }
        // A record that is missing does not keep the rest from going.
        if let Some(seen) = record {
            changes.remove(&seen);
        }
        if let Some(mut seen) = of_volume {
            self.drop_origin(changes, &seen.record).await?;
            seen.record.phase = VolumePhase::Deleting;
            changes.replace(&seen);
        }
        Ok(Removed {
            inode,
            volume,
            kept: false,
        })
    }

    /// Plans that a directory goes, if it is empty.
    pub(super) async fn drop_directory(
        &self,
        changes: &mut Changes,
        inode: u64,
        at: impl Fn() -> String,
    ) -> Result<(), NamesError> {
        // The directory's record before its entries: one that is made after this look rewrites the record, and
        // the commit conflicts.
        let record = self.read::<InodeRecord>(keys::inode(inode)).await?;
        if !self.list(inode, None, 1).await?.is_empty() {
            return Err(NamesError::NotEmpty { at: at() });
        }
        if let Some(seen) = record {
            changes.remove(&seen);
        }
        Ok(())
    }
}

/// Whether an earlier attempt, whose answer was lost, removed the file: its name is gone or another's.
fn done_before(
    attempt: Attempt,
    tried: Option<Removed>,
    found: Option<&Seen<NameRecord>>,
) -> Option<Removed> {
    let still = found.map(|seen| seen.record.inode);
    tried.filter(|tried| attempt.unsure && still != Some(tried.inode))
}

fn nameless_key(holder: &NodeName, inode: &str) -> String {
    keys::name(NAMELESS, &format!("{holder}:{inode}"))
}
