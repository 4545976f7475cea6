//! Keeps: why a change or a look-up in the tree did not happen, in words for people.
//! Order, crash: nothing; errors are values.
//! Knows no errno: a front end picks its own.

use sconce_schemas::{DecodeError, SnapshotId, VolumeId};

use super::path::PathError;

/// Why the tree could not be read or changed. `at` is the path, or the name and its directory's inode.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NamesError {
    /// A path or name that breaks the rules.
    #[error(transparent)]
    Path(#[from] PathError),
    /// No such file or directory.
    #[error("{at} does not exist")]
    NotFound {
        /// What was looked for.
        at: String,
    },
    /// The name is taken.
    #[error("{at} exists already")]
    Exists {
        /// The name.
        at: String,
    },
    /// A file where a directory is needed.
    #[error("{at} is a file, not a directory")]
    NotDirectory {
        /// The file.
        at: String,
    },
    /// A directory where a file is needed.
    #[error("{at} is a directory, not a file")]
    IsDirectory {
        /// The directory.
        at: String,
    },
    /// A directory that is to be removed or replaced has entries.
    #[error("directory {at} is not empty")]
    NotEmpty {
        /// The directory.
        at: String,
    },
    /// A directory would become its own ancestor.
    #[error("directory {at} cannot be moved into itself")]
    Cycle {
        /// The directory.
        at: String,
    },
    /// The directory is so deep that nothing can be put in.
    #[error(
        "{at} would be deeper than the {} levels that a path can have",
        super::path::DEPTH_MAX
    )]
    Deep {
        /// The name.
        at: String,
    },
    /// No storage pool of that name, or none that stands out.
    #[error("there is no storage pool {wanted}; the pools are: {known}")]
    NoPool {
        /// The pool that was asked for.
        wanted: String,
        /// The pools that exist.
        known: String,
    },
    /// No back end of that name.
    #[error("there is no back end {wanted}; the back ends are: {known}")]
    NoBackend {
        /// The back end that was asked for.
        wanted: String,
        /// The back ends that exist.
        known: String,
    },
    /// Volumes are in a pool that is to be removed.
    #[error("pool {pool} is in use: {volumes}")]
    PoolInUse {
        /// The pool.
        pool: String,
        /// What is in it.
        volumes: String,
    },
    /// Pools use a back end that is to be removed.
    #[error("back end {backend} is in use by: {pools}")]
    BackendInUse {
        /// The back end.
        backend: String,
        /// The pools.
        pools: String,
    },
    /// Nobody can own a new volume.
    #[error("no volume-router is running that could own a volume; start one (`make up`) and try again")]
    NoVolumeRouter,
    /// The volume-router that was asked for does not run.
    #[error("volume-router {name} is not running; those that are: {known}")]
    UnknownOwner {
        /// The one that was asked for.
        name: String,
        /// Those that run.
        known: String,
    },
    /// A record that does not decode.
    #[error("the registry's record {key} is damaged: {cause}")]
    Damaged {
        /// The record's key.
        key: String,
        /// What is wrong with it.
        cause: DecodeError,
    },
    /// Records that contradict each other.
    #[error("the registry contradicts itself at {at}: {what}; `sconce recover` writes the names anew")]
    Contradiction {
        /// Where.
        at: String,
        /// What does not fit.
        what: &'static str,
    },
    /// Others changed the same place again and again.
    #[error("{at} is being changed by others all the time; gave up after {attempts} attempts, try again")]
    Busy {
        /// Where.
        at: String,
        /// How often it was tried.
        attempts: u32,
    },
    /// A client uses the volume by another way than its file.
    #[error("an NBD client uses volume {volume}; disconnect it first")]
    InUse {
        /// The volume.
        volume: VolumeId,
    },
    /// Clones depend on it.
    #[error("the {what} has clones that depend on it: {clones}; delete them first")]
    Cloned {
        /// `volume` or `snapshot`.
        what: &'static str,
        /// Their paths.
        clones: String,
    },
    /// A snapshot that is to be cloned is being removed.
    #[error("snapshot {snapshot} is being removed; if that was cut short, delete it again")]
    BeingRemoved {
        /// The snapshot.
        snapshot: SnapshotId,
    },
    /// The owner told of a snapshot that is to be cloned before the last removal of one was over: it may be gone.
    #[error("snapshots of volume {volume} were removed meanwhile; look again which there are")]
    SnapshotsRemoved {
        /// The volume.
        volume: VolumeId,
    },
    /// The registry does not answer.
    #[error("{cause}")]
    Unavailable {
        /// What the registry's client said.
        cause: String,
    },
}

impl NamesError {
    /// The same error with `path` as the place, where it was a name in a directory known by its inode.
    #[must_use]
    pub(super) fn placed(mut self, path: &super::PoolPath) -> Self {
        if let NamesError::NotFound { at }
        | NamesError::Exists { at }
        | NamesError::NotDirectory { at }
        | NamesError::IsDirectory { at }
        | NamesError::NotEmpty { at }
        | NamesError::Deep { at }
        | NamesError::Busy { at, .. } = &mut self
        {
            *at = path.to_string();
        }
        self
    }
}

/// How a name in a directory that is known by its inode is written in errors.
pub(super) fn place(parent: u64, name: &str) -> String {
    format!("{name:?} in directory {parent:016x}")
}
