//! What leaves: opens, operations, closes and fetches, as far as the links have room.
//!
//! Keeps: nothing of its own.
//! Order: a session's parts leave in its queue's order, but for those that pass what waits for a number; sessions on one link take turns.
//! Crash: nothing.
//! Knows no answers.

use bytes::Bytes;
use sconce_runtime::simulated::{Planted, leaves_out};
use sconce_schemas::wire::volume::{IoCode, IoRequest, VolumeControl, VolumeRequest};
use sconce_schemas::wire::{Refusal, RefusalCode};

use super::operations::{PartKey, PartState};
use super::sessions::{Opening, Route};
use super::types::{Effect, OwnerKey, Sent, SessionKey, Wire};
use super::{Core, IdKind, KEY_MAX};
use crate::routing::operation::Outcome;

/// Parts that a session sends before the next session's turn.
const TURN: usize = 32;

impl Core {
    /// Sends what is ready. Call after events and after operations were taken on.
    pub fn drain_sends(&mut self, wire: &mut impl Wire, effects: &mut Vec<Effect>) {
        for index in 0..self.links.capacity() {
            if self.links.contains(index) {
                self.drain_link(OwnerKey(index), wire, effects);
            }
        }
        self.send_fetches(wire, effects);
    }

    fn drain_link(&mut self, key: OwnerKey, wire: &mut impl Wire, effects: &mut Vec<Effect>) {
        while let Some(link) = self.links.get_mut(key.0)
            && link.up
            && !link.full
        {
            if let Some(handle) = link.closing.pop() {
                let id = self.next_id(IdKind::Close, KEY_MAX);
                if send_close(key, id, handle, wire) == Sent::NoRoom {
                    let link = &mut self.links[key.0];
                    link.full = true;
                    link.closing.push(handle);
                }
                continue;
            }
            let Some(session) = self.links[key.0].turns.pop_front() else {
                return;
            };
            self.sessions[session.0].queued = false;
            match self.send_turn(key, session, wire, effects) {
                Turn::Over => {}
                Turn::More => self.queue(key, session),
                Turn::NoRoom => {
                    let link = &mut self.links[key.0];
                    link.full = true;
                    link.turns.push_front(session);
                    self.sessions[session.0].queued = true;
                }
            }
        }
    }

    fn send_turn(
        &mut self,
        link: OwnerKey,
        key: SessionKey,
        wire: &mut impl Wire,
        effects: &mut Vec<Effect>,
    ) -> Turn {
        if let Some(handle) = self.to_be_closed(key) {
            let id = self.next_id(IdKind::Close, key.0);
            if send_close(link, id, handle, wire) == Sent::NoRoom {
                return Turn::NoRoom;
            }
            self.sessions[key.0].access.close_sent(id);
            return Turn::Over;
        }
        let wants_open = self.sessions[key.0].opening == Opening::Wanted;
        if wants_open && self.send_open(link, key, wire) != Sent::Taken {
            return Turn::NoRoom;
        }
        let Route::On {
            handle: Some(handle), ..
        } = self.sessions[key.0].route
        else {
            return Turn::Over;
        };
        for _ in 0..TURN {
            let Some(&part) = self.sessions[key.0].ready.front() else {
                return Turn::Over;
            };
            if self.park(key, part, effects) {
                continue;
            }
            let number = match self.number_for(part) {
                Some(number) => number,
                // The owner remembers a window of numbers; beyond it what needs another waits until the first is answered. What needs
                // none passes: it may be that first one, which is to be sent again.
                None if self.let_pass(key) => continue,
                None => return Turn::Over,
            };
            let id = self.next_id(IdKind::Part, part.0);
            let session = &mut self.sessions[key.0];
            let entry = &mut self.parts[part.0];
            let running = &self.running[entry.operation.0];
            let below = session.numbers.below();
            let request = VolumeRequest::Io(IoRequest {
                handle,
                number,
                below,
                code: running.code,
                flags: running.flags,
                offset: entry.offset,
                length: entry.length,
            });
            let reply_bytes = match running.code {
                IoCode::Read => u32::try_from(entry.aligned().1).unwrap_or(u32::MAX),
                _ => 0,
            };
            let data = entry.data.clone();
            match wire.to_owner(link, id, running.trace, &request, data, reply_bytes) {
                Sent::Taken => {}
                Sent::NoRoom => return Turn::NoRoom,
                Sent::Never(why) => {
                    session.ready.pop_front();
                    let refusal = Refusal::reject(RefusalCode::Unsupported, why);
                    self.finish_part(part, Outcome::Refused(refusal), effects);
                    continue;
                }
            }
            if running.code.changes() && session.numbers.next() == Some(number) {
                session.numbers.take();
            }
            entry.number = number;
            entry.id = id;
            entry.state = PartState::Sent;
            session.ready.pop_front();
        }
        Turn::More
    }

    /// The number that a part is sent under; `None`: it needs a new one, and there is none now. A change that was sent keeps its own. What
    /// changes nothing is a new question each time, which the owner knows by no number: it takes none, and so waits for none.
    fn number_for(&self, key: PartKey) -> Option<u64> {
        let part = &self.parts[key.0];
        let numbers = &self.sessions[part.session.0].numbers;
        if !self.running[part.operation.0].code.changes() {
            return Some(numbers.newest() + 1);
        }
        match part.number {
            0 => numbers.next(),
            _ if leaves_out(Planted::ResendAnew) => numbers.next(),
            own => Some(own),
        }
    }

    /// Puts the first part of the session's queue that needs no new number before those that do; whether there is one.
    fn let_pass(&mut self, key: SessionKey) -> bool {
        let passes = |part: &PartKey| self.number_for(*part).is_some();
        let Some(at) = self.sessions[key.0].ready.iter().position(passes) else {
            return false;
        };
        let ready = &mut self.sessions[key.0].ready;
        let first = ready.remove(at);
        first.into_iter().for_each(|part| ready.push_front(part));
        true
    }

    fn send_open(&mut self, link: OwnerKey, key: SessionKey, wire: &mut impl Wire) -> Sent {
        let id = self.next_id(IdKind::Open, key.0);
        let session = &self.sessions[key.0];
        let access = match &session.view {
            Some(_) => None,
            None => self.access_ask(key),
        };
        let control = match &session.view {
            Some(view) => view.to_open(session.volume, session.id),
            None => VolumeControl::Open {
                volume: session.volume,
                session: session.id,
                snapshot: None,
                access: access.clone(),
            },
        };
        let request = VolumeRequest::Control(control);
        let sent = wire.to_owner(link, id, 0, &request, Bytes::new(), 0);
        if sent == Sent::Taken {
            self.sessions[key.0].access.asks(access.as_ref());
            self.sessions[key.0].open_sent(id);
        }
        sent
    }
}

/// A handle that nobody uses is closed where there is room. It ends with the connection too; what its session may write does not
/// ([`Core::says_last_word`]).
fn send_close(link: OwnerKey, id: u64, handle: u32, wire: &mut impl Wire) -> Sent {
    let request = VolumeRequest::Control(VolumeControl::Close { handle });
    wire.to_owner(link, id, 0, &request, Bytes::new(), 0)
}

/// How a session's turn ended.
enum Turn {
    /// It has nothing more to send.
    Over,
    /// It has more to send: its next turn comes after the others'.
    More,
    /// The link takes no more.
    NoRoom,
}
