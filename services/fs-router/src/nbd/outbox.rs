//! What a client is sent: headers and data, gathered into as few writes as there can be.
//!
//! Keeps: replies that were not written yet.
//! Order: bytes leave in the order in which they were put.
//! Crash: nothing.
//! Knows no socket: its owner writes what [`Outbox::slices`] gives.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf as _, Bytes, BytesMut};

/// Slices of one write: half of what the system takes at most.
pub(super) const SLICES: usize = 128;
/// Data up to this length is copied behind its header: a slice of its own would cost more.
const COPIED_MAX: usize = 512;

static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

#[derive(Default)]
pub(super) struct Outbox {
    sealed: VecDeque<Bytes>,
    /// Headers that follow `sealed`.
    open: BytesMut,
    length: usize,
}

impl Outbox {
    /// Appends what `put` writes.
    pub(super) fn header(&mut self, put: impl FnOnce(&mut BytesMut)) {
        let before = self.open.len();
        put(&mut self.open);
        self.length += self.open.len() - before;
    }

    /// Appends data.
    pub(super) fn data(&mut self, data: Bytes) {
        self.length += data.len();
        if data.len() <= COPIED_MAX {
            self.open.extend_from_slice(&data);
            return;
        }
        self.seal();
        self.sealed.push_back(data);
    }

    /// Appends zeros.
    pub(super) fn zeros(&mut self, mut length: u64) {
        while length > 0 {
            let some = usize::try_from(length).unwrap_or(usize::MAX).min(ZEROS.len());
            self.data(Bytes::from_static(&ZEROS[..some]));
            length -= some as u64;
        }
    }

    fn seal(&mut self) {
        if !self.open.is_empty() {
            self.sealed.push_back(self.open.split().freeze());
        }
    }

    /// Begins with bytes that another one did not get written.
    pub(super) fn with(unwritten: Vec<u8>) -> Self {
        let mut outbox = Self::default();
        outbox.data(unwritten.into());
        outbox
    }

    /// All that waits.
    pub(super) fn into_unwritten(mut self) -> Vec<u8> {
        self.seal();
        self.sealed.into_iter().flatten().collect()
    }

    /// Bytes that wait.
    pub(super) fn len(&self) -> usize {
        self.length
    }

    pub(super) fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Puts what waits first into `slices`; gives how many it took.
    pub(super) fn slices<'a>(&'a mut self, slices: &mut [IoSlice<'a>; SLICES]) -> usize {
        self.seal();
        let mut count = 0;
        for (slice, bytes) in slices.iter_mut().zip(&self.sealed) {
            *slice = IoSlice::new(bytes);
            count += 1;
        }
        count
    }

    /// This much was written.
    pub(super) fn advance(&mut self, mut written: usize) {
        self.length = self.length.saturating_sub(written);
        while written > 0
            && let Some(first) = self.sealed.front_mut()
        {
            if first.len() > written {
                first.advance(written);
                return;
            }
            written -= first.len();
            self.sealed.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_put_in_comes_out_however_much_each_write_takes(
            parts in proptest::collection::vec((0_u8..3, 0_usize..2000), 0..40),
            writes in proptest::collection::vec(1_usize..5000, 1..8),
        ) {
            let (mut outbox, mut wanted) = (Outbox::default(), Vec::new());
            for (index, (kind, length)) in parts.into_iter().enumerate() {
                let data = vec![u8::try_from(index).unwrap(); length];
                match kind {
                    0 => outbox.header(|out| out.extend_from_slice(&data)),
                    1 => outbox.data(data.clone().into()),
                    _ => outbox.zeros(length as u64),
                }
                wanted.extend(if kind == 2 { vec![0; length] } else { data });
            }
            let (mut got, mut turn) = (Vec::new(), 0);
            while !outbox.is_empty() {
                // Another one may go on with what is left.
                if turn % 3 == 2 {
                    outbox = Outbox::with(outbox.into_unwritten());
                }
                let most = writes[turn % writes.len()];
                turn += 1;
                let mut slices = [IoSlice::new(&[]); SLICES];
                let count = outbox.slices(&mut slices);
                let bytes: Vec<u8> =
                    slices[..count].iter().flat_map(|slice| slice.iter().copied()).take(most).collect();
                outbox.advance(bytes.len());
                got.extend(bytes);
            }
            prop_assert_eq!(got, wanted);
        }
    }
}
