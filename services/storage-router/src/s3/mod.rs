//! A back end in a bucket of an S3 server.
//!
//! Keeps: each object as the key `<folder>/<volume>/<kind>/<leaf>`, in its envelope; the key `<folder>/sconce-backend`.
//! Order: a put is answered when the server has answered it: S3 answers for what is durable.
//! Crash: a key is there whole or not at all; parts of an upload that was cut short stay for the bucket's own rules.
//! Knows no envelope. Which client, and what its server has to offer: docs/decisions/0157 and 0156.
//!
//! From the caller to the server: [`S3Backend`] hands a request to its `thread`, where `bucket` makes it of requests
//! about keys (`objects`), which `retry` sends until they succeed; `transport` carries each once, and makes a `fault`
//! of an answer that is no success.

mod attach;
mod bucket;
mod credentials;
mod fault;
mod objects;
mod retry;
mod settings;
mod thread;
mod transport;
mod turns;

use std::sync::Arc;
use std::time::Duration;

use sconce_runtime::Chance;
use sconce_schemas::object::ObjectKind;
use sconce_schemas::stored_object::SealedObject;
use sconce_schemas::{BackendId, ObjectName, VolumeId};

use crate::backend::{Backend, BackendError, Identified, Pending, Space, StoredRange};
use bucket::Bucket;
use thread::Thread;

pub use credentials::Credentials;
pub use settings::{S3Settings, Style};

/// A back end in a bucket.
#[derive(Debug)]
pub struct S3Backend {
    name: String,
    bucket: Arc<Bucket>,
    thread: Thread,
}

impl S3Backend {
    /// The back end `name`; the server is asked with the first request, or with [`Identified::attach`]. A request
    /// gives up within `deadline`, with the reason. `expected` is the identity that it must have, if it is known.
    ///
    /// # Errors
    /// There is no access key in the environment, the certificates cannot be read, or no thread can be started.
    pub fn new(
        name: &str,
        settings: &S3Settings,
        deadline: Duration,
        expected: Option<BackendId>,
    ) -> Result<Self, String> {
        let thread = Thread::start(name).map_err(|error| format!("no thread for it: {error}"))?;
        Ok(Self {
            name: name.to_owned(),
            bucket: Arc::new(Bucket::new(name, settings, deadline, expected)?),
            thread,
        })
    }

    /// What `ask` makes of the bucket, on the thread.
    fn on_thread<T: Send + 'static, F: Future<Output = Result<T, BackendError>> + Send + 'static>(
        &self,
        ask: impl FnOnce(Arc<Bucket>) -> F,
    ) -> Pending<'_, T> {
        Box::pin(self.thread.run(ask(Arc::clone(&self.bucket))))
    }
}

impl Backend for S3Backend {
    fn name(&self) -> &str {
        &self.name
    }

    fn put_new(&self, object: SealedObject) -> Pending<'_, ()> {
        self.on_thread(|bucket| async move { bucket.put_new(&object).await })
    }

    fn replace(&self, object: SealedObject) -> Pending<'_, ()> {
        self.on_thread(|bucket| async move { bucket.replace(&object).await })
    }

    fn read(&self, name: ObjectName, offset: u64, length: u64) -> Pending<'_, StoredRange> {
        self.on_thread(move |bucket| async move { bucket.read(name, offset, length).await })
    }

    fn list(
        &self,
        volume: VolumeId,
        kind: ObjectKind,
        after: Option<ObjectName>,
        limit: usize,
    ) -> Pending<'_, Vec<ObjectName>> {
        self.on_thread(move |bucket| async move { bucket.list(volume, kind, after, limit).await })
    }

    fn list_volumes(&self, after: Option<VolumeId>, limit: usize) -> Pending<'_, Vec<VolumeId>> {
        self.on_thread(move |bucket| async move { bucket.list_volumes(after, limit).await })
    }

    fn delete(&self, name: ObjectName) -> Pending<'_, ()> {
        self.on_thread(move |bucket| async move { bucket.delete(name).await })
    }

    /// A bucket has no size that could be asked for. Asks the server nothing while it is known to be there.
    fn space(&self) -> Pending<'_, Space> {
        self.on_thread(|bucket| async move { bucket.is_there().await.map(|()| Space::default()) })
    }
}

impl Identified for S3Backend {
    fn attach(&self) -> Pending<'_, BackendId> {
        // Drawn here: a source of chance is not shared between threads.
        let fresh = BackendId(Chance::from_os().u128());
        self.on_thread(move |bucket| async move { bucket.attach(fresh).await })
    }

    fn expect(&self, id: BackendId) {
        self.bucket.expect(id);
    }
}
