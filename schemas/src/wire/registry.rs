//! The registry protocol: how the embedded registry is reached over the bus. Control only: maps.
//!
//! Keeps: what can be asked of a registry and what it answers.
//! Order: that of revisions; a change names the revisions that it relies on.
//! Crash: a commit that was not answered may have been made: whoever asked reads again.
//! Knows no record's meaning.

use serde::{Deserialize, Serialize};

use super::refusal::Refusal;
use crate::named_body;

/// Number of a change in the registry; each committed change has a higher one. 0: not there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Revision(pub u64);

impl Revision {
    /// The revision of a key that is not there.
    pub const ABSENT: Revision = Revision(0);
}

impl std::fmt::Display for Revision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(&self.0, f)
    }
}

/// Number of a lease.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LeaseId(pub u64);

impl std::fmt::Display for LeaseId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A key with its value and the revision of its last change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// The value: a record of [`crate::records`], encoded.
    #[serde(with = "crate::wire::msgpack::bytes")]
    pub value: Vec<u8>,
    /// The revision at which the value was set.
    pub revision: Revision,
}

/// One change of a commit: happens only if the key's revision is the expected one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The key.
    pub key: String,
    /// What the key's revision must be; `Revision(0)`: the key must not be there; `None`: whatever it is.
    pub expected: Option<Revision>,
    /// The new value; `None` deletes the key.
    #[serde(with = "crate::wire::msgpack::optional_bytes")]
    pub value: Option<Vec<u8>>,
    /// The key is deleted when this lease ends.
    pub lease: Option<LeaseId>,
}

impl Change {
    /// Sets a key.
    #[must_use]
    pub fn put(key: impl Into<String>, expected: Option<Revision>, value: Vec<u8>) -> Self {
        Self {
            key: key.into(),
            expected,
            value: Some(value),
            lease: None,
        }
    }

    /// Deletes a key.
    #[must_use]
    pub fn delete(key: impl Into<String>, expected: Option<Revision>) -> Self {
        Self {
            key: key.into(),
            expected,
            value: None,
            lease: None,
        }
    }

    /// The same change, the key bound to a lease.
    #[must_use]
    pub fn under(self, lease: LeaseId) -> Self {
        Self {
            lease: Some(lease),
            ..self
        }
    }
}

/// What a watch tells: a key was set, or (`entry` is `None`) deleted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchEvent {
    /// The key.
    pub key: String,
    /// What it is now.
    pub entry: Option<Entry>,
    /// The revision of the change.
    pub revision: Revision,
}

/// To the process that hosts the registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum RegistryRequest {
    /// One key.
    Get {
        /// The key.
        key: String,
    },
    /// Keys that start with `prefix` and sort after `after`, sorted, at most `limit`.
    List {
        /// What the keys start with.
        prefix: String,
        /// Only keys that sort after this one.
        after: Option<String>,
        /// Most entries in the answer (1 to 1000).
        limit: u32,
    },
    /// All changes, or none.
    Commit {
        /// The changes, to different keys.
        changes: Vec<Change>,
    },
    /// Changes below `prefix` with revisions after `after`; waits up to `wait_ms` (at most 30,000) for one.
    Watch {
        /// What the keys start with.
        prefix: String,
        /// The revision up to which the caller knows.
        after: Revision,
        /// How long to wait for a change.
        wait_ms: u32,
    },
    /// A new lease that ends unless it is kept alive within `ttl_ms`.
    LeaseGrant {
        /// Time to live.
        ttl_ms: u32,
    },
    /// Keeps a lease alive for another time to live.
    LeaseKeepAlive {
        /// The lease.
        lease: LeaseId,
    },
    /// Ends a lease and deletes its keys.
    LeaseRevoke {
        /// The lease.
        lease: LeaseId,
    },
}

/// From the process that hosts the registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum RegistryReply {
    /// The answer to `Get`.
    Entry {
        /// The entry; `None`: no such key.
        entry: Option<Entry>,
        /// The registry's newest revision.
        revision: Revision,
    },
    /// The answer to `List`.
    Entries {
        /// The entries: fewer than the limit where that many would be a message too large.
        entries: Vec<Entry>,
        /// Whether more keys follow the last one.
        more: bool,
        /// The registry's newest revision.
        revision: Revision,
    },
    /// The commit happened, at this revision.
    Committed {
        /// The revision of all its changes.
        revision: Revision,
    },
    /// The commit did not happen: this key's revision was another.
    Conflict {
        /// The key.
        key: String,
        /// Its revision.
        found: Revision,
    },
    /// The answer to `Watch`. `lost`: changes since `after` are no longer known; list again.
    Events {
        /// The changes, in order; empty when the wait ended without one.
        events: Vec<WatchEvent>,
        /// The revision up to which the caller now knows.
        revision: Revision,
        /// The caller has to list again.
        lost: bool,
    },
    /// The answer to `LeaseGrant`.
    Lease {
        /// The lease.
        lease: LeaseId,
    },
    /// Done.
    Done,
    /// Not done.
    Refused {
        /// Why.
        refusal: Refusal,
    },
}

named_body!(RegistryRequest, "registry request", super::names::of_registry);
named_body!(RegistryReply, "registry reply");
