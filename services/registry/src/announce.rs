//! Announcing: a service's node record, there for as long as the service is.
//!
//! Keeps: the record under a lease, the lease alive, and until when it is held.
//! Order: the lease is renewed at a third of its time to live; a record that went with a lost lease is put back.
//! Crash: the record goes when the lease ends; a service of the same name that starts takes it over at once.
//! Knows no service's work.

use std::time::Duration;

use sconce_runtime::{Backoff, Chance, Moment, Stop};
use sconce_schemas::NodeName;
use sconce_schemas::records::{NodeRecord, keys};
use sconce_schemas::wire::registry::Revision;
use tokio::sync::watch;

use crate::{CommitError, Lease, Registry, RegistryError};

/// Time to live of a node's lease where its service has no reason for another.
pub const NODE_TTL: Duration = Duration::from_secs(6);

/// First and longest wait before a failed renewal is tried again.
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(1);

/// Why a node is not announced.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AnnounceError {
    /// Another process announced itself under this name since: this one has to stop.
    #[error(
        "another process (pid {pid}) announced itself as {name}; every service of a pool needs a name of its own"
    )]
    Replaced {
        /// The name.
        name: NodeName,
        /// The other process, on its machine.
        pid: u32,
    },
    /// The registry did not take the record.
    #[error(transparent)]
    Commit(#[from] CommitError),
}

/// A node that is announced.
#[derive(Debug)]
pub struct Announcement {
    registry: Registry,
    record: NodeRecord,
    ttl: Duration,
    lease: Lease,
    revision: Revision,
    held: watch::Sender<Held>,
}

/// What is known of a lease.
#[derive(Debug, Clone, Copy)]
struct Held {
    /// It is held from here on ...
    since: Moment,
    /// ... until then at least, without a gap.
    until: Moment,
}

impl Held {
    fn new(lease: &Lease) -> Self {
        Self {
            since: lease.renewed(),
            until: lease.held_until(),
        }
    }

    /// After a renewal.
    fn renewed(self, lease: &Lease) -> Self {
        match Self::new(lease) {
            held if held.since.is_before(self.until) => Self {
                since: self.since,
                ..held
            },
            held => held,
        }
    }
}

/// Until when a node's lease is held: whoever may act only while it is announced asks this first.
#[derive(Debug, Clone)]
pub struct Tenure {
    held: watch::Receiver<Held>,
}

impl Tenure {
    /// Until when the lease is held at least.
    #[must_use]
    pub fn held_until(&self) -> Moment {
        self.held.borrow().until
    }

    /// Since when it is held without a gap that this process knows of: another value than before says that it ended meanwhile, and was
    /// another's perhaps.
    #[must_use]
    pub fn held_since(&self) -> Moment {
        self.held.borrow().since
    }

    /// Returns once it is held since another moment than this one.
    pub async fn held_anew(&self, since: Moment) {
        let mut held = self.held.clone();
        if held.wait_for(|held| held.since != since).await.is_err() {
            // Nobody renews it any more.
            std::future::pending().await
        }
    }

    /// Whether it is held now.
    #[must_use]
    pub fn is_held(&self) -> bool {
        Moment::now().is_before(self.held_until())
    }
}

impl Announcement {
    /// Puts the node's record under a new lease of `ttl`, whatever record is there: of a process that this one
    /// replaces.
    ///
    /// # Errors
    /// The registry did not take it.
    pub async fn register(
        registry: &Registry,
        record: &NodeRecord,
        ttl: Duration,
    ) -> Result<Self, CommitError> {
        let (lease, revision) = put(registry, record, ttl, None).await?;
        tracing::info!(node = %record.name, endpoints = ?record.endpoints, "announced");
        Ok(Self {
            registry: registry.clone(),
            record: record.clone(),
            ttl,
            held: watch::Sender::new(Held::new(&lease)),
            lease,
            revision,
        })
    }

    /// The record's revision: one that a process of this name puts there later has a higher one.
    #[must_use]
    pub const fn revision(&self) -> Revision {
        self.revision
    }

