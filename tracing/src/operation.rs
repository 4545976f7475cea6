//! Operation ids: the number that an operation carries through every service that it passes.
//!
//! Keeps: how ids are given out without asking anyone; which operation a task works for.
//! Order: the ids of one source count up; between sources there is none.
//! Crash: nothing; a new process starts at another place.
//! Knows no trace back end.

use std::fmt;

use sconce_schemas::wire::Trace;

use crate::telemetry;

/// Identity of one operation in traces and logs, the same in every service; `NONE` where nobody gave one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OperationId(pub u64);

impl OperationId {
    /// No operation.
    pub const NONE: OperationId = OperationId(0);

    /// Runs `work` for this operation: within it, [`OperationId::current`] is this one. For work that is measured in
    /// milliseconds; on the hot path an operation's id is handed on by itself.
    pub async fn scope<F: Future>(self, work: F) -> F::Output {
        telemetry::scope(self.into(), work).await
    }

    /// The operation that the current task works for.
    #[must_use]
    pub fn current() -> OperationId {
        OperationId(telemetry::current().operation)
    }
}

impl From<OperationId> for Trace {
    /// The operation, not recorded.
    fn from(operation: OperationId) -> Self {
        Trace::from(operation.0)
    }
}

impl fmt::Display for OperationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A source of operation ids, one for each place where operations enter (a front-end connection, a command).
#[derive(Debug)]
pub struct OperationIds {
    next: u64,
}

impl OperationIds {
    /// A source that starts at `random`, a random number: sources then meet once in 2^64 divided by what each
    /// gives out.
    #[must_use]
    pub fn starting_at(random: u64) -> Self {
        Self { next: random }
    }

    /// The next id; never [`OperationId::NONE`].
    pub fn give(&mut self) -> OperationId {
        self.next = self.next.wrapping_add(1);
        if self.next == 0 {
            self.next = 1;
        }
        OperationId(self.next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_works_for_the_operation_of_its_scope() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            assert_eq!(OperationId::current(), OperationId::NONE);
            let inner = OperationId(7).scope(async { OperationId::current() }).await;
            assert_eq!(inner, OperationId(7));
            assert_eq!(OperationId::current(), OperationId::NONE);
        });
    }

    #[test]
    fn no_id_is_none_even_where_the_count_wraps() {
        let mut ids = OperationIds::starting_at(u64::MAX - 1);
        assert_eq!(ids.give(), OperationId(u64::MAX));
        assert_eq!(ids.give(), OperationId(1));
        assert_eq!(ids.give().to_string(), "0000000000000002");
    }
}
