//! The tree against a plain map: random changes, ranges, checkpoints, evictions and reloads from what was encoded.

use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;

use bytes::Bytes;
use sconce_schemas::checkpoint::{NodeRecord, decode_node};
use sconce_schemas::ids::Location;
use sconce_schemas::{CheckpointId, Epoch, LineageIndex, ScoId, Slot, VolumeId};

use super::node::{Child, Link, Node};
use super::{Encoder, FrozenTree, Missing, StoredUpTo, Tree, adopt};

const VOLUME: VolumeId = VolumeId([3; 16]);

/// A tree, what it must hold, and the objects that its checkpoints made.
struct Model {
    chance: fastrand::Rng,
    tree: Tree<Location>,
    plain: BTreeMap<u64, Location>,
    objects: HashMap<CheckpointId, Bytes>,
    next: CheckpointId,
    chains: u8,
    held: Option<FrozenTree<Location>>,
}

/// Everything of checkpoints below `next` is stored.
fn stored_below(next: CheckpointId) -> StoredUpTo {
    StoredUpTo {
        lineage: LineageIndex(0),
        epoch: Epoch(1),
        next,
    }
}

/// Bytes of the nodes that are resident, counted anew.
fn memory(child: &Child<Location>) -> u64 {
    let Link::Resident(node) = &child.link else {
        return 0;
    };
    let below = match &**node {
        Node::Leaf(_) => 0,
        Node::Inner(inner) => inner.iter().map(|(_, below)| memory(below)).sum(),
    };
    node.memory() + below
}

impl Model {
    fn new(seed: u64) -> Self {
        Self {
            chance: fastrand::Rng::with_seed(seed),
            tree: Tree::default(),
            plain: BTreeMap::new(),
            objects: HashMap::new(),
            next: CheckpointId::FIRST,
            chains: 0,
            held: None,
        }
    }

    fn number(&mut self) -> u64 {
        let base = [0, 400, 512 * 512 - 100, 1 << 33][self.chance.usize(0..4)];
        base + self.chance.u64(0..700)
    }

    fn load(&mut self, missing: Missing) {
        let mut records: Vec<NodeRecord> = Vec::new();
        let mut at = Some(missing.reference);
        while let Some(reference) = at {
            self.chains = self.chains.max(reference.chain);
            let object = &self.objects[&reference.checkpoint];
            let from = reference.offset as usize;
            let stored = &object[from..from + reference.length as usize];
            let record = decode_node(VOLUME, &reference, stored).unwrap();
            at = record.base;
            records.push(record);
        }
        adopt([&mut self.tree], &missing, &records).unwrap();
    }

    fn retry<T>(&mut self, mut operation: impl FnMut(&mut Tree<Location>) -> Result<T, Missing>) -> T {
        loop {
            match operation(&mut self.tree) {
                Ok(value) => return value,
                Err(missing) => self.load(missing),
            }
        }
    }

    fn encode(&mut self, frozen: &FrozenTree<Location>) {
        let mut encoder = Encoder::new(VOLUME, Epoch(1), LineageIndex(0), self.next);
        let root = encoder.tree(frozen).unwrap();
        let (objects, last) = encoder.finish();
        self.objects
            .extend(objects.into_iter().map(|object| (object.id, object.bytes)));
        self.next = last.next();
        if self.chance.u32(0..4) == 0 {
            // A restart: only what is stored is known. Changes since the freeze are made again, as replay does.
            self.tree = Tree::stored(root, self.plain.len() as u64);
        }
    }

    fn step(&mut self) {
        match self.chance.u32(0..100) {
            0..70 => {
                let (number, sco) = (self.number(), self.chance.u64(1..1000));
                let value = Location::new(LineageIndex(0), ScoId(sco), Slot(self.chance.u16(0..1024)), 7);
                let value = (self.chance.u32(0..5) > 0).then_some(value);
                let before = self.retry(|tree| tree.set(number, value));
                let expected = match value {
                    Some(value) => self.plain.insert(number, value),
                    None => self.plain.remove(&number),
                };
                assert_eq!(before, expected);
            }
            70..80 => {
                let from = self.number();
                let to = from + self.chance.u64(1..1500);
                let mut dropped = 0;
                let gone = self.retry(|tree| tree.clear(from..to, |_| dropped += 1));
                let before = self.plain.len();
                self.plain.retain(|number, _| !(from..to).contains(number));
                assert_eq!(gone, (before - self.plain.len()) as u64);
                assert!(dropped <= gone);
            }
            80..90 => {
                let frozen = self.tree.freeze();
                self.encode(&frozen);
            }
            90..95 => {
                let budget = self.tree.resident_bytes() * self.chance.u64(0..3) / 2;
                self.tree.evict(budget, stored_below(self.next));
            }
            _ => self.compare(),
        }
        assert_eq!(self.tree.count(), self.plain.len() as u64);
        // A root that is held for a while: what is changed meanwhile is copied.
        if self.chance.u32(0..20) == 0 {
            self.held = self.chance.bool().then(|| self.tree.freeze());
        }
        let found = self.tree.root.as_ref().map_or(0, memory);
        assert_eq!(self.tree.resident_bytes(), found, "resident bytes drift");
    }

    fn compare(&mut self) {
        let seen = self.retry(|tree| {
            let mut seen = Vec::new();
            let whole = tree.visit(0..u64::MAX, |number, value| {
                seen.push((number, value));
                ControlFlow::Continue(())
            });
            whole.map(|()| seen)
        });
        assert_eq!(seen, self.plain.iter().map(|(n, v)| (*n, *v)).collect::<Vec<_>>());
        let number = self.number();
        assert_eq!(
            self.retry(|tree| tree.get(number)),
            self.plain.get(&number).copied()
        );
    }
}

