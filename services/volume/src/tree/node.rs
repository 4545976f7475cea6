//! Nodes: packed values behind a bitmap, and what of a node is stored already.
//!
//! Keeps: a leaf's values and an inner node's children, packed: memory follows what is written, not the fan-out.
//! Order: `saved` is set once, when the node as it is now was encoded; a change takes it back into `base`. Encoded is not
//! yet stored: only [`StoredUpTo`] says what can be read back.
//! Crash: nothing survives.
//! Knows no storage.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use sconce_schemas::checkpoint::{
    Bitmap, FANOUT, NODE_REF_LEN, NODE_VALUE_LEN_MAX, NodePlace, NodeRecord, NodeRef,
};
use sconce_schemas::{CheckpointId, DecodeError, Epoch, LineageIndex};

use super::{Value, slot_of, span};

/// Stored bytes of an inner node's slot: the child's reference and the number of values below it.
pub(super) const CHILD_WIDTH: u8 = 40;
const _: () = assert!(CHILD_WIDTH as usize <= NODE_VALUE_LEN_MAX);

/// What an `Arc` adds to its content.
const ARC_COUNTS: usize = 16;

/// A subtree: how many values it has, and where it is.
#[derive(Debug, Clone)]
pub(super) struct Child<V> {
    pub(super) count: u64,
    pub(super) link: Link<V>,
}

#[derive(Debug, Clone)]
pub(super) enum Link<V> {
    Resident(Arc<Node<V>>),
    Stored(NodeRef),
}

#[derive(Debug, Clone)]
pub(super) enum Node<V> {
    Leaf(Packed<V>),
    Inner(Packed<Child<V>>),
}

/// Up to 512 items, packed; the bitmap says which slots have one.
#[derive(Debug, Clone)]
pub(super) struct Packed<T> {
    pub(super) present: Bitmap,
    pub(super) items: Vec<T>,
    pub(super) state: Stored,
}

/// What of a node is stored: `saved` names the node as it is; else, if it was ever stored, `delta` says what it was and
/// what changed since. Small: every leaf in memory has one.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) saved: OnceLock<NodeRef>,
    pub(super) delta: Option<Box<Delta>>,
    used: AtomicBool,
}

/// A stored node, and the slots that changed since.
#[derive(Debug, Clone)]
pub(super) struct Delta {
    pub(super) base: NodeRef,
    pub(super) changed: Bitmap,
}

impl Clone for Stored {
    fn clone(&self) -> Self {
        Self {
            saved: self.saved.clone(),
            delta: self.delta.clone(),
            used: AtomicBool::new(self.used.load(Ordering::Relaxed)),
        }
    }
}

impl Stored {
    fn new() -> Self {
        Self {
            saved: OnceLock::new(),
            delta: None,
            used: AtomicBool::new(true),
        }
    }

    fn at(reference: NodeRef) -> Self {
        Self {
            saved: OnceLock::from(reference),
            ..Self::new()
        }
    }

    /// Notes a change of `slot`: from here on the stored node is only a base.
    fn change(&mut self, slot: usize) {
        if let Some(base) = self.saved.take() {
            self.delta = Some(Box::new(Delta {
                base,
                changed: Bitmap::EMPTY,
            }));
        }
        if let Some(delta) = &mut self.delta {
            delta.changed.set(slot);
        }
    }

    /// The stored node that it is, or is a change of.
    pub(super) fn base(&self) -> Option<NodeRef> {
        let delta = || self.delta.as_ref().map(|delta| delta.base);
        self.saved.get().copied().or_else(delta)
    }

    /// As if it had never been stored.
    fn forget(&mut self) {
        self.saved.take();
        self.delta = None;
    }

    /// Notes a use, for the sweep.
    pub(super) fn touch(&self) {
        self.used.store(true, Ordering::Relaxed);
    }
}

impl<T> Packed<T> {
    pub(super) fn new() -> Self {
        Self {
            present: Bitmap::EMPTY,
            items: Vec::new(),
            state: Stored::new(),
        }
    }

    pub(super) fn get_ref(&self, slot: usize) -> Option<&T> {
        self.present
            .has(slot)
            .then(|| self.items.get(self.present.rank(slot)))
            .flatten()
    }

