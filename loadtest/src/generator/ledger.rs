//! What a volume must hold: which write to each of its blocks is the newest one, and what that wrote.
//!
//! Keeps: a number for each block, and which blocks have a request under way.
//! Order: a block has one request under way at most, so what it must hold is known whenever it is read.
//! Crash: nothing; a write that failed leaves its block unknown until the next one.
//! Knows no connection.

use anyhow::{Result, ensure};
use bytes::{Bytes, BytesMut};

/// A block of which nobody knows what it holds.
const UNKNOWN: u32 = u32::MAX;
/// Bytes at a block's start that say who wrote it: the number of the write, the block, and whose ledger it was.
const HEAD: usize = 24;
/// Blocks that are looked at for one without a request; on a small volume all may have one.
const LOOKS: usize = 64;

/// The ledger of a volume.
#[derive(Debug)]
pub(crate) struct Ledger {
    seed: u64,
    block_len: usize,
    /// The newest write; 0: zeros.
    newest: Vec<u32>,
    busy: Vec<bool>,
}

/// A request for a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Turn {
    pub(crate) block: usize,
    /// Of a write: its own. Of a read: that of the write that it must see.
    number: u32,
}

impl Ledger {
    /// The ledger of a volume of zeros, or of one of which nothing is known.
    pub(crate) fn new(seed: u64, bytes: u64, block_len: usize, is_zero: bool) -> Result<Self> {
        let blocks = usize::try_from(bytes)? / block_len.max(1);
        ensure!(
            block_len >= HEAD && blocks > 0,
            "a volume of {bytes} bytes has no block of {block_len} bytes; a block has {HEAD} at least"
        );
        Ok(Self {
            seed,
            block_len,
            newest: vec![if is_zero { 0 } else { UNKNOWN }; blocks],
            busy: vec![false; blocks],
        })
    }

    pub(crate) fn blocks(&self) -> usize {
        self.newest.len()
    }

    /// A random block without a request, which has one from now on; `None`: those that were looked at have one.
    fn free(&mut self, chance: &mut fastrand::Rng) -> Option<usize> {
        let found = (0..LOOKS)
            .map(|_| chance.usize(..self.newest.len()))
            .find(|block| !self.busy[*block])?;
        self.busy[found] = true;
        Some(found)
    }

    /// The next read.
    pub(crate) fn read(&mut self, chance: &mut fastrand::Rng) -> Option<Turn> {
        let block = self.free(chance)?;
        Some(self.turn(block))
    }

    fn turn(&self, block: usize) -> Turn {
        Turn {
            block,
            number: self.newest[block],
        }
    }

    /// The next write.
    pub(crate) fn write(&mut self, chance: &mut fastrand::Rng) -> Option<Turn> {
        let block = self.free(chance)?;
        Some(self.overwrite(block))
    }

    fn overwrite(&mut self, block: usize) -> Turn {
        let number = match self.newest[block] {
            // What was there before is none of its numbers.
            UNKNOWN => 1,
            newest => (newest + 1) % UNKNOWN,
        };
        // Not known until it is answered.
        self.newest[block] = UNKNOWN;
        Turn { block, number }
    }

    /// A write was acknowledged.
    pub(crate) fn written(&mut self, turn: Turn) {
        self.newest[turn.block] = turn.number;
    }

    /// A request is over.
    pub(crate) fn over(&mut self, turn: Turn) {
        self.busy[turn.block] = false;
    }

    /// What a write writes.
    pub(crate) fn content(&self, turn: Turn) -> Bytes {
        let mut content = BytesMut::zeroed(self.block_len);
        self.fill(turn, &mut content);
        content.freeze()
    }

    fn fill(&self, turn: Turn, into: &mut [u8]) {
        let (head, body) = into.split_at_mut(HEAD.min(into.len()));
        let block = turn.block as u64;
        let words = [u64::from(turn.number), block, self.seed];
        for (at, word) in head.chunks_exact_mut(8).zip(words) {
            at.copy_from_slice(&word.to_le_bytes());
        }
        let mut random = fastrand::Rng::with_seed(self.seed ^ (u64::from(turn.number) << 40) ^ block);
        random.fill(body);
    }

