//! Ranges of numbers: visiting the values in one, and removing them.
//!
//! Keeps: nothing.
//! Order: ascending. Removing a range drops whole subtrees without loading them (discarding an empty 2 TiB costs nothing);
//! a node at its edge that is not resident is named before anything is changed.
//! Crash: nothing here survives.
//! Knows no values, only how many there are.

use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use sconce_schemas::checkpoint::FANOUT;

use super::node::{Child, Link, Node, delta};
use super::{Missing, Tree, Value, place_of, span};

/// Visits `(number, value)` pairs; `Break` ends the visit.
type Visit<'a, V> = dyn FnMut(u64, V) -> ControlFlow<()> + 'a;

impl<V: Value> Tree<V> {
    /// Visits the values of `range` in order, passing over whole empty subtrees, until `visit` breaks.
    ///
    /// # Errors
    /// The node that has to be loaded first; what was visited before it stands.
    pub(crate) fn visit(
        &self,
        range: Range<u64>,
        mut visit: impl FnMut(u64, V) -> ControlFlow<()>,
    ) -> Result<(), Missing> {
        let Some(root) = &self.root else { return Ok(()) };
        visit_child(root, self.height, 0, &range, &mut visit).map(|_| ())
    }

    /// Where to cut `range` so that clearing its first part touches about `values_max` values (a node counts as some); `range.end` if clearing all
    /// of it does not touch more. The cut is at a node's border; what is not resident costs nothing.
    pub(crate) fn cut(&self, range: Range<u64>, values_max: u64) -> u64 {
        let mut left = values_max.max(1);
        let cut = self
            .root
            .as_ref()
            .and_then(|root| cut_child(root, self.height, 0, &range, &mut left));
        cut.unwrap_or(range.end)
    }

    /// The first node of `range` that is not resident, and the first number of the range that it has.
    pub(crate) fn first_missing(&self, range: Range<u64>) -> Option<(u64, Missing)> {
        let root = self.root.as_ref().filter(|_| !range.is_empty())?;
        let missing = first_missing(root, self.height, 0, &range)?;
        let first = missing.place.index.saturating_mul(span(missing.place.level));
        Some((first.max(range.start), missing))
    }

    /// Removes all values of `range`. `dropped` is told of each that was resident; a subtree that is not is dropped whole,
    /// and told as `None`. Gives how many values are gone.
    ///
    /// # Errors
    /// A node at an edge of the range that has to be loaded first; then nothing was changed.
    pub(crate) fn clear(
        &mut self,
        range: Range<u64>,
        mut dropped: impl FnMut(Option<V>),
    ) -> Result<u64, Missing> {
        let Some(root) = self.root.as_ref().filter(|_| !range.is_empty()) else {
            return Ok(0);
        };
        require_edges(root, self.height, 0, &range)?;
        let before = self.count();
        let grown = clear_child(&mut self.root, self.height, 0, &range, &mut dropped);
        self.resident_bytes = self.resident_bytes.saturating_add_signed(grown);
        Ok(before - self.count())
    }
}

fn overlaps(first: u64, height: u8, range: &Range<u64>) -> bool {
    first < range.end && first.saturating_add(span(height)) > range.start
}

/// The slots of the node at `first` that the range touches.
fn slots_in(first: u64, height: u8, range: &Range<u64>) -> Range<usize> {
    let width = if height == 0 { 1 } else { span(height - 1) };
    let from = range.start.saturating_sub(first) / width;
    let to = (range.end - first).div_ceil(width).min(FANOUT as u64);
    let to_index = |slot: u64| usize::try_from(slot).unwrap_or(FANOUT);
    to_index(from)..to_index(to)
}

fn inside(first: u64, height: u8, range: &Range<u64>) -> bool {
    range.start <= first && first.saturating_add(span(height)) <= range.end
}

