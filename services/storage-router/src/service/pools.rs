//! The pools that this service knows, as the registry has them.
//!
//! Keeps: each pool that was asked for, with its back ends.
//! Order: the registry's record counts; settings only make a pool that is not there.
//! Crash: nothing is lost; pools are read again at the next start.
//! Knows no requests.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sconce_fragments::Policy;
use sconce_registry::{Registry, RegistryError};
use sconce_schemas::records::{PoolRecord, keys};
use sconce_schemas::wire::{Refusal, RefusalCode};

use super::keys::Cares;
use crate::checked::Checked;
use crate::pool::Pool;
use crate::workers::Workers;

/// The pools, by name.
pub(super) struct Pools {
    registry: Registry,
    backends: HashMap<String, Arc<Checked>>,
    workers: Workers,
    care: Cares,
    known: Mutex<HashMap<String, Arc<Pool>>>,
}

impl Pools {
    pub(super) fn new(
        registry: Registry,
        backends: HashMap<String, Arc<Checked>>,
        workers: Workers,
        care: Cares,
    ) -> Self {
        Self {
            registry,
            backends,
            workers,
            care,
            known: Mutex::default(),
        }
    }

    /// The pool of this name; one that was made since the start is found too.
    pub(super) async fn find(&self, name: &str) -> Result<Arc<Pool>, Refusal> {
        if let Some(pool) = self.known().get(name) {
            return Ok(Arc::clone(pool));
        }
        let unusable = |code, why: String| Refusal::retry(code, format!("pool {name:?}: {why}"));
        let record = match self.registry.get_record::<PoolRecord>(&keys::pool(name)).await {
            Ok(Some((record, _))) => record,
            Ok(None) | Err(RegistryError::Invalid(_)) => return Err(self.no_such_pool(name)),
            Err(error) => return Err(unusable(RefusalCode::Unavailable, error.to_string())),
        };
        let pool = Pool::new(record, &self.backends, self.workers.clone(), self.care.of(name))
            .map_err(|why| unusable(RefusalCode::Internal, why))?;
        Ok(Arc::clone(self.known().entry(name.to_owned()).or_insert(pool)))
    }

    /// All back ends, sorted by name.
    pub(super) fn backends(&self) -> Vec<Arc<Checked>> {
        let mut backends: Vec<_> = self.backends.values().cloned().collect();
        backends.sort_by(|a, b| a.name().cmp(b.name()));
        backends
    }

    /// Opens all pools of the registry that keep fragments, so that they are cared for before anybody asks for them.
    pub(super) async fn open_all(&self) -> Result<(), Refusal> {
        let listed = self.registry.list_records::<PoolRecord>(keys::POOLS).await;
        let listed = listed.map_err(|error| {
            Refusal::retry(
                RefusalCode::Unavailable,
                format!("cannot list the pools: {error}"),
            )
        })?;
        for (_, record, _) in listed {
            if Policy::of(&record).is_some() {
                self.find(&record.name).await?;
            }
        }
        Ok(())
    }

    /// The pools that were asked for.
    pub(super) fn all(&self) -> Vec<Arc<Pool>> {
        self.known().values().cloned().collect()
    }

    /// Waits for the repairs under way.
    pub(super) async fn settled(&self) {
        for pool in self.all() {
            pool.settled().await;
        }
    }

    fn no_such_pool(&self, name: &str) -> Refusal {
        let mut known: Vec<_> = self.known().keys().cloned().collect();
        known.sort_unstable();
        let text = format!("there is no pool {name:?}; there are: {}", known.join(", "));
        Refusal::reject(RefusalCode::NotFound, text)
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, Arc<Pool>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
