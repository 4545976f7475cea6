//! The difference of two trees: what is shared is passed over, so its cost is that of what changed between them.
//!
//! Keeps: nothing.
//! Order: numbers ascend.
//! Crash: nothing.
//! Knows no storage: a node that is not resident is named; whoever loads it puts it into every tree that wants it.

use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use sconce_schemas::checkpoint::FANOUT;

use super::node::{Child, Link, Node};
use super::{Missing, Tree, Value, place_of, span};

/// A number whose values differ: the number, the left tree's value, the right one's.
type Visit<'a, V> = dyn FnMut(u64, Option<V>, Option<V>) -> ControlFlow<()> + 'a;

/// A subtree of one of the two, and its height: a tree that is lower than the other is its first subtree.
#[derive(Debug)]
struct Below<'a, V> {
    child: &'a Child<V>,
    height: u8,
}

impl<V> Clone for Below<'_, V> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<V> Copy for Below<'_, V> {}

struct Walk<'a, V> {
    range: Range<u64>,
    /// Pairs of nodes that may still be looked at.
    pairs: u64,
    /// The first number that was not looked at, once the walk ended early.
    stopped: Option<u64>,
    visit: &'a mut Visit<'a, V>,
}

impl<V: Value> Tree<V> {
    /// Visits the numbers from `from` on at which the two trees differ, until `visit` breaks.
    ///
    /// # Errors
    /// The node of one of them that has to be loaded first; what was visited before it stands.
    pub(crate) fn diff<'a>(
        &'a self,
        right: &'a Self,
        from: u64,
        visit: &'a mut Visit<'a, V>,
    ) -> Result<(), Missing> {
        self.diff_part(right, from..u64::MAX, u64::MAX, visit).map(|_| ())
    }

    /// Visits the numbers of `range` at which the two trees differ, until `visit` breaks or that many pairs of nodes were
    /// looked at. Gives the number up to which it came: the end of the range, or less.
    ///
    /// # Errors
    /// The node of one of them that has to be loaded first; what was visited before it stands.
    pub(crate) fn diff_part<'a>(
        &'a self,
        right: &'a Self,
        range: Range<u64>,
        pairs_max: u64,
        visit: &'a mut Visit<'a, V>,
    ) -> Result<u64, Missing> {
        let end = range.end;
        let root = |tree: &'a Self| {
            tree.root.as_ref().map(|child| Below {
                child,
                height: tree.height,
            })
        };
        let mut walk = Walk {
            range,
            pairs: pairs_max,
            stopped: None,
            visit,
        };
        let height = self.height.max(right.height);
        let _ = walk.below(root(self), root(right), height, 0)?;
        Ok(walk.stopped.unwrap_or(end))
    }
}

impl<V: Value> Walk<'_, V> {
    fn below(
        &mut self,
        left: Option<Below<'_, V>>,
        right: Option<Below<'_, V>>,
        height: u8,
        first: u64,
    ) -> Result<ControlFlow<()>, Missing> {
        let is_before = first.saturating_add(span(height)) <= self.range.start;
        if is_before || first >= self.range.end || is_same(left, right) {
            return Ok(ControlFlow::Continue(()));
        }
        if self.pairs == 0 {
            self.stopped = Some(first.max(self.range.start));
            return Ok(ControlFlow::Break(()));
        }
        self.pairs -= 1;
        let left_node = node(left, height, first)?;
        let right_node = node(right, height, first)?;
        for slot in 0..FANOUT {
            let flow = if height == 0 {
                self.leaf_slot(left_node, right_node, slot, first)
            } else {
                let (left, right) = (
                    child(left, left_node, slot, height),
                    child(right, right_node, slot, height),
                );
                if left.is_none() && right.is_none() {
                    continue;
                }
                self.below(left, right, height - 1, first + slot as u64 * span(height - 1))?
            };
            if flow.is_break() {
                return Ok(flow);
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn leaf_slot(
        &mut self,
        left: Option<&Node<V>>,
        right: Option<&Node<V>>,
        slot: usize,
        first: u64,
    ) -> ControlFlow<()> {
        let number = first + slot as u64;
        let value = |node: Option<&Node<V>>| match node {
            Some(Node::Leaf(leaf)) => leaf.get(slot),
            _ => None,
        };
        let (left, right) = (value(left), value(right));
        if !self.range.contains(&number) || left == right {
            return ControlFlow::Continue(());
        }
        let flow = (self.visit)(number, left, right);
        if flow.is_break() {
            self.stopped = Some(number + 1);
        }
        flow
    }
}

/// Whether both are the same node, so that nothing below differs.
fn is_same<V>(left: Option<Below<'_, V>>, right: Option<Below<'_, V>>) -> bool
where
    V: Value,
{
    let (Some(left), Some(right)) = (left, right) else {
        return left.is_none() && right.is_none();
    };
    if left.height != right.height {
        return false;
    }
    match (&left.child.link, &right.child.link) {
        (Link::Resident(left), Link::Resident(right)) => {
            Arc::ptr_eq(left, right)
                || matches!((left.state().saved.get(), right.state().saved.get()), (Some(l), Some(r)) if l == r)
        }
        (Link::Stored(left), Link::Stored(right)) => left == right,
        (Link::Resident(node), Link::Stored(reference)) | (Link::Stored(reference), Link::Resident(node)) => {
            node.state().saved.get() == Some(reference)
        }
    }
}

/// The node, if it is this high: a lower one stands for its ancestors.
fn node<V: Value>(below: Option<Below<'_, V>>, height: u8, first: u64) -> Result<Option<&Node<V>>, Missing> {
    let Some(Below { child, height: own }) = below.filter(|below| below.height == height) else {
        return Ok(None);
    };
    match &child.link {
        Link::Resident(node) => {
            node.state().touch();
            Ok(Some(node))
        }
        Link::Stored(reference) => Err(Missing {
            place: place_of::<V>(first, own),
            reference: *reference,
        }),
    }
}

/// The subtree in a slot of an inner node; a tree that is lower is in slot 0 of all its ancestors.
fn child<'a, V: Value>(
    below: Option<Below<'a, V>>,
    node: Option<&'a Node<V>>,
    slot: usize,
    height: u8,
) -> Option<Below<'a, V>> {
    match node {
        Some(Node::Inner(inner)) => inner.get(slot).map(|child| Below {
            child,
            height: height - 1,
        }),
        Some(Node::Leaf(_)) => None,
        None => below.filter(|below| below.height < height && slot == 0),
    }
}
