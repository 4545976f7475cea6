//! What the engine takes in and what it asks for: the whole boundary between the engine and the world.
//!
//! Keeps: nothing; these are values.
//! Order: effects are carried out in the order given; an [`Effect::Append`] before the [`Effect::Read`] behind it.
//! Crash: an effect that was not carried out did not happen; recovery does not know of it.
//! Knows no sockets, no clock, no tasks.

use std::sync::Arc;

use bytes::Bytes;
use sconce_schemas::checkpoint::{NodePlace, NodeRecord, NodeRef};
use sconce_schemas::manifest::{Manifest, TreeRoot};
use sconce_schemas::object::ObjectKind;
use sconce_schemas::records::DtlMode;
use sconce_schemas::sco::ScoHeader;
use sconce_schemas::wire::Refusal;
use sconce_schemas::wire::volume::{IoRequest, VolumeReply};
use sconce_schemas::{
    BatchSeq, ByteLen, CheckpointId, Epoch, ManifestSeq, ObjectName, ScoId, Slot, SnapshotId, VolumeId,
};

use crate::changes::Compared;
use crate::checkpoint::Frozen;
use crate::moments::MomentAsk;
use crate::scrub::{BundlePlan, ScoObject};
use crate::snapshots::{Ask, StoredSnapshot};

/// Names a request that waits for its answer; chosen by the host, given back in [`Effect::Reply`] or
/// [`Effect::Read`] exactly once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(pub u64);

impl Ticket {
    /// Of what the engine asks of itself: nobody hears the answer.
    pub(crate) const NOBODY: Self = Self(u64::MAX - 1);
}

/// Slot of a session in the volume's session table; given by [`crate::Volume::open_session`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionSlot(pub u16);

impl SessionSlot {
    /// No session's: of what no numbered operation asked for.
    pub const NONE: Self = Self(u16::MAX);
}

/// Names a fetch for a write that covers a cluster in part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FetchId(pub u64);

