//! Replay: doing again what the TLog of a SCO says, in recovery or to have a moment of the history.
//!
//! Keeps: how far a SCO is replayed; within a batch, how far that is.
//! Order: batches by number, entries as they stand.
//! Crash: it can begin again at any time.
//! Knows no volume: what is replayed onto is a [`Target`].

use sconce_schemas::crc::crc32c;
use sconce_schemas::ids::Location;
use sconce_schemas::log_record::LogRecord;
use sconce_schemas::manifest::LogPlace;
use sconce_schemas::sco::{Batch, Entry, EntryKind, ScoHeader};
use sconce_schemas::{
    BatchSeq, CLUSTER_LEN, ClusterAddress, LineageIndex, ScoSize, SessionId, Slot, VolumeSize,
};

use crate::event::SessionSlot;
use crate::recovery::{Origin, ScoImage};
use crate::tree::Missing;

/// What is replayed onto.
pub(crate) trait Target {
    /// A cluster was written.
    fn replay_write(&mut self, address: ClusterAddress, location: Location) -> Result<(), Missing>;
    /// Clusters became holes, or allocated zeros.
    fn replay_zero(&mut self, address: ClusterAddress, count: u64, allocate: bool) -> Result<(), Missing>;
    /// The size changed.
    fn replay_resize(&mut self, size: VolumeSize) -> Result<(), Missing>;
    /// A slot of the session table stands for this session.
    fn replay_session(&mut self, slot: SessionSlot, id: SessionId);
    /// An operation ended.
    fn replay_end(&mut self, slot: SessionSlot, number: u64);
    /// A record, all of it; what does not fit is damage that no CRC saw, or a bug.
    fn replay_record(&mut self, record: LogRecord, at: RecordPlace) -> Result<(), String>;
}

/// Where a record stands in the log.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RecordPlace {
    /// The slots before it.
    pub(crate) at: LogPlace,
    /// Its batch.
    pub(crate) batch: BatchSeq,
}

/// A SCO that is being replayed.
#[derive(Debug)]
pub(crate) struct Replay {
    pub(crate) header: ScoHeader,
    pub(crate) image: ScoImage,
    /// Its volume's place in the lineage.
    lineage: LineageIndex,
    /// Where the next batch begins in the TLog area.
    pub(crate) tlog_len: usize,
    pub(crate) slots: u16,
    pub(crate) batch: Option<Batch>,
    /// Entries of the batch that were applied.
    entry_at: usize,
    /// Writes of the batch that were applied.
    write_at: u16,
    /// The stored copy was asked for too.
    pub(crate) asked_stored: bool,
    /// The pieces so far of a record.
    record: Vec<u8>,
}

/// How far a step came.
#[derive(Debug)]
pub(crate) enum Progress {
    /// A batch was read, or what there was budget for of one was done; it is gone from the replay once all was.
    Went,
    /// A record does not fit the target.
    Wrong(String),
    Needs(Missing),
    /// No whole batch follows; `torn`: something is there that is damaged.
    Ended {
        torn: bool,
    },
}

/// What an entry that zeroes costs of the budget beside what it touches.
const ZERO_COST: u64 = 32;

fn to_index(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}

impl Replay {
    pub(crate) const fn new(header: ScoHeader, image: ScoImage, lineage: LineageIndex) -> Self {
        Self {
            header,
            image,
            lineage,
            tlog_len: 0,
            slots: 0,
            batch: None,
            entry_at: 0,
            write_at: 0,
            asked_stored: false,
            record: Vec::new(),
        }
    }

    /// The place behind the batches that were done.
    pub(crate) const fn place(&self) -> LogPlace {
        LogPlace {
            sco: self.header.id,
            slots: self.slots,
        }
    }

