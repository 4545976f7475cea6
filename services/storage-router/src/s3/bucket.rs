//! Objects of a bucket: each operation made of requests about keys.
//!
//! Keeps: how requests are sent again, who is at which key, and whether the bucket is the right one.
//! Order: of two puts of one name in this process the second begins when the first has ended.
//! Crash: nothing; every request may be sent twice.
//! Knows no envelope, and HTTP only as faults.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use hyper::Uri;
use sconce_runtime::Chance;
use sconce_schemas::object::ObjectKind;
use sconce_schemas::stored_object::{STORED_BYTES_MAX, SealedObject};
use sconce_schemas::{BackendId, ObjectName, VolumeId};
use tokio::time::Instant;

use super::attach::Standing;
use super::fault::{Fault, Kind, Place};
use super::objects::{Listing, Objects, Piece, Put};
use super::retry::{Call, Retries};
use super::settings::{S3Settings, Style};
use super::transport::Transport;
use super::turns::Turns;
use crate::backend::{BackendError, StoredRange};

/// Bytes of a part, and so the least by which an upload in parts is cut: S3 takes 5 MiB or more, and 10,000 parts.
const PART_BYTES: usize = 8 << 20;
/// Parts of one object on their way at once.
const PARTS_AT_ONCE: usize = 4;
/// The most that S3 lists at once.
const LISTED_AT_ONCE_MAX: usize = 1000;

/// A bucket, or a folder in one.
#[derive(Debug)]
pub(super) struct Bucket {
    pub(super) name: String,
    /// What all keys begin with.
    pub(super) folder: String,
    pub(super) standing: Standing,
    pub(super) retries: Retries,
    pub(super) objects: Objects,
    turns: Turns,
    place: String,
    multipart_above: u64,
}

impl Bucket {
    pub(super) fn new(
        name: &str,
        settings: &S3Settings,
        deadline: Duration,
        expected: Option<BackendId>,
    ) -> Result<Self, String> {
        let url = settings.bucket_url();
        let url: Uri = url.parse().map_err(|error| format!("{url}: {error}"))?;
        let place = Place {
            endpoint: settings.endpoint.clone(),
            bucket: settings.bucket.clone(),
            region: settings.region.clone(),
            is_virtual_hosted: settings.style == Style::VirtualHosted,
        };
        let transport = Transport::new(
            place.into(),
            &url,
            settings.ca.as_deref(),
            settings.connect_timeout,
        )?;
        // Before the caller's own deadline, which knows no reason.
        let total = deadline * 9 / 10;
        Ok(Self {
            name: name.to_owned(),
            folder: settings.folder.clone(),
            standing: Standing::new(expected),
            retries: Retries::new(settings.request_timeout, total, Chance::from_os()),
            objects: Objects::new(settings, &transport)?,
            turns: Turns::default(),
            place: format!("bucket {:?} at {}", settings.bucket, settings.endpoint),
            multipart_above: settings.multipart_above,
        })
    }

    pub(super) async fn put_new(&self, object: &SealedObject) -> Result<(), BackendError> {
        let until = self.retries.until();
        self.ready(until).await?;
        self.put(until, object, Put::New).await
    }

    pub(super) async fn replace(&self, object: &SealedObject) -> Result<(), BackendError> {
        let until = self.retries.until();
        self.ready(until).await?;
        self.put(until, object, Put::Over).await
    }

    pub(super) async fn read(
        &self,
        name: ObjectName,
        offset: u64,
        length: u64,
    ) -> Result<StoredRange, BackendError> {
        let until = self.retries.until();
        self.ready(until).await?;
        let key = self.key(name);
        let length = length.min(STORED_BYTES_MAX);
        let found = if length == 0 || offset >= STORED_BYTES_MAX {
            self.length(until, &key).await.map(ends_before)
        } else {
            match self.get(until, &key, offset, length).await {
                Ok(piece) => Ok(StoredRange {
                    bytes: piece.bytes,
                    stored_len: piece.whole,
                }),
                Err(fault) if fault.kind == Kind::Range => self.length(until, &key).await.map(ends_before),
                Err(fault) => Err(fault),
            }
        };
        if found.as_ref().is_err_and(|fault| fault.kind == Kind::NoSuchKey) {
            // Missing, or the whole bucket is another one.
            self.look_again(until).await?;
        }
        self.told(found)
    }