    /// Until when the node is announced, from now on.
    #[must_use]
    pub fn tenure(&self) -> Tenure {
        Tenure {
            held: self.held.subscribe(),
        }
    }

    /// Keeps the node announced until the stop is requested, then takes the record away, unless the next process goes on. While the registry cannot
    /// be used this goes on trying; [`Tenure`] tells what that means for the service.
    ///
    /// # Errors
    /// Another process replaced this one.
    pub async fn keep(mut self, stop: Stop) -> Result<(), AnnounceError> {
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MAX, Chance::from_os());
        let mut failing = false;
        let mut pause = self.ttl / 3;
        loop {
            tokio::select! {
                biased;
                () = stop.requested() => break,
                () = tokio::time::sleep(pause) => {}
            }
            match self.renew().await {
                Ok(()) => {
                    if failing {
                        tracing::info!(node = %self.record.name, "announced again");
                    }
                    (failing, pause) = (false, self.ttl / 3);
                    backoff.reset();
                    let lease = &self.lease;
                    self.held.send_modify(|held| *held = held.renewed(lease));
                }
                Err(error @ AnnounceError::Replaced { .. }) => {
                    self.held.send_modify(|held| held.until = Moment::now());
                    return Err(error);
                }
                Err(error) => {
                    if !failing {
                        tracing::warn!(node = %self.record.name, %error, "lease not renewed: trying again");
                    }
                    (failing, pause) = (true, backoff.wait());
                }
            }
        }
        if stop.hands_over() {
            // The next process of this name takes the record over, with what clients have open and with the volumes that they write.
            return Ok(());
        }
        // Best effort: without it the record goes when the lease ends.
        let revoked = tokio::time::timeout(self.ttl, self.lease.revoke()).await;
        if let Ok(Err(error)) = revoked {
            tracing::info!(%error, "node record left to its lease");
        }
        Ok(())
    }

    async fn renew(&mut self) -> Result<(), AnnounceError> {
        match self.lease.keep_alive().await {
            Ok(()) => self.confirm().await,
            Err(RegistryError::LeaseGone { .. }) => self.register_again().await,
            Err(error) => Err(CommitError::from(error).into()),
        }
    }

    /// The lease lives; but the record may be another's.
    async fn confirm(&mut self) -> Result<(), AnnounceError> {
        match self.found().await? {
            Some((_, revision)) if revision == self.revision => Ok(()),
            Some((other, _)) if other != self.record => Err(self.replaced_by(&other)),
            _ => self.register_again().await,
        }
    }

    async fn register_again(&mut self) -> Result<(), AnnounceError> {
        let expected = match self.found().await? {
            Some((other, _)) if other != self.record => return Err(self.replaced_by(&other)),
            Some((_, revision)) => revision,
            None => Revision::ABSENT,
        };
        let (lease, revision) = put(&self.registry, &self.record, self.ttl, Some(expected)).await?;
        tracing::info!(node = %self.record.name, "node record was gone with its lease: put back");
        (self.lease, self.revision) = (lease, revision);
        Ok(())
    }

    async fn found(&self) -> Result<Option<(NodeRecord, Revision)>, AnnounceError> {
        let key = keys::node(&self.record.name);
        self.registry
            .get_record(&key)
            .await
            .map_err(|error| CommitError::from(error).into())
    }

    fn replaced_by(&self, other: &NodeRecord) -> AnnounceError {
        AnnounceError::Replaced {
            name: self.record.name.clone(),
            pid: other.pid,
        }
    }
}

async fn put(
    registry: &Registry,
    record: &NodeRecord,
    ttl: Duration,
    expected: Option<Revision>,
) -> Result<(Lease, Revision), CommitError> {
    let lease = registry.lease(ttl).await?;
    let key = keys::node(&record.name);
    let revision = registry
        .put_record(&key, expected, record, Some(lease.id()))
        .await?;
    Ok((lease, revision))
}
