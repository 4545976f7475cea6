//! What an independent manifest leads to: all of it is checked to be the volume's own.
//!
//! Keeps: nothing.
//! Order: from the roots down.
//! Crash: nothing.
//! Knows the stored formats, and no engine.

use std::collections::BTreeSet;

use sconce_schemas::checkpoint::{NODE_REF_LEN, NodeRef};
use sconce_schemas::ids::Location;
use sconce_schemas::manifest::{Manifest, TreeRoot};

use crate::store::Store;

pub(crate) fn check(store: &Store, manifest: &Manifest) {
    assert_eq!(manifest.origin, None);
    let of_snapshots = manifest.snapshots.iter().flat_map(|snapshot| {
        let children = snapshot
            .removed
            .iter()
            .flat_map(|removed| removed.children.clone());
        std::iter::once(snapshot.map).chain(children)
    });
    let of_history = manifest.history.points.iter().map(|point| point.map);
    let mut seen = BTreeSet::new();
    for root in std::iter::once(manifest.map)
        .chain(of_snapshots)
        .chain(of_history)
    {
        tree(store, manifest, root, true, &mut seen);
    }
    tree(store, manifest, manifest.scos, false, &mut seen);
}

fn tree(
    store: &Store,
    manifest: &Manifest,
    root: TreeRoot,
    is_map: bool,
    seen: &mut BTreeSet<[u8; NODE_REF_LEN]>,
) {
    let own = manifest.lineage.len() - 1;
    let mut next: Vec<(u8, NodeRef)> = root.node.into_iter().map(|node| (root.height, node)).collect();
    while let Some((height, reference)) = next.pop() {
        if !seen.insert(reference.to_bytes()) {
            continue;
        }
        assert_eq!(
            usize::from(reference.lineage.0),
            own,
            "a node of an ancestor: {reference:?}"
        );
        // Newest first: of a delta's base counts what the delta does not cover.
        let mut covered = BTreeSet::new();
        for record in store.node(&manifest.lineage, reference) {
            if let Some(base) = record.base {
                assert_eq!(
                    usize::from(base.lineage.0),
                    own,
                    "a delta on an ancestor's node: {base:?}"
                );
            }
            let values = record.values.chunks_exact(usize::from(record.width));
            for (slot, value) in record.present.iter().zip(values) {
                if !covered.insert(slot) {
                    continue;
                }
                if height > 0 {
                    next.push((
                        height - 1,
                        NodeRef::from_bytes(value.first_chunk().unwrap()).unwrap(),
                    ));
                } else if is_map {
                    let location = Location::from_bytes(*value.first_chunk().unwrap());
                    let is_own = location.reads_zeros() || usize::from(location.lineage().0) == own;
                    assert!(is_own, "a cluster of an ancestor: {location:?}");
                }
            }
            covered.extend(record.emptied.iter());
        }
    }
}
