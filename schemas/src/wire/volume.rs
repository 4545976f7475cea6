//! The volume protocol: fs-routers (and the command line) to the owner of a volume, and owners to other volume-routers.
//!
//! Keeps: what can be asked of an owner and what it answers.
//! Order: none between requests but the numbers of a session: each is applied at most once.
//! Crash: what was not answered may have been applied; it is asked again under the same number.
//! Knows no sockets, no engine.
//!
//! Hot bodies are arrays: `[0, handle, number, below, code, flags, offset, length]` to the owner,
//! `[status, ...]` back. What a twin is told is `[2, {request}]`, everything else `[1, {control}]`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::event::{EventPage, EventsAsk};
use super::msgpack::{
    Body, is_zero, put_array, put_bin, put_named, put_uint, skip, take_array, take_bin, take_fields,
    take_named, take_uint,
};
use super::refusal::Refusal;
use super::scrub::BundleJob;
use super::twin::{TwinReply, TwinRequest};
use crate::DecodeError;
use crate::access::{AccessAsk, AccessChange, AccessReply};
use crate::geometry::{ByteLen, ScoSize, VolumeSize};
use crate::ids::{Epoch, NodeName, ScoId, SessionId, Slot, SnapshotId, VolumeId};
use crate::records::{DtlMode, DtlState};

/// What an operation does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum IoCode {
    /// Reads `length` bytes.
    Read = 0,
    /// Writes the data that comes with it.
    Write = 1,
    /// Makes the range a hole: reads as zeros, space is given back.
    Discard = 2,
    /// Makes the range zeros; with [`IoFlags::NO_HOLE`] it counts as allocated.
    WriteZeroes = 3,
    /// All writes acknowledged before it survive a power loss.
    Flush = 4,
    /// Reports which parts of the range are data, zeros and holes.
    Extents = 5,
    /// Sets the volume's size to `offset` bytes; what a smaller size cuts off is discarded.
    Resize = 6,
    /// Reports which parts of the range differ from what the handle was opened to be compared with
    /// ([`VolumeControl::OpenChanges`]); on another handle, from nothing.
    Changes = 7,
}

const CODES: [IoCode; 8] = [
    IoCode::Read,
    IoCode::Write,
    IoCode::Discard,
    IoCode::WriteZeroes,
    IoCode::Flush,
    IoCode::Extents,
    IoCode::Resize,
    IoCode::Changes,
];

impl IoCode {
    /// Whether the operation changes the volume, and so has to be applied only once.
    #[must_use]
    pub const fn changes(self) -> bool {
        matches!(
            self,
            IoCode::Write | IoCode::Discard | IoCode::WriteZeroes | IoCode::Resize
        )
    }
}

/// Flags of an operation, or-ed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IoFlags(pub u8);

impl IoFlags {
    /// The acknowledgement promises what a flush would (force unit access).
    pub const FUA: u8 = 1;
    /// A write beyond the end makes the volume larger (files; disks refuse it).
    pub const EXTEND: u8 = 2;
    /// Zeros that count as allocated.
    pub const NO_HOLE: u8 = 4;
    /// A person asked for this resize: it needs no write access.
    pub const OPERATOR: u8 = 8;

    /// Whether the flag is set.
    #[must_use]
    pub const fn has(self, flag: u8) -> bool {
        self.0 & flag != 0
    }
}

impl IoCode {
    /// Whether the front end needs write access for it.
    #[must_use]
    pub const fn needs_access(self, flags: IoFlags) -> bool {
        self.changes() && !(matches!(self, Self::Resize) && flags.has(IoFlags::OPERATOR))
    }
}

/// One operation on an open volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IoRequest {
    /// What [`VolumeControl::Open`] gave.
    pub handle: u32,
    /// A change: its number in its session, from 1 up; a resend carries the same number. Anything else: one more than the newest number
    /// that was given, and it counts for nothing.
    pub number: u64,
    /// The client will not resend any number below this one: the owner may forget them.
    pub below: u64,
    /// What to do.
    pub code: IoCode,
    /// How.
    pub flags: IoFlags,
    /// Byte offset in the volume.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
}

