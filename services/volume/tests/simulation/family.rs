//! A family of volumes: clones of snapshots, and clones of clones, on one back end.
//!
//! Keeps: the volumes; the one whose turn it is has the back end.
//! Order: drawn from the seed. A clone begins once a manifest of its parent has the snapshot, as its owner waits for that; from
//! then on nobody removes the snapshot, as the registry sees to.
//! Crash: each volume has a disk and crashes of its own.

use std::collections::BTreeSet;

use sconce_schemas::{SnapshotId, VolumeId};

use crate::world::World;

/// Most volumes of a family: each is compared as a whole after every crash of its own.
const MEMBERS_MAX: usize = 4;

pub(crate) struct Family {
    chance: fastrand::Rng,
    members: Vec<World>,
    /// Who has the back end.
    at: usize,
    /// Clones that there were, and those of a clone.
    pub(crate) clones: usize,
    pub(crate) deep: usize,
}

impl Family {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            chance: fastrand::Rng::with_seed(seed ^ 0xFA),
            members: vec![World::new(seed)],
            at: 0,
            clones: 0,
            deep: 0,
        }
    }

    /// Runs `steps` steps, each of one of them, then lets everything finish and compares every byte of each.
    pub(crate) fn run(&mut self, steps: usize) {
        for _ in 0..steps {
            let at = self.chance.usize(0..self.members.len());
            self.turn_to(at).step();
            match self.chance.u32(0..30) {
                // Rather of the youngest.
                0..3 if self.members.len() < MEMBERS_MAX => {
                    let of = if self.chance.bool() {
                        self.members.len() - 1
                    } else {
                        at
                    };
                    self.clone_one(of);
                }
                3 if self.chance.u32(0..4) == 0 => self.delete_one(),
                _ => {}
            }
        }
        for at in 0..self.members.len() {
            self.turn_to(at).end();
        }
        // What each gave back in the end was nobody else's.
        for at in 0..self.members.len() {
            self.turn_to(at).compare();
        }
    }

    fn turn_to(&mut self, at: usize) -> &mut World {
        let before = &mut self.members[self.at];
        let (store, bundles) = (
            std::mem::take(&mut before.store),
            std::mem::take(&mut before.bundles),
        );
        self.at = at;
        let member = &mut self.members[at];
        (member.store, member.bundles) = (store, bundles);
        member
    }

    /// A clone of one of the member's snapshots, if it has one that can be cloned now.
    fn clone_one(&mut self, of: usize) {
        let parent = self.turn_to(of);
        if parent.asks.is_waiting() {
            return;
        }
        let Some(manifest) = parent.newest_manifest() else {
            return;
        };
        let is_clone = parent.begun_as.is_some();
        let stored = manifest.snapshots.iter().filter(|state| state.removed.is_none());
        let stored: BTreeSet<SnapshotId> = stored.map(|state| state.label.id).collect();
        let living = parent.volume.snapshots().into_iter().map(|known| known.label.id);
        let can: Vec<SnapshotId> = living.filter(|id| stored.contains(id)).collect();
        let Some(snapshot) = can.get(self.chance.usize(0..can.len().max(1))) else {
            return;
        };
        self.clones += 1;
        self.deep += usize::from(is_clone);
        let id = VolumeId::from_u128(self.clones as u128);
        let seed = self.chance.u64(..);
        let clone = self.members[of].clone_of(*snapshot, id, seed);
        self.members.push(clone);
    }

    /// Deletes a volume that nobody depends on: its objects are gone, and its parent may remove the snapshot.
    fn delete_one(&mut self) {
        let last = self.members.len() - 1;
        let Some(snapshot) = self.members[last]
            .begun_as
            .filter(|_| self.members[last].pinned.is_empty())
        else {
            return;
        };
        self.turn_to(0);
        let gone = self.members.swap_remove(last);
        self.members[0].store.retain(|name, _| name.volume() != gone.id);
        self.members[0].bundles.retain(|name, _| name.volume() != gone.id);
        let parent = gone.parent();
        let needed = |member: &World| member.parent() == parent && member.begun_as == Some(snapshot);
        if !self.members.iter().any(needed) {
            for member in self.members.iter_mut().filter(|member| Some(member.id) == parent) {
                member.pinned.remove(&snapshot);
            }
        }
    }
}
