//! The version of a SCO that answers for one that is gone: a scrub put a newer one in its place, and not every reader
//! knows. A clone knows nothing of its parent's scrubs (docs/decisions/0100).
//!
//! Keeps: the newest version that a listing showed of a SCO, and up to which version it is known to be gone; bounded.
//! Order: a version is read itself unless it is known to be gone, then the one that is remembered, then the newest that a
//! listing shows now.
//! Crash: what was remembered is found again by a listing.
//! Knows no scrub: a newer version has all of the SCO that is still referred to.

use std::future::Future;
use std::sync::Arc;

use quick_cache::sync::Cache;
use sconce_schemas::bundle::BUNDLE_FROM;
use sconce_schemas::object::ObjectKind;
use sconce_schemas::wire::{Refusal, Remedy};
use sconce_schemas::{Epoch, ObjectName, ScoId, VolumeId};
use tokio::sync::Semaphore;

use super::bundles::is_bundle;
use super::{Answer, Pool};
use crate::backend::BackendError;

/// SCOs whose newest version is remembered: those of 256 GiB, in some 6 MiB of memory.
const REMEMBERED_MAX: usize = 1 << 16;
/// Names of one listing. A listing of a directory reads all of it anyway, so what it shows of other SCOs is remembered.
const LISTED_AT_ONCE: usize = 1000;
/// Listings at once: of many reads that miss a version of the same volume, a few list and the others find it remembered.
const LOOK_UPS_AT_ONCE: usize = 4;
/// So many bundles are passed of which all SCOs come behind the one that is looked for: what crashes and deletions under way
/// leave lying between a SCO and its bundle. Whether there is one behind more of them is not known then.
const PASSED_MAX: usize = 256;

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
    held: Held,
    /// This version was on no back end, and versions do not come back.
    gone: Option<u16>,
}

/// Which object holds a SCO.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Held {
    /// A version of its own.
    Version(u16),
    /// A bundle, by its name.
    Bundle(ObjectName),
}

/// Where something is read.
#[derive(Debug, Clone, Copy)]
pub(super) enum Place {
    /// In the object itself.
    Own(ObjectName),
    /// In the bundle, of the SCO.
    Bundle(ObjectName, (ScoId, Epoch)),
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
    /// What is remembered of a SCO, if that is newer.
    fn newer(&self, sco: &Sco, version: u16) -> Option<Newest> {
        self.newest
            .get(sco)
            .filter(|newest| newest.held.is_above(version))
    }

