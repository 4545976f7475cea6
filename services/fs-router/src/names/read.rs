//! Keeps: look-ups: from paths to inodes, from inodes to paths, what is in a directory.
//! Order: a look-up reads one record after the other; a path that was moved meanwhile is found where it was or is.
//! Crash: nothing is written.
//! Knows no change.

use sconce_schemas::VolumeId;
use sconce_schemas::records::{InodeKind, InodeRecord, NameRecord, ROOT_INODE, VolumeRecord, keys};
use sconce_schemas::wire::registry::Revision;

use super::changes::Seen;
use super::error::place;
use super::{Entry, LIST_MAX, Names, NamesError, PoolPath, Resolved};

/// Levels that a walk up goes at most: more than moves of deep trees into deep directories can reach, so that
/// damaged records that form a circle end it.
const WALK_MAX: usize = 1024;

/// How often a path is looked up again when it changes while it is read.
const PATH_ATTEMPTS_MAX: usize = 8;

impl Names {
    /// What is at `path`: its inode and kind.
    ///
    /// # Errors
    /// A component is missing or is no directory; the registry is unreachable.
    pub async fn find(&self, path: &PoolPath) -> Result<(u64, InodeKind), NamesError> {
        let mut found = (ROOT_INODE, InodeKind::Directory);
        for name in path.components() {
            if found.1 != InodeKind::Directory {
                return Err(NamesError::NotDirectory { at: path.to_string() });
            }
            let next = self.name(found.0, name).await?;
            let next = next.ok_or_else(|| NamesError::NotFound { at: path.to_string() })?;
            found = (next.record.inode, next.record.kind);
        }
        Ok(found)
    }

    /// The file at `path`.
    ///
    /// # Errors
    /// As [`Names::find`]; a directory.
    pub async fn resolve(&self, path: &PoolPath) -> Result<Resolved, NamesError> {
        match self.find(path).await? {
            (inode, InodeKind::File(volume)) => Ok(Resolved {
                inode,
                volume,
                path: path.clone(),
            }),
            (_, InodeKind::Directory) => Err(NamesError::IsDirectory { at: path.to_string() }),
        }
    }

    /// The directory at `path`.
    ///
    /// # Errors
    /// As [`Names::find`]; a file.
    pub async fn resolve_directory(&self, path: &PoolPath) -> Result<u64, NamesError> {
        match self.find(path).await? {
            (inode, InodeKind::Directory) => Ok(inode),
            (_, InodeKind::File(_)) => Err(NamesError::NotDirectory { at: path.to_string() }),
        }
    }

    /// What `name` in the directory `parent` is.
    ///
    /// # Errors
    /// It does not exist; the registry is unreachable.
    pub async fn lookup(&self, parent: u64, name: &str) -> Result<Entry, NamesError> {
        let found = self.name(parent, name).await?;
        let found = found.ok_or_else(|| NamesError::NotFound {
            at: place(parent, name),
        })?;
        Ok(Entry {
            name: name.to_owned(),
            inode: found.record.inode,
            kind: found.record.kind,
        })
    }

