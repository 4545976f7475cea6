//! Which operations a batch or a sync was for, while a session records that.
//!
//! Keeps: operations whose step has not come yet. Nothing while their points are off and none is recorded in spans. Of each SCO that is not
//! stored yet the first recorded operation: storing it is part of that one's trace.
//! Order: as they came.
//! Crash: nothing.
//! Knows batches by what they say of themselves: the engine says of none whose they are.

use std::collections::{BTreeMap, VecDeque};

use sconce_schemas::sco::{Batch, ScoHeader};
use sconce_schemas::wire::volume::{IoCode, IoFlags, IoRequest};
use sconce_schemas::{BatchSeq, ScoId};
use sconce_tracing::{Point, Step, Trace};
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
    /// Changes that are not in the write buffer yet, and that are recorded in spans.
    recorded: Vec<Recorded>,
    /// What storing a SCO belongs to.
    scos: BTreeMap<ScoId, Trace>,
}

struct Recorded {
    ticket: Ticket,
    session: SessionSlot,
    number: u64,
    trace: Trace,
}

/// SCOs that are remembered at most.
const SCOS_MAX: usize = 1024;

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

    /// An operation that is recorded in spans is given to the engine.
    #[cold]
    pub(super) fn recorded(
        &mut self,
        ticket: Ticket,
        session: SessionSlot,
        request: &IoRequest,
        trace: Trace,
    ) {
        if request.code.changes() && self.recorded.len() < FOLLOWED_MAX {
            self.recorded.push(Recorded {
                ticket,
                session,
                number: request.number,
                trace,
            });
        }
    }

    /// What a batch belongs to, if an operation in it is recorded.
    #[inline]
    pub(super) fn recorded_in(
        &mut self,
        append: &Append,
        header: impl FnOnce() -> Option<ScoHeader>,
    ) -> Option<Trace> {
        if self.recorded.is_empty() {
            return None;
        }
        self.find_recorded(append, header()?)
    }

    #[cold]
    fn find_recorded(&mut self, append: &Append, header: ScoHeader) -> Option<Trace> {
        let batch = Batch::from_bytes(&append.tlog, header.salt()).ok()?;
        let entries = batch.entries.iter().filter(|entry| entry.last);
        let is_in = |recorded: &mut Recorded| {
            entries
                .clone()
                .any(|entry| recorded.session.0 == entry.session && recorded.number == entry.number)
        };
        let first = self.recorded.extract_if(.., is_in).reduce(|first, _| first)?;
        self.scos.entry(append.sco).or_insert(first.trace);
        if self.scos.len() > SCOS_MAX {
            self.scos.pop_first();
        }
        Some(first.trace)
    }

    /// What storing a SCO belongs to, if an operation in it was recorded.
    pub(super) fn recorded_of(&mut self, sco: ScoId) -> Option<Trace> {
        self.scos.remove(&sco)
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
        if !self.recorded.is_empty() {
            self.recorded.retain(|recorded| recorded.ticket != ticket);
        }
    }
}

fn is_flush_on() -> bool {
    Point::VolumeFlushEntry.is_on() || Point::VolumeFlushExit.is_on()
}
