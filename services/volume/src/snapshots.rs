//! Snapshots: retained roots of the map, and from which of them the head comes.
//!
//! Keeps: each snapshot's label, size, place in the log and map; what was removed and is not reaped yet.
//! Order: a snapshot's parent is the one that the volume came from when it was taken: a tree, and the head one of its
//! leaves. A cluster is in a root because it was born there, or in its parent and not changed since; so a snapshot that
//! two roots come from stays, hidden, when it is removed, until one of them is left.
//! Crash: a record in the log makes, removes or goes back to one; manifests hold the table with stored maps.
//! Knows no storage and no names of volumes.

use std::collections::{BTreeMap, VecDeque};

use sconce_schemas::ids::Location;
use sconce_schemas::log_record::{LogRecord, SnapshotLabel, check_metadata, check_snapshot_name};
use sconce_schemas::manifest::{JoinedState, LogPlace, Manifest, RemovedState, SnapshotState, TreeRoot};
use sconce_schemas::wire::{Refusal, RefusalCode};
use sconce_schemas::{BatchSeq, ByteLen, DecodeError, SnapshotId, VolumeSize};

use crate::replay::RecordPlace;
use crate::tree::{FrozenTree, StoredUpTo, Tree};
use crate::volume::Volume;

/// What the labels of all snapshots of a volume may take together: the table is in every manifest.
const TABLE_BYTES_MAX: usize = 8 << 20;
/// What a snapshot takes in a manifest beside its name and metadata.
const STATE_BYTES: usize = 320;

/// Ids above this one are the engine's own.
const UNSEEN_FROM: u64 = 1 << 63;

/// Ids of snapshots that are gone and are remembered: a request that is sent again, because its answer was lost, finds its
/// id among them.
const GONE_MAX: usize = 1024;

/// A request that becomes a record in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// Keep the volume as it is.
    Take {
        /// Chosen by whoever asks: asking again with the same id changes nothing.
        id: SnapshotId,
        /// Unique in the volume.
        name: String,
        /// What people want written down.
        metadata: BTreeMap<String, String>,
    },
    /// Keep the volume as it is if that is confirmed, and hold acknowledgements until then (`proposal.rs`).
    Propose {
        /// Chosen by whoever asks, anew for each try.
        id: SnapshotId,
        /// Unique in the volume.
        name: String,
        /// What people want written down.
        metadata: BTreeMap<String, String>,
    },
    /// A proposed snapshot is one from now on.
    Confirm {
        /// Which.
        id: SnapshotId,
    },
    /// A proposed snapshot goes.
    Withdraw {
        /// Which.
        id: SnapshotId,
    },
    /// Remove a snapshot.
    Remove {
        /// Its name.
        name: String,
    },
    /// Remove this snapshot, whatever has its name by now; asking again changes nothing.
    RemoveExactly {
        /// Which.
        id: SnapshotId,
    },
    /// Make the volume what a snapshot is.
    RollBack {
        /// The snapshot's name.
        to: String,
        /// Id for the state before; asking again with the same id changes nothing.
        id: SnapshotId,
        /// Name under which the state before is kept; `None`: it is not.
        keep: Option<String>,
    },
    /// Let the volume take writes, or none.
    ReadOnly(bool),
    /// Let any moment of the last so many microseconds be had; 0: of none.
    History {
        /// The window.
        window_us: u64,
    },
    /// Make the volume, a clone, independent of the volumes that it comes from (`flatten.rs`).
    Flatten,
}

/// A snapshot, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// Its label.
    pub label: SnapshotLabel,
    /// The volume's size then.
    pub size: VolumeSize,
    /// Clusters that were mapped then, in bytes.
    pub allocated: ByteLen,
    /// Whether it survives the loss of every router.
    pub synced: bool,
}

