//! Renewals: the head's trees are stored anew, old checkpoints go, and what others need stays.

use sconce_schemas::checkpoint::{NodePlace, NodeRef, TreeKind};
use sconce_schemas::manifest::{Manifest, TreeRoot};
use sconce_schemas::wire::volume::IoCode;
use sconce_schemas::{CheckpointId, SnapshotId};
use sconce_volume::Ask;
use sconce_volume::stored::{StoredNode, map_node};

use crate::host::{Host, LEAF, ROOMY, written};

const LEAVES: u64 = 24;

impl Host {
    fn newest(&self) -> &Manifest {
        self.manifest.as_ref().unwrap()
    }

    /// The first checkpoint that a tree has a node in, or a delta's base, by a look at all of it.
    fn first_needed(&self, root: &TreeRoot) -> CheckpointId {
        let place = NodePlace {
            tree: TreeKind::Map,
            level: root.height,
            index: 0,
        };
        root.node
            .map_or(CheckpointId::NONE, |node| self.first_below(place, node))
    }

    fn first_below(&self, place: NodePlace, reference: NodeRef) -> CheckpointId {
        let records = self.records(reference);
        let bases = records.iter().filter_map(|record| record.base);
        let here = bases.map(|base| base.checkpoint).chain([reference.checkpoint]);
        let below = match map_node(place, reference, &records).unwrap() {
            StoredNode::Leaf(_) => Vec::new(),
            StoredNode::Inner(children) => children,
        };
        let below = below
            .into_iter()
            .map(|child| self.first_below(child.place, child.reference));
        here.chain(below).min().unwrap()
    }

    /// Another cluster of each leaf, and a checkpoint.
    fn round(&mut self, at: u64) {
        for leaf in 0..LEAVES {
            self.io(IoCode::Write, leaf * LEAF + at % 512 * 4096, 4096);
            self.load();
            self.store();
        }
        self.checkpoint();
    }

    fn bytes(&self) -> usize {
        self.objects.values().map(bytes::Bytes::len).sum()
    }
}

#[test]
fn checkpoints_do_not_grow_with_the_number_of_changes() {
    let mut host = written(ROOMY, LEAVES);
    for at in 0..40 {
        host.round(at % 8);
    }
    let (bytes, objects) = (host.bytes(), host.objects.len());
    for at in 0..120 {
        host.round(at % 8);
        let manifest = host.newest();
        assert!(manifest.map.floor <= host.first_needed(&manifest.map));
    }
    assert!(
        host.bytes() <= bytes * 2 && host.objects.len() <= objects * 2,
        "{bytes} bytes in {objects} objects became {} in {}",
        host.bytes(),
        host.objects.len()
    );
    host.restart();
    assert_eq!(host.live(), LEAVES * 8);
}

#[test]
fn a_snapshot_keeps_what_it_needs_and_not_what_lies_between_it_and_the_head() {
    let mut host = written(ROOMY, LEAVES);
    host.take(7);
    for at in 0..200 {
        host.round(at % 8);
    }
    let manifest = host.newest();
    let snapshot = manifest.snapshots[0].map;
    assert!(snapshot.floor <= host.first_needed(&snapshot));
    // What the snapshot needs, a gap, and what the head needs.
    assert_eq!(manifest.checkpoints().len(), 2, "{:?}", manifest.checkpoints());
    let with = host.bytes();
    host.ask(Ask::Remove { name: "s7".into() });
    for at in 0..10 {
        host.round(at % 8);
    }
    assert_eq!(host.newest().checkpoints().len(), 1);
    assert!(host.bytes() < with * 2);
    assert_eq!(host.live(), LEAVES * 8);
}

#[test]
fn going_back_in_the_middle_of_a_renewal_begins_it_anew() {
    let mut renewed = 0;
    for steps in 0..LEAVES + 6 {
        let mut host = written(ROOMY, LEAVES);
        host.take(7);
        host.checkpoint();
        // A renewal is due, and a checkpoint begins it; nothing of the walk is done yet.
        for at in 0.. {
            host.io(IoCode::Write, at % LEAVES * LEAF + at * 4096, 4096);
            host.now_us += 10_000_000;
            host.tick();
            host.store();
            host.store();
            if host.newest().renewal.written > 24 << 10 {
                break;
            }
        }
        assert_eq!(host.newest().map.floor, CheckpointId::NONE);
        for _ in 0..steps {
            host.one_turn();
        }
        host.ask(Ask::RollBack {
            to: "s7".into(),
            id: SnapshotId(8),
            keep: Some("before".into()),
        });
        for _ in 0..3 {
            host.checkpoint();
        }
        let manifest = host.newest();
        assert!(
            manifest.map.floor <= host.first_needed(&manifest.map),
            "{:?} after {steps} steps needs {:?}",
            manifest.map,
            host.first_needed(&manifest.map)
        );
        renewed += usize::from(manifest.map.floor > CheckpointId::NONE);
    }
    assert!(renewed > 0, "no renewal came to its end");
}
