//! Manifests: the immutable root record of a volume, from which alone everything is found again.
//!
//! Keeps: map root, SCO-table root, where replay starts, lineage, ownerships, sessions, name and size.
//! Order: a manifest is stored only after all that it refers to; the newest is the one of the highest epoch,
//! then number.
//! Crash: whole or not there; a CRC covers it.
//! Knows no tree and no storage.
//!
//! Layout: magic "MFT1", version u32, body length u32, CRC32C u32 of the body, then the body: a msgpack map.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use crate::DecodeError;
use crate::checkpoint::{NODE_REF_LEN, NodeRef};
use crate::checks::{check_crc, check_magic, check_version};
use crate::crc::crc32c;
use crate::geometry::{ScoSize, VolumeSize};
use crate::history::HistoryState;
use crate::ids::{BatchSeq, CheckpointId, Epoch, ManifestSeq, ScoId, SnapshotId, VolumeId};
use crate::le::u32_at;
use crate::log_record::SnapshotLabel;
use crate::records::{EpochStart, Origin};
use crate::wire::msgpack::{is_zero, put_named, take_named};

const WHAT: &str = "manifest";
const MAGIC: u32 = u32::from_le_bytes(*b"MFT1");
const VERSION: u32 = 1;
const HEADER_LEN: usize = 16;
/// Largest manifest: what is longer is not read. Whoever stores one checks it. Each table in it has a bound of its own, and all
/// of them at their bounds fit: a volume whose manifest is too long could not be served any more.
pub const MANIFEST_BYTES_MAX: usize = 32 << 20;

/// Levels above the leaves at which a tree of fan-out 512 covers every number in use.
pub const TREE_HEIGHT_MAX: u8 = 6;

/// Root of a stored tree; without a node it is empty.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreeRoot {
    /// Levels above the leaves, at most [`TREE_HEIGHT_MAX`].
    pub height: u8,
    /// The root node; `None`: the tree is empty.
    #[serde(with = "node_ref")]
    pub node: Option<NodeRef>,
    /// The tree's nodes, and what they are deltas on, are the root's volume's checkpoints from this one up to the root's, or its
    /// ancestors'. `NONE`: from the first.
    #[serde(default, skip_serializing_if = "CheckpointId::is_none")]
    pub floor: CheckpointId,
}

/// How much the head's trees have grown on the back ends since they were last stored anew.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenewalState {
    /// Bytes of checkpoint objects that were stored since the first of the last renewal.
    pub written: u64,
    /// How many of them the renewal itself had stored when it ended; 0: there was none.
    pub renewed: u64,
}

impl RenewalState {
    fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

/// A session's state: which of its numbers were applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionState {
    /// Its slot in the session table.
    pub slot: u16,
    /// Its id.
    pub id: u64,
    /// Numbers below this one were applied, or will never come again.
    pub below: u64,
    /// Applied numbers from `below` on, as the first versions stored them, one by one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub applied: Vec<u64>,
    /// Applied numbers from `below` on, ascending: the first and how many follow each other, itself included.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ranges: Vec<(u64, u64)>,
}

/// A place in a volume's log: all slots of SCOs before `sco`, and the first `slots` of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LogPlace {
    /// The SCO.
    pub sco: ScoId,
    /// Slots of it.
    pub slots: u16,
}

/// A snapshot: a retained map root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotState {
    /// What people know of it.
    pub label: SnapshotLabel,
    /// The volume's size then.
    pub size: VolumeSize,
    /// Clusters that were mapped then.
    pub allocated_clusters: u64,
    /// Where in the log it was taken.
    pub at: LogPlace,
    /// The snapshot that the volume came from when this one was taken; `None`: from its beginning.
    pub parent: Option<SnapshotId>,
    /// The map then.
    pub map: TreeRoot,
    /// It was removed, but two or more roots come from it: it stays until one is left, for only by it can be told what
    /// they share.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub hidden: bool,
    /// It is a part of a snapshot of several volumes that was not confirmed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub proposed: bool,
    /// It has nothing of the volumes that the volume, a clone, comes from. Not known of those that older builds took.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub own: bool,
    /// It was removed, and what only it referred to has not been counted as dead yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub removed: Option<RemovedState>,
    /// The batch whose end it was, or that has its record: its place among the moments of the history. 0: before it.
    #[serde(default, skip_serializing_if = "BatchSeq::is_none")]
    pub taken_in: BatchSeq,
    /// The batch with the record of its removal, if it was removed: until then moments may go back to it.
    #[serde(default, skip_serializing_if = "BatchSeq::is_none")]
    pub removed_in: BatchSeq,
    /// It is a moment of the history, and what only it refers to has not been counted as live yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub joined: Option<JoinedState>,
}

