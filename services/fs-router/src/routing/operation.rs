//! What front ends ask for and what they get: operations and outcomes.
//!
//! Keeps: nothing; these are values.
//! Order: the pieces of a read follow each other from its first byte to its last.
//! Crash: nothing.
//! Knows no protocol of any front end.

use bytes::{Buf as _, Bytes, BytesMut};
use sconce_schemas::wire::Refusal;
use sconce_schemas::wire::volume::{ChangedExtent, ExtentStatus, IoCode, IoFlags};
use sconce_schemas::{Epoch, VolumeSize};
use sconce_tracing::{OperationId, Status};

/// One operation on a volume, of any length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    /// What to do.
    pub code: IoCode,
    /// How.
    pub flags: IoFlags,
    /// First byte; for [`IoCode::Resize`] the new size in bytes.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// The data of a write, `length` bytes long; empty otherwise.
    pub data: Bytes,
    /// Its id in traces; the routing core gives one to an operation that has [`OperationId::NONE`].
    pub id: OperationId,
}

impl Operation {
    /// Reads `length` bytes from `offset`.
    #[must_use]
    pub fn read(offset: u64, length: u64) -> Self {
        Self::without_data(IoCode::Read, 0, offset, length)
    }

    /// Writes `data` at `offset`; `flags` are those of [`IoFlags`].
    #[must_use]
    pub fn write(offset: u64, data: Bytes, flags: u8) -> Self {
        Self {
            code: IoCode::Write,
            flags: IoFlags(flags),
            offset,
            length: data.len() as u64,
            data,
            id: OperationId::NONE,
        }
    }

    /// The same under an id that [`super::FrontEnd::operation_id`] gave.
    #[must_use]
    pub fn with_id(mut self, id: OperationId) -> Self {
        self.id = id;
        self
    }

    /// Makes a range a hole.
    #[must_use]
    pub fn discard(offset: u64, length: u64, flags: u8) -> Self {
        Self::without_data(IoCode::Discard, flags, offset, length)
    }

    /// Makes a range zeros.
    #[must_use]
    pub fn write_zeroes(offset: u64, length: u64, flags: u8) -> Self {
        Self::without_data(IoCode::WriteZeroes, flags, offset, length)
    }

    /// Makes all that was acknowledged survive a power loss.
    #[must_use]
    pub fn flush() -> Self {
        Self::without_data(IoCode::Flush, 0, 0, 0)
    }

    /// Reports what of a range is data, zeros and holes.
    #[must_use]
    pub fn extents(offset: u64, length: u64) -> Self {
        Self::without_data(IoCode::Extents, 0, offset, length)
    }

    /// Reports what of a range differs from what the session was opened to be compared with.
    #[must_use]
    pub fn changes(offset: u64, length: u64) -> Self {
        Self::without_data(IoCode::Changes, 0, offset, length)
    }

    /// Sets the volume's size.
    #[must_use]
    pub fn resize(size: VolumeSize) -> Self {
        Self::without_data(IoCode::Resize, 0, size.bytes(), 0)
    }

    fn without_data(code: IoCode, flags: u8, offset: u64, length: u64) -> Self {
        Self {
            code,
            flags: IoFlags(flags),
            offset,
            length,
            data: Bytes::new(),
            id: OperationId::NONE,
        }
    }

    /// Bytes that the operation carries to or from the volume: what it counts against a limit in bytes.
    #[must_use]
    pub fn carried(&self) -> u64 {
        match self.code {
            IoCode::Read | IoCode::Write => self.length,
            _ => 0,
        }
    }
}

/// A part of what a read found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// These bytes.
    Data(Bytes),
    /// This many zeros.
    Zeros(u64),
}

impl Piece {
    /// Bytes that it stands for.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a piece of a read is never empty")]
    pub fn len(&self) -> u64 {
        match self {
            Piece::Data(data) => data.len() as u64,
            Piece::Zeros(length) => *length,
        }
    }

    /// Drops what lies outside `[skip, skip + keep)`; both lie within the piece.
    fn cut(&mut self, skip: u64, keep: u64) {
        match self {
            Piece::Data(data) => {
                data.advance(usize::try_from(skip).unwrap_or(usize::MAX).min(data.len()));
                data.truncate(usize::try_from(keep).unwrap_or(usize::MAX));
            }
            Piece::Zeros(length) => *length = keep,
        }
    }
}

/// What a read found. The first piece is kept apart so that the common read, of one piece, allocates nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReadData {
    first: Option<Piece>,
    rest: Vec<Piece>,
    length: u64,
}