/// A part of a read's answer; the parts follow each other and cover, cluster-aligned, the range that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReadExtent {
    /// The next `length` bytes of the reply's data share.
    Data {
        /// Bytes, a multiple of the cluster size.
        length: u32,
    },
    /// Zeros.
    Zeros {
        /// Bytes, a multiple of the cluster size.
        length: u32,
    },
    /// Clusters to be read from a storage-router (or a cache), slot after slot, each with its CRC32C.
    Located {
        /// The volume that wrote the SCO.
        volume: VolumeId,
        /// The SCO.
        sco: ScoId,
        /// The SCO's epoch.
        epoch: Epoch,
        /// The SCO's version.
        version: u16,
        /// Slot of the first cluster.
        first_slot: Slot,
        /// CRC32C of each cluster.
        crcs: Vec<u32>,
    },
}

/// A part of the answer to [`IoCode::Extents`], in bytes; the parts cover at least the start of the range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExtentStatus {
    /// Bytes.
    pub length: u64,
    /// What they are.
    pub kind: ExtentKind,
}

/// What an extent is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExtentKind {
    /// Written data.
    Data,
    /// Reads as zeros, allocated.
    Zeros,
    /// Reads as zeros, not allocated.
    Hole,
}

const EXTENT_KINDS: [ExtentKind; 3] = [ExtentKind::Data, ExtentKind::Zeros, ExtentKind::Hole];

/// A part of the answer to [`IoCode::Changes`], in bytes; the parts cover at least the start of the range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChangedExtent {
    /// Bytes.
    pub length: u64,
    /// Whether they differ, and what they are now.
    pub kind: ChangeKind,
}

/// How an extent compares: by where its clusters are, so one that was written again with what it held is another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ChangeKind {
    /// The same in both.
    Same,
    /// Differs: it is written data now.
    Data,
    /// Differs: it reads as zeros now, allocated.
    Zeros,
    /// Differs: it reads as zeros now, not allocated.
    Hole,
}

const CHANGE_KINDS: [ChangeKind; 4] = [
    ChangeKind::Same,
    ChangeKind::Data,
    ChangeKind::Zeros,
    ChangeKind::Hole,
];

/// A snapshot that a volume, or a later snapshot of it, is compared with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Since {
    /// The volume that has it, where that is another: one that the volume is a clone of, at any depth.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<VolumeId>,
    /// The snapshot's name.
    pub snapshot: String,
}

/// Most extents in one answer; a client asks again for the rest.
pub const EXTENTS_MAX: usize = 4096;

/// To the owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VolumeRequest {
    /// The hot path.
    Io(IoRequest),
    /// From an owner to its twin.
    Twin(Box<TwinRequest>),
    /// Everything else.
    Control(VolumeControl),
}

/// From the owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VolumeReply {
    /// A write, discard, flush or resize was done.
    Done,
    /// A read's extents; data extents take the reply's data share, in order.
    Read(Vec<ReadExtent>),
    /// The answer to [`IoCode::Extents`].
    Extents(Vec<ExtentStatus>),
    /// The answer to [`IoCode::Changes`].
    Changes(Vec<ChangedExtent>),
    /// The answer to a control request.
    Control(VolumeControlReply),
    /// From a twin.
    Twin(TwinReply),
    /// Not done.
    Refused(Refusal),
}

