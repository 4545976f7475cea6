//! The version of a SCO that answers for one that is gone: a scrub put a newer one in its place, and not every reader
//! knows. A clone knows nothing of its parent's scrubs (docs/decisions/0100).
//!
//! Keeps: the newest version that a listing showed of a SCO, and up to which version it is known to be gone; bounded.
//! Order: a version is read itself unless it is known to be gone, then the one that is remembered, then the newest that a
//! listing shows now.
//! Crash: what was remembered is found again by a listing.
//! Knows no scrub: a newer version has all of the SCO that is still referred to.

use std::future::Future;

use quick_cache::sync::Cache;
use sconce_schemas::object::ObjectKind;
use sconce_schemas::wire::Refusal;
use sconce_schemas::{Epoch, ObjectName, ScoId, VolumeId};
use tokio::sync::Semaphore;

use super::{Answer, Pool};
use crate::backend::BackendError;

/// SCOs whose newest version is remembered: those of 256 GiB, in some 6 MiB of memory.
const REMEMBERED_MAX: usize = 1 << 16;
/// Names of one listing. A listing of a directory reads all of it anyway, so what it shows of other SCOs is remembered.
const LISTED_AT_ONCE: usize = 1000;
/// Listings at once: of many reads that miss a version of the same volume, a few list and the others find it remembered.
const LOOK_UPS_AT_ONCE: usize = 4;

/// What is remembered of versions.
pub(super) struct Versions {
    newest: Cache<Sco, Newest>,
    look_ups: Semaphore,
}

/// A SCO in all its versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Sco {
    volume: VolumeId,
    id: ScoId,
    epoch: Epoch,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Newest {
    version: u16,
    /// This version was on no back end, and versions do not come back.
    gone: Option<u16>,
}

/// What came of reading one version.
enum Attempt<T> {
    Over(Result<T, Refusal>),
    /// It is gone, or none of its copies is good: a newer one has all that is still referred to.
    Gone(Vec<Answer>),
}

impl Default for Versions {
    fn default() -> Self {
        Self {
            newest: Cache::new(REMEMBERED_MAX),
            look_ups: Semaphore::new(LOOK_UPS_AT_ONCE),
        }
    }
}

impl Versions {
    /// What is remembered of a SCO, if that is a newer version.
    fn newer(&self, sco: &Sco, version: u16) -> Option<Newest> {
        self.newest.get(sco).filter(|newest| newest.version > version)
    }

    fn remember(&self, sco: Sco, version: u16, gone: Option<u16>) {
        let known = self.newest.get(&sco);
        let newest = Newest {
            version: known.map_or(version, |known| known.version.max(version)),
            gone: known.and_then(|known| known.gone).max(gone),
        };
        if known != Some(newest) {
            self.newest.insert(sco, newest);
        }
    }

    #[cfg(test)]
    pub(super) fn clear(&self) {
        self.newest.clear();
    }

    /// Forgets a version that turned out not to be there, unless another one is remembered by now.
    fn forget(&self, sco: &Sco, version: u16) {
        self.newest.remove_if(sco, |newest| newest.version == version);
    }
}

impl Sco {
    fn of(name: &ObjectName) -> Option<(Self, u16)> {
        match *name {
            ObjectName::Sco {
                volume,
                id,
                epoch,
                version,
            } => Some((Self { volume, id, epoch }, version)),
            _ => None,
        }
    }

    const fn version(self, version: u16) -> ObjectName {
        ObjectName::Sco {
            volume: self.volume,
            id: self.id,
            epoch: self.epoch,
            version,
        }
    }
}

impl Pool {
    /// Reads an object, or where it is a version of a SCO that is gone, a newer one.
    pub(super) async fn read_current<T, A: Future<Output = Result<T, Vec<Answer>>>>(
        &self,
        name: ObjectName,
        read: impl Fn(ObjectName) -> A,
    ) -> Result<T, Refusal> {
        let Some((sco, version)) = Sco::of(&name) else {
            return read(name)
                .await
                .map_err(|failed| self.no_good_copy(name, &failed));
        };
        let remembered = self.versions.newer(&sco, version);
        let mut missing = Vec::new();
        if remembered.is_none_or(|newest| newest.gone < Some(version)) {
            match self.attempt(name, read(name)).await {
                Attempt::Over(outcome) => return outcome,
                Attempt::Gone(answers) => missing = answers,
            }
        }
        // Where a copy may be on an absent back end, the next read looks for it again.
        let is_gone = missing.iter().all(is_not_found);
        let gone = is_gone.then_some(version);
        if let Some(Newest { version: newer, .. }) = remembered {
            match self.attempt(sco.version(newer), read(sco.version(newer))).await {
                Attempt::Over(outcome) => {
                    self.versions.remember(sco, newer, gone);
                    return outcome;
                }
                Attempt::Gone(_) => self.versions.forget(&sco, newer),
            }
        }
        let Some(newer) = self.look_up(name, sco, version).await? else {
            return Err(self.no_good_copy(name, &missing));
        };
        for answer in missing.iter().filter(|answer| is_damaged(answer)) {
            self.log_bad_copy(name, answer);
        }
        match self.attempt(sco.version(newer), read(sco.version(newer))).await {
            Attempt::Over(outcome) => {
                self.versions.remember(sco, newer, gone);
                outcome
            }
            Attempt::Gone(answers) if answers.iter().any(is_damaged) => {
                Err(self.no_good_copy(sco.version(newer), &answers))
            }
            Attempt::Gone(answers) => {
                self.versions.forget(&sco, newer);
                Err(self.between_versions(name, sco.version(newer), &answers))
            }
        }
    }

    async fn attempt<T>(
        &self,
        name: ObjectName,
        read: impl Future<Output = Result<T, Vec<Answer>>>,
    ) -> Attempt<T> {
        match read.await {
            Ok(done) => Attempt::Over(Ok(done)),
            Err(failed)
                if failed
                    .iter()
                    .any(|answer| is_not_found(answer) || is_damaged(answer)) =>
            {
                Attempt::Gone(failed)
            }
            Err(failed) => Attempt::Over(Err(self.no_good_copy(name, &failed))),
        }
    }

    /// The newest version of a SCO above `version`, by a listing.
    async fn look_up(&self, name: ObjectName, sco: Sco, version: u16) -> Result<Option<u16>, Refusal> {
        // Never closed.
        let _slot = self.versions.look_ups.acquire().await.ok();
        if let Some(newest) = self.versions.newer(&sco, version) {
            return Ok(Some(newest.version));
        }
        let mut newest = None;
        loop {
            let after = sco.version(newest.unwrap_or(version));
            let page = self
                .list(sco.volume, ObjectKind::Sco, Some(after), LISTED_AT_ONCE)
                .await;
            let page = page.map_err(|refusal| self.cannot_look_up(name, &refusal))?;
            let listed = || page.iter().filter_map(Sco::of);
            for (other, version) in listed().filter(|(_, version)| *version > 0) {
                self.versions.remember(other, version, None);
            }
            let versions: Vec<u16> = listed()
                .take_while(|(other, _)| *other == sco)
                .map(|(_, v)| v)
                .collect();
            newest = versions.last().copied().or(newest);
            if versions.len() < LISTED_AT_ONCE {
                return Ok(newest);
            }
        }
    }
}

fn is_damaged(answer: &Answer) -> bool {
    matches!(answer.error, BackendError::Damaged { .. })
}

fn is_not_found(answer: &Answer) -> bool {
    answer.error == BackendError::NotFound
}
