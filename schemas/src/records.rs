//! Registry records: what the registry's keys hold, as msgpack maps (fields can be added, never change meaning).
//!
//! Keeps: the keys of each kind of record, and the records.
//! Order: every change is a compare-and-swap on the record's revision.
//! Crash: a record is whole or unchanged.
//! Knows no registry.

use std::fmt;
use std::str::FromStr;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::DecodeError;
use crate::access::{Access, AccessMode};
use crate::geometry::{ScoSize, VolumeSize};
use crate::ids::{BackendId, Epoch, ManifestSeq, NodeName, PlaceName, ScoId, SnapshotId, VolumeId};
use crate::object::ObjectName;
use crate::wire::Role;
use crate::wire::msgpack::{is_zero, put_named, take_named};

/// A record: encodes as a msgpack map.
pub trait Record: Serialize + DeserializeOwned {
    /// What the record is, for errors.
    const WHAT: &'static str;

    /// The record's bytes.
    fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_named(&mut out, self);
        out
    }

    /// The record that the bytes hold.
    ///
    /// # Errors
    /// Not well-formed, or not of the record's shape.
    fn from_bytes(mut bytes: &[u8]) -> Result<Self, DecodeError> {
        take_named(&mut bytes, Self::WHAT)
    }
}

/// A running service: key `node/<name>`, held by its lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Its name.
    pub name: NodeName,
    /// What it is.
    pub role: Role,
    /// Where it is reached, one endpoint a thread: `ipc:///path` or `tls://host:port/path`. A volume's endpoint
    /// is the one at (the id's first 8 bytes, big endian) modulo their number.
    pub endpoints: Vec<String>,
    /// Build version.
    pub version: String,
    /// Process id, for people.
    pub pid: u32,
    /// Where it is. Builds before there were failure domains lack it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<Place>,
    /// Its write buffer, of a volume-router. Builds before 0196 lack it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub buffer: Option<Buffer>,
}

/// A write buffer, from one boot of its machine to the next: all that was written to it is there, also what was not synced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Buffer {
    /// Its identity.
    pub id: String,
    /// What names the boot. `None`: of a build before 0196, which is taken for the boot that goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<String>,
}

impl Buffer {
    /// Whether this is the same write buffer after its machine was booted anew, so that what was not synced in `earlier` may be missing.
    #[must_use]
    pub fn lost_power_since(&self, earlier: &Self) -> bool {
        let boots = self.boot.as_ref().zip(earlier.boot.as_ref());
        self.id == earlier.id && boots.is_some_and(|(now, then)| now != then)
    }

    /// Whether this is the same write buffer, with all that was in `earlier`.
    #[must_use]
    pub fn has_all_of(&self, earlier: &Self) -> bool {
        self.id == earlier.id && !self.lost_power_since(earlier)
    }
}

/// Where a service is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Its machine: what is there reaches each other without a network.
    pub host: PlaceName,
    /// What is lost at one time with it: its machine, or the rack that this is in.
    pub failure_domain: PlaceName,
}

impl Record for NodeRecord {
    const WHAT: &'static str = "node record";
}

impl NodeRecord {
    /// The endpoint of the thread that serves `volume`; `None` where the node announces none.
    #[must_use]
    pub fn endpoint_of(&self, volume: VolumeId) -> Option<&str> {
        let [a, b, c, d, e, f, g, h, ..] = volume.0;
        let threads = u64::try_from(self.endpoints.len()).ok()?;
        let thread = u64::from_be_bytes([a, b, c, d, e, f, g, h]).checked_rem(threads)?;
        self.endpoints
            .get(usize::try_from(thread).ok()?)
            .map(String::as_str)
    }

    /// The name of its machine; where it says nothing of that it is alone on one that is called as it is.
    #[must_use]
    pub fn host(&self) -> &str {
        let place = self.place.as_ref();
        place.map_or(self.name.as_str(), |place| place.host.as_str())
    }

    /// The name of its failure domain; likewise.
    #[must_use]
    pub fn failure_domain(&self) -> &str {
        let place = self.place.as_ref();
        place.map_or(self.name.as_str(), |place| place.failure_domain.as_str())
    }
}

/// Whether the DTL host has every acknowledged write (DESIGN.md §6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum DtlState {
    /// It has.
    InSync,
    /// It may not.
    Degraded,
    /// The volume has no DTL.
    Off,
}

