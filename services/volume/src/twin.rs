//! The twin: what another volume-router has of the log, and what waits for it (docs/decisions/0170).
//!
//! Keeps: how far the twin is, the SCOs that are to be copied to it, and uploads and reads that wait for it.
//! Order: the registry's record says that the twin is relied on only once it has everything that was acknowledged, and that it is not any
//! more before anything is acknowledged without it.
//! Crash: the next ownership begins without a twin.
//! Knows no nodes and no streams: the host has one stream at a time, and says when it is lost.

use std::collections::{BTreeSet, VecDeque};

use sconce_schemas::records::{DtlMode, DtlState};
use sconce_schemas::{BatchSeq, ByteLen, ScoId, Slot};

use crate::event::{Effect, Extent, Ticket};
use crate::log::Ended;
use crate::read::Query;
use crate::volume::Volume;

/// How far a volume's twin is, for people and for the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TwinState {
    /// The volume wants none.
    Off,
    /// It wants one: [`crate::Event::TwinAttached`] says that there is.
    Searching,
    /// What was not stored before it was there is copied to it.
    Copying,
    /// It has everything but what is under way; the record is about to say so.
    Joining,
    /// The record says that it has every acknowledged write.
    InSync,
    /// It is lost, and the record does not say so yet: nothing is acknowledged that it does not have.
    Losing,
}

impl TwinState {
    /// What the registry's record says meanwhile, at least.
    #[must_use]
    pub const fn recorded(self) -> DtlState {
        match self {
            Self::Off => DtlState::Off,
            Self::Searching | Self::Copying | Self::Joining => DtlState::Degraded,
            Self::InSync | Self::Losing => DtlState::InSync,
        }
    }
}

/// What is known of a twin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TwinStatus {
    /// How far it is.
    pub state: TwinState,
    /// What is waited for.
    pub mode: DtlMode,
}

/// A batch that the twin was told of and does not hold yet.
#[derive(Debug)]
struct Behind {
    seq: BatchSeq,
    /// Bytes of all batches up to this one, since the twin attached.
    upto_bytes: u64,
    sco: ScoId,
    first_slot: Slot,
    /// It has entries without a slot: discards, zeroes, sizes, records.
    without_slots: bool,
}

/// What of the log is on the twin.
#[derive(Debug)]
pub(crate) struct Twin {
    mode: DtlMode,
    behind_max: u64,
    state: State,
    held: BatchSeq,
    held_bytes: u64,
    synced: BatchSeq,
    syncing: bool,
    behind: VecDeque<Behind>,
    told_bytes: u64,
    /// SCOs that are to be copied, and the one that is.
    copies: BTreeSet<ScoId>,
    copying: Option<ScoId>,
    /// SCOs that were closed since it attached, with their last batch.
    closed: VecDeque<(ScoId, BatchSeq)>,
    /// Uploads that wait until the twin has synced a batch.
    uploads: Vec<(BatchSeq, Effect)>,
    /// Reads of what the twin does not hold yet, and the batch that it is in.
    reads: Vec<(BatchSeq, Query, Vec<Extent>)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Detached,
    Copying,
    /// Acknowledgements wait for it; the record follows once it has synced this batch.
    Joining(BatchSeq),
    Recording,
    InSync,
    Losing,
}

impl Twin {
    pub(crate) const fn new(mode: DtlMode, behind_max: ByteLen) -> Self {
        Self {
            mode,
            behind_max: behind_max.0,
            state: State::Detached,
            held: BatchSeq::NONE,
            held_bytes: 0,
            synced: BatchSeq::NONE,
            syncing: false,
            behind: VecDeque::new(),
            told_bytes: 0,
            copies: BTreeSet::new(),
            copying: None,
            closed: VecDeque::new(),
            uploads: Vec::new(),
            reads: Vec::new(),
        }
    }

    /// Whether it is told of what is written.
    pub(crate) const fn listens(&self) -> bool {
        !matches!(self.state, State::Detached | State::Losing)
    }

