//! What a back end is: a store of immutable objects in their envelopes.
//!
//! Keeps: the primitives that a directory, an S3 bucket or a test's memory must offer, and what they may answer.
//! Order: an object that `put_new` or `replace` answered for is durable; so is one that was there already.
//! Crash: an object is there whole or not at all.
//! Knows no envelope: whether the bytes are good is `Checked`'s to see, for every kind of back end alike.

use bytes::Bytes;
use futures_util::future::BoxFuture;
use sconce_schemas::object::ObjectKind;
use sconce_schemas::stored_object::SealedObject;
use sconce_schemas::{BackendId, ByteLen, ObjectName, VolumeId};

/// An answer that is on its way.
pub type Pending<'a, T> = BoxFuture<'a, Result<T, BackendError>>;

/// A store of immutable objects.
///
/// A future that is dropped may leave its work running; the work is idempotent, so nothing is lost by that.
pub trait Backend: Send + Sync {
    /// Its name in the settings and in placement maps.
    fn name(&self) -> &str;

    /// Stores an object that is not there yet, durably.
    ///
    /// # Errors
    /// `Exists`: something has this name already, and is durable. `Full`, `Unavailable`, `Denied`.
    fn put_new(&self, object: SealedObject) -> Pending<'_, ()>;

    /// Stores an object whatever is there, durably and at once: a reader sees the old bytes or the new ones. Only
    /// for repair, in place of a copy that is known to be bad.
    ///
    /// # Errors
    /// `Full`, `Unavailable`, `Denied`.
    fn replace(&self, object: SealedObject) -> Pending<'_, ()>;

    /// Reads up to `length` stored bytes from `offset`; fewer, or none, where the object ends before.
    ///
    /// # Errors
    /// `NotFound`; `Damaged`: what has this name cannot be read as an object; `Unavailable`, `Denied`.
    fn read(&self, name: ObjectName, offset: u64, length: u64) -> Pending<'_, StoredRange>;

    /// Names of a volume's objects of one kind, sorted, those after `after`, at most `limit`. Whatever else lies
    /// there is left out.
    ///
    /// # Errors
    /// `Unavailable`, `Denied`.
    fn list(
        &self,
        volume: VolumeId,
        kind: ObjectKind,
        after: Option<ObjectName>,
        limit: usize,
    ) -> Pending<'_, Vec<ObjectName>>;

    /// Volumes that have any object here, sorted, those after `after`, at most `limit`.
    ///
    /// # Errors
    /// `Unavailable`, `Denied`.
    fn list_volumes(&self, after: Option<VolumeId>, limit: usize) -> Pending<'_, Vec<VolumeId>>;

    /// Removes an object, durably; one that is not there is no error.
    ///
    /// # Errors
    /// `Unavailable`, `Denied`.
    fn delete(&self, name: ObjectName) -> Pending<'_, ()>;

    /// How much fits.
    ///
    /// # Errors
    /// `Unavailable`, `Denied`.
    fn space(&self) -> Pending<'_, Space>;
}

/// A back end that shows who it is, so that another one in its place is not taken for it (docs/decisions/0022).
pub trait Identified: Backend {
    /// Looks at it now: gives it an identity if this is its very first start, and checks the identity otherwise.
    ///
    /// # Errors
    /// `Denied`: it holds something else, or is another back end. `Unavailable`: it is not there, or has lost its
    /// identity.
    fn attach(&self) -> Pending<'_, BackendId>;

    /// Changes the identity that it must have, where another service was first to register one.
    fn expect(&self, id: BackendId);
}

/// Stored bytes that were read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredRange {
    /// The bytes.
    pub bytes: Bytes,
    /// Length of the whole object in its envelope, in bytes.
    pub stored_len: u64,
}

/// Space of a back end, where it knows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Space {
    /// What it can hold.
    pub capacity: Option<ByteLen>,
    /// What is left of it.
    pub free: Option<ByteLen>,
}

/// Why a back end did not do what was asked. Names no back end and no object: the caller knows both.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BackendError {
    /// It has no such object.
    #[error("it has no such object")]
    NotFound,
    /// Something else has this name.
    #[error("it has another object of this name")]
    Exists,
    /// What has this name is not, or not any longer, the object that was stored.
    #[error("its copy is damaged: {what}")]
    Damaged {
        /// What is wrong with it.
        what: String,
    },
    /// What is there is whole, and cannot be decrypted here.
    #[error("its fragment cannot be decrypted: {why}")]
    Locked {
        /// Which key is missing.
        why: String,
    },
    /// No space is left.
    #[error("it is full")]
    Full,
    /// It cannot be reached, or does not work, now.
    #[error("it is unavailable: {why}")]
    Unavailable {
        /// What was tried and what the answer was.
        why: String,
    },
    /// It refuses this service: a person has to change something.
    #[error("it refuses access: {why}")]
    Denied {
        /// What was tried and what the answer was.
        why: String,
    },
}
