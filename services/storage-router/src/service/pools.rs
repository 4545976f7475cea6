//! The pools that this service knows, as the registry has them.
//!
//! Keeps: each pool with its back ends, and what keeps it from serving others.
//! Order: the registry's record counts, from the moment on at which this service hears of it; settings and commands propose
//! one that is not there. A pool's keys are compared with what its record knows them by before it is served.
//! Crash: nothing is lost; pools are read again at the next start.
//! Knows no requests.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use anyhow::Context as _;
use sconce_registry::record::decode;
use sconce_registry::{Change, CommitError, Registry, RegistryError, Revision};
use sconce_schemas::records::{
    PlacementEntry, PlacementKnownRecord, PoolRecord, Record as _, VolumePhase, VolumeRecord, keys,
};
use sconce_schemas::wire::storage::PoolStatus;
use sconce_schemas::wire::{Refusal, RefusalCode};
use sconce_schemas::{NodeName, VolumeId};

use super::backends::Backends;
use super::keys::Cares;
use crate::pool::Pool;
use crate::settings::PoolSettings;
use crate::workers::Workers;

/// Commits of one change that may meet another's: storage-routers that start together note their keys together.
const ATTEMPTS: usize = 20;

/// A pool that is open.
struct Known {
    pool: Arc<Pool>,
    /// Its record was in the registry at this revision, or came later.
    revision: Revision,
}

/// The pools, by name.
pub(super) struct Pools {
    registry: Registry,
    backends: Backends,
    workers: Workers,
    care: Cares,
    known: Mutex<HashMap<String, Known>>,
    /// Pools that are not served, and why.
    unserved: Mutex<BTreeMap<String, String>>,
    /// Pools that are not served and whose placement changes, up to which version.
    shut: Mutex<BTreeMap<String, u64>>,
    /// Pools by older records, while requests by them are under way.
    older: Mutex<Vec<(String, Weak<Pool>)>>,
    /// Pools of which it was told that they are known here by their records.
    told: Mutex<HashMap<String, Weak<Pool>>>,
}

impl Pools {
    pub(super) fn new(registry: Registry, backends: Backends, workers: Workers, care: Cares) -> Self {
        Self {
            registry,
            backends,
            workers,
            care,
            known: Mutex::default(),
            unserved: Mutex::default(),
            shut: Mutex::default(),
            older: Mutex::default(),
            told: Mutex::default(),
        }
    }

    /// The pool of this name; one that was made a moment ago is found too.
    pub(super) async fn find(&self, name: &str) -> Result<Arc<Pool>, Refusal> {
        if let Some(pool) = self.get(name) {
            return Ok(pool);
        }
        let (record, revision) = match self.registry.get_record::<PoolRecord>(&keys::pool(name)).await {
            Ok(Some(found)) => found,
            Ok(None) | Err(RegistryError::Invalid(_)) => return Err(self.no_such_pool(name)),
            Err(error) => return Err(unusable(name, RefusalCode::Unavailable, &error.to_string())),
        };
        self.open(record, revision).await
    }

    /// The back ends.
    pub(super) const fn backends(&self) -> &Backends {
        &self.backends
    }