#[derive(Debug)]
pub(crate) struct Snapshot {
    pub(crate) label: SnapshotLabel,
    pub(crate) size: VolumeSize,
    /// Where in the log it was taken.
    pub(crate) at: LogPlace,
    pub(crate) parent: Option<SnapshotId>,
    pub(crate) map: Tree<Location>,
    /// Where its map is stored, once a manifest says so.
    pub(crate) stored: Option<TreeRoot>,
    /// It was removed, and more than one root comes from it, or moments of the history may.
    hidden: bool,
    /// It is a part of a snapshot of several volumes, and not confirmed.
    pub(crate) proposed: bool,
    /// It has nothing of an ancestor of the volume.
    pub(crate) own: bool,
    /// It was removed and is still to be reaped.
    pub(crate) removed: Option<Removed>,
    /// The batch with its record, or, of a moment, the last batch that it has.
    pub(crate) taken_in: BatchSeq,
    /// The batch with the record of its removal.
    removed_in: BatchSeq,
    /// It was a moment of the history, and what only it has is still to be counted as live.
    pub(crate) joined: Option<Joined>,
    /// A moment that no manifest has yet: nobody may know of it, since a crash takes it away.
    is_fresh: bool,
}

/// A moment that became a snapshot after others had come from it.
#[derive(Debug)]
pub(crate) struct Joined {
    /// What lies before this place is its parent's too.
    pub(crate) born_from: LogPlace,
    /// The root that had come from it, as it was: in a slice of one, as those of a removed one are.
    pub(crate) child: [Tree<Location>; 1],
    /// Where it is stored, once a manifest says so.
    stored: Option<TreeRoot>,
}

/// A removed snapshot: what no other root referred to at that moment is dead.
#[derive(Debug)]
pub(crate) struct Removed {
    /// What lies before this place is its parent's too.
    pub(crate) born_from: LogPlace,
    /// The roots that came from it, as they were.
    pub(crate) children: Vec<Tree<Location>>,
    /// Where they are stored, once a manifest says so.
    pub(crate) stored: Option<Vec<TreeRoot>>,
}

/// The snapshots of a volume.
#[derive(Debug, Default)]
pub(crate) struct Snapshots {
    /// In the order in which they were taken.
    list: Vec<Snapshot>,
    /// The one that the head comes from.
    parent: Option<SnapshotId>,
    /// Where that was taken.
    parent_at: LogPlace,
    /// The newest ids of what was forgotten, oldest first.
    gone: VecDeque<SnapshotId>,
    /// The last id of the engine's own: given once each, or a checkpoint that froze one would give its maps to another.
    unseen: u64,
    /// With a history: one that was removed in a later batch than this stays, hidden, since moments may go back to it.
    pub(crate) hold_after: Option<BatchSeq>,
}

/// Frozen maps of a snapshot that no manifest has stored yet.
#[derive(Debug)]
pub(crate) struct FrozenSnapshot {
    pub(crate) id: SnapshotId,
    pub(crate) map: FrozenTree<Location>,
    pub(crate) children: Vec<FrozenTree<Location>>,
    pub(crate) joined: Option<FrozenTree<Location>>,
}

/// Where a checkpoint stored the maps of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredSnapshot {
    pub(crate) id: SnapshotId,
    pub(crate) map: TreeRoot,
    pub(crate) children: Vec<TreeRoot>,
    pub(crate) joined: Option<TreeRoot>,
}

impl Snapshots {
    /// The table that a manifest holds.
    pub(crate) fn restore(manifest: &Manifest) -> Self {
        let list = manifest.snapshots.iter().map(|state| Snapshot {
            label: state.label.clone(),
            size: state.size,
            at: state.at,
            parent: state.parent,
            map: Tree::stored(state.map, state.allocated_clusters),
            stored: Some(state.map),
            hidden: state.hidden,
            proposed: state.proposed,
            own: state.own,
            removed: state.removed.as_ref().map(|removed| Removed {
                born_from: removed.born_from,
                children: removed
                    .children
                    .iter()
                    .map(|root| Tree::stored(*root, 0))
                    .collect(),
                stored: Some(removed.children.clone()),
            }),
            taken_in: state.taken_in,
            removed_in: state.removed_in,
            joined: state.joined.as_ref().map(|joined| Joined {
                born_from: joined.born_from,
                child: [Tree::stored(joined.child, 0)],
                stored: Some(joined.child),
            }),
            is_fresh: false,
        });
        let list: Vec<Snapshot> = list.collect();
        let newest = list.iter().map(|snapshot| snapshot.label.id.0).max();
        let mut snapshots = Self {
            list,
            gone: manifest.gone_snapshots.iter().copied().collect(),
            unseen: newest.unwrap_or_default().max(UNSEEN_FROM),
            ..Self::default()
        };
        snapshots.come_from(manifest.parent);
        snapshots
    }

