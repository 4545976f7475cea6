//! The handle: checks a request, asks the home, and puts pages and long waits together.
//!
//! Keeps: the home.
//! Order: that of the home.
//! Crash: that of the home.
//! Knows no home's inside.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sconce_bus::{Endpoint, Hello, Network, TlsSettings};
use sconce_runtime::Moment;
use sconce_schemas::wire::registry::{Change, Entry, Revision, WatchEvent};
use tokio::time::Instant;

use crate::embedded::Embedded;
use crate::etcd::Etcd;
use crate::home::{Found, Home, Page};
use crate::lease::Lease;
use crate::limits::{LIST_MAX, WAIT_MAX, check_changes, check_key, check_limit, check_prefix, check_ttl};
use crate::remote::Remote;
use crate::{CommitError, OpenError, RegistryError};

/// A registry, wherever its home is. Clones share it; it may be used from any thread that runs tokio.
#[derive(Clone)]
pub struct Registry {
    home: Arc<dyn Home>,
}

/// What a watch tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watched {
    /// The changes, in order: all of a commit's, or none. Empty when the wait ended without one.
    pub events: Vec<WatchEvent>,
    /// The revision up to which the caller now knows: what the next watch starts after.
    pub revision: Revision,
    /// Changes were forgotten since (a restart of the host, or too many changes): list again, then watch after
    /// `revision`.
    pub lost: bool,
}

impl Registry {
    pub(crate) fn at(home: impl Home + 'static) -> Self {
        Self { home: Arc::new(home) }
    }

    /// A registry in memory, for tests and simulations: gone with its last handle.
    #[must_use]
    pub fn memory() -> Self {
        Self::at(Embedded::in_memory())
    }

    /// The registry in a directory, made if it is not there: kept in sled, with a checked snapshot and journal
    /// beside it. One process has it open; it serves others with [`host`](crate::host()). Reads the whole registry:
    /// call it at the start of a service.
    ///
    /// # Errors
    /// The directory cannot be used or is another process's; both copies are damaged.
    pub fn sled(dir: &Path) -> Result<Self, OpenError> {
        Ok(Self::at(Embedded::in_directory(dir)?))
    }

    /// The registry in etcd, at any of `endpoints` (`http://host:port`, or `https://` with `tls`), with all its keys
    /// below `prefix`, which ends with `/`. Returns once etcd has answered.
    ///
    /// # Errors
    /// None of the endpoints answers; the prefix is not one; a file of `tls` cannot be read.
    pub async fn etcd(
        endpoints: &[String],
        prefix: &str,
        tls: Option<&TlsSettings>,
    ) -> Result<Self, OpenError> {
        Ok(Self::at(Etcd::connect(endpoints, prefix, tls).await?))
    }

    /// The registry that another process hosts at `endpoint`. Does not wait for that process: requests do. Starts a
    /// small thread for the connection, which ends with the last handle.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn remote(network: &Network, endpoint: &Endpoint, hello: Hello) -> Result<Self, OpenError> {
        Ok(Self::at(Remote::start(network, endpoint, hello)?))
    }

    pub(crate) fn home(&self) -> &dyn Home {
        &*self.home
    }

    /// What a key holds.
    ///
    /// # Errors
    /// The registry cannot be used now, or the key is beyond [`crate::limits`].
    pub async fn get(&self, key: &str) -> Result<Option<Entry>, RegistryError> {
        Ok(self.find(key).await?.entry)
    }

    pub(crate) async fn find(&self, key: &str) -> Result<Found, RegistryError> {
        check_key(key)?;
        self.home.get(key).await
    }

    /// The newest revision: a watch after it tells what changes from now on. A caller that keeps a copy asks for
    /// the revision first and lists then; an event that the list had already is applied once more.
    ///
    /// # Errors
    /// The registry cannot be used now.
    pub async fn revision(&self) -> Result<Revision, RegistryError> {
        Ok(self.find("revision").await?.revision)
    }

    /// Entries whose keys start with `prefix` and sort after `after`, in key order, at most `limit`. Fewer than
    /// `limit`: there are no more. A listing in several pages is no single moment's.
    ///
    /// # Errors
    /// The registry cannot be used now, or the request is beyond [`crate::limits`].
    pub async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Entry>, RegistryError> {
        let mut page = self.page(prefix, after, limit).await?;
        let mut entries = std::mem::take(&mut page.entries);
        while page.more && entries.len() < limit {
            let last = entries.last().map(|entry: &Entry| entry.key.clone());
            page = self.page(prefix, last.as_deref(), limit - entries.len()).await?;
            entries.append(&mut page.entries);
        }
        Ok(entries)
    }

    /// One page of a listing, bounded in bytes.
    pub(crate) async fn page(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Page, RegistryError> {
        check_prefix(prefix)?;
        check_limit(limit)?;
        if let Some(after) = after {
            check_key(after)?;
        }
        self.home.page(prefix, after, limit.min(LIST_MAX)).await
    }

    /// Makes all changes, or none; gives their revision. Changes that leave everything as it is (the deletion of
    /// a key that is not there) have the newest revision.
    ///
    /// # Errors
    /// A key is not at its expected revision; a lease has ended; the registry cannot be used now, or its answer
    /// was lost; the request is beyond [`crate::limits`].
    pub async fn commit(&self, changes: Vec<Change>) -> Result<Revision, CommitError> {
        check_changes(&changes)?;
        self.home.commit(changes).await
    }

    /// Waits up to `wait` for changes after the revision `after` to keys that start with `prefix`.
    ///
    /// # Errors
    /// The registry cannot be used now, or the prefix is beyond [`crate::limits`].
    pub async fn watch(
        &self,
        prefix: &str,
        after: Revision,
        wait: Duration,
    ) -> Result<Watched, RegistryError> {
        check_prefix(prefix)?;
        let until = Instant::now() + wait;
        let mut after = after;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let watched = self.home.watch(prefix, after, left.min(WAIT_MAX)).await?;
            if watched.lost || !watched.events.is_empty() || left <= WAIT_MAX {
                return Ok(watched);
            }
            after = watched.revision;
        }
    }

    /// A new lease, which ends unless it is kept alive within `ttl`. After a restart of an embedded registry a
    /// lease lives on for its `ttl` if a key is bound to it, and has ended otherwise.
    ///
    /// # Errors
    /// The registry cannot be used now, or `ttl` is beyond [`crate::limits`].
    pub async fn lease(&self, ttl: Duration) -> Result<Lease, RegistryError> {
        check_ttl(ttl)?;
        let asked = Moment::now();
        let id = self.home.grant(ttl).await?;
        Ok(Lease::new(self.clone(), id, ttl, asked))
    }
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry").finish_non_exhaustive()
    }
}
