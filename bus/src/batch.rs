//! What is queued while a send is under way, as the messages that it will leave in.
//!
//! Keeps: entries in order, joined into as few messages as the limits allow.
//! Order: entries leave in the order in which they were put in.
//! Crash: nothing; what was queued is gone with the connection.
//! Knows no sockets; its size is bounded by the credits of those who fill it.

use std::collections::VecDeque;

use bytes::Bytes;
use sconce_schemas::wire::envelope::BATCH_MAX;

use crate::limits::JOINED_DATA_MAX;

/// A batch under construction; `tally` is what its owner keeps for the message as a whole.
#[derive(Default)]
pub(crate) struct Batch<T> {
    pub(crate) tally: T,
    /// The encoded entries, one after the other.
    pub(crate) entries: Vec<u8>,
    /// How many they are.
    pub(crate) count: usize,
    data: Data,
}

#[derive(Default)]
enum Data {
    #[default]
    None,
    /// One entry has data: its bytes become the frame without a copy.
    One(Bytes),
    /// Several have: joined, since a message has one data frame.
    Joined(Vec<u8>),
}

impl<T> Batch<T> {
    fn data_len(&self) -> usize {
        match &self.data {
            Data::None => 0,
            Data::One(data) => data.len(),
            Data::Joined(data) => data.len(),
        }
    }

    fn has_room(&self, entry_len: usize, data_len: usize, message_bytes_max: u64) -> bool {
        let data = self.data_len() + data_len;
        let joins = data_len > 0 && self.data_len() > 0;
        let bytes = self.entries.len() + entry_len + data + HEADER_ROOM;
        self.count < BATCH_MAX && (!joins || data <= JOINED_DATA_MAX) && bytes as u64 <= message_bytes_max
    }

    fn push(&mut self, entry: &[u8], data: Bytes) {
        self.entries.extend_from_slice(entry);
        self.count += 1;
        if data.is_empty() {
            return;
        }
        self.data = match std::mem::take(&mut self.data) {
            Data::None => Data::One(data),
            Data::One(first) => {
                let mut joined = Vec::with_capacity((first.len() + data.len()) * 4);
                joined.extend_from_slice(&first);
                joined.extend_from_slice(&data);
                Data::Joined(joined)
            }
            Data::Joined(mut joined) => {
                joined.extend_from_slice(&data);
                Data::Joined(joined)
            }
        };
    }

    /// The data frame.
    pub(crate) fn take_data(&mut self) -> Bytes {
        match std::mem::take(&mut self.data) {
            Data::None => Bytes::new(),
            Data::One(data) => data,
            Data::Joined(data) => Bytes::from(data),
        }
    }
}

/// Bytes of a batch header around its entries: kind, mark, array lengths.
pub(crate) const HEADER_ROOM: usize = 32;

/// Batches that wait to leave.
#[derive(Default)]
pub(crate) struct Outbox<T> {
    waiting: VecDeque<Batch<T>>,
    scratch: Vec<u8>,
}

impl<T: Default> Outbox<T> {
    /// A buffer to encode the next entry in; give it back with [`Self::push`] or [`Self::put_back`].
    pub(crate) fn scratch(&mut self) -> Vec<u8> {
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.clear();
        scratch
    }

    /// Takes the buffer back without queueing what it holds.
    pub(crate) fn put_back(&mut self, scratch: Vec<u8>) {
        // A buffer that one huge control body made large is not kept for ever.
        if scratch.capacity() <= 64 << 10 {
            self.scratch = scratch;
        }
    }

    /// Queues an entry with its data share; gives the tally of the message that it leaves in.
    pub(crate) fn push(&mut self, entry: Vec<u8>, data: Bytes, message_bytes_max: u64) -> &mut T {
        let room = self
            .waiting
            .back()
            .is_some_and(|batch| batch.has_room(entry.len(), data.len(), message_bytes_max));
        let mut batch = match self.waiting.pop_back() {
            Some(batch) if room => batch,
            Some(full) => {
                self.waiting.push_back(full);
                Batch::default()
            }
            None => Batch::default(),
        };
        batch.push(&entry, data);
        self.put_back(entry);
        self.waiting.push_back(batch);
        let last = self.waiting.len() - 1;
        &mut self.waiting[last].tally
    }

    /// The next message's batch.
    pub(crate) fn pop(&mut self) -> Option<Batch<T>> {
        self.waiting.pop_front()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(crate) fn clear(&mut self) {
        self.waiting.clear();
    }
}
