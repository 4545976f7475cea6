//! Which operations a batch or a sync was for, while a session records that.
//!
//! Keeps: operations whose step has not come yet. Nothing while their points are off.
//! Order: as they came.
//! Crash: nothing.
//! Knows batches by what they say of themselves: the engine says of none whose they are.

use std::collections::VecDeque;

use sconce_schemas::BatchSeq;
use sconce_schemas::sco::{Batch, ScoHeader};
use sconce_schemas::wire::volume::{IoCode, IoFlags, IoRequest};
use sconce_tracing::{Point, Step};
use sconce_volume::{Append, SessionSlot, Ticket};

/// Operations that are followed at most: points that are switched on in the middle of work must not collect for ever.
const FOLLOWED_MAX: usize = 1 << 16;

/// What is followed.
#[derive(Default)]
pub(super) struct Traced {
    /// Changes that are not in the write buffer yet.
    changes: Vec<Change>,
    /// Changes that are, and that the twin does not hold yet; by batch.
    twinned: VecDeque<(BatchSeq, Step)>,
    /// What waits for the next sync.
    flushes: Vec<Flush>,
    /// What the sync that runs is for.
    syncing: Vec<Flush>,
}

struct Change {
    ticket: Ticket,
    session: SessionSlot,
    number: u64,
    step: Step,
}

struct Flush {
    ticket: Ticket,
    step: Step,
}

impl Traced {
    /// An operation is given to the engine.
    #[inline]
    pub(super) fn began(
        &mut self,
        ticket: Ticket,
        session: SessionSlot,
        request: &IoRequest,
        step: impl FnOnce() -> Step,
    ) {
        let changes = Point::VolumeAppend.is_on() && request.code.changes();
        let flushes = is_flush_on() && (request.code == IoCode::Flush || request.flags.has(IoFlags::FUA));
        if changes || flushes {
            self.follow(ticket, session, request, (changes, flushes), step());
        }
    }

    #[cold]
    fn follow(
        &mut self,
        ticket: Ticket,
        session: SessionSlot,
        request: &IoRequest,
        (changes, flushes): (bool, bool),
        step: Step,
    ) {
        let step = Step {
            length: request.length,
            ..step
        };
        if changes && self.changes.len() < FOLLOWED_MAX {
            self.changes.push(Change {
                ticket,
                session,
                number: request.number,
                step,
            });
        }
        if flushes && self.flushes.len() < FOLLOWED_MAX {
            self.flushes.push(Flush { ticket, step });
        }
    }

    /// A batch is in the write buffer.
    #[inline]
    pub(super) fn appended(&mut self, append: &Append, header: impl FnOnce() -> Option<ScoHeader>) {
        if !self.changes.is_empty() {
            self.tell_appended(append, header());
        }
    }

    #[cold]
    fn tell_appended(&mut self, append: &Append, header: Option<ScoHeader>) {
        let Some(batch) = header.and_then(|header| Batch::from_bytes(&append.tlog, header.salt()).ok())
        else {
            return;
        };
        for entry in batch.entries.iter().filter(|entry| entry.last) {
            let is_it =
                |change: &mut Change| change.session.0 == entry.session && change.number == entry.number;
            for change in self.changes.extract_if(.., is_it) {
                Point::VolumeAppend.record(|| change.step);
                if append.twin && self.twinned.len() < FOLLOWED_MAX {
                    self.twinned.push_back((append.seq, change.step));
                }
            }
        }
    }

    /// The twin holds all batches up to this one.
    #[inline]
    pub(super) fn twin_held(&mut self, upto: BatchSeq) {
        while let Some((_, step)) = self.twinned.pop_front_if(|(batch, _)| *batch <= upto) {
            Point::VolumeTwinHeld.record(|| step);
        }
    }

    /// There is no twin any more that could hold them.
    pub(super) fn twin_lost(&mut self) {
        self.twinned.clear();
    }

    /// A sync begins, for all that wait for one.
    #[inline]
    pub(super) fn sync_begins(&mut self) {
        if !self.flushes.is_empty() {
            for flush in &self.flushes {
                Point::VolumeFlushEntry.record(|| flush.step);
            }
            self.syncing.append(&mut self.flushes);
        }
    }

    /// It is done.
    #[inline]
    pub(super) fn synced(&mut self) {
        for flush in self.syncing.drain(..) {
            Point::VolumeFlushExit.record(|| flush.step);
        }
    }

    /// An operation is answered: what did not come until then does not come.
    #[inline]
    pub(super) fn ended(&mut self, ticket: Ticket) {
        if !self.changes.is_empty() || !self.flushes.is_empty() {
            self.changes.retain(|change| change.ticket != ticket);
            self.flushes.retain(|flush| flush.ticket != ticket);
        }
    }
}

fn is_flush_on() -> bool {
    Point::VolumeFlushEntry.is_on() || Point::VolumeFlushExit.is_on()
}