/// What a volume's twin on another volume-router is waited for (DESIGN.md §6), the weakest first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DtlMode {
    /// There is none.
    #[default]
    None,
    /// A flush waits for it; a write only where it is further behind than is allowed.
    Async,
    /// Every write waits for it.
    Sync,
}

impl DtlMode {
    /// Its name, as it is written.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Async => "async",
            Self::Sync => "sync",
        }
    }

    /// What a record says while there is no twin to rely on.
    #[must_use]
    pub const fn without_twin(self) -> DtlState {
        match self {
            Self::None => DtlState::Off,
            Self::Async | Self::Sync => DtlState::Degraded,
        }
    }
}

/// Where a volume is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VolumePhase {
    /// It exists.
    Active,
    /// Its name is gone; its owner gives its space back and then removes the record.
    Deleting,
}

/// An ownership and the first SCO that it wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochStart {
    /// The ownership.
    pub epoch: Epoch,
    /// SCOs from this one on, up to the next ownership's first, are of this epoch; others are garbage.
    pub first_sco: ScoId,
}

/// A manifest on the back end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestRef {
    /// Its number.
    pub seq: ManifestSeq,
    /// The ownership that wrote it.
    pub epoch: Epoch,
}

/// A volume: key `volume/<id>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeRecord {
    /// The volume.
    pub id: VolumeId,
    /// Its inode, by which its path is found.
    pub inode: u64,
    /// Size at creation.
    pub initial_size: VolumeSize,
    /// Size when the owner last wrote it here: with each manifest, and soon after it changed. The size now is the
    /// owner's to know; this is for whoever asks while the owner does not answer. `None` before the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<VolumeSize>,
    /// Clusters of a SCO.
    pub sco_size: ScoSize,
    /// The storage pool.
    pub pool: String,
    /// Where it is in its life.
    pub phase: VolumePhase,
    /// Who serves it, or is to serve it.
    pub owner: NodeName,
    /// The number of the newest ownership; 0 before the first.
    pub epoch: Epoch,
    /// Identity of the write buffer that may hold acknowledged writes that are nowhere else; `None` when the back
    /// ends have everything (never written, or an orderly stop that stored all).
    pub buffer: Option<String>,
    /// The boot of its machine in which the newest ownership began there: after another one it may lack what was not synced.
    /// Builds before 0196 lack it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub buffer_boot: Option<String>,
    /// What the twin is waited for.
    #[serde(default)]
    pub dtl_mode: DtlMode,
    /// A twin was wanted before, and is not now: what a write buffer has of it may be of one that was given up.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub had_twins: bool,
    /// DTL host, where there is one.
    pub dtl_host: Option<NodeName>,
    /// Identity of the write buffer that has the twin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dtl_buffer: Option<String>,
    /// The boot of its machine in which the stream began, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dtl_boot: Option<String>,
    /// Whether the DTL host has every acknowledged write.
    pub dtl_state: DtlState,
    /// Since when the newest ownership is, in microseconds since 1970 by its owner's clock. Builds before there were events lack it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch_since_us: Option<u64>,
    /// Since when `dtl_state` is as it is, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dtl_since_us: Option<u64>,
    /// The newest manifest that the owner told the registry of.
    pub manifest: Option<ManifestRef>,
    /// The ownerships that wrote SCOs, oldest first.
    pub epochs: Vec<EpochStart>,
    /// The snapshot that the volume began as, if it is a clone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// The volume is being moved: until the next ownership begins, wherever that is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moving: Option<Moving>,
    /// The move that brought the volume to where it is, or was last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_move: Option<LastMove>,
    /// Where an operator wants the twin to be; `None`: where the owner finds best.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub twin_host: Option<TwinHost>,
    /// It is moved only where an operator asks for that.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pinned: bool,
    /// Removals of snapshots that are over: whoever clones one that its owner told of before the last of them looks again.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub removals: u64,
    /// Which front ends may write it.
    #[serde(default, skip_serializing_if = "Access::is_default")]
    pub access: Access,
}

/// Where an operator wants a volume's twin to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TwinHost {
    /// The volume-router.
    pub node: NodeName,
    /// While that cannot keep it there is none. Otherwise it is elsewhere meanwhile.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub only: bool,
}

