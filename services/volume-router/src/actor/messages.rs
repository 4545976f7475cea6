//! What a volume's actor is told.
//!
//! Keeps: nothing; these are values.
//! Order: that of the mailbox.
//! Crash: nothing.
//! Knows no engine beyond its events.

use actix::Message;
use bytes::Bytes;
use sconce_schemas::access::{AccessAsk, AccessChange};
use sconce_schemas::records::{DtlMode, TwinHost};
use sconce_schemas::wire::Refusal;
use sconce_schemas::wire::volume::{IoRequest, VolumeStatus};
use sconce_schemas::{Epoch, NodeName, ScoId, SessionId, SnapshotId, VolumeSize};
use sconce_tracing::Trace;
use sconce_volume::{Ask, Compared, Event, Extent, FetchId, MomentAsk, SessionSlot, SnapshotInfo, Ticket};
use std::time::Duration;

use super::permits::{Pass, Permit};
use super::read::Outcome;
use crate::owner::AncestorRoot;
use crate::owner::record::TakeOver;
use crate::placement::Chosen;
use crate::port::OpenOn;

/// One operation of a round.
#[derive(Debug)]
pub(crate) struct Operation {
    /// For its answer.
    pub(crate) ticket: Ticket,
    /// The run of the volume that its session was opened in.
    pub(crate) generation: u32,
    /// What it is on.
    pub(crate) on: OpenOn,
    /// What its handle may change.
    pub(crate) pass: Pass,
    /// What to do.
    pub(crate) request: IoRequest,
    /// The data of a write.
    pub(crate) data: Bytes,
    /// What it belongs to, if that is recorded in spans.
    pub(crate) recorded: Option<Box<Trace>>,
}

/// All operations of one bus message on one volume.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct Round(pub(crate) Vec<Operation>);

/// An open session.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Opened {
    pub(crate) slot: SessionSlot,
    pub(crate) generation: u32,
    pub(crate) epoch: Epoch,
    pub(crate) size: VolumeSize,
    pub(crate) read_only: bool,
}

/// Wait until the volume is served, or hear why it is not.
#[derive(Debug, Message)]
#[rtype(result = "Result<(), Refusal>")]
pub(crate) struct Served;

/// Open a session on a volume that is served.
#[derive(Debug, Message)]
#[rtype(result = "Result<Opened, Refusal>")]
pub(crate) struct OpenSession(pub(crate) SessionId);

/// Open a snapshot of a volume that is served, to be read.
#[derive(Debug, Message)]
#[rtype(result = "Result<OpenedSnapshot, Refusal>")]
pub(crate) struct OpenSnapshot(pub(crate) String);

/// An open snapshot.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OpenedSnapshot {
    pub(crate) id: SnapshotId,
    pub(crate) generation: u32,
    pub(crate) epoch: Epoch,
    pub(crate) size: VolumeSize,
}

/// Open a volume that is served, or a snapshot of it, to be compared.
#[derive(Debug, Message)]
#[rtype(result = "Result<OpenedCompared, Refusal>")]
pub(crate) struct OpenCompared {
    /// The snapshot's name; `None`: the volume.
    pub(crate) of: Option<String>,
    pub(crate) since: CompareWith,
}

/// What is to be compared with.
#[derive(Debug)]
pub(crate) enum CompareWith {
    Nothing,
    /// The volume's snapshot of this name.
    Snapshot(String),
    /// An ancestor's snapshot.
    Ancestor(AncestorRoot),
}

/// The two roots.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OpenedCompared {
    pub(crate) compared: Compared,
    /// The snapshot that is compared with.
    pub(crate) since: Option<SnapshotId>,
    pub(crate) generation: u32,
    pub(crate) epoch: Epoch,
    pub(crate) size: VolumeSize,
}

/// Write a record into the log, and answer the ticket.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct Request(pub(crate) Ticket, pub(crate) Ask);

/// The snapshots.
#[derive(Debug, Message)]
#[rtype(result = "Result<Vec<SnapshotInfo>, Refusal>")]
pub(crate) struct ListSnapshots;

/// Let the front end that has this session open change the volume.
#[derive(Debug, Message)]
#[rtype(result = "Result<Permit, Refusal>")]
pub(crate) struct TakeAccess {
    pub(crate) generation: u32,
    pub(crate) slot: SessionSlot,
    pub(crate) ask: AccessAsk,
    /// It is asked again soon: whoever has access may be about to give it up.
    pub(crate) patient: bool,
}