    /// The head comes from this snapshot now.
    fn come_from(&mut self, parent: Option<SnapshotId>) {
        self.parent = parent;
        let parent = parent.and_then(|id| self.get(id));
        self.parent_at = parent.map_or_else(LogPlace::default, |parent| parent.at);
    }

    /// The newest ids of snapshots that are gone, for a manifest.
    pub(crate) fn gone(&self) -> Vec<SnapshotId> {
        self.gone.iter().copied().collect()
    }

    /// Whether there is, or lately was, a snapshot of this id.
    fn knew(&self, id: SnapshotId) -> bool {
        self.get(id).is_some() || self.gone.contains(&id)
    }

    /// Discards of which a walk is still to find what died.
    pub(crate) fn unseen(&self) -> usize {
        let unseen = |snapshot: &&Snapshot| snapshot.label.id.0 > UNSEEN_FROM;
        self.list.iter().filter(unseen).count()
    }

    pub(crate) const fn parent(&self) -> Option<SnapshotId> {
        self.parent
    }

    /// The snapshots that exist, in the order in which they were taken.
    pub(crate) fn living(&self) -> impl Iterator<Item = &Snapshot> {
        self.kept()
            .filter(|snapshot| !snapshot.hidden && !snapshot.is_fresh && !snapshot.proposed)
    }

    /// Those that may have something of an ancestor, removed ones too.
    pub(crate) fn borrowing(&self) -> impl Iterator<Item = &Snapshot> {
        self.list.iter().filter(|snapshot| !snapshot.own)
    }

    /// The oldest that is proposed and not confirmed.
    pub(crate) fn first_proposed(&self) -> Option<SnapshotId> {
        let proposed = self.kept().find(|snapshot| snapshot.proposed && !snapshot.hidden);
        proposed.map(|snapshot| snapshot.label.id)
    }

    /// Whether a snapshot of this name exists, or is about to.
    fn is_taken(&self, name: &str) -> bool {
        self.kept()
            .any(|snapshot| !snapshot.hidden && snapshot.label.name == name)
    }

    /// Removed ones that are kept for moments of the history.
    pub(crate) fn held(&self) -> impl Iterator<Item = &Snapshot> {
        self.kept().filter(|snapshot| self.holds(snapshot))
    }

    fn holds(&self, snapshot: &Snapshot) -> bool {
        snapshot.hidden && self.hold_after.is_some_and(|after| snapshot.removed_in > after)
    }

    /// The snapshots that keep what they refer to: hidden ones too.
    fn kept(&self) -> impl Iterator<Item = &Snapshot> {
        self.list.iter().filter(|snapshot| snapshot.removed.is_none())
    }

    pub(crate) fn get(&self, id: SnapshotId) -> Option<&Snapshot> {
        self.list.iter().find(|snapshot| snapshot.label.id == id)
    }

    /// The one of this id, confirmed or not, that was not removed.
    pub(crate) fn standing(&self, id: SnapshotId) -> Option<&Snapshot> {
        self.get(id)
            .filter(|snapshot| !snapshot.hidden && snapshot.removed.is_none())
    }

    pub(crate) fn get_mut(&mut self, id: SnapshotId) -> Option<&mut Snapshot> {
        self.list.iter_mut().find(|snapshot| snapshot.label.id == id)
    }

    /// The first snapshot of which a walk is to find what died with it, or came to life.
    pub(crate) fn first_unwalked(&self) -> Option<SnapshotId> {
        let is_unwalked = |snapshot: &&Snapshot| snapshot.joined.is_some() || snapshot.removed.is_some();
        self.list.iter().find(is_unwalked).map(|found| found.label.id)
    }

