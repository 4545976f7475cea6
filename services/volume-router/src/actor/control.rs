//! Control requests to a volume.
//!
//! Keeps: nothing.
//! Order: that of the mailbox; what waits for the registry is judged again when it comes back.
//! Crash: the registry's record says what was decided.
//! Knows no clients.

use std::sync::Arc;
use std::time::Duration;

use actix::fut::WrapFuture as _;
use actix::{
    ActorFutureExt as _, AsyncContext as _, Context, Handler, MessageResult, ResponseActFuture,
    ResponseFuture,
};
use bytes::Bytes;
use sconce_schemas::ByteLen;
use sconce_schemas::records::{DtlState, VolumePhase};
use sconce_schemas::wire::event::What;
use sconce_schemas::wire::volume::{FlattenProgress, VolumeReply, VolumeStatus};
use sconce_schemas::wire::{Refusal, RefusalCode};
use sconce_volume::Event;
use tokio::time::{Instant, timeout_at};

use super::messages::{
    ClientGone, CloseSession, Delete, Drain, Followed, OpenSession, Opened, OpenedAgain, Renamed, Served,
    SetDtl, Show, Sync, Take, Verify,
};
use super::{State, VolumeActor};
use crate::background::{Subject, Tried};
use crate::owner::erasure::Right;
use crate::owner::record::{self, Ownership, RecordError, refusal_of};

/// A release takes one compare-and-swap: it is tried also where storing took all of the time.
const RELEASE_WITHIN: Duration = Duration::from_millis(500);

type Answer<T> = ResponseActFuture<VolumeActor, T>;

impl Handler<Served> for VolumeActor {
    /// Not a future of the actor's own: it is answered also where the actor ends on what it is told.
    type Result = ResponseFuture<Result<(), Refusal>>;

    fn handle(&mut self, _: Served, ctx: &mut Context<Self>) -> Self::Result {
        let served = self.served(ctx);
        Box::pin(async move {
            served.await.unwrap_or_else(|_| {
                let text = "the volume stopped while it was asked";
                Err(Refusal::retry(RefusalCode::Unavailable, text))
            })
        })
    }
}

impl Handler<OpenSession> for VolumeActor {
    type Result = Result<Opened, Refusal>;

    fn handle(&mut self, OpenSession(id): OpenSession, _: &mut Context<Self>) -> Self::Result {
        let generation = self.generation;
        match &mut self.state {
            State::Serving(serving) => {
                let Some(slot) = serving.open_session(id) else {
                    let text = "as many sessions have the volume open as it can have";
                    return Err(Refusal::retry(RefusalCode::Unavailable, text));
                };
                Ok(Opened {
                    slot,
                    generation,
                    epoch: serving.owner().ownership().epoch,
                    size: serving.status().size,
                    read_only: serving.read_only(),
                })
            }
            _ => {
                let text = "the volume stopped while it was opened";
                Err(Refusal::retry(RefusalCode::Unavailable, text))
            }
        }
    }
}

impl Handler<CloseSession> for VolumeActor {
    type Result = Result<(), Refusal>;

    fn handle(&mut self, close: CloseSession, ctx: &mut Context<Self>) -> Self::Result {
        let session = close.slot;
        match &mut self.state {
            State::Serving(serving) if close.generation == self.generation => {
                serving.permits().closed(session);
            }
            _ => {
                let text = "the volume stopped since it was opened: open it again, and close that";
                return Err(Refusal::reroute(RefusalCode::NotOpen, text));
            }
        }
        self.session_event(close.generation, Event::SessionClosed { session }, ctx);
        self.tend_access(ctx);
        Ok(())
    }
}

impl Handler<OpenedAgain> for VolumeActor {
    type Result = ();

    fn handle(&mut self, again: OpenedAgain, _: &mut Context<Self>) {
        if let State::Serving(serving) = &mut self.state
            && again.generation == self.generation
        {
            serving.opened_again(again.slot, again.twice);
        }
    }
}

impl Handler<ClientGone> for VolumeActor {
    type Result = ();

    fn handle(&mut self, gone: ClientGone, ctx: &mut Context<Self>) {
        let session = gone.slot;
        if let State::Serving(serving) = &mut self.state
            && gone.generation == self.generation
        {
            serving.permits().gone(gone.pass, session);
        }
        self.session_event(gone.generation, Event::ClientGone { session }, ctx);
    }
}

impl Handler<Take> for VolumeActor {
    type Result = ();

