//! Puts of objects as fragments.
//!
//! Keeps: nothing.
//! Order: all fragments are written at once; answered for when a quorum is durable and the others have answered or had
//! their time.
//! Crash: some fragments may be there: the same put again completes them, and of too few a listing shows nothing.
//! Knows no kind of back end.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use sconce_fragments::{EncodeError, encode, encode_as};
use sconce_schemas::ObjectName;
use sconce_schemas::fragment::FragmentHead;
use sconce_schemas::stored_object::SealedObject;
use sconce_schemas::wire::{Refusal, RefusalCode};

use super::{Coded, Set};
use crate::backend::BackendError;
use crate::pool::repair::is_gone_for_good;
use crate::pool::{Answer, Pool};
use crate::share::PATIENCE;

/// What was made of a put's object.
struct Sealed {
    fragments: Vec<SealedObject>,
    set: u32,
    key: u32,
}

impl Pool {
    /// Stores an object as fragments.
    pub(in crate::pool) async fn put_fragments(
        self: &Arc<Self>,
        coded: &Coded,
        name: ObjectName,
        data: Bytes,
    ) -> Result<(), Refusal> {
        let sealed = self.encoded(coded, name, data.clone(), None).await?;
        coded.forget(&name);
        if self.was_changed() {
            let (mut there, mut away) = (Vec::new(), Vec::new());
            for (backend, found) in self.found(name, 0).await {
                match found {
                    Ok(Some(_)) => there.push(Answer {
                        backend,
                        error: BackendError::Exists,
                    }),
                    Err(error) if !is_gone_for_good(&error) => away.push(Answer { backend, error }),
                    _ => {}
                }
            }
            if self.is_changing() && there.is_empty() && away.len() >= self.quorum {
                // It may be on them alone, with other content.
                return Err(self.not_stored(name, &away));
            }
            if !there.is_empty() {
                // Its fragments may sit elsewhere than the map has them: each goes to its own seat.
                return self.agree(coded, name, sealed, data, &there).await;
            }
        }
        let places = self.places(&name);
        let (mut good, mut failed) = self.put_each(&places, &sealed.fragments).await;
        if failed.iter().any(|answer| answer.error == BackendError::Exists) {
            return self.agree(coded, name, sealed, data, &failed).await;
        }
        // What is there and not whole is of nobody's put: no whole fragment says otherwise.
        let damaged: Vec<usize> = failed
            .extract_if(.., |answer| matches!(answer.error, BackendError::Damaged { .. }))
            .map(|answer| answer.backend)
            .collect();
        let refused = self.replace_fragments(&places, &damaged, &sealed.fragments).await;
        good += damaged.len() - refused.len();
        failed.extend(refused);
        self.log_replaced(name, &damaged);
        self.answered_for(coded, name, good, &failed)
    }

    fn answered_for(
        &self,
        coded: &Coded,
        name: ObjectName,
        good: usize,
        failed: &[Answer],
    ) -> Result<(), Refusal> {
        if good < self.quorum {
            return Err(self.not_stored(name, failed));
        }
        if good < self.width {
            coded.note_short();
            tracing::info!(
                pool = %self.record.name, volume = %name.volume(), object = %name, failed = self.told(failed),
                "stored with {good} of {} fragments: the others follow when their back ends answer", self.width
            );
        }
        Ok(())
    }

    /// Some back ends have whole fragments that are not ours: of this object encoded otherwise (with another key, by a put
    /// that was cut short, or that another storage-router is at), or of another one. All who put the same object come to the
    /// same set: the one that was answered for, else the one with the lowest key. A fragment is replaced only by one of the
    /// same object, and only where its own set was not answered for.
    async fn agree(
        self: &Arc<Self>,
        coded: &Coded,
        name: ObjectName,
        ours: Sealed,
        data: Bytes,
        failed: &[Answer],
    ) -> Result<(), Refusal> {
        let _hold = self.holds.hold(name).await;
        let survey = self.survey(coded, name).await;
        let mut known = vec![ours];
        for set in &survey.sets {
            if known.iter().any(|sealed| sealed.set == set.head.set()) {
                continue;
            }
            let theirs = self.encoded(coded, name, data.clone(), Some(&set.head)).await?;
            if theirs.set != set.head.set() {
                // What of ours was written where nothing was gives way to what was there, if that is whole.
                let outcome = self.repair_fragments(coded, name, &mut 0).await;
                self.log_repair(name, outcome);
                coded.note_short();
                return Err(self.exists(name, failed));
            }
            known.push(theirs);
        }
        let members = |sealed: &Sealed| {
            let set = survey.sets.iter().find(|set| set.head.set() == sealed.set);
            set.map_or(0, Set::members)
        };
        known.sort_by_key(|sealed| (members(sealed) < self.quorum, sealed.key, sealed.set));
        let may_be_answered_for = |sealed: &Sealed| members(sealed) + survey.absent() >= self.quorum;
        let Some((target, others)) = known.split_first() else {
            return Ok(());
        };
        if members(target) < self.quorum && others.iter().any(may_be_answered_for) {
            return Err(self.not_stored(name, &survey.answers()));
        }
        let places: Vec<usize> = survey.seats.iter().copied().flatten().collect();
        let set = survey.sets.iter().find(|set| set.head.set() == target.set);
        let is_there = |place: &usize| set.is_some_and(|set| set.seats.contains(&Some(*place)));
        let replaced: Vec<usize> = places.iter().filter(|place| !is_there(place)).copied().collect();
        let refused = self
            .replace_fragments(&places, &replaced, &target.fragments)
            .await;
        // Another storage-router may have been at it too: what counts is what is there now.
        let now = self.survey(coded, name).await;
        let now = now.sets.iter().find(|set| set.head.set() == target.set);
        self.answered_for(coded, name, now.map_or(0, Set::members), &refused)
    }