    pub(super) async fn list(
        &self,
        volume: VolumeId,
        kind: ObjectKind,
        after: Option<ObjectName>,
        limit: usize,
    ) -> Result<Vec<ObjectName>, BackendError> {
        let of_kind = |name: &ObjectName| name.volume() == volume && name.kind() == kind;
        let parse = |key: &str| {
            let name = self.within(key)?.parse().ok();
            name.filter(|name| of_kind(name) && after.is_none_or(|after| *name > after))
        };
        let listing = Listing {
            prefix: format!("{}{volume}/{}/", self.folder, kind.as_str()),
            after: after.map(|after| self.key(after)),
            is_folders: false,
            at_once: limit.clamp(1, LISTED_AT_ONCE_MAX),
        };
        self.listed(listing, limit, parse).await
    }

    /// What lies in a folder of a volume's name makes it one: to look whether it is an object would take a request for
    /// each volume.
    pub(super) async fn list_volumes(
        &self,
        after: Option<VolumeId>,
        limit: usize,
    ) -> Result<Vec<VolumeId>, BackendError> {
        let parse = |key: &str| {
            let volume: VolumeId = self.within(key)?.parse().ok()?;
            Some(volume).filter(|volume| after.is_none_or(|after| *volume > after))
        };
        let listing = Listing {
            prefix: self.folder.clone(),
            // Behind all keys of that volume: `0` comes after `/`, and ids are all of one length.
            after: after.map(|after| format!("{}{after}0", self.folder)),
            is_folders: true,
            at_once: limit.clamp(1, LISTED_AT_ONCE_MAX),
        };
        self.listed(listing, limit, parse).await
    }

    pub(super) async fn delete(&self, name: ObjectName) -> Result<(), BackendError> {
        let until = self.retries.until();
        self.ready(until).await?;
        let key = self.key(name);
        let _turn = self.turns.take(&key).await;
        let done = self
            .retries
            .run(self.call(until, 0, "DELETE", &key), || self.objects.delete(&key))
            .await;
        self.told(done)
    }

    /// Nothing may be wrong with it as far as is known; looks again if something was.
    pub(super) async fn is_there(&self) -> Result<(), BackendError> {
        self.ready(self.retries.until()).await
    }

    async fn put(&self, until: Instant, object: &SealedObject, put: Put) -> Result<(), BackendError> {
        let key = self.key(object.name());
        let _turn = self.turns.take(&key).await;
        let bytes = object.to_stored();
        let in_parts = bytes.len() as u64 > self.multipart_above;
        // Where the server does not keep what is there, and with parts, where not all do that keep it otherwise.
        if put == Put::New && (in_parts || !self.is_conditional()) {
            match self.length(until, &key).await {
                Err(fault) if fault.kind == Kind::NoSuchKey => {}
                found => return self.told(found.and(Err(Fault::new(Kind::Exists, String::new())))),
            }
        }
        let put = if self.is_conditional() { put } else { Put::Over };
        let done = if in_parts {
            self.put_parts(until, &key, bytes, put).await
        } else {
            let call = self.call(until, bytes.len() as u64, "PUT", &key);
            self.retries
                .run(call, || self.objects.put(&key, bytes.clone(), put))
                .await
        };
        self.told(done)
    }

    async fn put_parts(&self, until: Instant, key: &str, bytes: Bytes, put: Put) -> Result<(), Fault> {
        let begin = self.call(until, 0, "POST (begin parts of)", key);
        let id = self.retries.run(begin, || self.objects.begin_parts(key)).await?;
        let done = self.put_each(until, key, &id, &bytes, put).await;
        match done {
            // An answer to the completion was lost, and it was asked again.
            Err(fault) if fault.kind == Kind::NoSuchUpload && put == Put::New => {
                let there = self.length(until, key).await;
                Err(there.map_or(fault, |_| Fault::new(Kind::Exists, String::new())))
            }
            Err(fault) => {
                // Left to the bucket's rules if this does not succeed; the fault before it is the one to tell.
                let _ = tokio::time::timeout(Duration::from_secs(2), self.objects.abort(key, &id)).await;
                Err(fault)
            }
            done => done,
        }
    }

