//! What a tracepoint costs: a loop without one, with one that is off, and with one that a session records.
//!
//!     cargo run --release -p sconce-tracing --example point_cost -- [ROUNDS] [recorded]
//!
//! With `recorded` it waits until a session has switched the point on (docs/operating/tracing.md). For counted instructions:
//! `valgrind --tool=callgrind` with a few rounds.

use std::hint::black_box;
use std::time::{Duration, Instant};

use sconce_schemas::VolumeId;
use sconce_tracing::{Action, LogSettings, OperationId, Point, Status, Step};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let rounds: u64 = arguments.next().map_or(Ok(100_000_000), |text| text.parse())?;
    sconce_tracing::init(&LogSettings::default())?;
    if arguments.next().is_some_and(|word| word == "recorded") {
        while !Point::VolumeAck.is_on() {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    let empty = timed(rounds, without);
    let point = timed(rounds, with);
    println!("{rounds} rounds: {empty:.3} ns without a point, {point:.3} ns with one");
    Ok(())
}

fn timed(rounds: u64, work: fn(u64)) -> f64 {
    let start = Instant::now();
    (0..rounds).for_each(work);
    let spent = start.elapsed().as_secs_f64();
    spent * 1e9 / u32::try_from(rounds).map_or(f64::from(u32::MAX), f64::from)
}

#[inline(never)]
fn without(round: u64) {
    black_box(round);
}

#[inline(never)]
fn with(round: u64) {
    black_box(round);
    Point::VolumeAck.record(|| Step {
        operation: OperationId(round),
        action: Action::Write,
        volume: VolumeId([7; 16]),
        address: round * 4096,
        length: 4096,
        status: Status::Ok,
    });
}
