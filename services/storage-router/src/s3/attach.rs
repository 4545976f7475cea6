//! Whether a bucket is the one that it should be, and what its server can do.
//!
//! Keeps: the identity that it must have, whether it had it when it was last looked at, and whether the server keeps
//! what is there from a put that asks for it.
//! Order: the identity is there before the first object.
//! Crash: a first start that ended in between is completed by the next.
//! Knows no objects. A bucket that lost its identity is unavailable, never begun anew (docs/decisions/0022).

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use sconce_schemas::BackendId;
use tokio::sync::OnceCell;
use tokio::time::Instant;

use super::bucket::Bucket;
use super::fault::{Fault, Kind};
use super::objects::{Listing, Put};
use crate::backend::BackendError;
use crate::identity::{IDENTITY_BYTES_MAX, IDENTITY_FILE, Identity};

/// What is known of a bucket.
#[derive(Debug)]
pub(super) struct Standing {
    expected: Mutex<Option<BackendId>>,
    /// It was the right one when it was last looked at, and nothing has gone wrong since.
    is_right: AtomicBool,
    /// One looks, and the others wait for what it finds: here is what it was, where that is an error.
    looking: tokio::sync::Mutex<Option<BackendError>>,
    /// How often somebody has looked.
    looks: AtomicU64,
    /// Whether `If-None-Match` is heeded: found out once.
    is_conditional: OnceCell<bool>,
}

impl Standing {
    pub(super) fn new(expected: Option<BackendId>) -> Self {
        Self {
            expected: Mutex::new(expected),
            is_right: AtomicBool::new(false),
            looking: tokio::sync::Mutex::default(),
            looks: AtomicU64::new(0),
            is_conditional: OnceCell::new(),
        }
    }

    /// It is looked at again before the next request.
    pub(super) fn doubt(&self) {
        self.is_right.store(false, Ordering::Relaxed);
    }

