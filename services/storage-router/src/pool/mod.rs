//! A pool: where its objects go and how they are protected.
//!
//! Keeps: the pool's record, its back ends, which objects are being repaired or deleted, and what was learned of packed SCOs.
//! Order: a put is done when all copies are durable, or a quorum of fragments; what is bad is repaired after the answer.
//! Crash: a put that was not answered may have left some copies; sending it again completes them.
//! Knows no sockets, no files, no envelope.

mod bundles;
mod deep_scrub;
mod fragments;
mod holds;
mod moving;
mod packed;
mod read;
mod refusals;
mod repair;
#[cfg(test)]
mod tests;
mod versions;
mod walk;
mod write;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use sconce_fragments::Policy;
use sconce_schemas::object::ObjectKind;
use sconce_schemas::records::{PoolRecord, Protection};
use sconce_schemas::wire::Refusal;
use sconce_schemas::{ObjectName, VolumeId};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::backend::BackendError;
use crate::checked::Checked;
use crate::placement::{Placement, Rendezvous};
use crate::workers::Workers;
pub use deep_scrub::Found;
use fragments::Coded;
pub use fragments::{Care, Restored};
use holds::Holds;
pub use moving::Moved;
use packed::Heads;
use versions::Versions;
pub use walk::{Batch, Walk};

/// Repairs at once: each holds a whole object in memory, and none is urgent.
const REPAIRS_AT_ONCE: usize = 2;

/// A pool: keeps copies, or by its policy fragments, of its objects on several back ends.
pub struct Pool {
    record: PoolRecord,
    placement: Box<dyn Placement>,
    /// As in the record; `None`: this service does not know where it is.
    backends: Vec<Option<Arc<Checked>>>,
    /// Back ends that an object is on.
    width: usize,
    /// Back ends that an object which was answered for is on, at the least.
    quorum: usize,
    /// Where objects are kept as fragments; `None`: as whole copies.
    coded: Option<Arc<Coded>>,
    workers: Workers,
    holds: Arc<Holds>,
    repair_slots: Arc<Semaphore>,
    heads: Arc<Heads>,
    versions: Arc<Versions>,
    /// The pool goes on by a newer record.
    is_superseded: AtomicBool,
}

/// A part of a listing.
struct Page<T> {
    /// What is listed, and which back ends list it.
    names: Vec<(T, Vec<usize>)>,
    /// Back ends that did not answer.
    absent: Vec<usize>,
}

impl<T> Page<T> {
    fn into_names(self) -> Vec<T> {
        self.names.into_iter().map(|(name, _)| name).collect()
    }
}

/// What one back end of a pool answered, for the refusal's text.
struct Answer {
    backend: usize,
    error: BackendError,
}

impl Pool {
    /// The pool of `record` with those of `backends` that it names. Large objects get their envelope on `workers`. What
    /// the record says to encrypt is with the newest of `care.keys`.
    ///
    /// # Errors
    /// A record that cannot be followed; the text says what is wrong with it.
    pub fn new(
        record: PoolRecord,
        backends: &HashMap<String, Arc<Checked>>,
        workers: Workers,
        care: Care,
    ) -> Result<Arc<Self>, String> {
        let placement = Rendezvous::new(&record.backends);
        check(&record, placement.takers())?;
        let coded = Policy::of(&record).map(|policy| Arc::new(Coded::new(policy, care)));
        Ok(Arc::new(Self {
            backends: resolved(&record, backends),
            placement: Box::new(placement),
            width: record.protection.width(),
            quorum: quorum(record.protection),
            record,
            coded,
            workers,
            holds: Arc::default(),
            repair_slots: Arc::new(Semaphore::new(REPAIRS_AT_ONCE)),
            heads: Arc::default(),
            versions: Arc::default(),
            is_superseded: AtomicBool::new(false),
        }))
    }