    /// Whether acknowledgements wait for it.
    const fn is_waited_for(&self) -> bool {
        !matches!(self.state, State::Detached | State::Copying)
    }

    /// A SCO was closed behind this batch.
    pub(crate) fn closed(&mut self, sco: ScoId, last: BatchSeq) {
        if self.state != State::Detached {
            self.closed.push_back((sco, last));
        }
    }

    /// SCOs below this one are synced on the twin too, as far as it has them: a header must not claim more, as a takeover
    /// believes what it claims.
    pub(crate) fn synced_below(&self) -> ScoId {
        self.closed.front().map_or(ScoId(u64::MAX), |(sco, _)| *sco)
    }

    /// It is told of a batch.
    pub(crate) fn told(&mut self, batch: &Ended) {
        self.told_bytes += batch.bytes;
        self.behind.push_back(Behind {
            seq: batch.seq,
            upto_bytes: self.told_bytes,
            sco: batch.sco,
            first_slot: batch.first_slot,
            without_slots: batch.slots < batch.entries,
        });
    }

    /// The last batch that may be acknowledged, of those up to `held`, which the write buffer holds.
    pub(crate) fn acknowledges_upto(&self, held: BatchSeq) -> BatchSeq {
        if !self.is_waited_for() {
            return held;
        }
        if self.mode != DtlMode::Async || self.state == State::Losing {
            return held.min(self.held);
        }
        let near_enough = |behind: &Behind| behind.upto_bytes - self.held_bytes <= self.behind_max;
        let first_that_waits = self.behind.partition_point(near_enough);
        self.behind
            .get(first_that_waits)
            .map_or(held, |waits| held.min(waits.seq.prev()))
    }

    /// The last batch that counts as flushed, of those up to `synced`.
    pub(crate) fn flushes_upto(&self, synced: BatchSeq) -> BatchSeq {
        match self.is_waited_for() {
            true => synced.min(self.synced),
            false => synced,
        }
    }

    /// Whether reads may have to wait for it.
    pub(crate) fn gates_reads(&self) -> bool {
        self.mode == DtlMode::Sync && self.is_waited_for()
    }

    /// The batch that a read of these extents waits for: one with a slot that they name, or one that may have left the zeros
    /// which they show.
    fn read_waits_for(&self, extents: &[Extent]) -> Option<BatchSeq> {
        if !self.gates_reads() {
            return None;
        }
        let ends = extents.iter().filter_map(|extent| match extent {
            Extent::Local {
                sco,
                first_slot,
                crcs,
            } => Some((*sco, usize::from(first_slot.0) + crcs.len())),
            Extent::Zeros { .. } | Extent::Stored { .. } => None,
        });
        let end = ends.max().unwrap_or((ScoId::NONE, 0));
        let is_named = |behind: &Behind| (behind.sco, usize::from(behind.first_slot.0)) < end;
        let last = |wanted: &dyn Fn(&Behind) -> bool| {
            let found = self.behind.iter().rev().find(|behind| wanted(behind));
            found.map(|behind| behind.seq)
        };
        last(&|behind| behind.without_slots || is_named(behind))
    }

    /// Whether it holds everything that was appended, and the record says so.
    fn has_all(&self) -> bool {
        self.state == State::InSync && self.behind.is_empty()
    }

    fn status(&self) -> TwinStatus {
        let state = match self.state {
            State::Detached if self.mode == DtlMode::None => TwinState::Off,
            State::Detached => TwinState::Searching,
            State::Copying => TwinState::Copying,
            State::Joining(_) | State::Recording => TwinState::Joining,
            State::InSync => TwinState::InSync,
            State::Losing => TwinState::Losing,
        };
        TwinStatus {
            state,
            mode: self.mode,
        }
    }

