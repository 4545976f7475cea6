//! The embedded home: the state machine, made durable by a store or kept in memory only.
//!
//! Keeps: the state, which readers see, and the store, which one writer at a time holds.
//! Order: a commit is checked, stored, applied and then answered; readers see only what is stored.
//! Crash: what was answered is in the store; a caller that went away meanwhile changes nothing about that.
//! Knows no bus: `host` serves it to others.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sconce_runtime::Chance;
use sconce_schemas::registry_log::StoredCommit;
use sconce_schemas::wire::registry::{Change, LeaseId, Revision};
use tokio::sync::{Notify, OwnedMutexGuard};
use tokio::time::Instant;

use crate::home::{Answer, Found, Home, Page};
use crate::state::State;
use crate::store::{Store, StoreError};
use crate::{CommitError, OpenError, RegistryError, Watched};

/// An embedded registry.
pub(crate) struct Embedded {
    /// How errors name it.
    name: String,
    shared: Arc<Shared>,
    writer: Arc<tokio::sync::Mutex<Writer>>,
}

struct Shared {
    state: Mutex<State>,
    /// Told after each commit.
    changed: Notify,
}

struct Writer {
    chance: Chance,
    /// `None`: in memory only.
    store: Option<Store>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // The state is changed by single calls that leave it whole even where one of them panicked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn apply(&self, commit: &StoredCommit) {
        self.state().apply(commit);
        self.changed.notify_waiters();
    }
}

impl Writer {
    fn persist(&mut self, shared: &Shared, commit: &StoredCommit) -> Result<(), StoreError> {
        let image = || shared.state().image().clone();
        if let Some(store) = &mut self.store {
            store.append(commit, image)?;
        }
        shared.apply(commit);
        if let Some(store) = &mut self.store {
            let head = shared.state().image().head(0);
            store.follow(commit, image, &head);
        }
        Ok(())
    }
}

type Writing = OwnedMutexGuard<Writer>;

impl Embedded {
    /// A registry in memory: gone with its last handle.
    pub(crate) fn in_memory() -> Self {
        Self::new("in memory".to_owned(), State::default(), None)
    }

    /// The registry in a directory, made if it is not there.
    pub(crate) fn in_directory(dir: &Path) -> Result<Self, OpenError> {
        let (store, image) = Store::open(dir)?;
        let state = State::recovered(image, Instant::now());
        Ok(Self::new(format!("in {}", dir.display()), state, Some(store)))
    }

    fn new(name: String, state: State, store: Option<Store>) -> Self {
        Self {
            name,
            shared: Arc::new(Shared {
                state: Mutex::new(state),
                changed: Notify::new(),
            }),
            writer: Arc::new(tokio::sync::Mutex::new(Writer {
                chance: Chance::from_os(),
                store,
            })),
        }
    }

    async fn write(&self) -> Writing {
        self.writer.clone().lock_owned().await
    }

    /// Makes a commit durable and then visible.
    async fn store(&self, mut writing: Writing, commit: StoredCommit) -> Result<Writing, CommitError> {
        if writing.store.is_none() {
            self.shared.apply(&commit);
            return Ok(writing);
        }
        let shared = self.shared.clone();
        // Syncing takes milliseconds; and once begun it goes on to the end, whether or not the caller waits.
        let stored = tokio::task::spawn_blocking(move || {
            let stored = writing.persist(&shared, &commit);
            (writing, stored)
        });
        let registry = self.name.clone();
        match stored.await {
            Ok((writing, Ok(()))) => Ok(writing),
            Ok((_, Err(StoreError::Unchanged(detail)))) => Err(CommitError::Unavailable { registry, detail }),
            Ok((_, Err(StoreError::Unknown(detail)))) => Err(CommitError::Unknown { registry, detail }),
            Err(error) => Err(CommitError::Unknown {
                registry,
                detail: error.to_string(),
            }),
        }
    }