    /// The pool by a newer record, or with other back ends: what is being repaired or deleted, and what was learned, is one
    /// with this one's, whose requests under way go on by the older record.
    ///
    /// # Errors
    /// As [`Pool::new`].
    pub fn succeeded_by(
        &self,
        record: PoolRecord,
        backends: &HashMap<String, Arc<Checked>>,
    ) -> Result<Arc<Self>, String> {
        let placement = Rendezvous::new(&record.backends);
        check(&record, placement.takers())?;
        if record.protection != self.record.protection {
            return Err(format!(
                "pool {:?} was protected by {} and is now by {}; what is stored would not be found",
                record.name, self.record.protection, record.protection
            ));
        }
        if let Some(coded) = &self.coded {
            // What a back end that was not there should have may be missing.
            coded.note_short();
        }
        self.supersede();
        Ok(Arc::new(Self {
            placement: Box::new(placement),
            backends: resolved(&record, backends),
            width: self.width,
            quorum: self.quorum,
            record,
            coded: self.coded.clone(),
            workers: self.workers.clone(),
            holds: Arc::clone(&self.holds),
            repair_slots: Arc::clone(&self.repair_slots),
            heads: Arc::clone(&self.heads),
            versions: Arc::clone(&self.versions),
            is_superseded: AtomicBool::new(false),
        }))
    }

    /// Whether it is by this record, with those of `backends` that it names.
    #[must_use]
    pub fn is_as(&self, record: &PoolRecord, backends: &HashMap<String, Arc<Checked>>) -> bool {
        let is_same = |(have, want): (&Option<Arc<Checked>>, &Option<Arc<Checked>>)| match (have, want) {
            (Some(have), Some(want)) => Arc::ptr_eq(have, want),
            (have, want) => have.is_none() && want.is_none(),
        };
        self.record == *record && self.backends.iter().zip(&resolved(record, backends)).all(is_same)
    }

    /// The pool's record.
    #[must_use]
    pub fn record(&self) -> &PoolRecord {
        &self.record
    }

    /// Waits until no repair and no delete is under way.
    pub async fn settled(&self) {
        self.holds.none().await;
    }

    /// Where an object's copies belong, best place first; its fragments, by their numbers.
    fn places(&self, name: &ObjectName) -> Vec<usize> {
        let mut ranked = self.placement.rank(name);
        ranked.truncate(self.width);
        ranked
    }

    /// Where an object's copies may be: their places, and every other back end once the placement map has changed.
    fn haunts(&self, name: &ObjectName) -> Vec<usize> {
        if !self.was_changed() {
            return self.places(name);
        }
        self.placement.rank(name)
    }

    /// Whether the placement map was ever another, so that objects may be elsewhere than it says.
    fn was_changed(&self) -> bool {
        self.record.placement_version > FIRST_PLACEMENT
    }

    /// Whether objects may not be where the map wants them.
    const fn is_changing(&self) -> bool {
        self.record.change.is_some()
    }

    /// Whether objects move to where the map wants them: all know of it.
    fn is_moving(&self) -> bool {
        let change = self.record.change.as_ref();
        change.is_some_and(|change| change.next.is_none())
    }

    /// The pool is not served by this record any more.
    pub(crate) fn supersede(&self) {
        self.is_superseded.store(true, Ordering::Relaxed);
    }

    /// Whether the pool goes on by a newer record: what takes long is given up then.
    pub(crate) fn is_superseded(&self) -> bool {
        self.is_superseded.load(Ordering::Relaxed)
    }

    /// A back end that this service reaches. One that was given up as lost has nothing.
    fn backend(&self, index: usize) -> Result<Arc<Checked>, BackendError> {
        if self.is_lost(index) {
            return Err(BackendError::NotFound);
        }
        let known = self.backends.get(index).cloned().flatten();
        known.ok_or_else(|| BackendError::Unavailable {
            why: "this storage-router does not know where it is".to_owned(),
        })
    }

