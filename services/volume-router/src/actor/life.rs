//! A volume's life in its actor: started, served, halted, lost, released.
//!
//! Keeps: nothing of its own.
//! Order: a run of the engine ends before the next begins, and its tickets are answered then.
//! Crash: the next start claims a higher epoch.
//! Knows no operations.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use actix::fut::WrapFuture as _;
use actix::{ActorFutureExt as _, AsyncContext as _, Context, Handler};
use sconce_runtime::Chance;
use sconce_schemas::records::DtlMode;
use sconce_schemas::wire::event::{OwnedWhy, What};
use sconce_schemas::wire::{Refusal, RefusalCode};
use sconce_tracing::{Action, OperationId, Point, Span, SpanKind, Status, Step, telemetry};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::messages::{Broken, Found, Happened, Lost, Orphaned, Round};
use super::serving::Serving;
use super::{FileTenant, Owner, STARTS_MAX, STEADY, STUCK, State, VolumeActor, VolumeHandle};
use crate::device::FoundSco;
use crate::owner::record::TakeOver;
use crate::owner::{self, Owned, StartError};

/// How often a volume is told the time while it has something to store.
const TICK: Duration = Duration::from_secs(1);

/// What is traced of how a start ended.
fn takeover_ended(step: Step, started: &Result<Owned, StartError>) -> Step {
    let (address, status) = match started {
        Ok(owned) => (owned.ownership.epoch.0, Status::Ok),
        Err(error) => (0, error.refusal().into()),
    };
    Step {
        address,
        status,
        ..step
    }
}

impl VolumeActor {
    /// Claims and recovers the volume, beside its mailbox.
    pub(super) fn start_serving(&mut self, ctx: &mut Context<Self>) {
        self.state = State::Starting;
        self.shard.twins.occupy(self.id);
        let tenant = FileTenant(VolumeHandle::new(ctx.address()));
        self.shard.node.device.join(self.id, Arc::new(tenant));
        self.resting.extend(self.shard.node.device.claim(self.id));
        let (shard, id) = (Rc::clone(&self.shard), self.id);
        let (mut takeover, found) = (self.takeover.take(), self.resting.clone());
        let mut known = self.known.clone();
        let start = async move {
            let step = Step {
                operation: OperationId(Chance::from_os().u64()),
                action: Action::Control,
                volume: id,
                ..Step::default()
            };
            Point::VolumeTakeoverEntry.record(|| step);
            let trace = step.operation.into();
            let mut span = Span::control_below(trace, SpanKind::Internal, "volume.takeover");
            span.text("sconce.volume", id);
            let starting = owner::start(&shard, id, (&mut takeover, &mut known), &found);
            let started = telemetry::scope(span.trace_or(trace), Box::pin(starting)).await;
            match &started {
                Ok(owned) => span.number("sconce.epoch", owned.ownership.epoch.0),
                Err(error) => span.fail(error.refusal()),
            }
            drop(span);
            Point::VolumeTakeoverExit.record(|| takeover_ended(step, &started));
            (started, takeover, known)
        };
        let started = start
            .into_actor(self)
            .map(|(outcome, takeover, known), actor: &mut Self, ctx| {
                actor.known = known;
                actor.start_ended(outcome, takeover, ctx);
            });
        ctx.spawn(started);
    }

    fn start_ended(
        &mut self,
        outcome: Result<Owned, StartError>,
        takeover: Option<TakeOver>,
        ctx: &mut Context<Self>,
    ) {
        self.resting.extend(self.shard.twins.take_sealed(self.id));
        match outcome {
            Ok(owned) => self.serve(owned, ctx),
            // Somebody asked for it with other rights in the meantime.
            Err(_) if self.takeover.is_some() => self.start_serving(ctx),
            Err(StartError::Refused(refusal)) => self.refused(refusal, ctx),
            Err(StartError::Stuck(refusal)) => {
                self.stuck_until = Instant::now() + STUCK;
                self.refused(refusal, ctx);
            }
            Err(StartError::Over(refusal)) => self.over(&refusal, ctx),
            Err(StartError::Soon(refusal)) => {
                tracing::debug!(volume = %self.id, cause = %refusal, "volume is served soon");
                self.pause(refusal, takeover, ctx);
            }
            Err(StartError::Later(refusal)) => {
                let cause = refusal.text.clone();
                self.fails(What::Unavailable { cause });
                self.pause(refusal, takeover, ctx);
            }
        }
    }

