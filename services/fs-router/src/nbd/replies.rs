//! From an operation's outcome to the reply's bytes.
//!
//! Keeps: nothing.
//! Order: the chunks of a reply follow each other; replies do not mix.
//! Crash: nothing.
//! Knows no socket.

use std::time::Instant;

use sconce_schemas::wire::{Refusal, RefusalCode};
use sconce_tracing::OperationId;

use super::outbox::Outbox;
use super::protocol::request::Command;
use super::protocol::{ErrorCode, reply};
use super::statuses::{allocation, dirty};
use crate::routing::{Outcome, Piece, ReadData};

/// A request whose operation is under way.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pending {
    /// For traces.
    pub(super) id: OperationId,
    pub(super) cookie: u64,
    pub(super) command: Command,
    pub(super) offset: u64,
    pub(super) length: u32,
    /// When it was read.
    pub(super) since: Instant,
    /// It is one context's part of this question of block status.
    pub(super) part: Option<Part>,
}

/// A context's part of a question.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part {
    pub(super) question: usize,
    pub(super) context: u32,
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
        (_, Outcome::Refused(refusal)) => {
            let code = error_code(request.command, &refusal);
            put_error(out, structured, cookie, code, &refusal.text);
        }
        (Command::Read { .. } | Command::BlockStatus { .. }, _)
        | (_, Outcome::Read(_) | Outcome::Extents(_) | Outcome::Changes(_)) => {
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

/// What a context answers to a question of block status.
pub(super) fn states(
    command: Command,
    length: u32,
    outcome: Outcome,
) -> Result<Vec<(u32, u32)>, (ErrorCode, String)> {
    let Command::BlockStatus { one } = command else {
        return Err((ErrorCode::Io, "the operation ended as another".to_owned()));
    };
    let states = match outcome {
        Outcome::Extents(extents) => allocation(&extents, length, one),
        Outcome::Changes(extents) => dirty(&extents, length, one),
        Outcome::Refused(refusal) => return Err((error_code(command, &refusal), refusal.text)),
        _ => return Err((ErrorCode::Io, "the operation ended as another".to_owned())),
    };
    if states.is_empty() {
        return Err((ErrorCode::Io, "the owner gave no extents".to_owned()));
    }
    Ok(states)
}

/// The protocol's word for a refusal.
fn error_code(command: Command, refusal: &Refusal) -> ErrorCode {
    match refusal.code {
        RefusalCode::Invalid => ErrorCode::Invalid,
        RefusalCode::OutOfRange => match command {
            Command::Write { .. } | Command::WriteZeroes { .. } => ErrorCode::NoSpace,
            _ => ErrorCode::Invalid,
        },
        RefusalCode::ReadOnly | RefusalCode::NoAccess => ErrorCode::Perm,
        RefusalCode::NoSpace => ErrorCode::NoSpace,
        RefusalCode::Unsupported => ErrorCode::NotSupported,
        _ => ErrorCode::Io,
    }
}
