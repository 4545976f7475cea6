//! The frontier: how far the log is appended, held and synced, and who waits for which of these.
//!
//! Keeps: three batch numbers (appended ≥ held ≥ synced), acknowledgements and flushes that wait.
//! Order: acknowledgements leave in log order; one sync is under way at a time and serves all that waited when it
//! began. While a proposed snapshot holds them, none of what is behind it leaves.
//! Crash: what is acknowledged is held; what is flushed is synced.
//! Knows no data.

use std::collections::VecDeque;

use sconce_schemas::{BatchSeq, SnapshotId};

use crate::event::{Effect, Ticket};
use crate::twin::Twin;

/// How far the log got.
#[derive(Debug, Default)]
pub(crate) struct Frontier {
    appended: BatchSeq,
    held: BatchSeq,
    synced: BatchSeq,
    syncing: Option<BatchSeq>,
    acks: VecDeque<Ack>,
    flushes: VecDeque<(BatchSeq, Ticket)>,
    hold: Option<Hold>,
}

/// A proposed snapshot: what is behind it in the log is not acknowledged meanwhile.
#[derive(Debug)]
struct Hold {
    snapshot: SnapshotId,
    /// The batch with its record. What is before the record in that batch waits too.
    from: BatchSeq,
    /// Who proposed it, and is answered once the record is held.
    proposers: Vec<Ticket>,
}

#[derive(Debug)]
struct Ack {
    seq: BatchSeq,
    ticket: Ticket,
    /// Not before it is synced (FUA).
    synced: bool,
}

impl Frontier {
    /// A frontier whose log was recovered up to `upto`; what a manifest covers is synced for sure.
    pub(crate) fn recovered(upto: BatchSeq, synced: BatchSeq) -> Self {
        Self {
            appended: upto,
            held: upto,
            synced,
            ..Self::default()
        }
    }

    /// The last batch that was given to the write buffer.
    pub(crate) const fn appended(&self) -> BatchSeq {
        self.appended
    }

    /// A batch was given to the write buffer.
    ///
    /// # Errors
    /// Invariant 5: batches are numbered without gaps.
    pub(crate) fn append(&mut self, seq: BatchSeq) -> Result<(), String> {
        let expected = self.appended.next();
        if seq != expected {
            return Err(format!(
                "invariant 5: batch {seq} was appended where {expected} is next"
            ));
        }
        self.appended = seq;
        Ok(())
    }

    /// Acknowledge `ticket` once batch `seq` is held, or synced.
    pub(crate) fn acknowledge(&mut self, seq: BatchSeq, ticket: Ticket, synced: bool) {
        self.acks.push_back(Ack { seq, ticket, synced });
    }

    /// Answer `ticket` once everything up to `seq` is synced.
    pub(crate) fn flush(&mut self, seq: BatchSeq, ticket: Ticket) {
        self.flushes.push_back((seq, ticket));
    }

    /// A proposed snapshot is in batch `from`.
    pub(crate) fn hold(&mut self, snapshot: SnapshotId, from: BatchSeq) {
        self.hold = Some(Hold {
            snapshot,
            from,
            proposers: Vec::new(),
        });
    }

    /// Answer `ticket` once the proposed snapshot's record is held.
    pub(crate) fn acknowledge_proposal(&mut self, ticket: Ticket) {
        match &mut self.hold {
            Some(hold) => hold.proposers.push(ticket),
            None => self.flush(self.appended, ticket),
        }
    }

    /// The snapshot for which acknowledgements are held.
    pub(crate) fn holding(&self) -> Option<SnapshotId> {
        self.hold.as_ref().map(|hold| hold.snapshot)
    }

    /// Lets go of the acknowledgements that are held for a snapshot. A proposer that was not answered is answered in its
    /// turn: that its record is there is true, and all that it can do with it is judged again.
    pub(crate) fn let_go(&mut self, snapshot: SnapshotId) {
        if let Some(hold) = self.hold.take_if(|hold| hold.snapshot == snapshot) {
            let proposers = hold.proposers.into_iter().map(|ticket| (hold.from, ticket));
            self.flushes.extend(proposers);
        }
    }

    /// The write buffer holds everything up to `upto`.
    ///
    /// # Errors
    /// Invariant 1: nothing is held that was not appended.
    pub(crate) fn held(&mut self, upto: BatchSeq) -> Result<(), String> {
        if upto > self.appended {
            return Err(format!(
                "invariant 1: batch {upto} is held, but only {} appended",
                self.appended
            ));
        }
        self.held = self.held.max(upto);
        Ok(())
    }

    /// Everything up to `upto` is synced.
    ///
    /// # Errors
    /// Invariant 2: nothing is synced that is not held.
    pub(crate) fn synced(&mut self, upto: BatchSeq) -> Result<(), String> {
        if upto > self.held {
            return Err(format!(
                "invariant 2: batch {upto} is synced, but only {} held",
                self.held
            ));
        }
        self.synced = self.synced.max(upto);
        self.syncing = None;
        Ok(())
    }

    /// Upkeep after every event: acknowledgements that are due leave in log order, and a sync is asked for if
    /// somebody waits for one and none is under way. `done` is called for each ticket that is due.
    pub(crate) fn upkeep(
        &mut self,
        twin: &Twin,
        effects: &mut Vec<Effect>,
        mut done: impl FnMut(Ticket, &mut Vec<Effect>),
    ) {
        let (held, synced) = (twin.acknowledges_upto(self.held), twin.flushes_upto(self.synced));
        if let Some(hold) = self.hold.as_mut().filter(|hold| hold.from <= held) {
            hold.proposers.drain(..).for_each(|ticket| done(ticket, effects));
        }
        let held_back = |seq: BatchSeq| self.hold.as_ref().is_some_and(|hold| seq >= hold.from);
        while let Some(ack) = self
            .acks
            .front()
            .filter(|ack| ack.seq <= held && !held_back(ack.seq))
        {
            if ack.synced {
                self.flushes.push_back((ack.seq, ack.ticket));
            } else {
                done(ack.ticket, effects);
            }
            self.acks.pop_front();
        }
        self.flushes.retain(|(seq, ticket)| {
            let waits = *seq > synced || held_back(*seq);
            if !waits {
                done(*ticket, effects);
            }
            waits
        });
        let wanted = self.wants_sync(self.synced, self.held);
        if wanted && self.syncing.is_none() {
            self.syncing = Some(self.held);
            effects.push(Effect::Sync { upto: self.held });
        }
    }

    /// Whether a flush waits for a sync up to `held` where there was one up to `synced`.
    pub(crate) fn wants_sync(&self, synced: BatchSeq, held: BatchSeq) -> bool {
        self.flushes.iter().any(|(seq, _)| *seq > synced && *seq <= held)
    }

    /// Everything that still waits: for a halt.
    pub(crate) fn abandon(&mut self) -> impl Iterator<Item = Ticket> {
        let acks = std::mem::take(&mut self.acks).into_iter().map(|ack| ack.ticket);
        let proposers = self.hold.take().map_or_else(Vec::new, |hold| hold.proposers);
        acks.chain(proposers).chain(
            std::mem::take(&mut self.flushes)
                .into_iter()
                .map(|(_, ticket)| ticket),
        )
    }
}