    fn handle(&mut self, Take(takeover): Take, ctx: &mut Context<Self>) {
        match &self.state {
            State::Refused(_) | State::Pausing(_) => {
                self.takeover = Some(takeover);
                self.start_serving(ctx);
            }
            // Used by the next start if this one is refused.
            State::Starting => self.takeover = Some(takeover),
            State::Serving(_) | State::Halted(_) | State::Gone(_) => {}
        }
    }
}

impl Handler<Show> for VolumeActor {
    type Result = MessageResult<Show>;

    fn handle(&mut self, _: Show, _: &mut Context<Self>) -> Self::Result {
        let state = match &self.state {
            State::Serving(_) => "serving".to_owned(),
            State::Starting => "starting".to_owned(),
            State::Refused(refusal) | State::Pausing(refusal) | State::Gone(refusal) => refusal.text.clone(),
            State::Halted(reason) => format!("halted: {reason}"),
        };
        let mut status = VolumeStatus {
            id: self.id,
            size: sconce_schemas::VolumeSize::default(),
            allocated: ByteLen(0),
            owner: self.shard.node.name.clone(),
            epoch: sconce_schemas::Epoch::NONE,
            dtl_state: DtlState::Off,
            dtl_mode: None,
            dtl_host: None,
            sco_size: sconce_schemas::ScoSize::default(),
            unstored: ByteLen(0),
            map_memory: ByteLen(0),
            state,
            state_since_us: Some(self.state_since_us),
            path: self.known.path.as_deref().map(str::to_owned),
            dtl_trouble: None,
            history: None,
            scrub: None,
            flatten: None,
        };
        if let State::Serving(serving) = &self.state {
            let known = serving.status();
            let (twin, dtl_host) = serving.twin();
            status.dtl_state = twin.state.recorded();
            status.dtl_mode = Some(twin.mode);
            status.dtl_host = dtl_host;
            status.path = Some(serving.path().to_owned());
            status.dtl_trouble = serving.twin_trouble();
            status.size = known.size;
            status.allocated = known.allocated;
            status.unstored = known.unstored;
            status.map_memory = known.map_memory;
            status.epoch = serving.owner().ownership().epoch;
            status.sco_size = serving.sco_size();
            status.history = serving.history();
            status.scrub = Some(Box::new(serving.scrub_report()));
            status.flatten = serving.flatten_status().map(|flatten| FlattenProgress {
                copied: flatten.copied,
                percent: flatten.percent,
                waits_for: flatten.waits_for,
                waits_for_history: flatten.waits_for_history,
                trouble: flatten.trouble,
            });
        }
        MessageResult(status)
    }
}

impl Handler<Sync> for VolumeActor {
    type Result = ();

    fn handle(&mut self, Sync(ticket): Sync, ctx: &mut Context<Self>) {
        match &mut self.state {
            State::Serving(serving) => {
                serving.happened(Event::Sync { ticket });
                self.after(ctx);
            }
            _ => {
                let refusal = VolumeReply::Refused(self.not_served());
                self.shard.replies.answer(ticket, refusal, Bytes::new());
            }
        }
    }
}

impl Handler<Renamed> for VolumeActor {
    type Result = Answer<Result<(), Refusal>>;

    fn handle(&mut self, _: Renamed, _: &mut Context<Self>) -> Self::Result {
        let (registry, id) = (self.shard.node.registry.clone(), self.id);
        let path = async move {
            let (record, _) = record::read(&registry, id).await.map_err(refusal_of)?;
            let path = crate::owner::path_of(&registry, &record).await;
            path.map_err(|error| refusal_of(error.into()))
        };
        let renamed = path
            .into_actor(self)
            .map(|path, actor: &mut VolumeActor, ctx: &mut Context<Self>| {
                let path = path?;
                if let State::Serving(serving) = &mut actor.state {
                    serving.renamed(path);
                    actor.after(ctx);
                }
                Ok(())
            });
        Box::pin(renamed)
    }
}

impl Handler<Delete> for VolumeActor {
    type Result = Answer<Result<(), Refusal>>;

    fn handle(&mut self, _: Delete, _: &mut Context<Self>) -> Self::Result {
        let (registry, id) = (self.shard.node.registry.clone(), self.id);
        let read = async move { record::read(&registry, id).await.map_err(refusal_of) };
        let deleted = read
            .into_actor(self)
            .map(|read, actor: &mut VolumeActor, ctx: &mut Context<Self>| {
                let (record, _) = read?;
                let own = Ownership {
                    node: actor.shard.node.name.clone(),
                    epoch: record.epoch,
                };
                own.holds(&record)?;
                if record.phase != VolumePhase::Deleting {
                    let text = format!(
                        "volume {} is not being deleted: its name is still there",
                        actor.id
                    );
                    return Err(Refusal::reject(RefusalCode::Invalid, text));
                }
                if let State::Serving(serving) = &mut actor.state {
                    serving.forget_twin();
                }
                let path = actor.path();
                let gone = Refusal::reject(RefusalCode::NotFound, format!("volume {path} is deleted"));
                actor.over(&gone, ctx);
                let subject = Subject {
                    volume: actor.id,
                    path: path.into(),
                    pool: record.pool.into(),
                };
                actor.shard.node.background.erase(subject, Right::Owned(own));
                Ok(())
            });
        Box::pin(deleted)
    }
}

