//! Which span the current task's work is below.
//!
//! Keeps: an operation and its cause for each task that was given one.
//! Order: none.
//! Crash: nothing.
//! Knows no exporter.

use sconce_schemas::wire::{Cause, Trace};

use super::is_sampled;
use crate::OperationId;

tokio::task_local! {
    static CURRENT: Trace;
}

/// What the current task works for.
#[must_use]
pub fn current() -> Trace {
    CURRENT.try_get().unwrap_or_default()
}

/// Runs `work` as part of `trace`: within it, [`current`] gives that. For work that is measured in milliseconds; on the hot
/// path what an operation belongs to is handed on by itself.
pub async fn scope<F: Future>(trace: Trace, work: F) -> F::Output {
    CURRENT.scope(trace, work).await
}

/// What an operation of the data path belongs to, where its front end began it ([`super::Span::sampled`]): known from its id alone, so that nothing is
/// carried from there to where it leaves the process.
#[inline]
#[must_use]
pub fn sampled(operation: OperationId) -> Trace {
    let cause = is_sampled(operation).then(|| root(operation));
    Trace {
        operation: operation.0,
        cause,
    }
}

/// The first span of an operation. The last half of its trace id is the operation id, so that one leads from spans to what LTTng recorded and back.
pub(super) fn root(operation: OperationId) -> Cause {
    let high = mixed(operation.0);
    Cause {
        trace_id: u128::from(high) << 64 | u128::from(operation.0),
        span_id: mixed(high).max(1),
    }
}

/// SplitMix64's last step: neighbouring numbers give unrelated ones.
const fn mixed(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ number >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ number >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ number >> 31
}
