//! The history: how far back any moment of the volume can be had, and from what.
//!
//! Keeps: the window, its points (roots of checkpoints, from where moments are replayed), and the base, the oldest of them.
//! Order: points ascend with the log. A point enters once its manifest is stored; the base moves on in ticks.
//! Crash: the manifest has the points; a record in the log turns the history on and off.
//! Knows no storage and no clock but what ticks say.
//!
//! What keeps a moment alive: every SCO behind the base stays whole, the base's map is looked at by the scrub as a
//! snapshot's is, and a snapshot that was removed stays, hidden, until the base has passed its removal.

use std::collections::{BTreeSet, VecDeque};

use sconce_schemas::history::{HistoryState, PointState};
use sconce_schemas::ids::Location;
use sconce_schemas::manifest::TreeRoot;
use sconce_schemas::{BatchSeq, CheckpointId, ScoId};

use crate::tree::{FrozenTree, StoredUpTo, Tree};
use crate::volume::Volume;

/// Most points that a manifest has: some 400 KiB. Only a volume that wrote a billion clusters within its window gets there.
const POINTS_MAX: usize = 2048;
/// The base moves on, and points are let go of, in steps of this part of the window: what it holds is not looked for anew
/// at each checkpoint.
const STEPS: u64 = 32;
/// SCOs that are remembered as held by the base; beyond that all are taken for it, until it moves on.
const HELD_MAX: usize = 1 << 18;

/// The history of a volume, for people.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HistoryStatus {
    /// How far back it is to reach, in microseconds; 0: it is off.
    pub window_us: u64,
    /// The first moment that can be had, in microseconds since 1970; `None`: there is none yet.
    pub from_us: Option<u64>,
    /// Points that moments are replayed from.
    pub points: usize,
    /// Removed snapshots that are still needed.
    pub held_snapshots: usize,
    /// Moments that were asked for and are not there yet.
    pub moments: usize,
    /// Memory that maps of the history take, in bytes.
    pub map_memory: u64,
}

/// State of a volume's history.
#[derive(Debug, Default)]
pub(crate) struct History {
    window_us: u64,
    points: VecDeque<PointState>,
    /// Map of the first point.
    base: Tree<Location>,
    /// The point of the checkpoint that is under way.
    pending: Option<Pending>,
    /// SCOs that a look found to be held by the base.
    held: BTreeSet<ScoId>,
}

#[derive(Debug)]
struct Pending {
    point: PointState,
    map: Tree<Location>,
}

impl History {
    /// As a manifest has it.
    pub(crate) fn restore(state: &HistoryState) -> Self {
        let mut history = Self {
            window_us: state.window_us,
            points: state.points.iter().copied().collect(),
            ..Self::default()
        };
        history.rebase();
        history
    }

    /// For a manifest.
    pub(crate) fn save(&self, upto_us: u64) -> HistoryState {
        HistoryState {
            window_us: self.window_us,
            upto_us,
            points: self.points.iter().copied().collect(),
        }
    }

    pub(crate) const fn is_on(&self) -> bool {
        self.window_us > 0
    }

    pub(crate) const fn window_us(&self) -> u64 {
        self.window_us
    }

    /// Sets the window. Without one nothing is kept.
    pub(crate) fn set_window(&mut self, window_us: u64) {
        self.window_us = window_us;
        if window_us == 0 {
            *self = Self::default();
        }
    }

    /// The oldest point.
    pub(crate) fn base(&self) -> Option<&PointState> {
        self.points.front()
    }

    /// The last point at or before a moment.
    pub(crate) fn point_at(&self, time_us: u64) -> Option<PointState> {
        let behind = self.points.partition_point(|point| point.time_us <= time_us);
        self.points.get(behind.checked_sub(1)?).copied()
    }

    /// The map that keeps what moments need that was written up to the base.
    pub(crate) fn map(&self) -> Option<&Tree<Location>> {
        match self.points.front() {
            Some(_) => Some(&self.base),
            None => self.pending.as_ref().map(|pending| &pending.map),
        }
    }

    pub(crate) fn map_mut(&mut self) -> &mut Tree<Location> {
        &mut self.base
    }

    /// Removed snapshots whose removal is in a later batch than this are still needed.
    pub(crate) fn holds_after(&self) -> Option<BatchSeq> {
        let base = self.base().map_or(BatchSeq::NONE, |base| base.covered);
        self.is_on().then_some(base)
    }

    /// A checkpoint was frozen: `point`, if it is a new one, is to be in its manifest.
    pub(crate) fn frozen(&mut self, point: PointState, map: &FrozenTree<Location>) -> bool {
        let is_new = self.is_on() && self.points.back().is_none_or(|last| last.covered < point.covered);
        self.pending = is_new.then(|| Pending {
            point,
            map: Tree::thaw(map),
        });
        is_new
    }

    /// The manifest is stored: moments can be replayed from its root.
    pub(crate) fn stored(
        &mut self,
        covered: BatchSeq,
        map: TreeRoot,
        checkpoint: CheckpointId,
        entries_max: u64,
    ) {
        let Some(pending) = self.pending.take_if(|pending| pending.point.covered == covered) else {
            return;
        };
        self.points.push_back(PointState {
            map,
            checkpoint,
            ..pending.point
        });
        self.thin(entries_max);
        if self.points.len() == 1 {
            self.rebase();
        }
    }

