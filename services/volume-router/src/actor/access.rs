//! Write access, asked for by front ends and changed by people.
//!
//! Keeps: nothing.
//! Order: the record first, then what is taken in here, then the answer. One change of the record at a time; what this ownership has
//! granted holds until the next is decided.
//! Crash: the record says what was decided, and the next ownership goes by that.
//! Knows no clients.

use std::time::Duration;

use actix::fut::WrapFuture as _;
use actix::{ActorFutureExt as _, AsyncContext as _, Context, Handler, ResponseActFuture};
use sconce_schemas::NodeName;
use sconce_schemas::access::AccessChange;
use sconce_schemas::wire::event::What;
use sconce_schemas::wire::{Refusal, RefusalCode};

use super::messages::{SetAccess, TakeAccess};
use super::permits::{Deciding, Judged, Permit, held_by_another};
use super::{State, VolumeActor};
use crate::owner::record::{self, Claimed, RecordError, refusal_of};

/// After that long a release that failed is tried again.
const RELEASED_AGAIN_AFTER: Duration = Duration::from_secs(1);

type Answer<T> = ResponseActFuture<VolumeActor, T>;

impl Handler<TakeAccess> for VolumeActor {
    type Result = Answer<Result<Permit, Refusal>>;

    fn handle(&mut self, take: TakeAccess, ctx: &mut Context<Self>) -> Self::Result {
        let generation = self.generation;
        let judged = match &mut self.state {
            State::Serving(serving) if take.generation == generation => {
                serving.judge_access(&take.ask, take.slot)
            }
            _ => Judged::Refused(undecided("the volume stopped while it was opened")),
        };
        self.after(ctx);
        let answer = match judged {
            Judged::Granted(permit) => Ok(permit),
            Judged::Refused(refusal) => Err(refusal),
            Judged::Undecided => Err(undecided("who may write the volume is being decided")),
            Judged::Claim => return self.claim_access(take),
        };
        Box::pin(std::future::ready(answer).into_actor(self))
    }
}

impl Handler<SetAccess> for VolumeActor {
    type Result = Answer<Result<(), Refusal>>;

    fn handle(&mut self, SetAccess(change): SetAccess, _: &mut Context<Self>) -> Self::Result {
        let State::Serving(serving) = &mut self.state else {
            let refusal = self.not_served();
            return Box::pin(std::future::ready(Err(refusal)).into_actor(self));
        };
        let permits = serving.permits();
        if permits.is_deciding() {
            let refusal = undecided("who may write the volume is being decided");
            return Box::pin(std::future::ready(Err(refusal)).into_actor(self));
        }
        permits.decides(Deciding::Change);
        let (registry, owner) = (self.shard.node.registry.clone(), serving.owner().clone());
        let (clock, generation) = (self.shard.node.clock.clone(), self.generation);
        let changed = async move {
            let volume = owner.subject().volume;
            record::change_access(&registry, volume, owner.ownership(), change, &clock).await
        };
        let set =
            changed
                .into_actor(self)
                .map(move |changed, actor: &mut VolumeActor, ctx: &mut Context<Self>| {
                    let State::Serving(serving) = &mut actor.state else {
                        return Err(actor.not_served());
                    };
                    if actor.generation != generation {
                        return Err(undecided("the volume stopped while it was asked"));
                    }
                    let outcome = match changed {
                        Ok(access) => {
                            let told = serving.permits().access().held_by().map(|held| held.node.clone());
                            serving.access_decided(access);
                            if change == AccessChange::Break {
                                serving.permits().forget_newest();
                            }
                            tell_change(serving.owner(), change, told);
                            Ok(())
                        }
                        Err(error) => {
                            serving.permits().failed();
                            Err(actor.access_failed(error, ctx))
                        }
                    };
                    actor.access_settled(ctx);
                    outcome
                });
        Box::pin(set)
    }
}

fn tell_change(owner: &super::Owner, change: AccessChange, holder: Option<NodeName>) {
    let what = match (change, holder) {
        (AccessChange::Mode { mode }, _) => What::AccessMode { mode },
        (AccessChange::HandOver { within_us }, Some(holder)) => What::AccessOffered {
            holder,
            seconds: within_us.div_ceil(1_000_000),
        },
        (AccessChange::Break, Some(holder)) => What::AccessBroken { holder },
        (AccessChange::HandOver { .. } | AccessChange::Break, None) => return,
    };
    owner.tell(what);
}

