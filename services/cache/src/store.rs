//! The cells of an open file: which piece is in which, and which are free.
//!
//! Keeps: a place for each piece that is in the file; the policy says which these are.
//! Order: a piece that is written later has a larger sequence number; a start takes them in that order.
//! Crash: a start reads the entries. One that does not hold is a free cell.
//! Knows no errors' meaning: they go to the caller.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::disk::{CacheFile, Disk};
use crate::key::Key;
use crate::layout::{ENTRY_LEN, Entry, Geometry, piece_crc};
use crate::policy::Policy;

/// Where a piece is in the file, and what it must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) cell: u32,
    pub(crate) length: u32,
    pub(crate) crc: u32,
}

/// What is in the file.
pub(crate) struct Table {
    policy: Policy<Place>,
    free: Vec<u32>,
    sequence: u64,
}

/// A file and what is in it.
pub(crate) struct Store {
    pub(crate) file: Arc<dyn CacheFile>,
    pub(crate) table: Table,
}

/// Bytes of entries that are read at once.
const ENTRIES_READ: usize = 1 << 20;
/// What a disk cannot read is a block: entries are read by this after an error.
const BLOCK: usize = 4096;
/// Blocks of entries that may be unreadable.
const UNREAD_MAX: usize = 16;
const ZERO_ENTRY: [u8; ENTRY_LEN] = [0; ENTRY_LEN];

impl Store {
    /// Opens or makes the file and reads its entries. Cells that are `shunned` are never used. Blocks.
    pub(crate) fn open(
        disk: &dyn Disk,
        path: &Path,
        geometry: Geometry,
        seed: u64,
        shunned: &BTreeSet<u32>,
    ) -> io::Result<Store> {
        let file: Arc<dyn CacheFile> = disk.open(path)?.into();
        // Before there is memory for as many pieces.
        let (size, capacity) = (geometry.file_len(), disk.capacity(path)?);
        if size > capacity {
            return Err(io::Error::other(format!(
                "its size is {size} bytes, and its file system has {capacity}; right would be less than that"
            )));
        }
        let mut header = geometry.header();
        let read = file.read(&mut header, 0, false)?;
        let mut shunned = shunned.clone();
        let found = match read == header.len() && header == geometry.header() {
            true => read_entries(&*file, geometry, &mut shunned)?,
            false => {
                file.clear()?;
                file.write(&geometry.header(), 0)?;
                Vec::new()
            }
        };
        let table = Table::of(found, geometry, seed, &shunned);
        Ok(Store { file, table })
    }
}

/// The entries that hold. Cells whose entries cannot be read are to be shunned, unless there are many.
fn read_entries(
    file: &dyn CacheFile,
    geometry: Geometry,
    shunned: &mut BTreeSet<u32>,
) -> io::Result<Vec<(u32, Entry)>> {
    let mut found = Vec::new();
    let mut buffer = vec![0; ENTRIES_READ];
    let (mut cell, mut unread, mut at_once) = (0, 0, ENTRIES_READ);
    while cell < geometry.cells() {
        let cells = usize::try_from(geometry.cells() - cell).unwrap_or(usize::MAX);
        let length = at_once.min(cells.saturating_mul(ENTRY_LEN));
        let read = match file.read(&mut buffer[..length], geometry.entry_offset(cell), false) {
            Ok(read) => read,
            Err(_) if at_once > BLOCK => {
                at_once = BLOCK;
                continue;
            }
            Err(_) if unread < UNREAD_MAX => {
                unread += 1;
                let behind = cell.saturating_add(u32::try_from(length / ENTRY_LEN).unwrap_or(u32::MAX));
                shunned.extend(cell..behind);
                cell = behind;
                continue;
            }
            Err(error) => return Err(error),
        };
        let (entries, _) = buffer[..read].as_chunks::<ENTRY_LEN>();
        for bytes in entries {
            found.extend(Entry::from_bytes(bytes, cell, geometry).map(|entry| (cell, entry)));
            cell += 1;
        }
        if read < length {
            break;
        }
    }
    Ok(found)
}