    fn serve(&mut self, owned: Owned, ctx: &mut Context<Self>) {
        // What was asked for has been done: an ownership that comes later is claimed without it.
        self.takeover = None;
        self.generation = self.generation.wrapping_add(1);
        let owner = Owner::new(
            ctx.address(),
            self.generation,
            owned.subject.clone(),
            owned.ownership.clone(),
            owned.manifest,
            owned.record.known_size(),
            &self.shard.node.events,
        );
        self.tell_owned(&owner, &owned);
        let is_unused = |found: &mut FoundSco| {
            owned
                .unused
                .iter()
                .any(|other| Arc::ptr_eq(&other.file, &found.file))
        };
        for unused in self.resting.extract_if(.., is_unused) {
            self.shard.node.device.retire(&unused.file);
        }
        let (found, me) = (
            std::mem::take(&mut self.resting),
            VolumeHandle::new(ctx.address()),
        );
        let serving = Serving::new(&self.shard, me, owner, self.generation, owned, found);
        self.state = State::Serving(Box::new(serving));
        self.served_since = Instant::now();
        self.state_since_us = self.shard.node.clock.unix_micros();
        self.failure_told = None;
        self.tell_waiters(&Ok(()));
        self.tick(ctx);
    }

    /// Says whose the volume is, and that it has no twin yet where it wants one.
    fn tell_owned(&mut self, owner: &Owner, owned: &Owned) {
        let me = || (self.shard.node.name.clone(), OwnedWhy::Start);
        let (from, why) = self.known.came.take().unwrap_or_else(me);
        owner.tell(What::Owned {
            from,
            epoch: owned.ownership.epoch,
            why,
            replayed: owned.recovered.replayed,
        });
        if owned.record.dtl_mode != DtlMode::None {
            owner.tell(What::Degraded {
                wanted: true,
                host: None,
                cause: "this ownership begins without a twin, one is looked for".to_owned(),
            });
        }
    }

    /// The volume is not served; of one kind told once, until it is.
    fn fails(&mut self, what: What) {
        let told = self.failure_told.replace(what.name());
        if told.is_none() {
            self.state_since_us = self.shard.node.clock.unix_micros();
        }
        if told != Some(what.name()) {
            let path = self.known.path.as_deref().unwrap_or_default();
            self.shard.node.events.tell_of(self.id, path, what);
        }
    }

    /// The volume is not for this node now.
    pub(super) fn refused(&mut self, refusal: Refusal, ctx: &mut Context<Self>) {
        self.tell_waiters(&Err(refusal.clone()));
        let found = std::mem::take(&mut self.resting);
        self.shard.node.device.disclaim(self.id, found);
        self.shard.twins.vacate(self.id);
        if refusal.code == RefusalCode::WaitsForOwner {
            let cause = refusal.text.clone();
            self.fails(What::WaitsForOwner { cause });
            self.state = State::Refused(refusal);
        } else {
            self.state = State::Gone(refusal);
            self.stop(ctx);
        }
    }

    /// Tries again after a while, with what a person asked for: the failure that passes is no answer to that.
    fn pause(&mut self, refusal: Refusal, takeover: Option<TakeOver>, ctx: &mut Context<Self>) {
        self.tell_waiters(&Err(refusal.clone()));
        self.takeover = takeover.filter(TakeOver::is_judged);
        self.state = State::Pausing(refusal);
        ctx.run_later(self.backoff.wait(), |actor, ctx| {
            if matches!(actor.state, State::Pausing(_)) {
                actor.start_serving(ctx);
            }
        });
    }

