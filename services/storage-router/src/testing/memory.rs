//! A back end in memory: for simulations, where nothing may depend on a disk's time.
//!
//! Keeps: the objects, in their envelopes, up to a bounded size.
//! Order: every request is done before it returns.
//! Crash: everything is gone.
//! Knows no threads, no delays, no faults: those are `FaultyBackend`'s.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use sconce_schemas::object::ObjectKind;
use sconce_schemas::stored_object::SealedObject;
use sconce_schemas::{ByteLen, ObjectName, VolumeId};

use crate::backend::{Backend, BackendError, Pending, Space, StoredRange};

/// A back end in memory, of a bounded size. Answers at once, on the calling thread.
#[derive(Debug)]
pub struct MemoryBackend {
    name: String,
    capacity: u64,
    objects: Mutex<BTreeMap<ObjectName, Bytes>>,
}

impl MemoryBackend {
    /// An empty back end that holds up to `capacity` bytes.
    #[must_use]
    pub fn new(name: &str, capacity: u64) -> Self {
        Self {
            name: name.to_owned(),
            capacity,
            objects: Mutex::default(),
        }
    }

    /// The stored bytes of an object, envelope and all.
    #[must_use]
    pub fn stored(&self, name: ObjectName) -> Option<Bytes> {
        self.lock().get(&name).cloned()
    }

    /// Puts arbitrary stored bytes in an object's place, as a disk that goes bad would.
    pub fn damage(&self, name: ObjectName, stored: Bytes) {
        self.lock().insert(name, stored);
    }

    /// Loses an object, as a disk that goes bad would.
    pub fn lose(&self, name: ObjectName) {
        self.lock().remove(&name);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ObjectName, Bytes>> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn store(&self, object: &SealedObject, is_new: bool) -> Result<(), BackendError> {
        let mut objects = self.lock();
        if is_new && objects.contains_key(&object.name()) {
            return Err(BackendError::Exists);
        }
        let others: u64 = objects
            .iter()
            .filter(|(name, _)| **name != object.name())
            .map(|(_, bytes)| bytes.len() as u64)
            .sum();
        if others + object.stored_len() > self.capacity {
            return Err(BackendError::Full);
        }
        objects.insert(object.name(), object.to_stored());
        Ok(())
    }
}

fn now<'a, T: Send + 'a>(answer: Result<T, BackendError>) -> Pending<'a, T> {
    Box::pin(std::future::ready(answer))
}

impl Backend for MemoryBackend {
    fn name(&self) -> &str {
        &self.name
    }

    fn put_new(&self, object: SealedObject) -> Pending<'_, ()> {
        now(self.store(&object, true))
    }

    fn replace(&self, object: SealedObject) -> Pending<'_, ()> {
        now(self.store(&object, false))
    }

    fn read(&self, name: ObjectName, offset: u64, length: u64) -> Pending<'_, StoredRange> {
        let range = self.stored(name).map(|stored| {
            let at = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX).min(stored.len());
            StoredRange {
                bytes: stored.slice(at(offset)..at(offset.saturating_add(length))),
                stored_len: stored.len() as u64,
            }
        });
        now(range.ok_or(BackendError::NotFound))
    }

    fn list(
        &self,
        volume: VolumeId,
        kind: ObjectKind,
        after: Option<ObjectName>,
        limit: usize,
    ) -> Pending<'_, Vec<ObjectName>> {
        let objects = self.lock();
        let is_listed = |name: &&ObjectName| {
            name.volume() == volume && name.kind() == kind && after.is_none_or(|after| **name > after)
        };
        now(Ok(objects
            .keys()
            .filter(is_listed)
            .take(limit)
            .copied()
            .collect()))
    }

    fn list_volumes(&self, after: Option<VolumeId>, limit: usize) -> Pending<'_, Vec<VolumeId>> {
        let mut volumes: Vec<VolumeId> = self.lock().keys().map(ObjectName::volume).collect();
        volumes.sort_unstable();
        volumes.dedup();
        volumes.retain(|volume| after.is_none_or(|after| *volume > after));
        volumes.truncate(limit);
        now(Ok(volumes))
    }

    fn delete(&self, name: ObjectName) -> Pending<'_, ()> {
        self.lock().remove(&name);
        now(Ok(()))
    }

    fn space(&self) -> Pending<'_, Space> {
        let used = self.lock().values().map(|bytes| bytes.len() as u64).sum();
        now(Ok(Space {
            capacity: Some(ByteLen(self.capacity)),
            free: Some(ByteLen(self.capacity.saturating_sub(used))),
        }))
    }
}