fn visit_child<V: Value>(
    child: &Child<V>,
    height: u8,
    first: u64,
    range: &Range<u64>,
    visit: &mut Visit<'_, V>,
) -> Result<ControlFlow<()>, Missing> {
    if !overlaps(first, height, range) {
        return Ok(ControlFlow::Continue(()));
    }
    let node = match &child.link {
        Link::Resident(node) => node,
        Link::Stored(reference) => {
            return Err(Missing {
                place: place_of::<V>(first, height),
                reference: *reference,
            });
        }
    };
    match &**node {
        Node::Leaf(leaf) => {
            leaf.state.touch();
            for (slot, value) in leaf.range(slots_in(first, 0, range)) {
                if visit(first + slot as u64, *value).is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
        }
        Node::Inner(inner) => {
            for (slot, below) in inner.range(slots_in(first, height, range)) {
                let at = first + slot as u64 * span(height - 1);
                if visit_child(below, height - 1, at, range, visit)?.is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// What a node costs to clear, however little it holds, in values.
const NODE_COST: u64 = 32;

fn cut_child<V: Value>(
    child: &Child<V>,
    height: u8,
    first: u64,
    range: &Range<u64>,
    left: &mut u64,
) -> Option<u64> {
    let Link::Resident(node) = &child.link else {
        return None;
    };
    if !overlaps(first, height, range) {
        return None;
    }
    // A node that begins before the range is not cut off: a cut has to be ahead.
    if *left == 0 && first > range.start {
        return Some(first);
    }
    *left = left.saturating_sub(NODE_COST);
    match &**node {
        Node::Leaf(leaf) => {
            *left = left.saturating_sub(leaf.items.len() as u64);
            None
        }
        Node::Inner(inner) => inner
            .range(slots_in(first, height, range))
            .find_map(|(slot, below)| {
                let at = first + slot as u64 * span(height - 1);
                cut_child(below, height - 1, at, range, left)
            }),
    }
}

fn first_missing<V: Value>(child: &Child<V>, height: u8, first: u64, range: &Range<u64>) -> Option<Missing> {
    if !overlaps(first, height, range) {
        return None;
    }
    match &child.link {
        Link::Stored(reference) => Some(Missing {
            place: place_of::<V>(first, height),
            reference: *reference,
        }),
        Link::Resident(node) => match &**node {
            Node::Leaf(leaf) => {
                leaf.state.touch();
                None
            }
            Node::Inner(inner) => {
                let mut below = inner.range(slots_in(first, height, range));
                below.find_map(|(slot, below)| {
                    first_missing(below, height - 1, first + slot as u64 * span(height - 1), range)
                })
            }
        },
    }
}

/// Checks that the nodes that the range covers in part are resident.
fn require_edges<V: Value>(
    child: &Child<V>,
    height: u8,
    first: u64,
    range: &Range<u64>,
) -> Result<(), Missing> {
    if !overlaps(first, height, range) || inside(first, height, range) {
        return Ok(());
    }
    match &child.link {
        Link::Stored(reference) => Err(Missing {
            place: place_of::<V>(first, height),
            reference: *reference,
        }),
        Link::Resident(node) => match &**node {
            Node::Leaf(_) => Ok(()),
            Node::Inner(inner) => {
                inner
                    .range(slots_in(first, height, range))
                    .try_for_each(|(slot, below)| {
                        require_edges(below, height - 1, first + slot as u64 * span(height - 1), range)
                    })
            }
        },
    }
}

/// Removes the range below `link`; gives by how many bytes the nodes grew (mostly they shrink).
fn clear_child<V: Value>(
    link: &mut Option<Child<V>>,
    height: u8,
    first: u64,
    range: &Range<u64>,
    dropped: &mut dyn FnMut(Option<V>),
) -> i64 {
    let Some(child) = link.as_mut().filter(|_| overlaps(first, height, range)) else {
        return 0;
    };
    if inside(first, height, range) {
        let freed = drop_all(child, dropped);
        *link = None;
        return delta(freed, 0);
    }
    let Link::Resident(shared) = &mut child.link else {
        return 0;
    };
    let before = shared.memory();
    let node = Arc::make_mut(shared);
    let mut grown = 0;
    let mut count = 0;
    match node {
        Node::Leaf(leaf) => {
            let slots = leaf.present;
            for slot in slots
                .iter()
                .filter(|slot| range.contains(&(first + *slot as u64)))
            {
                if let Some(value) = leaf.get(slot) {
                    dropped(Some(value));
                }
                leaf.put(slot, None);
            }
            count += leaf.items.len() as u64;
        }
        Node::Inner(inner) => {
            let slots = inner.present;
            for slot in slots_in(first, height, range).filter(|slot| slots.has(*slot)) {
                let at = first + slot as u64 * span(height - 1);
                let mut below = inner.get(slot).cloned();
                inner.put(slot, None);
                grown += clear_child(&mut below, height - 1, at, range, dropped);
                inner.put(slot, below);
            }
            // Counts come from a disk: they may be wrong, but must not overflow.
            let sum = |count: u64, below: &Child<V>| count.saturating_add(below.count);
            count = inner.items.iter().fold(count, sum);
        }
    }
    child.count = count;
    let after = if count == 0 { 0 } else { node.memory() };
    if count == 0 {
        *link = None;
    }
    grown + delta(before, after)
}

fn drop_all<V: Value>(child: &Child<V>, dropped: &mut dyn FnMut(Option<V>)) -> u64 {
    let Link::Resident(node) = &child.link else {
        dropped(None);
        return 0;
    };
    let below = match &**node {
        Node::Leaf(leaf) => {
            leaf.items.iter().for_each(|value| dropped(Some(*value)));
            0
        }
        Node::Inner(inner) => inner.items.iter().map(|below| drop_all(below, dropped)).sum(),
    };
    below + node.memory()
}