    /// Every map that is kept here, also those that a walk is still to look at.
    pub(crate) fn all_maps_mut(&mut self) -> impl Iterator<Item = &mut Tree<Location>> {
        self.list.iter_mut().flat_map(|snapshot| {
            let removed = snapshot.removed.iter_mut();
            let children = removed.flat_map(|removed| &mut removed.children);
            let joined = snapshot.joined.iter_mut().flat_map(|joined| &mut joined.child);
            std::iter::once(&mut snapshot.map).chain(children).chain(joined)
        })
    }

    /// Memory that these maps' own loaded nodes take.
    pub(crate) fn resident_bytes(&self) -> u64 {
        let of = |snapshot: &Snapshot| {
            let removed = snapshot.removed.iter().flat_map(|removed| &removed.children);
            let joined = snapshot.joined.iter().flat_map(|joined| &joined.child);
            snapshot.map.resident_bytes() + removed.chain(joined).map(Tree::resident_bytes).sum::<u64>()
        };
        self.list.iter().map(of).sum()
    }

    /// Lets go of loaded nodes of these maps if together they take more than `budget` bytes; gives what is left.
    pub(crate) fn evict(&mut self, budget: u64, stored: StoredUpTo) -> u64 {
        let mut resident: u64 = self.all_maps_mut().map(|map| map.resident_bytes()).sum();
        if resident <= budget {
            return resident;
        }
        for map in self.all_maps_mut() {
            let before = map.resident_bytes();
            resident -= before - map.evict(0, stored).min(before);
            if resident <= budget {
                break;
            }
        }
        resident
    }

    /// A removed snapshot was reaped.
    pub(crate) fn forget(&mut self, id: SnapshotId) {
        self.list.retain(|snapshot| snapshot.label.id != id);
        if id.0 <= UNSEEN_FROM {
            self.gone.push_back(id);
            let more = self.gone.len().saturating_sub(GONE_MAX);
            self.gone.drain(..more);
        }
    }

    fn named(&self, name: &str) -> Option<&Snapshot> {
        self.living().find(|snapshot| snapshot.label.name == name)
    }

    /// The maps of all that is kept.
    pub(crate) fn maps(&self) -> impl Iterator<Item = &Tree<Location>> {
        self.kept().map(|snapshot| &snapshot.map)
    }

    /// Whether what the head has at `location`, of this volume's own, is in its parent too.
    pub(crate) fn hold(&self, location: Location) -> bool {
        is_before(location, self.parent_at)
    }

    /// The table for a manifest; maps that are not stored yet are filled in with [`fill_in`].
    pub(crate) fn save(&self) -> Vec<SnapshotState> {
        let saved = |snapshot: &Snapshot| SnapshotState {
            label: snapshot.label.clone(),
            size: snapshot.size,
            allocated_clusters: snapshot.map.count(),
            at: snapshot.at,
            parent: snapshot.parent,
            map: snapshot.stored.unwrap_or_default(),
            hidden: snapshot.hidden,
            proposed: snapshot.proposed,
            own: snapshot.own,
            removed: snapshot.removed.as_ref().map(|removed| RemovedState {
                born_from: removed.born_from,
                children: removed.stored.clone().unwrap_or_default(),
            }),
            taken_in: snapshot.taken_in,
            removed_in: snapshot.removed_in,
            joined: snapshot.joined.as_ref().map(|joined| JoinedState {
                born_from: joined.born_from,
                child: joined.stored.unwrap_or_default(),
            }),
        };
        self.list.iter().map(saved).collect()
    }

    /// What a checkpoint has to store.
    pub(crate) fn freeze(&self) -> Vec<FrozenSnapshot> {
        let is_due = |snapshot: &&Snapshot| {
            snapshot.stored.is_none()
                || snapshot
                    .removed
                    .as_ref()
                    .is_some_and(|removed| removed.stored.is_none())
                || snapshot
                    .joined
                    .as_ref()
                    .is_some_and(|joined| joined.stored.is_none())
        };
        let frozen = |snapshot: &Snapshot| FrozenSnapshot {
            id: snapshot.label.id,
            map: snapshot.map.freeze(),
            children: snapshot
                .removed
                .iter()
                .flat_map(|removed| removed.children.iter().map(Tree::freeze))
                .collect(),
            joined: snapshot.joined.as_ref().map(|joined| joined.child[0].freeze()),
        };
        self.list.iter().filter(is_due).map(frozen).collect()
    }

