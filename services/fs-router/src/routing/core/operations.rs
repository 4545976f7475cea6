//! Operations and the parts that they are sent as.
//!
//! Keeps: each operation until all of its parts have ended, each part until its owner (and storage) answered.
//! Order: parts are sent in the order in which they came; a part that is sent again goes before those that never
//! were; an operation ends with its last part.
//! Crash: nothing was promised for what had not ended.
//! Knows no links.

use std::collections::BTreeMap;

use bytes::Bytes;
use sconce_schemas::wire::volume::{IoCode, IoFlags};
use sconce_schemas::wire::{Refusal, RefusalCode};
use sconce_schemas::{CLUSTER_BYTES, ClusterAddress};
use sconce_tracing::OperationId;

use super::Core;
use super::sessions::Route;
use super::types::{Effect, FrontEndKey, Micros, SessionKey, Token};
use crate::routing::operation::{Operation, Outcome, Piece, ReadData};

/// Index of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct RunningKey(pub(super) usize);

/// Index of a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PartKey(pub(super) usize);

/// An operation that has not ended.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) front_end: FrontEndKey,
    token: Token,
    session: SessionKey,
    pub(super) code: IoCode,
    pub(super) flags: IoFlags,
    pub(super) trace: u64,
    carried: u64,
    /// Parts that have not ended.
    left: usize,
    /// What the parts of a read found, where there are several.
    found: Vec<ReadData>,
    refusal: Option<Refusal>,
    /// Its front end is gone: nobody wants to know how it ends, only that it has.
    abandoned: bool,
}

/// Where a part is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PartState {
    /// In its session's queue.
    Ready,
    /// With the owner.
    Sent,
    /// The owner said "later".
    Waiting,
    /// The owner answered with locations; storage-routers are asked.
    Gathering,
}

/// What is sent as one request.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) operation: RunningKey,
    pub(super) session: SessionKey,
    /// Which part of the operation.
    pub(super) index: usize,
    pub(super) state: PartState,
    /// That of the last send; 0 before the first. A change keeps it.
    pub(super) number: u64,
    /// The id of the last send.
    pub(super) id: u64,
    pub(super) attempts: u32,
    pub(super) wake_at: Option<Micros>,
    pub(super) offset: u64,
    pub(super) length: u64,
    pub(super) data: Bytes,
    /// What a read found, by where it begins.
    pub(super) gathered: BTreeMap<ClusterAddress, Piece>,
    /// Ranges of it that are still fetched.
    pub(super) missing: usize,
    /// Times that the owner's locations led nowhere.
    pub(super) astray: u32,
}

impl Part {
    /// The cluster-aligned range that a read's answer covers: start and length.
    pub(super) fn aligned(&self) -> (u64, u64) {
        let start = self.offset / CLUSTER_BYTES * CLUSTER_BYTES;
        let end = (self.offset + self.length).next_multiple_of(CLUSTER_BYTES);
        (start, end - start)
    }
}