/// Why a volume is moved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MoveWhy {
    /// An operator, or a command, asked for it.
    #[default]
    Asked,
    /// Its IO comes from there.
    Io,
    /// Its owner had more volumes than others.
    Balance,
    /// For a reason that this build does not know.
    #[serde(other)]
    Other,
}

impl MoveWhy {
    const fn is_asked(&self) -> bool {
        matches!(self, Self::Asked)
    }

    /// Its name, as it is written.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Asked => "asked",
            Self::Io => "io",
            Self::Balance => "balance",
            Self::Other => "other",
        }
    }
}

/// A move that is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastMove {
    /// Who owned the volume before.
    pub from: NodeName,
    /// Who owned it then.
    pub to: NodeName,
    /// When that ownership began, in microseconds since 1970 by its owner's clock.
    pub at_us: u64,
    /// Why.
    #[serde(default, skip_serializing_if = "MoveWhy::is_asked")]
    pub why: MoveWhy,
}

/// A planned move of a volume to another volume-router.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moving {
    /// Who owned the volume when the move began.
    pub from: NodeName,
    /// Who is to own it.
    pub to: NodeName,
    /// What the twin is waited for once the move is over: a volume that wants none has one for the time of a move.
    pub mode: DtlMode,
    /// Why.
    #[serde(default, skip_serializing_if = "MoveWhy::is_asked")]
    pub why: MoveWhy,
}

/// What a clone began as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The volume.
    pub volume: VolumeId,
    /// Its snapshot.
    pub snapshot: SnapshotId,
}

/// That a volume is a clone of another: key `clone/<parent>/<clone>`, made with the clone and removed once the clone
/// needs nothing of its parent any more. What depends on a volume is found by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloneRecord {
    /// The parent's snapshot.
    pub snapshot: SnapshotId,
    /// The clone's inode, by which its path is found.
    pub inode: u64,
}

/// That a snapshot is being removed, so that nobody clones it meanwhile: key `removing/<volume>/<snapshot>`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemovalRecord {
    /// A random number of whoever began last.
    #[serde(default)]
    pub asked_by: u64,
    /// Whether others began before: their requests may be under way too.
    #[serde(default)]
    pub others: bool,
}

/// That a deleted volume was erased by another node than the one whose write buffer may still hold SCOs of it: key
/// `erased/<volume>`. By it that node, when it comes back, tells a volume that is gone from one whose record was lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErasedRecord {
    /// Identity of the write buffer.
    pub buffer: String,
    /// The storage pool that the volume was in.
    pub pool: String,
    /// When the volume's record went, in microseconds since 1970.
    pub erased_us: u64,
}

/// That a volume was erased of which write buffers may have twins that its record did not name any more: key `gone/<volume>`. By it a node that
/// has one tells a volume that is gone from one whose record was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GoneRecord {
    /// When the volume's record went, in microseconds since 1970.
    pub erased_us: u64,
}

/// That a volume-router is being drained, or was: it is given no volumes and no twins: key `drained/<node>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainedRecord {
    /// Since when, in microseconds since 1970.
    pub since_us: u64,
}

impl Record for DrainedRecord {
    const WHAT: &'static str = "drained record";
}

impl Record for GoneRecord {
    const WHAT: &'static str = "gone record";
}

impl Record for ErasedRecord {
    const WHAT: &'static str = "erased record";
}

impl Record for RemovalRecord {
    const WHAT: &'static str = "removal record";
}

impl Record for CloneRecord {
    const WHAT: &'static str = "clone record";
}

impl Record for VolumeRecord {
    const WHAT: &'static str = "volume record";
}

impl VolumeRecord {
    /// That of a volume which nobody has owned yet; it is no file's so far.
    #[must_use]
    pub const fn unowned(
        id: VolumeId,
        size: VolumeSize,
        sco_size: ScoSize,
        pool: String,
        owner: NodeName,
    ) -> Self {
        Self {
            id,
            inode: 0,
            initial_size: size,
            size: None,
            sco_size,
            pool,
            phase: VolumePhase::Active,
            owner,
            epoch: Epoch::NONE,
            buffer: None,
            buffer_boot: None,
            dtl_mode: DtlMode::None,
            had_twins: false,
            dtl_host: None,
            dtl_buffer: None,
            dtl_boot: None,
            dtl_state: DtlState::Off,
            epoch_since_us: None,
            dtl_since_us: None,
            manifest: None,
            epochs: Vec::new(),
            origin: None,
            moving: None,
            last_move: None,
            twin_host: None,
            pinned: false,
            removals: 0,
            access: Access {
                mode: AccessMode::Exclusive,
                generation: 0,
                holder: None,
                hand_over_until_us: None,
            },
        }
    }

