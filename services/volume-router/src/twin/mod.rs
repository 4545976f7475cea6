//! Twins of write buffers (docs/decisions/0170): of other nodes' volumes here, and of this node's volumes elsewhere.
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
