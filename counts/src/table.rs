//! The table in docs/counts.md: what each piece cost when it was last written down.
//!
//! Keeps: nothing.
//! Order: the pieces'.
//! Crash: nothing.
//! Knows no valgrind.

use std::fmt::Write as _;

/// A count may be so much higher than the table's, in percent: what another compiler, or another way to lay out code, may cost.
pub const MAY_RISE_PERCENT: u64 = 5;
/// And by so many instructions in any case: of a piece of some hundred, another layout of the code is more than those percent.
const MAY_RISE: u64 = 24;

const HEAD: &str = "| piece | an operation is | instructions |\n|---|---|---:|\n";

/// A line of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The piece.
    pub piece: String,
    /// What an operation of it is.
    pub operation: String,
    /// What it costs.
    pub instructions: u64,
}

/// What a count is, beside the table's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// About the same.
    Same,
    /// More than may be.
    Risen,
    /// Less by more than that: the table is to be written anew, or what was won may be lost unseen.
    Fallen,
    /// The table does not have it.
    New,
}

/// Judges a count by the table's.
#[must_use]
pub fn judge(known: Option<u64>, counted: u64) -> Verdict {
    let Some(known) = known else {
        return Verdict::New;
    };
    let is_above = |count: u64, of: u64| {
        let is_by_percent = u128::from(count) * 100 > u128::from(of) * u128::from(100 + MAY_RISE_PERCENT);
        is_by_percent && count.saturating_sub(of) > MAY_RISE
    };
    match () {
        () if is_above(counted, known) => Verdict::Risen,
        () if is_above(known, counted) => Verdict::Fallen,
        () => Verdict::Same,
    }
}

/// The table's rows.
///
/// # Errors
/// A row that is none, in words.
pub fn read(document: &str) -> Result<Vec<Row>, String> {
    let (_, table) = document
        .split_once(HEAD)
        .ok_or_else(|| format!("there is no table; right would be one that begins with\n{HEAD}"))?;
    table
        .lines()
        .take_while(|line| line.starts_with('|'))
        .map(row)
        .collect()
}

fn row(line: &str) -> Result<Row, String> {
    let wrong = || format!("{line:?} is no row; right would be | piece | an operation is | 1,234 |");
    let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
    let [piece, operation, instructions] = cells[..] else {
        return Err(wrong());
    };
    Ok(Row {
        piece: piece.to_owned(),
        operation: operation.to_owned(),
        instructions: instructions.replace(',', "").parse().map_err(|_| wrong())?,
    })
}

/// The document with these rows in its table.
///
/// # Errors
/// It has no table.
pub fn write(document: &str, rows: &[Row]) -> Result<String, String> {
    read(document)?;
    let (before, table) = document.split_once(HEAD).unwrap_or_default();
    let after: String = table
        .split_inclusive('\n')
        .skip_while(|line| line.starts_with('|'))
        .collect();
    let mut text = format!("{before}{HEAD}");
    for row in rows {
        let (piece, operation) = (&row.piece, &row.operation);
        // Writing to a text does not fail.
        let _ = writeln!(text, "| {piece} | {operation} | {} |", grouped(row.instructions));
    }
    Ok(text + &after)
}

/// With a comma before each three digits.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENT: &str = "# Counts\n\nWords.\n\n| piece | an operation is | instructions |\n|---|---|---:|\n| a | one thing | 1,234,567 |\n| b | another | 12 |\n\nMore words.\n";

    #[test]
    fn a_count_may_rise_by_five_percent_and_not_by_more() {
        assert_eq!(judge(Some(1000), 1050), Verdict::Same);
        assert_eq!(judge(Some(1000), 1051), Verdict::Risen);
        assert_eq!(judge(Some(1000), 953), Verdict::Same);
        assert_eq!(judge(Some(1000), 952), Verdict::Fallen);
        // Of little, some instructions are no news.
        assert_eq!(judge(Some(100), 124), Verdict::Same);
        assert_eq!(judge(Some(100), 125), Verdict::Risen);
        assert_eq!(judge(Some(100), 76), Verdict::Same);
        assert_eq!(judge(Some(100), 75), Verdict::Fallen);
        assert_eq!(judge(Some(0), 0), Verdict::Same);
        assert_eq!(judge(Some(u64::MAX), u64::MAX), Verdict::Same);
        assert_eq!(judge(None, 1), Verdict::New);
    }

    #[test]
    fn what_is_written_is_read_and_the_words_stay() {
        let mut rows = read(DOCUMENT).unwrap();
        assert_eq!(rows[0].instructions, 1_234_567);
        assert_eq!(rows[1].piece, "b");
        assert_eq!(write(DOCUMENT, &rows).unwrap(), DOCUMENT);
        rows[1].instructions = 1000;
        rows.remove(0);
        let wanted = DOCUMENT
            .replace("| a | one thing | 1,234,567 |\n", "")
            .replace("| 12 |", "| 1,000 |");
        assert_eq!(write(DOCUMENT, &rows).unwrap(), wanted);
    }

    #[test]
    fn what_is_no_table_is_told_with_what_would_be_right() {
        assert!(read("nothing").unwrap_err().contains("| piece |"));
        let wrong = DOCUMENT.replace("| 12 |", "| many |");
        assert!(
            read(&wrong)
                .unwrap_err()
                .contains("\"| b | another | many |\" is no row")
        );
        assert!(write(&wrong, &[]).is_err());
    }
}
