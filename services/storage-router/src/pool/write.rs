//! Puts and deletes of copies: all copies, or an answer that says which one is missing.
//!
//! Keeps: nothing.
//! Order: the copies are written at once, and answered for when the last one is durable.
//! Crash: some copies may be there; the same put again completes them, the same delete again removes them.
//! Knows no kind of back end.

use std::future::Future;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use sconce_schemas::ObjectName;
use sconce_schemas::bundle::BundleIndex;
use sconce_schemas::packed_sco::PackedSco;
use sconce_schemas::stored_object::SealedObject;
use sconce_schemas::wire::{Refusal, RefusalCode};

use super::bundles::is_bundle;
use super::packed::is_packed;
use super::repair::{is_gone_for_good, read_through};
use super::{Answer, Pool};
use crate::backend::BackendError;
use crate::checked::{Checked, damaged};
use crate::share::PATIENCE;

impl Pool {
    /// Stores an object: done when every copy is durable, in a pool with an erasure code when as many fragments are as
    /// its quorum says. The same object again succeeds.
    ///
    /// # Errors
    /// A reject when another object has this name, or when a SCO of a version above 0 is no packed one; a retry, naming
    /// the back ends, when a copy cannot be stored now.
    pub async fn put(self: &Arc<Self>, name: ObjectName, data: Bytes) -> Result<(), Refusal> {
        if is_bundle(&name) {
            BundleIndex::check_whole(&data).map_err(|error| self.not_packed(name, &error))?;
        } else if is_packed(&name) {
            // The version before is deleted because this one is there: what nobody could read must not be it.
            PackedSco::check(&data).map_err(|error| self.not_packed(name, &error))?;
        }
        if let Some(coded) = &self.coded {
            return self.put_fragments(coded, name, data).await;
        }
        let bytes = data.len() as u64;
        let seal = move || {
            SealedObject::seal(name, data).map_err(|error| BackendError::Denied {
                why: error.to_string(),
            })
        };
        let sealed = self.workers.run(bytes, seal).await;
        let object = sealed.map_err(|error| Refusal::reject(RefusalCode::Invalid, error.to_string()))?;
        let places = self.places(&name);
        if self.was_changed() {
            self.refuse_other_elsewhere(name, &places, &object).await?;
        }
        let put = |backend: Arc<Checked>| {
            let object = object.clone();
            async move { backend.put(&object).await }
        };
        let mut failed = self.on_each(&places, put).await;
        if failed.iter().any(|answer| answer.error == BackendError::Exists) {
            self.give_way(name, &places, &failed).await;
            return Err(self.exists(name, &failed));
        }
        // No whole copy says otherwise, so what is damaged is a copy of this object.
        let is_damaged = |answer: &Answer| matches!(answer.error, BackendError::Damaged { .. });
        let damaged: Vec<usize> = failed
            .extract_if(.., |answer| is_damaged(answer))
            .map(|a| a.backend)
            .collect();
        failed.extend(self.replace_on(&damaged, &object).await);
        if failed.is_empty() {
            self.log_replaced(name, &damaged);
            return Ok(());
        }
        Err(self.not_stored(name, &failed))
    }

    /// Another object has the name on some back ends: a put that was cut short, or one that was answered for and lost its other copies.
    /// Where this put made a copy of its own that one takes its place. Two contents of one name would each be read now and then.
    async fn give_way(&self, name: ObjectName, places: &[usize], failed: &[Answer]) {
        let error_at = |place: &usize| failed.iter().find(|answer| answer.backend == *place);
        let made: Vec<usize> = places
            .iter()
            .filter(|place| error_at(place).is_none())
            .copied()
            .collect();
        if made.is_empty() {
            return;
        }
        let _hold = self.holds.hold(name).await;
        let has_it = |answer: &&Answer| answer.error == BackendError::Exists;
        for answer in failed.iter().filter(has_it) {
            if let Ok(object) = self.whole_on(answer.backend, name).await
                && object.fragment().is_none()
                && self.replace_on(&made, &object).await.is_empty()
            {
                return;
            }
        }
        tracing::error!(
            pool = %self.record().name,
            object = %name,
            "two objects have this name on different back ends, and neither could be put in the other's place"
        );
    }