    async fn put_each(
        &self,
        until: Instant,
        key: &str,
        id: &String,
        bytes: &Bytes,
        put: Put,
    ) -> Result<(), Fault> {
        let count = bytes.len().div_ceil(PART_BYTES);
        let part = |index: usize| async move {
            let start = index * PART_BYTES;
            let part = bytes.slice(start..bytes.len().min(start + PART_BYTES));
            let call = self.call(until, part.len() as u64, "PUT (a part of)", key);
            self.retries
                .run(call, || self.objects.put_part(key, id, index, part.clone()))
                .await
        };
        let parts: Vec<_> = stream::iter((0..count).map(part))
            .buffered(PARTS_AT_ONCE)
            .try_collect()
            .await?;
        let complete = |put| {
            let call = self.call(until, 0, "POST (complete)", key);
            let parts = &parts;
            self.retries
                .run(call, move || self.objects.complete(key, id, parts.clone(), put))
        };
        match complete(put).await {
            // A server that keeps what is there from puts, and not from completions. That nothing is there was seen before.
            Err(fault) if fault.kind == Kind::NotImplemented && put == Put::New => complete(Put::Over).await,
            done => done,
        }
    }

    pub(super) async fn get(
        &self,
        until: Instant,
        key: &str,
        offset: u64,
        length: u64,
    ) -> Result<Piece, Fault> {
        let call = self.call(until, length, "GET", key);
        self.retries
            .run(call, || self.objects.get(key, offset, length))
            .await
    }

    /// Bytes of the whole object.
    async fn length(&self, until: Instant, key: &str) -> Result<u64, Fault> {
        match self.get(until, key, 0, 1).await {
            Err(fault) if fault.kind == Kind::Range => Ok(0),
            found => found.map(|piece| piece.whole),
        }
    }

    async fn listed<T: Ord + Copy>(
        &self,
        listing: Listing,
        limit: usize,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<Vec<T>, BackendError> {
        let until = self.retries.until();
        self.ready(until).await?;
        let mut found: Vec<T> = Vec::new();
        let mut next = None;
        while found.len() < limit {
            let call = self.call(until, 0, "GET the list of", &listing.prefix);
            let page = self
                .retries
                .run(call, || self.objects.list(&listing, next.clone()))
                .await;
            let page = self.told(page)?;
            found.extend(page.keys.iter().filter_map(|key| parse(key)));
            next = page.next;
            if next.is_none() {
                break;
            }
        }
        if !found.is_sorted() {
            return Err(BackendError::Denied {
                why: format!(
                    "{} lists keys out of order; right would be a server that sorts them as S3 does (its Express \
                     buckets do not)",
                    self.place
                ),
            });
        }
        found.truncate(limit);
        Ok(found)
    }

    pub(super) fn call(&self, until: Instant, bytes: u64, doing: &str, key: &str) -> Call {
        Call {
            until,
            bytes,
            what: format!("{doing} {key} in {}", self.place),
        }
    }

    /// A fault as the caller is told. After one that is not about the object alone the bucket is looked at again: who knows what comes
    /// back, and a bucket that was refused may have been another since.
    pub(super) fn told<T>(&self, done: Result<T, Fault>) -> Result<T, BackendError> {
        if done.as_ref().is_err_and(Fault::is_of_bucket) {
            self.standing.doubt();
        }
        done.map_err(BackendError::from)
    }

    pub(super) fn place(&self) -> &str {
        &self.place
    }

    fn key(&self, name: ObjectName) -> String {
        format!("{}{name}", self.folder)
    }

    /// A key without the folder.
    fn within<'a>(&self, key: &'a str) -> Option<&'a str> {
        key.strip_prefix(self.folder.as_str())
    }
}

/// What is read of an object that ends before.
fn ends_before(stored_len: u64) -> StoredRange {
    StoredRange {
        bytes: Bytes::new(),
        stored_len,
    }
}
