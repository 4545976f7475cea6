//! How much is on its way to the back ends at a time, in requests and in bytes, for each storage pool: one that is slow or
//! gone takes no room from the others.
//!
//! Keeps: the limits and what is taken of them.
//! Order: first come, first served.
//! Crash: nothing.
//! Knows no jobs.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// How soon what waits for its turn notices that it is pressed.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Bytes are counted in units of this, so that they fit a semaphore's count.
const UNIT: u64 = 4096;

/// The gauges of all pools. Shared with whoever reports them.
#[derive(Debug)]
pub(crate) struct RoomUsage {
    /// Most requests under way to one pool.
    pub(crate) requests_max: usize,
    /// Most bytes under way to one pool.
    pub(crate) bytes_max: u64,
    pools: Mutex<BTreeMap<Arc<str>, Arc<PoolUsage>>>,
}

/// The gauge of one pool: what waits and what is under way.
#[derive(Debug, Default)]
pub(crate) struct PoolUsage {
    waiting: AtomicUsize,
    requests: AtomicUsize,
    bytes: AtomicU64,
}

impl RoomUsage {
    pub(crate) fn new(requests_max: usize, bytes_max: u64) -> Self {
        Self {
            requests_max,
            bytes_max,
            pools: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Arc<str>, Arc<PoolUsage>>> {
        self.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pools that anything was sent to, and their gauges.
    pub(crate) fn pools(&self) -> Vec<(Arc<str>, Arc<PoolUsage>)> {
        let pools = self.lock();
        pools
            .iter()
            .map(|(pool, usage)| (Arc::clone(pool), Arc::clone(usage)))
            .collect()
    }
}

impl PoolUsage {
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
    pools: RefCell<HashMap<Arc<str>, PoolRoom>>,
}

#[derive(Debug, Clone)]
struct PoolRoom {
    usage: Arc<PoolUsage>,
    requests: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    /// The turn of what has time.
    calm: Arc<Semaphore>,
}

/// Room that a request has, until it is dropped.
#[derive(Debug)]
pub(crate) struct Taken {
    usage: Arc<PoolUsage>,
    bytes: u64,
    _calm: Option<OwnedSemaphorePermit>,
    _request: Option<OwnedSemaphorePermit>,
    _bytes: Option<OwnedSemaphorePermit>,
}

impl Room {
    pub(crate) fn new(usage: Arc<RoomUsage>) -> Self {
        Self {
            usage,
            pools: RefCell::default(),
        }
    }

    /// The same for what has time: one of a pool after the other, unless it is pressed.
    pub(crate) async fn take_calmly(
        &self,
        pool: &Arc<str>,
        bytes: u64,
        is_pressed: impl Fn() -> bool,
    ) -> Taken {
        let PoolRoom { calm, usage, .. } = self.of(pool);
        let waiting = Waiting::new(&usage.waiting);
        let mut turn = None;
        while turn.is_none() && !is_pressed() {
            let next = timeout(LOOK_AGAIN, Arc::clone(&calm).acquire_owned()).await;
            turn = next.ok().and_then(Result::ok);
        }
        drop(waiting);
        let mut taken = self.take(pool, bytes).await;
        taken._calm = turn;
        taken
    }

    /// Waits for room for a request of this many bytes to this pool; one that is larger than all the room takes all of
    /// it. For one request, not for a job: one that is tried again in a while needs no room meanwhile.
    pub(crate) async fn take(&self, pool: &Arc<str>, bytes: u64) -> Taken {
        let room = self.of(pool);
        let bytes = bytes.min(self.usage.bytes_max);
        let units = u32::try_from(bytes / UNIT).unwrap_or(u32::MAX);
        let waiting = Waiting::new(&room.usage.waiting);
        // A semaphore that is never closed always gives in the end.
        let request = room.requests.acquire_owned().await.ok();
        let permit = room.bytes.acquire_many_owned(units).await.ok();
        drop(waiting);
        room.usage.requests.fetch_add(1, Ordering::Relaxed);
        room.usage.bytes.fetch_add(bytes, Ordering::Relaxed);
        Taken {
            usage: room.usage,
            bytes,
            _calm: None,
            _request: request,
            _bytes: permit,
        }
    }

    fn of(&self, pool: &Arc<str>) -> PoolRoom {
        let mut pools = self.pools.borrow_mut();
        let room = pools.entry(Arc::clone(pool)).or_insert_with(|| {
            let units = usize::try_from(self.usage.bytes_max / UNIT).unwrap_or(usize::MAX);
            let usage = Arc::<PoolUsage>::default();
            self.usage.lock().insert(Arc::clone(pool), Arc::clone(&usage));
            PoolRoom {
                usage,
                requests: Arc::new(Semaphore::new(self.usage.requests_max)),
                bytes: Arc::new(Semaphore::new(units.min(Semaphore::MAX_PERMITS))),
                calm: Arc::new(Semaphore::new(1)),
            }
        });
        room.clone()
    }
}

impl Drop for Taken {
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

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn a_pool_that_is_full_takes_no_room_from_another() {
        let usage = Arc::new(RoomUsage::new(2, 1 << 20));
        let room = Room::new(Arc::clone(&usage));
        let (slow, well): (Arc<str>, Arc<str>) = ("slow".into(), "well".into());
        let one = room.take(&slow, 4096).now_or_never().unwrap();
        let _two = room.take(&slow, 4096).now_or_never().unwrap();
        assert!(room.take(&slow, 4096).now_or_never().is_none());
        let large = room.take(&well, 64 << 20).now_or_never().unwrap();
        assert!(
            room.take(&well, 4096).now_or_never().is_none(),
            "it takes all there is"
        );
        let gauges: Vec<_> = usage
            .pools()
            .iter()
            .map(|(pool, usage)| (pool.to_string(), usage.requests(), usage.bytes()))
            .collect();
        assert_eq!(
            gauges,
            [("slow".to_owned(), 2, 8192), ("well".to_owned(), 1, 1 << 20)]
        );
        drop((one, large));
        assert!(room.take(&slow, 4096).now_or_never().is_some());
        assert!(room.take(&well, 4096).now_or_never().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn what_has_time_goes_one_after_the_other_until_it_is_pressed() {
        let room = Room::new(Arc::new(RoomUsage::new(4, 1 << 20)));
        let pool: Arc<str> = "pool".into();
        let first = room.take_calmly(&pool, 4096, || false).await;
        let second = room.take_calmly(&pool, 4096, || false);
        assert!(
            timeout(Duration::from_secs(60), second).await.is_err(),
            "one has its turn"
        );
        // Another waits, and is let in when the buffer fills.
        let pressed = std::cell::Cell::new(false);
        let third = room.take_calmly(&pool, 4096, || pressed.get());
        tokio::pin!(third);
        assert!(timeout(Duration::from_secs(1), &mut third).await.is_err());
        pressed.set(true);
        assert!(timeout(Duration::from_secs(1), third).await.is_ok());
        drop(first);
        assert!(
            timeout(Duration::from_secs(1), room.take_calmly(&pool, 4096, || false))
                .await
                .is_ok()
        );
    }
}