    /// The size that the registry knows of.
    #[must_use]
    pub fn known_size(&self) -> VolumeSize {
        self.size.unwrap_or(self.initial_size)
    }

    /// Where the twin is that the record relies on.
    #[must_use]
    pub fn twin(&self) -> Option<&NodeName> {
        let is_in_sync = self.dtl_state == DtlState::InSync && self.dtl_host.as_ref() != Some(&self.owner);
        self.dtl_host.as_ref().filter(|_| is_in_sync)
    }

    /// The write buffers that have every acknowledged write: the owner's, where one is needed, and the twin's that the record relies on.
    pub fn relied(&self) -> impl Iterator<Item = Buffer> {
        let of = |id: &Option<String>, boot: &Option<String>| {
            let boot = boot.clone();
            id.clone().map(|id| Buffer { id, boot })
        };
        let twin = of(&self.dtl_buffer, &self.dtl_boot).filter(|_| self.dtl_state == DtlState::InSync);
        [of(&self.buffer, &self.buffer_boot), twin].into_iter().flatten()
    }

    /// Whether a write buffer that the record does not name may have a twin of the volume.
    #[must_use]
    pub fn may_have_twins(&self) -> bool {
        self.had_twins || self.dtl_mode != DtlMode::None
    }

    /// Sets what the twin is waited for.
    pub fn set_dtl_mode(&mut self, mode: DtlMode) {
        self.had_twins |= self.dtl_mode != DtlMode::None && mode == DtlMode::None;
        self.dtl_mode = mode;
    }
}

/// The root directory's inode.
pub const ROOT_INODE: u64 = 1;

/// What an inode is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InodeKind {
    /// A directory.
    Directory,
    /// A file: a volume.
    File(VolumeId),
}

/// A file or directory: key `inode/<16 hex digits>`. The root has no record until its attributes are changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InodeRecord {
    /// What it is.
    pub kind: InodeKind,
    /// The directory that it is in.
    pub parent: u64,
    /// Its name there.
    pub name: String,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last change of the content that the fs-router was told of, in nanoseconds since 1970.
    pub mtime_ns: i64,
    /// Last change of the record, in nanoseconds since 1970.
    pub ctime_ns: i64,
}

impl Record for InodeRecord {
    const WHAT: &'static str = "inode record";
}

/// A name in a directory: key `name/<parent inode>/<name>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameRecord {
    /// The inode that it names.
    pub inode: u64,
    /// What that is, so that a listing reads no inodes.
    pub kind: InodeKind,
}

impl Record for NameRecord {
    const WHAT: &'static str = "name record";
}

/// How a pool protects its objects. As text `replica:3` or `ec:4+2`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protection {
    /// This many whole copies on different back ends (1 to 8).
    Replicas(u8),
    /// Fragments on different back ends; as many as hold data are enough to read. With one that holds data all are the
    /// same: copies that are compressed or encrypted, which builds before there were fragments refuse in this form.
    Erasure {
        /// Fragments that hold a piece of the object each (1 to 16).
        data: u8,
        /// Fragments that any as many others can be rebuilt with (up to 8).
        parity: u8,
    },
}

impl Protection {
    /// Most copies of an object.
    pub const REPLICAS_MAX: u8 = 8;
    /// Most fragments with data.
    pub const DATA_MAX: u8 = 16;
    /// Most fragments with parity.
    pub const PARITY_MAX: u8 = 8;

    /// Back ends that an object is on.
    #[must_use]
    pub const fn width(self) -> usize {
        match self {
            Self::Replicas(copies) => copies as usize,
            Self::Erasure { data, parity } => data as usize + parity as usize,
        }
    }

    /// How copies are recorded that are kept as fragments, compressed or encrypted.
    #[must_use]
    pub const fn as_fragments(self) -> Self {
        match self {
            Self::Replicas(copies) => Self::Erasure {
                data: 1,
                parity: copies.saturating_sub(1),
            },
            erasure @ Self::Erasure { .. } => erasure,
        }
    }

