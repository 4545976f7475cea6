//! The volume's trees: radix trees of fan-out 512 with copy-on-write nodes.
//!
//! Keeps: a map from a number (cluster address, SCO id) to a small value; nodes shared by `Arc` with frozen roots.
//! Order: a change touches the path from the root to its leaf; a frozen root never changes.
//! Crash: nothing here survives; what was encoded by the encoder (`encode.rs`) does.
//! Knows no storage: a node that is not resident is named by its [`NodeRef`], and the caller loads it.

mod diff;
mod encode;
mod node;
mod range;
mod renew;
mod stored;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use sconce_schemas::checkpoint::{FANOUT, NodePlace, NodeRecord, NodeRef, TreeKind};
use sconce_schemas::manifest::{TREE_HEIGHT_MAX, TreeRoot};
use sconce_schemas::{CheckpointId, DecodeError};

pub(crate) use encode::{DeltaBases, Encoder};
pub(crate) use node::StoredUpTo;
use node::{Child, Link, Node, delta};
pub(crate) use renew::Renewed;
pub(crate) use stored::stored_node;
pub use stored::{StoredChild, StoredNode};

/// Bits of a number that one level resolves.
const LEVEL_BITS: u32 = FANOUT.trailing_zeros();
/// Numbers that the highest tree covers have to fit a `u64`.
const _: () = assert!(LEVEL_BITS * (TREE_HEIGHT_MAX as u32 + 1) < u64::BITS);

/// A value of a tree: small, and stored in a fixed number of bytes.
pub(crate) trait Value: Copy + PartialEq + std::fmt::Debug {
    /// Stored bytes.
    const WIDTH: u8;
    /// Which tree its nodes belong to.
    const TREE: TreeKind;

    /// Appends the stored bytes.
    fn put(&self, out: &mut Vec<u8>);

    /// The value that `WIDTH` bytes store.
    ///
    /// # Errors
    /// Bytes that no version wrote.
    fn take(bytes: &[u8]) -> Result<Self, DecodeError>;
}

/// A node that is needed and not resident.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Missing {
    /// Where it belongs.
    pub(crate) place: NodePlace,
    /// Where it is stored.
    pub(crate) reference: NodeRef,
}

impl Missing {
    /// The first number that it covers.
    pub(crate) fn first(&self) -> u64 {
        self.place.index.saturating_mul(span(self.place.level))
    }

    /// The first number behind it.
    pub(crate) fn end(&self) -> u64 {
        let next = self.place.index.saturating_add(1);
        next.saturating_mul(span(self.place.level.min(TREE_HEIGHT_MAX)))
    }
}

/// A radix tree from numbers to values.
#[derive(Debug)]
pub(crate) struct Tree<V> {
    height: u8,
    root: Option<Child<V>>,
    /// As [`TreeRoot::floor`]: whatever becomes of the tree, its nodes need no earlier checkpoint.
    floor: CheckpointId,
    resident_bytes: u64,
    sweep_at: u64,
}

/// A tree as it was at one moment; cheap to make, and never changes.
#[derive(Debug, Clone)]
pub(crate) struct FrozenTree<V> {
    height: u8,
    root: Option<Child<V>>,
    floor: CheckpointId,
}

/// Numbers that a subtree of this height covers.
const fn span(height: u8) -> u64 {
    1 << (LEVEL_BITS * (height as u32 + 1))
}

/// The slot of `number` in a node of this height.
fn slot_of(number: u64, height: u8) -> usize {
    let shifted = number >> (LEVEL_BITS * u32::from(height));
    usize::try_from(shifted % FANOUT as u64).unwrap_or(0)
}

/// Where the node of this height over `number` is in its tree.
fn place_of<V: Value>(number: u64, height: u8) -> NodePlace {
    NodePlace {
        tree: V::TREE,
        level: height,
        index: number / span(height),
    }
}

impl<V: Value> Default for Tree<V> {
    fn default() -> Self {
        Self {
            height: 0,
            root: None,
            floor: CheckpointId::NONE,
            resident_bytes: 0,
            sweep_at: 0,
        }
    }
}

