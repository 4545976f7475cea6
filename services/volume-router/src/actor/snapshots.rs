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
use sconce_volume::SnapshotInfo;

use super::messages::{AskMoment, ListSnapshots, OpenSnapshot, OpenedSnapshot, Request};
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
