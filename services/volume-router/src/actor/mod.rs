//! A volume's actor: the engine's host on its shard's thread.
//!
//! Keeps: where the volume is in its life here, and its files in the write buffer while it is not served.
//! Order: one message after the other; what is waited for comes back as a message and is judged again.
//! Crash: the next owner recovers; a panic here ends this actor alone, its files go back to the device, and the next
//! `Open` begins another.
//! Knows no sockets: requests come as tickets.

mod access;
mod control;
mod handle;
mod life;
mod locals;
mod messages;
mod moving;
mod owner;
mod pace;
mod permits;
mod read;
mod replies;
mod serving;
mod snapshots;

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use actix::{Actor, ActorContext as _, AsyncContext as _, Context, Handler};
use sconce_runtime::{Backoff, Chance};
use sconce_schemas::VolumeId;
use sconce_schemas::wire::{Refusal, RefusalCode};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::device::{FoundSco, Tenant};
use crate::node::Node;
use crate::owner::Known;
use crate::owner::record::TakeOver;
use crate::twin::{Lines, Twins};
use messages::{Evict, FileReady, Pressed, StoreSoon};
use moving::Moving;
use serving::Serving;

pub(crate) use handle::VolumeHandle;
pub(crate) use messages::{CompareWith, Operation};
pub(crate) use owner::Owner;
pub(crate) use pace::SLOW_FROM;
pub(crate) use permits::{Claim, Pass};
pub(crate) use replies::{Replies, ShardCounts, Waiting};

/// Rounds that may wait in a volume's mailbox; more are told to come again.
const MAILBOX: usize = 4096;
/// Control requests that may wait for a volume that is being started.
const STARTS_MAX: usize = 1024;
/// How long a volume waits before it is tried again after a failure.
const AGAIN_FIRST: Duration = Duration::from_millis(20);
const AGAIN_MAX: Duration = Duration::from_secs(5);
/// A volume of which something is damaged is looked at again after this long: each look costs an epoch.
const STUCK: Duration = Duration::from_secs(10);
/// A volume that was served for this long has got over what failed before.
const STEADY: Duration = Duration::from_secs(60);

/// What a shard's actors share.
pub(crate) struct Shard {
    /// The node.
    pub(crate) node: Arc<Node>,
    /// Requests that wait for their answers.
    pub(crate) replies: Replies,
    /// Ways to volume-routers that keep twins.
    pub(crate) lines: Lines,
    /// Twins of other nodes' volumes.
    pub(crate) twins: Rc<Twins>,
}

/// Where a volume is in its life here.
enum State {
    /// Claimed and recovered, or about to be.
    Starting,
    /// Served.
    Serving(Box<Serving>),
    /// Not to be had now: what to answer until somebody asks again.
    Refused(Refusal),
    /// It failed for now and is tried again by itself.
    Pausing(Refusal),
    /// An invariant is broken: stopped, for people to look at.
    Halted(String),
    /// Stored and released, or lost to another owner, or deleted: the actor ends.
    Gone(Refusal),
}

/// The actor.
pub(crate) struct VolumeActor {
    id: VolumeId,
    shard: Rc<Shard>,
    state: State,
    /// Counts the runs of the engine: what belongs to an earlier run is told apart by it.
    generation: u32,
    /// Counts what was asked of how the twin is waited for: the last one decides.
    dtl_asks: u64,
    /// The volume's files while it is not served.
    resting: Vec<FoundSco>,
    /// How the next start claims the volume.
    takeover: Option<TakeOver>,
    /// Who waits for the volume to be served.
    waiters: VecDeque<oneshot::Sender<Result<(), Refusal>>>,
    backoff: Backoff,
    served_since: Instant,
    /// Until then it stays refused, unless an operator decides.
    stuck_until: Instant,
    /// The kind of failure that was told to people and has not passed.
    failure_told: Option<&'static str>,
    /// Since when it is served, or is not, in microseconds since 1970.
    state_since_us: u64,
    /// What its tries to start have found out.
    known: Known,
    /// A tick is coming.
    ticking: bool,
    /// Late acknowledgements are about to leave.
    pacing: bool,
    /// The volume is being moved.
    moving: Option<Moving>,
    /// Counts the moves.
    moves: u64,
    /// The record is about to say that the volume stays.
    move_ends: bool,
}

