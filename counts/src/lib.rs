//! Instructions of the hot path's pieces: counted, and held against what was written down.
//!
//! Keeps: nothing; docs/counts.md is what is written down.
//! Order: none.
//! Crash: the table is replaced as a whole.
//! Knows no piece: the binary has them.

mod callgrind;
mod table;

pub use callgrind::{CountError, MORE, SOME, per_operation};
pub use table::{MAY_RISE_PERCENT, Row, Verdict, judge, read, write};