    /// Ends the leases whose time is over, so that what is read next has none of their keys.
    async fn settle(&self) -> Result<(), RegistryError> {
        let due = |now| self.shared.state().next_end().is_some_and(|end| end <= now);
        if !due(Instant::now()) {
            return Ok(());
        }
        let mut writing = self.write().await;
        loop {
            let ended = self.shared.state().ended(Instant::now());
            let Some(lease) = ended else { return Ok(()) };
            writing = self.end(writing, lease).await?;
            tracing::info!(%lease, "lease ended");
        }
    }

    async fn end(&self, mut writing: Writing, lease: LeaseId) -> Result<Writing, RegistryError> {
        let commit = self.shared.state().end_of(lease);
        if let Some(commit) = commit {
            writing = self
                .store(writing, commit)
                .await
                .map_err(|error| RegistryError::Unavailable {
                    registry: self.name.clone(),
                    detail: format!("cannot end lease {lease}: {error}"),
                })?;
        }
        self.shared.state().forget(lease);
        Ok(writing)
    }

    async fn watch_until(
        &self,
        prefix: &str,
        after: Revision,
        until: Instant,
    ) -> Result<Watched, RegistryError> {
        loop {
            let changed = self.shared.changed.notified();
            tokio::pin!(changed);
            // From here on no change is missed, so that the look at the state below is not too early.
            changed.as_mut().enable();
            self.settle().await?;
            let (watched, revision, next_end) = {
                let state = self.shared.state();
                (
                    state.watch(prefix, after),
                    state.image().revision(),
                    state.next_end(),
                )
            };
            if let Some(watched) = watched {
                return Ok(watched);
            }
            if Instant::now() >= until {
                return Ok(Watched {
                    events: Vec::new(),
                    revision,
                    lost: false,
                });
            }
            let wake = next_end.map_or(until, |end| end.min(until));
            tokio::select! {
                biased;
                () = changed => {}
                () = tokio::time::sleep_until(wake) => {}
            }
        }
    }
}

impl Home for Embedded {
    fn get<'a>(&'a self, key: &'a str) -> Answer<'a, Found> {
        Box::pin(async move {
            self.settle().await?;
            Ok(self.shared.state().get(key))
        })
    }

    fn page<'a>(&'a self, prefix: &'a str, after: Option<&'a str>, limit: usize) -> Answer<'a, Page> {
        Box::pin(async move {
            self.settle().await?;
            Ok(self.shared.state().page(prefix, after, limit))
        })
    }

    fn commit(&self, changes: Vec<Change>) -> Answer<'_, Revision, CommitError> {
        Box::pin(async move {
            self.settle().await?;
            let writing = self.write().await;
            let (checked, newest) = {
                let state = self.shared.state();
                (state.check(changes)?, state.image().revision())
            };
            let Some(commit) = checked else {
                return Ok(newest);
            };
            let revision = commit.revision;
            self.store(writing, commit).await?;
            Ok(revision)
        })
    }

    fn watch<'a>(&'a self, prefix: &'a str, after: Revision, wait: Duration) -> Answer<'a, Watched> {
        Box::pin(self.watch_until(prefix, after, Instant::now() + wait))
    }

    fn grant(&self, ttl: Duration) -> Answer<'_, LeaseId> {
        Box::pin(async move {
            self.settle().await?;
            let mut writing = self.write().await;
            loop {
                // Random, so that a lease of before a restart never meets one of after it. etcd's ids have 63 bits.
                let id = LeaseId(writing.chance.u64() >> 1);
                if id.0 != 0 && self.shared.state().grant(id, ttl, Instant::now()) {
                    return Ok(id);
                }
            }
        })
    }

    fn keep_alive(&self, lease: LeaseId) -> Answer<'_, ()> {
        Box::pin(async move {
            if self.shared.state().keep_alive(lease, Instant::now()) {
                return Ok(());
            }
            Err(RegistryError::LeaseGone { lease })
        })
    }

    fn revoke(&self, lease: LeaseId) -> Answer<'_, ()> {
        Box::pin(async move {
            self.settle().await?;
            let writing = self.write().await;
            self.end(writing, lease).await?;
            Ok(())
        })
    }
}
