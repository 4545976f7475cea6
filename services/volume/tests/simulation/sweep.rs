//! Sweeps in the simulation: the host lists and deletes, and what is left at the end is what is referred to.
//!
//! Keeps: nothing.
//! Order: a page is listed, or some of what is to go is deleted, at any moment, or not at all.
//! Crash: a sweep is forgotten.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use sconce_schemas::checkpoint::{NodePlace, NodeRef, TreeKind};
use sconce_schemas::manifest::{Manifest, TreeRoot};
use sconce_schemas::object::ObjectKind;
use sconce_schemas::wire::{Refusal, RefusalCode};
use sconce_schemas::{CheckpointId, ObjectName};
use sconce_volume::stored::{StoredNode, map_node, sco_table_node};
use sconce_volume::{Event, ScoObject};

use crate::scrub::name_of;
use crate::world::{SWEEP_EVERY_US, World};

fn not_now() -> Refusal {
    Refusal::retry(RefusalCode::Unavailable, "not now")
}

impl World {
    fn names(&self, kind: ObjectKind) -> impl Iterator<Item = ObjectName> {
        let id = self.id;
        let of_it = move |name: &&ObjectName| name.kind() == kind && name.volume() == id;
        self.store.keys().filter(of_it).copied()
    }

    pub(crate) fn list(&mut self, kind: ObjectKind, after: Option<ObjectName>) {
        let limit = self.chance.usize(1..40);
        let behind = |name: &ObjectName| after.is_none_or(|after| *name > after);
        let page: Vec<ObjectName> = self.names(kind).filter(behind).take(limit).collect();
        let fails = self.chance.u32(0..40) == 0;
        self.feed(Event::Listed {
            result: if fails { Err(not_now()) } else { Ok(page) },
        });
    }

    /// Deletes them, or some, and says that it could not.
    pub(crate) fn sweep(&mut self, names: &[ObjectName]) {
        let fails = self.chance.u32(0..10) == 0;
        let upto = if fails {
            self.chance.usize(0..names.len())
        } else {
            names.len()
        };
        for name in &names[..upto] {
            assert_eq!(name.volume(), self.id);
            self.store.remove(name);
            self.bundles.remove(name);
            *self.swept.entry(name.kind()).or_default() += 1;
        }
        let before = self.volume.scrub_status().swept;
        self.feed(Event::Deleted { done: !fails });
        let told = if fails { 0 } else { names.len() as u64 };
        assert_eq!(self.volume.scrub_status().swept, before + told);
    }

    /// Every node that a manifest leads to, with what it is a delta on, is in a checkpoint that the manifest says it is in.
    pub(crate) fn check_floors(&self, manifest: &Manifest) {
        let own = manifest.lineage.len() - 1;
        let ranges = manifest.checkpoints();
        let mut seen = BTreeSet::new();
        let maps = manifest.snapshots.iter().flat_map(|snapshot| {
            let removed = snapshot.removed.iter().flat_map(|removed| &removed.children);
            let joined = snapshot.joined.iter().map(|joined| &joined.child);
            std::iter::once(&snapshot.map).chain(removed).chain(joined)
        });
        let points = manifest.history.points.iter().map(|point| &point.map);
        let all = [(TreeKind::Map, &manifest.map), (TreeKind::Scos, &manifest.scos)];
        let maps = maps.chain(points).map(|root| (TreeKind::Map, root));
        for (tree, root) in all.into_iter().chain(maps) {
            let Some(node) = root.node else { continue };
            let of_root = usize::from(node.lineage.0) == own;
            let range = if of_root {
                root.floor..=node.checkpoint
            } else {
                CheckpointId::NONE..=CheckpointId::NONE
            };
            assert!(
                !of_root
                    || ranges
                        .iter()
                        .any(|kept| kept.contains(range.start()) && kept.contains(range.end())),
                "{range:?} is not in {ranges:?}"
            );
            let place = NodePlace {
                tree,
                level: root.height,
                index: 0,
            };
            self.check_node(place, node, own, &range, root, &mut seen);
        }
    }

    fn check_node(
        &self,
        place: NodePlace,
        reference: NodeRef,
        own: usize,
        range: &RangeInclusive<CheckpointId>,
        root: &TreeRoot,
        seen: &mut BTreeSet<(CheckpointId, u64, u32, CheckpointId)>,
    ) {
        // Of an ancestor: no node of this volume is below it.
        if usize::from(reference.lineage.0) != own {
            return;
        }
        let key = (
            reference.checkpoint,
            reference.epoch.0,
            reference.offset,
            *range.start(),
        );
        if !seen.insert(key) {
            return;
        }
        let records = self.load_node(&reference).unwrap();
        let bases = records.iter().filter_map(|record| record.base);
        for node in std::iter::once(reference).chain(bases) {
            assert!(
                usize::from(node.lineage.0) != own || range.contains(&node.checkpoint),
                "{node:?} of {place:?} is not within {range:?}, which {root:?} says"
            );
        }
        let children = match place.tree {
            TreeKind::Map => match map_node(place, reference, &records).unwrap() {
                StoredNode::Inner(children) => children,
                StoredNode::Leaf(_) => Vec::new(),
            },
            TreeKind::Scos => match sco_table_node(place, reference, &records).unwrap() {
                StoredNode::Inner(children) => children,
                StoredNode::Leaf(_) => Vec::new(),
            },
        };
        for child in children {
            self.check_node(child.place, child.reference, own, range, root, seen);
        }
    }

    /// Sweeps once more, over everything: what is there then is referred to, but for bundles whose names are taken, and what this
    /// manifest's checkpoint shares.
    pub(crate) fn check_swept(&mut self) {
        // Of a pass that fails the next one begins a while later.
        for _ in 0..20 {
            self.now_us += SWEEP_EVERY_US;
            let now_us = self.now_us;
            self.feed(Event::Tick {
                now_us,
                pressed: false,
            });
            self.settle();
        }
        self.compare();
        let manifest = self.newest_manifest().unwrap();
        self.check_floors(&manifest);
        let ranges = manifest.checkpoints();
        for name in self.names(ObjectKind::Map) {
            let ObjectName::Map { id, .. } = name else {
                continue;
            };
            assert!(
                id > manifest.checkpoint || ranges.iter().any(|range| range.contains(&id)),
                "{name} is in none of {ranges:?}"
            );
        }
        let manifests = self.names(ObjectKind::Manifest).count();
        assert!(manifests <= 2, "{manifests} manifests are left");
        let states = self.sco_states();
        let referred: BTreeSet<ObjectName> = states
            .iter()
            .map(|(sco, state)| name_of(self.id, self.volume.object_of(*sco, *state)))
            .collect();
        for name in self.names(ObjectKind::Sco) {
            let ObjectName::Sco {
                id, epoch, version, ..
            } = name
            else {
                continue;
            };
            let object = ScoObject {
                sco: id,
                epoch,
                version,
            };
            let known = states
                .iter()
                .find(|(sco, _)| *sco == id)
                .map(|(_, state)| state.version);
            let is_taken = object.is_bundle() && known.is_some_and(|known| version > known);
            assert!(
                is_taken || referred.contains(&name),
                "nothing refers to {name}, and it is left"
            );
        }
    }
}
