//! Twins of other nodes' write buffers (docs/decisions/0170).
//!
//! Keeps: nothing of its own.
//! Order: a stream ends before its volume is claimed here.
//! Crash: a host that was started anew knows no stream; what its files are worth the registry's records say.
//! Knows the engine not at all.

mod files;
mod host;
mod owners;

pub(crate) use host::Twins;
pub(crate) use owners::{Relied, watch_owners};
