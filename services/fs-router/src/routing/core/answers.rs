//! What owners answer: done, not now, not here, never; data, or where it is.
//!
//! Keeps: nothing of its own.
//! Order: an answer counts for the last send of its part only.
//! Crash: nothing.
//! Knows no links.

use bytes::Bytes;
use sconce_schemas::wire::volume::{IoCode, ReadExtent, VolumeReply};
use sconce_schemas::wire::{Refusal, RefusalCode, Remedy};

use super::operations::{Part, PartKey, PartState};
use super::sessions::is_held;
use super::types::{Effect, Micros, OwnerKey, SessionKey};
use super::{Core, IdKind, Timer, split_id};
use crate::routing::operation::{Outcome, Piece, ReadData};

impl Core {
    pub(super) fn owner_replied(
        &mut self,
        now: Micros,
        link: OwnerKey,
        id: u64,
        reply: VolumeReply,
        data: Bytes,
        effects: &mut Vec<Effect>,
    ) {
        let (kind, index) = split_id(id);
        match kind {
            IdKind::Part => {
                let key = PartKey(index);
                // An answer to a send that was taken back, or a duplicate, finds another id.
                let is_answer = |part: &Part| part.id == id && part.state == PartState::Sent;
                if self.parts.get(key.0).is_some_and(is_answer) {
                    self.part_answered(now, key, reply, data, effects);
                }
            }
            IdKind::Open => {
                let reply = match reply {
                    VolumeReply::Control(control) => Ok(control),
                    VolumeReply::Refused(refusal) => Err(refusal),
                    _ => Err(unexpected_answer()),
                };
                self.opened(now, link, id, SessionKey(index), reply, effects);
            }
            IdKind::Close => {
                let refusal = match reply {
                    VolumeReply::Refused(refusal) => Some(refusal),
                    _ => None,
                };
                self.close_answered(now, id, SessionKey(index), refusal);
            }
            IdKind::Fetch => {}
        }
    }

    fn part_answered(
        &mut self,
        now: Micros,
        key: PartKey,
        reply: VolumeReply,
        data: Bytes,
        effects: &mut Vec<Effect>,
    ) {
        let part = &self.parts[key.0];
        let session = part.session;
        match (reply, self.running[part.operation.0].code) {
            (VolumeReply::Refused(refusal), _) => self.part_refused(now, key, session, refusal, effects),
            (VolumeReply::Read(extents), IoCode::Read) => {
                self.read_answered(key, extents, data, effects);
            }
            (VolumeReply::Extents(extents), IoCode::Extents) => {
                self.finish_part(key, Outcome::Extents(extents), effects);
            }
            (VolumeReply::Changes(changes), IoCode::Changes) => {
                self.finish_part(key, Outcome::Changes(changes), effects);
            }
            (
                VolumeReply::Done,
                IoCode::Write | IoCode::Discard | IoCode::WriteZeroes | IoCode::Flush | IoCode::Resize,
            ) => {
                self.finish_part(key, Outcome::Done, effects);
            }
            _ => self.finish_part(key, Outcome::Refused(unexpected_answer()), effects),
        }
    }

    fn part_refused(
        &mut self,
        now: Micros,
        key: PartKey,
        session: SessionKey,
        refusal: Refusal,
        effects: &mut Vec<Effect>,
    ) {
        if refusal.remedy == Remedy::Reroute || refusal.code == RefusalCode::NotOpen {
            self.leave_owner(now, session, refusal.text);
        } else if is_held(&refusal) {
            self.hold(now, key);
        } else {
            self.finish_part(key, Outcome::Refused(refusal), effects);
        }
    }

    /// Sends a part again after a while.
    pub(super) fn hold(&mut self, now: Micros, key: PartKey) {
        let attempts = self.parts[key.0].attempts;
        let at = self.set_backoff(now, attempts, Timer::Part(key));
        let part = &mut self.parts[key.0];
        part.state = PartState::Waiting;
        part.attempts = attempts.saturating_add(1);
        part.wake_at = Some(at);
    }

    pub(super) fn wake_part(&mut self, at: Micros, key: PartKey, effects: &mut Vec<Effect>) {
        let is_due = |part: &&mut Part| part.state == PartState::Waiting && part.wake_at == Some(at);
        if let Some(part) = self.parts.get_mut(key.0).filter(is_due) {
            part.state = PartState::Ready;
            part.wake_at = None;
            let session = part.session;
            // It was sent before those that never were.
            self.sessions[session.0].ready.push_front(key);
            self.offer(session);
            // Its session may have come to nothing while it was held: the way to the owner begins anew, and where
            // there is none any more, that ends it.
            self.start(session, effects);
        }
    }

    fn read_answered(
        &mut self,
        key: PartKey,
        extents: Vec<ReadExtent>,
        data: Bytes,
        effects: &mut Vec<Effect>,
    ) {
        let part = &self.parts[key.0];
        let (start, length) = part.aligned();
        // The common answer: everything was in the write buffer.
        if let [ReadExtent::Data { length: found }] = extents[..]
            && u64::from(found) == length
            && data.len() as u64 == length
        {
            let mut read = ReadData::default();
            read.push(Piece::Data(data));
            let read = read.trimmed(part.offset - start, part.length);
            return self.finish_part(key, Outcome::Read(read), effects);
        }
        match self.gather(key, extents, data, effects) {
            Ok(()) if self.parts[key.0].missing == 0 => self.finish_gathered(key, effects),
            Ok(()) => {}
            Err(()) => self.finish_part(key, Outcome::Refused(unexpected_answer()), effects),
        }
    }

    /// All that a read was about is here.
    pub(super) fn finish_gathered(&mut self, key: PartKey, effects: &mut Vec<Effect>) {
        let part = &mut self.parts[key.0];
        let (start, _) = part.aligned();
        let mut read = ReadData::default();
        for piece in std::mem::take(&mut part.gathered).into_values() {
            read.push(piece);
        }
        let read = read.trimmed(part.offset - start, part.length);
        self.finish_part(key, Outcome::Read(read), effects);
    }
}

fn unexpected_answer() -> Refusal {
    Refusal::reject(
        RefusalCode::Internal,
        "the owner's answer does not fit what was asked (a bug, or another version)",
    )
}
