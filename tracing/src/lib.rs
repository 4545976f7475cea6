//! Logs, tracepoints, spans, metrics, and the operation ids that traces of all services have in common.
//!
//! Keeps: how a process logs (level, form), set once at its start.
//! Order: log lines of one thread appear in the order in which they were written.
//! Crash: a line that was written is in the stream; spans that wait to be sent are lost.
//! Knows no service and no bus.

mod log;
pub mod metrics;
mod operation;
mod points;
pub mod telemetry;
mod witness;

pub use log::{LEVEL_ENV, LogError, LogForm, LogSettings, init};
pub use operation::{OperationId, OperationIds};
pub use points::{Action, Point, Status, Step};
pub use sconce_schemas::wire::{Cause, Trace};
pub use telemetry::{Span, SpanKind, TelemetrySettings};
pub use witness::Witness;
