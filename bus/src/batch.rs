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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MESSAGE_MAX: u64 = 300 << 10;

    fn messages(entries: &[(usize, usize)]) -> Vec<(usize, usize, Bytes)> {
        let mut outbox = Outbox::<usize>::default();
        for (i, (entry, data)) in entries.iter().enumerate() {
            let fill = u8::try_from(i % 251).unwrap_or(0);
            *outbox.push(vec![0; *entry], Bytes::from(vec![fill; *data]), MESSAGE_MAX) += 1;
        }
        let mut found = Vec::new();
        while let Some(mut batch) = outbox.pop() {
            assert_eq!(batch.tally, batch.count);
            found.push((batch.count, batch.entries.len(), batch.take_data()));
        }
        assert!(outbox.is_empty());
        found
    }

    proptest! {
        #[test]
        fn what_is_put_in_comes_out_in_order_within_the_limits(
            entries in prop::collection::vec((1usize..200, prop_oneof![Just(0usize), 1usize..10_000, 1usize..250_000]), 0..60)
        ) {
            let found = messages(&entries);
            let all: Vec<u8> = found.iter().flat_map(|(_, _, data)| data.to_vec()).collect();
            let wanted: Vec<u8> = (0usize..).zip(&entries)
                .flat_map(|(i, (_, data))| vec![u8::try_from(i % 251).unwrap_or(0); *data])
                .collect();
            prop_assert_eq!(all, wanted);
            prop_assert_eq!(found.iter().map(|(count, ..)| count).sum::<usize>(), entries.len());
            for (count, entries, data) in &found {
                prop_assert!((1..=BATCH_MAX).contains(count));
                let bytes = (entries + data.len() + HEADER_ROOM) as u64;
                prop_assert!(bytes <= MESSAGE_MAX, "{} bytes in a message", bytes);
            }
        }
    }

    #[test]
    fn a_lone_entrys_data_is_not_copied() {
        let data = Bytes::from(vec![7; 4096]);
        let mut outbox = Outbox::<()>::default();
        outbox.push(vec![1], Bytes::new(), MESSAGE_MAX);
        outbox.push(vec![2], data.clone(), MESSAGE_MAX);
        outbox.push(vec![3], Bytes::new(), MESSAGE_MAX);
        let mut batch = outbox.pop().expect("one message");
        assert_eq!((batch.count, &batch.entries[..]), (3, &[1, 2, 3][..]));
        assert_eq!(batch.take_data().as_ptr(), data.as_ptr());
        assert!(outbox.pop().is_none());
    }

    #[test]
    fn a_batch_has_so_many_entries_and_no_more() {
        let found = messages(&vec![(1, 0); BATCH_MAX + 1]);
        let counts: Vec<usize> = found.iter().map(|(count, ..)| *count).collect();
        assert_eq!(counts, [BATCH_MAX, 1]);
    }
}