    /// Lets go of the point before the last one where the replay from the one before it stays within a checkpoint's interval,
    /// and the step in time small; and of the one that costs least where there are too many.
    fn thin(&mut self, entries_max: u64) {
        let step_us = self.step_us();
        if let [.., first, middle, last] = self.points.make_contiguous() {
            let is_near = last.time_us - first.time_us.min(last.time_us) <= step_us;
            if is_near && middle.entries.saturating_add(last.entries) <= entries_max {
                last.entries += middle.entries;
                let at = self.points.len() - 2;
                self.points.remove(at);
            }
        }
        if self.points.len() > POINTS_MAX {
            // The base stays, and so does the last one, which the next is compared with.
            let cost = |at: &usize| {
                self.points[*at]
                    .entries
                    .saturating_add(self.points[*at + 1].entries)
            };
            if let Some(at) = (1..self.points.len() - 1).min_by_key(cost)
                && let Some(gone) = self.points.remove(at)
                && let Some(next) = self.points.get_mut(at)
            {
                next.entries = next.entries.saturating_add(gone.entries);
            }
        }
    }

    const fn step_us(&self) -> u64 {
        self.window_us / STEPS
    }

    /// Moves the base on to the last point before the window, but not behind `needed`. Whether it did.
    fn advance(&mut self, now_us: u64, needed: Option<BatchSeq>) -> bool {
        let limit = now_us.saturating_sub(self.window_us);
        let is_passed = |point: &PointState| {
            point.time_us <= limit && needed.is_none_or(|needed| point.covered <= needed)
        };
        let Some(to) = self.points.partition_point(is_passed).checked_sub(1) else {
            return false;
        };
        let (Some(first), Some(next)) = (self.points.front(), self.points.get(to)) else {
            return false;
        };
        let is_far = next.time_us - first.time_us.min(next.time_us) >= self.step_us();
        if to == 0 || !(is_far || to + 1 == self.points.len()) {
            return false;
        }
        self.points.drain(..to);
        self.rebase();
        true
    }

    fn rebase(&mut self) {
        let stored = |base: &PointState| Tree::stored(base.map, base.allocated_clusters);
        self.base = self.points.front().map(stored).unwrap_or_default();
        self.held.clear();
    }

    /// Lets go of loaded nodes of the base's map, beyond `budget` bytes.
    fn evict(&mut self, budget: u64, stored: StoredUpTo) {
        if self.base.resident_bytes() > budget {
            self.base.evict(budget / 2, stored);
        }
    }
}

impl Volume {
    /// The history, for people.
    #[must_use]
    pub fn history_status(&self) -> HistoryStatus {
        HistoryStatus {
            window_us: self.history.window_us,
            from_us: self.history.base().map(|base| base.time_us),
            points: self.history.points.len(),
            held_snapshots: self.snapshots.held().count(),
            moments: self.moments.len(),
            map_memory: self.history.base.resident_bytes() + self.moments.map_memory(),
        }
    }

    /// The point that a checkpoint that is frozen now makes; its roots come later.
    pub(crate) fn new_point(&self, covered_sco: ScoId) -> PointState {
        PointState {
            time_us: self.log.stamp_us(),
            covered: self.frontier.appended(),
            covered_sco,
            checkpoint: CheckpointId::NONE,
            entries: self.checkpoints.entries,
            size: self.size,
            allocated_clusters: self.map.count(),
            map: TreeRoot::default(),
        }
    }

    /// The record that turns the history on, off, or to another window.
    pub(crate) fn set_history(&mut self, window_us: u64) {
        let was_on = self.history.is_on();
        self.history.set_window(window_us);
        if was_on != self.history.is_on() {
            // On: the first point is to be there soon. Off: what was held may go.
            self.checkpoints.manifest_due = true;
            self.base_moved();
        }
    }

    fn base_moved(&mut self) {
        self.snapshots.hold_after = self.history.holds_after();
        self.snapshots.release(&self.map);
        self.scrub.more_is_covered();
    }

    /// Whether ticks are needed.
    pub(crate) fn history_has_work(&self) -> bool {
        self.history.points.len() > 1 || self.snapshots.held().next().is_some() || self.moments.len() > 0
    }

    /// A tick: the window moves on.
    pub(crate) fn history_tick(&mut self) {
        let stored = self.stored_up_to();
        self.history.evict(self.map_memory / 8, stored);
        self.snapshots.evict(self.map_memory / 8, stored);
        if self.history.advance(self.now_us, self.moments.needed()) {
            self.base_moved();
            self.checkpoints.manifest_due = true;
        }
    }

    /// A manifest has a point; where it is the first, what was removed before it is needed no more.
    pub(crate) fn point_stored(&mut self, covered: BatchSeq, map: TreeRoot, checkpoint: CheckpointId) {
        let was = self.history.base().map(|base| base.covered);
        let entries_max = self.checkpoints.policy.entries_max;
        self.history.stored(covered, map, checkpoint, entries_max);
        if self.history.base().map(|base| base.covered) != was {
            self.base_moved();
        }
    }

    /// Whether a look found that the base holds a SCO: there is no sense in looking again before it has moved on.
    pub(crate) fn is_held(&self, sco: ScoId) -> bool {
        let held = &self.history.held;
        held.contains(&sco) || held.len() >= HELD_MAX
    }

    /// A look found so many slots of a SCO live, of which only `counted` are counted: the base holds the others.
    pub(crate) fn note_held(&mut self, sco: ScoId, found: u16, counted: u16) {
        if found > counted && self.history.is_on() {
            self.history.held.insert(sco);
        }
    }
}
