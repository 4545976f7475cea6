//! The embedded registry as a state machine: what a request finds, and what it would change.
//!
//! Keeps: the entries, the leases with their ends, the recent events.
//! Order: a commit is checked, then stored by the caller, then applied; nobody else changes anything between.
//! Crash: what was applied and not stored is gone; the caller stores first. Leases come back with the entries
//! that are bound to them, alive for their time to live.
//! Knows no files, no tasks and no clock: it is told what time it is.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use sconce_schemas::registry_log::{StoredChange, StoredCommit, StoredEntry, StoredLease};
use sconce_schemas::wire::registry::{Change, Entry, LeaseId, Revision, WatchEvent};
use tokio::time::Instant;

use crate::history::History;
use crate::home::{Found, Page};
use crate::image::Image;
use crate::limits::{ANSWER_BYTES_MAX, LEASE_KEYS_MAX};
use crate::{CommitError, Invalid, Watched};

/// Entries, leases and events.
#[derive(Debug, Default)]
pub(crate) struct State {
    image: Image,
    leases: BTreeMap<LeaseId, Lease>,
    history: History,
}

#[derive(Debug)]
struct Lease {
    ttl: Duration,
    ends: Instant,
    keys: BTreeSet<String>,
}

impl State {
    /// The state after a restart: each lease that an entry is bound to lives on for its time to live.
    pub(crate) fn recovered(image: Image, now: Instant) -> Self {
        let mut leases: BTreeMap<LeaseId, Lease> = BTreeMap::new();
        for entry in image.entries() {
            if let Some(stored) = entry.lease {
                let ttl = Duration::from_millis(u64::from(stored.ttl_ms));
                let lease = leases.entry(stored.id).or_insert_with(|| Lease::new(ttl, now));
                lease.keys.insert(entry.key.clone());
            }
        }
        let history = History::starting_at(image.revision());
        Self {
            image,
            leases,
            history,
        }
    }

    pub(crate) fn image(&self) -> &Image {
        &self.image
    }

    pub(crate) fn get(&self, key: &str) -> Found {
        Found {
            entry: self.image.get(key).map(entry),
            revision: self.image.revision(),
        }
    }

    pub(crate) fn page(&self, prefix: &str, after: Option<&str>, limit: usize) -> Page {
        let mut rest = self.image.below(prefix, after).peekable();
        let mut entries = Vec::new();
        let mut bytes = 0;
        while entries.len() < limit && bytes <= ANSWER_BYTES_MAX {
            let Some(stored) = rest.next() else { break };
            bytes += stored.key.len() + stored.value.len();
            entries.push(entry(stored));
        }
        Page {
            entries,
            more: rest.peek().is_some(),
            revision: self.image.revision(),
        }
    }

    /// The events for a watch; `None`: there are none yet.
    pub(crate) fn watch(&self, prefix: &str, after: Revision) -> Option<Watched> {
        self.history.since(prefix, after, self.image.revision())
    }

    /// The commit that these changes make; `None`: they change nothing.
    pub(crate) fn check(&self, changes: Vec<Change>) -> Result<Option<StoredCommit>, CommitError> {
        for change in &changes {
            let found = self.revision_of(&change.key);
            if change.expected.is_some_and(|expected| expected != found) {
                let key = change.key.clone();
                return Err(CommitError::Conflict { key, found });
            }
        }
        let mut stored = Vec::with_capacity(changes.len());
        for change in changes {
            let lease = change.lease.map(|lease| self.stored_lease(lease)).transpose()?;
            if change.value.is_some() || self.image.get(&change.key).is_some() {
                stored.push(StoredChange {
                    key: change.key,
                    value: change.value,
                    lease,
                });
            }
        }
        Ok((!stored.is_empty()).then(|| self.next_commit(stored)))
    }

    fn revision_of(&self, key: &str) -> Revision {
        self.image
            .get(key)
            .map_or(Revision::ABSENT, |entry| entry.revision)
    }

