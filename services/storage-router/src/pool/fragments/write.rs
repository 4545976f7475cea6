//! Puts of objects as fragments.
//!
//! Keeps: nothing.
//! Order: all fragments are written at once; answered for when a quorum is durable and the others have answered or had
//! their time.
//! Crash: some fragments may be there: the same put again completes them, and of too few a listing shows nothing.
//! Knows no kind of back end.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use sconce_fragments::{EncodeError, encode};
use sconce_schemas::ObjectName;
use sconce_schemas::stored_object::SealedObject;
use sconce_schemas::wire::{Refusal, RefusalCode};

use super::{Coded, Set};
use crate::backend::BackendError;
use crate::pool::{Answer, Pool};
use crate::share::PATIENCE;

/// What was made of a put's object.
struct Sealed {
    fragments: Vec<SealedObject>,
    set: u32,
}

impl Pool {
    /// Stores an object as fragments.
    pub(in crate::pool) async fn put_fragments(
        self: &Arc<Self>,
        coded: &Coded,
        name: ObjectName,
        data: Bytes,
    ) -> Result<(), Refusal> {
        let sealed = self.encoded(coded, name, data.clone()).await?;
        coded.forget(&name);
        let places = self.places(&name);
        let (mut good, mut failed) = self.put_each(&places, &sealed.fragments).await;
        // What is there and not whole is of nobody's put: no whole fragment says otherwise.
        let damaged: Vec<usize> = failed
            .extract_if(.., |answer| matches!(answer.error, BackendError::Damaged { .. }))
            .map(|answer| answer.backend)
            .collect();
        let conflicts = failed.iter().any(|answer| answer.error == BackendError::Exists);
        let mut replaced = damaged.clone();
        if conflicts {
            if self.is_there_already(coded, name, &sealed, &data, &failed).await? {
                return Ok(());
            }
            // Left by a put that was never answered for.
            let left = failed.extract_if(.., |answer| answer.error == BackendError::Exists);
            replaced.extend(left.map(|answer| answer.backend));
        }
        let refused = self.replace_fragments(&places, &replaced, &sealed.fragments).await;
        good += replaced.len() - refused.len();
        failed.extend(refused);
        if good < self.quorum {
            return Err(self.not_stored(name, &failed));
        }
        self.log_replaced(name, &damaged);
        if !failed.is_empty() {
            coded.note_short();
            tracing::info!(
                pool = %self.record.name, volume = %name.volume(), object = %name, failed = self.told(&failed),
                "stored with {good} of {} fragments: the others follow when their back ends answer", self.width
            );
        }
        Ok(())
    }

    async fn encoded(&self, coded: &Coded, name: ObjectName, data: Bytes) -> Result<Sealed, Refusal> {
        let (policy, keys) = (coded.policy, Arc::clone(&coded.care.keys));
        let bytes = data.len() as u64;
        let job = move || {
            let encoded = match encode(name, &policy, &keys, &data) {
                Ok(encoded) => encoded,
                Err(error @ EncodeError::NoKey) => {
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
        let late = async {
            while let Some(answer) = puts.next().await {
                take(answer, &mut good);
            }
        };
        // Its work goes on at the back end; what comes of it is found by whoever restores the pool.
        let in_time = tokio::time::timeout(PATIENCE, late).await.is_ok();
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

    /// Some back ends have whole fragments that are not ours. Whether the object is there all the same, encoded otherwise:
    /// with another key, or by another build's compression.
    ///
    /// # Errors
    /// Another object has this name; or whether that is so cannot be found out now.
    async fn is_there_already(
        self: &Arc<Self>,
        coded: &Coded,
        name: ObjectName,
        sealed: &Sealed,
        data: &Bytes,
        failed: &[Answer],
    ) -> Result<bool, Refusal> {
        let (sets, absent) = self.survey(coded, name).await;
        let others = sets.into_iter().filter(|set| set.head.set() != sealed.set);
        for set in others.filter(Set::is_complete) {
            let length = set.head.cut().length;
            let read = match length {
                0 => Ok(Bytes::new()),
                _ => self.read_set(coded, name, &set, &(0..length)).await,
            };
            match read {
                Ok(there) if there == *data => {
                    self.repair_later(name, failed);
                    return Ok(true);
                }
                Ok(_) => {
                    // Of ours, some may have been written where nothing was.
                    coded.note_short();
                    return Err(self.exists(name, failed));
                }
                Err(answers) => return Err(self.not_stored(name, &answers)),
            }
        }
        let absent: Vec<Answer> = absent
            .into_iter()
            .filter(|answer| {
                !matches!(
                    answer.error,
                    BackendError::NotFound | BackendError::Damaged { .. }
                )
            })
            .collect();
        if absent.is_empty() {
            return Ok(false);
        }
        Err(self.not_stored(name, &absent))
    }
}

fn denied(error: &dyn std::fmt::Display) -> BackendError {
    BackendError::Denied {
        why: error.to_string(),
    }
}
