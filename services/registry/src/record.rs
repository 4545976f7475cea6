//! Typed access: records of [`sconce_schemas::records`] instead of bytes.
//!
//! Keeps: how a record becomes a value and back.
//! Order: that of the registry.
//! Crash: that of the registry.
//! Knows no kind of record.

use sconce_schemas::records::Record;
use sconce_schemas::wire::registry::{Change, Entry, LeaseId, Revision};

use crate::{CommitError, Registry, RegistryError};

impl Registry {
    /// The record that a key holds, and its revision.
    ///
    /// # Errors
    /// As [`Registry::get`]; the key holds no good record of this kind.
    pub async fn get_record<R: Record>(&self, key: &str) -> Result<Option<(R, Revision)>, RegistryError> {
        self.get(key)
            .await?
            .map(|entry| Ok((decode(&entry)?, entry.revision)))
            .transpose()
    }

    /// All records below a prefix, with their keys and revisions, in key order.
    ///
    /// # Errors
    /// As [`Registry::list`]; a key holds no good record of this kind.
    pub async fn list_records<R: Record>(
        &self,
        prefix: &str,
    ) -> Result<Vec<(String, R, Revision)>, RegistryError> {
        let entries = self.list(prefix, None, usize::MAX).await?;
        let records = entries.into_iter().map(|entry| {
            let record = decode(&entry)?;
            Ok((entry.key, record, entry.revision))
        });
        records.collect()
    }

    /// Sets a key to a record if it is at `expected` ([`Revision::ABSENT`]: not there; `None`: whatever it is).
    ///
    /// # Errors
    /// As [`Registry::commit`].
    pub async fn put_record<R: Record>(
        &self,
        key: &str,
        expected: Option<Revision>,
        record: &R,
        lease: Option<LeaseId>,
    ) -> Result<Revision, CommitError> {
        let mut change = Change::put(key, expected, record.to_bytes());
        change.lease = lease;
        self.commit(vec![change]).await
    }
}

/// The record that an entry holds, for those who watch.
///
/// # Errors
/// It holds no good record of this kind; the error names the key.
pub fn decode<R: Record>(entry: &Entry) -> Result<R, RegistryError> {
    R::from_bytes(&entry.value).map_err(|source| RegistryError::Damaged {
        key: entry.key.clone(),
        source,
    })
}