    /// The twin holds everything up to `upto`.
    ///
    /// # Errors
    /// Invariant 8: a twin holds nothing that it was not told of.
    fn held(&mut self, upto: BatchSeq, appended: BatchSeq) -> Result<(), String> {
        if upto > appended {
            return Err(format!(
                "invariant 8: the twin holds batch {upto}, but only {appended} were appended"
            ));
        }
        while let Some(behind) = self.behind.pop_front_if(|behind| behind.seq <= upto) {
            self.held_bytes = behind.upto_bytes;
        }
        self.held = self.held.max(upto);
        Ok(())
    }

    /// It is no twin any more. What waited for it goes on.
    fn detach(&mut self) {
        let mode = self.mode;
        let (uploads, reads) = (std::mem::take(&mut self.uploads), std::mem::take(&mut self.reads));
        *self = Self {
            uploads,
            reads,
            ..Self::new(mode, ByteLen(self.behind_max))
        };
    }
}

impl Volume {
    /// What is known of the twin.
    #[must_use]
    pub fn twin_status(&self) -> TwinStatus {
        self.twin.status()
    }

    /// Whether the twin holds everything that was appended, and the record says so.
    #[must_use]
    pub fn twin_has_all(&self) -> bool {
        self.twin.has_all()
    }

    /// The twin is another's business from here on, or none: what the record says decides.
    pub(crate) fn twin_mode(&mut self, mode: DtlMode, effects: &mut Vec<Effect>) {
        self.twin.mode = mode;
        if mode == DtlMode::None {
            self.twin_lost(effects);
        }
    }

    /// There is a twin: a SCO that is begun from here on is begun there too, and what is not stored is copied.
    pub(crate) fn twin_attached(&mut self, effects: &mut Vec<Effect>) {
        if self.twin.state != State::Detached || self.twin.mode == DtlMode::None {
            return;
        }
        self.close_sco(effects);
        let appended = self.frontier.appended();
        self.twin.state = State::Copying;
        (self.twin.held, self.twin.synced) = (appended, appended);
        self.twin.copies = self.locals.unstored_closed().collect();
        if let Some(header) = self.log.open_header() {
            effects.push(Effect::TwinOpen { header });
        }
    }

    pub(crate) fn twin_copied(&mut self, sco: ScoId) {
        if self.twin.copying == Some(sco) {
            self.twin.copying = None;
        }
    }

    pub(crate) fn twin_held(&mut self, upto: BatchSeq) -> Result<(), String> {
        match self.twin.listens() {
            true => self.twin.held(upto, self.frontier.appended()),
            false => Ok(()),
        }
    }

    pub(crate) fn twin_synced(&mut self, upto: BatchSeq) {
        let twin = &mut self.twin;
        if twin.listens() {
            twin.synced = twin.synced.max(upto.min(twin.held));
            twin.syncing = false;
            while twin
                .closed
                .pop_front_if(|(_, last)| *last <= twin.synced)
                .is_some()
            {}
        }
    }

    pub(crate) fn twin_in_sync(&mut self) {
        if self.twin.state == State::Recording {
            self.twin.state = State::InSync;
        }
    }

    pub(crate) fn twin_lost(&mut self, effects: &mut Vec<Effect>) {
        match self.twin.state {
            State::Detached | State::Losing => {}
            State::Copying | State::Joining(_) => self.twin.detach(),
            State::Recording | State::InSync => {
                self.twin.state = State::Losing;
                effects.push(Effect::RecordDegraded);
            }
        }
    }

    pub(crate) fn twin_degraded(&mut self) {
        if self.twin.state == State::Losing {
            self.twin.detach();
        }
    }

    /// Stores a SCO, or has that wait: the back ends must not have more of it than a twin that takes over, also if that loses
    /// power then.
    pub(crate) fn upload_with_twin(&mut self, sco: ScoId, upload: Effect, effects: &mut Vec<Effect>) {
        let last = self.twin.closed.iter().find(|(closed, _)| *closed == sco);
        match last.map(|(_, last)| *last).filter(|_| self.twin.is_waited_for()) {
            Some(last) => self.twin.uploads.push((last, upload)),
            None => effects.push(upload),
        }
    }

