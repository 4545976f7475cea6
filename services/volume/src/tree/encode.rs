//! Encoding a frozen tree: what changed since it was last stored, children before parents.
//!
//! Keeps: the checkpoint object that is being filled, and those that are full.
//! Order: a node's record lies behind those of its children. A node that was encoded remembers where (`saved`), and the live
//! tree, which shares it unless it changed meanwhile, knows it by that; the object is stored later.
//! Crash: nothing here survives; an object without a manifest is garbage.
//! Knows no storage. Runs off the volume's thread.

use sconce_schemas::checkpoint::{Bitmap, CheckpointBuilder, DELTA_CHAIN_MAX, NODE_REF_LEN, NodePlace};
use sconce_schemas::checkpoint::{NodeRecord, NodeRef};
use sconce_schemas::manifest::TreeRoot;
use sconce_schemas::{CheckpointId, DecodeError, Epoch, LineageIndex, VolumeId};

use super::node::{CHILD_WIDTH, Child, Link, Node, Packed};
use super::{FrozenTree, Value, place_of, span};
use crate::event::CheckpointObject;
use crate::flatten::OwnNodes;

/// A checkpoint object is closed once it is this large: uploads stay in the size of SCOs.
const OBJECT_BYTES: usize = 4 << 20;
/// What a delta record takes beyond its values: the base reference and the second bitmap.
const DELTA_OVERHEAD: usize = NODE_REF_LEN + 64;

/// Which stored nodes deltas may be stored on.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct DeltaBases {
    /// For a clone that becomes independent.
    pub(crate) own: Option<OwnNodes>,
    /// For a renewal: none of the volume's earlier checkpoints.
    pub(crate) from: CheckpointId,
}

impl DeltaBases {
    fn has(&self, base: &NodeRef, lineage: LineageIndex) -> bool {
        self.own.is_none_or(|own| own.has(base)) && (base.lineage != lineage || base.checkpoint >= self.from)
    }
}

/// Collects the nodes of a checkpoint into objects.
pub(crate) struct Encoder {
    volume: VolumeId,
    epoch: Epoch,
    lineage: LineageIndex,
    next: CheckpointId,
    builder: CheckpointBuilder,
    size: usize,
    objects: Vec<CheckpointObject>,
    bases: DeltaBases,
}

impl Encoder {
    /// A checkpoint whose first object has the number `first`.
    pub(crate) fn new(volume: VolumeId, epoch: Epoch, lineage: LineageIndex, first: CheckpointId) -> Self {
        let builder = CheckpointBuilder::new(volume, first, epoch);
        Self {
            volume,
            epoch,
            lineage,
            next: first,
            builder,
            size: 0,
            objects: Vec::new(),
            bases: DeltaBases::default(),
        }
    }

    /// Stores deltas only on these nodes.
    pub(crate) fn with_bases(self, bases: DeltaBases) -> Self {
        Self { bases, ..self }
    }

    /// Encodes what of `tree` is not stored yet.
    pub(crate) fn tree<V: Value>(&mut self, tree: &FrozenTree<V>) -> Result<TreeRoot, DecodeError> {
        let node = match &tree.root {
            Some(root) => Some(self.child(root, tree.height, 0)?),
            None => None,
        };
        Ok(TreeRoot {
            height: tree.height,
            node,
            floor: tree.floor,
        })
    }

    fn child<V: Value>(&mut self, child: &Child<V>, height: u8, first: u64) -> Result<NodeRef, DecodeError> {
        let node = match &child.link {
            Link::Stored(reference) => return Ok(*reference),
            Link::Resident(node) => node,
        };
        if let Some(saved) = node.state().saved.get() {
            return Ok(*saved);
        }
        let place = place_of::<V>(first, height);
        let (bases, lineage) = (self.bases, self.lineage);
        let may_be_base = |base: &NodeRef| bases.has(base, lineage);
        let record = match &**node {
            Node::Leaf(leaf) => record(place, V::WIDTH, may_be_base, leaf, |_, value, out| {
                value.put(out);
                Ok(())
            })?,
            Node::Inner(inner) => {
                for (slot, below) in inner.iter() {
                    self.child(below, height - 1, first + slot as u64 * span(height - 1))?;
                }
                record(place, CHILD_WIDTH, may_be_base, inner, |slot, below, out| {
                    let at = first + slot as u64 * span(height - 1);
                    // Saved by the loop above: the recursion only looks it up.
                    out.extend_from_slice(&self.child(below, height - 1, at)?.to_bytes());
                    out.extend_from_slice(&below.count.to_le_bytes());
                    Ok(())
                })?
            }
        };
        let reference = self.push(&record)?;
        // Only this encoder sets it, and it looked above: a second value is impossible.
        let _ = node.state().saved.set(reference);
        Ok(reference)
    }

    fn push(&mut self, record: &NodeRecord) -> Result<NodeRef, DecodeError> {
        if self.size > OBJECT_BYTES {
            self.close_object();
        }
        let reference = self.builder.push(record, self.lineage)?;
        self.size += reference.length as usize;
        Ok(reference)
    }

    fn close_object(&mut self) {
        let id = self.next;
        self.next = id.next();
        let following = CheckpointBuilder::new(self.volume, self.next, self.epoch);
        let bytes = std::mem::replace(&mut self.builder, following).finish();
        self.objects.push(CheckpointObject {
            id,
            epoch: self.epoch,
            bytes: bytes.into(),
        });
        self.size = 0;
    }

    /// The objects, and the number of the last one (the one before the first where there is none).
    pub(crate) fn finish(mut self) -> (Vec<CheckpointObject>, CheckpointId) {
        if self.builder.nodes() > 0 {
            self.close_object();
        }
        (self.objects, self.next.prev())
    }
}

/// The record of a node: a delta where that is smaller and the chain is not too long, else whole.
fn record<T>(
    place: NodePlace,
    width: u8,
    may_be_base: impl Fn(&NodeRef) -> bool,
    node: &Packed<T>,
    mut put: impl FnMut(usize, &T, &mut Vec<u8>) -> Result<(), DecodeError>,
) -> Result<NodeRecord, DecodeError> {
    let width_of = |slots: usize| slots * usize::from(width);
    let delta = node
        .state
        .delta
        .as_deref()
        .filter(|delta| delta.base.chain < DELTA_CHAIN_MAX)
        .filter(|delta| may_be_base(&delta.base));
    let split = delta.map(|delta| {
        let (mut changed, mut emptied) = (Bitmap::EMPTY, Bitmap::EMPTY);
        for slot in delta.changed.iter() {
            if node.present.has(slot) {
                changed.set(slot)
            } else {
                emptied.set(slot)
            }
        }
        (delta.base, changed, emptied)
    });
    // A delta only where it is smaller than the whole.
    let worth = |changed: &Bitmap| width_of(node.items.len() - changed.count()) > DELTA_OVERHEAD;
    let (base, present, emptied) = match split {
        Some((base, changed, emptied)) if worth(&changed) => (Some(base), changed, emptied),
        _ => (None, node.present, Bitmap::EMPTY),
    };
    let mut values = Vec::with_capacity(width_of(present.count()));
    for (slot, item) in node.iter().filter(|(slot, _)| present.has(*slot)) {
        put(slot, item, &mut values)?;
    }
    Ok(NodeRecord {
        place,
        base,
        present,
        emptied,
        width,
        values,
    })
}