/// What happens to a volume.
#[derive(Debug)]
pub enum Event {
    /// An operation of a session. `data` is the data of a write, as long as its length says.
    Io {
        /// For the answer.
        ticket: Ticket,
        /// The session; its handle in `request` is the host's and not looked at.
        session: SessionSlot,
        /// What to do.
        request: IoRequest,
        /// The data of a write.
        data: Bytes,
    },
    /// A request that becomes a record in the log: answered with `Done` once the record survives the loss of power.
    Ask {
        /// For the answer.
        ticket: Ticket,
        /// What is asked for.
        ask: Ask,
        /// Microseconds since 1970.
        now_us: u64,
    },
    /// A moment of the history is to be kept as a snapshot: answered with `Done` once a stored manifest has it.
    Moment {
        /// For the answer.
        ticket: Ticket,
        /// What is asked for.
        ask: MomentAsk,
        /// Microseconds since 1970.
        now_us: u64,
    },
    /// Header and TLog areas of a SCO of the log ([`Effect::ReadLog`]).
    LogRead {
        /// The SCO.
        sco: ScoId,
        /// Its epoch.
        epoch: Epoch,
        /// The bytes.
        result: Result<Bytes, Refusal>,
    },
    /// What a flattening copies was read ([`Effect::Copy`]): cluster after cluster, in the order of the extents.
    Copied {
        /// The clusters' 4096 bytes each.
        result: Result<Vec<Bytes>, Refusal>,
    },
    /// A page of the volume's objects ([`Effect::List`]).
    Listed {
        /// Their names, ascending; none: there are no more.
        result: Result<Vec<ObjectName>, Refusal>,
    },
    /// Objects were deleted ([`Effect::Delete`]).
    Deleted {
        /// All of them are gone; otherwise some may be.
        done: bool,
    },
    /// Acknowledgements were held for as long as they may be ([`Effect::Hold`]): they leave, and the snapshot cannot be
    /// confirmed any more.
    HoldOver {
        /// The proposed snapshot.
        snapshot: SnapshotId,
    },
    /// The first bytes of a SCO, header and TLog areas, or the index of a bundle ([`Effect::ReadTlog`]).
    TlogRead {
        /// The object.
        object: ScoObject,
        /// The bytes.
        result: Result<Bytes, Refusal>,
    },
    /// A bundle was written ([`Effect::WriteBundle`]), durably.
    BundleWritten {
        /// As the plan has it.
        above: ScoObject,
        /// Its version, above that one and all that there ever were of this name; `None`: it could not be done now.
        to: Option<u16>,
    },
    /// A SCO's object was deleted, or (`false`) could not be.
    ScoDeleted {
        /// The object.
        object: ScoObject,
        /// It is gone.
        done: bool,
    },
    /// A read or extents request of a snapshot.
    SnapshotIo {
        /// For the answer.
        ticket: Ticket,
        /// The snapshot.
        snapshot: SnapshotId,
        /// What to do.
        request: IoRequest,
    },
    /// A request on two roots, which answers what differs.
    ComparedIo {
        /// For the answer.
        ticket: Ticket,
        /// The roots.
        compared: Compared,
        /// What to do.
        request: IoRequest,
    },
    /// A connection that had this session open is gone ([`crate::Volume::open_session`] was called for it): what it sent
    /// and what still waits for something is dropped and answered with `Retry`; its numbers are new if they come again.
    /// Otherwise a write of a client that is no more could overwrite what its successor wrote.
    ClientGone {
        /// The session.
        session: SessionSlot,
    },
    /// The client of a connection says that the session is over: as [`Event::ClientGone`], and none of its numbers
    /// comes again.
    SessionClosed {
        /// The session.
        session: SessionSlot,
    },
    /// Another front end may change the volume from here on, and this session may not: as [`Event::ClientGone`], but the
    /// connection is there.
    SessionFenced {
        /// The session.
        session: SessionSlot,
    },
    /// As [`Event::SessionFenced`], for all sessions but this.
    OthersFenced {
        /// The session that may change the volume.
        session: SessionSlot,
    },
    /// No more input is queued: what was taken in so far leaves as one batch.
    BatchEnd {
        /// Microseconds since 1970.
        now_us: u64,
    },
    /// The write buffer has this SCO's file, header written ([`Effect::OpenSco`]).
    ScoOpened {
        /// The SCO.
        sco: ScoId,
    },
    /// All batches up to this one are in the write buffer: they survive the death of this process.
    AppendHeld {
        /// The last of them.
        upto: BatchSeq,
    },
    /// All batches up to this one are synced: they survive the loss of power.
    Synced {
        /// The last of them.
        upto: BatchSeq,
    },
    /// A closed SCO's file is synced.
    ScoSynced {
        /// The SCO.
        sco: ScoId,
    },
    /// The mode of the twin that the registry's record has from now on.
    TwinMode {
        /// What is waited for.
        mode: DtlMode,
    },
    /// A twin listens: from here on it is told of every SCO and batch ([`Effect::TwinOpen`], [`Append::twin`]), and of what is
    /// not stored yet ([`Effect::TwinCopy`]). The registry's record does not say yet that anybody relies on it.
    TwinAttached,
    /// A SCO was copied to the twin, durably; or it is on the back ends by now and its file is gone.
    TwinCopied {
        /// The SCO.
        sco: ScoId,
    },
    /// The twin holds all batches up to this one.
    TwinHeld {
        /// The last of them.
        upto: BatchSeq,
    },
    /// On the twin all batches up to this one are synced.
    TwinSynced {
        /// The last of them.
        upto: BatchSeq,
    },
    /// The registry's record says that the twin has every acknowledged write ([`Effect::RecordInSync`]).
    TwinInSync,
    /// The twin is lost, or is to be given up: nothing more comes of what it was told.
    TwinLost,
    /// The registry's record says that there is no twin to rely on ([`Effect::RecordDegraded`]).
    TwinDegraded,
    /// The write buffer cannot keep what it was given (an error of the device): the volume halts, nothing that is
    /// not held is acknowledged, and the host recovers it from what the device has.
    DeviceFailed {
        /// What the device said.
        error: String,
    },
    /// The turn of long work, asked for with [`Effect::Turn`].
    Turn,
    /// A cluster for a write that covers it in part, CRC checked by the host.
    Fetched {
        /// Which fetch.
        fetch: FetchId,
        /// The cluster's 4096 bytes.
        result: Result<Bytes, Refusal>,
    },
    /// A node of a tree, CRC checked: its record, the record that this one is a delta on, … down to a whole one.
    NodeLoaded {
        /// Where it belongs.
        place: NodePlace,
        /// What was asked for.
        reference: NodeRef,
        /// The records, newest first; the last one is whole.
        result: Result<Vec<NodeRecord>, Refusal>,
    },
    /// A SCO is on the back ends, on all that its pool's policy asks for.
    ScoStored {
        /// The SCO.
        sco: ScoId,
    },
    /// All objects of a checkpoint are on the back ends.
    CheckpointStored {
        /// What [`Frozen::encode`] gave.
        roots: StoredRoots,
    },
    /// The manifest is on the back ends and the registry's record names it.
    ManifestStored {
        /// Its number.
        seq: ManifestSeq,
    },
    /// The back ends take nothing more for want of space, or take something again: scrubbing hurries.
    BackEndsFull {
        /// Whether they are full.
        full: bool,
    },
    /// The host took the local copy of a covered SCO away to make room ([`Effect::Evictable`] allowed it).
    Evicted {
        /// The SCO.
        sco: ScoId,
    },
    /// A control request: answer when all that was written before it is on the back ends and a manifest names it.
    Sync {
        /// For the answer.
        ticket: Ticket,
    },
    /// The volume's path changed: the next manifest names it, and one is written soon.
    Renamed {
        /// The new path.
        path: String,
    },
    /// Time passes (about once a second while anything is unstored; never needed for correctness).
    Tick {
        /// Microseconds since 1970.
        now_us: u64,
        /// The write buffer runs short: store and cover what can be, so that files can be recycled.
        pressed: bool,
    },
}

