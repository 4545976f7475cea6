//! The log: the open SCO, its TLog, and the batch that is being filled.
//!
//! Keeps: where the next cluster and the next entry go.
//! Order: batches are numbered without gaps; a batch lies in one SCO; slots are filled from 0 up.
//! Crash: a prefix of the batches.
//! Knows no map and no clients.

use bytes::Bytes;
use sconce_schemas::manifest::LogPlace;
use sconce_schemas::sco::{
    BATCH_HEADER_LEN, BatchBuilder, ENTRY_LEN, Entry, EntryKind, RecordPiece, ScoHeader,
};
use sconce_schemas::{BatchSeq, ByteLen, ClusterAddress, Epoch, ScoId, ScoSize, Slot, VolumeId};

use crate::event::{Append, Effect};

/// The log's head.
#[derive(Debug)]
pub(crate) struct Log {
    volume: VolumeId,
    epoch: Epoch,
    size: ScoSize,
    next_sco: ScoId,
    next_seq: BatchSeq,
    state: Head,
    /// When the last batch ended: batches carry times that never go back, whatever the clock does.
    stamp_us: u64,
    batch: BatchBuilder,
    data: Vec<Bytes>,
}

#[derive(Debug)]
enum Head {
    Closed,
    /// The write buffer was asked for a file.
    Opening(ScoHeader),
    Open(Open),
}

#[derive(Debug)]
struct Open {
    id: ScoId,
    header: ScoHeader,
    salt: u32,
    /// Slots that are given out.
    slots: u16,
    /// Slots of the batches that left.
    slots_appended: u16,
    /// Bytes of the TLog area that the batches that left take.
    tlog_len: u64,
}

/// A batch that left.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ended {
    pub(crate) seq: BatchSeq,
    pub(crate) sco: ScoId,
    pub(crate) first_slot: Slot,
    pub(crate) slots: u16,
    pub(crate) entries: u16,
    /// Bytes of its clusters and entries.
    pub(crate) bytes: u64,
}

/// A SCO that was closed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ClosedSco {
    pub(crate) id: ScoId,
    pub(crate) slots: u16,
    /// Bytes of its TLog area that are used.
    pub(crate) tlog_len: ByteLen,
    /// Bytes from its start that are worth storing.
    pub(crate) length: ByteLen,
}

impl Log {
    pub(crate) fn new(
        volume: VolumeId,
        epoch: Epoch,
        size: ScoSize,
        next_sco: ScoId,
        next_seq: BatchSeq,
        stamp_us: u64,
    ) -> Self {
        Self {
            volume,
            epoch,
            size,
            next_sco,
            next_seq,
            state: Head::Closed,
            stamp_us,
            batch: BatchBuilder::default(),
            data: Vec::new(),
        }
    }

    /// The number that the batch being filled will have.
    pub(crate) const fn next_seq(&self) -> BatchSeq {
        self.next_seq
    }

    /// When the last batch ended; a later one has no earlier time, also over a restart.
    pub(crate) const fn stamp_us(&self) -> u64 {
        self.stamp_us
    }

    /// The SCO that is opened next.
    pub(crate) const fn next_sco(&self) -> ScoId {
        self.next_sco
    }

    /// The open SCO, if there is one.
    pub(crate) const fn open_sco(&self) -> Option<ScoId> {
        match &self.state {
            Head::Open(open) => Some(open.id),
            _ => None,
        }
    }

    /// Whether a slot of a SCO was given out but its batch has not left yet.
    pub(crate) fn is_pending(&self, sco: ScoId, slot: Slot) -> bool {
        matches!(&self.state, Head::Open(open) if open.id == sco && slot.0 >= open.slots_appended)
    }

    /// Entries that still fit the open SCO, of which `slots` may be writes; 0 without an open SCO.
    pub(crate) fn room(&self) -> Room {
        let Head::Open(open) = &self.state else {
            return Room { entries: 0, slots: 0 };
        };
        let header = if self.batch.is_empty() {
            BATCH_HEADER_LEN
        } else {
            0
        };
        let used = open.tlog_len + (self.batch.len() + header) as u64;
        let entries = self.size.tlog_area().saturating_sub(used) / ENTRY_LEN as u64;
        let batch = BatchBuilder::ENTRIES_MAX - self.batch.entries();
        let entries = u16::try_from(entries).unwrap_or(u16::MAX).min(batch);
        Room {
            entries,
            slots: (self.size.slots() - open.slots).min(entries),
        }
    }

    /// Asks for the next SCO's file, unless that was done.
    ///
    /// # Errors
    /// All SCO ids are used up.
    pub(crate) fn open_next(&mut self, synced_below: ScoId, effects: &mut Vec<Effect>) -> Result<(), String> {
        if !matches!(self.state, Head::Closed) {
            return Ok(());
        }
        if self.next_sco > ScoId::MAX {
            return Err(format!(
                "all {} SCO ids are used up; clone the volume to go on",
                ScoId::MAX
            ));
        }
        let header = ScoHeader {
            volume: self.volume,
            id: self.next_sco,
            epoch: self.epoch,
            size: self.size,
            first_batch: self.next_seq,
            synced_below: synced_below.min(self.next_sco),
        };
        self.state = Head::Opening(header);
        effects.push(Effect::OpenSco { header });
        Ok(())
    }

