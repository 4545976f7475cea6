//! Objects as fragments: what a pool with a policy does where another one has whole copies (docs/decisions/0200).
//!
//! Keeps: the policy, the keys, heads that were read and where their fragments are, up to a bound in bytes, and whether
//! fragments may be missing.
//! Order: see the parts: a put has a quorum before it is answered for, a read is answered before any repair.
//! Crash: heads are read again; what is missing is looked for again after a start.
//! Knows no kind of back end; what a fragment looks like is `sconce_fragments`'.

mod gather;
mod read;
mod repair;
mod restore;
#[cfg(test)]
mod tests;
mod write;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use quick_cache::Weighter;
use quick_cache::sync::Cache;
use sconce_fragments::{Keyring, OpenError, Policy};
use sconce_schemas::ObjectName;
use sconce_schemas::fragment::FragmentHead;
use sconce_schemas::records::Protection;

use super::repair::is_gone_for_good;
use super::{Answer, Pool};
use crate::backend::BackendError;
use crate::share::PATIENCE;

pub use restore::Restored;

/// Memory for heads: those of some 10,000 objects of 4 MiB.
const HEADS_BYTES_MAX: u64 = 16 << 20;
const HEADS_EXPECTED: usize = 1 << 13;
/// What the cache itself takes for a head, about.
const ENTRY_BYTES: usize = 128;

/// How a pool's fragments are cared for, besides what its record says.
#[derive(Debug, Clone)]
pub struct Care {
    /// Keys of the pool, where it is encrypted.
    pub keys: Arc<Keyring>,
    /// A back end that has not answered a read after so long is helped: others are asked too.
    pub hedge_after: Duration,
}

/// What a pool that keeps fragments has besides.
pub(super) struct Coded {
    policy: Policy,
    care: Care,
    known: Cache<ObjectName, Arc<Known>, ByBytes>,
    /// Fragments may be missing: a put fell short, a read found some missing, or nobody has looked since the start.
    is_short: AtomicBool,
}

/// Fragments of one encoding of an object: their head, and the back end of each that is there.
#[derive(Debug, Clone)]
struct Set {
    head: Arc<FragmentHead>,
    seats: Vec<Option<usize>>,
}

/// Where fragments are looked for.
struct Seats {
    of: Vec<Option<usize>>,
    /// What a back end said that a fragment was not found on, and may be on all the same.
    away: Vec<Option<BackendError>>,
}

/// What a back end said of which fragment it has.
pub(super) type Found = (usize, Result<Option<usize>, BackendError>);

/// An object whose head was read.
struct Known {
    set: Set,
    /// The placement version by which its seats are counted.
    placement_version: u64,
}

/// What is there of an object.
struct Survey {
    /// Fragments that belong together, largest set first.
    sets: Vec<Set>,
    /// Which back end each fragment is looked for on.
    seats: Vec<Option<usize>>,
    /// Fragments of which no head was read.
    failed: Vec<(usize, BackendError)>,
}

#[derive(Clone)]
struct ByBytes;

impl Weighter<ObjectName, Arc<Known>> for ByBytes {
    fn weight(&self, _: &ObjectName, known: &Arc<Known>) -> u64 {
        let seats = size_of_val(&known.set.seats[..]);
        (ENTRY_BYTES + known.set.head.memory() + seats) as u64
    }
}

impl Coded {
    pub(super) fn new(policy: Policy, care: Care) -> Self {
        Self {
            policy,
            care,
            known: Cache::with_weighter(HEADS_EXPECTED, HEADS_BYTES_MAX, ByBytes),
            is_short: AtomicBool::new(true),
        }
    }

    /// How many fragments are needed to read an object.
    pub(super) const fn needed(&self) -> usize {
        match self.policy.protection {
            Protection::Replicas(_) => 1,
            Protection::Erasure { data, .. } => data as usize,
        }
    }

    /// Forgets the head of an object that is being deleted or put anew.
    pub(super) fn forget(&self, name: &ObjectName) {
        self.known.remove(name);
    }

    pub(super) fn note_short(&self) {
        self.is_short.store(true, Ordering::Relaxed);
    }
}

impl Set {
    fn members(&self) -> usize {
        self.seats.iter().flatten().count()
    }

    fn is_complete(&self) -> bool {
        self.members() >= usize::from(self.head.cut().data)
    }
}

impl Survey {
    /// How many fragments might be anything.
    fn absent(&self) -> usize {
        let is_absent = |(_, error): &&(usize, BackendError)| !is_gone_for_good(error);
        self.failed.iter().filter(is_absent).count()
    }

    /// The set that is the object: enough fragments to read it, and no other one could be what was answered for.
    fn chosen(&self, quorum: usize) -> Option<&Set> {
        let (first, others) = self.sets.split_first()?;
        let most = others.first().map_or(0, Set::members);
        let is_alone = most == 0 || first.members() >= quorum || first.members() > most + self.absent();
        (first.is_complete() && is_alone).then_some(first)
    }

    fn answers(&self) -> Vec<Answer> {
        read::answers(&self.seats, self.failed.clone())
    }

