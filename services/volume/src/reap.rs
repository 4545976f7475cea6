//! Reaping: counting what a removed snapshot alone referred to as dead, in the background; and what a moment that became a
//! snapshot alone refers to as live again.
//!
//! Keeps: how far the walk over the snapshot's map is, and what it found so far.
//! Order: what was found is counted at the end, in one event, and a removed snapshot forgotten with it. A moment that is
//! removed before it was counted is counted first.
//! Crash: a walk that did not end begins again: no count was changed.
//! Knows no storage: nodes that are not here are asked for.
//!
//! A cluster that the snapshot has and none of the roots that came from it has, and that was born after the snapshot
//! before it, was the removed snapshot's alone: the roots that have a cluster are neighbours in the tree of snapshots.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use sconce_schemas::ids::Location;
use sconce_schemas::manifest::LogPlace;
use sconce_schemas::{ScoId, SnapshotId};

use crate::event::Effect;
use crate::operations::Parked;
use crate::snapshots::{Snapshot, is_before};
use crate::tree::{Missing, Tree};
use crate::volume::Volume;

/// Differing clusters that one event looks at: about a millisecond.
const STEP_CLUSTERS: u64 = 16 << 10;

/// A walk under way.
#[derive(Debug)]
pub(crate) struct Reap {
    id: SnapshotId,
    /// It was joined, not removed.
    joined: bool,
    cursor: u64,
    found: BTreeMap<ScoId, u16>,
    /// For a node.
    waits: bool,
    /// The node could not be had.
    failed: bool,
}

/// What a snapshot is compared with.
struct Against<'a> {
    /// What lies before this place is its parent's too.
    born_from: LogPlace,
    /// The roots that came from it.
    children: &'a [Tree<Location>],
}

/// What one step came to.
enum Step {
    /// It goes on from the cursor.
    More,
    /// The walk is over.
    Over,
}

impl Volume {
    /// Whether there is still anything to be walked.
    pub(crate) fn has_to_reap(&self) -> bool {
        self.snapshots.first_unwalked().is_some()
    }

    /// Whether a walk could go on.
    pub(crate) fn wants_to_reap(&self) -> bool {
        self.reap.as_ref().is_some_and(|reap| !reap.waits)
    }

    /// Begins a walk if there is anything to be walked and none is under way.
    fn begin_reap(&mut self) {
        if self.reap.is_none() {
            self.reap = self.snapshots.first_unwalked().map(|id| Reap {
                id,
                joined: self.snapshots.get(id).is_some_and(|found| found.joined.is_some()),
                cursor: 0,
                found: BTreeMap::new(),
                waits: false,
                failed: false,
            });
        }
    }

    /// A tick: begins a walk, or goes on with one whose node could not be had.
    pub(crate) fn go_on_reaping(&mut self) {
        self.begin_reap();
        if let Some(reap) = self.reap.as_mut().filter(|reap| reap.failed) {
            (reap.waits, reap.failed) = (false, false);
        }
    }

    /// A node could not be had: the walk stays where it is until the next tick.
    pub(crate) fn reap_failed(&mut self) {
        if let Some(reap) = &mut self.reap {
            reap.failed = true;
        }
    }

    /// Takes the walk a step further.
    pub(crate) fn reap(&mut self, effects: &mut Vec<Effect>) {
        let Some(mut reap) = self.reap.take() else { return };
        reap.waits = false;
        match self.reap_step(&mut reap) {
            Ok(Step::More) => self.reap = Some(reap),
            Ok(Step::Over) => self.reaped(reap),
            Err(missing) => {
                reap.waits = true;
                self.reap = Some(reap);
                self.wait(missing, Some(Parked::Reap), effects);
            }
        }
    }

    fn reap_step(&self, reap: &mut Reap) -> Result<Step, Missing> {
        let Some((snapshot, against)) = self.compared(reap) else {
            return Ok(Step::Over);
        };
        let nothing = Tree::default();
        // Whatever is shared with a root that it is compared with is passed over whole.
        let base = against.children.first().or_else(|| self.parent_map(snapshot));
        let (mut at, mut seen) = (reap.cursor, 0);
        let found = &mut reap.found;
        let mut failed = None;
        let mut visit = |number: u64, own: Option<Location>, _: Option<Location>| {
            if let Some(location) = own.filter(|location| self.may_be_alone(*location, &against)) {
                match is_in_any(against.children, number, location) {
                    Ok(false) => {
                        let count = found.entry(location.sco()).or_default();
                        *count = count.saturating_add(1);
                    }
                    Ok(true) => {}
                    Err(missing) => {
                        failed = Some(missing);
                        return ControlFlow::Break(());
                    }
                }
            }
            at = number + 1;
            seen += 1;
            if seen >= STEP_CLUSTERS {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        };
        let walked = snapshot
            .map
            .diff(base.unwrap_or(&nothing), reap.cursor, &mut visit);
        reap.cursor = at;
        match (failed, walked) {
            (Some(missing), _) | (None, Err(missing)) => Err(missing),
            (None, Ok(())) if seen >= STEP_CLUSTERS => Ok(Step::More),
            (None, Ok(())) => Ok(Step::Over),
        }
    }

    fn compared(&self, reap: &Reap) -> Option<(&Snapshot, Against<'_>)> {
        let snapshot = self.snapshots.get(reap.id)?;
        let against = if reap.joined {
            let joined = snapshot.joined.as_ref()?;
            Against {
                born_from: joined.born_from,
                children: &joined.child,
            }
        } else {
            let removed = snapshot.removed.as_ref()?;
            Against {
                born_from: removed.born_from,
                children: &removed.children,
            }
        };
        Some((snapshot, against))
    }

    fn parent_map(&self, snapshot: &Snapshot) -> Option<&Tree<Location>> {
        let parent = self.snapshots.get(snapshot.parent?)?;
        Some(&parent.map)
    }

    fn may_be_alone(&self, location: Location, against: &Against<'_>) -> bool {
        !location.reads_zeros() && self.is_own(location) && !is_before(location, against.born_from)
    }

    fn reaped(&mut self, reap: Reap) {
        for (sco, count) in reap.found {
            if reap.joined {
                self.revive_in(sco, count);
            } else {
                self.bury_in(sco, count);
            }
        }
        if reap.joined {
            self.snapshots.counted(reap.id);
        } else {
            self.snapshots.forget(reap.id);
        }
        // What was counted is to be in a manifest, or it is counted again after a restart.
        self.checkpoints.manifest_due = true;
        self.begin_reap();
    }
}

fn is_in_any(children: &[Tree<Location>], number: u64, location: Location) -> Result<bool, Missing> {
    for child in children {
        if child.get(number)? == Some(location) {
            return Ok(true);
        }
    }
    Ok(false)
}
