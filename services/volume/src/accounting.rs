//! Accounting: how many slots of each SCO the map refers to.
//!
//! Keeps: the SCO table's live counts, and what could not be counted yet because a node was not resident.
//! Order: a count goes down when the map lets go of a location.
//! Crash: counts are as of the manifest, replay makes the later changes again; a count may be too high, never too low.
//! Knows no SCO's content.

use std::ops::ControlFlow;

use sconce_schemas::checkpoint::{NodePlace, NodeRef};
use sconce_schemas::ids::Location;
use sconce_schemas::{ClusterAddress, ScoId};

use crate::scos::ScoState;
use crate::tree::Missing;
use crate::volume::Volume;

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
        if sco == self.head.0 {
            self.head.1 = self.head.1.saturating_sub(dead);
            return;
        }
        match self.scos.get(sco.0) {
            Ok(Some(state)) => {
                let live = state.live.saturating_sub(dead);
                // The leaf is resident: `get` has just read it.
                let _ = self.scos.set(sco.0, Some(ScoState { live, ..state }));
            }
            Ok(None) => {}
            Err(missing) => {
                let count = self.unburied.entry(sco).or_default();
                *count = count.saturating_add(dead);
                self.wanted.push(missing);
            }
        }
    }

    /// Nodes that recovery's replay left wanted are loaded once the volume serves.
    pub(crate) fn forget_wanted(&mut self) {
        self.wanted.dedup();
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
