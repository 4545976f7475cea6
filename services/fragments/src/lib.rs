//! Objects as fragments: compressed, encrypted, and coded so that some of the fragments are enough.
//!
//! Keeps: nothing; everything here is a pure function of an object, a policy and a key.
//! Order: compress, then encrypt, then code. So whoever rebuilds a fragment needs no key, makes the very bytes that
//! were lost, and encrypts nothing a second time.
//! Crash: nothing.
//! Knows no back end and no file (docs/decisions/0200).

mod code;
mod encode;
mod key;
mod squeeze;

pub use code::rebuild;
pub use encode::{Encoded, Policy, assemble, encode, encode_as, open_chunk};
pub use key::{Key, KeyError, Keyring};

/// Why a chunk cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// It is not the chunk that was stored.
    #[error("{0}")]
    Damaged(String),
    /// There is no such key here.
    #[error(
        "it is encrypted with key {id}, which is not among the keys here ({known}); right would be that key too"
    )]
    NoKey {
        /// The key's id.
        id: u32,
        /// The ids of the keys that are here.
        known: String,
    },
    /// The key of this id is another one.
    #[error(
        "it is encrypted with another key {id} than the one here: its fingerprint is {found:016x}, \
         that of the key here {here:016x}"
    )]
    WrongKey {
        /// The key's id.
        id: u32,
        /// Fingerprint of the key that it was encrypted with.
        found: u64,
        /// Fingerprint of the key of this id that is here.
        here: u64,
    },
}

/// Why an object cannot be made into fragments.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// The policy asks for a key and there is none.
    #[error("it is to be encrypted, and there is no key here")]
    NoKey,
    /// The key that it was encrypted with before is not here.
    #[error(transparent)]
    Locked(#[from] OpenError),
    /// The object is too large, or the code cannot do what the policy asks.
    #[error("{0}")]
    Invalid(String),
}