impl ReadData {
    /// Adds what follows; zeros that follow zeros become one piece.
    pub fn push(&mut self, piece: Piece) {
        let length = piece.len();
        if length == 0 {
            return;
        }
        self.length += length;
        let last = self.rest.last_mut().or(self.first.as_mut());
        match (last, piece) {
            (None, piece) => self.first = Some(piece),
            (Some(Piece::Zeros(before)), Piece::Zeros(more)) => *before += more,
            (Some(_), piece) => self.rest.push(piece),
        }
    }

    /// Adds all that another read found, which follows.
    pub fn append(&mut self, other: ReadData) {
        other.into_pieces().for_each(|piece| self.push(piece));
    }

    /// What lies in `[skip, skip + length)` of this.
    #[must_use]
    pub fn trimmed(self, skip: u64, length: u64) -> ReadData {
        if skip == 0 && length == self.length {
            return self;
        }
        let (end, mut at, mut out) = (skip + length, 0, ReadData::default());
        for mut piece in self.into_pieces() {
            let (start, stop) = (at, at + piece.len());
            at = stop;
            let (from, to) = (start.max(skip), stop.min(end));
            if from < to {
                piece.cut(from - start, to - from);
                out.push(piece);
            }
        }
        out
    }

    /// Bytes in all.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.length
    }

    /// Whether it is of no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// The pieces, in order.
    pub fn pieces(&self) -> impl Iterator<Item = &Piece> {
        self.first.iter().chain(&self.rest)
    }

    /// The pieces, in order.
    pub fn into_pieces(self) -> impl Iterator<Item = Piece> {
        self.first.into_iter().chain(self.rest)
    }

    /// The bytes in one buffer: without a copy where they are one piece of data.
    #[must_use]
    pub fn into_bytes(self) -> Bytes {
        match (self.first, self.rest.is_empty()) {
            (None, _) => Bytes::new(),
            (Some(Piece::Data(data)), true) => data,
            (first, _) => {
                let mut all = BytesMut::with_capacity(usize::try_from(self.length).unwrap_or(0));
                for piece in first.into_iter().chain(self.rest) {
                    match piece {
                        Piece::Data(data) => all.extend_from_slice(&data),
                        Piece::Zeros(length) => {
                            all.resize(all.len() + usize::try_from(length).unwrap_or(0), 0);
                        }
                    }
                }
                all.freeze()
            }
        }
    }
}

/// What the owner says of a volume that it opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opened {
    /// The ownership that serves it.
    pub epoch: Epoch,
    /// Its size now.
    pub size: VolumeSize,
    /// Whether it takes no writes.
    pub read_only: bool,
}

/// How an operation ended. It ends exactly once, and never because of time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// A write, discard, flush or resize was done.
    Done,
    /// What a read found.
    Read(ReadData),
    /// What of a range is data, zeros and holes, in order; at least the start of the range is covered.
    Extents(Vec<ExtentStatus>),
    /// What of a range differs, in order; at least the start of the range is covered.
    Changes(Vec<ChangedExtent>),
    /// The volume was opened.
    Opened(Opened),
    /// Not done: the request is wrong, or the data is damaged.
    Refused(Refusal),
}

impl Outcome {
    /// For traces.
    #[must_use]
    pub fn status(&self) -> Status {
        match self {
            Outcome::Refused(refusal) => refusal.into(),
            _ => Status::Ok,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn piece() -> impl Strategy<Value = Piece> {
        prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..40).prop_map(|bytes| Piece::Data(bytes.into())),
            (0_u64..40).prop_map(Piece::Zeros),
        ]
    }

    fn flat(pieces: &[Piece]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for piece in pieces {
            match piece {
                Piece::Data(data) => bytes.extend_from_slice(data),
                Piece::Zeros(n) => bytes.resize(bytes.len() + usize::try_from(*n).unwrap(), 0),
            }
        }
        bytes
    }

    proptest! {
        #[test]
        fn trimming_equals_slicing(
            pieces in proptest::collection::vec(piece(), 0..8), skip in 0_u64..200, length in 0_u64..200,
        ) {
            let bytes = flat(&pieces);
            let skip = skip.min(bytes.len() as u64);
            let length = length.min(bytes.len() as u64 - skip);
            let mut data = ReadData::default();
            pieces.into_iter().for_each(|piece| data.push(piece));
            prop_assert_eq!(data.len(), bytes.len() as u64);
            let from = usize::try_from(skip).unwrap();
            let to = from + usize::try_from(length).unwrap();
            let trimmed = data.trimmed(skip, length);
            prop_assert_eq!(trimmed.len(), length);
            prop_assert!(trimmed.pieces().all(|piece| piece.len() > 0));
            prop_assert_eq!(&trimmed.into_bytes()[..], &bytes[from..to]);
        }
    }
}
