//! What is counted on the way of an operation.
//!
//! Keeps: how many took how long, of how many bytes, and how they ended.
//! Order: none; numbers that are read while others count are each right by themselves.
//! Crash: gone with the process.
//! Knows no metric. One thread counts, any reads: an operation costs three additions, without a lock and without memory of its own.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::{Action, Status};

/// Upper bounds of the buckets in nanoseconds: two or three in each power of ten from 10 µs, a write's way through one service, to
/// 30 s, where a guest's own patience ends.
const BOUNDS: [u64; 21] = [
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    5_000_000_000,
    10_000_000_000,
    20_000_000_000,
    30_000_000_000,
];

/// How many took how long.
#[derive(Debug, Default)]
pub struct Histogram {
    /// The last one: longer than all bounds.
    buckets: [AtomicU64; BOUNDS.len() + 1],
    nanos: AtomicU64,
}

impl Histogram {
    /// One more took this long.
    #[inline]
    pub fn took(&self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let bucket = BOUNDS.partition_point(|bound| *bound < nanos);
        // It is one of them: there is one more than there are bounds.
        if let Some(bucket) = self.buckets.get(bucket) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        self.nanos.fetch_add(nanos, Ordering::Relaxed);
    }
}

/// A histogram's numbers, or those of several threads' histograms together.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Read {
    buckets: [u64; BOUNDS.len() + 1],
    nanos: u64,
}

impl Read {
    pub(super) fn add(&mut self, histogram: &Histogram) {
        for (sum, bucket) in self.buckets.iter_mut().zip(&histogram.buckets) {
            *sum = sum.wrapping_add(bucket.load(Ordering::Relaxed));
        }
        self.nanos = self.nanos.wrapping_add(histogram.nanos.load(Ordering::Relaxed));
    }

    pub(super) fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    pub(super) fn seconds(&self) -> f64 {
        Duration::from_nanos(self.nanos).as_secs_f64()
    }

    /// Each bound in seconds, with how many were not longer.
    pub(super) fn cumulative(&self) -> impl Iterator<Item = (f64, u64)> {
        let mut below = 0;
        BOUNDS.iter().zip(&self.buckets).map(move |(bound, count)| {
            below += count;
            (Duration::from_nanos(*bound).as_secs_f64(), below)
        })
    }
}

/// How operations of one kind went. On a cache line that no other thread's counts are on.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct OperationKind {
    pub(super) took: Histogram,
    pub(super) bytes: AtomicU64,
    /// By status.
    pub(super) failed: [AtomicU64; FAILURES.len()],
}

/// How operations end that were not done.
pub(super) const FAILURES: [Status; 4] = [Status::Reroute, Status::Retry, Status::Reject, Status::Damaged];

impl OperationKind {
    #[inline]
    fn ended(&self, took: Duration, bytes: u64, status: Status) {
        self.took.took(took);
        match status {
            Status::Ok => {
                self.bytes.fetch_add(bytes, Ordering::Relaxed);
            }
            status => self.failed(status),
        }
    }

    #[cold]
    fn failed(&self, status: Status) {
        let at = FAILURES.iter().position(|known| *known == status);
        if let Some(count) = at.and_then(|at| self.failed.get(at)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// How the operations of one thread went, by what they do.
#[derive(Debug, Default)]
pub struct Operations {
    kinds: [OperationKind; Action::ALL.len()],
}

impl Action {
    /// What clients ask of volumes, by the front ends and behind them.
    pub const OF_CLIENTS: [Action; 8] = [
        Action::Read,
        Action::Write,
        Action::Discard,
        Action::WriteZeroes,
        Action::Flush,
        Action::Extents,
        Action::Resize,
        Action::Changes,
    ];
}

impl Operations {
    /// One more has ended, of `length` bytes; these count where it was done, and is about what volumes or objects hold.
    #[inline]
    pub fn ended(&self, action: Action, took: Duration, length: u64, status: Status) {
        let bytes = match action {
            Action::Read | Action::Write | Action::Discard | Action::WriteZeroes => length,
            Action::Put | Action::Get => length,
            _ => 0,
        };
        self.of(action).ended(took, bytes, status);
    }

    #[inline]
    pub(super) fn of(&self, action: Action) -> &OperationKind {
        // An action is less than there are actions.
        &self.kinds[(action as usize).min(Action::ALL.len() - 1)]
    }
}
