//! Reads: from the first good copy, of a SCO that was scrubbed out of what is kept of it.
//!
//! Keeps: nothing.
//! Order: copies are tried one after the other, best place first, those that failed last time last; the caller is
//! answered before any repair.
//! Crash: nothing.
//! Knows no kind of back end.

use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use sconce_schemas::ObjectName;
use sconce_schemas::wire::Refusal;

use super::packed::is_packed;
use super::versions::Place;
use super::{Answer, Pool};
use crate::backend::BackendError;
use crate::checked::Checked;

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
            let get = |backend: Arc<Checked>| async move { backend.get(name, offset, length).await };
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
            self.first_good(name, |backend| async move { backend.stat(name).await })
                .await
        };
        self.read_current(name, read).await
    }

    /// What the first copy that is good gives; what each of them said where none is.
    pub(super) async fn first_good<T, A: Future<Output = Result<T, BackendError>>>(
        self: &Arc<Self>,
        name: ObjectName,
        ask: impl Fn(Arc<Checked>) -> A,
    ) -> Result<T, Vec<Answer>> {
        let mut haunts = self.haunts(&name);
        // A back end that hangs would hold up every read for its whole deadline. Puts find out when it works again.
        haunts.sort_by_key(|index| self.backend(*index).is_ok_and(|backend| !backend.works()));
        let mut failed = Vec::new();
        for backend in haunts {
            let answer = match self.backend(backend) {
                Ok(checked) => ask(checked).await,
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
