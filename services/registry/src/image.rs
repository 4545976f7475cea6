//! All entries at one revision: what is stored, apart from how.
//!
//! Keeps: the entries in key order, their revision, and a digest of them.
//! Order: commits are applied in the order of their revisions.
//! Crash: nothing; an image is a value.
//! Knows no files, no leases' ends and no watches.

use std::collections::BTreeMap;
use std::ops::Bound;

use sconce_schemas::registry_log::{SnapshotHead, StoredCommit, StoredEntry, VERSION};
use sconce_schemas::wire::registry::Revision;

/// The entries at a revision.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Image {
    revision: Revision,
    entries: BTreeMap<String, StoredEntry>,
    digest: u64,
}

impl Image {
    /// An image of entries that were stored as they are.
    pub(crate) fn new(revision: Revision, stored: impl IntoIterator<Item = StoredEntry>) -> Self {
        let mut image = Self {
            revision,
            ..Self::default()
        };
        for entry in stored {
            image.put(entry);
        }
        image
    }

    pub(crate) fn revision(&self) -> Revision {
        self.revision
    }

    /// The wrapping sum of the entries' digests.
    pub(crate) fn digest(&self) -> u64 {
        self.digest
    }

    /// What the entries are together.
    pub(crate) fn head(&self, generation: u64) -> SnapshotHead {
        SnapshotHead {
            version: VERSION,
            generation,
            revision: self.revision,
            entries: self.entries.len() as u64,
            digest: self.digest,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn get(&self, key: &str) -> Option<&StoredEntry> {
        self.entries.get(key)
    }

    pub(crate) fn entries(&self) -> impl Iterator<Item = &StoredEntry> {
        self.entries.values()
    }

    /// The entries whose keys start with `prefix` and sort after `after`, in key order.
    pub(crate) fn below<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
    ) -> impl Iterator<Item = &'a StoredEntry> {
        let start = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        self.entries
            .range::<str, _>((start, Bound::Unbounded))
            .map(|(_, entry)| entry)
            .take_while(move |entry| entry.key.starts_with(prefix))
    }

    /// Applies a commit; its revision is the image's from now on.
    pub(crate) fn apply(&mut self, commit: &StoredCommit) {
        for change in &commit.changes {
            match &change.value {
                Some(value) => self.put(StoredEntry {
                    key: change.key.clone(),
                    value: value.clone(),
                    revision: commit.revision,
                    lease: change.lease,
                }),
                None => self.remove(&change.key),
            }
        }
        self.revision = commit.revision;
    }

    fn put(&mut self, entry: StoredEntry) {
        self.digest = self.digest.wrapping_add(entry.digest());
        if let Some(old) = self.entries.insert(entry.key.clone(), entry) {
            self.digest = self.digest.wrapping_sub(old.digest());
        }
    }

    fn remove(&mut self, key: &str) {
        if let Some(old) = self.entries.remove(key) {
            self.digest = self.digest.wrapping_sub(old.digest());
        }
    }
}