    fn expected(&self) -> Option<BackendId> {
        *self.expected.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Bucket {
    /// See [`crate::backend::Identified::attach`].
    pub(super) async fn attach(&self, fresh: BackendId) -> Result<BackendId, BackendError> {
        let until = self.retries.until();
        let id = match self.standing.expected() {
            Some(id) => id,
            None => self.first_identity(until, fresh).await?,
        };
        self.expect(id);
        self.ready(until).await?;
        Ok(id)
    }

    pub(super) fn expect(&self, id: BackendId) {
        let expected = &self.standing.expected;
        *expected.lock().unwrap_or_else(PoisonError::into_inner) = Some(id);
        self.standing.doubt();
    }

    /// Returns when the bucket is the right one as far as is known; looks at it if that is in doubt.
    pub(super) async fn ready(&self, until: Instant) -> Result<(), BackendError> {
        if self.standing.is_right.load(Ordering::Relaxed) {
            return Ok(());
        }
        let looks = self.standing.looks.load(Ordering::Relaxed);
        let mut found = self.standing.looking.lock().await;
        if self.standing.is_right.load(Ordering::Relaxed) {
            return Ok(());
        }
        // Somebody looked meanwhile: all who waited would come to the same, one after the other.
        if let Some(error) = found
            .as_ref()
            .filter(|_| self.standing.looks.load(Ordering::Relaxed) != looks)
        {
            return Err(error.clone());
        }
        let looked = self.look(until).await;
        self.standing.is_right.store(looked.is_ok(), Ordering::Relaxed);
        self.standing.looks.fetch_add(1, Ordering::Relaxed);
        *found = looked.clone().err();
        looked
    }

    async fn look(&self, until: Instant) -> Result<(), BackendError> {
        let identity = self.identify(until).await?;
        let probe = || self.probe(until, &identity);
        self.standing.is_conditional.get_or_try_init(probe).await?;
        Ok(())
    }

    /// Looks whether the bucket is still the right one: something that should be there is not.
    pub(super) async fn look_again(&self, until: Instant) -> Result<(), BackendError> {
        self.standing.doubt();
        self.ready(until).await
    }

    /// Whether the server keeps what is there from a put with `If-None-Match`.
    pub(super) fn is_conditional(&self) -> bool {
        self.standing.is_conditional.get() == Some(&true)
    }

    async fn identify(&self, until: Instant) -> Result<Identity, BackendError> {
        let expected = self
            .standing
            .expected()
            .ok_or_else(|| BackendError::Unavailable {
                why: format!("{} was never attached", self.place()),
            })?;
        let found = self.identity(until).await?.ok_or_else(|| self.lost())?;
        if found.name != self.name {
            return Err(BackendError::Denied {
                why: format!(
                    "{} is back end {:?} ({}); right would be the bucket and folder of {:?}",
                    self.place(),
                    found.name,
                    self.identity_key(),
                    self.name
                ),
            });
        }
        if found.id != expected {
            return Err(BackendError::Unavailable {
                why: format!(
                    "{} has identity {}; the registry knows {:?} as {expected} (another bucket?)",
                    self.place(),
                    found.id,
                    self.name
                ),
            });
        }
        Ok(found)
    }

    /// The identity of a bucket that nobody has registered: its own, or a fresh one where it holds nothing.
    async fn first_identity(&self, until: Instant, fresh: BackendId) -> Result<BackendId, BackendError> {
        if let Some(found) = self.identity(until).await? {
            return Ok(found.id);
        }
        if let Some(foreign) = self.foreign_key(until).await? {
            return Err(BackendError::Denied {
                why: format!(
                    "{} holds {foreign:?} but no {}, so it is not a back end's; right would be an empty bucket, or a \
                     `folder` of its own in it",
                    self.place(),
                    self.identity_key()
                ),
            });
        }
        let identity = Identity {
            name: self.name.clone(),
            id: fresh,
        };
        match self.put_identity(until, &identity, Put::New).await {
            // Whoever was first, what counts is what is there afterwards.
            Ok(()) => {}
            Err(fault) if fault.kind == Kind::Exists => {}
            Err(fault) if fault.kind == Kind::NotImplemented => {
                let put = self.put_identity(until, &identity, Put::Over).await;
                self.told(put)?;
            }
            Err(fault) => return Err(fault.into()),
        }
        let found = self.identity(until).await?;
        found.map(|found| found.id).ok_or_else(|| self.lost())
    }

    /// Asks the server not to overwrite the identity, with the bytes that it has anyway.
    async fn probe(&self, until: Instant, identity: &Identity) -> Result<bool, BackendError> {
        let put = self.put_identity(until, identity, Put::New).await;
        let is_conditional = match put {
            Err(fault) if fault.kind == Kind::Exists => true,
            Err(fault) if fault.kind == Kind::NotImplemented => false,
            put => self.told(put).map(|()| false)?,
        };
        if !is_conditional {
            tracing::warn!(
                backend = self.name,
                place = self.place(),
                "the server overwrites in spite of If-None-Match: this service looks before each put, and two \
                 storage-routers must not use this back end at once"
            );
        }
        Ok(is_conditional)
    }

    async fn put_identity(&self, until: Instant, identity: &Identity, put: Put) -> Result<(), Fault> {
        let key = self.identity_key();
        let text = Bytes::from(identity.to_string());
        let call = self.call(until, 0, "PUT", &key);
        self.retries
            .run(call, || self.objects.put(&key, text.clone(), put))
            .await
    }

    async fn identity(&self, until: Instant) -> Result<Option<Identity>, BackendError> {
        let key = self.identity_key();
        let bytes = match self.get(until, &key, 0, IDENTITY_BYTES_MAX + 1).await {
            Err(fault) if fault.kind == Kind::NoSuchKey => return Ok(None),
            // It is there and empty.
            Err(fault) if fault.kind == Kind::Range => Bytes::new(),
            piece => self.told(piece)?.bytes,
        };
        let identity = std::str::from_utf8(&bytes).ok().and_then(Identity::parse);
        identity.map(Some).ok_or_else(|| BackendError::Unavailable {
            why: format!(
                "{key} in {} is not of the form \"sconce-backend 1 <name> <id>\"",
                self.place()
            ),
        })
    }

    /// A key in the folder that is not ours.
    async fn foreign_key(&self, until: Instant) -> Result<Option<String>, BackendError> {
        let listing = Listing {
            prefix: self.folder.clone(),
            after: None,
            is_folders: false,
            at_once: 3,
        };
        let call = self.call(until, 0, "GET the list of", &self.folder);
        let page = self.retries.run(call, || self.objects.list(&listing, None)).await;
        let keys = self.told(page)?.keys;
        // Some programs mark a folder by a key of its name.
        let marker = self.folder.trim_end_matches('/');
        let is_foreign = |key: &String| *key != self.identity_key() && key.trim_end_matches('/') != marker;
        Ok(keys.into_iter().find(is_foreign))
    }

    fn identity_key(&self) -> String {
        format!("{}{IDENTITY_FILE}", self.folder)
    }

    fn lost(&self) -> BackendError {
        BackendError::Unavailable {
            why: format!(
                "{} has no {} any longer (another bucket?)",
                self.place(),
                self.identity_key()
            ),
        }
    }
}
