//! Keeps: the pool's tree of directories and files as records in the registry; a file is a volume.
//! Order: each change is one commit of all its records, each against the revision that was read; it is tried again
//! when another change came first. A change of a directory's entries always rewrites the directory's own record,
//! so that two changes that exclude each other (an entry made, its directory removed) cannot both commit.
//! Crash: a change happened whole or not at all.
//! Knows no front end, no volume's data.

mod attributes;
mod changes;
mod clones;
mod create;
mod error;
mod gone;
mod nodes;
mod path;
mod placement;
mod pools;
mod read;
mod removals;
mod remove;
mod rename;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sconce_registry::Registry;
use sconce_runtime::{Chance, Clock};
use sconce_schemas::VolumeId;
use sconce_schemas::records::InodeKind;

pub use attributes::SetAttributes;
pub use clones::Snapshot;
pub use create::{NewEntry, NewVolume};
pub use error::NamesError;
pub use gone::{KnownVolumes, NamelessFile};
pub use path::{DEPTH_MAX, NAME_BYTES_MAX, PathError, PoolPath, SnapshotPath, check_name};
pub use removals::Removal;
pub use remove::{Keep, Removed};
pub use rename::{Renamed, Replace};

/// How long an unreachable registry is waited for before a call fails, unless [`Names::patient`] says otherwise.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// Most entries of one [`Names::list`].
pub const LIST_MAX: usize = 1000;

/// The pool's tree. A handle: clones share one registry connection.
#[derive(Clone)]
pub struct Names {
    registry: Registry,
    clock: Clock,
    chance: Arc<Mutex<Chance>>,
    patience: Duration,
}

/// A file that a path led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// Its inode.
    pub inode: u64,
    /// Its volume.
    pub volume: VolumeId,
    /// Its path.
    pub path: PoolPath,
}

/// A name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The name.
    pub name: String,
    /// The inode that it names.
    pub inode: u64,
    /// What that is.
    pub kind: InodeKind,
}

impl Names {
    /// The tree that `registry` holds.
    #[must_use]
    pub fn new(registry: Registry, clock: Clock, chance: Chance) -> Self {
        Self {
            registry,
            clock,
            chance: Arc::new(Mutex::new(chance)),
            patience: PATIENCE,
        }
    }

    /// The same tree, its calls waiting up to `patience` for a registry that does not answer.
    #[must_use]
    pub fn patient(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// The registry that holds the tree.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    fn now_ns(&self) -> i64 {
        i64::try_from(self.clock.unix_micros().saturating_mul(1000)).unwrap_or(i64::MAX)
    }

    fn random(&self) -> u64 {
        self.chance.lock().unwrap_or_else(PoisonError::into_inner).u64()
    }

    /// An inode number that hardly anyone can have: 63 random bits (front ends store it as a signed number), never
    /// one of the reserved few. That nobody has it is checked by the commit that makes the inode.
    fn random_inode(&self) -> u64 {
        loop {
            let inode = self.random() >> 1;
            if inode > remove::RESERVED_INODES {
                return inode;
            }
        }
    }

    fn random_volume(&self) -> VolumeId {
        let mut chance = self.chance.lock().unwrap_or_else(PoisonError::into_inner);
        VolumeId::from_u128(chance.u128())
    }
}