    /// What fits of objects into `stored` bytes on the back ends.
    #[must_use]
    pub fn room_in(self, stored: u64) -> u64 {
        match self {
            Self::Replicas(copies) => stored / u64::from(copies.max(1)),
            Self::Erasure { data, .. } => {
                let width = u64::try_from(self.width().max(1)).unwrap_or(u64::MAX);
                // Divided first: what a back end says of itself may be any number.
                (stored / width).saturating_mul(u64::from(data))
            }
        }
    }

    /// That the numbers are within their bounds.
    ///
    /// # Errors
    /// They are not: the text names what was found and what would be right.
    pub fn check(self) -> Result<Self, DecodeError> {
        let is_right = match self {
            Self::Replicas(copies) => (1..=Self::REPLICAS_MAX).contains(&copies),
            Self::Erasure { data: 1, parity } => parity < Self::REPLICAS_MAX,
            Self::Erasure { data, parity } => {
                (2..=Self::DATA_MAX).contains(&data) && (1..=Self::PARITY_MAX).contains(&parity)
            }
        };
        if is_right {
            return Ok(self);
        }
        Err(DecodeError::Value {
            what: "protection of a pool",
            found: self.to_string(),
            expected: "replica:1 to replica:8, or ec:K+M with K of 2 to 16 and M of 1 to 8",
        })
    }
}

impl fmt::Display for Protection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Replicas(copies) => write!(f, "replica:{copies}"),
            Self::Erasure { data: 1, parity } => write!(f, "replica:{}", u16::from(*parity) + 1),
            Self::Erasure { data, parity } => write!(f, "ec:{data}+{parity}"),
        }
    }
}

impl FromStr for Protection {
    type Err = DecodeError;

    fn from_str(text: &str) -> Result<Self, DecodeError> {
        let parsed = if let Some(copies) = text.strip_prefix("replica:") {
            copies.parse().ok().map(Self::Replicas)
        } else {
            let numbers = text.strip_prefix("ec:").and_then(|rest| rest.split_once('+'));
            numbers.and_then(|(data, parity)| {
                let (data, parity) = (data.parse().ok()?, parity.parse().ok()?);
                // One piece with parity is written as what it is: copies.
                (data != 1).then_some(Self::Erasure { data, parity })
            })
        };
        let parsed = parsed.ok_or_else(|| DecodeError::Value {
            what: "protection of a pool",
            found: format!("{text:?}"),
            expected: "replica:N or ec:K+M",
        })?;
        parsed.check()
    }
}

/// How a pool compresses what it stores, where that wins a tenth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Compression {
    /// LZ4: fast.
    Lz4,
    /// Zstandard at level 1: smaller, and slower by some times.
    Zstd,
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        })
    }
}

impl FromStr for Compression {
    type Err = DecodeError;

    fn from_str(text: &str) -> Result<Self, DecodeError> {
        match text {
            "lz4" => Ok(Self::Lz4),
            "zstd" => Ok(Self::Zstd),
            _ => Err(DecodeError::Value {
                what: "compression of a pool",
                found: format!("{text:?}"),
                expected: "lz4 or zstd",
            }),
        }
    }
}

/// A storage pool and its placement map: key `pool/<name>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolRecord {
    /// Its name.
    pub name: String,
    /// How objects are protected.
    pub protection: Protection,
    /// The placement map: the back ends that objects are placed on, and those that objects are still on (weight 0).
    pub backends: Vec<PlacementEntry>,
    /// Raised with each change of `backends` and `change`. Above [`PoolRecord::FIRST_PLACEMENT`] an object may be on any of them.
    pub placement_version: u64,
    /// How what is stored is compressed, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compression: Option<Compression>,
    /// Whether what is stored is encrypted; the keys are where the storage-routers' settings say.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub encrypted: bool,
    /// The keys of an encrypted pool, by which a storage-router tells that it was given others. Builds before 0201 wrote none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<KeyPrint>,
    /// A change of the placement map that is under way. Builds before 0203 never made one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub change: Option<PlacementChange>,
}

/// What is still to be done until a pool's objects are where its operator wants them (docs/decisions/0203).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacementChange {
    /// The weights that new objects are placed by once every storage-router looks for objects on all the back ends; `None`: they are, and
    /// objects move.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<Vec<PlacementEntry>>,
    /// Back ends that are gone for good: nobody waits for what is on them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lost: Vec<String>,
}

impl Record for PoolRecord {
    const WHAT: &'static str = "pool record";
}