/// Control requests to a volume-router.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum VolumeControl {
    /// Open a volume in a session; opening it again gives a handle on the same session.
    Open {
        /// The volume.
        volume: VolumeId,
        /// The client's session.
        session: SessionId,
        /// The name of one of its snapshots, which is opened in its place, to be read.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        snapshot: Option<String>,
        /// Who asks, and whether it wants to write. Builds before there was write access lack it: what they send is applied
        /// while nobody has exclusive access.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        access: Option<AccessAsk>,
    },
    /// Open a volume, or one of its snapshots, to be compared ([`IoCode::Changes`]). Needs no session.
    OpenChanges {
        /// The volume.
        volume: VolumeId,
        /// The name of one of its snapshots; `None`: the volume as it is.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        snapshot: Option<String>,
        /// What it is compared with; `None`: with nothing.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        since: Option<Since>,
    },
    /// The session is over: no number of it will be sent again.
    Close {
        /// What `Open` gave.
        handle: u32,
    },
    /// What the owner knows of the volume.
    Show {
        /// The volume.
        volume: VolumeId,
    },
    /// Wait until all that was written is on the back ends and a manifest names it.
    Sync {
        /// The volume.
        volume: VolumeId,
    },
    /// The volume's path is another now: write it down in a manifest.
    Renamed {
        /// The volume.
        volume: VolumeId,
    },
    /// The volume is gone from the names: stop it and give its space back.
    Delete {
        /// The volume.
        volume: VolumeId,
    },
    /// Own the volume here. Refused where acknowledged writes may be missing, unless forced.
    TakeOver {
        /// The volume.
        volume: VolumeId,
        /// Accept the loss of what is not on the back ends.
        force: bool,
    },
    /// Keep the volume as it is now. Asking again with the same id changes nothing.
    TakeSnapshot {
        /// The volume.
        volume: VolumeId,
        /// The snapshot's id, chosen at random by whoever asks.
        id: SnapshotId,
        /// Its name, unique in the volume.
        name: String,
        /// What people want written down with it.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        metadata: BTreeMap<String, String>,
    },
    /// Propose a snapshot that is part of one of several volumes: keep the volume as it is now, and hold the acknowledgements
    /// of what comes after it until this is confirmed or withdrawn, for a bounded time. Asking again meanwhile changes
    /// nothing.
    ProposeSnapshot {
        /// The volume.
        volume: VolumeId,
        /// The snapshot's id, chosen at random by whoever asks, anew for each try.
        id: SnapshotId,
        /// Its name, unique in the volume.
        name: String,
        /// What people want written down with it.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        metadata: BTreeMap<String, String>,
    },
    /// All volumes have proposed theirs: it is a snapshot from now on. Refused if acknowledgements were not held all the
    /// while.
    ConfirmSnapshot {
        /// The volume.
        volume: VolumeId,
        /// The snapshot.
        id: SnapshotId,
    },
    /// Not all have: it is forgotten. Refused if it was confirmed.
    WithdrawSnapshot {
        /// The volume.
        volume: VolumeId,
        /// The snapshot.
        id: SnapshotId,
    },
    /// Remove a snapshot. What depends on it is for the caller to look at (`names` of the fs-router).
    RemoveSnapshot {
        /// The volume.
        volume: VolumeId,
        /// The snapshot's name.
        name: String,
        /// Which one is meant: not another that has its name by now. `None`: whichever has the name.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        id: Option<SnapshotId>,
    },
    /// Make the volume what a snapshot is.
    RollBack {
        /// The volume.
        volume: VolumeId,
        /// The snapshot's name.
        to: String,
        /// Id for the state before, chosen at random by whoever asks; asking again with it changes nothing.
        id: SnapshotId,
        /// Name under which the state before is kept; `None`: it is not.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        keep: Option<String>,
    },
    /// The volume's snapshots, oldest first.
    ListSnapshots {
        /// The volume.
        volume: VolumeId,
    },
    /// Let the volume take writes, or none (a template).
    SetReadOnly {
        /// The volume.
        volume: VolumeId,
        /// It takes none.
        read_only: bool,
    },
    /// Make the volume, a clone, independent of the volumes that it comes from: what they hold is copied, in the background.
    Flatten {
        /// The volume.
        volume: VolumeId,
    },
    /// What the node knows of itself and its volumes.
    NodeStatus,
    /// What happened at the node and to its volumes. Answered at once where there is something to tell.
    Events(EventsAsk),
    /// Let any moment of the last so many microseconds be had; 0: of none.
    SetHistory {
        /// The volume.
        volume: VolumeId,
        /// The window.
        window_us: u64,
    },
    /// Keep a twin of the volume's write buffer on another volume-router from now on, and wait for it as `mode` says. Answered once
    /// the registry's record has the mode.
    SetDtl {
        /// The volume.
        volume: VolumeId,
        /// What is waited for.
        mode: DtlMode,
    },
    /// Hand the volume over to another volume-router, with everything that is acknowledged. Answered once that owns it.
    Move {
        /// The volume.
        volume: VolumeId,
        /// Who is to own it.
        to: NodeName,
    },
    /// Have no twin of the volume's write buffer on this node: another one is asked to keep it.
    LeaveTwin {
        /// The volume.
        volume: VolumeId,
        /// The node.
        node: NodeName,
    },
    /// Keep a moment of the volume's history as a snapshot. Answered once it is on the back ends.
    TakeMoment {
        /// The volume.
        volume: VolumeId,
        /// Its id, chosen at random by whoever asks; asking again with it changes nothing.
        id: SnapshotId,
        /// Its name.
        name: String,
        /// The moment, in microseconds since 1970: all that was acknowledged up to then is in it.
        time_us: u64,
        /// What people want written down with it.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        metadata: BTreeMap<String, String>,
    },
    /// Change who may write the volume. Answered once the registry's record says so.
    SetAccess {
        /// The volume.
        volume: VolumeId,
        /// What is to be.
        change: AccessChange,
    },
    /// From a volume's owner to any other volume-router: write this bundle in its place. The request's data is the bundle's
    /// index. Whoever has no time for it refuses at once.
    WriteBundle(Box<BundleJob>),
}