    /// The object's fragments with the newest key, or with that of `head`.
    async fn encoded(
        &self,
        coded: &Coded,
        name: ObjectName,
        data: Bytes,
        head: Option<&Arc<FragmentHead>>,
    ) -> Result<Sealed, Refusal> {
        let head = head.cloned();
        let (policy, keys) = (coded.policy, Arc::clone(&coded.care.keys));
        let bytes = data.len() as u64;
        let job = move || {
            let encoded = match &head {
                None => encode(name, &policy, &keys, &data),
                Some(head) => encode_as(name, &policy, &keys, head, &data),
            };
            let encoded = match encoded {
                Ok(encoded) => encoded,
                Err(error @ (EncodeError::NoKey | EncodeError::Locked(_))) => {
                    return Err(BackendError::Locked {
                        why: error.to_string(),
                    });
                }
                Err(error) => return Err(denied(&error)),
            };
            let seal = |index: usize| {
                let fragment = encoded.fragment(index).unwrap_or_default();
                SealedObject::seal_fragment(name, encoded.head.id_of(index), fragment)
            };
            let fragments = (0..encoded.bodies.len()).map(seal).collect::<Result<Vec<_>, _>>();
            Ok(Sealed {
                fragments: fragments.map_err(|error| denied(&error))?,
                set: encoded.head.set(),
                key: encoded.head.sealing().map_or(0, |sealing| sealing.key),
            })
        };
        self.workers.run(bytes, job).await.map_err(|error| match error {
            BackendError::Locked { why } => self.no_key(name, &why),
            BackendError::Denied { why } => Refusal::reject(RefusalCode::Invalid, why),
            error => Refusal::retry(RefusalCode::Unavailable, error.to_string()),
        })
    }

    /// Puts each fragment on its back end: how many are there, and what the others said. Those that are slower than a
    /// quorum have [`PATIENCE`] to follow.
    async fn put_each(&self, places: &[usize], fragments: &[SealedObject]) -> (usize, Vec<Answer>) {
        let put = |(place, fragment): (&usize, &SealedObject)| {
            let (place, fragment) = (*place, fragment.clone());
            async move {
                let done = match self.backend(place) {
                    Ok(backend) => backend.put(&fragment).await,
                    Err(error) => Err(error),
                };
                (place, done)
            }
        };
        let mut puts: FuturesUnordered<_> = places.iter().zip(fragments).map(put).collect();
        let mut waiting: Vec<usize> = places.to_vec();
        let (mut good, mut failed) = (0, Vec::new());
        let mut take = |(backend, done): (usize, Result<(), BackendError>), good: &mut usize| {
            waiting.retain(|place| *place != backend);
            match done {
                Ok(()) => *good += 1,
                Err(error) => failed.push(Answer { backend, error }),
            }
        };
        while good < self.quorum
            && let Some(answer) = puts.next().await
        {
            take(answer, &mut good);
        }
        let waiting_at_quorum = waiting.clone();
        let mut take = |(backend, done): (usize, Result<(), BackendError>), good: &mut usize| {
            waiting.retain(|place| *place != backend);
            match done {
                Ok(()) => *good += 1,
                Err(error) => failed.push(Answer { backend, error }),
            }
        };
        let late = async {
            while let Some(answer) = puts.next().await {
                take(answer, &mut good);
            }
        };
        // Its work goes on at the back end; what comes of it is found by whoever restores the pool.
        let is_waited_for = places.iter().any(|place| {
            let is_working = self.backend(*place).is_ok_and(|backend| backend.works());
            is_working && waiting_at_quorum.contains(place)
        });
        let patience = if is_waited_for { PATIENCE } else { Duration::ZERO };
        let in_time = tokio::time::timeout(patience, late).await.is_ok();
        if !in_time {
            let why = format!("no answer within {} ms after the others", PATIENCE.as_millis());
            failed.extend(waiting.into_iter().map(|backend| Answer {
                backend,
                error: BackendError::Unavailable { why: why.clone() },
            }));
        }
        (good, failed)
    }

    /// Puts fragments in place of what is on these back ends; the answers of those that did not do it.
    async fn replace_fragments(
        &self,
        places: &[usize],
        backends: &[usize],
        fragments: &[SealedObject],
    ) -> Vec<Answer> {
        self.on_each_index(backends, |index, backend| {
            let fragment = places.iter().position(|place| *place == index);
            let fragment = fragment.and_then(|at| fragments.get(at)).cloned();
            async move {
                match fragment {
                    Some(fragment) => backend.replace(&fragment).await,
                    None => Err(BackendError::NotFound),
                }
            }
        })
        .await
    }
}

fn denied(error: &dyn std::fmt::Display) -> BackendError {
    BackendError::Denied {
        why: error.to_string(),
    }
}