/// Change who may write.
#[derive(Debug, Message)]
#[rtype(result = "Result<(), Refusal>")]
pub(crate) struct SetAccess(pub(crate) AccessChange);

/// The session is over.
#[derive(Debug, Message)]
#[rtype(result = "Result<(), Refusal>")]
pub(crate) struct CloseSession {
    pub(crate) generation: u32,
    pub(crate) slot: SessionSlot,
}

/// The connection has opened the session once more, and has one handle for both.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct OpenedAgain {
    pub(crate) generation: u32,
    pub(crate) slot: SessionSlot,
    /// The pass that it was given both times, if so.
    pub(crate) twice: Option<Pass>,
}

/// The connection that had the session open is gone: its client may come back, or another may take its place.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct ClientGone {
    pub(crate) generation: u32,
    pub(crate) slot: SessionSlot,
    pub(crate) pass: Pass,
}

/// What the volume knows of itself.
#[derive(Debug, Message)]
#[rtype(result = "VolumeStatus")]
pub(crate) struct Show;

/// Answer the ticket when all that was written is stored.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct Sync(pub(crate) Ticket);

/// The path changed.
#[derive(Debug, Message)]
#[rtype(result = "Result<(), Refusal>")]
pub(crate) struct Renamed;

/// The volume is gone from the names.
#[derive(Debug, Message)]
#[rtype(result = "Result<(), Refusal>")]
pub(crate) struct Delete;

/// What the twin is waited for, from now on.
#[derive(Debug, Message)]
#[rtype(result = "Result<(), Refusal>")]
pub(crate) struct SetDtl(pub(crate) DtlMode);

/// Hand the volume over to this node; with why, where nobody asked for it.
#[derive(Debug, Message)]
#[rtype(result = "Result<(), Refusal>")]
pub(crate) struct MoveTo(pub(crate) NodeName, pub(crate) Option<Chosen>);

/// Have no twin on this node, if another one keeps it.
#[derive(Debug, Message)]
#[rtype(result = "Result<(), Refusal>")]
pub(crate) struct LeaveTwin(pub(crate) NodeName);

/// Own the volume here; [`Served`] tells what came of it.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct Take(pub(crate) TakeOver);

/// The owner of the volume is gone, and its twin is here: own it here.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct Orphaned;

/// Store what is not stored and release the volume, within this time.
#[derive(Debug, Message)]
#[rtype(result = "bool")]
pub(crate) struct Drain(pub(crate) Duration);

/// The record says that the volume may have another owner, or none: look. Answered with whether that is known.
#[derive(Debug, Message)]
#[rtype(result = "bool")]
pub(crate) struct Verify;

/// The registry tells who owns the volume.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct Followed {
    pub(crate) owner: NodeName,
    pub(crate) epoch: Epoch,
    /// Where an operator wants the twin to be.
    pub(crate) twin_host: Option<TwinHost>,
}

/// A job's outcome.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct Happened {
    pub(crate) generation: u32,
    pub(crate) event: Event,
}

/// Somebody else owns the volume.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct Lost {
    pub(crate) generation: u32,
    pub(crate) refusal: Refusal,
}

/// A bug was noticed beside the engine.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct Broken {
    pub(crate) generation: u32,
    pub(crate) reason: String,
}

/// What a blocking read found.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct Found {
    pub(crate) generation: u32,
    pub(crate) read: FoundRead,
}

/// Whom a blocking read was for.
#[derive(Debug)]
pub(crate) enum FoundRead {
    /// A client.
    Client(Ticket, Outcome),
    /// A change that covers a cluster in part.
    Fetch(FetchId, Extent, Result<Bytes, BadExtent>),
}

/// A part of a read whose local copy is not good.
#[derive(Debug, Clone)]
pub(crate) struct BadExtent {
    /// Which SCO it is in.
    pub(crate) sco: ScoId,
    /// That SCO's epoch.
    pub(crate) epoch: Epoch,
    /// Whether the back ends have it.
    pub(crate) stored: bool,
    /// Bytes from the start of the read to the bad cluster.
    pub(crate) at: u64,
    /// What is wrong, with the slot.
    pub(crate) detail: String,
}

/// A moment of the history is to be kept as a snapshot.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct AskMoment(pub(crate) Ticket, pub(crate) MomentAsk);

/// The device wants a cache's file.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct Evict {
    pub(crate) sco: ScoId,
    pub(crate) epoch: Epoch,
}

/// The device has a free file.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct FileReady;

/// The device has no room left.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct Pressed;

/// Somebody waits for what is not stored.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct StoreSoon;
