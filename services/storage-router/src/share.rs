//! One back end's share of the service's room, so that one that hangs leaves the rest to the others.
//!
//! Keeps: what is under way at the back end, and since when none of it was answered.
//! Order: who waits for a place gets it in the order of asking.
//! Crash: nothing.
//! Knows no requests.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::room::{Place, Room};

/// After so long without an answer a back end counts as stuck. Also how long a request waits for a place where it does
/// not: a request that waits takes the service's room.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);

/// A share of the service's room.
#[derive(Debug)]
pub(crate) struct Share {
    room: Room,
    pace: Mutex<Pace>,
}

#[derive(Debug)]
struct Pace {
    under_way: usize,
    /// The last answer, or the first request since there was nothing under way.
    since: Instant,
}

/// A request that is under way.
#[derive(Debug)]
pub(crate) struct Started<'a> {
    share: &'a Share,
    _place: Place,
}

impl Share {
    pub(crate) fn new(room: Room) -> Self {
        let since = Instant::now();
        Self {
            room,
            pace: Mutex::new(Pace { under_way: 0, since }),
        }
    }

    /// A place for a request of `bytes`; `None` where none becomes free within [`PATIENCE`], and at once where the back
    /// end is stuck.
    pub(crate) async fn enter(&self, bytes: u64) -> Option<Started<'_>> {
        let place = match self.room.try_enter(bytes) {
            Some(place) => place,
            None if self.is_stuck() => return None,
            None => tokio::time::timeout(PATIENCE, self.room.enter(bytes))
                .await
                .ok()?,
        };
        let mut pace = self.pace();
        if pace.under_way == 0 {
            pace.since = Instant::now();
        }
        pace.under_way += 1;
        drop(pace);
        Some(Started {
            share: self,
            _place: place,
        })
    }

    /// Whether requests are under way and none was answered for [`PATIENCE`].
    pub(crate) fn is_stuck(&self) -> bool {
        let pace = self.pace();
        pace.under_way > 0 && pace.since.elapsed() >= PATIENCE
    }

    fn pace(&self) -> MutexGuard<'_, Pace> {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Started<'_> {
    /// The back end answered.
    pub(crate) fn answered(self) {
        self.share.pace().since = Instant::now();
    }
}

impl Drop for Started<'_> {
    fn drop(&mut self) {
        self.share.pace().under_way -= 1;
    }
}