impl Handler<SetDtl> for VolumeActor {
    type Result = Answer<Result<(), Refusal>>;

    fn handle(&mut self, SetDtl(mode): SetDtl, ctx: &mut Context<Self>) -> Self::Result {
        let State::Serving(serving) = &mut self.state else {
            let refusal = self.not_served();
            return Box::pin(std::future::ready(Err(refusal)).into_actor(self));
        };
        let (registry, owner) = (self.shard.node.registry.clone(), serving.owner().clone());
        let clock = self.shard.node.clock.clone();
        if mode > serving.twin().0.mode {
            // What the record says holds from the moment at which it does.
            serving.happened(Event::TwinMode { mode });
            self.after(ctx);
        }
        self.dtl_asks += 1;
        let (generation, ask) = (self.generation, self.dtl_asks);
        let noted = async move {
            let volume = owner.subject().volume;
            let noted = record::set_dtl_mode(&registry, volume, owner.ownership(), mode, &clock).await;
            let state = noted.map_err(refusal_of)?;
            owner.tell(What::DtlMode { mode });
            if let Some(state) = state {
                owner.tell(What::Degraded {
                    wanted: state != DtlState::Off,
                    host: None,
                    cause: "as was asked".to_owned(),
                });
            }
            Ok(())
        };
        let set =
            noted
                .into_actor(self)
                .map(move |noted, actor: &mut VolumeActor, ctx: &mut Context<Self>| {
                    if noted.is_err() && actor.generation == generation {
                        actor.settle_dtl(ask, ctx);
                    }
                    noted?;
                    if let State::Serving(serving) = &mut actor.state
                        && actor.generation == generation
                    {
                        serving.happened(Event::TwinMode { mode });
                        actor.after(ctx);
                    }
                    Ok(())
                });
        Box::pin(set)
    }
}

impl Handler<Drain> for VolumeActor {
    type Result = Answer<bool>;

    fn handle(&mut self, Drain(within): Drain, ctx: &mut Context<Self>) -> Self::Result {
        if self.is_handing_over() {
            // Whose it is the hand-over tells; whatever it is, nothing may be acknowledged here now.
            return Box::pin(std::future::ready(false).into_actor(self));
        }
        self.drop_move(&Refusal::retry(
            RefusalCode::Unavailable,
            "the volume-router is stopping",
        ));
        self.drain(Instant::now() + within, ctx)
    }
}

impl Handler<Verify> for VolumeActor {
    type Result = Answer<bool>;

    fn handle(&mut self, _: Verify, _: &mut Context<Self>) -> Self::Result {
        let State::Serving(serving) = &self.state else {
            return Box::pin(std::future::ready(true).into_actor(self));
        };
        let (registry, owner) = (self.shard.node.registry.clone(), serving.owner().clone());
        let generation = self.generation;
        let verify = async move {
            let own = owner.ownership();
            crate::owner::verify(&registry, owner.subject().volume, own).await
        };
        let verified = verify.into_actor(self).map(
            move |verified, actor: &mut VolumeActor, ctx: &mut Context<Self>| match verified {
                Err(RecordError::Refused(refusal)) => {
                    if actor.generation == generation {
                        actor.lost(&refusal, ctx);
                    }
                    true
                }
                Ok(()) => true,
                Err(RecordError::Unavailable(_)) => false,
            },
        );
        Box::pin(verified)
    }
}

impl Handler<Followed> for VolumeActor {
    type Result = ();

    fn handle(&mut self, followed: Followed, ctx: &mut Context<Self>) {
        let is_here = followed.owner == self.shard.node.name;
        if is_here && matches!(self.state, State::Refused(_)) && Instant::now() >= self.stuck_until {
            // It was another's, and was moved here meanwhile.
            return self.start_serving(ctx);
        }
        let State::Serving(serving) = &self.state else {
            return;
        };
        let own = serving.owner().ownership();
        // What is told late, of an ownership before this one, says nothing.
        if followed.epoch > own.epoch {
            let text = format!(
                "{} owns volume {} in epoch {} now; this node had epoch {}",
                followed.owner,
                serving.path(),
                followed.epoch,
                own.epoch
            );
            return self.lost(&Refusal::reroute(RefusalCode::NotOwner, text), ctx);
        }
        if followed.epoch == own.epoch {
            serving.wish_twin(followed.twin_host);
        }
    }
}