/// Answers to [`VolumeControl`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum VolumeControlReply {
    /// The volume is open.
    Opened {
        /// For the operations on this connection.
        handle: u32,
        /// The ownership that serves it.
        epoch: Epoch,
        /// Its size now.
        size: VolumeSize,
        /// Whether it takes no writes.
        read_only: bool,
        /// The snapshot that was opened: a name may be another's later.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        snapshot: Option<SnapshotId>,
        /// What came of wanting to write. An owner of a build before there was write access gives none: it takes all writes.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        access: Option<AccessReply>,
    },
    /// The answer to `OpenChanges`.
    OpenedChanges {
        /// For the operations on this connection.
        handle: u32,
        /// The ownership that serves it.
        epoch: Epoch,
        /// Size of what was opened.
        size: VolumeSize,
        /// The snapshot that was opened: a name may be another's later.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        snapshot: Option<SnapshotId>,
        /// The snapshot that it is compared with.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        since: Option<SnapshotId>,
    },
    /// Done.
    Done,
    /// The answer to `Show`.
    Volume(Box<VolumeStatus>),
    /// The answer to `NodeStatus`.
    Node(NodeStatus),
    /// The answer to `Events`.
    Events(EventPage),
    /// The answer to `ListSnapshots`.
    Snapshots {
        /// Oldest first.
        snapshots: Vec<SnapshotStatus>,
    },
    /// The answer to `WriteBundle`: it is stored.
    BundleWritten {
        /// Its length.
        length: ByteLen,
    },
}

/// What an owner knows of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotStatus {
    /// Its id.
    pub id: SnapshotId,
    /// Its name.
    pub name: String,
    /// When it was taken, in microseconds since 1970.
    pub created_us: u64,
    /// Size of the volume then.
    pub size: VolumeSize,
    /// Clusters that were mapped then, in bytes.
    pub allocated: ByteLen,
    /// Whether it survives the loss of every router.
    pub synced: bool,
    /// What people wrote down with it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
}

/// What an owner knows of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeStatus {
    /// The volume.
    pub id: VolumeId,
    /// Size as the guest sees it.
    pub size: VolumeSize,
    /// Clusters that are mapped, in bytes.
    pub allocated: ByteLen,
    /// Who owns it.
    pub owner: NodeName,
    /// The ownership's number.
    pub epoch: Epoch,
    /// State of its DTL.
    pub dtl_state: DtlState,
    /// What its twin is waited for. Builds before there were twins lack it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dtl_mode: Option<DtlMode>,
    /// Where its twin is, or is being made, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dtl_host: Option<NodeName>,
    /// Clusters of a SCO.
    pub sco_size: ScoSize,
    /// Acknowledged data that is only in the write buffer.
    pub unstored: ByteLen,
    /// Memory that the map takes now.
    pub map_memory: ByteLen,
    /// `serving`, or what it waits for.
    pub state: String,
    /// Since when it is served, or is not, in microseconds since 1970. Builds before there were events lack it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state_since_us: Option<u64>,
    /// Its path, where the owner knows it. Likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Why it has no twin that is in sync, where it wants one and something went wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dtl_trouble: Option<String>,
    /// Its history, if it is on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub history: Option<HistoryReach>,
    /// How far a clone is on its way to independence, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flatten: Option<FlattenProgress>,
    /// Its scrubbing. Builds before scrubbing had a status lack it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scrub: Option<Box<ScrubReport>>,
}

