//! Writing a large file past the page cache.
//!
//! Keeps: for each thread that writes, the aligned memory that direct writes go out from.
//! Order: from the file's first byte to its last; the file has its right length at the end.
//! Crash: nothing; the file has no name yet, and its caller syncs it.
//! Knows no object: it is given bytes in pieces.
//!
//! An object is written once and hardly ever read soon. Through the page cache its pages would push out those that are
//! read, and each of them is new memory: on virtual machines a first touch costs more than the write itself (decision
//! 0064). `open(2)`, O_DIRECT: memory, offset and length have to be multiples of the logical block size.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, ErrorKind, IoSlice};

use rustix::fs::OFlags;
use rustix::io::Errno;

/// Smaller files are written through the page cache: a direct write waits for the device once more.
pub(super) const DIRECT_BYTES_MIN: u64 = 256 << 10;
/// Alignment of memory, offsets and lengths: no device in use has larger logical blocks.
const BLOCK: usize = 4096;
/// Blocks of one write: 1 MiB.
const BLOCKS: usize = 256;

#[derive(Clone)]
#[repr(C, align(4096))]
struct Block([u8; BLOCK]);

const _: () = assert!(size_of::<Block>() == BLOCK && align_of::<Block>() == BLOCK);

thread_local! {
    static STAGING: RefCell<Vec<Block>> = const { RefCell::new(Vec::new()) };
}

/// Writes `pieces`, `length` bytes in all, to a new file. `false`: this file system writes only through the page
/// cache, and the file may hold anything.
///
/// # Errors
/// The device's.
pub(super) fn write<'a>(
    file: &File,
    pieces: impl Iterator<Item = &'a [u8]>,
    length: u64,
) -> io::Result<bool> {
    let flags = rustix::fs::fcntl_getfl(file)?;
    if rustix::fs::fcntl_setfl(file, flags | OFlags::DIRECT).is_err() {
        return Ok(false);
    }
    let written = STAGING.with_borrow_mut(|staging| write_blocks(file, staging, pieces));
    rustix::fs::fcntl_setfl(file, flags)?;
    match written {
        Ok(()) => file.set_len(length).map(|()| true),
        Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Writes whole blocks; the last one is filled up with zeros.
fn write_blocks<'a>(
    file: &File,
    staging: &mut Vec<Block>,
    pieces: impl Iterator<Item = &'a [u8]>,
) -> io::Result<()> {
    staging.resize(BLOCKS, Block([0; BLOCK]));
    let (mut at, mut offset) = (0, 0);
    for mut piece in pieces {
        while !piece.is_empty() {
            let (index, within) = (at / BLOCK, at % BLOCK);
            let (now, rest) = piece.split_at(piece.len().min(BLOCK - within));
            staging[index].0[within..within + now.len()].copy_from_slice(now);
            at += now.len();
            piece = rest;
            if at == BLOCKS * BLOCK {
                write_all(file, staging, offset)?;
                offset += at as u64;
                at = 0;
            }
        }
    }
    let blocks = at.div_ceil(BLOCK);
    if let Some(last) = staging[..blocks].last_mut()
        && at % BLOCK != 0
    {
        last.0[at % BLOCK..].fill(0);
    }
    write_all(file, &staging[..blocks], offset)
}

fn write_all(file: &File, blocks: &[Block], mut offset: u64) -> io::Result<()> {
    let mut slices: Vec<IoSlice<'_>> = blocks.iter().map(|block| IoSlice::new(&block.0)).collect();
    let mut left = slices.as_mut_slice();
    while !left.is_empty() {
        match rustix::io::pwritev(file, left, offset) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => {
                IoSlice::advance_slices(&mut left, written);
                offset += written as u64;
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn a_file_of_any_length_holds_its_pieces_and_no_more() {
        let dir = tempfile::tempdir().unwrap();
        for length in [
            1_usize,
            4095,
            4096,
            4097,
            (1 << 20) - 1,
            1 << 20,
            (1 << 20) + 1,
            (3 << 20) + 4100 * 7,
        ] {
            let data: Vec<u8> = (0..length).map(|at| u8::try_from(at % 251).unwrap()).collect();
            let path = dir.path().join(length.to_string());
            let mut file = File::create_new(&path).unwrap();
            let is_direct = write(&file, data.chunks(4100), u64::try_from(length).unwrap()).unwrap();
            if !is_direct {
                // Nothing to see here, as on a tmpfs; the fallback has tests of its own.
                continue;
            }
            file = File::open(&path).unwrap();
            let mut found = Vec::new();
            file.read_to_end(&mut found).unwrap();
            assert_eq!(found.len(), data.len());
            assert!(found == data, "{length} bytes come back as they were");
        }
    }
}