    /// A manifest names what a checkpoint stored: the maps need not be in memory any more.
    pub(crate) fn stored(&mut self, stored: &[StoredSnapshot]) {
        for StoredSnapshot {
            id,
            map,
            children,
            joined,
        } in stored
        {
            let Some(snapshot) = self.get_mut(*id) else {
                continue;
            };
            let count = snapshot.map.count();
            snapshot.map = Tree::stored(*map, count);
            snapshot.stored = Some(*map);
            snapshot.is_fresh = false;
            if let (Some(state), Some(root)) = (&mut snapshot.joined, joined) {
                state.child = [Tree::stored(*root, 0)];
                state.stored = Some(*root);
            }
            // One that was removed after the checkpoint froze it had no children then.
            if let Some(removed) = snapshot
                .removed
                .as_mut()
                .filter(|removed| removed.children.len() == children.len())
            {
                removed.children = children.iter().map(|root| Tree::stored(*root, 0)).collect();
                removed.stored = Some(children.clone());
            }
        }
    }

    fn bytes(&self) -> usize {
        self.list
            .iter()
            .map(|snapshot| label_bytes(&snapshot.label))
            .sum()
    }

    fn retain(&mut self, snapshot: Snapshot) {
        let id = snapshot.label.id;
        self.list.push(snapshot);
        self.come_from(Some(id));
    }

    /// Removes a snapshot: at once, or once no more than one root comes from it and the history does not need it.
    fn remove(&mut self, id: SnapshotId, head: &Tree<Location>, batch: BatchSeq) {
        let Some(snapshot) = self.get_mut(id) else { return };
        (snapshot.hidden, snapshot.removed_in) = (true, batch);
        self.take_out_if_free(id, head);
    }

    fn take_out_if_free(&mut self, id: SnapshotId, head: &Tree<Location>) {
        let mut next = Some(id);
        while let Some(id) = next.take() {
            let children = self.children_of(id);
            let Some(snapshot) = self.get(id) else { return };
            if children > 1 || self.holds(snapshot) {
                return;
            }
            let parent = snapshot.parent;
            self.take_out(id, head);
            // One that was only kept because of this one goes too.
            next = parent.filter(|parent| self.get(*parent).is_some_and(|parent| parent.hidden));
        }
    }

    /// The history needs less: removed snapshots that were only held for it go.
    pub(crate) fn release(&mut self, head: &Tree<Location>) {
        let hidden = self.kept().filter(|snapshot| snapshot.hidden);
        let ids: Vec<SnapshotId> = hidden.map(|snapshot| snapshot.label.id).collect();
        for id in ids {
            if self.get(id).is_some_and(|snapshot| snapshot.removed.is_none()) {
                self.take_out_if_free(id, head);
            }
        }
    }

    /// Makes a moment of the history a snapshot: between what came before it in the log and what came after. Its
    /// map is what the head was after batch `taken_in`, at `at`; `own`: it has nothing of an ancestor.
    pub(crate) fn join(
        &mut self,
        label: SnapshotLabel,
        size: VolumeSize,
        map: Tree<Location>,
        own: bool,
        at: RecordPlace,
        head: &Tree<Location>,
    ) {
        // The log is of one piece: whatever was retained next after the moment came from it.
        let is_behind = |snapshot: &Snapshot| snapshot.removed.is_none() && snapshot.taken_in > at.batch;
        let next = self.list.iter().position(is_behind);
        let id = label.id;
        let (parent, child) = match next.and_then(|next| self.list.get_mut(next)) {
            Some(next) => (next.parent.replace(id), next.map.freeze()),
            None => (self.parent.replace(id), head.freeze()),
        };
        let born_from = parent.and_then(|parent| self.get(parent)).map(|parent| parent.at);
        let moment = Snapshot {
            label,
            size,
            at: at.at,
            parent,
            map,
            stored: None,
            hidden: false,
            proposed: false,
            own,
            removed: None,
            taken_in: at.batch,
            removed_in: BatchSeq::NONE,
            joined: Some(Joined {
                born_from: born_from.unwrap_or_default(),
                child: [Tree::thaw(&child)],
                stored: None,
            }),
            is_fresh: true,
        };
        self.list.insert(next.unwrap_or(self.list.len()), moment);
        self.come_from(self.parent);
    }