    /// Follows the registry: opens what is there, takes over what changed, lets go of what is not there any more. Whether all
    /// of it could be opened.
    pub(super) async fn look(&self) -> Result<bool, RegistryError> {
        self.backends.look().await?;
        let entries = self.registry.list(keys::POOLS, None, usize::MAX).await?;
        let (mut listed, mut shut) = (BTreeSet::new(), BTreeMap::new());
        let mut are_open = true;
        for entry in &entries {
            let name = entry.key.strip_prefix(keys::POOLS).unwrap_or(&entry.key);
            listed.insert(name);
            let opened = match decode::<PoolRecord>(entry) {
                Ok(record) => {
                    let changing = record.change.is_some().then_some(record.placement_version);
                    let opened = self.open(record, entry.revision).await;
                    if let Some(version) = changing.filter(|_| opened.is_err()) {
                        shut.insert(name.to_owned(), version);
                    }
                    opened.map(drop)
                }
                Err(error) => {
                    let why = error.to_string();
                    self.note(name, Some(&why));
                    Err(unusable(name, RefusalCode::Internal, &why))
                }
            };
            if let Err(refusal) = opened {
                are_open = false;
                tracing::debug!(%refusal, "a pool is not served");
            }
        }
        let gone = |name: &String, _: &mut Known| !listed.contains(name.as_str());
        let gone: Vec<(String, Known)> = self.known().extract_if(gone).collect();
        gone.into_iter()
            .for_each(|(name, known)| self.outlived(&name, &known));
        self.unserved().retain(|name, _| listed.contains(name.as_str()));
        *self.shut() = shut;
        Ok(are_open && self.backends.are_usable())
    }

    /// Opens a pool as its record says, or has the one that is open go on so.
    async fn open(&self, record: PoolRecord, revision: Revision) -> Result<Arc<Pool>, Refusal> {
        let name = record.name.clone();
        let (record, revision) = self.proven(record, revision).await?;
        let mut backends = self.backends.all();
        if record
            .backends
            .iter()
            .any(|entry| !backends.contains_key(&entry.backend))
        {
            // The pool's record may have come before its back ends'.
            let looked = self.backends.look().await;
            looked.map_err(|error| unusable(&name, RefusalCode::Unavailable, &error.to_string()))?;
            backends = self.backends.all();
        }
        let mut known = self.known();
        let before = known.get(&name);
        if let Some(newer) = before.filter(|before| before.revision > revision) {
            // Read before it changed.
            return Ok(Arc::clone(&newer.pool));
        }
        let opened = match before.map(|before| &before.pool) {
            Some(pool) if pool.is_as(&record, &backends) => Ok(Arc::clone(pool)),
            Some(pool) if pool.record().has_policy_of(&record) => pool.succeeded_by(record, &backends),
            // It was removed, and another one was made under its name.
            Some(_) | None => Pool::new(record, &backends, self.workers.clone(), self.care.of(&name)),
        };
        let (replaced, why) = match &opened {
            Ok(pool) => {
                let pool = Arc::clone(pool);
                (known.insert(name.clone(), Known { pool, revision }), None)
            }
            // What was served by an earlier record must not be by this one.
            Err(why) => (known.remove(&name), Some(why.as_str())),
        };
        drop(known);
        if let Some(replaced) = replaced
            && !opened
                .as_ref()
                .is_ok_and(|pool| Arc::ptr_eq(pool, &replaced.pool))
        {
            self.outlived(&name, &replaced);
        }
        self.note(&name, why);
        opened.map_err(|why| unusable(&name, RefusalCode::Internal, &why))
    }

    /// Notes that a pool is not served as this any more; requests by it may be under way.
    fn outlived(&self, name: &str, known: &Known) {
        known.pool.supersede();
        self.older().push((name.to_owned(), Arc::downgrade(&known.pool)));
    }

    /// The pool's record once the keys here are known to be the pool's; those that it does not have are noted in it.
    async fn proven(
        &self,
        record: PoolRecord,
        revision: Revision,
    ) -> Result<(PoolRecord, Revision), Refusal> {
        let name = record.name.clone();
        let (mut record, mut revision) = (record, revision);
        for _ in 0..ATTEMPTS {
            let proven = self.care.proven(&record).map_err(|why| {
                // What was served by an earlier record must not be by this one.
                if let Some(known) = self.known().remove(&name) {
                    self.outlived(&name, &known);
                }
                self.note(&name, Some(&why));
                unusable(&name, RefusalCode::Unavailable, &why)
            })?;
            if proven == record {
                return Ok((record, revision));
            }
            let key = keys::pool(&name);
            match self
                .registry
                .put_record(&key, Some(revision), &proven, None)
                .await
            {
                Ok(revision) => return Ok((proven, revision)),
                Err(CommitError::Conflict { .. } | CommitError::Unknown { .. }) => {}
                Err(error) => return Err(unusable(&name, RefusalCode::Unavailable, &error.to_string())),
            }
            match self.registry.get_record::<PoolRecord>(&key).await {
                Ok(Some(found)) => (record, revision) = found,
                Ok(None) => return Err(self.no_such_pool(&name)),
                Err(error) => return Err(unusable(&name, RefusalCode::Unavailable, &error.to_string())),
            }
        }
        let why = format!("its record was changed by others {ATTEMPTS} times in a row");
        Err(unusable(&name, RefusalCode::Conflict, &why))
    }

