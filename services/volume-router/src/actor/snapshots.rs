//! Requests about a volume's snapshots.
//!
//! Keeps: nothing.
//! Order: that of the mailbox.
//! Crash: what was answered is in the log.
//! Knows no names of volumes: what depends on a snapshot is for the caller to look at.

use actix::{Context, Handler};
use bytes::Bytes;
use sconce_schemas::wire::volume::VolumeReply;
use sconce_schemas::wire::{Refusal, RefusalCode};
use sconce_volume::{Base, Compared, SnapshotInfo};

use super::messages::{
    AskMoment, CompareWith, ListSnapshots, OpenCompared, OpenSnapshot, OpenedCompared, OpenedSnapshot,
    Request,
};
use super::{State, VolumeActor};

impl Handler<OpenSnapshot> for VolumeActor {
    type Result = Result<OpenedSnapshot, Refusal>;

    fn handle(&mut self, OpenSnapshot(name): OpenSnapshot, _: &mut Context<Self>) -> Self::Result {
        let State::Serving(serving) = &self.state else {
            return Err(self.not_served());
        };
        let Some((id, size)) = serving.snapshot_named(&name) else {
            let text = format!("volume {} has no snapshot {name:?}", serving.path());
            return Err(Refusal::reject(RefusalCode::NotFound, text));
        };
        Ok(OpenedSnapshot {
            id,
            generation: self.generation,
            epoch: serving.owner().ownership().epoch,
            size,
        })
    }
}

impl Handler<OpenCompared> for VolumeActor {
    type Result = Result<OpenedCompared, Refusal>;

    fn handle(&mut self, OpenCompared { of, since }: OpenCompared, _: &mut Context<Self>) -> Self::Result {
        let State::Serving(serving) = &self.state else {
            return Err(self.not_served());
        };
        let named = |name: &str| {
            serving.snapshot_named(name).ok_or_else(|| {
                let text = format!("volume {} has no snapshot {name:?}", serving.path());
                Refusal::reject(RefusalCode::NotFound, text)
            })
        };
        let of = of.as_deref().map(named).transpose()?;
        let (base, since) = match since {
            CompareWith::Nothing => (Base::Nothing, None),
            CompareWith::Snapshot(name) => {
                let (id, _) = named(&name)?;
                (Base::Snapshot(id), Some(id))
            }
            // Places count in the lineage: the same number has to be the same volume in both.
            CompareWith::Ancestor(root) if serving.lineage().starts_with(&root.lineage) => {
                (Base::Ancestor(root.map), Some(root.id))
            }
            CompareWith::Ancestor(_) => {
                let text = format!(
                    "volume {} is no clone of that volume's, so the two have nothing in common to tell changes by",
                    serving.path()
                );
                return Err(Refusal::reject(RefusalCode::Invalid, text));
            }
        };
        Ok(OpenedCompared {
            compared: Compared {
                of: of.map(|(id, _)| id),
                since: base,
            },
            since,
            generation: self.generation,
            epoch: serving.owner().ownership().epoch,
            size: of.map_or_else(|| serving.status().size, |(_, size)| size),
        })
    }
}

impl Handler<Request> for VolumeActor {
    type Result = ();

    fn handle(&mut self, Request(ticket, ask): Request, ctx: &mut Context<Self>) {
        match &mut self.state {
            State::Serving(serving) => {
                serving.request(ticket, ask);
                self.after(ctx);
            }
            _ => {
                let refusal = VolumeReply::Refused(self.not_served());
                self.shard.replies.answer(ticket, refusal, Bytes::new());
            }
        }
    }
}

impl Handler<AskMoment> for VolumeActor {
    type Result = ();

    fn handle(&mut self, AskMoment(ticket, ask): AskMoment, ctx: &mut Context<Self>) {
        match &mut self.state {
            State::Serving(serving) => {
                serving.moment(ticket, ask);
                self.after(ctx);
            }
            _ => {
                let refusal = VolumeReply::Refused(self.not_served());
                self.shard.replies.answer(ticket, refusal, Bytes::new());
            }
        }
    }
}

impl Handler<ListSnapshots> for VolumeActor {
    type Result = Result<Vec<SnapshotInfo>, Refusal>;

    fn handle(&mut self, _: ListSnapshots, _: &mut Context<Self>) -> Self::Result {
        match &self.state {
            State::Serving(serving) => Ok(serving.snapshots()),
            _ => Err(self.not_served()),
        }
    }
}

impl VolumeActor {
    pub(super) fn not_served(&self) -> Refusal {
        let text = format!("volume {} is not served now", self.id);
        Refusal::retry(RefusalCode::Unavailable, text)
    }
}
