//! Keeps: moves of files and directories, as POSIX `rename` has them.
//! Order, crash: both names, the inode, both directories and what was replaced are one commit; a directory's move is
//! also conditional on every directory above its new place, so that two moves can never make a circle.
//! Knows no open files: its caller says which are.

use sconce_schemas::records::{InodeKind, NameRecord, keys};

use super::changes::{Attempt, Changes, Plan, Seen};
use super::create::touch;
use super::error::place;
use super::path::{DEPTH_MAX, check_name};
use super::{Keep, Names, NamesError, PoolPath, Removed};

/// What happens to an entry that has the new name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replace {
    /// A file is replaced by a file, an empty directory by a directory.
    Yes,
    /// The move is refused.
    No,
}

/// A move that happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Renamed {
    /// The inode that was moved.
    pub inode: u64,
    /// What it is.
    pub kind: InodeKind,
    /// The file that had the new name before.
    pub replaced: Option<Removed>,
}

/// One end of a move: a directory and a name in it.
type End<'a> = (u64, &'a str);

impl Names {
    /// Moves what is at `from` to `to`.
    ///
    /// # Errors
    /// As [`Names::rename`].
    pub async fn rename_path(
        &self,
        from: &PoolPath,
        to: &PoolPath,
        replace: Replace,
    ) -> Result<Renamed, NamesError> {
        let ((from_parent, from_name), (to_parent, to_name)) = (from.split()?, to.split()?);
        let from_end = (self.resolve_directory(&from_parent).await?, from_name);
        let to_end = (self.resolve_directory(&to_parent).await?, to_name);
        self.rename(from_end, to_end, replace, Keep::Nothing)
            .await
            .map_err(|error| match error {
                error @ NamesError::NotFound { .. } => error.placed(from),
                error => error.placed(to),
            })
    }

    /// Moves the entry `from` (directory, name) to `to`.
    ///
    /// # Errors
    /// There is no such entry or directory; the new name is wrong, taken by what must not or cannot be replaced, in
    /// the moved directory itself, or too deep; the registry is unreachable.
    pub async fn rename(
        &self,
        from: End<'_>,
        to: End<'_>,
        replace: Replace,
        keep: Keep<'_>,
    ) -> Result<Renamed, NamesError> {
        check_name(to.1)?;
        let mut tried: Option<Renamed> = None;
        self.change(
            || place(to.0, to.1),
            async |attempt| {
                let source = self.name(from.0, from.1).await?;
                let target = self.name(to.0, to.1).await?;
                if let Some(done) = done_before(attempt, tried, source.as_ref(), target.as_ref()) {
                    return Ok(Plan::done(done));
                }
                let source = source.ok_or_else(|| NamesError::NotFound {
                    at: place(from.0, from.1),
                })?;
                let plan = self.plan_move(from, to, source, target, replace, keep).await?;
                tried = Some(plan.outcome);
                Ok(plan)
            },
        )
        .await
    }

    async fn plan_move(
        &self,
        from: End<'_>,
        to: End<'_>,
        source: Seen<NameRecord>,
        target: Option<Seen<NameRecord>>,
        replace: Replace,
        keep: Keep<'_>,
    ) -> Result<Plan<Renamed>, NamesError> {
        let NameRecord { inode, kind } = source.record;
        let mut outcome = Renamed {
            inode,
            kind,
            replaced: None,
        };
        if from == to {
            return Ok(Plan::done(outcome));
        }
        if target.is_some() && replace == Replace::No {
            return Err(NamesError::Exists {
                at: place(to.0, to.1),
            });
        }
        let now = self.now_ns();
        let mut changes = Changes::default();
        let moves_up_or_down = from.0 != to.0;
        touch(&mut changes, self.directory(from.0).await?, now);
        if moves_up_or_down {
            touch(&mut changes, self.directory(to.0).await?, now);
        }
        if moves_up_or_down && kind == InodeKind::Directory {
            self.forbid_circle(&mut changes, inode, to).await?;
        }
        changes.remove(&source);
        match target {
            None => changes.create(keys::name(to.0, to.1), &source.record),
            Some(mut seen) => {
                outcome.replaced = self
                    .plan_replacement(&mut changes, kind, seen.record, to, keep)
                    .await?;
                seen.record = source.record;
                changes.replace(&seen);
            }
        }
        let mut moved = self.inode(inode).await?;
        moved.record.parent = to.0;
        moved.record.name = to.1.to_owned();
        moved.record.ctime_ns = now;
        changes.replace(&moved);
        Ok(Plan { changes, outcome })
    }

    /// Plans that what has the new name goes.
    async fn plan_replacement(
        &self,
        changes: &mut Changes,
        kind: InodeKind,
        target: NameRecord,
        to: End<'_>,
        keep: Keep<'_>,
    ) -> Result<Option<Removed>, NamesError> {
        let at = || place(to.0, to.1);
        match (kind, target.kind) {
            (InodeKind::Directory, InodeKind::Directory) => {
                self.drop_directory(changes, target.inode, at).await?;
                Ok(None)
            }
            (InodeKind::File(_), InodeKind::File(volume)) => {
                Ok(Some(self.drop_file(changes, target.inode, volume, keep).await?))
            }
            (InodeKind::Directory, InodeKind::File(_)) => Err(NamesError::NotDirectory { at: at() }),
            (InodeKind::File(_), InodeKind::Directory) => Err(NamesError::IsDirectory { at: at() }),
        }
    }

    /// Refuses a directory's move below itself, and makes the commit conditional on all that this look rests on.
    async fn forbid_circle(&self, changes: &mut Changes, moved: u64, to: End<'_>) -> Result<(), NamesError> {
        let above = self.ancestors(to.0).await?;
        if above.iter().any(|(inode, _)| *inode == moved) {
            return Err(NamesError::Cycle {
                at: place(to.0, to.1),
            });
        }
        if above.len() >= DEPTH_MAX {
            return Err(NamesError::Deep {
                at: place(to.0, to.1),
            });
        }
        above.iter().for_each(|(_, seen)| changes.hold(seen));
        Ok(())
    }
}

/// Whether an earlier attempt, whose answer was lost, made the move: the entry has left its old name for the new.
fn done_before(
    attempt: Attempt,
    tried: Option<Renamed>,
    source: Option<&Seen<NameRecord>>,
    target: Option<&Seen<NameRecord>>,
) -> Option<Renamed> {
    let inode = |seen: Option<&Seen<NameRecord>>| seen.map(|seen| seen.record.inode);
    tried.filter(|tried| {
        attempt.unsure && inode(source) != Some(tried.inode) && inode(target) == Some(tried.inode)
    })
}
