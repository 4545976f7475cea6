//! Moves: what a pool's placement map wants elsewhere goes there, by one storage-router at a time (docs/decisions/0203).
//!
//! Keeps: in the registry, how far each pool's move is, and under a lease who does it.
//! Order: (1) other weights are announced: objects are looked for on all back ends, and placed as before. When every storage-router
//! knows that, (2) new objects are placed by the new weights. When every one does, (3) all that is elsewhere moves. When a whole walk
//! has left nothing, (4) the back ends that take no objects leave the pool.
//! Crash: the claim ends with its lease, or is taken over by this node's next start; the move goes on after the last batch that was
//! recorded.
//! Knows no copies and no fragments.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use futures_util::future::join_all;
use sconce_bus::Role;
use sconce_registry::{Change, CommitError, Registry, Revision};
use sconce_runtime::{Clock, Stop};
use sconce_schemas::records::{MoveRecord, NodeRecord, PlacementKnownRecord, PoolRecord, Record as _, keys};
use sconce_schemas::{NodeName, ObjectName};
use tokio::time::Instant;

use super::handler::Handler;
use super::rounds::{Claim, due, pause, told, without_conflict};
use crate::pool::{Batch, Moved, Pool, Walk};
use crate::settings::MoveSettings;

/// How long one wait for a change of a pool lasts.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// How soon it is looked again whether every storage-router knows.
const ASK_EVERY: Duration = Duration::from_millis(200);
/// How long a back end that is away, or the registry, makes a move wait before it is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// Whoever asked where an object is has read it there within this time, if nothing hangs; who comes later finds it in its place.
const READ_WITHIN: Duration = Duration::from_secs(2);
/// How long a wait is at most before the claim is looked at.
const KEEP_EVERY: Duration = Duration::from_secs(3);
/// Objects that are removed where they were before others move.
const EXTRAS_MAX: usize = 256;
/// Objects of a batch that move at once: a bucket answers late, and each is in memory.
const AT_ONCE: usize = 4;

/// Moves objects.
pub(super) struct Moving {
    pub(super) handler: Rc<Handler>,
    pub(super) registry: Registry,
    pub(super) settings: MoveSettings,
    pub(super) clock: Clock,
    pub(super) stop: Stop,
}

/// A pool's move that this service does.
struct Move {
    pool: String,
    claim: Claim,
    record: MoveRecord,
    revision: Revision,
}

/// Why a move does not go on.
enum Ended {
    /// Everything is where it belongs, or nothing is to be moved.
    Over,
    /// Something could not be moved yet.
    Left,
    /// The stop was requested.
    Stopped,
}

impl Moving {
    /// Moves what is to be moved until the stop is requested.
    pub(super) async fn run(self) {
        loop {
            let after = self.registry.revision().await;
            let mut is_left = after.is_err();
            for name in self.handler.pools.changing() {
                match self.move_pool(&name).await {
                    Ok(Ended::Over) => {}
                    Ok(Ended::Left) => is_left = true,
                    Ok(Ended::Stopped) => return,
                    Err(error) => {
                        tracing::info!(pool = name, %error, "the move of its objects goes on later");
                        is_left = true;
                    }
                }
            }
            let changed = async {
                match after {
                    Ok(after) if !is_left => self.changed(after).await,
                    _ => tokio::time::sleep(RETRY_AFTER).await,
                }
            };
            tokio::select! {
                biased;
                () = self.stop.requested() => return,
                () = changed => {}
            }
        }
    }

    /// Returns when a pool's record may be another, and this service follows it.
    async fn changed(&self, after: Revision) {
        let watched = self.registry.watch(keys::POOLS, after, LOOK_EVERY).await;
        if watched.is_err() {
            tokio::time::sleep(RETRY_AFTER).await;
        }
        // The one who follows the registry has been told at the same time.
        tokio::time::sleep(ASK_EVERY).await;
    }

    /// A pool's move, if nobody else does it, as far as it goes.
    async fn move_pool(&self, pool: &str) -> anyhow::Result<Ended> {
        let claim = Claim::take(&self.registry, &keys::mover(pool), &self.handler.node).await?;
        let Some(claim) = claim else {
            return Ok(Ended::Left);
        };
        let found = self
            .registry
            .get_record::<MoveRecord>(&keys::moving(pool))
            .await?;
        let (record, revision) = found.unwrap_or((MoveRecord::default(), Revision::ABSENT));
        let mut moving = Move {
            pool: pool.to_owned(),
            claim,
            record,
            revision,
        };
        let done = self.go_on(&mut moving).await;
        moving.claim.give_back().await;
        done
    }