    pub(super) fn get_mut(&mut self, slot: usize) -> Option<&mut T> {
        let at = self.present.rank(slot);
        self.present.has(slot).then(|| self.items.get_mut(at)).flatten()
    }

    /// Sets or removes the item of a slot.
    pub(super) fn put(&mut self, slot: usize, item: Option<T>) {
        self.state.change(slot);
        let at = self.present.rank(slot);
        match (item, self.present.has(slot)) {
            (Some(item), true) => self.items[at] = item,
            (Some(item), false) => {
                self.reserve_one();
                self.items.insert(at, item);
                self.present.set(slot);
            }
            (None, true) => {
                self.items.remove(at);
                self.present.clear(slot);
            }
            (None, false) => {}
        }
    }

    /// Grows by a sixteenth, not by doubling: what the map takes in memory stays near what it holds.
    fn reserve_one(&mut self) {
        let len = self.items.len();
        if len == self.items.capacity() {
            self.items
                .reserve_exact((len / 16 + 4).min(FANOUT.saturating_sub(len).max(1)));
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (usize, &T)> {
        self.present.iter().zip(&self.items)
    }

    /// The items of the slots in `slots`: a narrow range of a full node costs what it holds, not what the node holds.
    pub(super) fn range(&self, slots: Range<usize>) -> impl Iterator<Item = (usize, &T)> {
        let items = self
            .items
            .get(self.present.rank(slots.start)..)
            .unwrap_or_default();
        slots.filter(|slot| self.present.has(*slot)).zip(items)
    }

    fn memory(&self) -> u64 {
        let delta = if self.state.delta.is_some() {
            size_of::<Delta>()
        } else {
            0
        };
        (self.items.capacity() * size_of::<T>() + size_of::<Self>() + delta + ARC_COUNTS) as u64
    }
}

impl<V: Value> Packed<V> {
    pub(super) fn get(&self, slot: usize) -> Option<V> {
        self.get_ref(slot).copied()
    }
}

impl<V> Packed<Child<V>> {
    pub(super) fn get(&self, slot: usize) -> Option<&Child<V>> {
        self.get_ref(slot)
    }
}

impl<V: Value> Node<V> {
    pub(super) fn state(&self) -> &Stored {
        match self {
            Node::Leaf(leaf) => &leaf.state,
            Node::Inner(inner) => &inner.state,
        }
    }

    /// Bytes that the node takes in memory, without its children.
    pub(super) fn memory(&self) -> u64 {
        match self {
            Node::Leaf(leaf) => leaf.memory(),
            Node::Inner(inner) => inner.memory(),
        }
    }

    fn empty(height: u8) -> Self {
        if height == 0 {
            Node::Leaf(Packed::new())
        } else {
            Node::Inner(Packed::new())
        }
    }

    fn is_empty(&self) -> bool {
        match self {
            Node::Leaf(leaf) => leaf.present.is_empty(),
            Node::Inner(inner) => inner.present.is_empty(),
        }
    }

    /// The node that a chain of records makes: newest first, the last one whole.
    pub(super) fn from_records(
        place: NodePlace,
        reference: NodeRef,
        records: &[NodeRecord],
    ) -> Result<Self, DecodeError> {
        if place.level == 0 {
            let items = merge(place, V::WIDTH, records, V::take)?;
            return Ok(Node::Leaf(Packed {
                state: Stored::at(reference),
                ..items
            }));
        }
        let items = merge(place, CHILD_WIDTH, records, |bytes| {
            let stored = bytes.first_chunk::<NODE_REF_LEN>().ok_or(DecodeError::Short {
                what: "child reference",
                have: bytes.len(),
                need: usize::from(CHILD_WIDTH),
            })?;
            let mut count = [0; 8];
            count.copy_from_slice(&bytes[NODE_REF_LEN..]);
            Ok(Child {
                count: u64::from_le_bytes(count),
                link: Link::Stored(NodeRef::from_bytes(stored)?),
            })
        })?;
        Ok(Node::Inner(Packed {
            state: Stored::at(reference),
            ..items
        }))
    }
}

/// Lays deltas over the whole record that they lead to.
fn merge<T>(
    place: NodePlace,
    width: u8,
    records: &[NodeRecord],
    take: impl Fn(&[u8]) -> Result<T, DecodeError>,
) -> Result<Packed<T>, DecodeError> {
    let wrong = |found: String, expected| DecodeError::Value {
        what: "map node",
        found,
        expected,
    };
    let whole = records.last().is_some_and(|record| record.base.is_none());
    if !whole {
        return Err(wrong(
            format!("{} records without a whole one", records.len()),
            "a chain to a whole record",
        ));
    }
    let mut packed = Packed::new();
    for record in records.iter().rev() {
        if record.place != place || record.width != width {
            return Err(wrong(
                format!("{:?}, {} bytes a value", record.place, record.width),
                "the node that its reference means",
            ));
        }
        for slot in record.emptied.iter() {
            packed.put(slot, None);
        }
        for (slot, bytes) in record
            .present
            .iter()
            .zip(record.values.chunks_exact(usize::from(width)))
        {
            packed.put(slot, Some(take(bytes)?));
        }
    }
    Ok(packed)
}

/// Sets or removes a value below `link`, whose path is resident; gives by how many bytes the nodes grew.
pub(super) fn set<V: Value>(
    link: &mut Option<Child<V>>,
    height: u8,
    number: u64,
    value: Option<V>,
    change: i64,
) -> i64 {
    let fresh = link.is_none();
    let child = link.get_or_insert_with(|| Child {
        count: 0,
        link: Link::Resident(Arc::new(Node::empty(height))),
    });
    child.count = child.count.saturating_add_signed(change);
    let Link::Resident(shared) = &mut child.link else {
        return 0;
    };
    // Before it is copied: the copy takes less, it has no spare capacity.
    let before = if fresh { 0 } else { shared.memory() };
    let node = Arc::make_mut(shared);
    let slot = slot_of(number, height);
    let below = match node {
        Node::Leaf(leaf) => {
            leaf.put(slot, value);
            leaf.state.touch();
            0
        }
        Node::Inner(inner) => {
            let mut child = inner.get(slot).cloned();
            // The clone holds a second reference: take the first away, or the child would be copied.
            if let Some(held) = inner.get_mut(slot) {
                held.link = Link::Stored(NO_NODE);
            }
            let below = set(&mut child, height - 1, number, value, change);
            inner.put(slot, child);
            below
        }
    };
    let grown = below + delta(before, node.memory());
    if node.is_empty() {
        let gone = delta(node.memory(), 0);
        *link = None;
        return grown + gone;
    }
    grown
}

/// Whether a node on the way to `number` is, or is a change of, a stored node that is `old`.
pub(super) fn any_on_way<V: Value>(
    mut child: Option<&Child<V>>,
    mut height: u8,
    number: u64,
    old: &impl Fn(&NodeRef) -> bool,
) -> bool {
    while let Some(Child {
        link: Link::Resident(node),
        ..
    }) = child
    {
        if node.state().base().is_some_and(|base| old(&base)) {
            return true;
        }
        let Node::Inner(inner) = &**node else { return false };
        child = inner.get(slot_of(number, height));
        height -= 1;
    }
    false
}

/// Lets the nodes on the way to `number` be stored again, whole where what they are changes of is `old`; gives by how
/// many bytes the nodes grew.
pub(super) fn store_again<V: Value>(
    root: &mut Option<Child<V>>,
    mut height: u8,
    number: u64,
    old: &impl Fn(&NodeRef) -> bool,
) -> i64 {
    let mut grown = 0;
    let mut child = root.as_mut();
    while let Some(Child {
        link: Link::Resident(shared),
        ..
    }) = child
    {
        let before = shared.memory();
        let node = Arc::make_mut(shared);
        let slot = slot_of(number, height);
        let state = match node {
            Node::Leaf(leaf) => &mut leaf.state,
            Node::Inner(inner) => {
                // What is below is another node from here on.
                inner.state.change(slot);
                &mut inner.state
            }
        };
        if state.base().is_some_and(|base| old(&base)) {
            state.forget();
        }
        grown += delta(before, node.memory());
        let Node::Inner(inner) = node else { break };
        child = inner.get_mut(slot);
        height -= 1;
    }
    grown
}

/// Bytes of the resident nodes of a subtree.
pub(super) fn resident<V: Value>(child: &Child<V>) -> u64 {
    let Link::Resident(node) = &child.link else {
        return 0;
    };
    let below: u64 = match &**node {
        Node::Leaf(_) => 0,
        Node::Inner(inner) => inner.items.iter().map(resident).sum(),
    };
    below + node.memory()
}

/// Stands where a child is being changed; never seen outside `set`.
const NO_NODE: NodeRef = NodeRef {
    checkpoint: CheckpointId::NONE,
    epoch: Epoch::NONE,
    offset: 0,
    length: 0,
    crc: 0,
    lineage: LineageIndex(0),
    chain: 0,
};

/// `after - before`, of memory sizes.
pub(super) fn delta(before: u64, after: u64) -> i64 {
    i64::try_from(after).unwrap_or(i64::MAX) - i64::try_from(before).unwrap_or(i64::MAX)
}

/// A root with `child` as its leftmost child, and the bytes that the new node takes.
pub(super) fn raise<V: Value>(child: Child<V>) -> (Child<V>, u64) {
    let count = child.count;
    let mut inner = Packed::new();
    inner.put(0, Some(child));
    let node = Node::Inner(inner);
    let bytes = node.memory();
    (
        Child {
            count,
            link: Link::Resident(Arc::new(node)),
        },
        bytes,
    )
}

/// What of a volume's own nodes can be read back: those of earlier ownerships and ancestors, and of this ownership those
/// of checkpoints below `next`. A node that is only encoded is on its way; nobody else has it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StoredUpTo {
    pub(crate) lineage: LineageIndex,
    pub(crate) epoch: Epoch,
    pub(crate) next: CheckpointId,
}

impl StoredUpTo {
    fn has(&self, node: &NodeRef) -> bool {
        node.lineage != self.lineage || node.epoch != self.epoch || node.checkpoint < self.next
    }
}

/// One round of eviction over the leaves, from where the last one stopped.
pub(super) struct Sweep {
    pub(super) stored: StoredUpTo,
    pub(super) resident: u64,
    pub(super) budget: u64,
    pub(super) from: u64,
    pub(super) to: u64,
    /// Inner nodes stay.
    pub(super) leaves_only: bool,
    pub(super) stopped_at: Option<u64>,
}

impl Sweep {
    /// Visits the subtree that starts at `first`. An inner node that a frozen root shares is left alone: it would have to
    /// be copied. A leaf that one shares goes if it is stored; its memory comes back with the frozen root's end.
    pub(super) fn visit<V: Value>(&mut self, child: &mut Child<V>, height: u8, first: u64) {
        if self.stopped_at.is_some() || first + span(height) <= self.from || first >= self.to {
            return;
        }
        let Link::Resident(shared) = &mut child.link else {
            return;
        };
        if height == 0 {
            if self.resident <= self.budget {
                self.stopped_at = Some(first);
                return;
            }
            let state = shared.state();
            if let Some(saved) = state.saved.get().copied().filter(|saved| self.stored.has(saved))
                && !state.used.swap(false, Ordering::Relaxed)
            {
                self.resident = self.resident.saturating_sub(shared.memory());
                child.link = Link::Stored(saved);
            }
            return;
        }
        let Some(Node::Inner(inner)) = Arc::get_mut(shared) else {
            return;
        };
        let slots = inner.present;
        for slot in slots.iter() {
            if let Some(below) = inner.get_mut(slot) {
                self.visit(below, height - 1, first + slot as u64 * span(height - 1));
            }
        }
        if self.leaves_only {
            return;
        }
        // An inner node without resident children is only a way to what is stored, and stored itself.
        let empty = inner
            .items
            .iter()
            .all(|below| matches!(below.link, Link::Stored(_)));
        let saved = inner.state.saved.get().copied();
        if let Some(saved) = saved.filter(|saved| empty && self.stored.has(saved))
            && self.resident > self.budget
            && !inner.state.used.swap(false, Ordering::Relaxed)
        {
            self.resident = self.resident.saturating_sub(shared.memory());
            child.link = Link::Stored(saved);
        }
    }
}
