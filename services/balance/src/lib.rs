//! Which volume-router is to own a volume, and which is to keep its twin (docs/decisions/0173, 0174).
//!
//! Keeps: nothing; a [`Pool`] is what somebody saw of the registry, and may be old by the time it is asked.
//! Order: whoever acts on an answer changes the volume's record by compare-and-swap, so that an old view costs a try and no promise.
//! Crash: nothing.
//! Knows no registry, no clock, no IO: volume-routers and the `sconce` command give it what they know, and ask the same.

mod even;
mod io;
mod stable;
mod twins;

use std::collections::{BTreeMap, BTreeSet};

use sconce_schemas::records::{DtlMode, NodeRecord, TwinHost, VolumePhase, VolumeRecord};
use sconce_schemas::wire::Role;
use sconce_schemas::{NodeName, VolumeId};

pub use even::{Band, Give, Move};
pub use io::{Follow, FollowRule, IoWindow, Origin};
pub use stable::Stable;
pub use twins::TwinRank;

/// A volume-router that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Router {
    /// Its name.
    pub name: NodeName,
    /// Its process: another one has begun anew.
    pub pid: u32,
    /// Its machine.
    pub host: String,
    /// What is lost at one time with it.
    pub failure_domain: String,
}

impl From<&NodeRecord> for Router {
    fn from(record: &NodeRecord) -> Self {
        Self {
            name: record.name.clone(),
            pid: record.pid,
            host: record.host().to_owned(),
            failure_domain: record.failure_domain().to_owned(),
        }
    }
}

/// What of a volume's record decides where it is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// The volume.
    pub id: VolumeId,
    /// Who owns it.
    pub owner: NodeName,
    /// Since when, in microseconds since 1970 by the owner's clock; `None` where that is not known.
    pub owned_since_us: Option<u64>,
    /// Whether it wants a twin.
    pub wants_twin: bool,
    /// Where the twin is that the record relies on.
    pub twin: Option<NodeName>,
    /// Where an operator wants it.
    pub twin_host: Option<TwinHost>,
    /// Where it is being moved.
    pub moves_to: Option<NodeName>,
    /// It is moved only where an operator asks for that.
    pub pinned: bool,
}

impl From<&VolumeRecord> for Volume {
    fn from(record: &VolumeRecord) -> Self {
        // A volume that wants no twin has one for the time of a move.
        let mode = record
            .moving
            .as_ref()
            .map_or(record.dtl_mode, |moving| moving.mode);
        Self {
            id: record.id,
            owner: record.owner.clone(),
            owned_since_us: record.epoch_since_us,
            wants_twin: mode != DtlMode::None,
            twin: record.twin().cloned(),
            twin_host: record.twin_host.clone(),
            moves_to: record.moving.as_ref().map(|moving| moving.to.clone()),
            pinned: record.pinned,
        }
    }
}

impl Volume {
    /// Who has it, or is about to: what is on its way counts as being there, so that not everybody sends more.
    #[must_use]
    pub fn home(&self) -> &NodeName {
        self.moves_to.as_ref().unwrap_or(&self.owner)
    }

    /// Whether it wants a twin and has none that the record relies on.
    #[must_use]
    pub fn is_degraded(&self) -> bool {
        self.wants_twin && self.twin.is_none()
    }
}

/// How many volumes each volume-router has that may be given any.
pub type Loads = BTreeMap<NodeName, usize>;

/// The volume-routers and the volumes, as somebody saw them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pool {
    routers: BTreeMap<NodeName, Router>,
    drained: BTreeSet<NodeName>,
    volumes: BTreeMap<VolumeId, Volume>,
}