    fn remember(&self, sco: Sco, held: Held, gone: Option<u16>) {
        let known = self.newest.get(&sco);
        let newest = Newest {
            held: match (known.map(|known| known.held), held) {
                (Some(Held::Version(known)), Held::Version(version)) => Held::Version(known.max(version)),
                // Once a SCO is in a bundle, it has no version of its own any more.
                (Some(known @ Held::Bundle(_)), Held::Version(_)) => known,
                _ => held,
            },
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

    /// Forgets what turned out not to be there, unless something else is remembered by now.
    fn forget(&self, sco: &Sco, held: Held) {
        self.newest.remove_if(sco, |newest| newest.held == held);
    }
}

impl Held {
    fn is_above(self, version: u16) -> bool {
        match self {
            Held::Version(newer) => newer > version,
            Held::Bundle(_) => true,
        }
    }
}

impl Sco {
    fn of(name: &ObjectName) -> Option<(Self, u16)> {
        match *name {
            ObjectName::Sco {
                volume,
                id,
                epoch,
                version: version @ ..BUNDLE_FROM,
            } => Some((Self { volume, id, epoch }, version)),
            _ => None,
        }
    }

    const fn place(self, held: Held) -> Place {
        match held {
            Held::Version(version) => Place::Own(self.version(version)),
            Held::Bundle(bundle) => Place::Bundle(bundle, (self.id, self.epoch)),
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
    /// Reads an object, or where it is a version of a SCO that is gone, what holds the SCO now.
    pub(super) async fn read_current<T, A: Future<Output = Result<T, Vec<Answer>>>>(
        self: &Arc<Self>,
        name: ObjectName,
        read: impl Fn(Place) -> A,
    ) -> Result<T, Refusal> {
        let Some((sco, version)) = Sco::of(&name) else {
            return read(Place::Own(name))
                .await
                .map_err(|failed| self.no_good_copy(name, &failed));
        };
        let remembered = self.versions.newer(&sco, version);
        let mut missing = Vec::new();
        if remembered.is_none_or(|newest| newest.gone < Some(version)) {
            match self.attempt(name, read(Place::Own(name))).await {
                Attempt::Over(outcome) => return outcome,
                Attempt::Gone(answers) => missing = answers,
            }
        }
        // Where a copy may be on an absent back end, the next read looks for it again.
        let is_gone = missing.iter().all(is_not_found);
        let gone = is_gone.then_some(version);
        if let Some(Newest { held, .. }) = remembered {
            match self.attempt(name, read(sco.place(held))).await {
                Attempt::Over(outcome) => {
                    self.versions.remember(sco, held, gone);
                    return outcome;
                }
                Attempt::Gone(_) => self.versions.forget(&sco, held),
            }
        }
        let Some(held) = self.look_up(name, sco, version).await? else {
            return Err(self.no_good_copy(name, &missing));
        };
        for answer in missing.iter().filter(|answer| is_damaged(answer)) {
            self.log_bad_copy(name, answer);
        }
        let newer = match held {
            Held::Version(version) => sco.version(version),
            Held::Bundle(bundle) => bundle,
        };
        match self.attempt(newer, read(sco.place(held))).await {
            Attempt::Over(outcome) => {
                self.versions.remember(sco, held, gone);
                outcome
            }
            Attempt::Gone(answers) if answers.iter().any(is_damaged) => {
                Err(self.no_good_copy(newer, &answers))
            }
            Attempt::Gone(answers) => {
                self.versions.forget(&sco, held);
                Err(self.between_versions(name, newer, &answers))
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

    /// What holds a SCO now, by listings: its newest version above `version`, or the bundle that it is in. That one is
    /// named after the last SCO in it, so it comes behind the SCO, and what comes between are the bundle's other members
    /// or what is being deleted.
    async fn look_up(
        self: &Arc<Self>,
        name: ObjectName,
        sco: Sco,
        version: u16,
    ) -> Result<Option<Held>, Refusal> {
        // Never closed.
        let _slot = self.versions.look_ups.acquire().await.ok();
        if let Some(newest) = self.versions.newer(&sco, version) {
            return Ok(Some(newest.held));
        }
        let (mut after, mut newest) = (sco.version(version), None);
        let (mut passed, mut damaged) = (0, None);
        loop {
            let page = self
                .list(sco.volume, ObjectKind::Sco, Some(after), LISTED_AT_ONCE)
                .await;
            let page = page.map_err(|refusal| self.cannot_look_up(name, &refusal))?;
            for (other, version) in page.iter().filter_map(Sco::of) {
                if version > 0 {
                    self.versions.remember(other, Held::Version(version), None);
                }
                if other == sco {
                    newest = Some(version);
                }
            }
            let is_last = page.len() < LISTED_AT_ONCE;
            if let Some(newest) = newest
                && (is_last || page.last().and_then(Sco::of).is_none_or(|(last, _)| last != sco))
            {
                return Ok(Some(Held::Version(newest)));
            }
            for bundle in page.iter().filter(|name| is_bundle(name)) {
                match self.look_into(name, sco, *bundle).await? {
                    Found::Here => return Ok(Some(Held::Bundle(*bundle))),
                    Found::Behind => passed += 1,
                    Found::Elsewhere => {}
                    Found::Damaged(refusal) => damaged = Some(refusal),
                }
                if passed > PASSED_MAX {
                    break;
                }
            }
            match page.last() {
                _ if damaged.is_some() && (is_last || passed > PASSED_MAX) => {
                    return damaged.map_or(Ok(None), Err);
                }
                _ if passed > PASSED_MAX => return Err(self.too_many_between(name)),
                Some(last) if !is_last => after = *last,
                _ => return Ok(None),
            }
        }
    }

    async fn look_into(
        self: &Arc<Self>,
        name: ObjectName,
        sco: Sco,
        bundle: ObjectName,
    ) -> Result<Found, Refusal> {
        let members = match self.members(bundle).await {
            Ok(members) => members,
            // It was deleted since the listing.
            Err(failed) if failed.iter().all(is_not_found) => return Ok(Found::Elsewhere),
            Err(failed) => {
                let refusal = self.no_good_copy(bundle, &failed);
                return match refusal.remedy {
                    Remedy::Damaged => Ok(Found::Damaged(refusal)),
                    _ => Err(refusal),
                };
            }
        };
        for (id, epoch) in &members {
            let member = Sco {
                volume: name.volume(),
                id: *id,
                epoch: *epoch,
            };
            self.versions.remember(member, Held::Bundle(bundle), None);
        }
        Ok(match members.first() {
            _ if members.contains(&(sco.id, sco.epoch)) => Found::Here,
            Some((first, _)) if *first > sco.id => Found::Behind,
            _ => Found::Elsewhere,
        })
    }
}

/// Where a SCO is, as seen from a bundle.
enum Found {
    /// In it.
    Here,
    /// Not in it, and all in it come behind the SCO.
    Behind,
    /// Not in it.
    Elsewhere,
    /// Nobody can tell.
    Damaged(Refusal),
}

fn is_damaged(answer: &Answer) -> bool {
    matches!(answer.error, BackendError::Damaged { .. })
}

fn is_not_found(answer: &Answer) -> bool {
    answer.error == BackendError::NotFound
}
