//! A volume's handle: what others may ask of its actor.
//!
//! Keeps: the actor's address.
//! Order: that of the calls of one thread.
//! Crash: an actor that ended answers nothing; its handle says so.
//! Knows no engine.

use std::time::Duration;

use actix::dev::ToEnvelope;
use actix::prelude::SendError;
use actix::{Actor, Addr, Handler, MailboxError, Message};
use sconce_schemas::access::{AccessAsk, AccessChange};
use sconce_schemas::records::{DtlMode, VolumeRecord};
use sconce_schemas::wire::volume::VolumeStatus;
use sconce_schemas::wire::{Refusal, RefusalCode, Remedy};
use sconce_schemas::{NodeName, SessionId};
use sconce_volume::{Ask, MomentAsk, SessionSlot, SnapshotInfo, Ticket};
use tokio::time::Instant;

use super::VolumeActor;
use super::messages::{
    AskMoment, ClientGone, CloseSession, CompareWith, Delete, Drain, Followed, LeaveTwin, ListSnapshots,
    MoveTo, OpenCompared, OpenSession, OpenSnapshot, Opened, OpenedAgain, OpenedCompared, OpenedSnapshot,
    Operation, Orphaned, Renamed, Request, Round, Served, SetAccess, SetDtl, Show, StoreSoon, Sync, Take,
    TakeAccess, Verify,
};
use super::permits::{Pass, Permit};
use crate::owner::record::TakeOver;
use crate::placement::Chosen;

/// How long a front end waits for another, that may have closed the volume a moment ago, before it is refused; and how often it asks.
const GIVEN_UP_WITHIN: Duration = Duration::from_millis(300);
const ASKED_AGAIN_AFTER: Duration = Duration::from_millis(10);

/// A volume's actor, wherever it runs. Clones share it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VolumeHandle {
    actor: Addr<VolumeActor>,
}

impl VolumeHandle {
    pub(super) fn new(actor: Addr<VolumeActor>) -> Self {
        Self { actor }
    }

    /// Whether the actor runs.
    pub(crate) fn is_alive(&self) -> bool {
        self.actor.connected()
    }

    /// Gives the volume a round of operations.
    ///
    /// # Errors
    /// It takes none now: whoever answers tickets has to refuse these with what comes along.
    pub(crate) fn round(&self, operations: Vec<Operation>) -> Result<(), (Vec<Operation>, Refusal)> {
        self.actor
            .try_send(Round(operations))
            .map_err(|error| match error {
                SendError::Full(Round(operations)) => {
                    let text = "too many operations wait for the volume";
                    (operations, Refusal::retry(RefusalCode::Unavailable, text))
                }
                SendError::Closed(Round(operations)) => {
                    let text = "the volume is served here no more: open it again";
                    (operations, Refusal::reroute(RefusalCode::NotOpen, text))
                }
            })
    }

    /// Opens a session once the volume is served.
    pub(crate) async fn open(&self, session: SessionId) -> Result<Opened, Refusal> {
        self.ask(Served).await??;
        self.ask(OpenSession(session)).await?
    }

    /// Returns once the volume is served.
    pub(crate) async fn served(&self) -> Result<(), Refusal> {
        self.ask(Served).await?
    }

    /// Opens a snapshot once the volume is served.
    pub(crate) async fn open_snapshot(&self, name: String) -> Result<OpenedSnapshot, Refusal> {
        self.ask(Served).await??;
        self.ask(OpenSnapshot(name)).await?
    }

    /// Opens two roots to be compared once the volume is served.
    pub(crate) async fn open_compared(
        &self,
        of: Option<String>,
        since: CompareWith,
    ) -> Result<OpenedCompared, Refusal> {
        self.ask(Served).await??;
        self.ask(OpenCompared { of, since }).await?
    }

    /// What is not stored is to be stored now, not when it is due.
    pub(crate) fn store_soon(&self) {
        self.tell(StoreSoon);
    }

    /// The ticket is answered when the record is in the log.
    pub(crate) fn request(&self, ticket: Ticket, ask: Ask) {
        self.tell(Request(ticket, ask));
    }

    /// A moment of the history is to be kept: `ticket` is answered once it is.
    pub(crate) fn moment(&self, ticket: Ticket, ask: MomentAsk) {
        self.tell(AskMoment(ticket, ask));
    }

    /// The snapshots, once the volume is served.
    pub(crate) async fn snapshots(&self) -> Result<Vec<SnapshotInfo>, Refusal> {
        self.ask(Served).await??;
        self.ask(ListSnapshots).await?
    }