    /// What a joined moment alone has was counted.
    pub(crate) fn counted(&mut self, id: SnapshotId) {
        if let Some(snapshot) = self.get_mut(id) {
            snapshot.joined = None;
        }
    }

    /// The head let go of a range of which not everything is in memory: what died with that is found by a walk, as if
    /// a snapshot of the head before were removed.
    pub(crate) fn drop_unseen(
        &mut self,
        before: &FrozenTree<Location>,
        after: &FrozenTree<Location>,
        size: VolumeSize,
        own: bool,
    ) {
        let born_from = self.parent_at;
        let id = self.unseen.max(UNSEEN_FROM) + 1;
        self.unseen = id;
        self.list.push(Snapshot {
            label: SnapshotLabel {
                id: SnapshotId(id),
                name: String::new(),
                created_us: 0,
                metadata: BTreeMap::new(),
            },
            size,
            at: LogPlace::default(),
            parent: None,
            map: Tree::thaw(before),
            stored: None,
            hidden: true,
            proposed: false,
            own,
            removed: Some(Removed {
                born_from,
                children: vec![Tree::thaw(after)],
                stored: None,
            }),
            taken_in: BatchSeq::NONE,
            removed_in: BatchSeq::NONE,
            joined: None,
            is_fresh: false,
        });
    }

    /// Roots that come from a snapshot.
    fn children_of(&self, id: SnapshotId) -> usize {
        let snapshots = self.kept().filter(|child| child.parent == Some(id)).count();
        snapshots + usize::from(self.parent == Some(id))
    }

    /// Marks a snapshot as removed; what came from it comes from its parent now.
    fn take_out(&mut self, id: SnapshotId, head: &Tree<Location>) {
        let Some(parent) = self.get(id).map(|snapshot| snapshot.parent) else {
            return;
        };
        let born_from = parent.and_then(|parent| self.get(parent)).map(|parent| parent.at);
        let mut children = Vec::new();
        for child in self
            .list
            .iter_mut()
            .filter(|child| child.removed.is_none() && child.parent == Some(id))
        {
            children.push(Tree::thaw(&child.map.freeze()));
            child.parent = parent;
        }
        if self.parent == Some(id) {
            children.push(Tree::thaw(&head.freeze()));
            self.come_from(parent);
        }
        if let Some(snapshot) = self.get_mut(id) {
            snapshot.removed = Some(Removed {
                born_from: born_from.unwrap_or_default(),
                children,
                stored: None,
            });
        }
    }
}

/// Writes where a checkpoint stored maps into the table that was saved when it was frozen.
pub(crate) fn fill_in(table: &mut [SnapshotState], stored: &[StoredSnapshot]) {
    for StoredSnapshot {
        id,
        map,
        children,
        joined,
    } in stored
    {
        for state in table.iter_mut().filter(|state| state.label.id == *id) {
            state.map = *map;
            if let (Some(state), Some(root)) = (&mut state.joined, joined) {
                state.child = *root;
            }
            if let Some(removed) = &mut state.removed {
                removed.children.clone_from(children);
            }
        }
    }
}

/// Whether a location of the volume's own was given out before `place`.
pub(crate) fn is_before(location: Location, place: LogPlace) -> bool {
    let at = LogPlace {
        sco: location.sco(),
        slots: location.slot().0,
    };
    at < place
}

fn label_bytes(label: &SnapshotLabel) -> usize {
    let metadata: usize = label
        .metadata
        .iter()
        .map(|(key, value)| key.len() + value.len() + 8)
        .sum();
    STATE_BYTES + label.name.len() + metadata
}

/// What is answered to whoever reads a snapshot that was removed meanwhile.
pub(crate) fn snapshot_gone() -> Refusal {
    reject(RefusalCode::NotFound, "the snapshot was removed")
}

pub(crate) fn reject(code: RefusalCode, text: impl Into<String>) -> Refusal {
    Refusal::reject(code, text.into())
}