    fn tell_waiters(&mut self, outcome: &Result<(), Refusal>) {
        for waiter in self.waiters.drain(..) {
            // Who went away does not hear it.
            let _ = waiter.send(outcome.clone());
        }
    }

    /// Hears when the volume is served, or why it is not.
    pub(super) fn served(&mut self, ctx: &mut Context<Self>) -> oneshot::Receiver<Result<(), Refusal>> {
        let (waiter, heard) = oneshot::channel();
        let known = match &self.state {
            State::Serving(_) => Some(Ok(())),
            State::Gone(refusal) => Some(Err(refusal.clone())),
            State::Halted(reason) => Some(Err(self.halted_refusal(reason))),
            State::Refused(refusal) if Instant::now() < self.stuck_until => Some(Err(refusal.clone())),
            // The cause may have gone: a buffer came back, an operator decided.
            State::Refused(_) => {
                self.start_serving(ctx);
                None
            }
            State::Starting | State::Pausing(_) => None,
        };
        match known {
            Some(outcome) => drop(waiter.send(outcome)),
            None if self.waiters.len() >= STARTS_MAX => {
                let text = format!("volume {} is being started and many wait for it", self.id);
                let _ = waiter.send(Err(Refusal::retry(RefusalCode::Unavailable, text)));
            }
            None => self.waiters.push_back(waiter),
        }
        heard
    }

    /// After every message that the engine took part in.
    pub(super) fn after(&mut self, ctx: &mut Context<Self>) {
        let State::Serving(serving) = &self.state else {
            return;
        };
        if serving.halted().is_some() {
            return self.halted(ctx);
        }
        if self.moving.is_some() {
            self.move_on(ctx);
        }
        let State::Serving(serving) = &self.state else {
            return;
        };
        if let Some(due) = serving.next_due()
            && !self.pacing
        {
            self.pacing = true;
            ctx.run_later(due.saturating_duration_since(Instant::now()), |actor, ctx| {
                actor.pacing = false;
                if let State::Serving(serving) = &mut actor.state {
                    serving.release_due();
                    actor.after(ctx);
                }
            });
        }
        let status = serving.status();
        if !self.ticking && (status.dirty || status.wants_ticks) {
            self.ticking = true;
            ctx.run_later(TICK, |actor, ctx| {
                actor.ticking = false;
                actor.tick(ctx);
            });
        }
    }

    fn tick(&mut self, ctx: &mut Context<Self>) {
        if let State::Serving(serving) = &mut self.state {
            serving.tick(false);
            self.after(ctx);
        }
    }

    /// The engine stopped: the files stay, and unless it is a bug the volume is recovered from them.
    fn halted(&mut self, ctx: &mut Context<Self>) {
        let State::Serving(serving) = std::mem::replace(&mut self.state, State::Starting) else {
            return;
        };
        let (reason, device_failed) = serving.halted().unwrap_or(("", false));
        let reason = reason.to_owned();
        self.drop_move(&Refusal::retry(RefusalCode::Unavailable, reason.clone()));
        serving.owner().tell(What::Halted {
            cause: reason.clone(),
            device_failed,
        });
        self.state_since_us = self.shard.node.clock.unix_micros();
        serving.owner().end();
        self.resting.extend(serving.into_found());
        if self.served_since.elapsed() > STEADY {
            self.backoff.reset();
        }
        if device_failed {
            let refusal = Refusal::retry(RefusalCode::Unavailable, reason);
            self.shard.replies.refuse_all(self.id, &refusal);
            return self.pause(refusal, None, ctx);
        }
        let refusal = self.halted_refusal(&reason);
        self.shard.replies.refuse_all(self.id, &refusal);
        self.state = State::Halted(reason);
    }

    pub(super) fn halted_refusal(&self, reason: &str) -> Refusal {
        let text = format!(
            "volume {} stopped because of a bug: {reason}; its data is kept, a restart of the volume-router recovers it",
            self.id
        );
        Refusal::retry(RefusalCode::Internal, text)
    }

