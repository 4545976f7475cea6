//! The NBD protocol's bytes, both phases: pure functions between bytes and values.
//!
//! Keeps: the numbers and layouts of
//! <https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>, as far as this server speaks it.
//! Order: none.
//! Crash: nothing.
//! Knows no sockets and no volumes; whatever bytes it is given, it answers with a value or an error.

pub mod handshake;
pub mod reply;
pub mod request;

/// Largest read or write, as most clients assume where a server does not say.
pub const PAYLOAD_MAX: u32 = 32 << 20;
/// What clients should align requests to.
pub const BLOCK_PREFERRED: u32 = 4096;
/// What clients have to align requests to, on a volume of whole sectors.
pub const SECTOR: u32 = 512;
/// The metadata context that tells what is allocated.
pub const BASE_ALLOCATION: &str = "base:allocation";
/// What the metadata contexts begin with that tell what differs from a snapshot; its name follows.
pub const DIRTY_BITMAP: &str = "qemu:dirty-bitmap:";
/// The id that `base:allocation` is given.
pub const BASE_ALLOCATION_ID: u32 = 1;

/// A client that does not keep to the protocol in a way that leaves nothing to talk about: the connection ends.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A magic number is another.
    #[error("{what} starts with {found:#x}, not with {expected:#x}")]
    Magic {
        /// What was expected to start here.
        what: &'static str,
        /// What is there.
        found: u64,
        /// What should be.
        expected: u64,
    },
    /// The client does not speak fixed newstyle, or sets bits that the protocol does not have.
    #[error("client flags are {found:#x}; right are 1 (fixed newstyle) or 3 (and no zeroes)")]
    ClientFlags {
        /// The flags.
        found: u32,
    },
    /// An option is longer than any that a client needs to send.
    #[error("option {option} has {length} bytes; at most {max} are right")]
    LongOption {
        /// The option's number.
        option: u32,
        /// Its length.
        length: u32,
        /// What is taken.
        max: u32,
    },
}

/// The protocol's error numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum ErrorCode {
    /// The export takes no writes.
    Perm = 1,
    /// The data is damaged, or the service has a bug.
    Io = 5,
    /// The request is wrong.
    Invalid = 22,
    /// Beyond the end.
    NoSpace = 28,
    /// Not known here.
    NotSupported = 95,
    /// The server stops.
    Shutdown = 108,
}

/// What a client may do with an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Export {
    /// Its size in bytes.
    pub size: u64,
    /// Whether it takes no writes.
    pub read_only: bool,
}

impl Export {
    /// The transmission flags.
    #[must_use]
    pub fn flags(&self, structured: bool) -> u16 {
        const HAS_FLAGS: u16 = 1 << 0;
        const READ_ONLY: u16 = 1 << 1;
        const SEND_FLUSH: u16 = 1 << 2;
        const SEND_FUA: u16 = 1 << 3;
        const SEND_TRIM: u16 = 1 << 5;
        const SEND_WRITE_ZEROES: u16 = 1 << 6;
        const SEND_DF: u16 = 1 << 7;
        const CAN_MULTI_CONN: u16 = 1 << 8;
        const SEND_FAST_ZERO: u16 = 1 << 11;
        let mut flags = HAS_FLAGS | SEND_FLUSH | SEND_FUA | CAN_MULTI_CONN;
        flags |= if self.read_only {
            READ_ONLY
        } else {
            SEND_TRIM | SEND_WRITE_ZEROES | SEND_FAST_ZERO
        };
        if structured {
            flags |= SEND_DF;
        }
        flags
    }

    /// Smallest unit of a request: sectors, except where the volume's end is not one's.
    #[must_use]
    pub fn block_minimum(&self) -> u32 {
        if self.size.is_multiple_of(u64::from(SECTOR)) {
            SECTOR
        } else {
            1
        }
    }
}

/// The `N` bytes at `at`, or zeros where there are fewer: callers check the length first.
fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes
        .get(at..)
        .and_then(|rest| rest.first_chunk())
        .copied()
        .unwrap_or([0; N])
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(bytes_at(bytes, at))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes_at(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes_at(bytes, at))
}