    async fn go_on(&self, moving: &mut Move) -> anyhow::Result<Ended> {
        loop {
            let found = self
                .registry
                .get_record::<PoolRecord>(&keys::pool(&moving.pool))
                .await?;
            let Some((record, revision)) = found else {
                return Ok(Ended::Over);
            };
            let Some(change) = &record.change else {
                return Ok(Ended::Over);
            };
            if moving.record.placement_version != record.placement_version || moving.record.ended_us.is_some()
            {
                self.begin(moving, &record).await?;
            }
            if !self.are_told(moving, &record).await? {
                if pause(&self.stop, ASK_EVERY).await {
                    return Ok(Ended::Stopped);
                }
                continue;
            }
            if change.next.is_some() {
                self.put(&record.placing(), revision).await?;
                continue;
            }
            match self.walk(moving, &record).await? {
                Ended::Over => self.settle(moving, &record, revision).await?,
                ended => return Ok(ended),
            }
        }
    }

    /// Notes that the move is of another record now.
    async fn begin(&self, moving: &mut Move, record: &PoolRecord) -> anyhow::Result<()> {
        // From the announcement on it is one move.
        let is_same = moving.record.ended_us.is_none() && moving.record.begun_us > 0;
        moving.record = MoveRecord {
            placement_version: record.placement_version,
            begun_us: match is_same {
                true => moving.record.begun_us,
                false => self.clock.unix_micros(),
            },
            ..MoveRecord::default()
        };
        Ok(self.record(moving).await?)
    }

    /// Whether every storage-router that is announced knows the pool by this record, and has nothing under way by an older one.
    async fn are_told(&self, moving: &mut Move, record: &PoolRecord) -> anyhow::Result<bool> {
        let nodes = self.registry.list_records::<NodeRecord>(keys::NODES).await?;
        let known = keys::placements_known(&moving.pool);
        let known: BTreeMap<String, u64> = self
            .registry
            .list_records::<PlacementKnownRecord>(&known)
            .await?
            .into_iter()
            .map(|(key, known, _)| (key, known.placement_version))
            .collect();
        let knows = |node: &NodeName| {
            let version = known.get(&keys::placement_known(&moving.pool, node));
            version.is_some_and(|version| *version >= record.placement_version)
        };
        let routers = nodes
            .into_iter()
            .filter(|(_, node, _)| node.role == Role::StorageRouter);
        let waits_for: Vec<NodeName> = routers
            .map(|(_, node, _)| node.name)
            .filter(|node| !knows(node))
            .collect();
        moving.claim.keep().await?;
        if waits_for != moving.record.waits_for {
            moving.record.waits_for = waits_for;
            self.record(moving).await?;
        }
        Ok(moving.record.waits_for.is_empty())
    }

    /// Moves all that is elsewhere.
    async fn walk(&self, moving: &mut Move, record: &PoolRecord) -> anyhow::Result<Ended> {
        let is_record = |pool: &Pool| pool.record().placement_version == record.placement_version;
        if moving.record.after.is_none() {
            let pool = self.pool(moving).await?;
            let is_mine = async |volume| self.handler.pools.is_in(&moving.pool, volume).await;
            moving.record.expected = pool.count(is_mine).await.map_err(told)?;
            (moving.record.objects, moving.record.left) = (0, 0);
            self.record(moving).await?;
            tracing::info!(
                pool = moving.pool,
                objects = moving.record.expected,
                "objects move to where the placement map wants them"
            );
        }
        let mut walk = Walk::after(moving.record.after);
        loop {
            let pool = self.pool(moving).await?;
            if !is_record(&pool) {
                // Another change came: from the begin.
                return Ok(Ended::Left);
            }
            let Some(batch) = walk.next(&pool).await.map_err(told)? else {
                break;
            };
            // What is on a back end that is away was not looked at.
            moving.record.left += batch.absent().len() as u64;
            let is_mine = match batch.volume() {
                Some(volume) => self
                    .handler
                    .pools
                    .is_in(&moving.pool, volume)
                    .await
                    .map_err(told)?,
                None => false,
            };
            if is_mine && self.move_batch(moving, &pool, &batch).await? {
                return Ok(Ended::Stopped);
            }
            if self.stop.is_requested() {
                return Ok(Ended::Stopped);
            }
        }
        let is_whole = moving.record.left == 0;
        // What was left is looked for again from the begin.
        moving.record.after = None;
        self.record(moving).await?;
        match is_whole {
            true => Ok(Ended::Over),
            false => Ok(Ended::Left),
        }
    }

