//! What a stamping writer, readers of the same volume, and who breaks things under them tell each other.
//!
//! Keeps: for each cluster the oldest write that a read may still return; when the writer was answered.
//! Order: a write is on the board before anything else comes of its acknowledgement; a reader looks before it asks.
//! Crash: who fails says so, and all others stop.
//! Knows no connection.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

/// The board of one volume.
#[derive(Debug)]
pub struct Board {
    /// The newest write to each cluster that was acknowledged, or that somebody read: no later read may return an older one.
    floors: Vec<AtomicUsize>,
    acknowledged: AtomicU64,
    reads: AtomicU64,
    reconnections: AtomicU64,
    is_over: AtomicBool,
    check_wanted: AtomicBool,
    clock: Mutex<Clock>,
}

#[derive(Debug)]
struct Clock {
    last_answer: Instant,
    /// The longest time without an answer since it was asked for last.
    longest_pause: Duration,
    /// When something was lost, until a write that was sent after that is answered.
    lost_at: Option<Instant>,
    first_answer: Option<Duration>,
}

impl Board {
    /// That of an empty volume of so many clusters.
    #[must_use]
    pub fn new(clusters: usize) -> Self {
        Self {
            floors: (0..clusters).map(|_| AtomicUsize::new(0)).collect(),
            acknowledged: AtomicU64::new(0),
            reads: AtomicU64::new(0),
            reconnections: AtomicU64::new(0),
            is_over: AtomicBool::new(false),
            check_wanted: AtomicBool::new(false),
            clock: Mutex::new(Clock {
                last_answer: Instant::now(),
                longest_pause: Duration::ZERO,
                lost_at: None,
                first_answer: None,
            }),
        }
    }

    /// A write to a cluster has come to stay.
    pub fn kept(&self, cluster: usize, number: usize) {
        if let Some(floor) = self.floors.get(cluster) {
            floor.fetch_max(number, Ordering::AcqRel);
        }
    }

    /// An operator accepted the loss of writes: each cluster may be what it was before them.
    pub fn lost_beyond(&self, kept: impl Iterator<Item = usize>) {
        for (floor, kept) in self.floors.iter().zip(kept) {
            floor.fetch_min(kept, Ordering::AcqRel);
        }
    }

    /// The oldest write to a cluster that a read which begins now may return.
    #[must_use]
    pub fn floor(&self, cluster: usize) -> usize {
        self.floors
            .get(cluster)
            .map_or(0, |floor| floor.load(Ordering::Acquire))
    }

    /// Somebody saw this write in this cluster, and had asked for it when the floor was `floor`.
    ///
    /// # Errors
    /// It is older than the floor: the read was stale.
    pub fn read(&self, cluster: usize, number: usize, floor: usize) -> Result<()> {
        ensure!(
            number >= floor,
            "stale: cluster {cluster} was read as write {number}, and write {floor} to it was acknowledged, or read, before"
        );
        self.kept(cluster, number);
        self.reads.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// A request that was sent then is answered now.
    pub fn answered(&self, sent: Instant, writes: usize) {
        self.acknowledged.fetch_add(writes as u64, Ordering::Relaxed);
        let mut clock = self.clock();
        let now = Instant::now();
        clock.longest_pause = clock.longest_pause.max(now - clock.last_answer);
        clock.last_answer = now;
        if let Some(lost) = clock.lost_at.filter(|lost| sent >= *lost) {
            clock.first_answer = Some(now - lost);
            clock.lost_at = None;
        }
    }

    /// Something is lost now: [`Board::first_answer`] counts from here.
    pub fn lost(&self) {
        let mut clock = self.clock();
        clock.lost_at = Some(Instant::now());
        clock.first_answer = None;
        clock.last_answer = Instant::now();
        clock.longest_pause = Duration::ZERO;
    }

    /// How long it took to the first answer to a write that was sent after the loss; `None`: it did not come yet.
    #[must_use]
    pub fn first_answer(&self) -> Option<Duration> {
        self.clock().first_answer
    }

    /// The longest time without any answer since the loss.
    #[must_use]
    pub fn longest_pause(&self) -> Duration {
        let clock = self.clock();
        clock.longest_pause.max(clock.last_answer.elapsed())
    }

    fn clock(&self) -> MutexGuard<'_, Clock> {
        self.clock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes that were acknowledged.
    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Clusters that readers read.
    #[must_use]
    pub fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }

    /// A connection broke, and is made again.
    pub fn reconnects(&self) {
        self.reconnections.fetch_add(1, Ordering::Relaxed);
    }

    /// How often connections broke.
    #[must_use]
    pub fn reconnections(&self) -> u64 {
        self.reconnections.load(Ordering::Relaxed)
    }

    /// Everybody is to stop.
    pub fn end(&self) {
        self.is_over.store(true, Ordering::Release);
    }

    /// Whether everybody is to stop.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Acquire)
    }

    /// The writer is to judge the whole volume.
    pub fn want_check(&self) {
        self.check_wanted.store(true, Ordering::Release);
    }

    /// Whether it is; the writer says when it has.
    #[must_use]
    pub fn is_check_wanted(&self) -> bool {
        self.check_wanted.load(Ordering::Acquire)
    }

    /// The writer has judged the whole volume.
    pub fn checked(&self) {
        self.check_wanted.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_read_is_one_of_less_than_was_promised_when_it_began() {
        let board = Board::new(2);
        board.kept(0, 7);
        let floor = board.floor(0);
        // Acknowledged while the read is under way: both are right.
        board.kept(0, 9);
        board.read(0, 7, floor).unwrap();
        assert!(board.read(0, 6, floor).is_err());
        assert!(board.read(0, 7, board.floor(0)).is_err());
        // What one read saw, no later one may miss, acknowledged or not.
        board.read(0, 12, board.floor(0)).unwrap();
        assert_eq!(board.floor(0), 12);
    }

    #[test]
    fn the_first_answer_is_to_what_was_sent_after_the_loss() {
        let board = Board::new(1);
        let before = Instant::now();
        board.lost();
        board.answered(before, 1);
        assert_eq!(board.first_answer(), None);
        board.answered(Instant::now(), 1);
        assert!(board.first_answer().is_some());
        assert_eq!(board.acknowledged(), 2);
    }
}