/// What the engine asks for. `Append`, `OpenSco`, `Read` of local extents and `Reply` are carried out at once and in
/// order; the others are started and answered by an event later, in any order.
#[derive(Debug)]
pub enum Effect {
    /// Take a file of the write buffer for this SCO and write its header; answer `ScoOpened` when there is one.
    OpenSco {
        /// What to write at its start.
        header: ScoHeader,
    },
    /// Write a batch: its clusters into the data area, its entries into the TLog area; answer `AppendHeld`.
    Append(Append),
    /// Tell the twin that this SCO was opened.
    TwinOpen {
        /// What it writes at its start.
        header: ScoHeader,
    },
    /// Copy a closed SCO to the twin, as [`Effect::Upload`] says; answer `TwinCopied`. One at a time is outstanding.
    TwinCopy {
        /// The SCO.
        sco: ScoId,
        /// Its epoch.
        epoch: Epoch,
        /// Bytes of its TLog area that are used.
        tlog_len: ByteLen,
        /// Bytes: header, TLog area, and the data area as far as it is used.
        length: ByteLen,
    },
    /// Have the twin sync every file with batches up to `upto`; answer `TwinSynced`. One at a time is outstanding.
    TwinSync {
        /// The last batch that has to survive.
        upto: BatchSeq,
    },
    /// Tell the twin that SCOs up to this one are on the back ends and covered: nobody needs its copies.
    TwinRelease {
        /// The last of them.
        upto: ScoId,
    },
    /// The twin has every acknowledged write: the registry's record is to say so; answer `TwinInSync`, or `TwinLost` if it cannot be
    /// known whether it does.
    RecordInSync,
    /// The twin is lost: the registry's record is to say so; answer `TwinDegraded` once it does.
    RecordDegraded,
    /// Nothing more is appended to this SCO: sync its file; answer `ScoSynced`.
    CloseSco {
        /// The SCO.
        sco: ScoId,
    },
    /// Sync every file with batches up to `upto`; answer `Synced`. One at a time is outstanding.
    Sync {
        /// The last batch that has to survive.
        upto: BatchSeq,
    },
    /// Answer a read with these extents, in order; local ones are read from the write buffer with CRC checks.
    Read {
        /// The read.
        ticket: Ticket,
        /// What it covers, cluster-aligned.
        extents: Vec<Extent>,
    },
    /// Answer a request.
    Reply {
        /// The request.
        ticket: Ticket,
        /// The answer.
        reply: VolumeReply,
    },
    /// Read header and TLog areas of a SCO of the log, as it was written (version 0); answer `LogRead`.
    ReadLog {
        /// The SCO.
        sco: ScoId,
        /// Its epoch.
        epoch: Epoch,
        /// It was not stored yet: from the write buffer, unless it has moved to the back ends meanwhile.
        local: bool,
    },
    /// Read what a flattening copies, without haste; answer `Copied`. One at a time is outstanding.
    Copy {
        /// Clusters of ancestors.
        extents: Vec<Extent>,
    },
    /// List a page of the volume's objects on the back ends, without haste; answer `Listed`. One at a time is outstanding.
    List {
        /// Objects of this kind.
        kind: ObjectKind,
        /// Those after this one.
        after: Option<ObjectName>,
    },
    /// Delete objects that nothing refers to, without haste, if this is still the volume's owner; answer `Deleted`. One at a
    /// time is outstanding.
    Delete {
        /// The objects, of any kind.
        names: Vec<ObjectName>,
    },
    /// A stored manifest says that the volume, a clone, needs nothing of the volumes that it comes from: the registry is to
    /// say so too. A host that finds such a manifest at its start does the same.
    Independent,
    /// A proposed snapshot is in the log: acknowledgements of what comes after it are held. Answer `HoldOver` after the
    /// time that this may last.
    Hold {
        /// The snapshot.
        snapshot: SnapshotId,
    },
    /// Read a stored SCO's header and TLog areas, or all of a bundle's index; answer `TlogRead`.
    ReadTlog {
        /// The object.
        object: ScoObject,
    },
    /// Write what is kept of some objects as a bundle; answer `BundleWritten`. The objects that are there stay.
    WriteBundle {
        /// What to write.
        plan: Box<BundlePlan>,
    },
    /// Delete a SCO's object, which nothing refers to; answer `ScoDeleted`.
    DeleteSco {
        /// The object.
        object: ScoObject,
    },
    /// Long work has done a piece: say [`Event::Turn`] once what is queued by now was taken in.
    Turn,
    /// Read one cluster for a write that covers it in part; answer `Fetched`.
    Fetch {
        /// Which fetch.
        fetch: FetchId,
        /// Where the cluster is.
        from: Extent,
    },
    /// Read a node, and the nodes that it is a delta on; answer `NodeLoaded`.
    LoadNode {
        /// Where it belongs.
        place: NodePlace,
        /// Where it is stored.
        reference: NodeRef,
    },
    /// Put a closed and synced SCO on the back ends: the first `length` bytes of its file, with zeros where nothing of
    /// this SCO is (behind the header, and in the TLog area from `tlog_len` on): a recycled file still has there what
    /// another volume wrote, and the same SCO has to give the same object twice. Answer `ScoStored`.
    Upload {
        /// The SCO.
        sco: ScoId,
        /// Its epoch, for its name.
        epoch: Epoch,
        /// Bytes of its TLog area that are used.
        tlog_len: ByteLen,
        /// Bytes: header, TLog area, and the data area as far as it is used.
        length: ByteLen,
    },
    /// Encode ([`Frozen::encode`], off the volume's thread) and store a checkpoint; answer `CheckpointStored`.
    StoreCheckpoint {
        /// The trees as they were.
        frozen: Arc<Frozen>,
    },
    /// Store a manifest, then name it in the registry's record; answer `ManifestStored`.
    StoreManifest {
        /// The manifest.
        manifest: Box<Manifest>,
    },
    /// The SCO is on the back ends and a manifest covers it: its local copy is a cache now and may be taken away;
    /// say `Evicted` when it is.
    Evictable {
        /// The SCO.
        sco: ScoId,
    },
    /// An invariant is broken or the device failed: stop this volume, keep the evidence, say it to people.
    Halt {
        /// What is broken.
        reason: String,
    },
}

