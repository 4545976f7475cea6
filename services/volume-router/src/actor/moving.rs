//! A planned move: the volume's twin is made where the volume is to go, and is gone on from there.
//!
//! Keeps: how far the move is, and who waits for it.
//! Order: the twin is in sync at the node that the volume goes to, what can be is stored, so that little is left to be replayed there; then
//! no operation is taken in, the twin has everything, nothing is acknowledged any more, and one commit makes that node the owner.
//! Crash: before that commit the next start here ends the move; after it the volume is the other node's, and if that is lost before it
//! serves, this write buffer has everything too.
//! Knows no bus: clients are told where to go as after any takeover.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use actix::fut::WrapFuture as _;
use actix::{ActorFutureExt as _, AsyncContext as _, Context, Handler, ResponseFuture};
use sconce_schemas::NodeName;
use sconce_schemas::records::{DtlMode, MoveWhy};
use sconce_schemas::wire::event::What;
use sconce_schemas::wire::{Refusal, RefusalCode};
use sconce_tracing::Span;
use sconce_volume::Event;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::messages::{LeaveTwin, MoveTo};
use super::{Owner, State, VolumeActor};
use crate::background::{StoreError, Tried};
use crate::node::Node;
use crate::owner::record::{self, RecordError, refusal_of};
use crate::placement::Chosen;

/// How long what is not stored may take to be copied to the twin.
const COPY_WITHIN: Duration = Duration::from_secs(600);
/// How long storing may take before the move. What is not stored is replayed by the next owner, while guests wait.
const STORE_WITHIN: Duration = Duration::from_secs(10);
/// How long the back ends may take then to tell the newest manifest, which the next owner asks for before it serves anything.
const LIST_WITHIN: Duration = Duration::from_secs(5);

/// A move that is under way.
pub(super) struct Moving {
    to: NodeName,
    step: Step,
    /// Who hears what comes of it.
    asked: Vec<oneshot::Sender<Result<(), Refusal>>>,
    /// Tells this one from those before it.
    number: u64,
    /// From its beginning to its end, whoever began it.
    span: Span,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// The record is to say that the volume moves.
    Noting,
    /// The twin is to be in sync at the node that the volume goes to.
    Joining,
    /// What can be stored is.
    Storing,
    /// No operation is taken in; the twin is to have all that was.
    Draining,
    /// The record is to name the other node.
    HandingOver,
}

impl Handler<MoveTo> for VolumeActor {
    type Result = ResponseFuture<Result<(), Refusal>>;

    fn handle(&mut self, MoveTo(to, chosen): MoveTo, ctx: &mut Context<Self>) -> Self::Result {
        let (asked, heard) = oneshot::channel();
        match self.begin_move(to, chosen, ctx) {
            Ok(moving) => moving.asked.push(asked),
            Err(answer) => drop(asked.send(answer)),
        }
        Box::pin(async move {
            heard.await.unwrap_or_else(|_| {
                let text = "the volume stopped while it was moved";
                Err(Refusal::retry(RefusalCode::Unavailable, text))
            })
        })
    }
}

impl Handler<LeaveTwin> for VolumeActor {
    type Result = Result<(), Refusal>;

    fn handle(&mut self, LeaveTwin(node): LeaveTwin, _: &mut Context<Self>) -> Self::Result {
        let State::Serving(serving) = &self.state else {
            return Err(self.not_served());
        };
        if self.moving.is_some() {
            let text = format!("volume {} is being moved", serving.path());
            return Err(Refusal::retry(RefusalCode::Conflict, text));
        }
        serving.leave_twin(&node);
        Ok(())
    }
}

impl VolumeActor {
    /// Begins a move, or finds the one that goes there already.
    fn begin_move(
        &mut self,
        to: NodeName,
        chosen: Option<Chosen>,
        ctx: &mut Context<Self>,
    ) -> Result<&mut Moving, Result<(), Refusal>> {
        let State::Serving(serving) = &self.state else {
            return Err(Err(self.not_served()));
        };
        if to == self.shard.node.name {
            return Err(Ok(()));
        }
        if self.moving.is_none() && serving.is_stopping() {
            return Err(Err(serving.stopping()));
        }
        if let Some(moving) = self.moving.as_ref().filter(|moving| moving.to != to) {
            let text = format!("volume {} is being moved to {}", serving.path(), moving.to);
            return Err(Err(Refusal::retry(RefusalCode::Conflict, text)));
        }
        if self.move_ends {
            let text = format!("a move of volume {} is being ended", serving.path());
            return Err(Err(Refusal::retry(RefusalCode::Conflict, text)));
        }
        if self.moving.is_none() {
            let (node, owner, there) = (Arc::clone(&self.shard.node), serving.owner().clone(), to.clone());
            let why = chosen.as_ref().map_or(MoveWhy::Asked, |chosen| chosen.why);
            if let Some(Chosen { what, .. }) = chosen {
                owner.tell(what);
            }
            let shard = Rc::clone(&self.shard);
            let note = async move {
                // Before the twin elsewhere is given up for it.
                shard.lines.may_be_moved_to(&there).await?;
                let volume = owner.subject().volume;
                let going = (&there, why);
                record::begin_move(&node.registry, volume, owner.ownership(), going, &node.clock).await
            };
            self.moves += 1;
            let number = self.moves;
            let noted = note
                .into_actor(self)
                .map(move |noted, actor, ctx| actor.move_noted(number, noted, ctx));
            ctx.spawn(noted);
        }
        let mut span = Span::NONE;
        if self.moving.is_none() {
            span = Span::control("volume.move");
            span.text("sconce.volume", self.id);
            span.text("sconce.to", &to);
        }
        let begun = || Moving {
            to,
            step: Step::Noting,
            asked: Vec::new(),
            number: self.moves,
            span,
        };
        Ok(self.moving.get_or_insert_with(begun))
    }

