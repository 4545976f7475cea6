//! The registry's homes: one conformance suite for all of them, processes that are killed, copies that are damaged.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod announced;
mod bus_host;
mod damage;
mod etcd_server;
mod homes;
mod kill;
mod members;
mod refused;
mod secured;
mod suite;
