//! Keeps: what write access means for what is taken in.
//! Order: of a front end that may not write any more nothing waits in the engine once another may.
//! Crash: nothing.
//! Knows no registry.

use sconce_schemas::access::{Access, AccessAsk};
use sconce_schemas::wire::{Refusal, RefusalCode};
use sconce_volume::{Event, SessionSlot};

use super::super::messages::Operation;
use super::super::permits::{Fenced, Judged, Pass, Permit, Permits, held_by_another};
use super::{OpenOn, Serving};

impl Serving {
    pub(in crate::actor) const fn permits(&mut self) -> &mut Permits {
        &mut self.permits
    }

    /// Whether an operation is taken in, by what its handle may change.
    pub(super) fn may_take_in(&self, operation: &Operation) -> bool {
        let request = &operation.request;
        !request.code.needs_access(request.flags)
            || !matches!(operation.on, OpenOn::Session(_))
            || self.permits.takes(operation.pass)
    }

    /// Why it is not. Whoever opens the volume again hears whether it may write it; one that does not know how to ask, at once.
    pub(super) fn no_access(&self, pass: Pass) -> Refusal {
        if pass == Pass::UNASKED {
            return held_by_another(self.permits.access(), None, &self.path);
        }
        let path = &self.path;
        Refusal::reroute(
            RefusalCode::NotOpen,
            format!("volume {path} is not open for writing on this handle: open it again"),
        )
    }

    /// A session's front end wants to write.
    pub(in crate::actor) fn judge_access(&mut self, ask: &AccessAsk, slot: SessionSlot) -> Judged {
        let (judged, fenced) = self.permits.judge(ask, slot, &self.path);
        self.fence(Fenced::Of(fenced));
        judged
    }

    /// The record names the session's front end as the one that may write.
    pub(in crate::actor) fn access_claimed(
        &mut self,
        access: Access,
        ask: &AccessAsk,
        slot: SessionSlot,
    ) -> Permit {
        let (permit, fenced) = self.permits.claimed(access, ask, slot);
        self.fence(fenced);
        permit
    }

    /// The record says this of write access now.
    pub(in crate::actor) fn access_decided(&mut self, access: Access) {
        let fenced = self.permits.decided(access);
        self.fence(Fenced::Of(fenced));
    }

    /// What was taken in of these sessions and waits is dropped: it may not be applied after what another writes.
    fn fence(&mut self, fenced: Fenced) {
        match fenced {
            Fenced::Of(sessions) if sessions.is_empty() => return,
            Fenced::Of(sessions) => {
                for session in sessions {
                    self.take(Event::SessionFenced { session });
                }
            }
            Fenced::AllBut(session) => self.take(Event::OthersFenced { session }),
        }
        self.settle();
    }
}