/// What scrubbing did for a volume since its owner opened it, and what is left. Times are in microseconds since 1970, 0:
/// never.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubReport {
    /// What it does, in a word: `idle`, `due`, `searching`, `looking`, `sealing`, `writing`; or why it does not run:
    /// `pressed`, `counting`, `off`, `failing`.
    pub state: String,
    /// Clusters that SCOs have, by the last pass over the SCO table.
    pub stored: ByteLen,
    /// Those of them that nothing refers to.
    pub dead: ByteLen,
    /// How much of that is to be given back.
    pub to_win: ByteLen,
    /// What was given back.
    pub won: ByteLen,
    /// Objects that hold SCOs, by the last pass.
    pub objects: u64,
    /// Objects that wait to be deleted.
    pub condemned: u64,
    /// Objects that were written in place of others.
    pub rewritten: u64,
    /// SCOs that went whole.
    pub removed: u64,
    /// Tries that failed.
    pub failures: u64,
    /// When something was last given back.
    pub last_success_us: u64,
    /// When the last try failed.
    pub last_failure_us: u64,
    /// The neighbour that was asked to write the bundle at hand; `None`: there is none at hand, or the owner writes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub writing_at: Option<NodeName>,
    /// How many of `rewritten` neighbours wrote.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub helped: u64,
    /// Bundles that a neighbour began and did not answer for in time, or not well: the owner wrote them.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub taken_back: u64,
    /// Orphans that sweeps deleted.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub swept: u64,
    /// When a sweep last looked at all the volume's objects.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub last_sweep_us: u64,
}

/// How far back any moment of a volume can be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryReach {
    /// The window, in microseconds.
    pub window_us: u64,
    /// The first moment, in microseconds since 1970; `None`: it has not begun yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_us: Option<u64>,
}

/// How far a clone is on its way to independence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlattenProgress {
    /// What was copied since the owner opened the volume.
    pub copied: ByteLen,
    /// How much of the volume was looked at.
    pub percent: u8,
    /// Snapshots that need what the volume comes from, and keep it from being independent as long as they are there. One
    /// without a name was removed and is still being counted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waits_for: Vec<String>,
    /// Its history, which reaches back to when it had something of what it comes from, keeps it from that too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub waits_for_history: bool,
    /// What went wrong last; it is tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

/// What a volume-router knows of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Who it is.
    pub node: NodeName,
    /// Size of its write buffer.
    pub buffer_size: ByteLen,
    /// What of it holds SCOs that are not on the back ends yet.
    pub buffer_unstored: ByteLen,
    /// Its volumes.
    pub volumes: Vec<VolumeStatus>,
    /// What waits in it, against its limits.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub queues: Vec<QueueStatus>,
    /// Deleted volumes whose objects it removes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub erasing: Vec<ErasureStatus>,
}

/// How far the erasure of a deleted volume is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErasureStatus {
    /// The volume.
    pub volume: VolumeId,
    /// Objects that were removed since the node began it.
    pub deleted: u64,
    /// What it does, or waits for.
    pub state: String,
}

/// How full a queue of a service is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueStatus {
    /// What waits in it.
    pub name: String,
    /// Requests that wait for room in it.
    pub waiting: u64,
    /// Requests in it.
    pub requests: u64,
    /// Most requests that it takes.
    pub requests_max: u64,
    /// Their bytes.
    pub bytes: ByteLen,
    /// Most bytes that it takes.
    pub bytes_max: ByteLen,
}

const IO: u64 = 0;
const CONTROL: u64 = 1;
const TWIN: u64 = 2;

impl Body for VolumeRequest {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            VolumeRequest::Io(io) => {
                put_array(out, 8);
                put_uint(out, IO);
                put_uint(out, u64::from(io.handle));
                put_uint(out, io.number);
                put_uint(out, io.below);
                put_uint(out, io.code as u64);
                put_uint(out, u64::from(io.flags.0));
                put_uint(out, io.offset);
                put_uint(out, io.length);
            }
            VolumeRequest::Control(control) => {
                put_array(out, 2);
                put_uint(out, CONTROL);
                put_named(out, control);
            }
            VolumeRequest::Twin(request) => {
                put_array(out, 2);
                put_uint(out, TWIN);
                put_named(out, request);
            }
        }
    }

    fn decode(input: &mut &[u8]) -> Result<Self, DecodeError> {
        let more = take_fields(input, "volume request", 2)?;
        match take_uint::<u64>(input, "volume request kind")? {
            IO => {
                let more = more.checked_sub(6).ok_or(DecodeError::Short {
                    what: "volume request",
                    have: more + 2,
                    need: 8,
                })?;
                let io = take_io(input)?;
                skip(input, "volume request", more)?;
                Ok(VolumeRequest::Io(io))
            }
            CONTROL => {
                let control = take_named(input, "volume control request")?;
                skip(input, "volume request", more)?;
                Ok(VolumeRequest::Control(control))
            }
            TWIN => {
                let request = take_named(input, "twin request")?;
                skip(input, "volume request", more)?;
                Ok(VolumeRequest::Twin(request))
            }
            kind => Err(unknown("volume request kind", kind, "0 to 2")),
        }
    }

    fn name(&self) -> &'static str {
        super::names::of_volume(self)
    }

    fn is_control(&self) -> bool {
        super::names::is_volume_control(self)
    }
}

