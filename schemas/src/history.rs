//! The history of a volume as a manifest has it: how far back it can be gone, and from which points.
//!
//! Keeps: the window and its points.
//! Order: points ascend with the log, and so do their times.
//! Crash: part of a manifest, whole or not there.
//! Knows no tree and no storage.

use serde::{Deserialize, Serialize};

use crate::geometry::VolumeSize;
use crate::ids::{BatchSeq, CheckpointId, ScoId};
use crate::manifest::TreeRoot;

/// The history of a volume.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryState {
    /// How far back any moment can be had, in microseconds; 0: the history is off.
    #[serde(default)]
    pub window_us: u64,
    /// Time of the last batch that the manifest covers: later batches have no earlier time, whatever the clock does.
    /// Manifests of the first builds lack it.
    #[serde(default)]
    pub upto_us: u64,
    /// From where moments are replayed, oldest first: the first one is the base.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub points: Vec<PointState>,
}

impl HistoryState {
    /// Whether nothing is known: as in the first builds.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

/// What a checkpoint stored, kept for the moments behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PointState {
    /// Time of the last batch that it covers, in microseconds since 1970 by the owner's clock.
    pub time_us: u64,
    /// The last batch that it covers.
    pub covered: BatchSeq,
    /// The last SCO that it covers, whole.
    pub covered_sco: ScoId,
    /// The last checkpoint object that it may refer to.
    pub checkpoint: CheckpointId,
    /// TLog entries between the point before it and this one.
    pub entries: u64,
    /// The volume's size then.
    pub size: VolumeSize,
    /// Clusters that were mapped then.
    pub allocated_clusters: u64,
    /// The map then.
    pub map: TreeRoot,
}
