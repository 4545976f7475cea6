//! What all threads of the volume-router share.
//!
//! Keeps: the node's components, and which of its volumes is where.
//! Order: none.
//! Crash: nothing; the registry and the write buffer tell a new process all of it.
//! Knows no operations.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sconce_bus::Role;
use sconce_registry::{Registry, RegistryError};
use sconce_runtime::{Clock, Events};
use sconce_schemas::records::{NodeRecord, Place, keys};
use sconce_schemas::{ByteLen, NodeName, VolumeId};
use sconce_volume::{CheckpointPolicy, ScrubPolicy, SweepPolicy};

use crate::actor::{ShardCounts, VolumeHandle};
use crate::background::{Background, Guests};
use crate::device::{Device, LocalCheckpoints};
use crate::gate::Gate;
use crate::placement::{IoCounts, Seen};
use crate::settings::{DtlSettings, PlacementSettings};
use crate::twin::Relied;

/// The node.
pub(crate) struct Node {
    /// Its name.
    pub(crate) name: NodeName,
    /// Where it is.
    pub(crate) place: Place,
    /// Its threads that serve volumes.
    pub(crate) shards: usize,
    /// What each of them counts.
    pub(crate) counts: Vec<Arc<ShardCounts>>,
    /// As many operations as each of them takes in.
    pub(crate) operations_max: usize,
    /// The write buffer.
    pub(crate) device: Device,
    /// Local copies of checkpoints.
    pub(crate) checkpoints: Arc<LocalCheckpoints>,
    /// The registry.
    pub(crate) registry: Registry,
    /// The time.
    pub(crate) clock: Clock,
    /// What happens is told here.
    pub(crate) events: Events,
    /// Work beside the volumes.
    pub(crate) background: Background,
    /// Counts what guests send.
    pub(crate) guests: Guests,
    /// Whether the node may serve.
    pub(crate) gate: Arc<Gate>,
    /// Memory that a volume's resident map may take.
    pub(crate) map_memory: ByteLen,
    /// When checkpoints are due.
    pub(crate) checkpoint: CheckpointPolicy,
    /// When scrubbing is worth it.
    pub(crate) scrub: ScrubPolicy,
    /// When what was left behind is looked for.
    pub(crate) sweep: SweepPolicy,
    /// How twins are waited for.
    pub(crate) dtl: DtlSettings,
    /// When volumes are moved by themselves.
    pub(crate) placement: PlacementSettings,
    /// How long acknowledgements are held at most for a snapshot of several volumes.
    pub(crate) group_hold: Duration,
    /// How long another node is gone before its deletions are taken over.
    pub(crate) adopt_after: Duration,
    /// The volumes that have an actor.
    pub(crate) volumes: Volumes,
    /// Other nodes' volumes that rely on this node's twins.
    pub(crate) relied: Relied,
    /// The pool's volumes.
    pub(crate) seen: Seen,
    /// What clients ask of the node's volumes.
    pub(crate) io: IoCounts,
}

impl Node {
    /// The shard that serves a volume: what `NodeRecord::endpoints` promises to clients.
    pub(crate) fn shard_of(&self, volume: VolumeId) -> usize {
        let [a, b, c, d, e, f, g, h, ..] = volume.0;
        let first = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
        usize::try_from(first % self.shards.max(1) as u64).unwrap_or(0)
    }
}

/// The volumes that have an actor, on any shard.
#[derive(Default)]
pub(crate) struct Volumes {
    by_id: Mutex<HashMap<VolumeId, VolumeHandle>>,
}

impl Volumes {
    fn lock(&self) -> MutexGuard<'_, HashMap<VolumeId, VolumeHandle>> {
        self.by_id.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A volume's handle, if it has an actor that lives.
    pub(crate) fn get(&self, volume: VolumeId) -> Option<VolumeHandle> {
        self.lock()
            .get(&volume)
            .filter(|handle| handle.is_alive())
            .cloned()
    }

    /// All volumes that have an actor.
    pub(crate) fn all(&self) -> Vec<(VolumeId, VolumeHandle)> {
        self.lock()
            .iter()
            .map(|(id, handle)| (*id, handle.clone()))
            .collect()
    }

    pub(crate) fn insert(&self, volume: VolumeId, handle: VolumeHandle) {
        self.lock().insert(volume, handle);
    }

    /// Takes a volume out, unless another actor has taken its place.
    pub(crate) fn remove(&self, volume: VolumeId, handle: &VolumeHandle) {
        let mut volumes = self.lock();
        if volumes.get(&volume).is_some_and(|known| known == handle) {
            volumes.remove(&volume);
        }
    }
}

/// The nodes of a role that run, as their records say.
pub(crate) async fn running(registry: &Registry, role: Role) -> Result<Vec<NodeRecord>, RegistryError> {
    let nodes = registry.nodes().await?.into_iter();
    Ok(nodes.filter(|node| node.role == role).collect())
}

/// The nodes that are to be given nothing.
pub(crate) async fn drained(registry: &Registry) -> Result<BTreeSet<NodeName>, RegistryError> {
    let drained = registry.list(keys::DRAINED, None, usize::MAX).await?;
    let names = drained
        .iter()
        .filter_map(|entry| entry.key.strip_prefix(keys::DRAINED));
    Ok(names.filter_map(|name| name.parse().ok()).collect())
}