impl Table {
    fn of(mut found: Vec<(u32, Entry)>, geometry: Geometry, seed: u64, shunned: &BTreeSet<u32>) -> Table {
        found.retain(|(cell, _)| !shunned.contains(cell));
        found.sort_unstable_by_key(|(_, entry)| entry.sequence);
        let mut is_free = vec![true; geometry.cells() as usize];
        let usable = is_free.len().saturating_sub(shunned.len());
        // One cell more than pieces: the next piece is written before another makes room.
        let mut table = Table {
            policy: Policy::new(usable.saturating_sub(1), seed),
            free: Vec::new(),
            sequence: found.last().map_or(0, |(_, entry)| entry.sequence),
        };
        let mut left = Vec::new();
        for (cell, entry) in found {
            is_free[cell as usize] = false;
            let place = Place {
                cell,
                length: entry.length,
                crc: entry.crc,
            };
            table
                .policy
                .insert(&entry.key, place, &mut |place: Place| left.push(place.cell));
        }
        let free = (0..geometry.cells()).filter(|cell| is_free[*cell as usize] && !shunned.contains(cell));
        table.free = free.chain(left).collect();
        // Taken from the end: the first cells first.
        table.free.reverse();
        table
    }

    pub(crate) fn use_of(&self, key: &Key) -> Option<Place> {
        self.policy.use_of(key)
    }

    /// Where a piece is; not a use.
    pub(crate) fn peek(&self, key: &Key) -> Option<Place> {
        self.policy.peek(key)
    }

    pub(crate) fn has(&self, key: &Key) -> bool {
        self.peek(key).is_some()
    }

    /// Whether the piece is still where it was.
    pub(crate) fn is_at(&self, key: &Key, place: Place) -> bool {
        self.peek(key) == Some(place)
    }

    pub(crate) fn pieces(&self) -> u64 {
        self.policy.len() as u64
    }

    /// A cell to write to, with the number of what is written.
    pub(crate) fn take_cell(&mut self) -> Option<(u32, u64)> {
        let cell = self.free.pop()?;
        self.sequence += 1;
        Some((cell, self.sequence))
    }

    /// Nothing that can be found was written to the cell.
    pub(crate) fn give_back(&mut self, cell: u32) {
        self.free.push(cell);
    }

    /// The piece is in its cell; gives how many made room for it.
    pub(crate) fn publish(&mut self, key: &Key, place: Place) -> u64 {
        let before = self.free.len();
        let free = &mut self.free;
        self.policy
            .insert(key, place, &mut |left: Place| free.push(left.cell));
        (self.free.len() - before) as u64
    }

    /// The piece is not in its cell, or not unharmed.
    pub(crate) fn drop_piece(&mut self, key: &Key, place: Place) {
        if self.policy.remove(key, &place) {
            self.free.push(place.cell);
        }
    }
}

/// Writes a piece to a cell. Blocks.
pub(crate) fn write_piece(
    file: &dyn CacheFile,
    geometry: Geometry,
    cell: u32,
    sequence: u64,
    key: &Key,
    piece: &[u8],
) -> io::Result<Place> {
    let length = u32::try_from(piece.len()).map_err(io::Error::other)?;
    let entry = Entry {
        key: *key,
        sequence,
        length,
        crc: piece_crc(key, piece),
    };
    // What the cell held before is over before it is overwritten.
    file.write(&ZERO_ENTRY, geometry.entry_offset(cell))?;
    file.write(piece, geometry.cell_offset(cell))?;
    file.write(&entry.to_bytes(cell), geometry.entry_offset(cell))?;
    Ok(Place {
        cell,
        length,
        crc: entry.crc,
    })
}

/// Reads a piece: `Ok(None)` where the file does not have it, or other bytes. With `now` only from memory (`WouldBlock`).
pub(crate) fn read_piece(
    file: &dyn CacheFile,
    geometry: Geometry,
    key: &Key,
    place: Place,
    now: bool,
) -> io::Result<Option<Vec<u8>>> {
    let mut piece = vec![0; place.length as usize];
    let read = file.read(&mut piece, geometry.cell_offset(place.cell), now)?;
    Ok((read == piece.len() && piece_crc(key, &piece) == place.crc).then_some(piece))
}
