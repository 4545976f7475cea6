//! The trees of all volumes, each stored node read once, whoever shares it.
//!
//! Keeps: which nodes were read, what they hold together, and which map objects are referred to.
//! Order: what is kept (head, snapshots) before what was removed and is not counted yet; ancestors before their clones.
//! Crash: nothing.
//! Knows nodes by the engine's own reading of them (`sconce_volume::stored`).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use futures_util::future::LocalBoxFuture;
use sconce_schemas::checkpoint::{NodePlace, NodeRecord, NodeRef, TreeKind, decode_node};
use sconce_schemas::ids::Location;
use sconce_schemas::manifest::{LogPlace, SnapshotState, TreeRoot};
use sconce_schemas::{
    CheckpointId, ClusterAddress, DecodeError, Epoch, LineageIndex, ObjectName, ScoId, VolumeId,
};
use sconce_volume::ScoState;
use sconce_volume::stored::{LEAF_NUMBERS, StoredChild, StoredNode, map_node, sco_table_node};

use crate::claims::{Claim, Claims};
use crate::report::{NodeId, ProblemKind};
use crate::store::Store;
use crate::subject::{Spot, Subject, kind_of};

/// A stored node, by where it is.
type NodeKey = (VolumeId, CheckpointId, Epoch, u32);

/// A node that was read.
#[derive(Debug, Clone, Copy)]
struct Seen {
    /// Values below it; `None` where something below it could not be read.
    count: Option<u64>,
    /// All below it is in a kept root.
    is_kept: bool,
}

/// A tree that is walked.
#[derive(Debug, Clone)]
pub(crate) struct Tree {
    /// Whose, by its number.
    pub(crate) who: usize,
    /// Its lineage.
    pub(crate) lineage: Arc<[VolumeId]>,
    /// What people call it.
    pub(crate) of: String,
    pub(crate) purpose: Purpose,
}

/// What a tree is walked for.
#[derive(Debug, Clone)]
pub(crate) enum Purpose {
    /// What it has must be there.
    Kept,
    /// It must be whole.
    Whole,
    /// It was removed: what no child has, and was born from this place on, is still counted.
    Removed {
        born_from: LogPlace,
        children: Arc<[TreeRoot]>,
    },
    /// A moment that became a snapshot: what the child has not, and was born from this place on, is not counted yet.
    Joined {
        born_from: LogPlace,
        children: Arc<[TreeRoot]>,
    },
    /// The history's base: what it has must be there, and is not counted.
    Base,
}

/// The walk over all trees.
pub(crate) struct Walk<'a> {
    pub(crate) store: &'a Store,
    pub(crate) subjects: &'a mut [Subject],
    pub(crate) numbers: &'a HashMap<VolumeId, usize>,
    /// What each volume's SCO table says.
    pub(crate) tables: &'a mut [BTreeMap<ScoId, ScoState>],
    /// Map objects that something refers to.
    pub(crate) live: &'a mut HashSet<ObjectName>,
    pub(crate) claims: &'a mut Claims,
    /// Nodes read, of each volume.
    pub(crate) nodes: &'a mut [u64],
    /// Problems are told; a later window's walk finds the same ones.
    pub(crate) tells: bool,
    /// Volumes whose problems and claims count.
    pub(crate) chosen: &'a [bool],
    seen: HashMap<NodeKey, Seen>,
}

/// A value whose tree can be walked.
pub(crate) trait Walked: Sized + Copy {
    const TREE: TreeKind;
    fn node(
        place: NodePlace,
        reference: NodeRef,
        records: &[NodeRecord],
    ) -> Result<StoredNode<Self>, DecodeError>;
    /// Takes a leaf's values.
    fn leaf<'w>(
        walk: &'w mut Walk<'_>,
        tree: &'w Tree,
        reference: NodeRef,
        values: &'w [(u64, Self)],
    ) -> LocalBoxFuture<'w, ()>;
}

/// Numbers that a tree of this height covers.
const fn span(height: u8) -> u64 {
    LEAF_NUMBERS.saturating_pow(height as u32 + 1)
}

pub(crate) const fn tree_name(tree: TreeKind) -> &'static str {
    match tree {
        TreeKind::Map => "map",
        TreeKind::Scos => "sco_table",
    }
}

