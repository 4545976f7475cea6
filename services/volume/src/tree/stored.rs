//! Stored nodes as they are, one by one: for inspection and checks, which look at each node once, whoever shares it.
//!
//! Keeps: nothing.
//! Order: numbers and children ascend.
//! Crash: nothing.
//! Knows no storage: the caller brings a node's records.

use sconce_schemas::DecodeError;
use sconce_schemas::checkpoint::{NodePlace, NodeRecord, NodeRef};
use sconce_schemas::manifest::TREE_HEIGHT_MAX;

use super::node::{Link, Node};
use super::{Value, span};

/// What a stored node holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoredNode<V> {
    /// Numbers with their values.
    Leaf(Vec<(u64, V)>),
    /// Nodes of the level below.
    Inner(Vec<StoredChild>),
}

/// A child of a stored inner node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredChild {
    /// Where it is in its tree.
    pub place: NodePlace,
    /// Where it is stored.
    pub reference: NodeRef,
    /// How many values the inner node says to be below it.
    pub count: u64,
}

/// The node that a chain of records makes.
pub(crate) fn stored_node<V: Value>(
    place: NodePlace,
    reference: NodeRef,
    records: &[NodeRecord],
) -> Result<StoredNode<V>, DecodeError> {
    let first = (place.level <= TREE_HEIGHT_MAX && place.tree == V::TREE)
        .then(|| place.index.checked_mul(span(place.level)))
        .flatten();
    let Some(first) = first else {
        return Err(DecodeError::Value {
            what: "place of a map node",
            found: format!("{:?}, level {}, index {}", place.tree, place.level, place.index),
            expected: "one of this tree",
        });
    };
    Ok(match Node::<V>::from_records(place, reference, records)? {
        Node::Leaf(leaf) => StoredNode::Leaf(
            leaf.iter()
                .map(|(slot, value)| (first.saturating_add(slot as u64), *value))
                .collect(),
        ),
        Node::Inner(inner) => {
            let level = place.level.saturating_sub(1);
            let children = inner.iter().filter_map(|(slot, child)| {
                let index = place
                    .index
                    .checked_mul(sconce_schemas::checkpoint::FANOUT as u64)?
                    .checked_add(slot as u64)?;
                // Records make stored children only.
                let Link::Stored(reference) = child.link else {
                    return None;
                };
                Some(StoredChild {
                    place: NodePlace {
                        tree: V::TREE,
                        level,
                        index,
                    },
                    reference,
                    count: child.count,
                })
            });
            StoredNode::Inner(children.collect())
        }
    })
}