    fn stored_lease(&self, id: LeaseId) -> Result<StoredLease, CommitError> {
        let lease = self.leases.get(&id).ok_or(CommitError::LeaseGone { lease: id })?;
        if lease.keys.len() >= LEASE_KEYS_MAX {
            let found = format!("one with {} keys", lease.keys.len());
            let expected = format!("one with fewer than {LEASE_KEYS_MAX}");
            return Err(CommitError::Invalid(Invalid::new(
                format!("lease {id}"),
                found,
                expected,
            )));
        }
        let ttl_ms = u32::try_from(lease.ttl.as_millis()).unwrap_or(u32::MAX);
        Ok(StoredLease { id, ttl_ms })
    }

    fn next_commit(&self, changes: Vec<StoredChange>) -> StoredCommit {
        StoredCommit {
            revision: Revision(self.image.revision().0 + 1),
            changes,
        }
    }

    /// Applies a commit that [`State::check`] or [`State::end_of`] made and that is stored.
    pub(crate) fn apply(&mut self, commit: &StoredCommit) {
        for change in &commit.changes {
            let bound = self.image.get(&change.key).and_then(|entry| entry.lease);
            if let Some(lease) = bound.and_then(|bound| self.leases.get_mut(&bound.id)) {
                lease.keys.remove(&change.key);
            }
            if let Some(lease) = change.lease.and_then(|lease| self.leases.get_mut(&lease.id)) {
                lease.keys.insert(change.key.clone());
            }
        }
        self.image.apply(commit);
        self.history.add(commit.changes.iter().map(|change| WatchEvent {
            key: change.key.clone(),
            entry: self.image.get(&change.key).map(entry),
            revision: commit.revision,
        }));
    }

    /// Adds a lease. False: there is one with this id.
    pub(crate) fn grant(&mut self, id: LeaseId, ttl: Duration, now: Instant) -> bool {
        let free = !self.leases.contains_key(&id);
        if free {
            self.leases.insert(id, Lease::new(ttl, now));
        }
        free
    }

    /// Keeps a lease alive. False: it has ended.
    pub(crate) fn keep_alive(&mut self, id: LeaseId, now: Instant) -> bool {
        match self.leases.get_mut(&id) {
            Some(lease) if lease.ends > now => {
                lease.ends = now + lease.ttl;
                true
            }
            _ => false,
        }
    }

    /// When the next lease ends.
    pub(crate) fn next_end(&self) -> Option<Instant> {
        self.leases.values().map(|lease| lease.ends).min()
    }

    /// A lease whose time is over.
    pub(crate) fn ended(&self, now: Instant) -> Option<LeaseId> {
        let mut ended = self.leases.iter().filter(|(_, lease)| lease.ends <= now);
        ended.next().map(|(id, _)| *id)
    }

    /// What the end of a lease commits: its keys are deleted. `None` where it has no keys.
    pub(crate) fn end_of(&self, id: LeaseId) -> Option<StoredCommit> {
        let keys = self.leases.get(&id).map(|lease| lease.keys.iter().cloned())?;
        let deletions: Vec<_> = keys
            .map(|key| StoredChange {
                key,
                value: None,
                lease: None,
            })
            .collect();
        (!deletions.is_empty()).then(|| self.next_commit(deletions))
    }

    /// Forgets a lease, once its end is applied. False: there is none.
    pub(crate) fn forget(&mut self, id: LeaseId) -> bool {
        self.leases.remove(&id).is_some()
    }
}

impl Lease {
    fn new(ttl: Duration, now: Instant) -> Self {
        Self {
            ttl,
            ends: now + ttl,
            keys: BTreeSet::new(),
        }
    }
}

fn entry(stored: &StoredEntry) -> Entry {
    Entry {
        key: stored.key.clone(),
        value: stored.value.clone(),
        revision: stored.revision,
    }
}