    /// Asks several back ends at once, and waits for all.
    async fn ask_each<T, A: Future<Output = Result<T, BackendError>>>(
        &self,
        indices: &[usize],
        ask: impl Fn(Arc<Checked>) -> A,
    ) -> Vec<(usize, Result<T, BackendError>)> {
        self.ask_until(indices, |_| None, ask).await
    }

    fn is_lost(&self, index: usize) -> bool {
        self.is_changing() && self.record.has_lost(self.backend_name(index))
    }

    /// Asks several back ends at once. After each answer `limit` says how long the others have from the begin on, `None`: as long as they
    /// take. The answers are in the order of `indices`.
    async fn ask_until<T, A: Future<Output = Result<T, BackendError>>>(
        &self,
        indices: &[usize],
        limit: impl Fn(&[(usize, Result<T, BackendError>)]) -> Option<Duration>,
        ask: impl Fn(Arc<Checked>) -> A,
    ) -> Vec<(usize, Result<T, BackendError>)> {
        let begun = Instant::now();
        let asked = indices.iter().map(|index| {
            let answer = self.backend(*index).map(&ask);
            async move {
                match answer {
                    Ok(answer) => (*index, answer.await),
                    Err(error) => (*index, Err(error)),
                }
            }
        });
        let mut asked: FuturesUnordered<_> = asked.collect();
        let mut answers: Vec<(usize, Result<T, BackendError>)> = Vec::with_capacity(indices.len());
        while answers.len() < indices.len() {
            let next = match limit(&answers) {
                None => asked.next().await,
                Some(limit) => {
                    let left = limit.saturating_sub(begun.elapsed());
                    tokio::time::timeout(left, asked.next()).await.unwrap_or(None)
                }
            };
            let Some(answer) = next else { break };
            answers.push(answer);
        }
        let place = |wanted: usize| indices.iter().position(|index| *index == wanted);
        for index in indices {
            if answers.iter().all(|(answered, _)| answered != index) {
                let why = format!("no answer within {} ms", begun.elapsed().as_millis());
                answers.push((*index, Err(BackendError::Unavailable { why })));
            }
        }
        answers.sort_by_key(|(index, _)| place(*index));
        answers
    }

    fn backend_name(&self, index: usize) -> &str {
        self.record
            .backends
            .get(index)
            .map_or("?", |entry| &entry.backend)
    }
}

/// The version of a placement map that was never changed: every object is where the map says.
pub const FIRST_PLACEMENT: u64 = PoolRecord::FIRST_PLACEMENT;

/// How many back ends must have a put: all copies; of fragments as many as are needed to read, and more than half, so
/// that of two contents of one name only one can be answered for (docs/decisions/0200).
fn quorum(protection: Protection) -> usize {
    let width = protection.width();
    match protection {
        Protection::Replicas(_) => width,
        Protection::Erasure { data: 1, .. } => width,
        Protection::Erasure { data, .. } => usize::from(data).max(width / 2 + 1),
    }
}

fn resolved(record: &PoolRecord, backends: &HashMap<String, Arc<Checked>>) -> Vec<Option<Arc<Checked>>> {
    let entries = record.backends.iter();
    entries
        .map(|entry| backends.get(&entry.backend).cloned())
        .collect()
}

fn check(record: &PoolRecord, takers: usize) -> Result<(), String> {
    let name = &record.name;
    let protection = record.protection;
    protection
        .check()
        .map_err(|error| format!("pool {name:?}: {error}"))?;
    if takers < protection.width() {
        return Err(format!(
            "pool {name:?} is protected by {protection}, but {takers} back ends take objects; each of the {} copies or \
             fragments needs a back end of its own",
            protection.width()
        ));
    }
    let mut seen = HashSet::new();
    match record.backends.iter().find(|entry| !seen.insert(&entry.backend)) {
        Some(twice) => Err(format!("pool {name:?} names back end {:?} twice", twice.backend)),
        None => Ok(()),
    }
}