impl PoolRecord {
    /// The version of a placement map that was never changed: every object is where the map says.
    pub const FIRST_PLACEMENT: u64 = 1;

    /// A pool that is to be made, all back ends with the same weight.
    pub fn proposed(
        name: String,
        protection: Protection,
        backends: impl Iterator<Item = String>,
        compression: Option<Compression>,
        encrypted: bool,
    ) -> Self {
        let entry = |backend| PlacementEntry { backend, weight: 1 };
        Self {
            name,
            protection: match compression.is_some() || encrypted {
                true => protection.as_fragments(),
                false => protection,
            },
            backends: backends.map(entry).collect(),
            placement_version: Self::FIRST_PLACEMENT,
            compression,
            encrypted,
            keys: Vec::new(),
            change: None,
        }
    }

    /// Whether another record describes the pool alike: all but what its keys are known by, which storage-routers add.
    #[must_use]
    pub fn is_like(&self, other: &Self) -> bool {
        let keys = self.keys.clone();
        *self
            == Self {
                keys,
                ..other.clone()
            }
    }

    /// Whether what is stored looks alike by another record, wherever it is.
    #[must_use]
    pub fn has_policy_of(&self, other: &Self) -> bool {
        let policy = |record: &Self| (record.protection, record.compression, record.encrypted);
        policy(self) == policy(other)
    }

    /// The weights that the pool has, or comes to.
    #[must_use]
    pub fn wanted(&self) -> &[PlacementEntry] {
        let next = self.change.as_ref().and_then(|change| change.next.as_deref());
        next.unwrap_or(&self.backends)
    }

    /// Whether nobody waits for what is on this back end.
    #[must_use]
    pub fn has_lost(&self, backend: &str) -> bool {
        let change = self.change.as_ref();
        change.is_some_and(|change| change.lost.iter().any(|lost| lost == backend))
    }

    /// The record that announces other weights: of back ends that it has, of others that join, 0 for those that are to leave.
    /// New objects are placed as before until every storage-router knows.
    #[must_use]
    pub fn announcing(&self, weights: &[PlacementEntry], lost: &[String]) -> Self {
        let mut next = self.wanted().to_vec();
        for entry in weights {
            match next.iter_mut().find(|have| have.backend == entry.backend) {
                Some(have) => have.weight = entry.weight,
                None => next.push(entry.clone()),
            }
        }
        let mut announced = self.clone();
        for entry in &next {
            if self.backends.iter().all(|have| have.backend != entry.backend) {
                announced.backends.push(PlacementEntry {
                    backend: entry.backend.clone(),
                    weight: 0,
                });
            }
        }
        let is_leaving = |name: &&String| {
            next.iter()
                .any(|entry| entry.backend == **name && entry.weight == 0)
        };
        let before = self.change.iter().flat_map(|change| &change.lost);
        let mut lost: Vec<String> = before.chain(lost).filter(is_leaving).cloned().collect();
        lost.sort_unstable();
        lost.dedup();
        announced.placement_version += 1;
        announced.change = Some(PlacementChange {
            next: Some(next),
            lost,
        });
        announced
    }

    /// The record by which new objects are placed as was announced, and the others move.
    #[must_use]
    pub fn placing(&self) -> Self {
        let lost = self.change.iter().flat_map(|change| &change.lost);
        Self {
            backends: self.wanted().to_vec(),
            placement_version: self.placement_version + 1,
            change: Some(PlacementChange {
                next: None,
                lost: lost.cloned().collect(),
            }),
            ..self.clone()
        }
    }

    /// The record once everything is where the map says: what takes no objects has none, and leaves the pool.
    #[must_use]
    pub fn settled(&self) -> Self {
        let takes = |entry: &&PlacementEntry| entry.weight > 0;
        Self {
            backends: self.backends.iter().filter(takes).cloned().collect(),
            placement_version: self.placement_version + 1,
            change: None,
            ..self.clone()
        }
    }
}

/// What a key is known by: says nothing of the key itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyPrint {
    /// Its id.
    pub id: u32,
    /// What tells it from another key of this id.
    pub fingerprint: u64,
}

