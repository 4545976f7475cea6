//! What the whole-system tests share: a cluster of real processes, real clients, and what they must agree on.
//!
//! Keeps: one cluster a test, in a run directory of its own, set up by the scripts that `make up` uses.
//! Order: a test announces the warnings that it provokes before it provokes them; all others fail it.
//! Crash: a test that fails prints the ends of the services' logs; nothing keeps running after it.
//! Knows the services only as their users do: sockets, files, the `sconce` command, process ids.

pub mod another;
pub mod board;
pub mod checked;
pub mod client;
pub mod cluster;
pub mod collector;
pub mod containers;
pub mod edit;
pub mod fsx;
pub mod guest;
pub mod image;
pub mod load;
pub mod logs;
pub mod loop_device;
pub mod lttng;
pub mod machines;
pub mod metrics;
pub mod nbd;
pub mod network;
pub mod pool;
pub mod reader;
pub mod stamps;
pub mod wait;
pub mod writer;

use std::net::Ipv4Addr;
use std::path::PathBuf;

/// Whether the long runs were asked for (`make test-full`).
#[must_use]
pub fn full() -> bool {
    std::env::var_os("SCONCE_TEST_FULL").is_some_and(|value| value == "1")
}

/// How many rounds of something a run takes: a few in `make test`, many in `make test-full`.
/// `SCONCE_ROUNDS` overrides both.
#[must_use]
pub fn rounds(short: u32, long: u32) -> u32 {
    let asked = std::env::var("SCONCE_ROUNDS")
        .ok()
        .and_then(|text| text.parse().ok());
    asked.unwrap_or(if full() { long } else { short })
}

/// The seed of a test's random choices: `SCONCE_SEED`, or a new one, which is printed.
#[must_use]
pub fn seed() -> u64 {
    let asked = std::env::var("SCONCE_SEED")
        .ok()
        .and_then(|text| text.parse().ok());
    let seed = asked.unwrap_or_else(|| fastrand::u64(..));
    eprintln!("seed: SCONCE_SEED={seed}");
    seed
}

/// A loopback address of this process alone. A port that was free there stays so until somebody of this test listens: what other tests
/// bind and connect has other addresses.
#[must_use]
pub fn own_address() -> Ipv4Addr {
    // A process id has at most 22 bits.
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, 0x40 | (high & 0x3f), middle, low)
}

/// The checkout.
#[must_use]
pub fn checkout() -> PathBuf {
    let mut path = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    path.pop();
    path
}
