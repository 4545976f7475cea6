//! The NBD front end over a model of an owner behind the real bus: real clients, failures under load, and clients
//! that die, lie or flood.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test: what goes wrong fails it"
)]

mod clients;
mod dirty_bitmaps;
mod failures;
mod hostile;
mod model;
mod snapshots;