    /// Makes the pools of the settings that the registry does not have.
    pub(super) async fn propose(&self, pools: &[PoolSettings]) -> anyhow::Result<()> {
        for pool in pools {
            let wanted = pool.record();
            let made = self.make(&wanted).await.map_err(anyhow::Error::msg);
            let found = made.with_context(|| format!("pool {}", pool.name))?;
            // Where objects are is a matter of commands once it was changed by one.
            let was_placed = found.placement_version > PoolRecord::FIRST_PLACEMENT;
            let is_as_wanted = found.is_like(&wanted) || (was_placed && found.has_policy_of(&wanted));
            if !is_as_wanted {
                tracing::warn!(
                    pool = %pool.name, registry = ?found, settings = ?wanted,
                    "the settings describe the pool differently from the registry; the registry's record counts"
                );
            }
        }
        Ok(())
    }

    /// Makes a pool that a command asks for.
    pub(super) async fn create(&self, wanted: PoolRecord) -> Result<PoolRecord, Refusal> {
        let made = self.make(&wanted).await?;
        if made.is_like(&wanted) {
            return Ok(made);
        }
        let backends: Vec<&str> = made.backends.iter().map(|entry| &*entry.backend).collect();
        let text = format!(
            "pool {} is there already, with {} on {}; its policy is fixed: choose another name",
            made.name,
            made.protection,
            backends.join(", ")
        );
        Err(Refusal::reject(RefusalCode::Exists, text))
    }

    /// The record of the pool, made where there is none.
    async fn make(&self, wanted: &PoolRecord) -> Result<PoolRecord, Refusal> {
        let invalid = |why: String| Refusal::reject(RefusalCode::Invalid, why);
        let of_pool = |why: String| invalid(format!("pool {:?}: {why}", wanted.name));
        let _: NodeName = wanted.name.parse().map_err(|error| of_pool(format!("{error}")))?;
        if wanted.placement_version != PoolRecord::FIRST_PLACEMENT {
            let version = wanted.placement_version;
            return Err(of_pool(format!(
                "placement version {version}; right would be {} for a new pool",
                PoolRecord::FIRST_PLACEMENT
            )));
        }
        check_weights(&wanted.backends).map_err(of_pool)?;
        // Whoever has the keys says what they are known by.
        let wanted = &PoolRecord {
            keys: Vec::new(),
            ..wanted.clone()
        };
        let key = keys::pool(&wanted.name);
        for _ in 0..ATTEMPTS {
            match self.registry.get_record::<PoolRecord>(&key).await {
                Ok(Some((record, _))) => return Ok(record),
                Ok(None) => {}
                Err(error) => {
                    return Err(unusable(
                        &wanted.name,
                        RefusalCode::Unavailable,
                        &error.to_string(),
                    ));
                }
            }
            let proven = self.care.proven(wanted).map_err(of_pool)?;
            let care = self.care.of(&wanted.name);
            if wanted.encrypted && care.keys.newest().is_none() {
                return Err(of_pool(
                    "all its keys have writes = false; right would be one that writes".to_owned(),
                ));
            }
            let mut changes = self.backends.hold(&wanted.backends).await?;
            // After that: whoever makes a pool on one of them meanwhile conflicts with this commit.
            self.refuse_shared(wanted).await?;
            Pool::new(proven.clone(), &self.backends.all(), self.workers.clone(), care).map_err(invalid)?;
            changes.push(Change::put(&key, Some(Revision::ABSENT), proven.to_bytes()));
            match self.registry.commit(changes).await {
                Ok(_) => return Ok(proven),
                // The pool is there by now, or a back end changed.
                Err(CommitError::Conflict { .. } | CommitError::Unknown { .. }) => {}
                Err(error) => {
                    return Err(unusable(
                        &wanted.name,
                        RefusalCode::Unavailable,
                        &error.to_string(),
                    ));
                }
            }
        }
        let why = format!("its back ends were changed by others {ATTEMPTS} times in a row");
        Err(unusable(&wanted.name, RefusalCode::Conflict, &why))
    }

