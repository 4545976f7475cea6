//! Keeps: how files (with their volumes) and directories come to be.
//! Order, crash: name, inode, volume and the directory's own record are one commit.
//! Knows no volume's data: an owner finds its new volume in the registry.

use sconce_schemas::records::{DtlMode, InodeKind, InodeRecord, NameRecord, ROOT_INODE, VolumeRecord, keys};
use sconce_schemas::{NodeName, ScoSize, VolumeId, VolumeSize};
use sconce_tracing::Span;

use super::changes::{Changes, Plan, Seen};
use super::error::place;
use super::path::{DEPTH_MAX, check_name};
use super::{Names, NamesError, PoolPath, Resolved};

/// Attributes of a new file or directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewEntry {
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

impl NewEntry {
    /// A file of root that its owner alone can use: what the command line makes.
    pub const FILE: NewEntry = NewEntry {
        mode: 0o600,
        uid: 0,
        gid: 0,
    };
    /// A directory of root.
    pub const DIRECTORY: NewEntry = NewEntry {
        mode: 0o755,
        uid: 0,
        gid: 0,
    };
}

/// A volume that is to be made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewVolume {
    /// Its size.
    pub size: VolumeSize,
    /// Clusters of its SCOs.
    pub sco_size: ScoSize,
    /// Its storage pool; `None`: the one named `default`, or the only one.
    pub pool: Option<String>,
    /// Its owner; `None`: the running volume-router with the fewest volumes.
    pub owner: Option<NodeName>,
    /// What a twin of its write buffer is waited for.
    pub dtl: DtlMode,
}

impl Names {
    /// Makes a volume and its file at `path`; with `parents`, the directories that are missing too.
    ///
    /// # Errors
    /// The path is taken, its directory missing or a file; no such pool or owner; the registry is unreachable.
    pub async fn create_volume(
        &self,
        path: &PoolPath,
        volume: &NewVolume,
        entry: NewEntry,
        parents: bool,
    ) -> Result<Resolved, NamesError> {
        let (parent, name) = path.split()?;
        let parent = match parents {
            true => self.make_directories(&parent).await?,
            false => self.resolve_directory(&parent).await?,
        };
        let (inode, volume) = self
            .create_file(parent, name, volume, entry)
            .await
            .map_err(|error| error.placed(path))?;
        Ok(Resolved {
            inode,
            volume,
            path: path.clone(),
        })
    }

    /// Makes the directory at `path` and those above it that are missing, and answers its inode.
    ///
    /// # Errors
    /// One of them is a file; the registry is unreachable.
    pub async fn make_directories(&self, path: &PoolPath) -> Result<u64, NamesError> {
        let mut directory = ROOT_INODE;
        let mut at = PoolPath::root();
        for name in path.components() {
            at = at.join(name)?;
            let found = match self.lookup(directory, name).await {
                Ok(entry) => (entry.inode, entry.kind),
                Err(NamesError::NotFound { .. }) => self.make_or_find(directory, name, &at).await?,
                Err(error) => return Err(error),
            };
            directory = match found {
                (inode, InodeKind::Directory) => inode,
                (_, InodeKind::File(_)) => return Err(NamesError::NotDirectory { at: at.to_string() }),
            };
        }
        Ok(directory)
    }

    /// Makes a directory, or finds the one that somebody else made first.
    async fn make_or_find(
        &self,
        parent: u64,
        name: &str,
        at: &PoolPath,
    ) -> Result<(u64, InodeKind), NamesError> {
        match self.make_directory(parent, name, NewEntry::DIRECTORY).await {
            Ok(inode) => Ok((inode, InodeKind::Directory)),
            Err(NamesError::Exists { .. }) => {
                let entry = self
                    .lookup(parent, name)
                    .await
                    .map_err(|error| error.placed(at))?;
                Ok((entry.inode, entry.kind))
            }
            Err(error) => Err(error.placed(at)),
        }
    }

    /// Makes a directory in the directory `parent` and answers its inode.
    ///
    /// # Errors
    /// The name is wrong or taken, the directory gone or too deep; the registry is unreachable.
    pub async fn make_directory(&self, parent: u64, name: &str, entry: NewEntry) -> Result<u64, NamesError> {
        check_name(name)?;
        if self.ancestors(parent).await?.len() >= DEPTH_MAX {
            return Err(NamesError::Deep {
                at: place(parent, name),
            });
        }
        let mut inode = self.random_inode();
        self.change(
            || place(parent, name),
            async |attempt| {
                match self.name(parent, name).await? {
                    Some(seen) if attempt.unsure && seen.record.inode == inode => {
                        return Ok(Plan::done(inode));
                    }
                    Some(_) => {
                        return Err(NamesError::Exists {
                            at: place(parent, name),
                        });
                    }
                    None if attempt.unsure => {}
                    None => inode = self.random_inode(),
                }
                let mut changes = Changes::default();
                self.add_entry(&mut changes, parent, name, inode, InodeKind::Directory, entry)
                    .await?;
                Ok(Plan {
                    changes,
                    outcome: inode,
                })
            },
        )
        .await
    }