impl<'a> Walk<'a> {
    #[expect(clippy::too_many_arguments, reason = "each is a part of what a walk changes")]
    pub(crate) fn new(
        store: &'a Store,
        subjects: &'a mut [Subject],
        numbers: &'a HashMap<VolumeId, usize>,
        tables: &'a mut [BTreeMap<ScoId, ScoState>],
        live: &'a mut HashSet<ObjectName>,
        claims: &'a mut Claims,
        nodes: &'a mut [u64],
        chosen: &'a [bool],
        tells: bool,
    ) -> Self {
        Self {
            store,
            subjects,
            numbers,
            tables,
            live,
            claims,
            nodes,
            tells,
            chosen,
            seen: HashMap::new(),
        }
    }

    /// Walks all trees of a volume.
    pub(crate) async fn volume(&mut self, who: usize) {
        let Some(manifest) = self
            .subjects
            .get(who)
            .and_then(|subject| subject.manifest.clone())
        else {
            return;
        };
        let tree = |of: String, purpose| Tree {
            who,
            lineage: manifest.lineage.clone().into(),
            of,
            purpose,
        };
        self.table(who).await;
        let head = tree("head".to_owned(), Purpose::Kept);
        self.root::<Location>(&head, manifest.map, Some(manifest.allocated_clusters))
            .await;
        let (kept, removed): (Vec<_>, Vec<_>) = manifest
            .snapshots
            .iter()
            .partition(|snapshot| snapshot.removed.is_none());
        let (joined, kept): (Vec<_>, Vec<_>) =
            kept.into_iter().partition(|snapshot| snapshot.joined.is_some());
        for snapshot in kept {
            let kept = tree(format!("snapshot {:?}", snapshot.label.name), Purpose::Kept);
            self.root::<Location>(&kept, snapshot.map, Some(snapshot.allocated_clusters))
                .await;
        }
        for snapshot in removed {
            self.removed(&tree, snapshot).await;
        }
        for snapshot in joined {
            self.joined(&tree, snapshot).await;
        }
        // The history: moments begin at its points; what they refer to has the base, or was written since.
        for (number, point) in manifest.history.points.iter().enumerate() {
            let purpose = if number == 0 {
                Purpose::Base
            } else {
                Purpose::Whole
            };
            let point_tree = tree(format!("point {number} of the history"), purpose);
            self.root::<Location>(&point_tree, point.map, Some(point.allocated_clusters))
                .await;
        }
    }

    async fn joined(&mut self, tree: &impl Fn(String, Purpose) -> Tree, snapshot: &SnapshotState) {
        let Some(joined) = &snapshot.joined else { return };
        let of = format!("snapshot {:?}", snapshot.label.name);
        let child = tree(format!("{of}, what came from it"), Purpose::Whole);
        self.root::<Location>(&child, joined.child, None).await;
        let purpose = Purpose::Joined {
            born_from: joined.born_from,
            children: [joined.child].into(),
        };
        self.root::<Location>(
            &tree(of, purpose),
            snapshot.map,
            Some(snapshot.allocated_clusters),
        )
        .await;
    }

    /// Walks a volume's SCO table only.
    pub(crate) async fn table(&mut self, who: usize) {
        let Some(manifest) = self
            .subjects
            .get(who)
            .and_then(|subject| subject.manifest.as_ref())
        else {
            return;
        };
        let (root, count) = (manifest.scos, manifest.scos_count);
        let table = Tree {
            who,
            lineage: manifest.lineage.clone().into(),
            of: "SCO table".to_owned(),
            purpose: Purpose::Kept,
        };
        self.root::<ScoState>(&table, root, Some(count).filter(|count| *count > 0))
            .await;
    }

    async fn removed(&mut self, tree: &impl Fn(String, Purpose) -> Tree, snapshot: &SnapshotState) {
        let Some(removed) = &snapshot.removed else { return };
        let of = format!("removed snapshot {:?}", snapshot.label.name);
        for child in &removed.children {
            let child_tree = tree(format!("{of}, what came from it"), Purpose::Whole);
            self.root::<Location>(&child_tree, *child, None).await;
        }
        let purpose = Purpose::Removed {
            born_from: removed.born_from,
            children: removed.children.clone().into(),
        };
        self.root::<Location>(
            &tree(of, purpose),
            snapshot.map,
            Some(snapshot.allocated_clusters),
        )
        .await;
    }