/// How far the reading of all that is in a pool is (a deep scrub): key `deep-scrub/<pool>`. Written first when the pool is
/// seen first, so that a round begins a period later.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeepScrubRecord {
    /// When the round that is under way, or was last, began, in microseconds since 1970.
    pub begun_us: u64,
    /// When it ended, likewise; `None`: it is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_us: Option<u64>,
    /// The last object that it read, in the order of volumes, kinds, names; `None`: none yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<ObjectName>,
    /// Objects that there were when it began.
    pub expected: u64,
    /// Objects that it read.
    pub objects: u64,
    /// Bytes that it read of them, on all back ends.
    pub bytes: u64,
    /// Objects of which something was missing or damaged, and is there again.
    pub repaired: u64,
    /// Objects of which a part could not be reached or written.
    pub left: u64,
    /// Objects of which no good copy is left.
    pub lost: u64,
    /// An operator wants a round now.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_asked: bool,
}

impl Record for DeepScrubRecord {
    const WHAT: &'static str = "deep scrub record";
}

/// That a storage-router does something for a pool, and no other: its deep scrub (key `deep-scrubber/<pool>`), the move of its
/// objects (key `mover/<pool>`). Held by a lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimRecord {
    /// Who does it.
    pub node: NodeName,
}

impl Record for ClaimRecord {
    const WHAT: &'static str = "claim record";
}

/// How far the move of a pool's objects to where its placement map wants them is: key `move/<pool>`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveRecord {
    /// The placement version that it is of.
    pub placement_version: u64,
    /// When it began, in microseconds since 1970.
    pub begun_us: u64,
    /// When all was where it belongs, likewise; `None`: it is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_us: Option<u64>,
    /// Storage-routers that do not know yet where objects may be: it goes on when they do.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waits_for: Vec<NodeName>,
    /// The last object that was looked at, in the order of volumes, kinds, names; `None`: none yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<ObjectName>,
    /// Objects that there were when it began.
    pub expected: u64,
    /// Objects that were looked at.
    pub objects: u64,
    /// Objects of which something was moved.
    pub moved: u64,
    /// Bytes that were written for it.
    pub bytes: u64,
    /// Objects of which something could not be reached or written: they are looked at again.
    pub left: u64,
}

impl Record for MoveRecord {
    const WHAT: &'static str = "move record";
}

/// Up to which placement version of a pool a storage-router looks for objects, with no request under way by an older one: key
/// `placement-known/<pool>/<node>`, written while a change is under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacementKnownRecord {
    /// The placement version.
    pub placement_version: u64,
}

impl Record for PlacementKnownRecord {
    const WHAT: &'static str = "record of a known placement";
}

/// A back end in a placement map.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacementEntry {
    /// The back end's name.
    pub backend: String,
    /// Its share of the objects, relative to the others'.
    pub weight: u32,
}

impl PlacementEntry {
    /// Largest weight.
    pub const WEIGHT_MAX: u32 = 1_000_000;
}

/// A back end that was set up: key `backend/<name>`. By it a directory that was mounted over, or begun anew
/// elsewhere, is told from the one that holds the objects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendRecord {
    /// Its name, as placement maps use it.
    pub name: String,
    /// The identity that the back end itself must show.
    pub id: BackendId,
    /// Where it is. `None`: only the settings of storage-routers say that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<BackendPlace>,
}

impl Record for BackendRecord {
    const WHAT: &'static str = "back end record";
}

/// Where a back end is, for every storage-router. Never a secret: credentials are where each of them finds them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BackendPlace {
    /// A directory of this path.
    Directory(String),
    /// A bucket, or a folder in one.
    S3(Box<S3Place>),
}

impl fmt::Display for BackendPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) => f.write_str(path),
            Self::S3(place) => {
                let S3Place {
                    bucket,
                    endpoint,
                    folder,
                    ..
                } = &**place;
                match endpoint {
                    Some(endpoint) => write!(f, "{endpoint}/{bucket}")?,
                    None => write!(f, "s3://{bucket}")?,
                }
                match folder.as_str() {
                    "" => Ok(()),
                    folder => write!(f, "/{folder}"),
                }
            }
        }
    }
}

/// A bucket, by the keys of a back end's `s3` in settings; `None`: as if left out there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct S3Place {
    /// The bucket.
    pub bucket: String,
    /// `http://host:port` or `https://host:port`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// The region that requests are signed for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// What all keys begin with.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub folder: String,
    /// `path` or `virtual-hosted`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub style: Option<String>,
    /// A file with certificates, on each storage-router's machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
    /// `environment`, `file` or `instance-profile`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<String>,
    /// The file with the credentials, on each storage-router's machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials_file: Option<String>,
    /// The profile in that file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
}

