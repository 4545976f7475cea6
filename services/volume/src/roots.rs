//! Roots: everything that keeps what it refers to. Scrubbing and sweeping look here, and nowhere else.
//!
//! Keeps: nothing of its own.
//! Order: none.
//! Crash: nothing.
//! Knows no storage.
//!
//! What lies behind the base of the history window (SCOs and checkpoint objects with higher numbers) is kept whole, since
//! moments in it refer to what no root has any more. What lies up to the base is kept by the maps here: a moment behind the
//! base has it from the base, or from a snapshot that was gone back to, which is kept as long.

use sconce_schemas::ScoId;
use sconce_schemas::ids::Location;

use crate::tree::Tree;
use crate::volume::Volume;

impl Volume {
    /// All maps that keep what they refer to: the head's, those of snapshots (hidden ones too), and what the history needs.
    pub(crate) fn kept_maps(&self) -> impl Iterator<Item = &Tree<Location>> {
        std::iter::once(&self.map).chain(self.snapshots.maps())
    }

    /// The last SCO that may lose clusters: what is not covered yet may not, nor what lies within the history window.
    pub(crate) fn scrub_upto(&self) -> ScoId {
        self.checkpoints.covered_sco
    }
}