    async fn root<V: Walked>(&mut self, tree: &Tree, root: TreeRoot, count: Option<u64>) {
        let found = match root.node {
            None => Some(0),
            Some(reference) => {
                let place = NodePlace {
                    tree: V::TREE,
                    level: root.height,
                    index: 0,
                };
                self.visit::<V>(tree, place, reference).await.count
            }
        };
        if let (Some(found), Some(count)) = (found, count)
            && found != count
        {
            let of = match V::TREE {
                TreeKind::Map => "clusters are mapped",
                TreeKind::Scos => "SCOs are in it",
            };
            let what = format!("{found} {of}, the manifest counts {count}");
            self.tell(tree.who, ProblemKind::Counter, &Spot::of(&tree.of), &what);
        }
    }

    fn visit<'w, V: Walked + 'w>(
        &'w mut self,
        tree: &'w Tree,
        place: NodePlace,
        reference: NodeRef,
    ) -> LocalBoxFuture<'w, Seen> {
        Box::pin(async move {
            let volume = tree.lineage.get(usize::from(reference.lineage.0)).copied();
            let key = (
                volume.unwrap_or_default(),
                reference.checkpoint,
                reference.epoch,
                reference.offset,
            );
            let before = self.seen.get(&key).copied();
            // What counts in another way than a kept root looks again at what none of those shares.
            let again = !matches!(tree.purpose, Purpose::Kept | Purpose::Whole);
            if let Some(seen) = before.filter(|seen| seen.is_kept || !again) {
                return seen;
            }
            let tells = self.tells;
            self.tells &= before.is_none();
            let count = self.below::<V>(tree, place, reference, before.is_none()).await;
            self.tells = tells;
            let seen = Seen {
                count,
                is_kept: matches!(tree.purpose, Purpose::Kept) || before.is_some_and(|before| before.is_kept),
            };
            self.seen.insert(key, seen);
            seen
        })
    }

    /// Reads a node and all below it; gives how many values there are.
    async fn below<V: Walked>(
        &mut self,
        tree: &Tree,
        place: NodePlace,
        reference: NodeRef,
        is_first: bool,
    ) -> Option<u64> {
        let node = self.load::<V>(tree, place, reference).await?;
        if let Some(nodes) = self.nodes.get_mut(tree.who).filter(|_| is_first) {
            *nodes += 1;
        }
        match node {
            StoredNode::Leaf(values) => {
                V::leaf(self, tree, reference, &values).await;
                Some(values.len() as u64)
            }
            StoredNode::Inner(children) => {
                let mut sum = Some(0_u64);
                for child in children {
                    let found = self.visit::<V>(tree, child.place, child.reference).await.count;
                    self.compare(tree, place, &child, found);
                    sum = sum.zip(found).map(|(sum, found)| sum.saturating_add(found));
                }
                sum
            }
        }
    }

    fn compare(&mut self, tree: &Tree, place: NodePlace, child: &StoredChild, found: Option<u64>) {
        let Some(found) = found.filter(|found| *found != child.count) else {
            return;
        };
        let spot = Spot {
            node: Some(node_id(place)),
            ..Spot::of(&tree.of)
        };
        let what = format!(
            "it counts {} values below its child {}, there are {found}",
            child.count, child.place.index
        );
        self.tell(tree.who, ProblemKind::Counter, &spot, &what);
    }

    /// Reads a node, and what it is a delta on.
    async fn load<V: Walked>(
        &mut self,
        tree: &Tree,
        place: NodePlace,
        reference: NodeRef,
    ) -> Option<StoredNode<V>> {
        let mut records = Vec::new();
        let mut next = Some(reference);
        let mut spot = Spot {
            node: Some(node_id(place)),
            ..Spot::of(&tree.of)
        };
        while let Some(at) = next {
            let record = self.record(tree, &mut spot, at).await?;
            let chain = record.base.map_or(0, |base| base.chain.saturating_add(1));
            if record.place != place || chain != at.chain {
                let what = format!(
                    "node {} of level {} ({}, {chain} deltas) is where it should be, with {} deltas",
                    record.place.index,
                    record.place.level,
                    tree_name(record.place.tree),
                    at.chain
                );
                self.tell(tree.who, ProblemKind::Mismatch, &spot, &what);
                return None;
            }
            next = record.base;
            records.push(record);
        }
        match V::node(place, reference, &records) {
            Ok(node) => Some(node),
            Err(error) => {
                self.tell(tree.who, kind_of(&error), &spot, &error.to_string());
                None
            }
        }
    }

    async fn record(&mut self, tree: &Tree, spot: &mut Spot, reference: NodeRef) -> Option<NodeRecord> {
        let Some(volume) = tree.lineage.get(usize::from(reference.lineage.0)).copied() else {
            let what = format!(
                "it is of volume {} of the lineage, which has {}",
                reference.lineage.0,
                tree.lineage.len()
            );
            self.tell(tree.who, ProblemKind::Mismatch, spot, &what);
            return None;
        };
        let name = ObjectName::Map {
            volume,
            id: reference.checkpoint,
            epoch: reference.epoch,
        };
        spot.object = Some(name);
        self.live.insert(name);
        let listed = self
            .numbers
            .get(&volume)
            .and_then(|number| self.subjects.get(*number));
        let copies = listed.and_then(|subject| subject.maps.get(&name)).cloned();
        let Some(copies) = copies else {
            self.tell(tree.who, ProblemKind::Missing, spot, "no back end has it");
            return None;
        };
        let (offset, length) = (u64::from(reference.offset), u64::from(reference.length));
        let answers = self.store.read(name, &copies, offset, length).await;
        let told = self.is_told(tree.who);
        let bytes = match self.subjects.get_mut(tree.who).filter(|_| told) {
            Some(subject) => subject.take(self.store, spot, answers)?,
            None => answers.good?,
        };
        match decode_node(volume, &reference, &bytes) {
            Ok(record) => Some(record),
            Err(error) => {
                self.tell(tree.who, kind_of(&error), spot, &error.to_string());
                None
            }
        }
    }

    fn is_told(&self, who: usize) -> bool {
        self.tells && self.chosen.get(who).copied().unwrap_or(false)
    }

    fn tell(&mut self, who: usize, kind: ProblemKind, spot: &Spot, what: &str) {
        if self.is_told(who)
            && let Some(subject) = self.subjects.get_mut(who)
        {
            subject.tell(kind, spot, what);
        }
    }

    /// The leaf of a map that covers a number, and its reference; `None`: there is none, or it cannot be read.
    async fn leaf_of(
        &mut self,
        tree: &Tree,
        root: TreeRoot,
        number: u64,
    ) -> Option<(NodeRef, Vec<(u64, Location)>)> {
        let mut place = NodePlace {
            tree: TreeKind::Map,
            level: root.height,
            index: 0,
        };
        let mut reference = root.node.filter(|_| number < span(root.height))?;
        loop {
            match self.load::<Location>(tree, place, reference).await? {
                StoredNode::Leaf(values) => return Some((reference, values)),
                StoredNode::Inner(children) => {
                    let index = number / span(place.level.saturating_sub(1));
                    let child = children.into_iter().find(|child| child.place.index == index)?;
                    (place, reference) = (child.place, child.reference);
                }
            }
        }
    }

    /// Notes what a kept map has.
    fn claim(&mut self, tree: &Tree, number: u64, location: Location, is_kept: bool, counts: bool) {
        if location.reads_zeros() || !self.chosen.get(tree.who).copied().unwrap_or(false) {
            return;
        }
        let spot = || Spot {
            sco: Some(location.sco()),
            slot: Some(location.slot().0),
            address: Some(ClusterAddress(number).byte_offset_checked()),
            ..Spot::of(&tree.of)
        };
        let Some(volume) = tree.lineage.get(usize::from(location.lineage().0)).copied() else {
            let what = format!(
                "it is in SCO {} of volume {} of the lineage, which has {}",
                location.sco(),
                location.lineage().0,
                tree.lineage.len()
            );
            self.tell(tree.who, ProblemKind::Mismatch, &spot(), &what);
            return;
        };
        let claim = Claim {
            address: ClusterAddress(number),
            crc: location.crc(),
            is_kept,
            is_counted: counts && tree.lineage.last() == Some(&volume),
        };
        if let Err(other) = self.claims.add(volume, location, claim) {
            let what = format!(
                "SCO {} holds address {} with CRC32C {:#010x} in this slot by another map",
                location.sco(),
                other.address.byte_offset_checked(),
                other.crc
            );
            self.tell(tree.who, ProblemKind::Mismatch, &spot(), &what);
        }
    }

    /// What of a leaf no child has, of the volume's own from a place in the log on.
    async fn alone(
        &mut self,
        tree: &Tree,
        reference: NodeRef,
        values: &[(u64, Location)],
        born_from: LogPlace,
        children: &[TreeRoot],
    ) -> Vec<(u64, Location)> {
        let own = LineageIndex(u16::try_from(tree.lineage.len().saturating_sub(1)).unwrap_or(u16::MAX));
        let is_old = |location: Location| {
            let at = LogPlace {
                sco: location.sco(),
                slots: location.slot().0,
            };
            at < born_from
        };
        let mut alone: Vec<(u64, Location)> = values
            .iter()
            .copied()
            .filter(|(_, location)| {
                !location.reads_zeros() && location.lineage() == own && !is_old(*location)
            })
            .collect();
        let tells = std::mem::replace(&mut self.tells, false);
        for child in children {
            let Some((number, _)) = alone.first() else { break };
            let Some((at, theirs)) = self.leaf_of(tree, *child, *number).await else {
                continue;
            };
            if at == reference {
                alone.clear();
            }
            alone.retain(|value| !theirs.contains(value));
        }
        self.tells = tells;
        alone
    }
}

