//! Room for requests: how many, and of how many bytes, are under way at once.
//!
//! Keeps: what is taken.
//! Order: who waits for room gets it in the order of asking.
//! Crash: nothing.
//! Knows no requests.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Room for so many requests, and so many bytes among them. One of more bytes than there are goes alone.
#[derive(Debug)]
pub(crate) struct Room {
    requests: Arc<Semaphore>,
    kib: Arc<Semaphore>,
    kib_max: u32,
}

/// A request's place, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Place(#[expect(dead_code, reason = "held")] [OwnedSemaphorePermit; 2]);

impl Room {
    /// Room for `requests` and `bytes`, one of either at least.
    pub(crate) fn new(requests: usize, bytes: u64) -> Self {
        // Tokio's semaphores count up to an eighth of a usize.
        let kib_max = u32::try_from(bytes.div_ceil(1024))
            .unwrap_or(u32::MAX)
            .clamp(1, u32::MAX >> 4);
        Self {
            requests: Arc::new(Semaphore::new(requests.clamp(1, Semaphore::MAX_PERMITS))),
            kib: Arc::new(Semaphore::new(kib_max as usize)),
            kib_max,
        }
    }

    /// A place for a request of `bytes`, where there is one and nobody waits for it.
    pub(crate) fn try_enter(&self, bytes: u64) -> Option<Place> {
        let request = Arc::clone(&self.requests).try_acquire_owned().ok()?;
        let space = Arc::clone(&self.kib)
            .try_acquire_many_owned(self.kib_of(bytes))
            .ok()?;
        Some(Place([request, space]))
    }

    /// Waits for a place for a request of `bytes`.
    pub(crate) async fn enter(&self, bytes: u64) -> Place {
        let entered = async {
            let request = Arc::clone(&self.requests).acquire_owned().await.ok()?;
            let space = Arc::clone(&self.kib)
                .acquire_many_owned(self.kib_of(bytes))
                .await
                .ok()?;
            Some(Place([request, space]))
        };
        match entered.await {
            Some(place) => place,
            // The semaphores are never closed.
            None => std::future::pending().await,
        }
    }

    fn kib_of(&self, bytes: u64) -> u32 {
        u32::try_from(bytes.div_ceil(1024)).map_or(self.kib_max, |kib| kib.min(self.kib_max))
    }
}