    /// The move of this number, if it is still under way.
    fn moving(&mut self, number: u64) -> Option<&mut Moving> {
        self.moving.as_mut().filter(|moving| moving.number == number)
    }

    fn move_noted(&mut self, number: u64, noted: Result<DtlMode, RecordError>, ctx: &mut Context<Self>) {
        let Some(moving) = self.moving(number) else { return };
        match noted {
            Ok(mode) => {
                moving.step = Step::Joining;
                let to = moving.to.clone();
                if let State::Serving(serving) = &mut self.state {
                    serving.owner().tell(What::MoveBegun { to: to.clone() });
                    serving.happened(Event::TwinMode { mode });
                    serving.twin_only_on(&to);
                    self.after(ctx);
                }
                self.give_up_move_after(number, Step::Joining, COPY_WITHIN, ctx);
            }
            Err(error) => self.move_failed(&refusal_of(error), ctx),
        }
    }

    /// After every event: the next step, if it can be done by now.
    pub(super) fn move_on(&mut self, ctx: &mut Context<Self>) {
        let (Some(moving), State::Serving(serving)) = (&mut self.moving, &mut self.state) else {
            return;
        };
        match moving.step {
            Step::Noting | Step::Storing | Step::HandingOver => {}
            Step::Joining => {
                if serving.is_in_sync_on(&moving.to) {
                    self.store_before_move(ctx);
                } else if serving.wants_no_twin() {
                    let text = "it wants no twin any more";
                    self.move_failed(&Refusal::retry(RefusalCode::Conflict, text), ctx);
                } else if let Some(trouble) = serving.refusal_of_only_twin() {
                    let text = format!("{} does not keep a twin: {trouble}", moving.to);
                    self.move_failed(&Refusal::retry(RefusalCode::Unavailable, text), ctx);
                }
            }
            Step::Draining => {
                if !serving.is_in_sync_on(&moving.to) {
                    self.move_failed(&twin_lost(), ctx);
                } else if serving.twin_has_all() {
                    self.hand_over(ctx);
                }
            }
        }
    }

    fn store_before_move(&mut self, ctx: &mut Context<Self>) {
        let (Some(moving), State::Serving(serving)) = (&mut self.moving, &mut self.state) else {
            return;
        };
        moving.step = Step::Storing;
        let number = moving.number;
        let stored = timeout(STORE_WITHIN, serving.store_all());
        let (node, owner) = (Arc::clone(&self.shard.node), serving.owner().clone());
        let stored = async move {
            match stored.await {
                Ok(_) => Ok(()),
                Err(_) => next_can_begin(&node, &owner).await,
            }
        };
        let stored = stored.into_actor(self).map(move |stored, actor: &mut Self, ctx| {
            if actor.moving(number).is_none() {
                return;
            }
            match stored {
                Ok(()) => actor.drain_before_move(number, ctx),
                Err(refusal) => actor.move_failed(&refusal, ctx),
            }
        });
        ctx.spawn(stored);
    }

    fn drain_before_move(&mut self, number: u64, ctx: &mut Context<Self>) {
        let within = self.shard.node.dtl.timeout.duration();
        let Some(moving) = self.moving(number).filter(|moving| moving.step == Step::Storing) else {
            return;
        };
        moving.step = Step::Draining;
        if let State::Serving(serving) = &mut self.state {
            serving.take_none_in();
            self.give_up_move_after(number, Step::Draining, within, ctx);
            self.after(ctx);
        }
    }

    fn hand_over(&mut self, ctx: &mut Context<Self>) {
        let (Some(moving), State::Serving(serving)) = (&mut self.moving, &mut self.state) else {
            return;
        };
        moving.step = Step::HandingOver;
        let (number, generation) = (moving.number, self.generation);
        let handed = serving.hand_over().into_actor(self);
        let handed = handed.map(move |handed, actor: &mut Self, ctx| {
            if actor.generation == generation && actor.moving(number).is_some() {
                actor.handed_over(handed, ctx);
            }
        });
        ctx.spawn(handed);
    }

