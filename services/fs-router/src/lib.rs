//! fs-router: front ends, names, routing (DESIGN.md §4).
//!
//! Keeps: what front ends asked for until it is answered.
//! Order: an operation is sent to the volume's owner in the order in which it came, and completes exactly once.
//! Crash: a client that reconnects sends again what was not acknowledged.
//! Knows no stored format and no back end.

pub mod fuse;
pub mod in_use;
pub mod io_thread;
mod metrics;
pub mod nameless;
pub mod names;
pub mod nbd;
pub mod peers;
pub mod routing;
pub mod service;
pub mod settings;
