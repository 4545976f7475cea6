//! The name of a piece: where its content is.
//!
//! Keeps: 40 bytes that whoever uses the cache lays out; two pieces of one cache never share them.
//! Order: none.
//! Crash: nothing.
//! Knows no layout.

use std::fmt;
use std::hash::{DefaultHasher, Hasher};

/// Bytes of a key: a volume's id, three numbers.
pub const KEY_LEN: usize = 40;

/// A piece's name. What it names never changes: that is why nothing here is ever invalidated.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(pub [u8; KEY_LEN]);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str(")")
    }
}

/// What memory keeps of a key: 128 bits, a third of what a key takes. Two of 2^32 keys share theirs once in 2^64 caches, and then
/// the piece's CRC32C, which covers its key, does not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Print {
    high: u64,
    low: u64,
}

impl Print {
    /// `seed` is the process's own secret, so that nobody who chooses content chooses keys that collide.
    pub(crate) fn of(key: &Key, seed: u64) -> Self {
        let half = |which: u8| {
            let mut hasher = DefaultHasher::new();
            hasher.write_u64(seed);
            hasher.write_u8(which);
            hasher.write(&key.0);
            hasher.finish()
        };
        Self {
            high: half(0),
            low: half(1),
        }
    }
}

impl std::hash::Hash for Print {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.low);
    }
}

/// A print is a hash already.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct PrintHasher(u64);

impl Hasher for PrintHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
}