    /// Gives back ends of a pool other weights, or has others join it: announces that, and the rest is the mover's.
    pub(super) async fn place(
        &self,
        name: &str,
        weights: &[PlacementEntry],
        lost: &[String],
    ) -> Result<PoolRecord, Refusal> {
        let invalid = |why: String| Refusal::reject(RefusalCode::Invalid, format!("pool {name:?}: {why}"));
        let unavailable =
            |error: &dyn std::fmt::Display| unusable(name, RefusalCode::Unavailable, &error.to_string());
        let key = keys::pool(name);
        for _ in 0..ATTEMPTS {
            let found = self.registry.get_record::<PoolRecord>(&key).await;
            let (record, revision) = match found.map_err(|error| unavailable(&error))? {
                Some(found) => found,
                None => return Err(self.no_such_pool(name)),
            };
            let announced = record.announcing(weights, lost);
            check_placement(&announced, lost).map_err(invalid)?;
            let lost_now = record.change.iter().flat_map(|change| &change.lost);
            let lost_then = announced.change.iter().flat_map(|change| &change.lost);
            if announced.wanted() == record.wanted() && lost_now.eq(lost_then) {
                return Ok(record);
            }
            let is_there = |name: &str| record.backends.iter().any(|have| have.backend == name);
            // Or it comes back after it was given up: what was deleted meanwhile was not deleted there.
            let is_new = |entry: &&PlacementEntry| {
                let name = &entry.backend;
                !is_there(name) || (record.has_lost(name) && !announced.has_lost(name))
            };
            let joining: Vec<PlacementEntry> = announced.backends.iter().filter(is_new).cloned().collect();
            let mut changes = self.backends.hold(&joining).await?;
            // After that: whoever makes a pool on one of them meanwhile conflicts with this commit.
            self.refuse_shared(&announced).await?;
            self.backends.look().await.map_err(|error| unavailable(&error))?;
            let open = self.backends.all();
            for PlacementEntry { backend, .. } in &joining {
                let Some(checked) = open.get(backend) else {
                    let why = format!("back end {backend} cannot be reached here");
                    return Err(unusable(name, RefusalCode::Unavailable, &why));
                };
                // What was deleted while it was in no pool would be there again.
                let volumes = checked.list_volumes(None, 1).await;
                if let Some(volume) = volumes.map_err(|error| unavailable(&error))?.first() {
                    return Err(invalid(format!(
                        "back end {backend} has objects, of volume {volume}; right would be an empty one: \
                         sconce backend remove {backend}, wipe it, and add it again"
                    )));
                }
            }
            changes.push(Change::put(&key, Some(revision), announced.to_bytes()));
            match self.registry.commit(changes).await {
                Ok(_) => {
                    tracing::info!(pool = name, weights = ?announced.wanted(), "another placement was announced");
                    return Ok(announced);
                }
                // Somebody else changed it, or it is done and the answer was lost.
                Err(CommitError::Conflict { .. } | CommitError::Unknown { .. }) => {}
                Err(error) => return Err(unavailable(&error)),
            }
        }
        let why = format!("its record was changed by others {ATTEMPTS} times in a row");
        Err(unusable(name, RefusalCode::Conflict, &why))
    }

