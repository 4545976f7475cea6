//! Runs: neighbours in the SCO table whose objects could become one, and which of them are worth it.
//!
//! Keeps: the best runs of a pass.
//! Order: what lies in one object is in one run; runs do not overlap. A bundle is named after its last SCO and holds
//! neighbours, so what it holds stays a run of the table, whatever leaves it.
//! Crash: nothing.
//! Knows no SCO's content, only the table's counts.
//!
//! Neighbours were written one after the other and tend to decay alike, and what a reader wants together was often written
//! together: so neighbours are merged, and not what is alike elsewhere.

use std::collections::BinaryHeap;

use sconce_schemas::ScoId;

use super::{ScoObject, ScrubPolicy};

/// Most SCOs of a bundle.
const SCOS_MAX: u32 = 1024;
/// Runs that a pass picks.
const PICKED_MAX: usize = 256;
/// A part of a SCO that one object less is worth: what a request costs beside its bytes.
const OBJECT_WORTH: u64 = 16;
/// Clusters that writing an object costs beside those in it.
const OBJECT_COST: u64 = 4;

/// Neighbours in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) first: ScoId,
    pub(super) last: ScoId,
    scos: u32,
    objects: u64,
    slots: u64,
    live: u64,
}

/// What a pass has found.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Slots of an object that is full.
    full: u64,
    newest: u64,
    object: Option<(ScoObject, Run)>,
    run: Option<Run>,
    best: BinaryHeap<std::cmp::Reverse<(u64, RunKey)>>,
    left_out: bool,
    pub(super) objects: u64,
    pub(super) slots: u64,
    pub(super) live: u64,
}

/// Ordered by its place only to have an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct RunKey(Run);

impl Ord for RunKey {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.first.cmp(&other.0.first)
    }
}

impl PartialOrd for RunKey {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Run {
    const fn dead(&self) -> u64 {
        self.slots.saturating_sub(self.live)
    }

    fn with(self, next: Self) -> Self {
        Self {
            first: self.first,
            last: next.last,
            scos: self.scos + next.scos,
            objects: self.objects + next.objects,
            slots: self.slots + next.slots,
            live: self.live + next.live,
        }
    }

    /// Cost and benefit, as in log-structured file systems: space won, weighted by how long it took to die (what is young
    /// goes on dying by itself), and objects saved, by what has to be moved.
    fn score(&self, full: u64, newest: u64) -> u64 {
        if self.live == 0 {
            return u64::MAX;
        }
        let age = u64::from(newest.saturating_sub(self.last.0).max(1).ilog2());
        let won = self.dead() * (4 + age) + (self.objects - 1) * full / OBJECT_WORTH * 8;
        won * 1024 / (self.live + OBJECT_COST)
    }
}

impl Found {
    pub(super) fn new(full: u16, newest: ScoId) -> Self {
        Self {
            full: u64::from(full),
            newest: newest.0,
            ..Self::default()
        }
    }

    /// The next SCO of the table, the object that holds it, and its counts.
    pub(super) fn add(&mut self, sco: ScoId, object: ScoObject, slots: u16, live: u16) {
        let one = Run {
            first: sco,
            last: sco,
            scos: 1,
            objects: 1,
            slots: u64::from(slots),
            live: u64::from(live.min(slots)),
        };
        self.slots += one.slots;
        self.live += one.live;
        match &mut self.object {
            Some((known, run)) if *known == object => {
                let objects = run.objects;
                *run = run.with(one);
                run.objects = objects;
            }
            _ => {
                self.objects += 1;
                if let Some((_, run)) = self.object.replace((object, one)) {
                    self.extend(run);
                }
            }
        }
    }

    /// An object is complete: it joins the run before it, if that is better for both.
    fn extend(&mut self, next: Run) {
        let Some(run) = self.run else {
            self.run = Some(next);
            return;
        };
        let both = run.with(next);
        let score = |run: Run| run.score(self.full, self.newest);
        let fits = both.live <= self.full && both.scos <= SCOS_MAX;
        if fits && score(both) >= score(run).max(score(next)) / 8 * 7 {
            self.run = Some(both);
        } else {
            self.offer(run);
            self.run = Some(next);
        }
    }

    fn offer(&mut self, run: Run) {
        let score = run.score(self.full, self.newest);
        if score > 0 {
            self.best.push(std::cmp::Reverse((score, RunKey(run))));
            if self.best.len() > PICKED_MAX {
                self.left_out = true;
                self.best.pop();
            }
        }
    }

    /// Slots that are to be given back until as much of the volume is live as it is to be.
    pub(super) fn to_win(&self, policy: ScrubPolicy) -> u64 {
        let most = self.live * 100 / u64::from(policy.utilisation_percent.clamp(1, 100));
        self.slots.saturating_sub(most)
    }

    /// The runs that are worth it now, the best last; and whether a later pass will find more. Until they are written,
    /// `dying` clusters more will be dead, so on average half as many.
    pub(super) fn pick(mut self, policy: ScrubPolicy, dying: u64) -> (Vec<Run>, bool) {
        if let Some((_, run)) = self.object.take() {
            self.extend(run);
        }
        if let Some(run) = self.run.take() {
            self.offer(run);
        }
        let mut to_win = match self.to_win(policy) {
            0 => 0,
            now => now + dying / 2,
        };
        // Half as many objects again as full ones would be: bundles of neighbours are seldom full.
        let ideal = self.slots.div_ceil(self.full.max(1));
        let mut to_save = self
            .objects
            .saturating_sub(ideal + ideal / 2 + u64::from(policy.objects_spare));
        let mut picked = Vec::new();
        // Reversed scores ascend, so the best come first.
        for std::cmp::Reverse((_, RunKey(run))) in self.best.into_sorted_vec() {
            let wins = to_win > 0 && run.dead() > 0;
            let saves = to_save > 0 && run.objects > 1;
            if wins || saves || run.live == 0 {
                to_win = to_win.saturating_sub(run.dead());
                to_save = to_save.saturating_sub(run.objects - 1);
                picked.push(run);
            }
        }
        picked.reverse();
        let more = self.left_out && !picked.is_empty() && (to_win > 0 || to_save > 0);
        (picked, more)
    }
}