/// A snapshot that was removed, as it was then: what no other root referred to is dead.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemovedState {
    /// What lies before this place in the log is its parent's too.
    pub born_from: LogPlace,
    /// The maps that came from it, as they were then.
    pub children: Vec<TreeRoot>,
}

/// A moment that became a snapshot when others had come from it already: what it has and they have not is live again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinedState {
    /// What lies before this place in the log is its parent's too.
    pub born_from: LogPlace,
    /// The map that came from it, as it was then.
    pub child: TreeRoot,
}

/// A SCO's object that this manifest no longer refers to, to be deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CondemnedState {
    /// The SCO.
    pub sco: ScoId,
    /// Its epoch.
    pub epoch: Epoch,
    /// Its version.
    pub version: u16,
}

/// How far a clone is on its way to independence.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlattenState {
    /// From this checkpoint on nodes are stored whole, or as deltas on such nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<CheckpointId>,
    /// The map has nothing of an ancestor any more, neither clusters nor nodes: since this batch at the latest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clean: Option<BatchSeq>,
}

/// The root record.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The volume.
    pub volume: VolumeId,
    /// This manifest's number.
    pub seq: ManifestSeq,
    /// The ownership that wrote it.
    pub epoch: Epoch,
    /// The volume's path when it was written.
    pub path: String,
    /// The volume's storage pool.
    pub pool: String,
    /// The volume's size after the last batch that it covers.
    pub size: VolumeSize,
    /// Clusters of a SCO.
    pub sco_size: ScoSize,
    /// Whether the volume takes no writes.
    pub read_only: bool,
    /// Clusters that are mapped.
    pub allocated_clusters: u64,
    /// The map.
    pub map: TreeRoot,
    /// The SCO table.
    pub scos: TreeRoot,
    /// SCOs that it has. Not said by the manifests of the first builds.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub scos_count: u64,
    /// The last batch that the trees cover.
    pub covered: BatchSeq,
    /// The last SCO that the trees cover, whole; replay goes on with the next.
    pub covered_sco: ScoId,
    /// The newest checkpoint that is referred to.
    pub checkpoint: CheckpointId,
    /// Volume ids, the root ancestor first, this volume last.
    pub lineage: Vec<VolumeId>,
    /// The ownerships that wrote SCOs, oldest first.
    pub epochs: Vec<EpochStart>,
    /// The same of each ancestor in `lineage`, up to the snapshot that was cloned.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ancestor_epochs: Vec<Vec<EpochStart>>,
    /// The session table.
    pub sessions: Vec<SessionState>,
    /// The snapshots, in the order in which they were taken.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub snapshots: Vec<SnapshotState>,
    /// The newest ids of snapshots that are gone, oldest first: a request with one of them was done.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gone_snapshots: Vec<SnapshotId>,
    /// Objects to be deleted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub condemned: Vec<CondemnedState>,
    /// The snapshot that the volume comes from: the newest of its branch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<SnapshotId>,
    /// What the volume, a clone, began as. Manifests of the first builds lack it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// The history, from which moments are had.
    #[serde(default, skip_serializing_if = "HistoryState::is_none")]
    pub history: HistoryState,
    /// The volume, a clone, is to become independent of the volumes that it comes from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flatten: Option<FlattenState>,
    /// It is: nothing that this manifest leads to is an ancestor's.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub independent: bool,
    /// When the head's trees are to be stored anew.
    #[serde(default, skip_serializing_if = "RenewalState::is_none")]
    pub renewal: RenewalState,
}

