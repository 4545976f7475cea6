//! Jobs in traces.
//!
//! Keeps: nothing.
//! Order: a job's entry comes before what it asks of storage-routers, its exit after.
//! Crash: nothing.
//! Knows no job's meaning.

use sconce_tracing::{Action, OperationId, Point, Span, Status, Step, Trace, telemetry};

use crate::actor::Owner;

/// Does a job between two points.
pub(super) async fn traced(
    (entry, exit): (Point, Point),
    mut span: Span,
    owner: &Owner,
    (action, address, length): (Action, u64, u64),
    done: impl Future<Output = ()>,
) {
    let step = || Step {
        operation: OperationId::current(),
        action,
        volume: owner.subject().volume,
        address,
        length,
        status: Status::Ok,
    };
    entry.record(step);
    if span.is_recorded() {
        span.text("sconce.volume", owner.subject().volume);
        span.number("sconce.address", address);
        span.number("sconce.length", length);
        telemetry::scope(span.trace_or(Trace::default()), done).await;
        if !owner.is_current() {
            span.fail("the volume is served here no more");
        }
    } else {
        done.await;
    }
    drop(span);
    exit.record(|| Step {
        status: if owner.is_current() {
            Status::Ok
        } else {
            Status::Failed
        },
        ..step()
    });
}