#[test]
fn a_tree_is_what_a_plain_map_would_be() {
    let mut chains = 0;
    for seed in 0..40 {
        let mut model = Model::new(seed);
        (0..600).for_each(|_| model.step());
        model.compare();
        chains = chains.max(model.chains);
    }
    assert!(chains > 1, "no node was ever read through a chain of deltas");
}

#[test]
fn a_frozen_tree_stays_as_it_was() {
    let place = |sco| Some(Location::new(LineageIndex(0), ScoId(sco), Slot(0), 0));
    let mut model = Model::new(1);
    (0..2000).for_each(|number| assert_eq!(model.tree.set(number, place(1)), Ok(None)));
    let frozen = model.tree.freeze();
    (0..2000).for_each(|number| assert_eq!(model.tree.set(number, place(2)), Ok(place(1))));
    let mut encoder = Encoder::new(VOLUME, Epoch(1), LineageIndex(0), model.next);
    let root = encoder.tree(&frozen).unwrap();
    model.objects.extend(
        encoder
            .finish()
            .0
            .into_iter()
            .map(|object| (object.id, object.bytes)),
    );
    model.tree = Tree::stored(root, 2000);
    (0..2000).for_each(|number| assert_eq!(model.retry(|tree| tree.get(number)), place(1)));
}

#[test]
fn map_memory_is_at_most_16_bytes_a_written_cluster() {
    let mut tree: Tree<Location> = Tree::default();
    let mut chance = fastrand::Rng::with_seed(5);
    // A volume of 1 GiB of which random writes have reached more and more.
    let mut written = std::collections::HashSet::new();
    for _ in 0..600_000 {
        let number = chance.u64(0..262_144);
        written.insert(number);
        tree.set(number, Some(Location::new(LineageIndex(0), ScoId(1), Slot(1), 1)))
            .unwrap();
        if written.len() % 20_000 == 0 && written.len() >= 40_000 {
            let bytes = tree.resident_bytes() as f64 / written.len() as f64;
            assert!(
                bytes <= 16.0,
                "{bytes:.1} bytes a cluster with {} written",
                written.len()
            );
        }
    }
}

#[test]
fn clearing_an_empty_or_stored_tree_loads_nothing() {
    let mut tree: Tree<Location> = Tree::default();
    assert_eq!(tree.clear(0..1 << 34, |_| panic!("nothing to drop")), Ok(0));
    let mut model = Model::new(2);
    (0..4096).for_each(|number| {
        let place = Location::new(LineageIndex(0), ScoId(1), Slot(0), 0);
        model.tree.set(number, Some(place)).unwrap();
    });
    let frozen = model.tree.freeze();
    let mut encoder = Encoder::new(VOLUME, Epoch(1), LineageIndex(0), model.next);
    let root = encoder.tree(&frozen).unwrap();
    let mut stored: Tree<Location> = Tree::stored(root, 4096);
    assert_eq!(
        stored.clear(0..1 << 34, |seen| assert_eq!(seen, None, "nothing is resident")),
        Ok(4096)
    );
}

#[test]
fn a_node_that_is_encoded_but_not_stored_stays() {
    let place = Location::new(LineageIndex(0), ScoId(1), Slot(0), 0);
    let mut model = Model::new(3);
    // Two leaves, so that the path to the first can be copied without it.
    for number in [0, 600] {
        model.tree.set(number, Some(place)).unwrap();
    }
    let frozen = model.tree.freeze();
    let mut encoder = Encoder::new(VOLUME, Epoch(1), LineageIndex(0), CheckpointId(5));
    encoder.tree(&frozen).unwrap();
    model.tree.set(601, Some(place)).unwrap();
    // The first takes away the marks of use.
    for _ in 0..2 {
        model.tree.evict(0, stored_below(CheckpointId(5)));
    }
    assert_eq!(model.tree.get(0), Ok(Some(place)));
    for _ in 0..2 {
        model.tree.evict(0, stored_below(CheckpointId(6)));
    }
    assert!(model.tree.get(0).is_err(), "what is stored may go");
}

#[test]
fn leaves_before_a_number_go_and_its_own_and_the_way_to_the_next_ones_stay() {
    let mut model = Model::new(7);
    let value = Location::new(LineageIndex(0), ScoId(1), Slot(1), 7);
    // Six leaves; the seventh is where the next number comes.
    let next = 6 * 512;
    for number in 0..next {
        model.tree.set(number, Some(value)).unwrap();
    }
    let frozen = model.tree.freeze();
    let mut encoder = Encoder::new(VOLUME, Epoch(1), LineageIndex(0), model.next);
    encoder.tree(&frozen).unwrap();
    let (_, last) = encoder.finish();
    drop(frozen);
    let (whole, stored) = (model.tree.resident_bytes(), stored_below(last.next()));
    // The first sweep takes the marks of use away.
    for _ in 0..3 {
        model.tree.evict_before(next - 1, 0, stored);
    }
    let left = model.tree.resident_bytes();
    assert!(left < whole / 3, "{left} of {whole} bytes");
    for leaf in 0..5 {
        assert!(model.tree.get(leaf * 512).is_err(), "leaf {leaf}");
    }
    assert_eq!(model.tree.get(next - 1), Ok(Some(value)));
    // Also once the last leaf has lost all it had.
    for number in next - 512..next {
        model.tree.set(number, None).unwrap();
    }
    model.tree.evict_before(next, 0, stored);
    model.tree.set(next, Some(value)).unwrap();
}