impl VolumeActor {
    /// Asks the registry whether the front end may write, and notes there that it does.
    fn claim_access(&mut self, take: TakeAccess) -> Answer<Result<Permit, Refusal>> {
        let TakeAccess {
            slot, ask, patient, ..
        } = take;
        let State::Serving(serving) = &mut self.state else {
            let refusal = self.not_served();
            return Box::pin(std::future::ready(Err(refusal)).into_actor(self));
        };
        serving.permits().decides(Deciding::Change);
        let known = serving.permits().claim();
        let (registry, owner) = (self.shard.node.registry.clone(), serving.owner().clone());
        let (clock, generation) = (self.shard.node.clock.clone(), self.generation);
        let node = ask.node.clone();
        let claim = async move {
            let volume = owner.subject().volume;
            let by = (&node, &known);
            record::take_access(&registry, volume, owner.ownership(), by, &clock).await
        };
        let claimed =
            claim
                .into_actor(self)
                .map(move |claimed, actor: &mut VolumeActor, ctx: &mut Context<Self>| {
                    let State::Serving(serving) = &mut actor.state else {
                        return Err(actor.not_served());
                    };
                    if actor.generation != generation {
                        return Err(undecided("the volume stopped while it was opened"));
                    }
                    let outcome = match claimed {
                        Ok(Claimed::Taken(access, why)) => {
                            let before = serving
                                .permits()
                                .access()
                                .holder
                                .clone()
                                .map(|holder| holder.node);
                            let permit = serving.access_claimed(access, &ask, slot);
                            if before.as_ref() != Some(&ask.node) {
                                let (node, from) = (ask.node, before);
                                serving.owner().tell(What::AccessTaken { node, from, why });
                            }
                            Ok(permit)
                        }
                        Ok(Claimed::Held(_)) if patient && !serving.permits().is_refused(&ask.node) => {
                            serving.permits().undecided();
                            Err(undecided("another front end has write access"))
                        }
                        Ok(Claimed::Held(access)) => {
                            let refusal = held_by_another(&access, Some(&ask.node), serving.path());
                            if serving.permits().refuses(&ask.node, &refusal) {
                                let (node, cause) = (ask.node, refusal.text.clone());
                                serving.owner().tell(What::AccessRefused { node, cause });
                            }
                            Err(refusal)
                        }
                        Err(error) => {
                            serving.permits().failed();
                            Err(actor.access_failed(error, ctx))
                        }
                    };
                    actor.access_settled(ctx);
                    outcome
                });
        Box::pin(claimed)
    }

    /// Something was decided: what that made possible goes on.
    fn access_settled(&mut self, ctx: &mut Context<Self>) {
        self.tend_access(ctx);
        self.after(ctx);
    }

    /// Notes that the holder gave its access up, where it did.
    pub(super) fn tend_access(&mut self, ctx: &mut Context<Self>) {
        let State::Serving(serving) = &mut self.state else {
            return;
        };
        let permits = serving.permits();
        permits.forget_gone();
        if !permits.is_to_be_released() {
            if let Some(wait) = permits.forgets_in() {
                ctx.run_later(wait, Self::tend_access);
            }
            return;
        }
        serving.permits().decides(Deciding::Release);
        let doubt = serving.permits().claim().doubt;
        let (registry, owner) = (self.shard.node.registry.clone(), serving.owner().clone());
        let generation = self.generation;
        let release = async move {
            let volume = owner.subject().volume;
            record::release_access(&registry, volume, owner.ownership(), doubt).await
        };
        let released = release
            .into_actor(self)
            .map(move |released, actor: &mut Self, ctx| {
                let State::Serving(serving) = &mut actor.state else {
                    return;
                };
                if actor.generation != generation {
                    return;
                }
                match released {
                    Ok(access) => serving.access_decided(access),
                    Err(error) => {
                        serving.permits().failed();
                        actor.access_failed(error, ctx);
                    }
                }
                actor.after(ctx);
                actor.release_again(ctx);
            });
        ctx.spawn(released);
    }

    /// What could not be released is, as soon as that can be written down.
    fn release_again(&mut self, ctx: &mut Context<Self>) {
        if let State::Serving(serving) = &mut self.state
            && serving.permits().is_to_be_released()
        {
            ctx.run_later(RELEASED_AGAIN_AFTER, Self::tend_access);
        }
    }

    /// The record could not be changed: another may own the volume.
    fn access_failed(&mut self, error: RecordError, ctx: &mut Context<Self>) -> Refusal {
        let refusal = match error {
            RecordError::Refused(refusal) => {
                self.lost(&refusal, ctx);
                refusal
            }
            error @ RecordError::Unavailable(_) => refusal_of(error),
        };
        tracing::debug!(volume = %self.id, cause = %refusal, "write access is as it was");
        refusal
    }
}

fn undecided(text: &str) -> Refusal {
    Refusal::retry(RefusalCode::Unavailable, text)
}