    /// Answers a read now, or once the twin holds what it shows.
    pub(crate) fn answer_read(&mut self, query: &Query, extents: Vec<Extent>, effects: &mut Vec<Effect>) {
        match self.twin.read_waits_for(&extents) {
            Some(seq) => self.twin.reads.push((seq, *query, extents)),
            None => effects.push(Effect::Read {
                ticket: query.ticket,
                extents,
            }),
        }
    }

    /// After every event: the next copy, the next step towards being in sync, and what waited for the twin.
    pub(crate) fn twin_upkeep(&mut self, effects: &mut Vec<Effect>) {
        self.twin_copies(effects);
        let twin = &mut self.twin;
        if let State::Joining(upto) = twin.state
            && twin.synced >= upto
        {
            twin.state = State::Recording;
            effects.push(Effect::RecordInSync);
        }
        let (held, synced) = match twin.is_waited_for() {
            true => (twin.held, twin.synced),
            false => (BatchSeq(u64::MAX), BatchSeq(u64::MAX)),
        };
        let due = twin.uploads.extract_if(.., |(last, _)| *last <= synced);
        effects.extend(due.map(|(_, upload)| upload));
        let due: Vec<_> = twin.reads.extract_if(.., |(seq, ..)| *seq <= held).collect();
        for (_, query, extents) in due {
            self.answer_held_read(query, extents, effects);
        }
    }

    /// Has the twin sync what a flush, an upload or the record waits for, once it is known what does. One at a time is under way and
    /// serves all that waited when it began.
    pub(crate) fn twin_sync(&mut self, effects: &mut Vec<Effect>) {
        let twin = &mut self.twin;
        if !twin.is_waited_for() || !twin.listens() || twin.syncing {
            return;
        }
        let waits = |seq: BatchSeq| seq > twin.synced && seq <= twin.held;
        let joins = matches!(twin.state, State::Joining(upto) if waits(upto));
        let uploads = || twin.uploads.iter().any(|(last, _)| waits(*last));
        if joins || uploads() || self.frontier.wants_sync(twin.synced, twin.held) {
            twin.syncing = true;
            effects.push(Effect::TwinSync { upto: twin.held });
        }
    }

    fn twin_copies(&mut self, effects: &mut Vec<Effect>) {
        while self.twin.state == State::Copying && self.twin.copying.is_none() {
            let Some(sco) = self.twin.copies.pop_first() else {
                self.twin.state = State::Joining(self.frontier.appended());
                return;
            };
            // One that is stored by now is found where it is stored.
            if let Some(local) = self.locals.unstored_sco(sco) {
                self.twin.copying = Some(sco);
                effects.push(Effect::TwinCopy {
                    sco,
                    epoch: local.epoch,
                    tlog_len: local.tlog_len,
                    length: local.length,
                });
            }
        }
    }

    /// A file that it names may have been taken away while it waited: then the map is asked again.
    fn answer_held_read(&mut self, query: Query, extents: Vec<Extent>, effects: &mut Vec<Effect>) {
        let is_here = |extent: &Extent| match extent {
            Extent::Local { sco, .. } => self.locals.has(*sco),
            Extent::Zeros { .. } | Extent::Stored { .. } => true,
        };
        match extents.iter().all(is_here) {
            true => effects.push(Effect::Read {
                ticket: query.ticket,
                extents,
            }),
            false => self.read_again(query, effects),
        }
    }

    /// Nobody needs the twin's copies of what a manifest covers.
    pub(crate) fn release_twin(&self, upto: ScoId, effects: &mut Vec<Effect>) {
        if self.twin.listens() {
            effects.push(Effect::TwinRelease { upto });
        }
    }

    /// The reads that wait: for a halt.
    pub(crate) fn abandon_twin(&mut self) -> impl Iterator<Item = Ticket> {
        std::mem::take(&mut self.twin.reads)
            .into_iter()
            .map(|(_, query, _)| query.ticket)
    }
}