impl Volume {
    /// The snapshots, oldest first.
    #[must_use]
    pub fn snapshots(&self) -> Vec<SnapshotInfo> {
        let info = |snapshot: &Snapshot| SnapshotInfo {
            label: snapshot.label.clone(),
            size: snapshot.size,
            allocated: ByteLen(snapshot.map.count() * sconce_schemas::CLUSTER_BYTES),
            synced: snapshot.stored.is_some(),
        };
        self.snapshots.living().map(info).collect()
    }

    /// Id and size of everything that is kept beside the head: the snapshots, and those that were removed but are still
    /// needed to tell what others share.
    #[must_use]
    pub fn kept_roots(&self) -> Vec<(SnapshotId, VolumeSize)> {
        let kept = self.snapshots.kept();
        kept.map(|snapshot| (snapshot.label.id, snapshot.size)).collect()
    }

    /// The id and size of the snapshot of this name.
    #[must_use]
    pub fn snapshot_named(&self, name: &str) -> Option<(SnapshotId, VolumeSize)> {
        let found = self.snapshots.named(name);
        found.map(|snapshot| (snapshot.label.id, snapshot.size))
    }

    /// What of a request is to be written into the log; `None`: it was done before.
    pub(crate) fn judge(&self, ask: &Ask) -> Result<Option<LogRecord>, Refusal> {
        match ask {
            Ask::Take { id, name, metadata } => {
                let known = self.snapshots.get(*id);
                // One that is gone again meanwhile was taken all the same.
                if known.map_or_else(|| self.snapshots.knew(*id), |known| known.label.name == *name) {
                    return Ok(None);
                }
                let snapshot = self.new_label(*id, name, metadata)?;
                Ok(Some(LogRecord::SnapshotTaken { snapshot }))
            }
            Ask::Propose { id, name, metadata } => self.judge_proposal(*id, name, metadata),
            Ask::Confirm { id } => self.judge_confirmation(*id),
            Ask::Withdraw { id } => self.judge_withdrawal(*id),
            Ask::Flatten => self.judge_flatten(),
            Ask::Remove { name } => {
                let (id, _) = self.snapshot_named(name).ok_or_else(|| self.unknown(name))?;
                Ok(Some(LogRecord::SnapshotRemoved { id }))
            }
            Ask::RemoveExactly { id } => match self.snapshots.get(*id) {
                Some(snapshot) if snapshot.hidden || snapshot.removed.is_some() => Ok(None),
                // A crash would forget it, and find its removal in the log.
                Some(snapshot) if snapshot.is_fresh => {
                    let text = format!("snapshot {id}, of a moment, is being stored");
                    Err(Refusal::retry(RefusalCode::Unavailable, text))
                }
                Some(_) => Ok(Some(LogRecord::SnapshotRemoved { id: *id })),
                None => {
                    let text = format!("there is no snapshot {id}: it was removed");
                    Err(reject(RefusalCode::NotFound, text))
                }
            },
            Ask::RollBack { to, id, keep } => {
                if self.snapshots.knew(*id) {
                    return Ok(None);
                }
                let (target, _) = self.snapshot_named(to).ok_or_else(|| self.unknown(to))?;
                if self.read_only {
                    return Err(reject(RefusalCode::ReadOnly, "the volume takes no writes"));
                }
                let name = keep.clone().unwrap_or_else(|| format!("before-rollback-{id}"));
                let before = self.new_label(*id, &name, &BTreeMap::new())?;
                Ok(Some(LogRecord::RolledBack {
                    to: target,
                    before,
                    keep: keep.is_some(),
                }))
            }
            Ask::ReadOnly(read_only) if *read_only == self.read_only => Ok(None),
            Ask::ReadOnly(read_only) => Ok(Some(LogRecord::ReadOnly {
                read_only: *read_only,
            })),
            Ask::History { window_us } if *window_us == self.history.window_us() => Ok(None),
            Ask::History { window_us } => Ok(Some(LogRecord::History {
                window_us: *window_us,
            })),
        }
    }

