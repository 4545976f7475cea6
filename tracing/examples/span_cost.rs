//! What spans cost an operation of the data path: `cargo run --release -p sconce-tracing --example span_cost`.
//!
//! Alternates between the cases, so that a machine that changes its speed changes all of them; prints the median of the rounds.

use std::hint::black_box;
use std::time::Instant;

use sconce_tracing::telemetry::{self, Identity, TelemetrySettings};
use sconce_tracing::{OperationId, Span, SpanKind};

const ROUNDS: usize = 21;
const OPERATIONS: u64 = 1_000_000;

/// What the fs-router does with an operation, where it enters and where it leaves to its owner.
fn operation(id: u64) {
    let id = OperationId(black_box(id));
    let front = Span::sampled("nbd.write", id);
    let trace = telemetry::sampled(id);
    let client = Span::below(trace, SpanKind::Client, "volume.write");
    let _ = black_box((front, client));
}

fn round(first: u64, step: u64) -> f64 {
    let begun = Instant::now();
    for number in 0..OPERATIONS {
        operation(first + number * step);
    }
    begun.elapsed().as_nanos() as f64 / OPERATIONS as f64
}

fn median(mut rounds: Vec<f64>) -> f64 {
    rounds.sort_by(f64::total_cmp);
    rounds[rounds.len() / 2]
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let off = median((0..ROUNDS).map(|_| round(1, 1)).collect());
    let settings = TelemetrySettings {
        // Nobody is there: the spans are counted as dropped, as in an outage.
        otlp: Some("http://127.0.0.1:9".to_owned()),
        sample: 1000,
    };
    let identity = Identity {
        service: "span-cost",
        node: "here",
        version: "0",
    };
    let _telemetry = telemetry::start(&settings, identity)?;
    let (mut unsampled, mut sampled, mut all) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        unsampled.push(round(1, 1000));
        sampled.push(round(1, 1));
        all.push(round(1000, 1000));
    }
    println!("ns for an operation's two spans in an fs-router, median of {ROUNDS} rounds of {OPERATIONS}:");
    println!("telemetry off                     {off:8.2}");
    println!("on, operation not recorded        {:8.2}", median(unsampled));
    println!("on, 1 of 1,000 recorded           {:8.2}", median(sampled));
    println!("on, each recorded                 {:8.2}", median(all));
    Ok(())
}