fn take_io(input: &mut &[u8]) -> Result<IoRequest, DecodeError> {
    Ok(IoRequest {
        handle: take_uint(input, "io.handle")?,
        number: take_uint(input, "io.number")?,
        below: take_uint(input, "io.below")?,
        code: take_one_of(input, "io.code", &CODES, "0 to 7")?,
        flags: IoFlags(take_uint(input, "io.flags")?),
        offset: take_uint(input, "io.offset")?,
        length: take_uint(input, "io.length")?,
    })
}

fn take_one_of<T: Copy>(
    input: &mut &[u8],
    what: &'static str,
    all: &[T],
    expected: &'static str,
) -> Result<T, DecodeError> {
    let index: u64 = take_uint(input, what)?;
    let found = usize::try_from(index)
        .ok()
        .and_then(|index| all.get(index).copied());
    found.ok_or_else(|| unknown(what, index, expected))
}

fn unknown(what: &'static str, found: u64, expected: &'static str) -> DecodeError {
    DecodeError::Value {
        what,
        found: found.to_string(),
        expected,
    }
}

const DONE: u64 = 0;
const READ: u64 = 1;
const EXTENTS: u64 = 2;
const CONTROLLED: u64 = 3;
const REFUSED: u64 = 4;
const CHANGES: u64 = 5;
const TWINNED: u64 = 6;

const DATA: u64 = 0;
const ZEROS: u64 = 1;
const LOCATED: u64 = 2;

impl Body for VolumeReply {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            VolumeReply::Done => {
                put_array(out, 1);
                put_uint(out, DONE);
            }
            VolumeReply::Read(extents) => {
                put_array(out, 2);
                put_uint(out, READ);
                put_array(out, extents.len());
                extents.iter().for_each(|extent| extent.encode(out));
            }
            VolumeReply::Extents(extents) => {
                put_array(out, 2);
                put_uint(out, EXTENTS);
                put_array(out, extents.len() * 2);
                for extent in extents {
                    put_uint(out, extent.kind as u64);
                    put_uint(out, extent.length);
                }
            }
            VolumeReply::Changes(extents) => {
                put_array(out, 2);
                put_uint(out, CHANGES);
                put_array(out, extents.len() * 2);
                for extent in extents {
                    put_uint(out, extent.kind as u64);
                    put_uint(out, extent.length);
                }
            }
            VolumeReply::Control(control) => {
                put_array(out, 2);
                put_uint(out, CONTROLLED);
                put_named(out, control);
            }
            VolumeReply::Twin(reply) => {
                put_array(out, 2);
                put_uint(out, TWINNED);
                put_named(out, reply);
            }
            VolumeReply::Refused(refusal) => {
                put_array(out, 2);
                put_uint(out, REFUSED);
                refusal.encode(out);
            }
        }
    }

    fn decode(input: &mut &[u8]) -> Result<Self, DecodeError> {
        let fields = take_fields(input, "volume reply", 1)? + 1;
        let kind: u64 = take_uint(input, "volume reply kind")?;
        if kind != DONE && fields < 2 {
            return Err(DecodeError::Short {
                what: "volume reply",
                have: fields,
                need: 2,
            });
        }
        let (reply, taken) = match kind {
            DONE => (VolumeReply::Done, 1),
            READ => {
                let count = take_array(input, "read extents")?;
                let extents = (0..count)
                    .map(|_| ReadExtent::decode(input))
                    .collect::<Result<_, _>>()?;
                (VolumeReply::Read(extents), 2)
            }
            EXTENTS => {
                let count = take_array(input, "extents")? / 2;
                let extents = (0..count).map(|_| take_extent(input)).collect::<Result<_, _>>()?;
                (VolumeReply::Extents(extents), 2)
            }
            CHANGES => {
                let count = take_array(input, "changes")? / 2;
                let changes = (0..count).map(|_| take_change(input)).collect::<Result<_, _>>()?;
                (VolumeReply::Changes(changes), 2)
            }
            CONTROLLED => (
                VolumeReply::Control(take_named(input, "volume control reply")?),
                2,
            ),
            TWINNED => (VolumeReply::Twin(take_named(input, "twin reply")?), 2),
            REFUSED => (VolumeReply::Refused(Refusal::decode(input)?), 2),
            kind => return Err(unknown("volume reply kind", kind, "0 to 6")),
        };
        skip(input, "volume reply", fields - taken)?;
        Ok(reply)
    }
}

