//! etcd's errors, by what the caller has to do about them.
//!
//! Keeps: which of etcd's errors mean that nothing was changed.
//! Order: none.
//! Crash: nothing.
//! Knows no requests.

use std::time::Duration;

use etcd_client::Error;
use sconce_schemas::wire::registry::{Change, LeaseId};

use crate::{CommitError, Invalid, RegistryError};

// gRPC status codes, https://grpc.io/docs/guides/status-codes/.
const CANCELLED: i32 = 1;
const UNKNOWN: i32 = 2;
const INVALID_ARGUMENT: i32 = 3;
const DEADLINE_EXCEEDED: i32 = 4;
const NOT_FOUND: i32 = 5;
const RESOURCE_EXHAUSTED: i32 = 8;
const FAILED_PRECONDITION: i32 = 9;
const OUT_OF_RANGE: i32 = 11;
const INTERNAL: i32 = 13;
const UNAVAILABLE: i32 = 14;
const UNAUTHENTICATED: i32 = 16;
const PERMISSION_DENIED: i32 = 7;

/// A request that failed.
#[derive(Debug)]
pub(super) struct Failure {
    code: Option<i32>,
    lease_gone: bool,
    text: String,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let code = match &error {
            Error::GRpcStatus(status) => Some(i32::from(status.code())),
            _ => None,
        };
        let text = error.to_string();
        let not_found = code == Some(NOT_FOUND) && text.contains("lease");
        Self {
            code,
            lease_gone: not_found || matches!(error, Error::LeaseKeepAliveError(_)),
            text,
        }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl Failure {
    pub(super) fn late(deadline: Duration) -> Self {
        Self::other(format!("no answer within {} ms", deadline.as_millis()))
    }

    pub(super) fn ended() -> Self {
        Self::other("its thread ended".to_owned())
    }

    pub(super) fn other(text: String) -> Self {
        Self {
            code: None,
            lease_gone: false,
            text,
        }
    }

    /// It says something of the member or of the way to it, and another one may answer.
    pub(super) fn is_of_member(&self) -> bool {
        let of_member = matches!(
            self.code,
            None | Some(CANCELLED | UNKNOWN | DEADLINE_EXCEEDED | INTERNAL | UNAVAILABLE)
        );
        of_member && !self.lease_gone
    }

    /// An answer larger than a message may be.
    pub(super) fn is_too_large(&self) -> bool {
        self.code == Some(OUT_OF_RANGE)
    }
}

/// What errors call this registry.
#[derive(Debug)]
pub(super) struct Named {
    registry: String,
}

impl Named {
    pub(super) fn new(endpoints: &[String]) -> Self {
        Self {
            registry: format!("etcd at {}", endpoints.join(", ")),
        }
    }

    pub(super) fn unavailable(&self, failure: Failure) -> RegistryError {
        RegistryError::Unavailable {
            registry: self.registry.clone(),
            detail: failure.text,
        }
    }

    pub(super) fn lease_error(&self, failure: Failure, lease: LeaseId) -> RegistryError {
        if failure.lease_gone {
            return RegistryError::LeaseGone { lease };
        }
        self.unavailable(failure)
    }

    /// Whether the commit was done nobody can tell.
    pub(super) fn unknown(&self, failure: Failure) -> CommitError {
        CommitError::Unknown {
            registry: self.registry.clone(),
            detail: failure.text,
        }
    }

    pub(super) fn commit_error(&self, failure: Failure, changes: &[Change]) -> CommitError {
        let leases: Vec<LeaseId> = changes.iter().filter_map(|change| change.lease).collect();
        match (failure.lease_gone, leases.first(), failure.code) {
            (true, Some(lease), _) => CommitError::LeaseGone { lease: *lease },
            (_, _, Some(INVALID_ARGUMENT)) => CommitError::Invalid(Invalid { text: failure.text }),
            // etcd says so before it does anything: out of space, no right to, no leader yet.
            (_, _, Some(RESOURCE_EXHAUSTED | FAILED_PRECONDITION | PERMISSION_DENIED | UNAUTHENTICATED)) => {
                CommitError::Unavailable {
                    registry: self.registry.clone(),
                    detail: failure.text,
                }
            }
            _ => self.unknown(failure),
        }
    }
}