/// The registry's keys.
pub mod keys {
    use crate::ids::{NodeName, SnapshotId, VolumeId};

    /// All nodes.
    pub const NODES: &str = "node/";
    /// All volumes.
    pub const VOLUMES: &str = "volume/";
    /// All erased volumes that a write buffer may still hold SCOs of.
    pub const ERASED: &str = "erased/";
    /// All erased volumes that any write buffer may still have twins of.
    pub const GONE: &str = "gone/";
    /// All pools.
    pub const POOLS: &str = "pool/";
    /// All back ends.
    pub const BACKENDS: &str = "backend/";

    /// All nodes that are drained.
    pub const DRAINED: &str = "drained/";

    /// The key that says that a node is drained.
    #[must_use]
    pub fn drained(name: &NodeName) -> String {
        format!("{DRAINED}{name}")
    }

    /// A node's key.
    #[must_use]
    pub fn node(name: &NodeName) -> String {
        format!("{NODES}{name}")
    }

    /// A volume's key.
    #[must_use]
    pub fn volume(id: VolumeId) -> String {
        format!("{VOLUMES}{id}")
    }

    /// The key of an erased volume.
    #[must_use]
    pub fn erased(id: VolumeId) -> String {
        format!("{ERASED}{id}")
    }

    /// The key of an erased volume that write buffers may have twins of.
    #[must_use]
    pub fn gone(id: VolumeId) -> String {
        format!("{GONE}{id}")
    }

    /// The prefix of all clones of a volume.
    #[must_use]
    pub fn clones_of(parent: VolumeId) -> String {
        format!("clone/{parent}/")
    }

    /// The prefix of all removals of a volume's snapshots.
    #[must_use]
    pub fn removals_of(volume: VolumeId) -> String {
        format!("removing/{volume}/")
    }

    /// The key of a snapshot's removal.
    #[must_use]
    pub fn removal(volume: VolumeId, snapshot: SnapshotId) -> String {
        format!("{}{snapshot}", removals_of(volume))
    }

    /// A clone's key.
    #[must_use]
    pub fn clone(parent: VolumeId, clone: VolumeId) -> String {
        format!("clone/{parent}/{clone}")
    }

    /// A pool's key.
    #[must_use]
    pub fn pool(name: &str) -> String {
        format!("{POOLS}{name}")
    }

    /// All pools' deep scrubs.
    pub const DEEP_SCRUBS: &str = "deep-scrub/";
    /// All that are under way.
    pub const DEEP_SCRUBBERS: &str = "deep-scrubber/";

    /// The key of a pool's deep scrub.
    #[must_use]
    pub fn deep_scrub(pool: &str) -> String {
        format!("{DEEP_SCRUBS}{pool}")
    }

    /// The key that says who does a pool's deep scrub.
    #[must_use]
    pub fn deep_scrubber(pool: &str) -> String {
        format!("{DEEP_SCRUBBERS}{pool}")
    }

    /// The moves of all pools' objects.
    pub const MOVES: &str = "move/";

    /// The key of the move of a pool's objects.
    #[must_use]
    pub fn moving(pool: &str) -> String {
        format!("{MOVES}{pool}")
    }

    /// The key that says who moves a pool's objects.
    #[must_use]
    pub fn mover(pool: &str) -> String {
        format!("mover/{pool}")
    }

    /// What all storage-routers know of a pool's placement.
    #[must_use]
    pub fn placements_known(pool: &str) -> String {
        format!("placement-known/{pool}/")
    }

    /// What a storage-router knows of a pool's placement.
    #[must_use]
    pub fn placement_known(pool: &str, node: &NodeName) -> String {
        format!("{}{node}", placements_known(pool))
    }

    /// A back end's key.
    #[must_use]
    pub fn backend(name: &str) -> String {
        format!("{BACKENDS}{name}")
    }

    /// An inode's key.
    #[must_use]
    pub fn inode(inode: u64) -> String {
        format!("inode/{inode:016x}")
    }

    /// The prefix of all names in a directory.
    #[must_use]
    pub fn names_in(parent: u64) -> String {
        format!("name/{parent:016x}/")
    }

    /// A name's key.
    #[must_use]
    pub fn name(parent: u64, name: &str) -> String {
        format!("name/{parent:016x}/{name}")
    }
}
