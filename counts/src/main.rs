//! `counts check|write FILE`: counts each piece under callgrind, and holds that against the table in FILE, or writes it there.
//! `counts PIECE OPERATIONS`: does a piece's operations, for callgrind.

mod engine;
mod envelope;
mod nbd;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use sconce_counts::{MAY_RISE_PERCENT, Row, Verdict, judge, per_operation, read, write};

/// A piece of the hot path.
struct Piece {
    name: &'static str,
    /// What an operation of it is.
    operation: &'static str,
    /// Does as many operations.
    run: fn(u64) -> anyhow::Result<()>,
}

/// In path order.
const PIECES: [Piece; 9] = [
    Piece {
        name: "nbd-request",
        operation: "a write of 4 KiB is taken out of what a client sent, and judged",
        run: nbd::requests,
    },
    Piece {
        name: "bus-encode",
        operation: "a request for a write, one of 32 in a message",
        run: envelope::encode_requests,
    },
    Piece {
        name: "bus-decode",
        operation: "the same, taken out of its message",
        run: envelope::decode_requests,
    },
    Piece {
        name: "engine-write",
        operation: "4 KiB somewhere in 8 GiB, one of 32 in a batch, to its acknowledgement",
        run: engine::writes,
    },
    Piece {
        name: "engine-read",
        operation: "4 KiB of what was written there, to where it is",
        run: engine::reads,
    },
    Piece {
        name: "bus-reply-encode",
        operation: "an answer to a write, one of 32 in a message",
        run: envelope::encode_replies,
    },
    Piece {
        name: "bus-reply-decode",
        operation: "the same, taken out of its message",
        run: envelope::decode_replies,
    },
    Piece {
        name: "nbd-reply",
        operation: "an answer to a write, on its way to the socket",
        run: nbd::done,
    },
    Piece {
        name: "nbd-reply-data",
        operation: "an answer to a read of 4 KiB, on its way to the socket",
        run: nbd::data,
    },
];

fn main() -> anyhow::Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["check", file] => check(file.as_ref()),
        ["write", file] => write_down(file.as_ref()),
        [name, operations] => {
            let piece = PIECES.iter().find(|piece| piece.name == name);
            let piece = piece.with_context(|| format!("{name:?} is no piece; right would be {}", names()))?;
            let operations = operations.parse();
            (piece.run)(operations.with_context(|| format!("{:?} is no number", arguments[1]))?)?;
            Ok(ExitCode::SUCCESS)
        }
        _ => bail!("right would be: counts check FILE, counts write FILE, counts PIECE OPERATIONS"),
    }
}

fn names() -> String {
    PIECES.map(|piece| piece.name).join(", ")
}

fn counted() -> anyhow::Result<Vec<Row>> {
    let program = std::env::current_exe()?;
    let row = |piece: &Piece| {
        Ok(Row {
            piece: piece.name.to_owned(),
            operation: piece.operation.to_owned(),
            instructions: per_operation(&program, piece.name)?,
        })
    };
    PIECES.iter().map(row).collect()
}

fn document(file: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(file).with_context(|| file.display().to_string())
}

fn check(file: &Path) -> anyhow::Result<ExitCode> {
    let named = |wrong: String| anyhow::anyhow!("{}: {wrong}", file.display());
    let known = read(&document(file)?).map_err(named)?;
    let counted = counted()?;
    let mut is_right = true;
    for row in &counted {
        let before = known.iter().find(|known| known.piece == row.piece);
        let before = before.map(|before| before.instructions);
        let verdict = judge(before, row.instructions);
        let (piece, now) = (&row.piece, row.instructions);
        let was = before.map_or("nothing".to_owned(), |before| before.to_string());
        is_right &= matches!(verdict, Verdict::Same | Verdict::Fallen);
        println!(
            "counts: {piece}: {now} instructions, {was} in {}{}",
            file.display(),
            match verdict {
                Verdict::Same => "",
                Verdict::Fallen => "; it has become cheaper: make counts-write keeps that",
                Verdict::New => "; it is to be written down: make counts-write",
                Verdict::Risen => "; FAILED, it has become dearer",
            }
        );
    }
    for row in known
        .iter()
        .filter(|row| counted.iter().all(|counted| counted.piece != row.piece))
    {
        is_right = false;
        println!(
            "counts: {}: FAILED, there is no such piece any more: make counts-write",
            row.piece
        );
    }
    if is_right {
        return Ok(ExitCode::SUCCESS);
    }
    println!(
        "counts: more than {MAY_RISE_PERCENT} % above the table, or not in it; where that is right: make counts-write, and why in the commit's message"
    );
    Ok(ExitCode::FAILURE)
}

fn write_down(file: &Path) -> anyhow::Result<ExitCode> {
    let named = |wrong: String| anyhow::anyhow!("{}: {wrong}", file.display());
    let text = write(&document(file)?, &counted()?).map_err(named)?;
    let mut new = file.as_os_str().to_owned();
    new.push(".new");
    std::fs::write(&new, text)?;
    std::fs::rename(&new, file)?;
    Ok(ExitCode::SUCCESS)
}
