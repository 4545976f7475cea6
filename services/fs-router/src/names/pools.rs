//! Keeps: which storage pools and back ends there are, and what uses them.
//! Order: a volume's commit and the removal of its pool both rewrite the pool's record, a pool's creation and the removal of
//! one of its back ends the back end's: of the two, one conflicts, is planned again, and sees the other.
//! Crash: a record is there or gone; a removal can be given again.
//! Knows no back end's content: who removes a record leaves it.

use sconce_schemas::NodeName;
use sconce_schemas::records::{
    BackendRecord, ClaimRecord, DeepScrubRecord, MoveRecord, PlacementKnownRecord, PoolRecord, VolumePhase,
    VolumeRecord, keys,
};

use super::changes::{self, Changes, Plan, Seen};
use super::nodes::joined;
use super::{LIST_MAX, Names, NamesError};

/// The pool of volumes that name none, where there are several.
const DEFAULT_POOL: &str = "default";
/// Users that an error names.
const NAMED_MAX: usize = 5;

impl Names {
    /// The storage pools, sorted by name.
    ///
    /// # Errors
    /// The registry is unreachable.
    pub async fn pools(&self) -> Result<Vec<PoolRecord>, NamesError> {
        let found = self.read_many::<PoolRecord>(keys::POOLS, None, LIST_MAX).await?;
        Ok(found.into_iter().map(|seen| seen.record).collect())
    }

    /// The back ends, sorted by name.
    ///
    /// # Errors
    /// The registry is unreachable.
    pub async fn backends(&self) -> Result<Vec<BackendRecord>, NamesError> {
        let found = self
            .read_many::<BackendRecord>(keys::BACKENDS, None, LIST_MAX)
            .await?;
        Ok(found.into_iter().map(|seen| seen.record).collect())
    }

    /// The pool of this name.
    ///
    /// # Errors
    /// There is none; the registry is unreachable.
    pub async fn pool(&self, name: &str) -> Result<PoolRecord, NamesError> {
        let pools = self.pools().await?;
        let found = pools.iter().find(|pool| pool.name == name);
        found.cloned().ok_or_else(|| no_pool(name, &pools))
    }

    pub(super) async fn choose_pool(&self, wanted: Option<&str>) -> Result<String, NamesError> {
        let pools = self.pools().await?;
        let found = match (wanted, pools.as_slice()) {
            (None, [only]) => Some(only),
            (wanted, pools) => {
                let name = wanted.unwrap_or(DEFAULT_POOL);
                pools.iter().find(|pool| pool.name == name)
            }
        };
        found
            .map(|pool| pool.name.clone())
            .ok_or_else(|| no_pool(wanted.unwrap_or(DEFAULT_POOL), &pools))
    }

    /// Makes a commit conditional on a volume's pool being there.
    pub(super) async fn hold_pool(&self, changes: &mut Changes, pool: &str) -> Result<(), NamesError> {
        let key = keys::pool(pool);
        match self.patiently(async || self.registry.get(&key).await).await? {
            Some(entry) => changes.hold_entry(entry),
            None => return Err(no_pool(pool, &self.pools().await?)),
        }
        Ok(())
    }

    /// Removes a pool that no volume is in. Its back ends stay, with what is on them.
    ///
    /// # Errors
    /// There is none, or volumes are in it, those among them whose space is still being given back; the registry is
    /// unreachable.
    pub async fn remove_pool(&self, name: &str) -> Result<(), NamesError> {
        let at = || format!("pool {name}");
        self.change(at, async |attempt| {
            let Some(seen) = self.read::<PoolRecord>(keys::pool(name)).await? else {
                return match attempt.unsure {
                    true => Ok(Plan::done(())),
                    false => Err(no_pool(name, &self.pools().await?)),
                };
            };
            let volumes = self.volumes_in(name).await?;
            if !volumes.is_empty() {
                return Err(NamesError::PoolInUse {
                    pool: name.to_owned(),
                    volumes: self.named(&volumes).await,
                });
            }
            let mut changes = Changes::default();
            changes.remove(&seen);
            if let Some(scrub) = self.read::<DeepScrubRecord>(keys::deep_scrub(name)).await? {
                changes.remove(&scrub);
            }
            if let Some(moving) = self.read::<MoveRecord>(keys::moving(name)).await? {
                changes.remove(&moving);
            }
            // Another pool of this name counts its placements from the first one on.
            let known = keys::placements_known(name);
            for seen in self
                .read_many::<PlacementKnownRecord>(&known, None, LIST_MAX)
                .await?
            {
                changes.remove(&seen);
            }
            Ok(Plan { changes, outcome: () })
        })
        .await
    }