    /// Moves the objects of a batch; whether the stop was requested meanwhile.
    async fn move_batch(&self, moving: &mut Move, pool: &Arc<Pool>, batch: &Batch) -> anyhow::Result<bool> {
        let names: Vec<ObjectName> = batch.names().collect();
        let mut extras: Vec<Moved> = Vec::new();
        let mut left = 0;
        for some in names.chunks(AT_ONCE) {
            if pool.is_superseded() {
                bail!("other weights were announced");
            }
            let begun = Instant::now();
            let moves = join_all(some.iter().map(|name| pool.move_object(batch, *name)));
            let moved = tokio::select! {
                biased;
                // What was copied and not removed is found by the next walk.
                () = self.stop.requested() => return Ok(true),
                moved = moves => moved,
            };
            let mut work = 0;
            for moved in moved.into_iter().flatten() {
                work += moved.bytes + moved.read;
                left += u64::from(moved.is_left);
                moving.record.moved += u64::from(moved.bytes > 0);
                moving.record.bytes += moved.bytes;
                if moved.has_extras() {
                    extras.push(moved);
                }
            }
            let due = due(work, self.settings.bytes_per_second).saturating_sub(begun.elapsed());
            if self.wait(moving, due).await? {
                return Ok(true);
            }
            if extras.len() >= EXTRAS_MAX && self.remove(moving, pool, &mut extras, &mut left).await? {
                return Ok(true);
            }
        }
        if self.remove(moving, pool, &mut extras, &mut left).await? {
            return Ok(true);
        }
        moving.record.objects += names.len() as u64;
        moving.record.left += left;
        moving.record.after = names.last().copied();
        self.record(moving).await?;
        Ok(false)
    }

    /// Removes what was moved where it was; whether the stop was requested meanwhile.
    async fn remove(
        &self,
        moving: &mut Move,
        pool: &Pool,
        extras: &mut Vec<Moved>,
        left: &mut u64,
    ) -> anyhow::Result<bool> {
        if extras.is_empty() {
            return Ok(false);
        }
        if self.wait(moving, READ_WITHIN).await? {
            return Ok(true);
        }
        for mut moved in extras.drain(..) {
            // Who has lost the claim leaves that to whoever has it.
            moving.claim.keep().await?;
            pool.remove_extras(&mut moved).await;
            *left += u64::from(moved.is_left);
        }
        Ok(false)
    }

    /// Waits, and keeps the claim; whether the stop was requested meanwhile.
    async fn wait(&self, moving: &mut Move, duration: Duration) -> anyhow::Result<bool> {
        let mut left = duration;
        loop {
            moving.claim.keep().await?;
            let now = left.min(KEEP_EVERY);
            if pause(&self.stop, now).await {
                return Ok(true);
            }
            left -= now;
            if left.is_zero() {
                return Ok(false);
            }
        }
    }

    /// The pool is where its map says: what takes no objects leaves it.
    async fn settle(&self, moving: &mut Move, record: &PoolRecord, revision: Revision) -> anyhow::Result<()> {
        let settled = record.settled();
        moving.record.ended_us = Some(self.clock.unix_micros());
        moving.record.placement_version = settled.placement_version;
        self.put(&settled, revision).await?;
        self.record(moving).await?;
        tracing::info!(
            pool = moving.pool,
            objects = moving.record.objects,
            moved = moving.record.moved,
            bytes = moving.record.bytes,
            "all objects are where the placement map wants them"
        );
        // Nobody asks for these any more.
        let known = keys::placements_known(&moving.pool);
        for entry in self.registry.list(&known, None, usize::MAX).await? {
            without_conflict(
                self.registry
                    .commit(vec![Change::delete(entry.key, Some(entry.revision))])
                    .await,
            )?;
        }
        Ok(())
    }

    async fn put(&self, record: &PoolRecord, revision: Revision) -> Result<(), CommitError> {
        let put = Change::put(keys::pool(&record.name), Some(revision), record.to_bytes());
        self.registry.commit(vec![put]).await.map(drop)
    }

    /// Records how far the move is, if the claim is still this service's.
    async fn record(&self, moving: &mut Move) -> Result<(), CommitError> {
        let key = keys::moving(&moving.pool);
        let put = Change::put(key, Some(moving.revision), moving.record.to_bytes());
        moving.revision = self.registry.commit(vec![put]).await?;
        Ok(())
    }

    async fn pool(&self, moving: &Move) -> anyhow::Result<Arc<Pool>> {
        self.handler.pools.find(&moving.pool).await.map_err(told)
    }
}

#[cfg(test)]
mod tests;
