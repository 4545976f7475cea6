//! Renewing: nodes in old checkpoints are stored again, so that nothing needs those checkpoints any more.
//!
//! Keeps: nothing; the caller remembers how far it is.
//! Order: ascending, leaf after leaf. What was passed has no old node, and gets none: a node that changes is stored anew, and
//! while a renewal goes on deltas are stored only on nodes that are not old (`encode.rs`).
//! Crash: nothing here survives.
//! Knows no storage: a node that has to be looked at is named.

use sconce_schemas::checkpoint::NodeRef;
use sconce_schemas::{CheckpointId, LineageIndex};

use super::node::{Child, Link, Node};
use super::{Missing, Tree, Value, place_of, span};

/// Nodes that one step looks at.
const LOOKS_MAX: usize = 2048;

/// How far one step of a renewal came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Renewed {
    /// The next step begins here; whether the nodes before it are to be stored again.
    UpTo(u64, bool),
    /// Nothing that follows is old.
    All,
}

/// What comes next in a subtree.
enum Next {
    /// The leaf that begins here, or a node above it, is old.
    Old(u64),
    /// So many were looked at; it goes on here.
    Later(u64),
}

impl<V: Value> Tree<V> {
    /// The first of the volume's checkpoints that the tree has nodes in.
    pub(crate) const fn floor(&self) -> CheckpointId {
        self.floor
    }

    /// Every old node was renewed.
    pub(crate) fn set_floor(&mut self, floor: CheckpointId) {
        self.floor = floor;
    }

    /// Lets the first old node from `from` on, and those above it, be stored again, whole: one in a checkpoint of this volume
    /// before `target`, or a change of such a one.
    ///
    /// # Errors
    /// The node that has to be loaded first; then nothing was changed.
    pub(crate) fn renew(
        &mut self,
        from: u64,
        target: CheckpointId,
        own: LineageIndex,
    ) -> Result<Renewed, Missing> {
        let old = |node: &NodeRef| node.lineage == own && node.checkpoint < target;
        let Some(root) = &self.root else {
            return Ok(Renewed::All);
        };
        let mut looks = LOOKS_MAX;
        Ok(
            match next_old(root, self.height, 0, from, false, &old, &mut looks)? {
                Some(Next::Old(leaf)) => {
                    self.store_again(leaf, old);
                    Renewed::UpTo(leaf.saturating_add(span(0)), true)
                }
                Some(Next::Later(at)) => Renewed::UpTo(at.max(from), false),
                None => Renewed::All,
            },
        )
    }
}

fn next_old<V: Value>(
    child: &Child<V>,
    height: u8,
    first: u64,
    from: u64,
    is_below_old: bool,
    old: &impl Fn(&NodeRef) -> bool,
    looks: &mut usize,
) -> Result<Option<Next>, Missing> {
    if first.saturating_add(span(height)) <= from {
        return Ok(None);
    }
    let node = match &child.link {
        // A leaf that is not old need not be here.
        Link::Stored(reference) if height == 0 && !old(reference) => {
            return Ok(is_below_old.then_some(Next::Old(first)));
        }
        Link::Stored(reference) => {
            return Err(Missing {
                place: place_of::<V>(first, height),
                reference: *reference,
            });
        }
        Link::Resident(node) => node,
    };
    let is_old = is_below_old || node.state().base().is_some_and(|base| old(&base));
    let Node::Inner(inner) = &**node else {
        return Ok(is_old.then_some(Next::Old(first)));
    };
    let width = span(height - 1);
    for (slot, below) in inner.iter() {
        let at = first + slot as u64 * width;
        if at.saturating_add(width) <= from {
            continue;
        }
        if *looks == 0 {
            return Ok(Some(Next::Later(at)));
        }
        *looks -= 1;
        if let Some(next) = next_old(below, height - 1, at, from, is_old, old, looks)? {
            return Ok(Some(next));
        }
    }
    Ok(None)
}