impl Pool {
    /// `nodes`: the services that run; `drained`: those that are to be given nothing; `volumes`: those that are not being deleted.
    pub fn new<'a>(
        nodes: impl IntoIterator<Item = &'a NodeRecord>,
        drained: BTreeSet<NodeName>,
        volumes: impl IntoIterator<Item = Volume>,
    ) -> Self {
        let routers = nodes.into_iter().filter(|node| node.role == Role::VolumeRouter);
        Self {
            routers: routers
                .map(|node| (node.name.clone(), Router::from(node)))
                .collect(),
            drained,
            volumes: volumes.into_iter().map(|volume| (volume.id, volume)).collect(),
        }
    }

    /// The volume of a record, if it counts: one that is being deleted does not.
    #[must_use]
    pub fn counts(record: &VolumeRecord) -> Option<Volume> {
        (record.phase == VolumePhase::Active).then(|| Volume::from(record))
    }

    /// The volume-routers that run, by their names.
    #[must_use]
    pub const fn routers(&self) -> &BTreeMap<NodeName, Router> {
        &self.routers
    }

    /// The nodes that are to be given nothing.
    #[must_use]
    pub const fn drained(&self) -> &BTreeSet<NodeName> {
        &self.drained
    }

    /// All volumes.
    pub fn volumes(&self) -> impl Iterator<Item = &Volume> {
        self.volumes.values()
    }

    /// A volume.
    #[must_use]
    pub fn volume(&self, id: VolumeId) -> Option<&Volume> {
        self.volumes.get(&id)
    }

    /// Changes a volume, or adds one.
    pub fn put(&mut self, volume: Volume) {
        self.volumes.insert(volume.id, volume);
    }

    /// A volume-router that runs and may be given something.
    #[must_use]
    pub fn may_take(&self, node: &NodeName) -> Option<&Router> {
        self.routers.get(node).filter(|_| !self.drained.contains(node))
    }

    /// All of them.
    fn takers(&self) -> impl Iterator<Item = &Router> {
        self.routers
            .values()
            .filter(|router| !self.drained.contains(&router.name))
    }

    /// How many volumes each has, or is about to have.
    #[must_use]
    pub fn loads(&self) -> Loads {
        let mut loads: Loads = self.takers().map(|router| (router.name.clone(), 0)).collect();
        for volume in self.volumes() {
            if let Some(count) = loads.get_mut(volume.home()) {
                *count += 1;
            }
        }
        loads
    }

    /// How many write buffers' worth of streams each volume-router keeps: the volumes that it owns, and the twins.
    #[must_use]
    pub fn streams(&self) -> BTreeMap<&NodeName, usize> {
        let mut streams = BTreeMap::new();
        for volume in self.volumes() {
            for node in [Some(volume.home()), volume.twin.as_ref()].into_iter().flatten() {
                *streams.entry(node).or_default() += 1;
            }
        }
        streams
    }

    /// Whether a node gives or gets a volume right now.
    #[must_use]
    pub fn is_in_move(&self, node: &NodeName) -> bool {
        self.volumes().any(|volume| {
            let to = volume.moves_to.as_ref();
            to.is_some_and(|to| to == node || volume.owner == *node)
        })
    }

    /// Whether no owner is gone whose volume a running host of its twin is about to take over.
    #[must_use]
    pub fn is_calm(&self) -> bool {
        let runs = |node: &NodeName| self.routers.contains_key(node);
        !self
            .volumes()
            .any(|volume| !runs(&volume.owner) && volume.twin.as_ref().is_some_and(runs))
    }

    /// Whether a volume that its owner gave to `to` could have its twin as well as now: not in the new owner's failure domain where it
    /// is in another one than the owner's now, and where an operator wants it.
    #[must_use]
    pub fn keeps_promises(&self, volume: &Volume, to: &NodeName) -> bool {
        if !volume.wants_twin {
            return true;
        }
        let wanted = volume.twin_host.as_ref();
        if wanted.is_some_and(|wanted| wanted.node == *to && volume.owner != *to) {
            return false;
        }
        self.may_be_apart(volume, to) || !self.may_be_apart(volume, &volume.owner)
    }

    /// Whether the twin of a volume that `owner` owns could be in another failure domain.
    fn may_be_apart(&self, volume: &Volume, owner: &NodeName) -> bool {
        let Some(domain) = self.routers.get(owner).map(|router| &router.failure_domain) else {
            return false;
        };
        let wanted = volume.twin_host.as_ref();
        let wanted = wanted.filter(|wanted| wanted.only || self.may_take(&wanted.node).is_some());
        let is_wanted = |router: &Router| wanted.is_none_or(|wanted| wanted.node == router.name);
        self.takers()
            .any(|router| router.name != *owner && is_wanted(router) && router.failure_domain != *domain)
    }
}

#[cfg(test)]
mod tests;
