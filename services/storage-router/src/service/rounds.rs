//! Rounds: what one storage-router at a time does for a pool, object by object, within a budget.
//!
//! Keeps: a lease, and under it in the registry who has the claim.
//! Order: the claim first, then the work; what the work records is conditional on the revision that was read, so that of two who
//! think that they have the claim one conflicts.
//! Crash: the claim ends with its lease, or is taken over by this node's next start.
//! Knows no work.

use std::time::Duration;

use sconce_registry::{CommitError, Lease, Registry, RegistryError, Revision};
use sconce_runtime::settings::ByteSize;
use sconce_runtime::{Moment, Stop};
use sconce_schemas::NodeName;
use sconce_schemas::records::ClaimRecord;
use sconce_schemas::wire::Refusal;

/// How long a claim lasts unless it is kept: longer than a large object takes at a slow back end.
pub(super) const CLAIM_TTL: Duration = Duration::from_secs(30);

/// A claim that this service has.
pub(super) struct Claim {
    lease: Lease,
}

impl Claim {
    /// The claim of this key; `None`: another one has it. One of this node is of a process that is gone.
    pub(super) async fn take(
        registry: &Registry,
        key: &str,
        node: &NodeName,
    ) -> Result<Option<Self>, CommitError> {
        let found = registry.get_record::<ClaimRecord>(key).await?;
        let expected = match found {
            None => Revision::ABSENT,
            Some((record, revision)) if record.node == *node => revision,
            Some(_) => return Ok(None),
        };
        let lease = registry.lease(CLAIM_TTL).await?;
        let mine = ClaimRecord { node: node.clone() };
        let put = registry
            .put_record(key, Some(expected), &mine, Some(lease.id()))
            .await;
        Ok(without_conflict(put)?.map(|_| Self { lease }))
    }

    /// Keeps it, where it is time for that.
    pub(super) async fn keep(&mut self) -> Result<(), RegistryError> {
        if Moment::now().is_before(self.lease.renewed().after(CLAIM_TTL / 3)) {
            return Ok(());
        }
        self.lease.keep_alive().await
    }

    /// Gives it back; where that cannot be said now, it ends with its lease.
    pub(super) async fn give_back(self) {
        if let Err(error) = self.lease.revoke().await {
            tracing::debug!(%error, "a claim ends with its lease");
        }
    }
}

/// How long so many bytes take at a rate in bytes per second.
pub(super) fn due(bytes: u64, rate: ByteSize) -> Duration {
    Duration::from_micros(bytes.saturating_mul(1_000_000) / rate.bytes().max(1))
}

/// Waits; whether the stop was requested meanwhile.
pub(super) async fn pause(stop: &Stop, duration: Duration) -> bool {
    tokio::select! {
        biased;
        () = stop.requested() => true,
        () = tokio::time::sleep(duration) => false,
    }
}

pub(super) fn told(refusal: Refusal) -> anyhow::Error {
    anyhow::Error::msg(refusal.text)
}

/// `None`: another one was first.
pub(super) fn without_conflict<T>(done: Result<T, CommitError>) -> Result<Option<T>, CommitError> {
    match done {
        Ok(done) => Ok(Some(done)),
        Err(CommitError::Conflict { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}