impl Pool {
    /// Names of a volume's objects of one kind, sorted, those after `after`, at most `limit`. Of a pool that keeps
    /// fragments, those are left out of which too few are there: puts that were never answered for.
    ///
    /// # Errors
    /// A retry when so many back ends are absent that an object might be on none of the others.
    pub async fn list(
        &self,
        volume: VolumeId,
        kind: ObjectKind,
        after: Option<ObjectName>,
        limit: usize,
    ) -> Result<Vec<ObjectName>, Refusal> {
        let what = format!("the {} objects of volume {volume}", kind.as_str());
        let (mut after, mut listed) = (after, Vec::new());
        loop {
            let page = self
                .merged(&what, self.quorum, limit, |backend| async move {
                    backend.list(volume, kind, after, limit).await
                })
                .await?;
            let is_last = page.names.len() < limit;
            after = page.names.last().map(|(name, _)| *name);
            let needed = self.coded.as_ref().map_or(1, |coded| coded.needed());
            let is_readable = |seen: usize| seen + page.absent.len() >= needed;
            let readable = page.names.iter().filter(|(_, seen)| is_readable(seen.len()));
            listed.extend(readable.map(|(name, _)| *name));
            if is_last || listed.len() >= limit {
                listed.truncate(limit);
                return Ok(listed);
            }
        }
    }

    /// As [`Pool::list`], for whoever wants to know that nothing is left anywhere: a copy that a delete did not reach is
    /// on one back end only.
    ///
    /// # Errors
    /// A retry when any back end is absent.
    pub async fn list_everywhere(
        &self,
        volume: VolumeId,
        kind: ObjectKind,
        after: Option<ObjectName>,
        limit: usize,
    ) -> Result<Vec<ObjectName>, Refusal> {
        let what = format!("all copies of the {} objects of volume {volume}", kind.as_str());
        let page = self.merged(&what, 1, limit, |backend| async move {
            backend.list(volume, kind, after, limit).await
        });
        Ok(page.await?.into_names())
    }

    /// Volumes that have any object in the pool, sorted, those after `after`, at most `limit`.
    ///
    /// # Errors
    /// As [`Pool::list`].
    pub async fn list_volumes(
        &self,
        after: Option<VolumeId>,
        limit: usize,
    ) -> Result<Vec<VolumeId>, Refusal> {
        let page = self.merged("the volumes", self.quorum, limit, |backend| async move {
            backend.list_volumes(after, limit).await
        });
        Ok(page.await?.into_names())
    }

    /// The first `limit` of what all back ends list, refused where `absent_max` of them do not answer. Each one's page is
    /// complete up to its last entry, so the merged first `limit` are.
    async fn merged<T: Ord, A: Future<Output = Result<Vec<T>, BackendError>>>(
        &self,
        what: &str,
        absent_max: usize,
        limit: usize,
        list: impl Fn(Arc<Checked>) -> A,
    ) -> Result<Page<T>, Refusal> {
        let all: Vec<usize> = (0..self.backends.len())
            .filter(|index| !self.is_lost(*index))
            .collect();
        let mut merged: BTreeMap<T, Vec<usize>> = BTreeMap::new();
        let mut absent = Vec::new();
        for (backend, page) in self.ask_each(&all, list).await {
            match page {
                Ok(page) => {
                    for name in page {
                        merged.entry(name).or_default().push(backend);
                    }
                }
                Err(error) => absent.push(Answer { backend, error }),
            }
        }
        // An object that was stored is on `quorum` back ends: with fewer absent it is on one that answered. What was only on those that
        // are lost is gone; but with them it may be on one that is absent alone.
        let lost = self.backends.len() - all.len();
        if !absent.is_empty() && absent.len() + lost >= absent_max {
            return Err(self.cannot_list(what, &absent));
        }
        Ok(Page {
            names: merged.into_iter().take(limit).collect(),
            absent: absent.into_iter().map(|answer| answer.backend).collect(),
        })
    }
}