/// One batch for the write buffer.
#[derive(Debug)]
pub struct Append {
    /// The SCO.
    pub sco: ScoId,
    /// The batch's number.
    pub seq: BatchSeq,
    /// Where its bytes go, counted from the start of the TLog area.
    pub tlog_offset: u64,
    /// The batch.
    pub tlog: Vec<u8>,
    /// Slot of the first cluster.
    pub first_slot: Slot,
    /// The clusters, one after the other; each part is a whole number of clusters.
    pub data: Vec<Bytes>,
    /// The twin is told of it too, and answers `TwinHeld`.
    pub twin: bool,
}

/// A cluster-aligned part of a read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Extent {
    /// Zeros.
    Zeros {
        /// Bytes.
        length: u32,
    },
    /// Slots that follow each other in a SCO of the write buffer.
    Local {
        /// The SCO.
        sco: ScoId,
        /// Slot of the first cluster.
        first_slot: Slot,
        /// CRC32C of each cluster.
        crcs: Vec<u32>,
    },
    /// Slots that follow each other in a SCO that is only on the back ends.
    Stored {
        /// The volume that wrote it.
        volume: VolumeId,
        /// The SCO.
        sco: ScoId,
        /// Its epoch.
        epoch: Epoch,
        /// Its version.
        version: u16,
        /// Slot of the first cluster.
        first_slot: Slot,
        /// CRC32C of each cluster.
        crcs: Vec<u32>,
    },
}

impl Extent {
    /// The object that a stored extent is in; `None`: it is no stored one.
    #[must_use]
    pub const fn object(&self) -> Option<ObjectName> {
        match self {
            Self::Zeros { .. } | Self::Local { .. } => None,
            Self::Stored {
                volume,
                sco,
                epoch,
                version,
                ..
            } => Some(ObjectName::Sco {
                volume: *volume,
                id: *sco,
                epoch: *epoch,
                version: *version,
            }),
        }
    }
}

/// Roots of a checkpoint once it is encoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredRoots {
    /// The map.
    pub map: TreeRoot,
    /// The SCO table.
    pub scos: TreeRoot,
    /// Maps of snapshots.
    pub snapshots: Vec<StoredSnapshot>,
    /// The last checkpoint object.
    pub checkpoint: CheckpointId,
    /// Bytes of its objects.
    pub bytes: u64,
}

/// A checkpoint object, encoded.
#[derive(Debug)]
pub struct CheckpointObject {
    /// Its number.
    pub id: CheckpointId,
    /// The ownership that writes it.
    pub epoch: Epoch,
    /// Its bytes.
    pub bytes: Bytes,
}
