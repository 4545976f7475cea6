//! The SCOs that the write buffer holds, and how far each is on its way to the back ends.
//!
//! Keeps: for each local SCO its length and state: open, closed, synced, stored.
//! Order: a SCO is uploaded only once it is synced (so the back end never has more than the write buffer would after
//! a power loss), and may be taken away only once it is stored and a manifest covers it.
//! Crash: rebuilt by recovery from the files' headers.
//! Knows no files.

use std::collections::BTreeMap;

use sconce_schemas::{ByteLen, Epoch, ScoId};

/// How far a local SCO is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    /// It takes appends.
    Open,
    /// It is complete, but not synced yet.
    Closed,
    /// It is synced and on its way to the back ends.
    Synced,
    /// It is on the back ends.
    Stored,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct LocalSco {
    pub(crate) epoch: Epoch,
    pub(crate) stage: Stage,
    pub(crate) tlog_len: ByteLen,
    pub(crate) length: ByteLen,
    evictable: bool,
}

/// The table of local SCOs.
#[derive(Debug, Default)]
pub(crate) struct Locals {
    scos: BTreeMap<ScoId, LocalSco>,
    unstored: u64,
    /// Every SCO below this one is synced.
    synced_below: ScoId,
    /// Every SCO below this one is stored.
    stored_below: ScoId,
    /// SCOs below this one that have no entry were found on the back ends by recovery.
    recovered_below: ScoId,
}

impl Locals {
    /// Everything below `next` was found synced and on the back ends.
    pub(crate) fn recovered(next: ScoId) -> Self {
        Self {
            synced_below: next,
            stored_below: next,
            recovered_below: next,
            ..Self::default()
        }
    }

    pub(crate) fn has(&self, sco: ScoId) -> bool {
        self.scos.contains_key(&sco)
    }

    /// Whether a SCO of the log is on the back ends.
    pub(crate) fn is_stored(&self, sco: ScoId) -> bool {
        self.scos
            .get(&sco)
            .is_none_or(|local| local.stage == Stage::Stored)
    }

    /// SCOs that take no more appends and are not on the back ends.
    pub(crate) fn unstored_closed(&self) -> impl Iterator<Item = ScoId> {
        let is_one = |local: &LocalSco| matches!(local.stage, Stage::Closed | Stage::Synced);
        self.scos
            .iter()
            .filter(move |(_, local)| is_one(local))
            .map(|(id, _)| *id)
    }

    /// A SCO, if it is not on the back ends.
    pub(crate) fn unstored_sco(&self, sco: ScoId) -> Option<LocalSco> {
        let local = self.scos.get(&sco)?;
        (local.stage != Stage::Stored).then_some(*local)
    }

    pub(crate) const fn synced_below(&self) -> ScoId {
        self.synced_below
    }

    pub(crate) const fn unstored(&self) -> ByteLen {
        ByteLen(self.unstored)
    }

    /// Whether every SCO up to `sco` is on the back ends.
    pub(crate) fn stored_upto(&self, sco: ScoId) -> bool {
        self.stored_below > sco
    }

    pub(crate) fn open(&mut self, sco: ScoId, epoch: Epoch) {
        let local = LocalSco {
            epoch,
            stage: Stage::Open,
            tlog_len: ByteLen(0),
            length: ByteLen(0),
            evictable: false,
        };
        self.scos.insert(sco, local);
    }

    /// Recovery: a local SCO that is complete, but perhaps not synced.
    pub(crate) fn replayed(&mut self, sco: ScoId, epoch: Epoch, tlog_len: ByteLen, length: ByteLen) {
        self.open(sco, epoch);
        self.synced_below = self.synced_below.min(sco);
        self.stored_below = self.stored_below.min(sco);
        self.closed(sco, tlog_len, length);
    }

    /// Recovery: the log ends before `next`; SCOs that were not [`Self::replayed`] from a file are on the back ends.
    pub(crate) fn recovery_done(&mut self, next: ScoId) {
        self.recovered_below = next;
        self.synced_below = self.advance(self.synced_below, Stage::Synced);
        self.stored_below = self.advance(self.stored_below, Stage::Stored);
    }

    /// A stored and covered SCO whose file is still there.
    pub(crate) fn adopt(&mut self, sco: ScoId, epoch: Epoch) {
        let cached = LocalSco {
            epoch,
            stage: Stage::Stored,
            tlog_len: ByteLen(0),
            length: ByteLen(0),
            evictable: true,
        };
        self.scos.insert(sco, cached);
    }

    pub(crate) fn closed(&mut self, sco: ScoId, tlog_len: ByteLen, length: ByteLen) {
        if let Some(local) = self.scos.get_mut(&sco) {
            (local.stage, local.tlog_len, local.length) = (Stage::Closed, tlog_len, length);
            self.unstored += length.0;
        }
    }

    /// The SCO is synced; gives what to upload.
    pub(crate) fn synced(&mut self, sco: ScoId) -> Option<LocalSco> {
        let local = self
            .scos
            .get_mut(&sco)
            .filter(|local| local.stage == Stage::Closed)?;
        local.stage = Stage::Synced;
        let local = *local;
        self.synced_below = self.advance(self.synced_below, Stage::Synced);
        Some(local)
    }

    /// The SCO is on the back ends.
    pub(crate) fn stored(&mut self, sco: ScoId) {
        if let Some(local) = self
            .scos
            .get_mut(&sco)
            .filter(|local| local.stage == Stage::Synced)
        {
            local.stage = Stage::Stored;
            self.unstored -= local.length.0;
            self.stored_below = self.advance(self.stored_below, Stage::Stored);
        }
    }

    fn advance(&self, from: ScoId, stage: Stage) -> ScoId {
        let ready = |at: &ScoId| match self.scos.get(at) {
            Some(local) => local.stage >= stage,
            None => *at < self.recovered_below,
        };
        let mut at = from;
        while ready(&at) {
            at = at.next();
        }
        at
    }

    /// A manifest covers every SCO up to `covered`: gives those that may be taken away now.
    pub(crate) fn covered(&mut self, covered: ScoId) -> Vec<ScoId> {
        let may_go = |(id, local): (&ScoId, &mut LocalSco)| {
            let first = local.stage == Stage::Stored && !local.evictable;
            local.evictable |= first;
            first.then_some(*id)
        };
        self.scos.range_mut(..=covered).filter_map(may_go).collect()
    }

    /// The file was taken away. `false`: it must not have been.
    pub(crate) fn evicted(&mut self, sco: ScoId) -> bool {
        self.scos.remove(&sco).is_none_or(|local| local.evictable)
    }
}