    /// How far a pool's deep scrub is, and who does it now; `None`: no storage-router has seen the pool yet.
    ///
    /// # Errors
    /// The registry is unreachable.
    pub async fn deep_scrub(
        &self,
        pool: &str,
    ) -> Result<Option<(DeepScrubRecord, Option<NodeName>)>, NamesError> {
        let Some(seen) = self.read::<DeepScrubRecord>(keys::deep_scrub(pool)).await? else {
            return Ok(None);
        };
        let claim = self.read::<ClaimRecord>(keys::deep_scrubber(pool)).await?;
        Ok(Some((seen.record, claim.map(|claim| claim.record.node))))
    }

    /// How far the move of a pool's objects is, or how the last one went, and who does it now; `None`: there was none.
    ///
    /// # Errors
    /// The registry is unreachable.
    pub async fn moving(&self, pool: &str) -> Result<Option<(MoveRecord, Option<NodeName>)>, NamesError> {
        let Some(seen) = self.read::<MoveRecord>(keys::moving(pool)).await? else {
            return Ok(None);
        };
        let claim = self.read::<ClaimRecord>(keys::mover(pool)).await?;
        Ok(Some((seen.record, claim.map(|claim| claim.record.node))))
    }

    /// Has a pool's deep scrub begin now. Whether none is under way already.
    ///
    /// # Errors
    /// There is no such pool; the registry is unreachable.
    pub async fn ask_deep_scrub(&self, name: &str) -> Result<bool, NamesError> {
        let pool = self.pool(name).await?;
        let at = || format!("the deep scrub of pool {name}");
        self.change(at, async |_| {
            let mut changes = Changes::default();
            let found = self.read::<DeepScrubRecord>(keys::deep_scrub(&pool.name)).await?;
            let is_free = match found {
                None => {
                    let now = self.clock.unix_micros();
                    let record = DeepScrubRecord {
                        begun_us: now,
                        ended_us: Some(now),
                        is_asked: true,
                        ..DeepScrubRecord::default()
                    };
                    changes.create(keys::deep_scrub(&pool.name), &record);
                    true
                }
                Some(seen) if seen.record.ended_us.is_none() => false,
                Some(seen) if seen.record.is_asked => true,
                Some(mut seen) => {
                    seen.record.is_asked = true;
                    changes.replace(&seen);
                    true
                }
            };
            Ok(Plan {
                changes,
                outcome: is_free,
            })
        })
        .await
    }

    /// Removes a back end that no pool uses. What is on it stays.
    ///
    /// # Errors
    /// There is none, or pools use it; the registry is unreachable.
    pub async fn remove_backend(&self, name: &str) -> Result<BackendRecord, NamesError> {
        let at = || format!("back end {name}");
        let mut removed = None;
        self.change(at, async |attempt| {
            let Some(seen) = self.read::<BackendRecord>(keys::backend(name)).await? else {
                if let (true, Some(removed)) = (attempt.unsure, removed.clone()) {
                    return Ok(Plan::done(removed));
                }
                let known = self.backends().await?;
                return Err(NamesError::NoBackend {
                    wanted: name.to_owned(),
                    known: joined(known.iter().map(|backend| backend.name.as_str())),
                });
            };
            let pools = self.pools().await?;
            let uses = |pool: &&PoolRecord| pool.backends.iter().any(|entry| entry.backend == name);
            let pools: Vec<&PoolRecord> = pools.iter().filter(uses).collect();
            if !pools.is_empty() {
                return Err(NamesError::BackendInUse {
                    backend: name.to_owned(),
                    pools: joined(pools.iter().map(|pool| pool.name.as_str())),
                });
            }
            let mut changes = Changes::default();
            changes.remove(&seen);
            removed = Some(seen.record.clone());
            Ok(Plan {
                changes,
                outcome: seen.record,
            })
        })
        .await
    }

    async fn volumes_in(&self, pool: &str) -> Result<Vec<VolumeRecord>, NamesError> {
        let mut volumes = Vec::new();
        self.each_entry(keys::VOLUMES, |entry| {
            // A record that cannot be read may be that of a volume in the pool.
            let Seen { record, .. } = changes::seen::<VolumeRecord>(entry)?;
            if record.pool == pool {
                volumes.push(record);
            }
            Ok(())
        })
        .await?;
        Ok(volumes)
    }

    /// The paths of volumes, and of those that have none why they are still there.
    async fn named(&self, volumes: &[VolumeRecord]) -> String {
        let mut named = Vec::new();
        for record in volumes.iter().take(NAMED_MAX) {
            named.push(match (record.phase, self.path_of(record.inode).await) {
                (VolumePhase::Active, Ok(path)) => path.to_string(),
                (VolumePhase::Active, Err(_)) => record.id.to_string(),
                (VolumePhase::Deleting, _) => format!("{} (its space is being given back)", record.id),
            });
        }
        if let more @ 1.. = volumes.len().saturating_sub(NAMED_MAX) {
            named.push(format!("and {more} more"));
        }
        named.join(", ")
    }
}

fn no_pool(wanted: &str, pools: &[PoolRecord]) -> NamesError {
    NamesError::NoPool {
        wanted: wanted.to_owned(),
        known: joined(pools.iter().map(|pool| pool.name.as_str())),
    }
}
