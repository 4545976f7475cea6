//! What a cache did.
//!
//! Keeps: counts since the process began.
//! Order: none.
//! Crash: gone with the process.
//! Knows no way to show them.

/// What a cache did since its process began, and what it holds now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Pieces that were looked up and given, unharmed.
    pub hits: u64,
    /// Pieces that were looked up and not given.
    pub misses: u64,
    /// Bytes of all that was given.
    pub hit_bytes: u64,
    /// Pieces that were written to the file.
    pub admitted: u64,
    /// Bytes of them.
    pub admitted_bytes: u64,
    /// Pieces that made room for others.
    pub evicted: u64,
    /// Pieces that were not taken: too many waited to be written, or the cache was off.
    pub skipped: u64,
    /// Pieces that were dropped because their CRC32C did not hold, or the file did not have them. Each was a miss too.
    pub damaged: u64,
    /// Calls on the file that failed.
    pub errors: u64,
    /// Pieces that are in the file.
    pub pieces: u64,
    /// Bytes that all pieces may take.
    pub capacity_bytes: u64,
    /// Whether an error, or a start that is not over, keeps it from giving or taking pieces now.
    pub off: bool,
}
