//! Telemetry: what of the work is recorded in spans, and where they go.
//!
//! Keeps: whether this process records spans at all, and which operations of the data path it records.
//! Order: whether an operation is recorded is known before a span of it is made; one that is not costs a load and a branch.
//! Crash: spans that have not left are lost.
//! Knows no service. Off unless the settings name a collector: then nothing is allocated, and nothing is sent.

mod context;
mod export;
mod span;

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Deserialize;

use crate::OperationId;
pub use context::{current, sampled, scope};
use export::Queue;
pub use export::{Telemetry, TelemetryError, Unsent};
pub use span::{Recorded, Span, SpanKind};

/// One operation of so many of the data path is recorded, where the settings say nothing else.
const SAMPLE: u64 = 1000;

/// The section `[telemetry]` of every service's settings; may be left out: then nothing is recorded.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TelemetrySettings {
    /// Where a collector takes OTLP over HTTP, as `http://127.0.0.1:4318`. Left out: no spans.
    pub otlp: Option<String>,
    /// One in so many reads, writes and other operations of guests is recorded in spans; 0: none. What changes volumes
    /// (opening, snapshots, moves, takeovers, uploads, …) is recorded always.
    pub sample: u64,
}

impl Default for TelemetrySettings {
    fn default() -> Self {
        Self {
            otlp: None,
            sample: SAMPLE,
        }
    }
}

/// Whose spans they are.
#[derive(Debug, Clone, Copy)]
pub struct Identity<'a> {
    /// The service, as `volume-router`.
    pub service: &'static str,
    /// The node's name in the pool.
    pub node: &'a str,
    /// The build.
    pub version: &'static str,
}

/// One operation in so many is recorded; 0: none, as long as nothing was started.
static EVERY: AtomicU64 = AtomicU64::new(0);
static QUEUE: OnceLock<Queue> = OnceLock::new();

/// Begins to record what the settings say, for the rest of this process's life; what it gives sends what is left when it is dropped. Call it
/// once, in `main`, after logging is set up.
///
/// # Errors
/// An address that is none; a second call; the system gives no thread.
pub fn start(settings: &TelemetrySettings, identity: Identity<'_>) -> Result<Telemetry, TelemetryError> {
    let Some(address) = &settings.otlp else {
        return Ok(Telemetry::off());
    };
    let telemetry = export::start(address, identity)?;
    EVERY.store(settings.sample, Ordering::Relaxed);
    Ok(telemetry)
}

/// Whether an operation of the data path is recorded.
#[inline]
fn is_sampled(operation: OperationId) -> bool {
    let every = EVERY.load(Ordering::Relaxed);
    every != 0 && operation.0.is_multiple_of(every) && operation != OperationId::NONE
}

/// Spans that were sent, and that were not and will not be; since the start.
#[must_use]
pub fn unsent() -> Unsent {
    QUEUE.get().map(Queue::counts).unwrap_or_default()
}

#[cfg(test)]
mod tests;
