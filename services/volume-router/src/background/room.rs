//! How much is on its way to the back ends at a time, in requests and in bytes.
//!
//! Keeps: the limits and what is taken of them.
//! Order: first come, first served.
//! Crash: nothing.
//! Knows no jobs.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use tokio::sync::{Semaphore, SemaphorePermit};

/// Bytes are counted in units of this, so that they fit a semaphore's count.
const UNIT: u64 = 4096;

/// The gauge: what waits and what is under way. Shared with whoever reports it.
#[derive(Debug)]
pub(crate) struct RoomUsage {
    /// Most requests under way.
    pub(crate) requests_max: usize,
    /// Most bytes under way.
    pub(crate) bytes_max: u64,
    waiting: AtomicUsize,
    requests: AtomicUsize,
    bytes: AtomicU64,
}

impl RoomUsage {
    pub(crate) fn new(requests_max: usize, bytes_max: u64) -> Self {
        Self {
            requests_max,
            bytes_max,
            waiting: AtomicUsize::new(0),
            requests: AtomicUsize::new(0),
            bytes: AtomicU64::new(0),
        }
    }

    /// Jobs that wait for room; there is at most one for each file of the write buffer and a few for each volume.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Requests under way.
    pub(crate) fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }

    /// Bytes under way.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

/// Gives room out; lives on one thread.
#[derive(Debug)]
pub(crate) struct Room {
    usage: Arc<RoomUsage>,
    requests: Rc<Semaphore>,
    bytes: Rc<Semaphore>,
}

/// Room that a job has, until it is dropped.
#[derive(Debug)]
pub(crate) struct Taken<'a> {
    usage: &'a RoomUsage,
    bytes: u64,
    _request: Option<SemaphorePermit<'a>>,
    _bytes: Option<SemaphorePermit<'a>>,
}

impl Room {
    pub(crate) fn new(usage: Arc<RoomUsage>) -> Self {
        let units = usize::try_from(usage.bytes_max / UNIT).unwrap_or(usize::MAX);
        Self {
            requests: Rc::new(Semaphore::new(usage.requests_max)),
            bytes: Rc::new(Semaphore::new(units.min(Semaphore::MAX_PERMITS))),
            usage,
        }
    }

    /// Waits for room for a request of this many bytes; one that is larger than all the room takes all of it.
    pub(crate) async fn take(&self, bytes: u64) -> Taken<'_> {
        let bytes = bytes.min(self.usage.bytes_max);
        let units = u32::try_from(bytes / UNIT).unwrap_or(u32::MAX);
        let waiting = Waiting::new(&self.usage.waiting);
        // A semaphore that is never closed always gives in the end.
        let request = self.requests.acquire().await.ok();
        let permit = self.bytes.acquire_many(units).await.ok();
        drop(waiting);
        self.usage.requests.fetch_add(1, Ordering::Relaxed);
        self.usage.bytes.fetch_add(bytes, Ordering::Relaxed);
        Taken {
            usage: &self.usage,
            bytes,
            _request: request,
            _bytes: permit,
        }
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.usage.requests.fetch_sub(1, Ordering::Relaxed);
        self.usage.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Counts one that waits, also where the wait is given up.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
