//! What is stored of a volume's trees, node by node: for inspection and checks, without a volume that serves.
//!
//! Keeps: nothing.
//! Order: none.
//! Crash: nothing.
//! Knows no storage.

use sconce_schemas::checkpoint::{FANOUT, NodePlace, NodeRecord, NodeRef};
use sconce_schemas::ids::Location;
use sconce_schemas::records::EpochStart;
use sconce_schemas::{DecodeError, Epoch, ScoId};

pub use crate::tree::{StoredChild, StoredNode};

use crate::scos::ScoState;
use crate::tree::stored_node;

/// Numbers that a leaf covers.
pub const LEAF_NUMBERS: u64 = FANOUT as u64;

/// The map node at `place` that these records make: newest first, the last one whole.
///
/// # Errors
/// They make no map node of this place.
pub fn map_node(
    place: NodePlace,
    reference: NodeRef,
    records: &[NodeRecord],
) -> Result<StoredNode<Location>, DecodeError> {
    stored_node(place, reference, records)
}

/// The node of the SCO table at `place` that these records make.
///
/// # Errors
/// They make no such node.
pub fn sco_table_node(
    place: NodePlace,
    reference: NodeRef,
    records: &[NodeRecord],
) -> Result<StoredNode<ScoState>, DecodeError> {
    stored_node(place, reference, records)
}

/// The ownership that wrote a SCO; `None`: none of these.
#[must_use]
pub fn epoch_of_sco(epochs: &[EpochStart], sco: ScoId) -> Option<Epoch> {
    crate::volume::epoch_at(epochs, sco)
}
