//! Keeps: the changes of one commit, by key, and the loop that commits them.
//! Order: what a plan read is what its commit is conditional on; after a conflict the plan is made anew.
//! Crash: an answer that was lost is found out about by making the plan again (`Attempt::unsure`).
//! Knows no tree.

use std::collections::BTreeMap;
use std::time::Duration;

use sconce_registry::{CommitError, RegistryError};
use sconce_schemas::records::Record;
use sconce_schemas::wire::registry::{Change, Entry, Revision};
use tokio::time::Instant;

use super::{LIST_MAX, Names, NamesError};

/// Conflicts before a change gives up. Each round at least one of those that compete commits, and waits are
/// random, so this many in a row means hundreds of writers on one directory.
const ATTEMPTS_MAX: u32 = 200;
const BACKOFF_MAX: Duration = Duration::from_millis(40);

/// A record with the key and the revision at which it was read.
#[derive(Debug, Clone)]
pub(super) struct Seen<R> {
    pub(super) key: String,
    pub(super) revision: Revision,
    pub(super) record: R,
}

/// Which attempt of a change this is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attempt {
    /// The answer to an earlier commit of this change was lost: it may have happened.
    pub(super) unsure: bool,
}

/// What an attempt wants to commit, and what the change answers then. No changes: it is done already.
pub(super) struct Plan<T> {
    pub(super) changes: Changes,
    pub(super) outcome: T,
}

impl<T> Plan<T> {
    pub(super) fn done(outcome: T) -> Self {
        Self {
            changes: Changes::default(),
            outcome,
        }
    }
}

/// Changes to different keys.
#[derive(Default)]
pub(super) struct Changes {
    by_key: BTreeMap<String, Change>,
    /// Two of them want one key in different states, such as a new inode whose random number is its directory's. The
    /// later would drop the condition of the earlier, so it is a conflict before it is sent.
    clash: bool,
}

impl Changes {
    /// A record that must not be there yet.
    pub(super) fn create<R: Record>(&mut self, key: String, record: &R) {
        self.put(key, Revision(0), Some(record.to_bytes()));
    }

    /// A record as it shall be, in place of the one that was seen.
    pub(super) fn replace<R: Record>(&mut self, seen: &Seen<R>) {
        self.put(seen.key.clone(), seen.revision, Some(seen.record.to_bytes()));
    }

    /// Makes the commit conditional on a record that stays as it is, by writing it again. A change of the same key
    /// that is planned already does so too.
    pub(super) fn hold<R: Record>(&mut self, seen: &Seen<R>) {
        if !self.by_key.contains_key(&seen.key) {
            self.replace(seen);
        }
    }

    /// The same of a record that is not looked into: what newer builds wrote into it stays.
    pub(super) fn hold_entry(&mut self, entry: Entry) {
        self.put(entry.key, entry.revision, Some(entry.value));
    }

    /// The record that was seen goes away.
    pub(super) fn remove<R>(&mut self, seen: &Seen<R>) {
        self.put(seen.key.clone(), seen.revision, None);
    }

    fn put(&mut self, key: String, expected: Revision, value: Option<Vec<u8>>) {
        let change = Change {
            key: key.clone(),
            expected: Some(expected),
            value,
            lease: None,
        };
        let earlier = self.by_key.insert(key, change);
        self.clash |= earlier.is_some_and(|earlier| earlier.expected != Some(expected));
    }
}

impl Names {
    /// Makes a plan and commits it, again and again until it holds.
    pub(super) async fn change<T>(
        &self,
        at: impl Fn() -> String,
        mut plan: impl AsyncFnMut(Attempt) -> Result<Plan<T>, NamesError>,
    ) -> Result<T, NamesError> {
        let give_up = Instant::now() + self.patience;
        let mut attempt = Attempt { unsure: false };
        for tried in 0..ATTEMPTS_MAX {
            let Plan { changes, outcome } = plan(attempt).await?;
            if changes.by_key.is_empty() {
                return Ok(outcome);
            }
            if changes.clash {
                self.pause(tried).await;
                continue;
            }
            match self.registry.commit(changes.by_key.into_values().collect()).await {
                Ok(_) => return Ok(outcome),
                Err(CommitError::Conflict { .. }) => {}
                Err(error @ (CommitError::Unknown { .. } | CommitError::Unavailable { .. })) => {
                    if Instant::now() >= give_up {
                        return Err(unavailable(error));
                    }
                    attempt.unsure |= matches!(error, CommitError::Unknown { .. });
                }
                Err(error) => return Err(unavailable(error)),
            }
            self.pause(tried).await;
        }
        Err(NamesError::Busy {
            at: at(),
            attempts: ATTEMPTS_MAX,
        })
    }

