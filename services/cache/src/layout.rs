//! The cache's file: a header, an entry for each cell, the cells.
//!
//! Keeps: where everything is. One file, so that nothing can be deleted beside it.
//! Order: before a cell is written its entry is zeros; its new entry is written after it.
//! Crash: after a killed process an entry that holds has its piece; after a loss of power the piece's CRC32C tells.
//! Knows no files. A file of another version, or made for other sizes, is no cache: it starts empty.
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 4096 | header: magic (8), version (u32), bytes in a cell (u32), cells (u32), CRC32C of these (u32), zeros |
//! | 4096 | 64 a cell | entries: key (40), sequence number (u64), length (u32), CRC32C of key and piece (u32), zeros (4), CRC32C of these and the cell's number (u32) |
//! | next 4096 | cell length each | cells |
//!
//! Numbers are little-endian.

use sconce_schemas::crc::{crc32c, crc32c_append};

use crate::key::{KEY_LEN, Key};

const MAGIC: [u8; 8] = *b"SCNCACHE";
const VERSION: u32 = 1;

/// Bytes of the header's area: a page.
pub const HEADER_LEN: u64 = 4096;
/// Bytes of an entry.
pub const ENTRY_LEN: usize = 64;
/// One that is found and one that is written.
const CELLS_MIN: u32 = 2;
const HEADER_USED: usize = 24;
const CHECKED: usize = ENTRY_LEN - 4;

/// The sizes that a cache's file is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    piece_len: u32,
    cells: u32,
}

impl Geometry {
    /// As many cells for pieces of at most `piece_len` bytes as fit into a file of `size` bytes; two, of a byte at least,
    /// where that is fewer.
    #[must_use]
    pub fn fitting(size: u64, piece_len: u32) -> Self {
        let piece_len = piece_len.max(1);
        let cell = u64::from(piece_len) + ENTRY_LEN as u64;
        // A page may go between entries and cells.
        let room = size.saturating_sub(2 * HEADER_LEN);
        let cells = u32::try_from(room / cell).unwrap_or(u32::MAX).max(CELLS_MIN);
        Self { piece_len, cells }
    }

    /// Cells.
    #[must_use]
    pub const fn cells(self) -> u32 {
        self.cells
    }

    /// Bytes in a cell: the longest piece.
    #[must_use]
    pub const fn piece_len(self) -> u32 {
        self.piece_len
    }

    /// Bytes of all entries.
    #[must_use]
    pub const fn entries_len(self) -> u64 {
        self.cells as u64 * ENTRY_LEN as u64
    }

    /// Where a cell's entry is.
    #[must_use]
    pub const fn entry_offset(self, cell: u32) -> u64 {
        HEADER_LEN + cell as u64 * ENTRY_LEN as u64
    }

    /// Where a cell is.
    #[must_use]
    pub const fn cell_offset(self, cell: u32) -> u64 {
        let cells = (HEADER_LEN + self.entries_len()).next_multiple_of(HEADER_LEN);
        cells + cell as u64 * self.piece_len as u64
    }

    /// Bytes of the file when all cells are full.
    #[must_use]
    pub const fn file_len(self) -> u64 {
        self.cell_offset(self.cells)
    }

    /// The header of a file with these sizes.
    #[must_use]
    pub fn header(self) -> [u8; HEADER_USED] {
        let mut header = [0; HEADER_USED];
        header[..8].copy_from_slice(&MAGIC);
        header[8..12].copy_from_slice(&VERSION.to_le_bytes());
        header[12..16].copy_from_slice(&self.piece_len.to_le_bytes());
        header[16..20].copy_from_slice(&self.cells.to_le_bytes());
        let crc = crc32c(&header[..20]);
        header[20..].copy_from_slice(&crc.to_le_bytes());
        header
    }
}

/// What a cell holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) key: Key,
    /// Grows with each piece that is written.
    pub(crate) sequence: u64,
    pub(crate) length: u32,
    pub(crate) crc: u32,
}

impl Entry {
    pub(crate) fn to_bytes(self, cell: u32) -> [u8; ENTRY_LEN] {
        let mut bytes = [0; ENTRY_LEN];
        bytes[..KEY_LEN].copy_from_slice(&self.key.0);
        bytes[40..48].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[48..52].copy_from_slice(&self.length.to_le_bytes());
        bytes[52..56].copy_from_slice(&self.crc.to_le_bytes());
        let crc = entry_crc(&bytes, cell);
        bytes[CHECKED..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// `None`: these are not an entry of that cell.
    pub(crate) fn from_bytes(bytes: &[u8; ENTRY_LEN], cell: u32, geometry: Geometry) -> Option<Self> {
        let mut key = [0; KEY_LEN];
        key.copy_from_slice(&bytes[..KEY_LEN]);
        let entry = Self {
            key: Key(key),
            sequence: u64::from_le_bytes(bytes[40..48].try_into().ok()?),
            length: u32::from_le_bytes(bytes[48..52].try_into().ok()?),
            crc: u32::from_le_bytes(bytes[52..56].try_into().ok()?),
        };
        let crc = u32::from_le_bytes(bytes[CHECKED..].try_into().ok()?);
        let fits = (1..=geometry.piece_len).contains(&entry.length);
        (fits && crc == entry_crc(bytes, cell)).then_some(entry)
    }
}

fn entry_crc(bytes: &[u8; ENTRY_LEN], cell: u32) -> u32 {
    crc32c_append(crc32c(&cell.to_le_bytes()), &bytes[..CHECKED])
}

/// The CRC32C of a piece: it covers its key, so that what another piece left in a cell never holds.
pub(crate) fn piece_crc(key: &Key, piece: &[u8]) -> u32 {
    crc32c_append(crc32c(&key.0), piece)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_of_it_lies_within_the_size_and_nothing_overlaps() {
        for piece_len in [1, 512, 4096, 5000, 128 << 10] {
            for size in [0, 8192, 8193, 100_000, 1 << 20, (1 << 30) + 17] {
                let geometry = Geometry::fitting(size, piece_len);
                let last = geometry.cells() - 1;
                assert!(geometry.entry_offset(last) + 64 <= geometry.cell_offset(0));
                if size < 2 * (HEADER_LEN + u64::from(piece_len) + 64) {
                    assert_eq!(geometry.cells(), CELLS_MIN);
                    continue;
                }
                assert!(geometry.cell_offset(last) + u64::from(piece_len) <= size);
                let wasted = size - geometry.cell_offset(last) - u64::from(piece_len);
                assert!(wasted < 2 * HEADER_LEN + u64::from(piece_len) + 64, "{wasted}");
            }
        }
    }

    #[test]
    fn an_entry_holds_in_its_cell_only_and_not_with_a_bit_flipped() {
        let geometry = Geometry::fitting(1 << 20, 4096);
        let entry = Entry {
            key: Key([7; KEY_LEN]),
            sequence: 1 << 40,
            length: 4096,
            crc: 0x1234_5678,
        };
        let bytes = entry.to_bytes(9);
        assert_eq!(Entry::from_bytes(&bytes, 9, geometry), Some(entry));
        assert_eq!(Entry::from_bytes(&bytes, 8, geometry), None);
        for bit in 0..ENTRY_LEN * 8 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Entry::from_bytes(&flipped, 9, geometry), None, "bit {bit}");
        }
        assert_eq!(Entry::from_bytes(&[0; ENTRY_LEN], 0, geometry), None);
        for length in [0, 4097] {
            let bytes = Entry { length, ..entry }.to_bytes(9);
            assert_eq!(Entry::from_bytes(&bytes, 9, geometry), None, "length {length}");
        }
    }
}