    /// Judges what a read gave.
    ///
    /// # Errors
    /// It is something else than was written last; the text names the block and what it holds.
    pub(crate) fn judge(&self, turn: Turn, found: &[u8]) -> Result<()> {
        if turn.number == UNKNOWN {
            return Ok(());
        }
        let mut wanted = vec![0; self.block_len];
        if turn.number != 0 {
            self.fill(turn, &mut wanted);
        }
        let Some(differs) = (0..self.block_len.max(found.len())).find(|at| wanted.get(*at) != found.get(*at))
        else {
            return Ok(());
        };
        let word = |at: usize| {
            let bytes = found.get(at..).and_then(|rest| rest.first_chunk());
            bytes.map_or(0, |bytes| u64::from_le_bytes(*bytes))
        };
        let holds = if found.len() != self.block_len {
            format!("{} bytes", found.len())
        } else if found.iter().all(|byte| *byte == 0) {
            "zeros".to_owned()
        } else if word(16) == self.seed {
            format!("write {} of block {}", word(0), word(8))
        } else {
            format!("bytes that this run did not write, beginning with {:#x}", word(0))
        };
        anyhow::bail!(
            "block {} (byte {}) must hold write {}, and from its byte {differs} on does not: it holds {holds}",
            turn.block,
            turn.block as u64 * self.block_len as u64,
            turn.number
        )
    }

    /// Writes for blocks one after the other, from `first` on, as one request: how often, and the content.
    pub(crate) fn write_range(&mut self, first: usize, count: usize) -> (Vec<Turn>, Bytes) {
        let last = (first + count).min(self.blocks());
        let turns: Vec<Turn> = (first..last).map(|block| self.overwrite(block)).collect();
        let mut content = BytesMut::zeroed(turns.len() * self.block_len);
        for (turn, into) in turns.iter().zip(content.chunks_exact_mut(self.block_len)) {
            self.fill(*turn, into);
        }
        (turns, content.freeze())
    }

    /// Reads of blocks one after the other, from `first` on, as one request.
    pub(crate) fn read_range(&self, first: usize, count: usize) -> Vec<Turn> {
        let last = (first + count).min(self.blocks());
        (first..last).map(|block| self.turn(block)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lost_late_torn_or_misplaced_is_seen() {
        let mut chance = fastrand::Rng::with_seed(1);
        let mut ledger = Ledger::new(7, 4 * 4096, 4096, true).unwrap();
        let first = ledger.write(&mut chance).unwrap();
        let old = ledger.content(first);
        ledger.written(first);
        let second = ledger.overwrite(first.block);
        let new = ledger.content(second);
        // Until it is answered either may be there.
        ledger.judge(ledger.turn(first.block), &old).unwrap();
        ledger.written(second);
        ledger.over(second);
        let turn = ledger.turn(first.block);
        ledger.judge(turn, &new).unwrap();
        let error = |bytes: &[u8]| ledger.judge(turn, bytes).unwrap_err().to_string();
        assert!(error(&old).contains("must hold write 2") && error(&old).contains("holds write 1"));
        assert!(error(&[0; 4096]).contains("holds zeros"));
        assert!(error(&new[..512]).contains("512 bytes"));
        let mut torn = new.to_vec();
        torn[4095] ^= 1;
        assert!(error(&torn).contains("from its byte 4095 on"));
        assert!(error(&[9; 4096]).contains("did not write"));
        let other = (first.block + 1) % 4;
        let untouched = ledger.turn(other);
        ledger.judge(untouched, &[0; 4096]).unwrap();
        let error = ledger.judge(untouched, &new).unwrap_err().to_string();
        assert!(error.contains("must hold write 0"), "{error}");
    }

    #[test]
    fn a_block_has_one_request_at_a_time() {
        let mut chance = fastrand::Rng::with_seed(1);
        let mut ledger = Ledger::new(7, 2 * 4096, 4096, true).unwrap();
        let one = ledger.write(&mut chance).unwrap();
        let other = ledger.read(&mut chance).unwrap();
        assert_ne!(one.block, other.block);
        assert_eq!(ledger.write(&mut chance), None);
        ledger.over(other);
        assert_eq!(ledger.read(&mut chance).unwrap().block, other.block);
    }
}