impl VolumeActor {
    /// Starts an actor for a volume on this thread; it tries to own it at once.
    pub(crate) fn begin(shard: &Rc<Shard>, id: VolumeId, takeover: Option<TakeOver>) -> VolumeHandle {
        let actor = VolumeActor {
            id,
            shard: Rc::clone(shard),
            state: State::Starting,
            generation: 0,
            dtl_asks: 0,
            resting: Vec::new(),
            takeover,
            waiters: VecDeque::new(),
            backoff: Backoff::new(AGAIN_FIRST, AGAIN_MAX, Chance::from_os()),
            served_since: Instant::now(),
            stuck_until: Instant::now(),
            failure_told: None,
            state_since_us: shard.node.clock.unix_micros(),
            known: Known::default(),
            ticking: false,
            pacing: false,
            moving: None,
            moves: 0,
            move_ends: false,
        };
        let handle = VolumeHandle::new(actor.start());
        shard.node.volumes.insert(id, handle.clone());
        handle
    }

    fn node(&self) -> &Arc<Node> {
        &self.shard.node
    }

    /// For messages.
    fn path(&self) -> String {
        match &self.state {
            State::Serving(serving) => serving.path().to_owned(),
            _ => format!("(volume {})", self.id),
        }
    }
}

impl Actor for VolumeActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        ctx.set_mailbox_capacity(MAILBOX);
        self.start_serving(ctx);
    }

    fn stopped(&mut self, ctx: &mut Context<Self>) {
        let handle = VolumeHandle::new(ctx.address());
        self.node().volumes.remove(self.id, &handle);
    }
}

impl Drop for VolumeActor {
    /// Also where the actor panicked: whoever waits is answered, and its files are there for the next actor. One that
    /// did not find them would recover the volume without them.
    fn drop(&mut self) {
        let refusal = match &self.state {
            State::Gone(refusal) => refusal.clone(),
            _ => Refusal::retry(RefusalCode::Unavailable, format!("volume {} stopped", self.id)),
        };
        let mut found = std::mem::take(&mut self.resting);
        if let State::Serving(serving) = std::mem::replace(&mut self.state, State::Starting) {
            serving.owner().end();
            found.extend(serving.into_found());
        }
        found.extend(self.shard.twins.take_sealed(self.id));
        self.node().device.leave(self.id);
        self.node().device.disclaim(self.id, found);
        self.shard.twins.vacate(self.id);
        self.shard.replies.refuse_all(self.id, &refusal);
    }
}

/// The device's way to a volume.
struct FileTenant(VolumeHandle);

impl Tenant for FileTenant {
    fn evict(&self, sco: sconce_schemas::ScoId, epoch: sconce_schemas::Epoch) {
        self.0.tell(Evict { sco, epoch });
    }

    fn file_ready(&self) {
        self.0.tell(FileReady);
    }

    fn pressed(&self) {
        self.0.tell(Pressed);
    }
}

impl Handler<Evict> for VolumeActor {
    type Result = ();

    fn handle(&mut self, evict: Evict, ctx: &mut Context<Self>) {
        match &mut self.state {
            State::Serving(serving) => {
                serving.evict(evict.sco, evict.epoch);
                self.after(ctx);
            }
            _ => {
                let asked =
                    |found: &mut FoundSco| found.header.id == evict.sco && found.header.epoch == evict.epoch;
                let device = &self.shard.node.device;
                for found in self.resting.extract_if(.., asked) {
                    device.retire(&found.file);
                }
                // Where it is not served, and is not about to be, its files were given back.
                device.evict_left(self.id, evict.sco, evict.epoch);
            }
        }
    }
}

impl Handler<FileReady> for VolumeActor {
    type Result = ();

    fn handle(&mut self, _: FileReady, ctx: &mut Context<Self>) {
        if let State::Serving(serving) = &mut self.state {
            serving.file_ready();
            self.after(ctx);
        } else {
            // The device knows one who waits for each volume.
            self.shard.twins.file_ready();
        }
    }
}

impl Handler<Pressed> for VolumeActor {
    type Result = ();

    fn handle(&mut self, _: Pressed, ctx: &mut Context<Self>) {
        if let State::Serving(serving) = &mut self.state {
            serving.tick(true);
            self.after(ctx);
        }
    }
}

impl Handler<StoreSoon> for VolumeActor {
    type Result = ();

    fn handle(&mut self, _: StoreSoon, ctx: &mut Context<Self>) {
        if let State::Serving(serving) = &mut self.state {
            serving.store_soon();
            self.after(ctx);
        }
    }
}

impl VolumeActor {
    fn stop(&mut self, ctx: &mut Context<Self>) {
        ctx.stop();
    }
}