impl Core {
    /// Takes an operation on; it completes exactly once, unless its front end abandons it.
    ///
    /// # Errors
    /// The session has no room: the operation comes back, and [`Effect::Room`] follows when there is room.
    pub fn submit(
        &mut self,
        session: SessionKey,
        front_end: FrontEndKey,
        token: Token,
        operation: Operation,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Operation> {
        let is_on_snapshot = self.sessions[session.0].view.is_some();
        if let Some(outcome) = ended_before_it_began(&operation, is_on_snapshot) {
            effects.push(Effect::Complete {
                front_end,
                token,
                outcome,
            });
            return Ok(());
        }
        let carried = operation.carried();
        let load = &mut self.sessions[session.0];
        let fits = load.requests < self.limits.requests_max
            && (load.requests == 0 || load.bytes + carried <= self.limits.bytes_max);
        if !fits {
            load.wants_room = true;
            return Err(operation);
        }
        if operation.code.changes() {
            load.access.is_used_by(front_end);
        }
        load.requests += 1;
        load.bytes += carried;
        let trace = match operation.id {
            OperationId::NONE => self.operation_id(),
            given => given,
        };
        let key = RunningKey(self.running.insert(Running {
            front_end,
            token,
            session,
            code: operation.code,
            flags: operation.flags,
            trace: trace.0,
            carried,
            left: 0,
            found: Vec::new(),
            refusal: None,
            abandoned: false,
        }));
        self.cut(key, session, operation);
        self.start(session, effects);
        Ok(())
    }

    /// Cuts an operation into parts: at multiples of the part size, so that each part's clusters are its own.
    fn cut(&mut self, key: RunningKey, session: SessionKey, mut operation: Operation) {
        let (mut offset, end) = (operation.offset, operation.offset + operation.length);
        let is_cut = operation.carried() > 0;
        let mut index = 0;
        loop {
            let next = (offset / self.limits.part_bytes + 1) * self.limits.part_bytes;
            let stop = if is_cut { next.min(end) } else { end };
            let length = stop - offset;
            let data = if stop == end {
                std::mem::take(&mut operation.data)
            } else if operation.data.is_empty() {
                Bytes::new()
            } else {
                operation
                    .data
                    .split_to(usize::try_from(length).unwrap_or(usize::MAX))
            };
            let part = PartKey(self.parts.insert(Part {
                operation: key,
                session,
                index,
                state: PartState::Ready,
                number: 0,
                id: 0,
                attempts: 0,
                wake_at: None,
                offset,
                length: if operation.code == IoCode::Resize {
                    0
                } else {
                    length
                },
                data,
                gathered: BTreeMap::new(),
                missing: 0,
                astray: 0,
            }));
            self.sessions[session.0].ready.push_back(part);
            index += 1;
            offset = stop;
            if offset >= end {
                break;
            }
        }
        let running = &mut self.running[key.0];
        running.left = index;
        if running.code == IoCode::Read && index > 1 {
            running.found.resize(index, ReadData::default());
        }
        self.offer(session);
    }

    /// Puts a session with something to send in its link's turns.
    pub(super) fn offer(&mut self, key: SessionKey) {
        if let Route::On {
            link,
            handle: Some(_),
        } = self.sessions[key.0].route
        {
            self.queue(link, key);
        }
    }

    /// A part ended; with the last of its parts the operation does.
    pub(super) fn finish_part(&mut self, key: PartKey, outcome: Outcome, effects: &mut Vec<Effect>) {
        let part = self.parts.remove(key.0);
        let running = &mut self.running[part.operation.0];
        let session = &mut self.sessions[part.session.0];
        if running.code.changes() {
            session.numbers.close(part.number);
            if !session.ready.is_empty() {
                // The window may have been full.
                self.offer(part.session);
            }
        }
        let running = &mut self.running[part.operation.0];
        let session = &mut self.sessions[part.session.0];
        running.left -= 1;
        let outcome = match outcome {
            Outcome::Refused(refusal) => {
                running.refusal.get_or_insert(refusal);
                Outcome::Done
            }
            outcome => {
                session.attempts = 0;
                outcome
            }
        };
        let outcome = match outcome {
            Outcome::Read(data) if !running.found.is_empty() => {
                running.found[part.index] = data;
                Outcome::Done
            }
            outcome => outcome,
        };
        if running.left == 0 {
            self.finish(part.operation, outcome, effects);
        }
    }

    fn finish(&mut self, key: RunningKey, last: Outcome, effects: &mut Vec<Effect>) {
        let running = self.running.remove(key.0);
        let session = &mut self.sessions[running.session.0];
        session.requests -= 1;
        session.bytes -= running.carried;
        if session.wants_room {
            session.wants_room = false;
            effects.push(Effect::Room(running.session));
        }
        if running.abandoned {
            let session = &mut self.sessions[running.session.0];
            session.orphans -= 1;
            if session.orphans == 0 && session.view.is_none() {
                effects.push(Effect::Settled(session.volume));
            }
            return self.note_unused(running.session);
        }
        let outcome = match running.refusal {
            Some(refusal) => Outcome::Refused(refusal),
            None if running.found.is_empty() => last,
            None => {
                let mut all = ReadData::default();
                running.found.into_iter().for_each(|found| all.append(found));
                Outcome::Read(all)
            }
        };
        effects.push(Effect::Complete {
            front_end: running.front_end,
            token: running.token,
            outcome,
        });
    }

    /// The front end is gone. A change that was sent may be applied, now or late: it is sent until it is answered,
    /// so that it is known when it can no longer be applied. Nothing else is sent, and nothing completes.
    pub fn abandon(&mut self, now: Micros, front_end: FrontEndKey, effects: &mut Vec<Effect>) {
        self.forget_asked(front_end);
        for (_, running) in &mut self.running {
            if running.front_end == front_end && !running.abandoned {
                running.abandoned = true;
                let session = &mut self.sessions[running.session.0];
                // Of a snapshot nothing is left behind that could be applied late.
                if session.orphans == 0 && session.view.is_none() {
                    effects.push(Effect::Orphaned(session.volume));
                }
                session.orphans += 1;
            }
        }
        let running = &self.running;
        let harmless = self.parts_where(|part| {
            let running = &running[part.operation.0];
            running.abandoned && !(running.code.changes() && part.number != 0)
        });
        if !harmless.is_empty() {
            for (_, session) in &mut self.sessions {
                session.ready.retain(|key| !harmless.contains(key));
                session.access.retain(|key| !harmless.contains(key));
            }
            for key in harmless {
                self.drop_fetches(key, effects);
                self.finish_part(key, Outcome::Done, effects);
            }
        }
        self.end_unused(now);
    }

    fn parts_where(&self, wanted: impl Fn(&Part) -> bool) -> Vec<PartKey> {
        let found = self.parts.iter().filter(|(_, part)| wanted(part));
        found.map(|(index, _)| PartKey(index)).collect()
    }

    /// What a session sent is not answered by its owner any more: it goes back to the front of the queue, in the
    /// order of its numbers.
    pub(super) fn take_back_sends(&mut self, key: SessionKey) {
        let session = &mut self.sessions[key.0];
        // What waited for access came after what was sent.
        let waited = session.access.without_handle();
        waited
            .into_iter()
            .rev()
            .for_each(|part| session.ready.push_front(part));
        let mut sent = self.parts_where(|part| part.session == key && part.state == PartState::Sent);
        // What changes nothing has the number that the next change got, and came before it.
        sent.sort_by_key(|key| {
            let part = &self.parts[key.0];
            (part.number, self.running[part.operation.0].code.changes())
        });
        for part in sent.into_iter().rev() {
            let entry = &mut self.parts[part.0];
            entry.state = PartState::Ready;
            entry.id = 0;
            self.sessions[key.0].ready.push_front(part);
        }
    }
}

/// The outcome of an operation that needs no owner: it is of no bytes, or it is wrong.
fn ended_before_it_began(operation: &Operation, is_on_snapshot: bool) -> Option<Outcome> {
    let Operation {
        code,
        offset,
        length,
        data,
        ..
    } = operation;
    let data_fits = match code {
        IoCode::Write => data.len() as u64 == *length,
        _ => data.is_empty(),
    };
    if !data_fits
        || offset
            .checked_add(*length)
            .is_none_or(|end| end > i64::MAX.unsigned_abs())
    {
        let text = format!(
            "{code:?} of {length} bytes at {offset} with {} bytes of data is not possible",
            data.len()
        );
        return Some(Outcome::Refused(Refusal::reject(RefusalCode::Invalid, text)));
    }
    if is_on_snapshot && code.changes() {
        let refusal = Refusal::reject(RefusalCode::ReadOnly, "a snapshot takes no writes");
        return Some(Outcome::Refused(refusal));
    }
    match code {
        IoCode::Read if *length == 0 => Some(Outcome::Read(ReadData::default())),
        IoCode::Write | IoCode::Discard | IoCode::WriteZeroes if *length == 0 => Some(Outcome::Done),
        _ => None,
    }
}
