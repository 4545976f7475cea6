//! Routing: from an operation of a front end to the owner of its volume, through restarts, moves and failovers.
//!
//! Keeps: the split between the core (what to do) and its shell (doing it).
//! Order: [`core`] says.
//! Crash: [`core`] says.
//! Knows no front end.

pub mod core;
mod numbers;
pub mod operation;

pub use operation::{Opened, Operation, Outcome, Piece, ReadData};