impl VolumeActor {
    /// Whether the record says what was asked for is not known: it is written anew as it is, and the volume goes by that, unless something
    /// else was asked for meanwhile. Otherwise the volume looked for a twin that the record wants none of, or the other way round.
    fn settle_dtl(&mut self, ask: u64, ctx: &mut Context<Self>) {
        let State::Serving(serving) = &self.state else {
            return;
        };
        let (node, owner) = (Arc::clone(&self.shard.node), serving.owner().clone());
        let generation = self.generation;
        let settled = async move {
            let subject = owner.subject();
            let settle = || async {
                Tried::from(record::settle_dtl_mode(&node.registry, subject.volume, owner.ownership()).await)
            };
            let what = "noting in the registry what the twin is waited for";
            owner
                .outage()
                .endure(what, &subject.path, || owner.is_current(), settle)
                .await
        };
        let settled = settled
            .into_actor(self)
            .map(move |settled, actor: &mut Self, ctx| {
                if actor.generation != generation || actor.dtl_asks != ask {
                    return;
                }
                match (settled, &mut actor.state) {
                    (Some(Ok(mode)), State::Serving(serving)) => {
                        serving.happened(Event::TwinMode { mode });
                        actor.after(ctx);
                    }
                    (Some(Err(refusal)), _) => actor.lost(&refusal, ctx),
                    _ => {}
                }
            });
        ctx.spawn(settled);
    }

    /// What happened to a session of this run of the engine.
    fn session_event(&mut self, generation: u32, event: Event, ctx: &mut Context<Self>) {
        if let State::Serving(serving) = &mut self.state
            && generation == self.generation
        {
            serving.happened(event);
            self.after(ctx);
        }
    }

    /// Stores everything, as often as something was applied meanwhile, then releases the volume.
    fn drain(&mut self, until: Instant, ctx: &mut Context<Self>) -> Answer<bool> {
        let State::Serving(serving) = &mut self.state else {
            return Box::pin(std::future::ready(false).into_actor(self));
        };
        let stored = timeout_at(until, serving.drain());
        self.after(ctx);
        let drained =
            stored
                .into_actor(self)
                .then(move |stored, actor: &mut Self, ctx: &mut Context<Self>| {
                    let State::Serving(serving) = &mut actor.state else {
                        return Box::pin(std::future::ready(false).into_actor(actor)) as Answer<bool>;
                    };
                    if !matches!(stored, Ok(Ok(()))) {
                        return Box::pin(std::future::ready(false).into_actor(actor));
                    }
                    if !serving.may_release() {
                        return actor.drain(until, ctx);
                    }
                    actor.release(until)
                });
        Box::pin(drained)
    }

    /// Says in the record that the back ends have everything.
    fn release(&mut self, until: Instant) -> Answer<bool> {
        let State::Serving(serving) = &self.state else {
            return Box::pin(std::future::ready(false).into_actor(self));
        };
        let (registry, owner) = (self.shard.node.registry.clone(), serving.owner().clone());
        let (generation, twin) = (self.generation, serving.releases_twin());
        let clock = self.shard.node.clock.clone();
        let release = async move {
            let until = until.max(Instant::now() + RELEASE_WITHIN);
            let release = record::release(&registry, owner.subject().volume, owner.ownership(), &clock);
            let released = async { matches!(timeout_at(until, release).await, Ok(Ok(()))) };
            twin.after(released).await
        };
        let released = release.into_actor(self).map(
            move |released, actor: &mut VolumeActor, ctx: &mut Context<Self>| {
                if released && actor.generation == generation {
                    actor.released(ctx);
                }
                released
            },
        );
        Box::pin(released)
    }

    /// Everything is stored and the record says so: the files stay as caches.
    fn released(&mut self, ctx: &mut Context<Self>) {
        let text = format!("volume {} was released by an orderly stop", self.id);
        let refusal = Refusal::retry(RefusalCode::Unavailable, text);
        if let State::Serving(serving) = std::mem::replace(&mut self.state, State::Gone(refusal.clone())) {
            let epoch = serving.owner().ownership().epoch;
            serving.owner().tell(What::Released { epoch });
            serving.owner().end();
        }
        self.shard.replies.refuse_all(self.id, &refusal);
        self.stop(ctx);
    }
}
