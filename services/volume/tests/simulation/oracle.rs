//! What the volume must hold: a plain model, and the log as it was given to the disk.
//!
//! Contents are stamps: a sector written by operation n holds n, repeated. A state is the stamp of every sector.

use std::collections::{BTreeMap, BTreeSet};

use sconce_schemas::log_record::LogRecord;
use sconce_schemas::sco::{Batch, Entry, EntryKind, ScoHeader};
use sconce_schemas::{BatchSeq, SnapshotId};
use sconce_volume::{Append, Ask};

/// Stamps of a cluster's 8 sectors.
pub(crate) type Stamps = [u64; 8];

/// Contents of a volume: clusters that are not all zeros, and the size.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub(crate) struct State {
    pub(crate) clusters: BTreeMap<u64, Stamps>,
    pub(crate) size: u64,
}

impl State {
    pub(crate) fn set(&mut self, cluster: u64, stamps: Stamps) {
        if stamps == [0; 8] {
            self.clusters.remove(&cluster);
        } else {
            self.clusters.insert(cluster, stamps);
        }
    }

    pub(crate) fn set_sector(&mut self, sector: u64, stamp: u64) {
        let mut stamps = self.clusters.get(&(sector / 8)).copied().unwrap_or_default();
        stamps[usize::try_from(sector % 8).unwrap()] = stamp;
        self.set(sector / 8, stamps);
    }

    /// Checks that this is what it must be; tells the first clusters that are not.
    pub(crate) fn assert_is(&self, expected: &Self, what: &str) {
        let stamps = |state: &Self, cluster| state.clusters.get(cluster).copied().unwrap_or_default();
        let all: BTreeSet<u64> = self
            .clusters
            .keys()
            .chain(expected.clusters.keys())
            .copied()
            .collect();
        let wrong = all
            .iter()
            .filter(|cluster| stamps(self, cluster) != stamps(expected, cluster));
        let wrong: Vec<_> = wrong
            .map(|cluster| (cluster, stamps(self, cluster), stamps(expected, cluster)))
            .collect();
        assert!(
            wrong.is_empty() && self.size == expected.size,
            "{what}: size {} of {}, {} clusters differ (cluster, found, expected): {:?}",
            self.size,
            expected.size,
            wrong.len(),
            &wrong[..wrong.len().min(3)]
        );
    }

    pub(crate) fn zero(&mut self, sectors: std::ops::Range<u64>) {
        let (first, end) = (sectors.start.div_ceil(8), sectors.end / 8);
        if first >= end {
            return sectors.for_each(|sector| self.set_sector(sector, 0));
        }
        (sectors.start..first * 8).for_each(|sector| self.set_sector(sector, 0));
        (end * 8..sectors.end).for_each(|sector| self.set_sector(sector, 0));
        self.clusters.retain(|cluster, _| !(first..end).contains(cluster));
    }

    pub(crate) fn resize(&mut self, size: u64) {
        if size < self.size {
            self.clusters.retain(|cluster, _| cluster * 4096 < size);
            for sector in size / 512..size.div_ceil(4096) * 8 {
                self.set_sector(sector, 0);
            }
        }
        self.size = size;
    }
}

/// A sector's stamp; panics on a torn one, which no read may give.
pub(crate) fn stamp_of(sector: &[u8]) -> u64 {
    let word = |at: usize| u64::from_le_bytes(sector[at..at + 8].try_into().unwrap());
    assert!(
        (0..512).step_by(8).all(|at| word(at) == word(0)),
        "a torn sector was returned"
    );
    word(0)
}

pub(crate) fn stamps_of(cluster: &[u8]) -> Stamps {
    std::array::from_fn(|at| stamp_of(&cluster[at * 512..(at + 1) * 512]))
}

pub(crate) fn fill(bytes: &mut Vec<u8>, stamp: u64, sectors: usize) {
    for _ in 0..sectors * 64 {
        bytes.extend_from_slice(&stamp.to_le_bytes());
    }
}

