//! Which objects' folders are known to be durable, so that a put syncs one directory and not three.
//!
//! Keeps: `(volume, kind)` pairs whose folders, and the names of these folders, have been synced.
//! Order: a pair is noted after the syncs and forgotten before its folder is removed, under one lock.
//! Crash: the knowledge is gone; the first put into each folder syncs it again.
//! Knows no objects. A folder that another process removes at the same moment is not its business: the names
//! that this process links are synced in the folder that it finds.

use std::collections::HashSet;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use sconce_schemas::object::ObjectKind;
use sconce_schemas::{ObjectName, VolumeId};

use super::root::{make_dir, sync_dir};

/// 2 MiB of memory; beyond it the set starts anew, at the cost of syncs.
const KNOWN_MAX: usize = 65_536;

#[derive(Debug, Default)]
pub(super) struct DurableDirs {
    known: Mutex<HashSet<(VolumeId, ObjectKind)>>,
}

impl DurableDirs {
    /// Makes the folder that holds `name`; a put that finds it missing calls this and tries again.
    pub(super) fn make(&self, root: &Path, name: ObjectName) -> io::Result<()> {
        let mut known = self.lock();
        known.remove(&key(name));
        make_dir(&root.join(name.volume().to_string()))?;
        make_dir(&folder(root, name))
    }

    /// Makes the name that was just linked durable: syncs its folder, and those above unless that is known. `NotFound`
    /// where a folder is not there any longer.
    pub(super) fn sync(&self, root: &Path, name: ObjectName) -> io::Result<()> {
        let kind_dir = folder(root, name);
        sync_dir(&kind_dir)?;
        let mut known = self.lock();
        if known.contains(&key(name)) {
            return Ok(());
        }
        // Under the lock, so that nobody takes the folder for durable before it is, or removes it meanwhile.
        let above = [kind_dir.as_path(), &root.join(name.volume().to_string()), root];
        above.into_iter().try_for_each(sync_dir)?;
        if known.len() >= KNOWN_MAX {
            known.clear();
        }
        known.insert(key(name));
        Ok(())
    }

    /// Removes the folders that held `name` if nothing is left in them.
    pub(super) fn remove_if_empty(&self, root: &Path, name: ObjectName) -> io::Result<()> {
        let kind_dir = folder(root, name);
        if !is_empty(&kind_dir)? {
            return Ok(());
        }
        let mut known = self.lock();
        known.remove(&key(name));
        for dir in [&kind_dir, &root.join(name.volume().to_string())] {
            match fs::remove_dir(dir).map_err(|error| (error.kind(), error)) {
                Ok(()) | Err((ErrorKind::NotFound, _)) => {}
                Err((ErrorKind::DirectoryNotEmpty, _)) => break,
                Err((_, error)) => return Err(error),
            }
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<(VolumeId, ObjectKind)>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The folder that holds an object.
pub(super) fn folder(root: &Path, name: ObjectName) -> std::path::PathBuf {
    root.join(name.volume().to_string()).join(name.kind().as_str())
}

fn key(name: ObjectName) -> (VolumeId, ObjectKind) {
    (name.volume(), name.kind())
}

fn is_empty(dir: &Path) -> io::Result<bool> {
    match fs::read_dir(dir) {
        Ok(mut entries) => Ok(entries.next().is_none()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}