/// Puts a loaded node into every tree that wants it. A leaf is shared by them all: snapshots have most of theirs in common.
/// An inner node is not, or it could not be let go of in one of them.
///
/// # Errors
/// Records that do not make a node of this place.
pub(crate) fn adopt<'a, V: Value + 'a>(
    trees: impl IntoIterator<Item = &'a mut Tree<V>>,
    missing: &Missing,
    records: &[NodeRecord],
) -> Result<(), DecodeError> {
    let mut leaf: Option<Arc<Node<V>>> = None;
    for tree in trees.into_iter().filter(|tree| tree.wants(missing)) {
        let node = match &leaf {
            Some(leaf) => Arc::clone(leaf),
            None => Arc::new(Node::from_records(missing.place, missing.reference, records)?),
        };
        if missing.place.level == 0 {
            leaf = Some(Arc::clone(&node));
        }
        tree.put_loaded(missing, node);
    }
    Ok(())
}

impl<V: Value> Tree<V> {
    /// The tree with a stored root, and the number of its values; nothing of it is resident yet.
    pub(crate) fn stored(root: TreeRoot, count: u64) -> Self {
        let link = root.node.map(|reference| Child {
            count,
            link: Link::Stored(reference),
        });
        Self {
            height: root.height,
            root: link,
            floor: root.floor,
            resident_bytes: 0,
            sweep_at: 0,
        }
    }

    /// How many numbers have a value.
    pub(crate) fn count(&self) -> u64 {
        self.root.as_ref().map_or(0, |root| root.count)
    }

    /// Memory that the resident nodes take, in bytes; nodes that only a frozen root holds are not counted.
    pub(crate) fn resident_bytes(&self) -> u64 {
        self.resident_bytes
    }

    /// A tree that begins as the frozen one; its nodes are shared until they change, and are not counted here.
    pub(crate) fn thaw(frozen: &FrozenTree<V>) -> Self {
        Self {
            height: frozen.height,
            root: frozen.root.clone(),
            floor: frozen.floor,
            resident_bytes: 0,
            sweep_at: 0,
        }
    }

    /// A tree that goes on from the frozen one: its nodes count from here on, also those that are shared.
    pub(crate) fn go_on_from(frozen: &FrozenTree<V>) -> Self {
        Self {
            resident_bytes: frozen.root.as_ref().map_or(0, node::resident),
            ..Self::thaw(frozen)
        }
    }

    /// The tree as it is now.
    pub(crate) fn freeze(&self) -> FrozenTree<V> {
        FrozenTree {
            height: self.height,
            root: self.root.clone(),
            floor: self.floor,
        }
    }

    /// The value of `number`, if it has one.
    ///
    /// # Errors
    /// The node that has to be loaded first.
    pub(crate) fn get(&self, number: u64) -> Result<Option<V>, Missing> {
        if number >= span(self.height) {
            return Ok(None);
        }
        let mut height = self.height;
        let mut child = self.root.as_ref();
        loop {
            let Some(Child { link, .. }) = child else {
                return Ok(None);
            };
            let node = match link {
                Link::Resident(node) => node,
                Link::Stored(reference) => {
                    return Err(Missing {
                        place: place_of::<V>(number, height),
                        reference: *reference,
                    });
                }
            };
            match &**node {
                Node::Leaf(leaf) => {
                    leaf.state.touch();
                    return Ok(leaf.get(slot_of(number, 0)));
                }
                Node::Inner(inner) => {
                    child = inner.get(slot_of(number, height));
                    height -= 1;
                }
            }
        }
    }

    /// Sets (or with `None` removes) the value of `number`; gives the one before.
    ///
    /// # Errors
    /// The node that has to be loaded first; then nothing was changed.
    pub(crate) fn set(&mut self, number: u64, value: Option<V>) -> Result<Option<V>, Missing> {
        let before = self.get(number)?;
        if before == value {
            return Ok(before);
        }
        if value.is_some() {
            self.grow_to(number);
        }
        let change = i64::from(value.is_some()) - i64::from(before.is_some());
        let grown = node::set(&mut self.root, self.height, number, value, change);
        self.resident_bytes = self.resident_bytes.saturating_add_signed(grown);
        Ok(before)
    }

    /// Raises the tree until it covers `number`.
    fn grow_to(&mut self, number: u64) {
        while number >= span(self.height) && self.height < TREE_HEIGHT_MAX {
            self.height += 1;
            if let Some(root) = self.root.take() {
                let (raised, bytes) = node::raise(root);
                self.root = Some(raised);
                self.resident_bytes += bytes;
            }
        }
    }

