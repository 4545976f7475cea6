//! Twins of write buffers on other volume-routers (docs/decisions/0170).
//!
//! Keeps, order, crash: what its parts say.
//! Knows no engine beyond its events and effects.

mod lines;
mod ours;
mod stream;

pub(crate) use lines::Lines;
pub(crate) use ours::{Ours, Release};
