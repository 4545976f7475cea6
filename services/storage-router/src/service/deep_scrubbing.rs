//! Deep scrubs on a schedule: each pool is read through once in a period, by one storage-router at a time.
//!
//! Keeps: in the registry, how far each pool's round is, and under a lease who does it.
//! Order: the claim first, then the record, then the reading; the record is written while the claim is held alone.
//! Crash: the claim ends with its lease, or is taken over by this node's next start; the round goes on after the last
//! object that was recorded, and what was read since then is read again.
//! Knows no copies and no fragments.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use sconce_registry::{Change, CommitError, Registry, Revision};
use sconce_runtime::{Clock, Stop};
use sconce_schemas::ObjectName;
use sconce_schemas::records::{DeepScrubRecord, Record as _, keys};
use sconce_schemas::wire::Refusal;
use tokio::time::Instant;

use super::handler::Handler;
use super::rounds::{Claim, due, pause, told, without_conflict};
use crate::pool::{Found, Pool, Walk};
use crate::settings::DeepScrubSettings;

/// How often the progress is recorded.
const RECORD_EVERY: Duration = Duration::from_secs(10);
/// How long one wait for a change of the schedule lasts; what falls due meanwhile begins that much later at most.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// How long a back end that is away, or the registry, makes a round wait before it is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(10);

/// Does deep scrubs.
pub(super) struct DeepScrubbing {
    pub(super) handler: Rc<Handler>,
    pub(super) registry: Registry,
    pub(super) settings: DeepScrubSettings,
    pub(super) clock: Clock,
    pub(super) stop: Stop,
}

/// Why a round does not go on.
enum Ended {
    /// All was read.
    Over,
    /// The stop was requested, another storage-router does it, or it cannot go on now.
    Later,
}

/// A pool's round that this service does.
struct Round {
    pool: String,
    claim: Claim,
    record: DeepScrubRecord,
    revision: Revision,
    recorded: Instant,
}

impl DeepScrubbing {
    /// Begins what is due until the stop is requested.
    pub(super) async fn run(self) {
        loop {
            let after = self.registry.revision().await;
            for name in self.handler.pools.names() {
                let name = &name;
                let done = tokio::select! {
                    biased;
                    () = self.stop.requested() => return,
                    claimed = self.claim_if_due(name) => claimed,
                };
                match done {
                    Ok(Some(round)) => self.go_on(round).await,
                    Ok(None) => {}
                    Err(error) => tracing::debug!(pool = %name, %error, "cannot look at the deep scrub now"),
                }
                if self.stop.is_requested() {
                    return;
                }
            }
            // An operator may ask for a round, a claim may end.
            let changed = async {
                match after {
                    Ok(after) => self
                        .registry
                        .watch(keys::DEEP_SCRUBS, after, LOOK_EVERY)
                        .await
                        .map(drop),
                    Err(error) => Err(error),
                }
            };
            tokio::select! {
                biased;
                () = self.stop.requested() => return,
                changed = changed => if changed.is_err() {
                    pause(&self.stop, RETRY_AFTER).await;
                }
            }
        }
    }

    /// The pool's round, if one is due and nobody does it.
    async fn claim_if_due(&self, pool: &str) -> Result<Option<Round>, CommitError> {
        let key = keys::deep_scrub(pool);
        let Some((record, _)) = self.registry.get_record::<DeepScrubRecord>(&key).await? else {
            self.note_first_seen(&key).await?;
            return Ok(None);
        };
        if !self.is_due(&record) {
            return Ok(None);
        }
        let claim = keys::deep_scrubber(pool);
        let Some(claim) = Claim::take(&self.registry, &claim, &self.handler.node).await? else {
            return Ok(None);
        };
        // Whoever had the claim before may have gone on since the first look.
        match self.registry.get_record::<DeepScrubRecord>(&key).await? {
            Some((record, revision)) if self.is_due(&record) => Ok(Some(Round {
                pool: pool.to_owned(),
                claim,
                record,
                revision,
                recorded: Instant::now(),
            })),
            _ => {
                claim.give_back().await;
                Ok(None)
            }
        }
    }

    /// A pool is empty when it is made: its first round is a period later.
    async fn note_first_seen(&self, key: &str) -> Result<(), CommitError> {
        let now = self.clock.unix_micros();
        let record = DeepScrubRecord {
            begun_us: now,
            ended_us: Some(now),
            ..DeepScrubRecord::default()
        };
        let put = self
            .registry
            .put_record(key, Some(Revision::ABSENT), &record, None);
        without_conflict(put.await).map(drop)
    }