    /// Lets every node on the way to `number`, which is resident, be stored again whole if the stored one it is, or is a
    /// change of, is `old`; and those above it with it.
    pub(crate) fn store_again(&mut self, number: u64, old: impl Fn(&NodeRef) -> bool) {
        if number >= span(self.height) || !node::any_on_way(self.root.as_ref(), self.height, number, &old) {
            return;
        }
        let grown = node::store_again(&mut self.root, self.height, number, &old);
        self.resident_bytes = self.resident_bytes.saturating_add_signed(grown);
    }

    /// Puts a loaded node in its place. A node that is no longer wanted there (it was dropped, or loaded twice) is
    /// ignored: slow work is judged again when it returns.
    fn put_loaded(&mut self, missing: &Missing, node: Arc<Node<V>>) {
        let mut height = self.height;
        let first = missing.place.index.saturating_mul(span(missing.place.level));
        let mut child = self.root.as_mut();
        while let Some(Child { link, .. }) = child {
            if height == missing.place.level {
                if matches!(link, Link::Stored(reference) if *reference == missing.reference) {
                    self.resident_bytes += node.memory();
                    *link = Link::Resident(node);
                }
                return;
            }
            let Link::Resident(inner) = link else {
                return;
            };
            // A copy of a shared inner node is cheap, and the frozen root keeps its own.
            let before = inner.memory();
            inner.state().touch();
            let inner = Arc::make_mut(inner);
            let grown = delta(before, inner.memory());
            self.resident_bytes = self.resident_bytes.saturating_add_signed(grown);
            let Node::Inner(inner) = inner else {
                return;
            };
            child = inner.get_mut(slot_of(first, height));
            height -= 1;
        }
    }

    /// Whether the tree lacks just this node.
    fn wants(&self, missing: &Missing) -> bool {
        let mut height = self.height;
        let first = missing.place.index.saturating_mul(span(missing.place.level));
        if missing.place.level > height || first >= span(height) {
            return false;
        }
        let mut child = self.root.as_ref();
        while let Some(Child { link, .. }) = child {
            let inner = match link {
                Link::Stored(reference) => {
                    return height == missing.place.level && *reference == missing.reference;
                }
                Link::Resident(_) if height == missing.place.level => return false,
                Link::Resident(node) => match &**node {
                    Node::Inner(inner) => inner,
                    Node::Leaf(_) => return false,
                },
            };
            child = inner.get(slot_of(first, height));
            height -= 1;
        }
        false
    }

    /// Drops stored leaves, and inner nodes above which nothing is resident any more, those first that were not used since
    /// the last sweep passed them, until at most `budget` bytes are resident. Gives the bytes that are resident then: more
    /// than the budget where nodes are not stored.
    pub(crate) fn evict(&mut self, budget: u64, stored: StoredUpTo) -> u64 {
        // From where the last sweep stopped to the end, then from the start: each node is seen once, or twice if it is
        // before that place; the marks of use that the first part takes away do not count for the second.
        let from = self.sweep_at;
        self.sweep(budget, stored, u64::MAX, false);
        if self.sweep_at == 0 {
            self.sweep(budget, stored, from, false);
        }
        self.resident_bytes
    }

    /// The same of leaves only, and of those only that lie before the one of `number`: that one, and the way to where the
    /// next ones come, stay resident.
    pub(crate) fn evict_before(&mut self, number: u64, budget: u64, stored: StoredUpTo) {
        let to = number / FANOUT as u64 * FANOUT as u64;
        let from = self.sweep_at.min(to);
        self.sweep(budget, stored, to, true);
        if self.sweep_at == 0 {
            self.sweep(budget, stored, from, true);
        }
    }

    fn sweep(&mut self, budget: u64, stored: StoredUpTo, to: u64, leaves_only: bool) {
        if self.resident_bytes > budget
            && let Some(root) = &mut self.root
        {
            let mut sweep = node::Sweep {
                stored,
                resident: self.resident_bytes,
                budget,
                from: self.sweep_at,
                to,
                leaves_only,
                stopped_at: None,
            };
            sweep.visit(root, self.height, 0);
            self.sweep_at = sweep.stopped_at.unwrap_or(0);
            self.resident_bytes = sweep.resident;
        }
    }
}