    /// The write buffer has the file. `false`: it is not the one that was asked for.
    pub(crate) fn opened(&mut self, sco: ScoId) -> bool {
        let Head::Opening(header) = &self.state else {
            return false;
        };
        if header.id != sco {
            return false;
        }
        let open = Open {
            id: sco,
            header: *header,
            salt: header.salt(),
            slots: 0,
            slots_appended: 0,
            tlog_len: 0,
        };
        self.state = Head::Open(open);
        self.next_sco = sco.next();
        true
    }

    /// Appends an entry without data; the caller asked [`Self::room`].
    pub(crate) fn push(&mut self, entry: &Entry) {
        self.batch.push(entry);
    }

    /// The slot that [`Self::push_cluster`] gives next.
    pub(crate) const fn next_slot(&self) -> (ScoId, Slot) {
        match &self.state {
            Head::Open(open) => (open.id, Slot(open.slots)),
            _ => (ScoId::NONE, Slot(0)),
        }
    }

    /// Whether the write buffer was asked for a file.
    pub(crate) const fn is_opening(&self) -> bool {
        matches!(&self.state, Head::Opening(_))
    }

    /// Appends a record's entries; the caller asked [`Self::room`].
    pub(crate) fn push_record(&mut self, pieces: &[RecordPiece]) {
        for (at, piece) in pieces.iter().enumerate() {
            self.batch.push(&Entry {
                kind: EntryKind::Record(*piece),
                session: 0,
                number: 0,
                last: at + 1 == pieces.len(),
            });
        }
    }

    /// Where in the log the next slot is.
    pub(crate) const fn place(&self) -> LogPlace {
        match &self.state {
            Head::Open(open) => LogPlace {
                sco: open.id,
                slots: open.slots,
            },
            _ => LogPlace {
                sco: self.next_sco,
                slots: 0,
            },
        }
    }

    /// Gives a cluster the next slot and appends its entry; the caller asked [`Self::room`] and brings the data with
    /// [`Self::push_data`].
    pub(crate) fn push_cluster(
        &mut self,
        address: ClusterAddress,
        crc: u32,
        session: u16,
        number: u64,
        last: bool,
    ) {
        self.batch.push(&Entry {
            kind: EntryKind::Write { address, crc },
            session,
            number,
            last,
        });
        if let Head::Open(open) = &mut self.state {
            open.slots += 1;
        }
    }

    /// The data of the clusters that were pushed, in their order.
    pub(crate) fn push_data(&mut self, data: Bytes) {
        self.data.push(data);
    }

    /// Whether nothing waits to leave with the next batch.
    pub(crate) fn is_batch_empty(&self) -> bool {
        self.batch.is_empty()
    }

    /// Whether entries without a slot wait to leave with the next batch.
    pub(crate) fn has_bare_entries(&self) -> bool {
        let slots = match &self.state {
            Head::Open(open) => open.slots - open.slots_appended,
            _ => 0,
        };
        self.batch.entries() > slots
    }

    /// The header of the open SCO, if there is one.
    pub(crate) const fn open_header(&self) -> Option<ScoHeader> {
        match &self.state {
            Head::Open(open) => Some(open.header),
            _ => None,
        }
    }

    /// Sends the batch off, if anything is in it. `twin`: to the twin too.
    pub(crate) fn end_batch(&mut self, now_us: u64, twin: bool, effects: &mut Vec<Effect>) -> Option<Ended> {
        let Head::Open(open) = &mut self.state else {
            return None;
        };
        if self.batch.is_empty() {
            return None;
        }
        let seq = self.next_seq;
        let first_slot = Slot(open.slots_appended);
        let slots = open.slots - open.slots_appended;
        let entries = self.batch.entries();
        self.stamp_us = self.stamp_us.max(now_us);
        let tlog = self.batch.close(open.salt, seq, first_slot, self.stamp_us);
        let tlog_offset = open.tlog_len;
        open.tlog_len += tlog.len() as u64;
        open.slots_appended = open.slots;
        self.next_seq = seq.next();
        let data = std::mem::take(&mut self.data);
        let ended = Ended {
            seq,
            sco: open.id,
            first_slot,
            slots,
            entries,
            bytes: tlog.len() as u64 + u64::from(slots) * sconce_schemas::CLUSTER_BYTES,
        };
        effects.push(Effect::Append(Append {
            sco: open.id,
            seq,
            tlog_offset,
            tlog,
            first_slot,
            data,
            twin,
        }));
        Some(ended)
    }

    /// Closes the open SCO, whose last batch has left; one that is empty stays open.
    pub(crate) fn close_sco(&mut self, effects: &mut Vec<Effect>) -> Option<ClosedSco> {
        let Head::Open(open) = &self.state else {
            return None;
        };
        if open.tlog_len == 0 {
            return None;
        }
        let used = self.size.slot_offset(Slot(open.slots));
        let closed = ClosedSco {
            id: open.id,
            slots: open.slots,
            tlog_len: ByteLen(open.tlog_len),
            length: ByteLen(used),
        };
        self.state = Head::Closed;
        effects.push(Effect::CloseSco { sco: closed.id });
        Some(closed)
    }
}

/// What still fits the open SCO.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Room {
    /// Entries of any kind.
    pub(crate) entries: u16,
    /// Of these, writes.
    pub(crate) slots: u16,
}