    /// Let the front end that has opened this session change the volume.
    pub(crate) async fn take_access(&self, opened: &Opened, ask: AccessAsk) -> Result<Permit, Refusal> {
        let until = Instant::now() + GIVEN_UP_WITHIN;
        loop {
            let patient = Instant::now() < until;
            let take = TakeAccess {
                generation: opened.generation,
                slot: opened.slot,
                ask: ask.clone(),
                patient,
            };
            match self.ask(take).await? {
                // However long that took, it is asked once more without patience: only then is it refused.
                Err(refusal) if refusal.remedy == Remedy::Retry && patient => {
                    tokio::time::sleep(ASKED_AGAIN_AFTER).await;
                }
                taken => return taken,
            }
        }
    }

    /// Change who may write the volume.
    pub(crate) async fn set_access(&self, change: AccessChange) -> Result<(), Refusal> {
        self.ask(Served).await??;
        self.ask(SetAccess(change)).await?
    }

    /// The session is over. Refused where it was opened in an earlier run of the volume: what that had of it is to be found anew.
    pub(crate) async fn close(&self, generation: u32, slot: SessionSlot) -> Result<(), Refusal> {
        self.ask(CloseSession { generation, slot }).await?
    }

    /// The connection has the session open twice, and `twice` too if it was given for both, and tells it by one handle.
    pub(crate) fn opened_again(&self, generation: u32, slot: SessionSlot, twice: Option<Pass>) {
        self.tell(OpenedAgain {
            generation,
            slot,
            twice,
        });
    }

    /// The connection that had the session open is gone.
    pub(crate) fn client_gone(&self, generation: u32, slot: SessionSlot, pass: Pass) {
        self.tell(ClientGone {
            generation,
            slot,
            pass,
        });
    }

    /// What the volume knows of itself.
    pub(crate) async fn show(&self) -> Result<VolumeStatus, Refusal> {
        self.ask(Show).await
    }

    /// The ticket is answered when all that was written is stored.
    pub(crate) fn sync(&self, ticket: Ticket) {
        self.tell(Sync(ticket));
    }

    /// The volume's path changed.
    pub(crate) async fn renamed(&self) -> Result<(), Refusal> {
        self.ask(Renamed).await?
    }

    /// The volume is gone from the names: its space comes back from here on.
    pub(crate) async fn delete(&self) -> Result<(), Refusal> {
        self.ask(Delete).await?
    }

    /// What the volume's twin is waited for, from now on.
    pub(crate) async fn set_dtl(&self, mode: DtlMode) -> Result<(), Refusal> {
        self.ask(Served).await??;
        self.ask(SetDtl(mode)).await?
    }

    /// Hand the volume over to another node; returns once that owns it. `chosen`: why, where nobody asked for it.
    pub(crate) async fn move_to(&self, node: NodeName, chosen: Option<Chosen>) -> Result<(), Refusal> {
        self.ask(Served).await??;
        self.ask(MoveTo(node, chosen)).await?
    }

    /// Have no twin on that node.
    pub(crate) async fn leave_twin(&self, node: NodeName) -> Result<(), Refusal> {
        self.ask(Served).await??;
        self.ask(LeaveTwin(node)).await?
    }

    /// Own the volume here.
    pub(crate) async fn take_over(&self, takeover: TakeOver) -> Result<(), Refusal> {
        self.ask(Take(takeover)).await?;
        self.ask(Served).await?
    }

    /// The volume's owner is gone, and its twin is here: own the volume, if nothing else is under way.
    pub(crate) fn orphaned(&self) {
        self.tell(Orphaned);
    }

    /// Store and release the volume; whether that was done within the time.
    pub(crate) async fn drain(&self, within: Duration) -> bool {
        self.actor.send(Drain(within)).await.unwrap_or(false)
    }

    /// Look whether the volume is still this node's; `false`: the registry could not tell, and it may be served.
    pub(crate) async fn verify(&self) -> bool {
        // An actor that ended serves nothing, so there is nothing to verify.
        self.actor.send(Verify).await.unwrap_or(true)
    }

    /// The registry tells who owns the volume.
    pub(crate) fn follow(&self, record: &VolumeRecord) {
        self.tell(Followed {
            owner: record.owner.clone(),
            epoch: record.epoch,
            twin_host: record.twin_host.clone(),
        });
    }

    pub(super) fn tell<M>(&self, message: M)
    where
        M: Message + Send + 'static,
        M::Result: Send,
        VolumeActor: Handler<M>,
        <VolumeActor as Actor>::Context: ToEnvelope<VolumeActor, M>,
    {
        self.actor.do_send(message);
    }

    async fn ask<M>(&self, message: M) -> Result<M::Result, Refusal>
    where
        M: Message + Send + 'static,
        M::Result: Send,
        VolumeActor: Handler<M>,
        <VolumeActor as Actor>::Context: ToEnvelope<VolumeActor, M>,
    {
        self.actor.send(message).await.map_err(|error| {
            let text = match error {
                MailboxError::Closed => "the volume is served no more",
                MailboxError::Timeout => "the volume did not answer in time",
            };
            Refusal::retry(RefusalCode::Unavailable, text)
        })
    }
}