    /// Tells of each pool whose placement changes up to which version it is known here, once no request by an older one is under
    /// way. Whether all of that is told.
    pub(super) async fn tell_known(&self, node: &NodeName) -> Result<bool, CommitError> {
        self.older().retain(|(_, pool)| pool.strong_count() > 0);
        let mut are_told = true;
        for pool in self.all() {
            let PoolRecord {
                name,
                placement_version,
                change,
                ..
            } = pool.record();
            let is_told = |told: &Weak<Pool>| std::ptr::eq(told.as_ptr(), Arc::as_ptr(&pool));
            if change.is_none() || self.told().get(name).is_some_and(is_told) {
                continue;
            }
            if self.older().iter().any(|(older, _)| older == name) {
                are_told = false;
                continue;
            }
            let known = PlacementKnownRecord {
                placement_version: *placement_version,
            };
            let key = keys::placement_known(name, node);
            self.registry.put_record(&key, None, &known, None).await?;
            self.told().insert(name.clone(), Arc::downgrade(&pool));
        }
        // Where a pool is not served nothing is looked for in the wrong place.
        let shut = std::mem::take(&mut *self.shut());
        for (name, placement_version) in shut {
            if self.get(&name).is_some() {
                continue;
            }
            if self.older().iter().any(|(older, _)| *older == name) {
                are_told = false;
                self.shut().insert(name, placement_version);
                continue;
            }
            let known = PlacementKnownRecord { placement_version };
            let key = keys::placement_known(&name, node);
            self.registry.put_record(&key, None, &known, None).await?;
        }
        Ok(are_told)
    }

    /// Refuses a pool with a back end of another one: an object's name does not say which pool it is in, so what cares for
    /// one pool would repair the other's.
    async fn refuse_shared(&self, wanted: &PoolRecord) -> Result<(), Refusal> {
        let listed = self.registry.list_records::<PoolRecord>(keys::POOLS).await;
        let listed =
            listed.map_err(|error| unusable(&wanted.name, RefusalCode::Unavailable, &error.to_string()))?;
        for (_, other, _) in listed.iter().filter(|(_, other, _)| other.name != wanted.name) {
            let is_in = |name: &str| other.backends.iter().any(|entry| entry.backend == name);
            if let Some(shared) = wanted.backends.iter().find(|entry| is_in(&entry.backend)) {
                let text = format!(
                    "back end {} is pool {}'s; right for pool {} would be back ends that no other pool has",
                    shared.backend, other.name, wanted.name
                );
                return Err(Refusal::reject(RefusalCode::Invalid, text));
            }
        }
        Ok(())
    }

    /// Whether a volume is in a pool, and not being deleted: what cares for the pool leaves everything else alone.
    pub(super) async fn is_in(&self, pool: &str, volume: VolumeId) -> Result<bool, Refusal> {
        let found = self
            .registry
            .get_record::<VolumeRecord>(&keys::volume(volume))
            .await;
        match found {
            Ok(found) => {
                Ok(found
                    .is_some_and(|(record, _)| record.pool == pool && record.phase == VolumePhase::Active))
            }
            Err(RegistryError::Damaged { .. }) => Ok(false),
            Err(error) => Err(unusable(pool, RefusalCode::Unavailable, &error.to_string())),
        }
    }

    /// The names of the pools that are open. Whoever does something for long holds none of the others meanwhile.
    pub(super) fn names(&self) -> Vec<String> {
        self.known().keys().cloned().collect()
    }

    /// Those of them whose placement changes.
    pub(super) fn changing(&self) -> Vec<String> {
        let known = self.known();
        let changing = known
            .iter()
            .filter(|(_, known)| known.pool.record().change.is_some());
        changing.map(|(name, _)| name.clone()).collect()
    }

