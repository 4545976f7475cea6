//! How a protocol says no.

use sconce_schemas::NodeName;
use sconce_schemas::wire::registry::RegistryReply;
use sconce_schemas::wire::storage::StorageReply;
use sconce_schemas::wire::volume::VolumeReply;
use sconce_schemas::wire::{Foreign, Refusal, RefusalCode, Version};

/// A reply that can refuse. The bus refuses in the service's place: a request that it could not read, or whose
/// [`Reply`](crate::Reply) was dropped.
pub trait Refuse {
    /// The reply that carries `refusal`.
    fn refused(refusal: Refusal) -> Self;

    /// The refusal that this reply is, if it is one.
    fn refusal(&self) -> Option<&Refusal>;
}

/// Two that greet each other speak different major versions: `foreign` and this node.
pub(crate) fn another_major(foreign: &Foreign, node: &NodeName) -> Refusal {
    let (ours, theirs) = (Version::CURRENT, foreign.version);
    let older = if theirs.major < ours.major {
        &foreign.node
    } else {
        node
    };
    let text = format!(
        "{} speaks protocol {theirs}, {node} speaks {ours}, and these do not work together: upgrade {older}",
        foreign.node
    );
    Refusal::reject(RefusalCode::Unsupported, text)
}

impl Refuse for VolumeReply {
    fn refused(refusal: Refusal) -> Self {
        VolumeReply::Refused(refusal)
    }

    fn refusal(&self) -> Option<&Refusal> {
        match self {
            VolumeReply::Refused(refusal) => Some(refusal),
            _ => None,
        }
    }
}

impl Refuse for StorageReply {
    fn refused(refusal: Refusal) -> Self {
        StorageReply::Refused(refusal)
    }

    fn refusal(&self) -> Option<&Refusal> {
        match self {
            StorageReply::Refused(refusal) => Some(refusal),
            _ => None,
        }
    }
}

impl Refuse for RegistryReply {
    fn refused(refusal: Refusal) -> Self {
        RegistryReply::Refused { refusal }
    }

    fn refusal(&self) -> Option<&Refusal> {
        match self {
            RegistryReply::Refused { refusal } => Some(refusal),
            _ => None,
        }
    }
}