fn take_extent(input: &mut &[u8]) -> Result<ExtentStatus, DecodeError> {
    let kind = take_one_of(input, "extent kind", &EXTENT_KINDS, "0 to 2")?;
    Ok(ExtentStatus {
        kind,
        length: take_uint(input, "extent length")?,
    })
}

fn take_change(input: &mut &[u8]) -> Result<ChangedExtent, DecodeError> {
    let kind = take_one_of(input, "change kind", &CHANGE_KINDS, "0 to 3")?;
    Ok(ChangedExtent {
        kind,
        length: take_uint(input, "change length")?,
    })
}

impl ReadExtent {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            ReadExtent::Data { length } => {
                put_array(out, 2);
                put_uint(out, DATA);
                put_uint(out, u64::from(*length));
            }
            ReadExtent::Zeros { length } => {
                put_array(out, 2);
                put_uint(out, ZEROS);
                put_uint(out, u64::from(*length));
            }
            ReadExtent::Located {
                volume,
                sco,
                epoch,
                version,
                first_slot,
                crcs,
            } => {
                put_array(out, 7);
                put_uint(out, LOCATED);
                put_bin(out, &volume.0);
                put_uint(out, sco.0);
                put_uint(out, epoch.0);
                put_uint(out, u64::from(*version));
                put_uint(out, u64::from(first_slot.0));
                put_array(out, crcs.len());
                crcs.iter().for_each(|crc| put_uint(out, u64::from(*crc)));
            }
        }
    }

    fn decode(input: &mut &[u8]) -> Result<Self, DecodeError> {
        let fields = take_fields(input, "read extent", 2)? + 2;
        let kind: u64 = take_uint(input, "read extent kind")?;
        if kind == LOCATED && fields < 7 {
            return Err(DecodeError::Short {
                what: "located extent",
                have: fields,
                need: 7,
            });
        }
        let (extent, taken) = match kind {
            DATA => (
                ReadExtent::Data {
                    length: take_uint(input, "data extent length")?,
                },
                2,
            ),
            ZEROS => (
                ReadExtent::Zeros {
                    length: take_uint(input, "zeros extent length")?,
                },
                2,
            ),
            LOCATED => (Self::take_located(input)?, 7),
            kind => return Err(unknown("read extent kind", kind, "0 to 2")),
        };
        skip(input, "read extent", fields - taken)?;
        Ok(extent)
    }

    fn take_located(input: &mut &[u8]) -> Result<Self, DecodeError> {
        let bytes = take_bin(input, "located extent volume", 16)?;
        let volume = VolumeId(bytes.try_into().map_err(|_| DecodeError::Short {
            what: "located extent volume",
            have: bytes.len(),
            need: 16,
        })?);
        let sco = ScoId(take_uint(input, "located extent sco")?);
        let epoch = Epoch(take_uint(input, "located extent epoch")?);
        let version = take_uint(input, "located extent version")?;
        let first_slot = Slot(take_uint(input, "located extent slot")?);
        let count = take_array(input, "located extent crcs")?;
        let crcs = (0..count)
            .map(|_| take_uint(input, "located extent crc"))
            .collect::<Result<_, _>>()?;
        Ok(ReadExtent::Located {
            volume,
            sco,
            epoch,
            version,
            first_slot,
            crcs,
        })
    }
}
