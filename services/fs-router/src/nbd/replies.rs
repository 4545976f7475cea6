//! From an operation's outcome to the reply's bytes.
//!
//! Keeps: nothing.
//! Order: the chunks of a reply follow each other; replies do not mix.
//! Crash: nothing.
//! Knows no socket.

use sconce_schemas::wire::volume::{ExtentKind, ExtentStatus};
use sconce_schemas::wire::{Refusal, RefusalCode};

use super::outbox::Outbox;
use super::protocol::reply::{self, STATE_HOLE, STATE_ZERO};
use super::protocol::request::Command;
use super::protocol::{BASE_ALLOCATION_ID, ErrorCode};
use crate::routing::{Outcome, Piece, ReadData};

/// A request whose operation is under way.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pending {
    pub(super) cookie: u64,
    pub(super) command: Command,
    pub(super) offset: u64,
    pub(super) length: u32,
}

/// Appends the reply to a request.
pub(super) fn put(out: &mut Outbox, structured: bool, request: Pending, outcome: Outcome) {
    let cookie = request.cookie;
    match (request.command, outcome) {
        (Command::Read { whole }, Outcome::Read(data)) if structured && !whole => {
            put_chunks(out, request, data);
        }
        (Command::Read { .. }, Outcome::Read(data)) => {
            if structured {
                out.header(|out| reply::put_offset_data(out, cookie, true, request.offset, request.length));
            } else {
                out.header(|out| reply::put_simple(out, cookie, None));
            }
            data.into_pieces().for_each(|piece| put_piece(out, piece));
        }
        (Command::BlockStatus { one }, Outcome::Extents(extents)) => {
            let extents = block_status(&extents, request.length, one);
            if extents.is_empty() {
                return put_error(
                    out,
                    structured,
                    cookie,
                    ErrorCode::Io,
                    "the owner gave no extents",
                );
            }
            out.header(|out| reply::put_block_status(out, cookie, BASE_ALLOCATION_ID, &extents));
        }
        (_, Outcome::Refused(refusal)) => {
            let code = error_code(request.command, &refusal);
            put_error(out, structured, cookie, code, &refusal.text);
        }
        (Command::Read { .. } | Command::BlockStatus { .. }, _)
        | (_, Outcome::Read(_) | Outcome::Extents(_)) => {
            put_error(
                out,
                structured,
                cookie,
                ErrorCode::Io,
                "the operation ended as another",
            );
        }
        _ => out.header(|out| reply::put_simple(out, cookie, None)),
    }
}

/// Appends an error.
pub(super) fn put_error(out: &mut Outbox, structured: bool, cookie: u64, code: ErrorCode, text: &str) {
    out.header(|out| {
        if structured {
            reply::put_error(out, cookie, code, text);
        } else {
            reply::put_simple(out, cookie, Some(code));
        }
    });
}

/// A read's answer: data as chunks of data, zeros as holes.
fn put_chunks(out: &mut Outbox, request: Pending, data: ReadData) {
    let cookie = request.cookie;
    let mut offset = request.offset;
    let mut pieces = data.into_pieces().peekable();
    if pieces.peek().is_none() {
        return out.header(|out| reply::put_none(out, cookie));
    }
    while let Some(piece) = pieces.next() {
        let length = u32::try_from(piece.len()).unwrap_or(u32::MAX);
        let done = pieces.peek().is_none();
        match piece {
            Piece::Zeros(_) => out.header(|out| reply::put_offset_hole(out, cookie, done, offset, length)),
            Piece::Data(data) => {
                out.header(|out| reply::put_offset_data(out, cookie, done, offset, length));
                out.data(data);
            }
        }
        offset += u64::from(length);
    }
}

fn put_piece(out: &mut Outbox, piece: Piece) {
    match piece {
        Piece::Data(data) => out.data(data),
        Piece::Zeros(length) => out.zeros(length),
    }
}

/// The extents within the first `length` bytes, neighbours of one state as one; only the first if `one` is asked for.
fn block_status(extents: &[ExtentStatus], length: u32, one: bool) -> Vec<(u32, u32)> {
    let mut found: Vec<(u32, u32)> = Vec::new();
    let mut left = length;
    for extent in extents {
        let length = u32::try_from(extent.length).unwrap_or(u32::MAX).min(left);
        let state = match extent.kind {
            ExtentKind::Data => 0,
            ExtentKind::Zeros => STATE_ZERO,
            ExtentKind::Hole => STATE_HOLE | STATE_ZERO,
        };
        match found.last_mut() {
            _ if length == 0 => {}
            Some((before, same)) if *same == state => *before += length,
            Some(_) if one => break,
            _ => found.push((length, state)),
        }
        left -= length;
    }
    found
}

/// The protocol's word for a refusal.
fn error_code(command: Command, refusal: &Refusal) -> ErrorCode {
    match refusal.code {
        RefusalCode::Invalid => ErrorCode::Invalid,
        RefusalCode::OutOfRange => match command {
            Command::Write { .. } | Command::WriteZeroes { .. } => ErrorCode::NoSpace,
            _ => ErrorCode::Invalid,
        },
        RefusalCode::ReadOnly => ErrorCode::Perm,
        RefusalCode::NoSpace => ErrorCode::NoSpace,
        RefusalCode::Unsupported => ErrorCode::NotSupported,
        _ => ErrorCode::Io,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(length: u64, kind: ExtentKind) -> ExtentStatus {
        ExtentStatus { length, kind }
    }

    #[test]
    fn neighbours_of_one_state_are_one_extent_and_nothing_reaches_beyond_the_request() {
        use ExtentKind::{Data, Hole, Zeros};
        let extents = [
            extent(4096, Data),
            extent(4096, Data),
            extent(4096, Zeros),
            extent(u64::MAX / 2, Hole),
        ];
        assert_eq!(
            block_status(&extents, 20_000, false),
            vec![(8192, 0), (4096, 2), (20_000 - 12_288, 3)]
        );
        assert_eq!(block_status(&extents, 20_000, true), vec![(8192, 0)]);
        assert_eq!(block_status(&extents, 5000, false), vec![(5000, 0)]);
        assert_eq!(block_status(&[], 5000, false), vec![]);
    }
}
