//! Keeps: what the FUSE front end needs of volumes, as one trait: the routing core behind it in a service, volumes in
//! memory in tests.
//! Order, crash: as the routing core says: operations are held through a restart of the owner, not failed.
//! Knows no file.

use sconce_schemas::wire::Refusal;
use sconce_schemas::{SnapshotId, VolumeId};

use crate::routing::{Opened, Operation, Outcome};

/// Size and space of a volume, as its owner has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Size in bytes.
    pub size: u64,
    /// Bytes of clusters that are mapped; `None` where only the size is known.
    pub allocated: Option<u64>,
}

/// What the content of a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Source {
    /// A volume,
    pub volume: VolumeId,
    /// or a snapshot of it.
    pub snapshot: Option<SnapshotId>,
}

impl From<VolumeId> for Source {
    fn from(volume: VolumeId) -> Self {
        Self {
            volume,
            snapshot: None,
        }
    }
}

/// A snapshot, as its volume's owner has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Which it is.
    pub id: SnapshotId,
    /// Its name.
    pub name: String,
    /// When it was taken, in microseconds since 1970.
    pub created_us: u64,
    /// Size of the volume then, in bytes.
    pub size: u64,
    /// Bytes of clusters that were mapped then.
    pub allocated: u64,
}

/// Space of the pool's back ends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Space {
    /// Bytes that volumes can take in all.
    pub capacity: u64,
    /// Bytes that are left.
    pub free: u64,
}

/// What an owner is told of a change of names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// The volume has another path.
    Renamed,
    /// The volume is gone.
    Deleted,
}

/// Volumes, wherever they are served. Lives on one thread.
#[expect(
    async_fn_in_trait,
    reason = "used within one thread, where futures need not be Send"
)]
pub trait Volumes: 'static {
    /// Opens a volume; a volume that is open already answers what it is now. Waits for the owner.
    ///
    /// # Errors
    /// There is no such volume.
    async fn open(&self, volume: VolumeId) -> Result<Opened, Refusal>;

    /// Opens a snapshot of a volume, to be read. Waits for the owner.
    ///
    /// # Errors
    /// There is no such snapshot any more.
    async fn open_snapshot(&self, volume: VolumeId, id: SnapshotId, name: &str) -> Result<Opened, Refusal>;

    /// As [`Volumes::open_snapshot`], of one that is known to be open; does not wait.
    fn attach_snapshot(&self, volume: VolumeId, id: SnapshotId, name: &str);

    /// Runs an operation on what is open. Waits for the owner.
    async fn run(&self, source: Source, operation: Operation) -> Outcome;

    /// The volume or snapshot is not needed any more.
    fn close(&self, source: Source);

    /// The snapshots of a volume, oldest first. Waits for the owner a moment, not for ever.
    ///
    /// # Errors
    /// There is no such volume, or its owner does not answer.
    async fn snapshots(&self, volume: VolumeId) -> Result<Vec<Snapshot>, Refusal>;

    /// Size and space of a volume, open or not. Waits for the owner a moment, not for ever.
    ///
    /// # Errors
    /// There is no such volume, or its owner does not answer.
    async fn extent(&self, volume: VolumeId) -> Result<Extent, Refusal>;

    /// Tells the owners of volumes what happened to their names. Does not wait.
    fn tell(&self, volumes: Vec<VolumeId>, told: Told);

    /// Space of the pool, perhaps as of a moment ago.
    async fn space(&self) -> Space;
}