    fn handed_over(&mut self, handed: Result<(), Refusal>, ctx: &mut Context<Self>) {
        match (handed, &mut self.state) {
            (Ok(()), _) => {}
            (Err(refusal), State::Serving(serving)) if refusal.code == RefusalCode::Conflict => {
                serving.is_not_handed_over();
                return self.move_failed(&refusal, ctx);
            }
            // Whether the record says so is for the next start to find out.
            (Err(refusal), _) => {
                self.drop_move(&refusal);
                return self.lost(&refusal, ctx);
            }
        }
        let Some(moving) = self.moving.take() else { return };
        let text = format!("volume {} was moved to {}", self.path(), moving.to);
        let refusal = Refusal::reroute(RefusalCode::NotOwner, text);
        if let State::Serving(serving) = std::mem::replace(&mut self.state, State::Starting) {
            serving.owner().tell(What::HandedOver {
                to: moving.to.clone(),
                epoch: serving.owner().ownership().epoch,
            });
            serving.owner().end();
            self.resting.extend(serving.into_found());
        }
        self.shard.replies.refuse_all(self.id, &refusal);
        moving.tell(&Ok(()));
        self.refused(refusal, ctx);
    }

    fn give_up_move_after(&self, number: u64, step: Step, within: Duration, ctx: &mut Context<Self>) {
        ctx.run_later(within, move |actor, ctx| {
            if actor.moving(number).is_some_and(|moving| moving.step == step) {
                let text = format!("the twin did not have everything within {within:?}");
                actor.move_failed(&Refusal::retry(RefusalCode::Unavailable, text), ctx);
            }
        });
    }

    /// The volume stays here, as it was.
    fn move_failed(&mut self, cause: &Refusal, ctx: &mut Context<Self>) {
        let Some(moving) = self.moving.take() else { return };
        let text = format!(
            "volume {} was not moved to {}: {}",
            self.path(),
            moving.to,
            cause.text
        );
        let to = moving.to.clone();
        moving.tell(&Err(Refusal {
            text,
            ..cause.clone()
        }));
        let State::Serving(serving) = &mut self.state else {
            return;
        };
        let cause = cause.text.clone();
        serving.owner().tell(What::NotMoved { to, cause });
        serving.stay();
        let (node, owner, generation) = (
            Arc::clone(&self.shard.node),
            serving.owner().clone(),
            self.generation,
        );
        self.move_ends = true;
        let noted = async move { end_in_record(&node, &owner).await };
        let noted = noted.into_actor(self).map(move |noted, actor: &mut Self, ctx| {
            actor.move_ends = false;
            match (noted, &mut actor.state) {
                (Some(Ok(mode)), State::Serving(serving)) if actor.generation == generation => {
                    serving.happened(Event::TwinMode { mode });
                    actor.after(ctx);
                }
                (Some(Err(refusal)), _) if actor.generation == generation => actor.lost(&refusal, ctx),
                _ => {}
            }
        });
        ctx.spawn(noted);
        self.after(ctx);
    }

    pub(super) fn is_handing_over(&self) -> bool {
        self.moving
            .as_ref()
            .is_some_and(|moving| moving.step == Step::HandingOver)
    }

    /// The volume is served here no more, or was started again: nothing comes of its move.
    pub(super) fn drop_move(&mut self, cause: &Refusal) {
        if let Some(moving) = self.moving.take() {
            moving.tell(&Err(cause.clone()));
        }
    }
}

impl Moving {
    fn tell(mut self, outcome: &Result<(), Refusal>) {
        if let Err(refusal) = outcome {
            self.span.fail(refusal);
        }
        for asked in self.asked {
            // Who went away does not hear it.
            let _ = asked.send(outcome.clone());
        }
    }
}

/// What is not stored could not be stored in time. Where the back ends are slow the next owner has more to replay; where they do not answer it
/// could not begin, and guests would wait for as long as they do not: the volume stays.
async fn next_can_begin(node: &Node, owner: &Owner) -> Result<(), Refusal> {
    let subject = owner.subject();
    let (record, _) = record::read(&node.registry, subject.volume)
        .await
        .map_err(refusal_of)?;
    let newest = node.background.newest_manifest(subject.clone(), &record);
    let found = timeout(LIST_WITHIN, newest).await.unwrap_or_else(|_| {
        let text = format!("the back ends do not answer within {LIST_WITHIN:?}");
        Err(StoreError::Unavailable(text))
    });
    found.map_err(|error| {
        let text = format!(
            "its next owner could not begin, as it needs the back ends: {}",
            error.refusal().text
        );
        Refusal::retry(RefusalCode::Unavailable, text)
    })?;
    tracing::warn!(
        volume = %subject.path,
        "what is not stored could not be stored within {STORE_WITHIN:?}: the next owner has more to replay"
    );
    Ok(())
}

/// Says in the record that the volume stays, as often as it takes; gives what its twin is waited for then. `None`: the ownership is over.
async fn end_in_record(node: &Node, owner: &Owner) -> Option<Result<DtlMode, Refusal>> {
    let subject = owner.subject();
    let end = || async {
        Tried::from(record::end_move(&node.registry, subject.volume, owner.ownership(), &node.clock).await)
    };
    let what = "noting in the registry that the volume stays";
    owner
        .outage()
        .endure(what, &subject.path, || owner.is_current(), end)
        .await
}

fn twin_lost() -> Refusal {
    Refusal::retry(RefusalCode::Unavailable, "its twin there was lost")
}