    fn is_due(&self, record: &DeepScrubRecord) -> bool {
        let period = u64::try_from(self.settings.period.duration().as_micros()).unwrap_or(u64::MAX);
        let next = record.begun_us.saturating_add(period);
        let now = self.clock.unix_micros();
        // Begun by a clock that was ahead.
        record.ended_us.is_none()
            || record.is_asked
            || next <= now
            || record.begun_us > now.saturating_add(period)
    }

    /// Goes on with a round as far as that is possible, and gives the claim back.
    async fn go_on(&self, mut round: Round) {
        let read = self.read(&mut round).await;
        let pool = &round.pool;
        let over = match read {
            Ok(Ended::Over) => {
                round.record.ended_us = Some(self.clock.unix_micros());
                true
            }
            Ok(Ended::Later) => false,
            Err(error) => {
                tracing::info!(pool, %error, "the deep scrub goes on later");
                pause(&self.stop, RETRY_AFTER).await;
                false
            }
        };
        match self.record(&mut round).await {
            Ok(()) if over => tracing::info!(
                pool = round.pool,
                objects = round.record.objects,
                bytes = round.record.bytes,
                repaired = round.record.repaired,
                left = round.record.left,
                lost = round.record.lost,
                "the deep scrub is over"
            ),
            Ok(()) => {}
            Err(error) => {
                tracing::info!(pool = round.pool, %error, "how far the deep scrub is was not recorded")
            }
        }
        round.claim.give_back().await;
    }

    async fn read(&self, round: &mut Round) -> anyhow::Result<Ended> {
        if round.record.ended_us.is_some() {
            let pool = self.pool(round).await?;
            round.record = DeepScrubRecord {
                begun_us: self.clock.unix_micros(),
                expected: self.count(&pool).await.map_err(told)?,
                ..DeepScrubRecord::default()
            };
            self.record(round).await?;
            tracing::info!(
                pool = round.pool,
                objects = round.record.expected,
                "a deep scrub begins"
            );
        }
        let mut walk = Walk::after(round.record.after);
        loop {
            // It may have changed since the last look.
            let pool = self.pool(round).await?;
            let next = tokio::select! {
                biased;
                () = self.stop.requested() => return Ok(Ended::Later),
                next = walk.next(&pool) => next,
            };
            let Some(batch) = next.map_err(told)? else {
                return Ok(Ended::Over);
            };
            let Some(volume) = batch.volume() else {
                continue;
            };
            if !self
                .handler
                .pools
                .is_in(&round.pool, volume)
                .await
                .map_err(told)?
            {
                continue;
            }
            for name in batch.names() {
                // Nobody waits for a pool by an older record for as long as a batch takes.
                let pool = self.pool(round).await?;
                let begun = Instant::now();
                let (found, bytes) = tokio::select! {
                    biased;
                    () = self.stop.requested() => return Ok(Ended::Later),
                    scrubbed = pool.deep_scrub(&batch, name) => scrubbed,
                };
                round.note(name, found, bytes);
                self.keep(round).await?;
                let due = due(bytes, self.settings.bytes_per_second);
                if pause(&self.stop, due.saturating_sub(begun.elapsed())).await {
                    return Ok(Ended::Later);
                }
            }
        }
    }

    async fn count(&self, pool: &Pool) -> Result<u64, Refusal> {
        let name = &pool.record().name;
        let is_mine = async |volume| self.handler.pools.is_in(name, volume).await;
        pool.count(is_mine).await
    }

    async fn pool(&self, round: &Round) -> anyhow::Result<Arc<Pool>> {
        self.handler.pools.find(&round.pool).await.map_err(told)
    }

    /// Keeps the claim, and records the progress where it is time for that.
    async fn keep(&self, round: &mut Round) -> anyhow::Result<()> {
        round.claim.keep().await?;
        if round.recorded.elapsed() >= RECORD_EVERY {
            self.record(round).await?;
        }
        Ok(())
    }

    /// Records how far the round is, if the claim is still this service's.
    async fn record(&self, round: &mut Round) -> Result<(), CommitError> {
        let key = keys::deep_scrub(&round.pool);
        let put = Change::put(key, Some(round.revision), round.record.to_bytes());
        round.revision = self.registry.commit(vec![put]).await?;
        round.recorded = Instant::now();
        Ok(())
    }
}

impl Round {
    fn note(&mut self, name: ObjectName, found: Found, bytes: u64) {
        let record = &mut self.record;
        record.after = Some(name);
        record.objects += 1;
        record.bytes += bytes;
        match found {
            Found::Good => {}
            Found::Repaired => record.repaired += 1,
            Found::Left => record.left += 1,
            Found::Lost => record.lost += 1,
        }
    }
}

#[cfg(test)]
mod tests;
