//! How a protocol says no.

use sconce_schemas::wire::Refusal;
use sconce_schemas::wire::registry::RegistryReply;
use sconce_schemas::wire::storage::StorageReply;
use sconce_schemas::wire::volume::VolumeReply;

/// A reply that can refuse. The bus refuses in the service's place: a request that it could not read, or whose
/// [`Reply`](crate::Reply) was dropped.
pub trait Refuse {
    /// The reply that carries `refusal`.
    fn refused(refusal: Refusal) -> Self;
}

impl Refuse for VolumeReply {
    fn refused(refusal: Refusal) -> Self {
        VolumeReply::Refused(refusal)
    }
}

impl Refuse for StorageReply {
    fn refused(refusal: Refusal) -> Self {
        StorageReply::Refused(refusal)
    }
}

impl Refuse for RegistryReply {
    fn refused(refusal: Refusal) -> Self {
        RegistryReply::Refused { refusal }
    }
}