/// The log as the engine gave it to the disk, from the volume's first batch.
#[derive(Default)]
pub(crate) struct LogOracle {
    /// What the volume began as.
    first: State,
    batches: Vec<Vec<Change>>,
    /// Time of each batch.
    times: Vec<u64>,
    /// Snapshots that were made of moments, name and content.
    pub(crate) moments: BTreeMap<SnapshotId, (String, State)>,
    /// Batch in which each operation began, and ended.
    begins: BTreeMap<u64, BatchSeq>,
    ends: BTreeMap<u64, BatchSeq>,
    /// Names of all snapshots that there ever were.
    names: BTreeMap<SnapshotId, String>,
    /// In which batch each of them was taken.
    taken: BTreeMap<SnapshotId, BatchSeq>,
}

enum Change {
    Cluster(u64, Stamps),
    Clear(u64, u64),
    Resize(u64),
    Record(LogRecord),
}

impl LogOracle {
    pub(crate) fn new(first: State) -> Self {
        Self {
            first,
            ..Self::default()
        }
    }

    /// Recovery gave the log up to `upto`: what came after it never was.
    pub(crate) fn truncate(&mut self, upto: BatchSeq) {
        self.batches.truncate(usize::try_from(upto.0).unwrap());
        self.times.truncate(usize::try_from(upto.0).unwrap());
        self.begins.retain(|_, seq| *seq <= upto);
        self.ends.retain(|_, seq| *seq <= upto);
        self.taken.retain(|_, seq| *seq <= upto);
    }

    /// The batch in which an operation ended, if it is in the log.
    pub(crate) fn end_of(&self, number: u64) -> Option<BatchSeq> {
        self.ends.get(&number).copied()
    }

    /// Whether an operation that is in the log ended there too; it may be needed by none of its parts.
    pub(crate) fn is_whole(&self, number: u64) -> bool {
        !self.begins.contains_key(&number) || self.ends.contains_key(&number)
    }

    pub(crate) fn last(&self) -> BatchSeq {
        BatchSeq(self.batches.len() as u64)
    }

    pub(crate) fn append(&mut self, header: &ScoHeader, append: &Append) {
        let batch = Batch::from_bytes(&append.tlog, header.salt()).expect("the engine's own batch");
        assert_eq!(batch.seq, append.seq);
        let data = append.data.concat();
        let mut clusters = data.chunks_exact(4096);
        let mut record = Vec::new();
        let changes = batch.entries.iter().filter_map(|entry| match entry.kind {
            EntryKind::Write { address, crc } => {
                let cluster = clusters.next().expect("a cluster for each write entry");
                assert_eq!(sconce_schemas::crc::crc32c(cluster), crc);
                Some(Change::Cluster(address.0, stamps_of(cluster)))
            }
            EntryKind::Discard { address, count } | EntryKind::Zero { address, count } => {
                Some(Change::Clear(address.0, address.0 + u64::from(count)))
            }
            EntryKind::Resize { size } => Some(Change::Resize(size)),
            EntryKind::Session { .. } => None,
            EntryKind::Record(piece) => {
                record.extend_from_slice(piece.bytes());
                let whole = entry
                    .last
                    .then(|| LogRecord::from_bytes(&std::mem::take(&mut record)));
                whole.map(|record| Change::Record(record.expect("the engine's own record")))
            }
        });
        let changes: Vec<Change> = changes.collect();
        assert!(clusters.next().is_none(), "more data than entries");
        assert_eq!(batch.seq, self.last().next(), "a gap in the batch numbers");
        for entry in &batch.entries {
            if !matches!(entry.kind, EntryKind::Session { .. } | EntryKind::Record(_)) {
                self.begins.entry(entry.number).or_insert(batch.seq);
            }
        }
        let is_end = |entry: &&Entry| entry.last && !matches!(entry.kind, EntryKind::Record(_));
        let ended = batch.entries.iter().filter(is_end);
        self.ends.extend(ended.map(|entry| (entry.number, batch.seq)));
        for change in &changes {
            let label = match change {
                Change::Record(LogRecord::SnapshotTaken { snapshot }) => snapshot,
                Change::Record(LogRecord::RolledBack { before, .. }) => before,
                _ => continue,
            };
            self.names.insert(label.id, label.name.clone());
            let before = self.taken.insert(label.id, batch.seq);
            assert_eq!(before, None, "snapshot {} is taken once", label.id);
        }
        self.batches.push(changes);
        assert!(
            self.times.last().is_none_or(|last| *last <= batch.time_us),
            "batch {} is of {}, the one before of {:?}",
            batch.seq,
            batch.time_us,
            self.times.last()
        );
        self.times.push(batch.time_us);
    }

