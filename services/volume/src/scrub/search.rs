//! The search for SCOs that are worth a scrub.
//!
//! Keeps: how far a pass over the SCO table is, and what it found.
//! Order: a pass ends before the first of what it picked is begun; the best goes first.
//! Crash: the next owner begins with a new pass.
//! Knows no SCO's content, only the table's counts.

use std::ops::ControlFlow;

use sconce_schemas::{CLUSTER_BYTES, ScoId};

use super::run::Found;
use crate::event::Effect;
use crate::operations::Parked;
use crate::scos::ScoState;
use crate::volume::Volume;

/// SCO states that one event looks at in the search.
const SEARCH_STEP: u64 = 4096;
/// A pass is due once this part of what is stored died since the last one.
const DIED_PART: u64 = 64;
/// Or after this time, if anything died or SCOs were added.
const PASS_US: u64 = 10_000_000;

/// A pass over the SCO table.
#[derive(Debug)]
pub(super) struct Pass {
    cursor: u64,
    found: Found,
    /// Clusters that died since the last pass: as many will have died when what this one picks is written.
    died: u64,
    pub(super) waits: bool,
    /// SCOs that it has looked at.
    pub(super) searched: u64,
}

impl Volume {
    /// Whether enough died since the last pass for another.
    pub(super) fn pass_is_due(&self) -> bool {
        let scrub = &self.scrub;
        let stored = scrub.status.stored_bytes / CLUSTER_BYTES;
        let is_old = self.now_us.abs_diff(scrub.pass_us) >= PASS_US;
        scrub.is_stale && (is_old || scrub.died * DIED_PART >= stored)
    }

    pub(super) fn begin_pass(&mut self) {
        let died = std::mem::take(&mut self.scrub.died);
        (self.scrub.is_stale, self.scrub.pass_us) = (false, self.now_us);
        self.scrub.pass = Some(Pass {
            cursor: 0,
            died,
            found: Found::new(self.sco_size.slots(), self.log.next_sco()),
            waits: false,
            searched: 0,
        });
    }

    pub(super) fn search(&mut self, mut pass: Pass, effects: &mut Vec<Effect>) {
        pass.waits = false;
        let (mut at, mut seen) = (pass.cursor, 0);
        let upto = self.scrub_upto();
        let visited = self
            .scos
            .visit(pass.cursor..upto.next().0, |sco, state: ScoState| {
                let object = self.object_of(ScoId(sco), state);
                pass.found.add(ScoId(sco), object, state.slots, state.live);
                at = sco + 1;
                seen += 1;
                if seen >= SEARCH_STEP {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            });
        pass.cursor = at;
        pass.searched += seen;
        match visited {
            Err(missing) => {
                pass.waits = true;
                self.scrub.pass = Some(pass);
                self.wait(missing, Some(Parked::Scrub), effects);
            }
            Ok(()) if seen >= SEARCH_STEP => self.scrub.pass = Some(pass),
            Ok(()) => {
                let (found, policy) = (pass.found, self.scrub.policy_now());
                let status = &mut self.scrub.status;
                status.stored_bytes = found.slots * CLUSTER_BYTES;
                status.dead_bytes = (found.slots - found.live) * CLUSTER_BYTES;
                status.to_win_bytes = found.to_win(policy) * CLUSTER_BYTES;
                status.objects = found.objects;
                let (picked, more) = found.pick(policy, pass.died);
                self.scrub.picked = picked;
                // What was left out is found by the next pass, at once.
                if more {
                    (self.scrub.is_stale, self.scrub.pass_us) = (true, 0);
                }
                if !self.scrub_is_held_up() {
                    self.scrub_next(effects);
                }
            }
        }
    }
}
