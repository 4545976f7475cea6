//! Requests of the transmission phase: their header, and whether they are right for an export.
//!
//! Keeps: nothing; bytes become values.
//! Order: a request is parsed before it is judged; one that is wrong is answered and changes nothing.
//! Crash: nothing.
//! Knows no sockets and no owner.

use super::{ErrorCode, Export, PAYLOAD_MAX, Violation, u16_at, u32_at, u64_at};

/// Length of a request's header.
pub const REQUEST_LEN: usize = 28;
const REQUEST_MAGIC: u32 = 0x2560_9513;

const CMD_READ: u16 = 0;
const CMD_WRITE: u16 = 1;
const CMD_DISC: u16 = 2;
const CMD_FLUSH: u16 = 3;
const CMD_TRIM: u16 = 4;
const CMD_WRITE_ZEROES: u16 = 6;
const CMD_BLOCK_STATUS: u16 = 7;

const FLAG_FUA: u16 = 1 << 0;
const FLAG_NO_HOLE: u16 = 1 << 1;
const FLAG_DF: u16 = 1 << 2;
const FLAG_REQ_ONE: u16 = 1 << 3;
const FLAG_FAST_ZERO: u16 = 1 << 4;

/// A request as it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Command flags.
    pub flags: u16,
    /// The command's number.
    pub kind: u16,
    /// The client's name for it.
    pub cookie: u64,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u32,
}

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Read.
    Read {
        /// In one chunk.
        whole: bool,
    },
    /// Write what follows the header.
    Write {
        /// Durably.
        fua: bool,
    },
    /// Make all that was acknowledged durable.
    Flush,
    /// Make it a hole.
    Trim {
        /// Durably.
        fua: bool,
    },
    /// Make it zeros.
    WriteZeroes {
        /// Durably.
        fua: bool,
        /// Allocated zeros.
        no_hole: bool,
    },
    /// What is allocated?
    BlockStatus {
        /// One extent.
        one: bool,
    },
    /// The client goes.
    Disconnect,
}

/// What was agreed in the handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Agreed {
    /// The export.
    pub export: Export,
    /// Structured replies.
    pub structured: bool,
    /// Metadata contexts were selected.
    pub contexts: bool,
}

/// A request that is not right; it is answered with an error and nothing else happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wrong {
    /// The error.
    pub code: ErrorCode,
    /// For people.
    pub why: &'static str,
}

impl Request {
    /// The header that `bytes` start with; `None` while bytes are missing.
    ///
    /// # Errors
    /// It is no request.
    pub fn parse(bytes: &[u8]) -> Result<Option<Request>, Violation> {
        if bytes.len() < REQUEST_LEN {
            return Ok(None);
        }
        let found = u32_at(bytes, 0);
        if found != REQUEST_MAGIC {
            return Err(Violation::Magic {
                what: "a request",
                found: u64::from(found),
                expected: u64::from(REQUEST_MAGIC),
            });
        }
        Ok(Some(Request {
            flags: u16_at(bytes, 4),
            kind: u16_at(bytes, 6),
            cookie: u64_at(bytes, 8),
            offset: u64_at(bytes, 16),
            length: u32_at(bytes, 24),
        }))
    }

    /// The header's bytes: what [`Request::parse`] was given.
    #[must_use]
    pub fn header(&self) -> [u8; REQUEST_LEN] {
        let mut header = [0; REQUEST_LEN];
        header[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        header[4..6].copy_from_slice(&self.flags.to_be_bytes());
        header[6..8].copy_from_slice(&self.kind.to_be_bytes());
        header[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        header[16..24].copy_from_slice(&self.offset.to_be_bytes());
        header[24..].copy_from_slice(&self.length.to_be_bytes());
        header
    }

    /// Bytes that follow the header.
    #[must_use]
    pub fn payload(&self) -> u32 {
        if self.kind == CMD_WRITE { self.length } else { 0 }
    }

    /// Bytes that the request carries to or from the volume.
    #[must_use]
    pub fn carried(&self) -> u32 {
        match self.kind {
            CMD_READ | CMD_WRITE => self.length,
            _ => 0,
        }
    }

    /// What it asks for.
    ///
    /// # Errors
    /// It is not right for this export.
    pub fn judge(&self, agreed: &Agreed) -> Result<Command, Wrong> {
        let (command, allowed) = self.command()?;
        let invalid = |why| {
            Err(Wrong {
                code: ErrorCode::Invalid,
                why,
            })
        };
        if self.flags & !allowed != 0 {
            return invalid("the command does not have these flags");
        }
        match command {
            Command::Disconnect => return Ok(command),
            // Its offset and length are reserved and should be zero; what they say is of no interest.
            Command::Flush => return Ok(command),
            Command::BlockStatus { .. } if !agreed.contexts => {
                return invalid("no metadata context was selected");
            }
            Command::BlockStatus { .. } if self.length == 0 => {
                return invalid("block status of no bytes");
            }
            Command::Read { whole: true } if !agreed.structured => {
                return invalid("DF without structured replies");
            }
            _ => {}
        }
        let changes = matches!(
            command,
            Command::Write { .. } | Command::Trim { .. } | Command::WriteZeroes { .. }
        );
        if changes && agreed.export.read_only {
            return Err(Wrong {
                code: ErrorCode::Perm,
                why: "the export takes no writes",
            });
        }
        if self.carried() > PAYLOAD_MAX {
            return invalid("more than 32 MiB in one request");
        }
        let end = self.offset.checked_add(u64::from(self.length));
        if end.is_none_or(|end| end > agreed.export.size) {
            let code = match command {
                Command::Write { .. } | Command::WriteZeroes { .. } => ErrorCode::NoSpace,
                _ => ErrorCode::Invalid,
            };
            return Err(Wrong {
                code,
                why: "beyond the end of the export",
            });
        }
        Ok(command)
    }

    /// The command, and the flags that it has.
    fn command(&self) -> Result<(Command, u16), Wrong> {
        let has = |flag| self.flags & flag != 0;
        let fua = has(FLAG_FUA);
        // A client may set FUA on any command when the server has told that it knows it.
        Ok(match self.kind {
            CMD_READ => (Command::Read { whole: has(FLAG_DF) }, FLAG_FUA | FLAG_DF),
            CMD_WRITE => (Command::Write { fua }, FLAG_FUA),
            CMD_DISC => (Command::Disconnect, u16::MAX),
            CMD_FLUSH => (Command::Flush, FLAG_FUA),
            CMD_TRIM => (Command::Trim { fua }, FLAG_FUA),
            CMD_WRITE_ZEROES => {
                let no_hole = has(FLAG_NO_HOLE);
                // Zeros are always fast here, so FAST_ZERO asks for nothing more.
                let allowed = FLAG_FUA | FLAG_NO_HOLE | FLAG_FAST_ZERO;
                (Command::WriteZeroes { fua, no_hole }, allowed)
            }
            CMD_BLOCK_STATUS => {
                let one = has(FLAG_REQ_ONE);
                (Command::BlockStatus { one }, FLAG_FUA | FLAG_REQ_ONE)
            }
            _ => {
                return Err(Wrong {
                    code: ErrorCode::Invalid,
                    why: "no such command",
                });
            }
        })
    }
}