    pub(crate) fn new_label(
        &self,
        id: SnapshotId,
        name: &str,
        metadata: &BTreeMap<String, String>,
    ) -> Result<SnapshotLabel, Refusal> {
        let invalid = |error: DecodeError| reject(RefusalCode::Invalid, error.to_string());
        check_snapshot_name(name).map_err(invalid)?;
        check_metadata(metadata).map_err(invalid)?;
        if id.0 >= UNSEEN_FROM {
            let text = format!("snapshot id {id} is not below 8000000000000000");
            return Err(reject(RefusalCode::Invalid, text));
        }
        if self.snapshots.get(id).is_some() || self.snapshots.is_taken(name) || self.moments.is_taken(name) {
            return Err(reject(
                RefusalCode::Exists,
                format!("snapshot {name:?} exists already; remove it or take another name"),
            ));
        }
        let label = SnapshotLabel {
            id,
            name: name.to_owned(),
            created_us: self.now_us,
            metadata: metadata.clone(),
        };
        if self.snapshots.bytes() + label_bytes(&label) > TABLE_BYTES_MAX {
            let text = format!(
                "the volume has {} snapshots, as many as fit a manifest; remove some first",
                self.snapshots.living().count()
            );
            return Err(reject(RefusalCode::NoSpace, text));
        }
        Ok(label)
    }

    fn unknown(&self, name: &str) -> Refusal {
        let known = self.snapshots.living().map(|known| known.label.name.as_str());
        let mut names: Vec<&str> = known.collect();
        let more = names.len().saturating_sub(5);
        names.drain(..more);
        let newest = if names.is_empty() {
            "it has none".to_owned()
        } else {
            format!("the newest are {}", names.join(", "))
        };
        reject(
            RefusalCode::NotFound,
            format!("there is no snapshot {name:?}; {newest}"),
        )
    }

    /// Does what a record at `at` in the log says: now, or in recovery.
    ///
    /// # Errors
    /// A record that does not fit the volume: a bug, or damage that no CRC saw.
    pub(crate) fn apply_record(&mut self, record: LogRecord, at: RecordPlace) -> Result<(), String> {
        match record {
            LogRecord::SnapshotTaken { snapshot } => self.retain(snapshot, at, false),
            LogRecord::SnapshotProposed { snapshot } => self.retain(snapshot, at, true),
            LogRecord::SnapshotConfirmed { id } => {
                let Some(proposed) = self.snapshots.get_mut(id) else {
                    return Err(format!(
                        "invariant 6: snapshot {id} is confirmed and was never proposed"
                    ));
                };
                proposed.proposed = false;
            }
            LogRecord::SnapshotRemoved { id } => {
                if self.snapshots.get(id).is_none() {
                    return Err(format!(
                        "invariant 6: snapshot {id} is removed and was never taken"
                    ));
                }
                self.snapshots.remove(id, &self.map, at.batch);
            }
            LogRecord::RolledBack { to, before, keep } => {
                let Some(target) = self.snapshots.get(to) else {
                    return Err(format!(
                        "invariant 6: snapshot {to} is gone back to and was never taken"
                    ));
                };
                let map = Tree::go_on_from(&target.map.freeze());
                let (size, own) = (target.size, target.own);
                let id = before.id;
                self.retain(before, at, false);
                self.map = map;
                self.size = size;
                self.flatten_anew(own);
                self.renewal.head_replaced();
                self.snapshots.come_from(Some(to));
                if !keep {
                    self.snapshots.remove(id, &self.map, at.batch);
                }
            }
            LogRecord::ReadOnly { read_only } => self.read_only = read_only,
            LogRecord::History { window_us } => self.set_history(window_us),
            LogRecord::Flatten => self.begin_flatten(),
        }
        Ok(())
    }

    fn retain(&mut self, label: SnapshotLabel, at: RecordPlace, proposed: bool) {
        let snapshot = Snapshot {
            label,
            size: self.size,
            at: at.at,
            parent: self.snapshots.parent,
            map: Tree::thaw(&self.map.freeze()),
            stored: None,
            hidden: false,
            proposed,
            own: self.is_own_alone(),
            removed: None,
            taken_in: at.batch,
            removed_in: BatchSeq::NONE,
            joined: None,
            is_fresh: false,
        };
        self.snapshots.retain(snapshot);
    }
}