    /// Does what is left of the batch that was read, as far as the budget of entries goes.
    pub(crate) fn apply<T: Target>(&mut self, target: &mut T, budget: &mut u64) -> Progress {
        let Some(batch) = &self.batch else {
            return Progress::Went;
        };
        while let Some(entry) = batch.entries.get(self.entry_at) {
            if *budget == 0 {
                return Progress::Went;
            }
            let slot = batch.first_slot.0 + self.write_at;
            if let EntryKind::Record(piece) = entry.kind {
                self.record.extend_from_slice(piece.bytes());
                if entry.last {
                    let sco = self.header.id;
                    let at = LogPlace { sco, slots: slot };
                    let batch = batch.seq;
                    let record = LogRecord::from_bytes(&std::mem::take(&mut self.record));
                    let applied = record
                        .map_err(|error| error.to_string())
                        .and_then(|record| target.replay_record(record, RecordPlace { at, batch }));
                    if let Err(text) = applied {
                        return Progress::Wrong(text);
                    }
                }
            } else {
                let location = |crc| Location::new(self.lineage, self.header.id, Slot(slot), crc);
                if let Err(missing) = apply_entry(target, entry, location) {
                    return Progress::Needs(missing);
                }
                self.write_at += u16::from(matches!(entry.kind, EntryKind::Write { .. }));
                if entry.last {
                    target.replay_end(SessionSlot(entry.session), entry.number);
                }
            }
            self.entry_at += 1;
            *budget = budget.saturating_sub(cost(entry.kind));
        }
        self.slots = batch.first_slot.0 + self.write_at;
        self.tlog_len += batch.len;
        (self.batch, self.entry_at, self.write_at) = (None, 0, 0);
        Progress::Went
    }

    /// Reads the next batch and checks that it is whole.
    pub(crate) fn read(&mut self, expected: BatchSeq, check_data: bool) -> Progress {
        let size = self.header.size;
        let start = to_index(ScoSize::HEADER_AREA) + self.tlog_len;
        let end = to_index(size.data_offset()).min(self.image.bytes.len());
        let tlog = self.image.bytes.get(start..end).unwrap_or_default();
        // Never written: the log simply ends here.
        if tlog.iter().take(4).all(|byte| *byte == 0) {
            return Progress::Ended { torn: false };
        }
        let Ok(batch) = Batch::from_bytes(tlog, self.header.salt()) else {
            return Progress::Ended { torn: true };
        };
        let writes = batch.entries.iter().filter_map(|entry| match entry.kind {
            EntryKind::Write { crc, .. } => Some(crc),
            _ => None,
        });
        let crcs: Vec<u32> = writes.collect();
        let fits = batch.seq == expected
            && batch.first_slot.0 == self.slots
            && usize::from(self.slots) + crcs.len() <= usize::from(size.slots());
        let check = check_data && self.image.origin == Origin::Local;
        let data_at = to_index(size.slot_offset(batch.first_slot));
        if !fits || (check && !clusters_hold(&self.image.bytes, data_at, &crcs)) {
            return Progress::Ended { torn: true };
        }
        self.batch = Some(batch);
        Progress::Went
    }
}

fn apply_entry<T: Target>(
    target: &mut T,
    entry: &Entry,
    location: impl Fn(u32) -> Location,
) -> Result<(), Missing> {
    match entry.kind {
        EntryKind::Write { address, crc } => target.replay_write(address, location(crc)),
        EntryKind::Discard { address, count } => target.replay_zero(address, u64::from(count), false),
        EntryKind::Zero { address, count } => target.replay_zero(address, u64::from(count), true),
        EntryKind::Resize { size } => target.replay_resize(VolumeSize::new(size).unwrap_or(VolumeSize::MAX)),
        EntryKind::Session { id } => {
            target.replay_session(SessionSlot(entry.session), SessionId(id));
            Ok(())
        }
        EntryKind::Record(_) => Ok(()),
    }
}

fn cost(kind: EntryKind) -> u64 {
    match kind {
        EntryKind::Discard { .. } | EntryKind::Resize { .. } => ZERO_COST,
        EntryKind::Zero { count, .. } => ZERO_COST + u64::from(count),
        _ => 1,
    }
}

/// Whether the clusters at `offset` have these CRCs.
fn clusters_hold(bytes: &[u8], offset: usize, crcs: &[u32]) -> bool {
    let clusters = bytes.get(offset..offset + crcs.len() * CLUSTER_LEN);
    clusters.is_some_and(|bytes| {
        bytes
            .chunks_exact(CLUSTER_LEN)
            .zip(crcs)
            .all(|(c, crc)| crc32c(c) == *crc)
    })
}