    /// What is said of fragments that are there and are no object.
    fn too_few(&self, quorum: usize) -> Vec<Answer> {
        let members: usize = self.sets.iter().map(Set::members).sum();
        let Some(backend) = self
            .sets
            .first()
            .and_then(|set| set.seats.iter().flatten().next())
        else {
            return Vec::new();
        };
        if self.absent() > 0 {
            return Vec::new();
        }
        let what = format!(
            "of its fragments {members} are left in {} sets, none of which is enough ({quorum} were answered for)",
            self.sets.len()
        );
        vec![Answer {
            backend: *backend,
            error: BackendError::Damaged { what },
        }]
    }
}

impl Pool {
    /// Which back end each fragment of an object is looked for on, and written to where it is nowhere. Once `needed` are found nobody waits for
    /// a back end that is slow; 0: all are looked for.
    async fn seats(&self, name: ObjectName, needed: usize) -> Seats {
        let places = self.places(&name);
        if !self.was_changed() {
            return Seats {
                away: vec![None; self.width],
                of: places.into_iter().map(Some).collect(),
            };
        }
        let found = self.found(name, needed).await;
        let of = seated(self.width, &places, &found);
        let away = of.iter().map(|seat| {
            let answer = found.iter().find(|(backend, _)| Some(*backend) == *seat);
            let error = answer.and_then(|(_, answer)| answer.as_ref().err());
            error.filter(|error| !is_gone_for_good(error)).cloned()
        });
        Seats {
            away: away.collect(),
            of,
        }
    }

    /// The head of a fragment where its seat is.
    async fn head_of(
        &self,
        coded: &Coded,
        name: ObjectName,
        fragment: usize,
        seats: &Seats,
    ) -> Result<Arc<FragmentHead>, BackendError> {
        // Where it may be and who did not answer may have another one: that would be taken for damage.
        if let Some(error) = seats.away.get(fragment).cloned().flatten() {
            return Err(error);
        }
        let seat = seats.of.get(fragment).copied().flatten();
        self.head_at(coded, name, fragment, seat).await
    }

    /// Which fragment of an object each back end has, best place first. Once `enough` are found nobody waits for a back end that is slow.
    pub(super) async fn found(&self, name: ObjectName, enough: usize) -> Vec<Found> {
        let haunts = self.haunts(&name);
        let patience = self
            .coded
            .as_ref()
            .map_or(PATIENCE, |coded| coded.care.hedge_after);
        let limit = |answers: &[Found]| {
            let numbers = answers
                .iter()
                .filter_map(|(_, found)| found.as_ref().ok().copied().flatten());
            match numbers.collect::<BTreeSet<usize>>().len() {
                all if all >= self.width => Some(Duration::ZERO),
                many if many >= enough && enough > 0 => Some(patience),
                _ if enough > 0 => None,
                _ => Some(PATIENCE),
            }
        };
        let asked = self.ask_until(&haunts, limit, |backend| async move {
            let fragment = backend.fragment_of(name).await?;
            Ok(fragment.map(|fragment| usize::from(fragment.index)))
        });
        asked.await
    }

    /// An object whose head was read, if its seats are still counted so.
    fn known(&self, coded: &Coded, name: &ObjectName) -> Option<Arc<Known>> {
        let known = coded.known.get(name);
        known.filter(|known| known.placement_version == self.record.placement_version)
    }

    fn know(&self, coded: &Coded, name: ObjectName, set: Set) -> Arc<Known> {
        let known = Arc::new(Known {
            set,
            placement_version: self.record.placement_version,
        });
        coded.known.insert(name, Arc::clone(&known));
        known
    }
}

/// A seat for each of `width` fragments: where it was found, best place first. Of those that were not, as many as there are back ends that
/// did not answer may be there; the others have a place that has no other's, the one that the map has for it where that is free.
pub(super) fn seated(width: usize, places: &[usize], found: &[Found]) -> Vec<Option<usize>> {
    let mut seats = vec![None; width];
    for (backend, fragment) in found {
        let seat = match fragment {
            Ok(Some(fragment)) => seats.get_mut(*fragment),
            _ => None,
        };
        if let Some(seat) = seat {
            seat.get_or_insert(*backend);
        }
    }
    let is_away = |(_, answer): &&Found| answer.as_ref().is_err_and(|error| !is_gone_for_good(error));
    let away: Vec<usize> = found
        .iter()
        .filter(is_away)
        .map(|(backend, _)| *backend)
        .collect();
    for candidates in [&away[..], places] {
        // The one that the map has for it is the likeliest.
        for (fragment, place) in places.iter().enumerate() {
            if seats[fragment].is_none() && candidates.contains(place) && !seats.contains(&Some(*place)) {
                seats[fragment] = Some(*place);
            }
        }
        for candidate in candidates {
            if !seats.contains(&Some(*candidate))
                && let Some(seat) = seats.iter_mut().find(|seat| seat.is_none())
            {
                *seat = Some(*candidate);
            }
        }
    }
    seats
}

/// What a chunk that cannot be opened means for the back end that it came from.
fn closed(error: OpenError) -> BackendError {
    match error {
        OpenError::Damaged(what) => BackendError::Damaged { what },
        error => BackendError::Locked {
            why: error.to_string(),
        },
    }
}
