//! Accounting: how many slots of each SCO the map refers to.
//!
//! Keeps: the SCO table's live counts, and what could not be counted yet because a node was not resident.
//! Order: a count goes down when the map lets go of a location.
//! Crash: counts are as of the manifest, replay makes the later changes again; a count may be too high, never too low.
//! Knows no SCO's content.

use std::ops::ControlFlow;

use sconce_schemas::checkpoint::{NodePlace, NodeRef, TreeKind};
use sconce_schemas::ids::Location;
use sconce_schemas::{ClusterAddress, ScoId};

use crate::event::Effect;
use crate::scos::ScoState;
use crate::tree::Missing;
use crate::volume::Volume;

/// Nodes of the SCO table that are asked for at the same time: a removed snapshot can have died in all of them.
const TABLE_LOADS_MAX: usize = 16;

impl Volume {
    /// Enters the SCO at the head, which is complete, into the SCO table. Its leaf is resident (invariant 6): recovery saw
    /// to it, and later leaves are new.
    pub(crate) fn enter_sco(&mut self, sco: ScoId, slots: u16) {
        let live = if self.head.0 == sco { self.head.1 } else { slots };
        self.head = (ScoId::NONE, 0);
        if let Err(missing) = self.scos.set(
            sco.0,
            Some(ScoState {
                slots,
                live,
                version: 0,
                bundle: None,
            }),
        ) {
            let place = missing.place;
            self.broken.get_or_insert(format!(
                "invariant 6: SCO {sco} cannot be entered into the SCO table, whose node {} of level {} is not resident",
                place.index, place.level
            ));
        }
    }

    /// Gives a cluster its place in the map; what it had before is dead.
    pub(crate) fn place(&mut self, address: ClusterAddress, location: Location) -> Result<(), Missing> {
        let old = self.map.set(address.0, Some(location))?;
        self.head.1 += 1;
        if let Some(old) = old {
            self.bury(old);
        }
        Ok(())
    }

    /// The head's map no longer refers to this location; a snapshot may.
    pub(crate) fn bury(&mut self, location: Location) {
        if !location.reads_zeros() && self.is_own(location) && !self.snapshots.hold(location) {
            self.bury_in(location.sco(), 1);
        }
    }

    pub(crate) fn bury_in(&mut self, sco: ScoId, dead: u16) {
        self.scrub.died(dead);
        self.recount(sco, -i32::from(dead));
    }

    /// A moment that became a snapshot refers to so many slots that nothing referred to.
    pub(crate) fn revive_in(&mut self, sco: ScoId, live: u16) {
        self.recount(sco, i32::from(live));
    }

    pub(crate) fn recount(&mut self, sco: ScoId, change: i32) {
        if sco == self.head.0 {
            self.head.1 = changed(self.head.1, change);
            return;
        }
        match self.scos.get(sco.0) {
            Ok(Some(state)) => {
                let live = changed(state.live, change);
                // The leaf is resident: `get` has just read it.
                let _ = self.scos.set(sco.0, Some(ScoState { live, ..state }));
            }
            Ok(None) => {}
            Err(_) => {
                let count = self.unburied.entry(sco).or_default();
                *count = count.saturating_add(change);
                self.bury_again = true;
            }
        }
    }

    /// Counts what could not be counted as far as its nodes are here now, and asks for those that are not, a few at a time.
    /// A node that could not be had is asked for again with the next tick: while anything is uncounted there is no
    /// checkpoint.
    pub(crate) fn bury_unburied(&mut self, effects: &mut Vec<Effect>) {
        if self.unburied.is_empty() || !std::mem::take(&mut self.bury_again) {
            return;
        }
        let is_of_table = |missing: &&Missing| missing.place.tree == TreeKind::Scos;
        let mut loads = self.waiting.keys().filter(is_of_table).count();
        let mut from = ScoId::NONE;
        while let Some((sco, change)) = self
            .unburied
            .range(from..)
            .next()
            .map(|(sco, change)| (*sco, *change))
        {
            match self.scos.get(sco.0) {
                Ok(_) => {
                    self.unburied.remove(&sco);
                    self.recount(sco, change);
                    from = sco.next();
                }
                Err(missing) => {
                    if !self.waiting.contains_key(&missing) {
                        if loads >= TABLE_LOADS_MAX {
                            break;
                        }
                        loads += 1;
                        self.wait(missing, None, effects);
                    }
                    from = ScoId(missing.end());
                }
            }
        }
    }

    /// What the SCO table says of every SCO. For tests and inspection.
    ///
    /// # Errors
    /// A node that has to be loaded first.
    pub fn sco_states(&self) -> Result<Vec<(ScoId, ScoState)>, (NodePlace, NodeRef)> {
        let mut states = Vec::new();
        let visited = self.scos.visit(0..ScoId::MAX.0, |sco, state| {
            states.push((ScoId(sco), state));
            ControlFlow::Continue(())
        });
        visited.map_err(|missing| (missing.place, missing.reference))?;
        Ok(states)
    }
}

fn changed(live: u16, change: i32) -> u16 {
    let live = i32::from(live).saturating_add(change);
    u16::try_from(live.max(0)).unwrap_or(u16::MAX)
}