    /// The last batch up to a time.
    pub(crate) fn batch_at(&self, time_us: u64) -> BatchSeq {
        BatchSeq(self.times.partition_point(|time| *time <= time_us) as u64)
    }

    /// Keeps what a moment is to be, if it comes to be.
    pub(crate) fn keep_moment(&mut self, id: SnapshotId, name: String, state: State) {
        self.names.insert(id, name.clone());
        self.moments.insert(id, (name, state));
    }

    /// The batch with the record that a request made, if it is in the log.
    pub(crate) fn end_of_ask(&self, ask: &Ask) -> Option<BatchSeq> {
        let is_its = |change: &Change| match (change, ask) {
            (Change::Record(LogRecord::SnapshotTaken { snapshot }), Ask::Take { id, .. }) => {
                snapshot.id == *id
            }
            (Change::Record(LogRecord::SnapshotConfirmed { id }), Ask::Confirm { id: asked })
            | (Change::Record(LogRecord::SnapshotRemoved { id }), Ask::Withdraw { id: asked }) => id == asked,
            (Change::Record(LogRecord::RolledBack { before, .. }), Ask::RollBack { id, .. }) => {
                before.id == *id
            }
            (Change::Record(LogRecord::SnapshotRemoved { id }), Ask::Remove { name }) => {
                self.names.get(id) == Some(name)
            }
            (Change::Record(LogRecord::SnapshotRemoved { id }), Ask::RemoveExactly { id: asked }) => {
                id == asked
            }
            _ => false,
        };
        let at = self
            .batches
            .iter()
            .position(|changes| changes.iter().any(is_its))?;
        Some(BatchSeq(at as u64 + 1))
    }

    /// The batch in which a snapshot was proposed.
    pub(crate) fn proposed_in(&self, id: SnapshotId) -> Option<BatchSeq> {
        let is_it = |change: &Change| matches!(change, Change::Record(LogRecord::SnapshotProposed { snapshot }) if snapshot.id == id);
        let at = self
            .batches
            .iter()
            .position(|changes| changes.iter().any(is_it))?;
        Some(BatchSeq(at as u64 + 1))
    }

    /// The state after batch `upto`.
    pub(crate) fn state_at(&self, upto: BatchSeq) -> State {
        self.replay(upto).0
    }

    /// The snapshots after batch `upto`, by id: name and content.
    pub(crate) fn snapshots_at(&self, upto: BatchSeq) -> BTreeMap<SnapshotId, (String, State)> {
        self.replay(upto).1
    }

    fn replay(&self, upto: BatchSeq) -> (State, BTreeMap<SnapshotId, (String, State)>) {
        assert!(upto <= self.last(), "{upto} batches came back of {}", self.last());
        let mut snapshots = self.moments.clone();
        let mut proposed = BTreeMap::new();
        let mut state = self.first.clone();
        for change in self.batches[..usize::try_from(upto.0).unwrap()].iter().flatten() {
            match change {
                Change::Cluster(cluster, stamps) => state.set(*cluster, *stamps),
                Change::Clear(from, to) => state.clusters.retain(|c, _| c < from || c >= to),
                Change::Resize(size) => state.resize(*size),
                Change::Record(LogRecord::SnapshotTaken { snapshot }) => {
                    snapshots.insert(snapshot.id, (snapshot.name.clone(), state.clone()));
                }
                Change::Record(LogRecord::SnapshotProposed { snapshot }) => {
                    proposed.insert(snapshot.id, (snapshot.name.clone(), state.clone()));
                }
                Change::Record(LogRecord::SnapshotConfirmed { id }) => {
                    let confirmed = proposed.remove(id).expect("what is confirmed was proposed");
                    snapshots.insert(*id, confirmed);
                }
                Change::Record(LogRecord::SnapshotRemoved { id }) => {
                    let removed = snapshots.remove(id).or_else(|| proposed.remove(id));
                    removed.expect("what is removed is there");
                }
                Change::Record(LogRecord::RolledBack { to, before, keep }) => {
                    let (_, then) = snapshots[to].clone();
                    let now = std::mem::replace(&mut state, then);
                    if *keep {
                        snapshots.insert(before.id, (before.name.clone(), now));
                    }
                }
                Change::Record(
                    LogRecord::ReadOnly { .. } | LogRecord::History { .. } | LogRecord::Flatten,
                ) => {}
            }
        }
        (state, snapshots)
    }
}