    /// The ownership is in doubt: nothing is served from here on, and the volume is claimed anew. What the registry
    /// says then decides; until it proves that they are worth nothing, the files stay.
    pub(super) fn lost(&mut self, cause: &Refusal, ctx: &mut Context<Self>) {
        // While it is handed over nothing is served, and who hands it over tells what came of that.
        if !matches!(self.state, State::Serving(_)) || self.is_handing_over() {
            return;
        }
        self.drop_move(cause);
        if let State::Serving(serving) = std::mem::replace(&mut self.state, State::Starting) {
            serving.owner().tell(What::Fenced {
                epoch: serving.owner().ownership().epoch,
                cause: cause.text.clone(),
            });
            self.state_since_us = self.shard.node.clock.unix_micros();
            serving.owner().end();
            self.resting.extend(serving.into_found());
        }
        let text = format!("volume {} is not open here now: {}", self.id, cause.text);
        let refusal = Refusal::reroute(RefusalCode::NotOpen, text);
        self.shard.replies.refuse_all(self.id, &refusal);
        self.start_serving(ctx);
    }

    /// The volume is over, here or everywhere: its files are worth nothing.
    pub(super) fn over(&mut self, refusal: &Refusal, ctx: &mut Context<Self>) {
        self.drop_move(refusal);
        if let State::Serving(serving) = std::mem::replace(&mut self.state, State::Gone(refusal.clone())) {
            let cause = refusal.text.clone();
            serving.owner().tell(What::Over { cause });
            serving.owner().end();
            self.resting.extend(serving.into_found());
        }
        self.tell_waiters(&Err(refusal.clone()));
        self.shard.replies.refuse_all(self.id, refusal);
        for found in self.resting.drain(..) {
            self.shard.node.device.retire(&found.file);
        }
        self.stop(ctx);
    }
}

impl Handler<Orphaned> for VolumeActor {
    type Result = ();

    fn handle(&mut self, _: Orphaned, ctx: &mut Context<Self>) {
        // Where something else is under way, its owner's absence is seen again.
        if matches!(self.state, State::Refused(_)) && Instant::now() >= self.stuck_until {
            self.takeover = Some(TakeOver::orphaned());
            self.start_serving(ctx);
        }
    }
}

impl Handler<Round> for VolumeActor {
    type Result = ();

    fn handle(&mut self, Round(operations): Round, ctx: &mut Context<Self>) {
        match &mut self.state {
            State::Serving(serving) => {
                serving.round(operations);
                self.after(ctx);
            }
            _ => {
                let text = format!("volume {} is not open here now: open it again", self.id);
                let refusal = Refusal::reroute(RefusalCode::NotOpen, text);
                for operation in operations {
                    self.shard.replies.refuse(operation.ticket, refusal.clone());
                }
            }
        }
    }
}

impl Handler<Happened> for VolumeActor {
    type Result = ();

    fn handle(&mut self, happened: Happened, ctx: &mut Context<Self>) {
        if happened.generation != self.generation {
            return;
        }
        if let State::Serving(serving) = &mut self.state {
            serving.happened(happened.event);
            self.after(ctx);
        }
    }
}

impl Handler<Found> for VolumeActor {
    type Result = ();

    fn handle(&mut self, found: Found, ctx: &mut Context<Self>) {
        if found.generation != self.generation {
            return;
        }
        if let State::Serving(serving) = &mut self.state {
            serving.found(found.read);
            self.after(ctx);
        }
    }
}

impl Handler<Lost> for VolumeActor {
    type Result = ();

    fn handle(&mut self, lost: Lost, ctx: &mut Context<Self>) {
        if lost.generation == self.generation {
            self.lost(&lost.refusal, ctx);
        }
    }
}

impl Handler<Broken> for VolumeActor {
    type Result = ();

    fn handle(&mut self, broken: Broken, ctx: &mut Context<Self>) {
        if broken.generation != self.generation {
            return;
        }
        if let State::Serving(serving) = &mut self.state {
            serving.broken(broken.reason);
            self.halted(ctx);
        }
    }
}
