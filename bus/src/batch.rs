//! What is queued while a send is under way, as the messages that it will leave in.
//!
//! Keeps: entries in order, joined into as few messages as the limits allow.
//! Order: entries leave in the order in which they were put in.
//! Crash: nothing; what was queued is gone with the connection.
//! Knows no sockets; its size is bounded by the credits of those who fill it.
//!
//! An entry is copied once, behind room for the start of its batch's header, which is written there when the batch
//! leaves; data of a batch is joined once, when its length is known.

use std::collections::VecDeque;

use bytes::{Buf, Bytes, BytesMut};
use sconce_schemas::wire::envelope::BATCH_MAX;

use crate::limits::JOINED_DATA_MAX;
use crate::link::Frames;

/// Bytes of a batch header before its entries, at most: kind, mark, array lengths.
pub(crate) const HEADER_ROOM: usize = 32;
/// What headers are cut from: many leave before another is allocated.
const HEADERS_AT_ONCE: usize = 16 << 10;

/// A batch; `tally` is what its owner keeps for the message as a whole.
#[derive(Default)]
struct Batch<T> {
    tally: T,
    /// [`HEADER_ROOM`] bytes, then the encoded entries, one after the other; empty while it is under construction.
    header: BytesMut,
    /// How long the entries are.
    entries_len: usize,
    /// How many they are.
    count: usize,
    data: Vec<Bytes>,
    data_len: usize,
}

impl<T> Batch<T> {
    fn has_room(&self, entry_len: usize, data_len: usize, message_bytes_max: u64) -> bool {
        let data = self.data_len + data_len;
        let joins = data_len > 0 && self.data_len > 0;
        let bytes = self.entries_len + entry_len + data + HEADER_ROOM;
        self.count < BATCH_MAX && (!joins || data <= JOINED_DATA_MAX) && bytes as u64 <= message_bytes_max
    }

    /// The data frame: a lone entry's data as it is, that of several joined, since a message has one data frame.
    fn take_data(&mut self) -> Bytes {
        match self.data.len() {
            0 => Bytes::new(),
            1 => self.data.pop().unwrap_or_default(),
            _ => {
                let mut joined = Vec::with_capacity(self.data_len);
                self.data
                    .drain(..)
                    .for_each(|data| joined.extend_from_slice(&data));
                Bytes::from(joined)
            }
        }
    }
}

/// Batches that wait to leave.
#[derive(Default)]
pub(crate) struct Outbox<T> {
    waiting: VecDeque<Batch<T>>,
    /// The header of the last of `waiting`, which may still grow.
    growing: BytesMut,
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
        if !room {
            self.seal();
            let wanted = HEADER_ROOM + entry.len();
            if self.growing.capacity() < wanted {
                self.growing.reserve(wanted.max(HEADERS_AT_ONCE));
            }
            self.growing.extend_from_slice(&[0; HEADER_ROOM]);
            self.waiting.push_back(Batch::default());
        }
        self.growing.extend_from_slice(&entry);
        let entry_len = entry.len();
        self.put_back(entry);
        let last = self.waiting.len() - 1;
        let batch = &mut self.waiting[last];
        batch.entries_len += entry_len;
        batch.count += 1;
        if !data.is_empty() {
            batch.data_len += data.len();
            batch.data.push(data);
        }
        &mut self.waiting[last].tally
    }

    /// The last batch grows no more.
    fn seal(&mut self) {
        if let Some(last) = self.waiting.back_mut()
            && last.header.is_empty()
        {
            last.header = self.growing.split();
        }
    }

    /// The next message. `start` is given its tally and number of entries, and writes the header up to its entries.
    pub(crate) fn pop(&mut self, start: impl FnOnce(&mut Vec<u8>, T, usize)) -> Option<Frames> {
        if self.waiting.len() == 1 {
            self.seal();
        }
        let mut batch = self.waiting.pop_front()?;
        let data = batch.take_data();
        let mut before = self.scratch();
        start(&mut before, batch.tally, batch.count);
        let mut header = batch.header;
        let header = if before.len() <= HEADER_ROOM && header.len() >= HEADER_ROOM {
            let at = HEADER_ROOM - before.len();
            header[at..HEADER_ROOM].copy_from_slice(&before);
            header.advance(at);
            header.freeze()
        } else {
            // No start is so long.
            header.advance(header.len().min(HEADER_ROOM));
            Bytes::from([&before[..], &header[..]].concat())
        };
        self.put_back(before);
        Some(Frames { header, data })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(crate) fn clear(&mut self) {
        self.waiting.clear();
        self.growing.clear();
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
        let mut counted = 0;
        while let Some(frames) = outbox.pop(|start, tally, count| {
            assert_eq!(tally, count);
            counted = count;
            start.extend_from_slice(b"start");
        }) {
            let entries = frames
                .header
                .strip_prefix(b"start")
                .expect("what was written first");
            found.push((counted, entries.len(), frames.data));
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
    fn a_message_is_whole_whatever_is_queued_while_it_leaves() {
        let mut outbox = Outbox::<()>::default();
        let none = |_: &mut Vec<u8>, (), _| {};
        outbox.push(vec![1; 100], Bytes::new(), MESSAGE_MAX);
        let first = outbox.pop(none).expect("a message");
        outbox.push(vec![2; 100], Bytes::new(), MESSAGE_MAX);
        outbox.clear();
        outbox.push(vec![3; 100], Bytes::new(), MESSAGE_MAX);
        let second = outbox.pop(none).expect("a message");
        assert_eq!(
            (&first.header[..], &second.header[..]),
            (&[1; 100][..], &[3; 100][..])
        );
    }

    #[test]
    fn a_lone_entrys_data_is_not_copied() {
        let data = Bytes::from(vec![7; 4096]);
        let mut outbox = Outbox::<()>::default();
        outbox.push(vec![1], Bytes::new(), MESSAGE_MAX);
        outbox.push(vec![2], data.clone(), MESSAGE_MAX);
        outbox.push(vec![3], Bytes::new(), MESSAGE_MAX);
        let count = |start: &mut Vec<u8>, (), count| start.extend(u8::try_from(count));
        let frames = outbox.pop(count).expect("one message");
        assert_eq!(frames.header[..], [3, 1, 2, 3]);
        assert_eq!(frames.data.as_ptr(), data.as_ptr());
        assert!(outbox.pop(count).is_none());
    }

    #[test]
    fn a_batch_has_so_many_entries_and_no_more() {
        let found = messages(&vec![(1, 0); BATCH_MAX + 1]);
        let counts: Vec<usize> = found.iter().map(|(count, ..)| *count).collect();
        assert_eq!(counts, [BATCH_MAX, 1]);
    }
}
