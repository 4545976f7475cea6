//! Roots: everything that keeps what it refers to. Scrubbing looks here, and nowhere else.
//!
//! Keeps: nothing of its own.
//! Order: none.
//! Crash: nothing.
//! Knows no storage.
//!
//! What lies behind the base of the history window (SCOs with higher numbers) is kept whole, since
//! moments in it refer to what no root has any more. What lies up to the base is kept by the maps here: a moment behind the
//! base has it from the base, or from a snapshot that was gone back to, which is kept as long.

use sconce_schemas::ScoId;
use sconce_schemas::ids::Location;

use crate::tree::Tree;
use crate::volume::Volume;

impl Volume {
    /// All maps that keep what they refer to: the head's, those of snapshots (hidden ones too), and the history's base.
    pub(crate) fn kept_maps(&self) -> impl Iterator<Item = &Tree<Location>> {
        let snapshots = self.snapshots.maps();
        std::iter::once(&self.map)
            .chain(snapshots)
            .chain(self.history.map())
    }

    /// The last SCO that may lose clusters: what is not covered yet may not, nor what lies within the history window.
    pub(crate) fn scrub_upto(&self) -> ScoId {
        let base = self.history.base().map(|base| base.covered_sco);
        let covered = self.checkpoints.covered_sco;
        base.map_or(covered, |base| base.min(covered))
    }
}