    /// Names in the directory `parent`, sorted by bytes, those after `after`, at most `limit` (1 to [`LIST_MAX`]).
    /// Fewer than `limit`: there are no more.
    ///
    /// # Errors
    /// The registry is unreachable. A directory that does not exist is empty.
    pub async fn list(
        &self,
        parent: u64,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Entry>, NamesError> {
        let prefix = keys::names_in(parent);
        let after = after.map(|name| keys::name(parent, name));
        let limit = limit.clamp(1, LIST_MAX);
        let names = self
            .read_many::<NameRecord>(&prefix, after.as_deref(), limit)
            .await?;
        let entry = |seen: Seen<NameRecord>| Entry {
            name: seen.key[prefix.len()..].to_owned(),
            inode: seen.record.inode,
            kind: seen.record.kind,
        };
        Ok(names.into_iter().map(entry).collect())
    }

    /// All files below the directory `top`, directory by directory, at most `limit`.
    ///
    /// # Errors
    /// `top` does not exist or is a file; the registry is unreachable.
    pub async fn files(&self, top: &PoolPath, limit: usize) -> Result<Vec<Resolved>, NamesError> {
        let mut files = Vec::new();
        let mut directories = vec![(top.clone(), self.resolve_directory(top).await?)];
        while let Some((path, directory)) = directories.pop() {
            let mut after: Option<String> = None;
            loop {
                let page = self.list(directory, after.as_deref(), LIST_MAX).await?;
                let last = page.len() < LIST_MAX;
                after = page.last().map(|entry| entry.name.clone());
                for entry in page {
                    let path = path.join(&entry.name)?;
                    match entry.kind {
                        InodeKind::Directory => directories.push((path, entry.inode)),
                        InodeKind::File(_) if files.len() == limit => return Ok(files),
                        InodeKind::File(volume) => {
                            files.push(Resolved {
                                inode: entry.inode,
                                volume,
                                path,
                            });
                        }
                    }
                }
                if last {
                    break;
                }
            }
        }
        Ok(files)
    }

    /// The record of an inode: its kind and attributes.
    ///
    /// # Errors
    /// It does not exist; the registry is unreachable.
    pub async fn attributes(&self, inode: u64) -> Result<InodeRecord, NamesError> {
        Ok(self.inode(inode).await?.record)
    }

    /// The path of an inode.
    ///
    /// # Errors
    /// It does not exist, or has no name any more; it is moved again and again while it is looked up.
    pub async fn path_of(&self, inode: u64) -> Result<PoolPath, NamesError> {
        for _ in 0..PATH_ATTEMPTS_MAX {
            let path = self.walk_up(inode).await?;
            // The walk reads one directory after the other: a move meanwhile can give a path that never was.
            match self.find(&path).await {
                Ok((found, _)) if found == inode => return Ok(path),
                Ok(_) | Err(NamesError::NotFound { .. } | NamesError::NotDirectory { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Err(NamesError::Contradiction {
            at: format!("inode {inode:016x}"),
            what: "its name does not lead back to it",
        })
    }

    /// A volume's record.
    ///
    /// # Errors
    /// It does not exist; the registry is unreachable.
    pub async fn volume(&self, id: VolumeId) -> Result<VolumeRecord, NamesError> {
        let found = self.read(keys::volume(id)).await?;
        let found = found.ok_or_else(|| NamesError::NotFound {
            at: format!("volume {id}"),
        })?;
        Ok(found.record)
    }

    /// Volume records, sorted by id, those after `after`, at most `limit` (1 to [`LIST_MAX`]).
    ///
    /// # Errors
    /// The registry is unreachable.
    pub async fn volumes(
        &self,
        after: Option<VolumeId>,
        limit: usize,
    ) -> Result<Vec<VolumeRecord>, NamesError> {
        let after = after.map(keys::volume);
        let limit = limit.clamp(1, LIST_MAX);
        let found = self
            .read_many::<VolumeRecord>(keys::VOLUMES, after.as_deref(), limit)
            .await?;
        Ok(found.into_iter().map(|seen| seen.record).collect())
    }

    async fn walk_up(&self, inode: u64) -> Result<PoolPath, NamesError> {
        let mut names = Vec::new();
        let mut at = inode;
        while at != ROOT_INODE {
            let record = self.inode(at).await?.record;
            if record.parent == super::remove::NAMELESS || names.len() == WALK_MAX {
                return Err(NamesError::NotFound {
                    at: format!("a path of inode {inode:016x}"),
                });
            }
            names.push(record.name);
            at = record.parent;
        }
        names
            .iter()
            .rev()
            .try_fold(PoolPath::root(), |path, name| Ok(path.join(name)?))
    }

    /// The directories from `directory` up to the root, the root left out (it can neither move nor go).
    pub(super) async fn ancestors(
        &self,
        directory: u64,
    ) -> Result<Vec<(u64, Seen<InodeRecord>)>, NamesError> {
        let mut ancestors = Vec::new();
        let mut at = directory;
        while at != ROOT_INODE && ancestors.len() < WALK_MAX {
            let seen = self.inode(at).await?;
            let parent = seen.record.parent;
            ancestors.push((at, seen));
            at = parent;
        }
        Ok(ancestors)
    }

    pub(super) async fn name(&self, parent: u64, name: &str) -> Result<Option<Seen<NameRecord>>, NamesError> {
        self.read(keys::name(parent, name)).await
    }

    /// An inode's record; the root's is made up as long as nothing has been written to it.
    pub(super) async fn inode(&self, inode: u64) -> Result<Seen<InodeRecord>, NamesError> {
        let key = keys::inode(inode);
        match self.read(key.clone()).await? {
            Some(seen) => Ok(seen),
            None if inode == ROOT_INODE => Ok(Seen {
                key,
                revision: Revision(0),
                record: root_record(),
            }),
            None => Err(NamesError::NotFound {
                at: format!("inode {inode:016x}"),
            }),
        }
    }

    /// A directory's record.
    pub(super) async fn directory(&self, inode: u64) -> Result<Seen<InodeRecord>, NamesError> {
        let seen = self.inode(inode).await?;
        match seen.record.kind {
            InodeKind::Directory => Ok(seen),
            InodeKind::File(_) => Err(NamesError::NotDirectory {
                at: format!("inode {inode:016x}"),
            }),
        }
    }
}

fn root_record() -> InodeRecord {
    InodeRecord {
        kind: InodeKind::Directory,
        parent: ROOT_INODE,
        name: String::new(),
        mode: 0o755,
        uid: 0,
        gid: 0,
        mtime_ns: 0,
        ctime_ns: 0,
    }
}