fn node_id(place: NodePlace) -> NodeId {
    NodeId {
        tree: tree_name(place.tree),
        level: place.level,
        index: place.index,
    }
}

/// A byte offset of an address that came from a disk.
pub(crate) trait ByteOffsetChecked {
    fn byte_offset_checked(&self) -> u64;
}

impl ByteOffsetChecked for ClusterAddress {
    fn byte_offset_checked(&self) -> u64 {
        self.0.saturating_mul(sconce_schemas::CLUSTER_BYTES)
    }
}

impl Walked for Location {
    const TREE: TreeKind = TreeKind::Map;

    fn node(
        place: NodePlace,
        reference: NodeRef,
        records: &[NodeRecord],
    ) -> Result<StoredNode<Self>, DecodeError> {
        map_node(place, reference, records)
    }

    fn leaf<'w>(
        walk: &'w mut Walk<'_>,
        tree: &'w Tree,
        reference: NodeRef,
        values: &'w [(u64, Self)],
    ) -> LocalBoxFuture<'w, ()> {
        Box::pin(async move {
            match &tree.purpose {
                Purpose::Whole => {}
                Purpose::Kept | Purpose::Base => {
                    let counts = matches!(tree.purpose, Purpose::Kept);
                    for (number, location) in values {
                        walk.claim(tree, *number, *location, true, counts);
                    }
                }
                // It is still counted, and may be gone already.
                Purpose::Removed { born_from, children } => {
                    for (number, location) in walk.alone(tree, reference, values, *born_from, children).await
                    {
                        walk.claim(tree, number, location, false, true);
                    }
                }
                Purpose::Joined { born_from, children } => {
                    let alone = walk.alone(tree, reference, values, *born_from, children).await;
                    for value in values {
                        walk.claim(tree, value.0, value.1, true, !alone.contains(value));
                    }
                }
            }
        })
    }
}

impl Walked for ScoState {
    const TREE: TreeKind = TreeKind::Scos;

    fn node(
        place: NodePlace,
        reference: NodeRef,
        records: &[NodeRecord],
    ) -> Result<StoredNode<Self>, DecodeError> {
        sco_table_node(place, reference, records)
    }

    fn leaf<'w>(
        walk: &'w mut Walk<'_>,
        tree: &'w Tree,
        _: NodeRef,
        values: &'w [(u64, Self)],
    ) -> LocalBoxFuture<'w, ()> {
        if let Some(table) = walk.tables.get_mut(tree.who) {
            table.extend(values.iter().map(|(sco, state)| (ScoId(*sco), *state)));
        }
        Box::pin(std::future::ready(()))
    }
}