    /// Makes a volume and its file in the directory `parent`, and answers the inode and the volume.
    ///
    /// # Errors
    /// The name is wrong or taken, the directory gone; no such pool or owner; the registry is unreachable.
    pub async fn create_file(
        &self,
        parent: u64,
        name: &str,
        new: &NewVolume,
        entry: NewEntry,
    ) -> Result<(u64, VolumeId), NamesError> {
        check_name(name)?;
        let pool = self.choose_pool(new.pool.as_deref()).await?;
        let owner = self.choose_owner(new.owner.as_ref()).await?;
        let mut record = self.fresh_record(new.size, new.sco_size, pool, owner);
        record.dtl_mode = new.dtl;
        record.dtl_state = new.dtl.without_twin();
        let id = record.id;
        let added = self.add_file(parent, name, record, entry, None);
        let inode = Span::control("volume.create").scope(added).await?;
        Ok((inode, id))
    }

    /// The record of a volume that nobody has owned yet.
    pub(super) fn fresh_record(
        &self,
        size: VolumeSize,
        sco_size: ScoSize,
        pool: String,
        owner: NodeName,
    ) -> VolumeRecord {
        VolumeRecord::unowned(self.random_volume(), size, sco_size, pool, owner)
    }

    /// Gives a volume that exists on the back ends a file at `path` and its record; directories that are missing are
    /// made. The record's inode is chosen here.
    ///
    /// # Errors
    /// The path is taken, or one of its directories is a file; the registry is unreachable.
    pub async fn adopt(
        &self,
        path: &PoolPath,
        record: VolumeRecord,
        entry: NewEntry,
    ) -> Result<Resolved, NamesError> {
        let (parent, name) = path.split()?;
        let parent = self.make_directories(&parent).await?;
        let volume = record.id;
        let added = self.add_file(parent, name, record, entry, None).await;
        let inode = added.map_err(|error| error.placed(path))?;
        Ok(Resolved {
            inode,
            volume,
            path: path.clone(),
        })
    }

    pub(super) async fn add_file(
        &self,
        parent: u64,
        name: &str,
        mut record: VolumeRecord,
        entry: NewEntry,
        removals: Option<u64>,
    ) -> Result<u64, NamesError> {
        record.inode = self.random_inode();
        self.change(
            || place(parent, name),
            async |attempt| {
                match self.name(parent, name).await? {
                    Some(seen) if attempt.unsure && seen.record.inode == record.inode => {
                        return Ok(Plan::done(record.inode));
                    }
                    Some(_) => {
                        return Err(NamesError::Exists {
                            at: place(parent, name),
                        });
                    }
                    None if attempt.unsure => {}
                    None => record.inode = self.random_inode(),
                }
                let mut changes = Changes::default();
                let kind = InodeKind::File(record.id);
                self.add_entry(&mut changes, parent, name, record.inode, kind, entry)
                    .await?;
                self.hold_pool(&mut changes, &record.pool).await?;
                changes.create(keys::volume(record.id), &record);
                self.plan_origin(&mut changes, &record, removals).await?;
                Ok(Plan {
                    changes,
                    outcome: record.inode,
                })
            },
        )
        .await
    }

    async fn add_entry(
        &self,
        changes: &mut Changes,
        parent: u64,
        name: &str,
        inode: u64,
        kind: InodeKind,
        entry: NewEntry,
    ) -> Result<(), NamesError> {
        let now = self.now_ns();
        let directory = self.directory(parent).await?;
        touch(changes, directory, now);
        changes.create(keys::name(parent, name), &NameRecord { inode, kind });
        let record = InodeRecord {
            kind,
            parent,
            name: name.to_owned(),
            mode: entry.mode & 0o7777,
            uid: entry.uid,
            gid: entry.gid,
            mtime_ns: now,
            ctime_ns: now,
        };
        changes.create(keys::inode(inode), &record);
        Ok(())
    }
}

/// Notes in a directory's record that its entries changed: what excludes its removal at the same time.
pub(super) fn touch(changes: &mut Changes, mut directory: Seen<InodeRecord>, now_ns: i64) {
    directory.record.mtime_ns = now_ns;
    directory.record.ctime_ns = now_ns;
    changes.replace(&directory);
}