    /// A random wait that grows with the attempts, so that competitors spread out.
    pub(super) async fn pause(&self, tried: u32) {
        let limit = BACKOFF_MAX.min(Duration::from_micros(200) * (1 << tried.min(10)));
        let micros = u64::try_from(limit.as_micros()).unwrap_or(u64::MAX).max(1);
        tokio::time::sleep(Duration::from_micros(self.random() % micros)).await;
    }

    /// The record at `key`.
    pub(super) async fn read<R: Record>(&self, key: String) -> Result<Option<Seen<R>>, NamesError> {
        let found = self.patiently(async || self.registry.get(&key).await).await?;
        found.map(seen).transpose()
    }

    /// Records whose keys start with `prefix` and sort after `after`.
    pub(super) async fn read_many<R: Record>(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Seen<R>>, NamesError> {
        let found = self.entries(prefix, after, limit).await?;
        found.into_iter().map(seen).collect()
    }

    /// The same as they are stored: for those whom one damaged record must not stop.
    pub(super) async fn entries(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Entry>, NamesError> {
        self.patiently(async || self.registry.list(prefix, after, limit).await)
            .await
    }

    /// Every entry below a prefix, page by page.
    pub(super) async fn each_entry(
        &self,
        prefix: &str,
        mut look: impl FnMut(Entry) -> Result<(), NamesError>,
    ) -> Result<(), NamesError> {
        let mut after: Option<String> = None;
        loop {
            let page = self.entries(prefix, after.as_deref(), LIST_MAX).await?;
            let is_last = page.len() < LIST_MAX;
            after = page.last().map(|entry| entry.key.clone());
            page.into_iter().try_for_each(&mut look)?;
            if is_last {
                return Ok(());
            }
        }
    }

    pub(super) async fn patiently<T>(
        &self,
        mut ask: impl AsyncFnMut() -> Result<T, RegistryError>,
    ) -> Result<T, NamesError> {
        let give_up = Instant::now() + self.patience;
        let mut tried = 0;
        loop {
            match ask().await {
                Err(error @ RegistryError::Unavailable { .. }) if Instant::now() < give_up => {
                    tracing::debug!(%error, "asking the registry again");
                    tried += 1;
                    self.pause(tried).await;
                }
                answer => return answer.map_err(unavailable),
            }
        }
    }
}

fn unavailable(error: impl std::fmt::Display) -> NamesError {
    NamesError::Unavailable {
        cause: error.to_string(),
    }
}

pub(super) fn seen<R: Record>(entry: Entry) -> Result<Seen<R>, NamesError> {
    match R::from_bytes(&entry.value) {
        Ok(record) => Ok(Seen {
            key: entry.key,
            revision: entry.revision,
            record,
        }),
        Err(cause) => Err(NamesError::Damaged {
            key: entry.key,
            cause,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(revision: u64, inode: u64) -> Seen<sconce_schemas::records::NameRecord> {
        Seen {
            key: "inode/7".to_owned(),
            revision: Revision(revision),
            record: sconce_schemas::records::NameRecord {
                inode,
                kind: sconce_schemas::records::InodeKind::Directory,
            },
        }
    }

    #[test]
    fn two_changes_of_one_key_keep_its_condition_or_are_a_conflict() {
        let mut changes = Changes::default();
        changes.replace(&seen(5, 1));
        changes.replace(&seen(5, 2));
        assert!(!changes.clash);
        // A new inode that happens to have the number of the directory that it is made in.
        changes.create("inode/7".to_owned(), &seen(0, 3).record);
        assert!(changes.clash);
    }
}
