//! What is traced of a request: of a storage-router, and of a back end.
//!
//! Keeps: nothing; the operation is that of the task.
//! Order: none.
//! Crash: nothing.
//! Knows no storage.

use sconce_schemas::ObjectName;
use sconce_tracing::{Action, OperationId, Status, Step};

/// A step of a request for an object, as it begins.
pub(crate) fn step(action: Action, name: ObjectName, address: u64, length: u64) -> Step {
    Step {
        operation: OperationId::current(),
        action,
        volume: name.volume(),
        address,
        length,
        status: Status::Ok,
    }
}
