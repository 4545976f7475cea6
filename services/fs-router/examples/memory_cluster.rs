//! An fs-router over an owner in memory, to see what the front end and the routing core cost by themselves:
//! `cargo run --release -p sconce-fs-router --example memory_cluster`, then `fio --ioengine=nbd` at the URI that it
//! prints. Ends with its standard input.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a tool for measurements: what goes wrong ends it"
)]
#![expect(dead_code, unused_imports, reason = "tests use more of the model")]

#[path = "../tests/nbd/model/mod.rs"]
mod model;

fn main() {
    let cluster = model::Cluster::start();
    cluster.create("/bench.raw", 1 << 30);
    println!("{}", cluster.uri("/bench.raw"));
    let _ = std::io::read_to_string(std::io::stdin());
}