    /// Refuses what an object of other content stands against that is on other back ends than those that the map has for it now.
    async fn refuse_other_elsewhere(
        &self,
        name: ObjectName,
        places: &[usize],
        object: &SealedObject,
    ) -> Result<(), Refusal> {
        let mut elsewhere = self.haunts(&name);
        elsewhere.retain(|haunt| !places.contains(haunt));
        let limit = |_: &[_]| Some(PATIENCE);
        let asked = self.ask_until(
            &elsewhere,
            limit,
            |backend| async move { backend.stat(name).await },
        );
        let mut away = Vec::new();
        for (backend, there) in asked.await {
            if let Err(error) = &there
                && !is_gone_for_good(error)
            {
                away.push(Answer {
                    backend,
                    error: error.clone(),
                });
            }
            if there.is_ok()
                && let Ok(other) = self.whole_on(backend, name).await
                && other.data() != object.data()
            {
                let error = BackendError::Exists;
                return Err(self.exists(name, &[Answer { backend, error }]));
            }
        }
        // It may be on them alone.
        if self.is_changing() && away.len() >= self.width {
            return Err(self.not_stored(name, &away));
        }
        Ok(())
    }

    /// What a back end has of an object, whole: a copy or a fragment.
    pub(super) async fn whole_on(
        &self,
        index: usize,
        name: ObjectName,
    ) -> Result<SealedObject, BackendError> {
        let backend = self.backend(index)?;
        let fragment = backend.fragment_of(name).await?;
        let mut whole = BytesMut::new();
        let read = read_through(&backend, name, fragment, |piece| whole.extend_from_slice(piece));
        read.await?;
        SealedObject::seal_fragment(name, fragment, whole.freeze()).map_err(|error| damaged(&error))
    }

    /// Removes all copies of an object; one that is not there is no error.
    ///
    /// # Errors
    /// A retry, naming the back ends, when a copy may be left.
    pub async fn delete(&self, name: ObjectName) -> Result<(), Refusal> {
        let _hold = self.holds.hold(name).await;
        let failed = self.delete_held(name).await;
        if failed.is_empty() {
            return Ok(());
        }
        Err(self.not_deleted(name, &failed))
    }

    /// Removes all copies of an object that the caller holds; what those said that did not do it.
    async fn delete_held(&self, name: ObjectName) -> Vec<Answer> {
        let mut haunts = self.haunts(&name);
        haunts.retain(|haunt| !self.is_lost(*haunt));
        let failed = self
            .on_each(&haunts, |backend| async move { backend.delete(name).await })
            .await;
        self.heads.forget(&name);
        if let Some(coded) = &self.coded {
            coded.forget(&name);
        }
        failed
    }

    /// The same, told which of them each is.
    pub(super) async fn on_each_index<A: Future<Output = Result<(), BackendError>>>(
        &self,
        indices: &[usize],
        ask: impl Fn(usize, Arc<Checked>) -> A,
    ) -> Vec<Answer> {
        let asked = indices.iter().map(|index| {
            let answer = self.backend(*index).map(|backend| ask(*index, backend));
            async move {
                let done = match answer {
                    Ok(answer) => answer.await,
                    Err(error) => Err(error),
                };
                done.err().map(|error| Answer {
                    backend: *index,
                    error,
                })
            }
        });
        futures_util::future::join_all(asked)
            .await
            .into_iter()
            .flatten()
            .collect()
    }

    /// Asks several back ends at once; gives the answers of those that did not do it.
    pub(super) async fn on_each<A: Future<Output = Result<(), BackendError>>>(
        &self,
        indices: &[usize],
        ask: impl Fn(Arc<Checked>) -> A,
    ) -> Vec<Answer> {
        let answers = self.ask_each(indices, ask).await.into_iter();
        let failed =
            |(backend, done): (usize, Result<(), _>)| done.err().map(|error| Answer { backend, error });
        answers.filter_map(failed).collect()
    }

    /// Puts an object in place of bad copies.
    pub(super) async fn replace_on(&self, indices: &[usize], object: &SealedObject) -> Vec<Answer> {
        self.on_each(indices, |backend| {
            let object = object.clone();
            async move { backend.replace(&object).await }
        })
        .await
    }
}
