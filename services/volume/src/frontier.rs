//! The frontier: how far the log is appended, held and synced, and who waits for which of these.
//!
//! Keeps: three batch numbers (appended ≥ held ≥ synced), acknowledgements and flushes that wait.
//! Order: acknowledgements leave in log order; one sync is under way at a time and serves all that waited when it
//! began.
//! Crash: what is acknowledged is held; what is flushed is synced.
//! Knows no data.

use std::collections::VecDeque;

use sconce_schemas::BatchSeq;

use crate::event::{Effect, Ticket};

/// How far the log got.
#[derive(Debug, Default)]
pub(crate) struct Frontier {
    appended: BatchSeq,
    held: BatchSeq,
    synced: BatchSeq,
    syncing: Option<BatchSeq>,
    acks: VecDeque<Ack>,
    flushes: VecDeque<(BatchSeq, Ticket)>,
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
        effects: &mut Vec<Effect>,
        mut done: impl FnMut(Ticket, &mut Vec<Effect>),
    ) {
        while let Some(ack) = self.acks.front().filter(|ack| ack.seq <= self.held) {
            if ack.synced {
                self.flushes.push_back((ack.seq, ack.ticket));
            } else {
                done(ack.ticket, effects);
            }
            self.acks.pop_front();
        }
        let synced = self.synced;
        self.flushes.retain(|(seq, ticket)| {
            let waits = *seq > synced;
            if !waits {
                done(*ticket, effects);
            }
            waits
        });
        let wanted = self.flushes.iter().any(|(seq, _)| *seq <= self.held);
        if wanted && self.syncing.is_none() {
            self.syncing = Some(self.held);
            effects.push(Effect::Sync { upto: self.held });
        }
    }

    /// Everything that still waits: for a halt.
    pub(crate) fn abandon(&mut self) -> impl Iterator<Item = Ticket> {
        let acks = std::mem::take(&mut self.acks).into_iter().map(|ack| ack.ticket);
        acks.chain(
            std::mem::take(&mut self.flushes)
                .into_iter()
                .map(|(_, ticket)| ticket),
        )
    }
}
