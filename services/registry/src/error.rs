//! What can go wrong with the registry, by what the caller has to do about it.
//!
//! Keeps: the errors, and how they travel as refusals between the process that hosts the registry and others.
//! Order: none.
//! Crash: nothing.
//! Knows no home.

use std::io;
use std::path::PathBuf;

use sconce_schemas::DecodeError;
use sconce_schemas::wire::registry::{LeaseId, Revision};

/// A request that no registry takes. The text names the thing, the value and what would be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct Invalid {
    /// For people.
    pub text: String,
}

impl Invalid {
    pub(crate) fn new(
        what: impl std::fmt::Display,
        found: impl std::fmt::Display,
        expected: impl std::fmt::Display,
    ) -> Self {
        Self {
            text: format!("{what} is {found}; it has to be {expected}"),
        }
    }
}

/// Why a request other than a commit has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    /// The request is wrong: do not send it again.
    #[error("registry request: {0}")]
    Invalid(#[from] Invalid),
    /// The registry cannot be reached or does not work now: try again later.
    #[error("the registry {registry} cannot be used now: {detail}")]
    Unavailable {
        /// Which registry, as its settings name it.
        registry: String,
        /// What is known.
        detail: String,
    },
    /// The lease has ended: grant a new one.
    #[error("lease {lease} has ended")]
    LeaseGone {
        /// The lease.
        lease: LeaseId,
    },
    /// What a key holds is no record of the kind that belongs there.
    #[error("the registry's key {key:?} holds no good record: {source}")]
    Damaged {
        /// The key.
        key: String,
        /// What is wrong with it.
        source: DecodeError,
    },
}

/// Why a commit did not happen, or is not known to have happened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// A key's revision is not the expected one: nothing was changed. Read it again and decide anew.
    #[error("the registry's key {key:?} is at revision {found}, not at the expected one")]
    Conflict {
        /// The first such key.
        key: String,
        /// Its revision; [`Revision::ABSENT`] where the key is not there.
        found: Revision,
    },
    /// A lease that a key was to be bound to has ended: nothing was changed.
    #[error("lease {lease} has ended")]
    LeaseGone {
        /// The lease.
        lease: LeaseId,
    },
    /// The answer was lost: the commit happened, or happens later, or never. Read the keys again to know.
    #[error("it is not known whether the registry {registry} has the commit: {detail}")]
    Unknown {
        /// Which registry.
        registry: String,
        /// What is known.
        detail: String,
    },
    /// The registry cannot be reached or does not work now: nothing was changed, try again later.
    #[error("the registry {registry} cannot be used now: {detail}")]
    Unavailable {
        /// Which registry.
        registry: String,
        /// What is known.
        detail: String,
    },
    /// The request is wrong: nothing was changed, do not send it again.
    #[error("registry request: {0}")]
    Invalid(#[from] Invalid),
}

/// Why a registry could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A file or directory of the embedded registry cannot be used.
    #[error("registry directory {}: cannot {action}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// Another process has the directory open.
    #[error(
        "registry directory {} is in use by another process; only one process hosts an embedded registry, \
         others reach it over the bus (registry home = \"remote\")",
        dir.display()
    )]
    InUse {
        /// The directory.
        dir: PathBuf,
    },
    /// Neither sled nor the snapshot and journal beside it hold everything that was acknowledged.
    #[error(
        "registry directory {}: both copies are damaged ({detail}); nothing was changed there. Move the \
         directory away, start again and let `sconce recover` find the volumes on the back end",
        dir.display()
    )]
    BothDamaged {
        /// The directory.
        dir: PathBuf,
        /// What is known of each.
        detail: String,
    },
    /// etcd does not answer.
    #[error(
        "no etcd answers at {}: {detail}; check the endpoints in the section [registry] and that etcd runs",
        endpoints.join(", ")
    )]
    Etcd {
        /// The endpoints that were tried.
        endpoints: Vec<String>,
        /// What the client said.
        detail: String,
    },
    /// A setting is wrong.
    #[error("registry settings: {0}")]
    Setting(#[from] Invalid),
    /// The thread that the registry's connection needs could not be started.
    #[error("cannot start a thread for the registry: {0}")]
    Thread(io::Error),
}

impl From<RegistryError> for CommitError {
    /// For what is asked before a commit is sent: an error there changed nothing.
    fn from(error: RegistryError) -> Self {
        match error {
            RegistryError::Invalid(invalid) => CommitError::Invalid(invalid),
            RegistryError::LeaseGone { lease } => CommitError::LeaseGone { lease },
            RegistryError::Unavailable { registry, detail } => CommitError::Unavailable { registry, detail },
            RegistryError::Damaged { key, source } => CommitError::Invalid(Invalid {
                text: RegistryError::Damaged { key, source }.to_string(),
            }),
        }
    }
}
