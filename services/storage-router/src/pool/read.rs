//! Reads: from the first good copy, of a SCO that was scrubbed out of what is kept of it.
//!
//! Keeps: nothing.
//! Order: copies are tried one after the other, best place first, those that failed last time last; the caller is
//! answered before any repair.
//! Crash: nothing.
//! Knows no kind of back end.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use sconce_schemas::ObjectName;
use sconce_schemas::wire::Refusal;

use super::packed::is_packed;
use super::versions::Place;
use super::{Answer, Pool};
use crate::backend::BackendError;
use crate::checked::Checked;

/// What an object is read from.
pub(super) enum Source {
    /// One of its copies.
    Copy(Arc<Checked>),
    /// Its fragments.
    Fragments {
        pool: Arc<Pool>,
        /// What the back ends said where it cannot be read.
        said: Arc<Mutex<Vec<Answer>>>,
    },
}

impl Source {
    /// Reads `length` bytes from `offset`; fewer, or none, where it ends before.
    pub(super) async fn get(
        &self,
        name: ObjectName,
        offset: u64,
        length: u64,
    ) -> Result<Bytes, BackendError> {
        match self {
            Self::Copy(copy) => copy.get(name, offset, length).await,
            Self::Fragments { pool, said } => {
                let end = offset.saturating_add(length);
                tell(said, pool.read_fragments(name, offset..end).await)
            }
        }
    }

    /// Length of the object in bytes.
    pub(super) async fn stat(&self, name: ObjectName) -> Result<u64, BackendError> {
        match self {
            Self::Copy(copy) => copy.stat(name).await,
            Self::Fragments { pool, said } => tell(said, pool.length_by_fragments(name).await),
        }
    }
}

fn tell<T>(said: &Mutex<Vec<Answer>>, answer: Result<T, Vec<Answer>>) -> Result<T, BackendError> {
    answer.map_err(|answers| {
        let error = answers
            .first()
            .map_or(BackendError::NotFound, |first| first.error.clone());
        *said.lock().unwrap_or_else(PoisonError::into_inner) = answers;
        error
    })
}

impl Pool {
    /// Reads `length` bytes of an object from `offset`; fewer, or none, where it ends before. Copies that turn out
    /// to be missing or damaged are repaired afterwards, in the background. A version of a SCO that is gone is read
    /// out of a newer one, or out of the bundle that holds what is left of it; offsets are always those of the SCO as it was written, with zeros where a scrub dropped it.
    ///
    /// # Errors
    /// A reject when no back end has the object; a retry when a copy may be on a back end that is absent now;
    /// `Damaged`, naming volume, object and back ends, when no good copy is left.
    pub async fn get(self: &Arc<Self>, name: ObjectName, offset: u64, length: u64) -> Result<Bytes, Refusal> {
        let read = |place: Place| async move {
            let name = match place {
                Place::Bundle(bundle, sco) => return self.get_bundled(bundle, sco, offset, length).await,
                Place::Own(name) if is_packed(&name) => return self.get_packed(name, offset, length).await,
                Place::Own(name) => name,
            };
            let get = |source: Source| async move { source.get(name, offset, length).await };
            self.first_good(name, get).await
        };
        self.read_current(name, read).await
    }

    /// Length of an object in bytes; of a SCO, that of the SCO as it was written.
    ///
    /// # Errors
    /// As [`Pool::get`].
    pub async fn stat(self: &Arc<Self>, name: ObjectName) -> Result<u64, Refusal> {
        let read = |place: Place| async move {
            let name = match place {
                Place::Bundle(bundle, sco) => return self.length_of_bundled(bundle, sco).await,
                Place::Own(name) if is_packed(&name) => return self.length_of_packed(name).await,
                Place::Own(name) => name,
            };
            self.first_good(name, |source| async move { source.stat(name).await })
                .await
        };
        self.read_current(name, read).await
    }

    /// What the first copy that is good gives, or what the object's fragments give; what each of them said where none is.
    pub(super) async fn first_good<T, A: Future<Output = Result<T, BackendError>>>(
        self: &Arc<Self>,
        name: ObjectName,
        ask: impl Fn(Source) -> A,
    ) -> Result<T, Vec<Answer>> {
        if self.coded.is_some() {
            let said = Arc::default();
            let source = Source::Fragments {
                pool: Arc::clone(self),
                said: Arc::clone(&said),
            };
            let answer = ask(source).await;
            return answer.map_err(|error| {
                let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
                if said.is_empty() {
                    // Good fragments, whose content is not what it should be.
                    let backend = self.places(&name).first().copied().unwrap_or(0);
                    said.push(Answer { backend, error });
                }
                std::mem::take(&mut *said)
            });
        }
        let mut haunts = self.haunts(&name);
        // A back end that hangs would hold up every read for its whole deadline. Puts find out when it works again.
        haunts.sort_by_key(|index| self.backend(*index).is_ok_and(|backend| !backend.works()));
        let mut failed = Vec::new();
        for backend in haunts {
            let answer = match self.backend(backend) {
                Ok(checked) => ask(Source::Copy(checked)).await,
                Err(error) => Err(error),
            };
            match answer {
                Ok(good) => {
                    self.repair_later(name, &failed);
                    return Ok(good);
                }
                Err(error) => failed.push(Answer { backend, error }),
            }
        }
        Err(failed)
    }
}