impl Manifest {
    /// The stored bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; HEADER_LEN];
        put_named(&mut bytes, self);
        let body = u32::try_from(bytes.len() - HEADER_LEN).unwrap_or(u32::MAX);
        let crc = crc32c(&bytes[HEADER_LEN..]);
        for (at, word) in [(0, MAGIC), (4, VERSION), (8, body), (12, crc)] {
            bytes[at..at + 4].copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// The manifest that these bytes store.
    ///
    /// # Errors
    /// Cut off, no manifest, a newer version, damaged, or values out of range.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DecodeError> {
        if bytes.len() < HEADER_LEN {
            return Err(DecodeError::Short {
                what: WHAT,
                have: bytes.len(),
                need: HEADER_LEN,
            });
        }
        let word = |at: usize| u32_at(bytes, at);
        let (magic, version, len, found) = (word(0), word(4), word(8) as usize, word(12));
        check_magic(WHAT, magic, MAGIC)?;
        check_version(WHAT, version, VERSION)?;
        let mut body = &bytes[HEADER_LEN..];
        if body.len() != len {
            return Err(DecodeError::Short {
                what: WHAT,
                have: body.len(),
                need: len,
            });
        }
        let expected = crc32c(body);
        check_crc(WHAT, found, expected)?;
        let manifest: Self = take_named(&mut body, WHAT)?;
        if let Some(root) = manifest.roots().find(|root| root.height > TREE_HEIGHT_MAX) {
            return Err(DecodeError::Value {
                what: "tree height",
                found: root.height.to_string(),
                expected: "at most 6",
            });
        }
        Ok(manifest)
    }

    /// The checkpoints of this volume that its trees have nodes in, as ranges that ascend and do not touch. What lies up to
    /// `checkpoint` and in none of them is referred to by nothing that this manifest leads to.
    #[must_use]
    pub fn checkpoints(&self) -> Vec<RangeInclusive<CheckpointId>> {
        let own = self.lineage.len().saturating_sub(1);
        let of = |root: &TreeRoot| {
            let node = root.node.filter(|node| usize::from(node.lineage.0) == own)?;
            Some((root.floor, node.checkpoint))
        };
        let mut spans: Vec<_> = self.roots().filter_map(of).collect();
        spans.sort_unstable();
        let mut ranges: Vec<RangeInclusive<CheckpointId>> = Vec::new();
        for (floor, top) in spans {
            match ranges.last_mut() {
                Some(last) if floor.prev() <= *last.end() => *last = *last.start()..=top.max(*last.end()),
                _ => ranges.push(floor..=top),
            }
        }
        ranges
    }

    /// Every tree that it names.
    fn roots(&self) -> impl Iterator<Item = &TreeRoot> {
        let of_snapshots = self.snapshots.iter().flat_map(|snapshot| {
            let removed = snapshot.removed.iter().flat_map(|removed| &removed.children);
            let joined = snapshot.joined.iter().map(|joined| &joined.child);
            std::iter::once(&snapshot.map).chain(removed).chain(joined)
        });
        let points = self.history.points.iter().map(|point| &point.map);
        [&self.map, &self.scos]
            .into_iter()
            .chain(of_snapshots)
            .chain(points)
    }
}

mod node_ref {
    use super::{NODE_REF_LEN, NodeRef};
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(node: &Option<NodeRef>, serializer: S) -> Result<S::Ok, S::Error> {
        node.map(|node| node.to_bytes().to_vec()).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<NodeRef>, D::Error> {
        let bytes: Option<Vec<u8>> = Option::deserialize(deserializer)?;
        let Some(bytes) = bytes else { return Ok(None) };
        let stored: &[u8; NODE_REF_LEN] = bytes.as_slice().try_into().map_err(serde::de::Error::custom)?;
        NodeRef::from_bytes(stored)
            .map(Some)
            .map_err(serde::de::Error::custom)
    }
}