    /// A pool, if it is open.
    pub(super) fn get(&self, name: &str) -> Option<Arc<Pool>> {
        self.known().get(name).map(|known| Arc::clone(&known.pool))
    }

    /// The pools that are open.
    pub(super) fn all(&self) -> Vec<Arc<Pool>> {
        self.known()
            .values()
            .map(|known| Arc::clone(&known.pool))
            .collect()
    }

    /// The pools that are not served as they should be, sorted by name.
    pub(super) fn statuses(&self) -> Vec<PoolStatus> {
        let mut statuses = self.unserved().clone();
        for pool in self.all() {
            if let Some(keys) = self.care.lacking(pool.record()) {
                let why = format!("it lacks {keys}: what is encrypted with that cannot be read here");
                statuses.insert(pool.record().name.clone(), why);
            }
        }
        let statuses = statuses.into_iter();
        statuses.map(|(name, state)| PoolStatus { name, state }).collect()
    }

    /// Waits for the repairs under way.
    pub(super) async fn settled(&self) {
        for pool in self.all() {
            pool.settled().await;
        }
    }

    /// Notes why a pool is not served, or that it is. A change is told, and not each request.
    fn note(&self, pool: &str, why: Option<&str>) {
        let mut unserved = self.unserved();
        let before = match why {
            Some(why) => unserved.insert(pool.to_owned(), why.to_owned()),
            None => unserved.remove(pool),
        };
        match (before, why) {
            (before, Some(why)) if before.as_deref() != Some(why) => {
                tracing::error!(pool, why, "a pool is not served here");
            }
            (Some(_), None) => tracing::info!(pool, "the pool is served"),
            _ => {}
        }
    }

    fn no_such_pool(&self, name: &str) -> Refusal {
        let mut known: Vec<_> = self.known().keys().cloned().collect();
        known.sort_unstable();
        let text = format!("there is no pool {name:?}; there are: {}", known.join(", "));
        Refusal::reject(RefusalCode::NotFound, text)
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn shut(&self) -> MutexGuard<'_, BTreeMap<String, u64>> {
        self.shut.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn older(&self) -> MutexGuard<'_, Vec<(String, Weak<Pool>)>> {
        self.older.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn told(&self) -> MutexGuard<'_, HashMap<String, Weak<Pool>>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unserved(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        self.unserved.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn check_weights(weights: &[PlacementEntry]) -> Result<(), String> {
    match weights
        .iter()
        .find(|entry| entry.weight > PlacementEntry::WEIGHT_MAX)
    {
        Some(entry) => Err(format!(
            "back end {} with weight {}; right would be 0 to {}",
            entry.backend,
            entry.weight,
            PlacementEntry::WEIGHT_MAX
        )),
        None => Ok(()),
    }
}

/// What is wrong with a placement that was asked for.
fn check_placement(announced: &PoolRecord, lost: &[String]) -> Result<(), String> {
    let wanted = announced.wanted();
    check_weights(wanted)?;
    let is_leaving = |name: &&String| {
        wanted
            .iter()
            .any(|entry| entry.backend == **name && entry.weight == 0)
    };
    if let Some(kept) = lost.iter().find(|name| !is_leaving(name)) {
        return Err(format!(
            "back end {kept} is to be given up as lost, and takes objects; right would be weight 0"
        ));
    }
    let (takers, width) = (
        wanted.iter().filter(|entry| entry.weight > 0).count(),
        announced.protection.width(),
    );
    if takers < width {
        return Err(format!(
            "{takers} of its back ends would take objects, and {} needs {width}, each copy or fragment one of its own; \
             right would be another back end first: sconce pool place {} BACKEND=WEIGHT",
            announced.protection, announced.name
        ));
    }
    Ok(())
}

fn unusable(pool: &str, code: RefusalCode, why: &str) -> Refusal {
    Refusal::retry(code, format!("pool {pool:?}: {why}"))
}
