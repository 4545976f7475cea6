//! The pool's volumes, as their records were last seen.
//!
//! Keeps: of each volume's record what decides where the volume and its twin are to be; which hosts this node asked for twins that no record
//! names yet.
//! Order: that of the registry's changes; a listing replaces everything at once, so that nobody ever sees a part of the pool.
//! Crash: the next start lists the records anew; before that there is no pool.
//! Knows no registry.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use sconce_balance::{Pool, Volume};
use sconce_schemas::records::{VolumeRecord, keys};
use sconce_schemas::{NodeName, VolumeId};

/// Lives with the node.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// `None`: they were not listed yet.
    volumes: Option<BTreeMap<VolumeId, Volume>>,
    /// This node's volumes whose twin is being made, and where.
    chosen: HashMap<VolumeId, NodeName>,
}

impl Seen {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All records were listed.
    pub(crate) fn listed(&self, volumes: impl IntoIterator<Item = Volume>) {
        let volumes = volumes.into_iter().map(|volume| (volume.id, volume));
        self.lock().volumes = Some(volumes.collect());
    }

    /// A volume's record changed.
    pub(crate) fn note(&self, record: &VolumeRecord) {
        let mut inner = self.lock();
        let Some(volumes) = &mut inner.volumes else { return };
        match Pool::counts(record) {
            Some(volume) => drop(volumes.insert(record.id, volume)),
            None => drop(volumes.remove(&record.id)),
        }
    }

    /// A record is gone.
    pub(crate) fn gone(&self, key: &str) {
        if let Some(volumes) = &mut self.lock().volumes {
            volumes.retain(|volume, _| keys::volume(*volume) != key);
        }
    }

    /// The volumes; `None` before they were listed.
    pub(crate) fn volumes(&self) -> Option<Vec<Volume>> {
        let inner = self.lock();
        inner
            .volumes
            .as_ref()
            .map(|volumes| volumes.values().cloned().collect())
    }

    /// A twin of this node's volume is being made there: the record says so only once it is in sync.
    pub(crate) fn choose(&self, volume: VolumeId, host: NodeName) {
        self.lock().chosen.insert(volume, host);
    }

    /// It is given up, or its record says where it is.
    pub(crate) fn forget_choice(&self, volume: VolumeId) {
        self.lock().chosen.remove(&volume);
    }

    /// What each volume-router keeps, and is about to keep of this node's volumes: their own volumes, and twins.
    pub(crate) fn streams(&self) -> BTreeMap<NodeName, usize> {
        let inner = self.lock();
        let mut streams = BTreeMap::new();
        let volumes = inner.volumes.iter().flat_map(BTreeMap::values);
        let kept = volumes.flat_map(|volume| [Some(volume.home()), volume.twin.as_ref()]);
        for node in kept.flatten().chain(inner.chosen.values()) {
            *streams.entry(node.clone()).or_default() += 1;
        }
        streams
    }
}
