//! Jobs in traces.
//!
//! Keeps: nothing.
//! Order: a job's entry comes before what it asks of storage-routers, its exit after.
//! Crash: nothing.
//! Knows no job's meaning.

use sconce_tracing::{Action, OperationId, Point, Status, Step};

use crate::actor::Owner;

/// Does a job between two points.
pub(super) async fn traced(
    (entry, exit): (Point, Point),
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
    done.await;
    exit.record(|| Step {
        status: if owner.is_current() {
            Status::Ok
        } else {
            Status::Failed
        },
        ..step()
    });
}
