//! Reads: from the first good copy.
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

use super::{Answer, Pool};
use crate::backend::BackendError;
use crate::checked::Checked;

impl Pool {
    /// Reads `length` bytes of an object from `offset`; fewer, or none, where it ends before. Copies that turn out
    /// to be missing or damaged are repaired afterwards, in the background.
    ///
    /// # Errors
    /// A reject when no back end has the object; a retry when a copy may be on a back end that is absent now;
    /// `Damaged`, naming volume, object and back ends, when no good copy is left.
    pub async fn get(self: &Arc<Self>, name: ObjectName, offset: u64, length: u64) -> Result<Bytes, Refusal> {
        self.first_good(
            name,
            |backend| async move { backend.get(name, offset, length).await },
        )
        .await
    }

    /// Length of an object in bytes.
    ///
    /// # Errors
    /// As [`Pool::get`].
    pub async fn stat(self: &Arc<Self>, name: ObjectName) -> Result<u64, Refusal> {
        self.first_good(name, |backend| async move { backend.stat(name).await })
            .await
    }

    async fn first_good<T, A: Future<Output = Result<T, BackendError>>>(
        self: &Arc<Self>,
        name: ObjectName,
        ask: impl Fn(Arc<Checked>) -> A,
    ) -> Result<T, Refusal> {
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
        Err(self.no_good_copy(name, &failed))
    }
}
