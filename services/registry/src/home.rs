//! The trait that every home of the registry implements.
//!
//! Keeps: what the rest of the system may ask of a registry: compare-and-swap, watch, lease, and reading.
//! Order: commits happen one after the other; their revisions grow; a watch tells them in that order.
//! Crash: a commit that was acknowledged is durable (not so in memory); another is there whole or not at all.
//! Knows no home.

use std::pin::Pin;
use std::time::Duration;

use sconce_schemas::wire::registry::{Change, Entry, LeaseId, Revision};

use crate::{CommitError, RegistryError, Watched};

/// An answer that is on its way.
pub(crate) type Answer<'a, T, E = RegistryError> = Pin<Box<dyn Future<Output = Result<T, E>> + Send + 'a>>;

/// A key's entry, and the registry's revision when it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) entry: Option<Entry>,
    pub(crate) revision: Revision,
}

/// A part of a listing: at least one entry where there is one, fewer than asked for where that many are too large.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Page {
    pub(crate) entries: Vec<Entry>,
    pub(crate) more: bool,
    pub(crate) revision: Revision,
}

/// A home. Requests are within the limits of [`crate::limits`]: the handle checks before it asks.
pub(crate) trait Home: Send + Sync {
    fn get<'a>(&'a self, key: &'a str) -> Answer<'a, Found>;
    fn page<'a>(&'a self, prefix: &'a str, after: Option<&'a str>, limit: usize) -> Answer<'a, Page>;
    fn commit(&self, changes: Vec<Change>) -> Answer<'_, Revision, CommitError>;
    fn watch<'a>(&'a self, prefix: &'a str, after: Revision, wait: Duration) -> Answer<'a, Watched>;
    fn grant(&self, ttl: Duration) -> Answer<'_, LeaseId>;
    fn keep_alive(&self, lease: LeaseId) -> Answer<'_, ()>;
    fn revoke(&self, lease: LeaseId) -> Answer<'_, ()>;
}
