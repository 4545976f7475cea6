//! Counting: a program under callgrind, twice.
//!
//! Keeps: nothing.
//! Order: none.
//! Crash: nothing is left behind.
//! Knows no piece. What a run costs before its first operation is the same in both runs, and so in no result.

use std::io;
use std::path::Path;
use std::process::Command;

/// Operations of the shorter run.
pub const SOME: u64 = 4096;
/// Operations of the longer one.
pub const MORE: u64 = 12_288;

/// The C library copies bytes as each processor likes it best, some by an instruction that counts once for each byte: here as all can.
const COPIES: &str = "glibc.cpu.hwcaps=-AVX2,-AVX512F,-AVX512VL,-ERMS,-FSRM";

/// Why nothing was counted.
#[derive(Debug, thiserror::Error)]
pub enum CountError {
    /// There is no valgrind, or it does not start.
    #[error("valgrind does not start: {0}; right would be Debian's package valgrind")]
    Start(#[from] io::Error),
    /// It ended with an error, or said no count.
    #[error("{piece} under valgrind: {said}; right would be a line \"Collected : \" with a count")]
    Failed {
        /// The piece.
        piece: String,
        /// Its last words.
        said: String,
    },
}

/// Instructions that one operation of `piece` takes. `program PIECE COUNT` does as many.
///
/// # Errors
/// It could not be counted.
pub fn per_operation(program: &Path, piece: &str) -> Result<u64, CountError> {
    let (some, more) = (collected(program, piece, SOME)?, collected(program, piece, MORE)?);
    Ok(more.saturating_sub(some) / (MORE - SOME))
}

fn collected(program: &Path, piece: &str, operations: u64) -> Result<u64, CountError> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .env("GLIBC_TUNABLES", COPIES)
        .arg(program)
        .args([piece, &operations.to_string()])
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    let count = output.status.success().then(|| count_in(&said)).flatten();
    count.ok_or_else(|| CountError::Failed {
        piece: piece.to_owned(),
        said: said.lines().last().unwrap_or("nothing").to_owned(),
    })
}

fn count_in(said: &str) -> Option<u64> {
    let line = said
        .lines()
        .find_map(|line| line.split_once("Collected :").map(|(_, count)| count))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_is_what_callgrind_says() {
        let said = "==7== Callgrind, a call-graph\n==7== \n==7== Events    : Ir\n==7== Collected : 1234567\n==7== \n==7== I   refs:      1,234,567\n";
        assert_eq!(count_in(said), Some(1_234_567));
        assert_eq!(count_in("==7== Collected : nothing\n"), None);
        assert_eq!(count_in("valgrind: not found\n"), None);
    }

    #[test]
    fn a_program_that_fails_is_told_with_its_last_words() {
        // Without valgrind the other error comes.
        let error = per_operation(Path::new("/bin/false"), "piece")
            .unwrap_err()
            .to_string();
        assert!(error.contains("right would be"), "{error}");
    }
}
