//! Twins of write buffers on other volume-routers (docs/decisions/0170): those that this node keeps for others (`host`,
//! `files`, `owners`), and its own volumes' at others (`ours`, `stream`, `lines`).
//!
//! Keeps: nothing of its own.
//! Order: a stream ends before its volume is claimed here.
//! Crash: a host that was started anew knows no stream; what its files are worth the registry's records say.
//! Knows no engine beyond its events and effects.

mod files;
mod host;
mod lines;
mod ours;
mod owners;
mod stream;

pub(crate) use host::Twins;
pub(crate) use lines::Lines;
pub(crate) use ours::{Ours, Release};
pub(crate) use owners::{Relied, watch_owners};
