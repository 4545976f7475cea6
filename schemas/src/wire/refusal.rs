//! What a service answers when it does not do what was asked.
//!
//! Keeps: what the caller has to do, why, and a text for people.
//! Order: none.
//! Crash: nothing; a refusal is a value.
//! Knows no protocol.

use serde::{Deserialize, Serialize};

use super::msgpack::{put_array, put_str, put_uint, skip, take_fields, take_str, take_uint};
use crate::DecodeError;

/// What the caller has to do. Only the fs-router's routing core and control clients act on it; everyone else
/// passes it on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Remedy {
    /// Look the owner up again, open there, send again.
    Reroute,
    /// Send the same again after a while: the cause passes (a restart, a full buffer, an absent back end).
    Retry,
    /// Do not send it again: the request itself is wrong.
    Reject,
    /// Stored data is damaged and no good copy is left; the text names volume, address and object.
    Damaged,
}

/// What kind of refusal it is, for front ends that have to pick an errno.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalCode {
    /// An argument is wrong.
    Invalid,
    /// Beyond the end of the volume.
    OutOfRange,
    /// The volume or export takes no writes.
    ReadOnly,
    /// No space: a quota, or the volume's largest size.
    NoSpace,
    /// No such volume, object, key or path.
    NotFound,
    /// It is there already.
    Exists,
    /// This service is not the owner, or no longer.
    NotOwner,
    /// The handle is not open here (a restart since).
    NotOpen,
    /// The service, or what it needs, is not there right now.
    Unavailable,
    /// The volume waits for its owner or for an operator (`sconce volume takeover --force`).
    WaitsForOwner,
    /// A compare-and-swap found another revision.
    Conflict,
    /// A directory that is not empty.
    NotEmpty,
    /// A file where a directory is needed.
    NotDirectory,
    /// A directory where a file is needed.
    IsDirectory,
    /// Stored data whose CRC does not hold.
    Corrupt,
    /// The peer speaks another major version, or lacks what was asked.
    Unsupported,
    /// A bug on our side: the text has what is known.
    Internal,
    /// Another front end has write access to the volume, or it was taken from this one.
    NoAccess,
}

const REMEDIES: [Remedy; 4] = [Remedy::Reroute, Remedy::Retry, Remedy::Reject, Remedy::Damaged];
const CODES: [RefusalCode; 18] = [
    RefusalCode::Invalid,
    RefusalCode::OutOfRange,
    RefusalCode::ReadOnly,
    RefusalCode::NoSpace,
    RefusalCode::NotFound,
    RefusalCode::Exists,
    RefusalCode::NotOwner,
    RefusalCode::NotOpen,
    RefusalCode::Unavailable,
    RefusalCode::WaitsForOwner,
    RefusalCode::Conflict,
    RefusalCode::NotEmpty,
    RefusalCode::NotDirectory,
    RefusalCode::IsDirectory,
    RefusalCode::Corrupt,
    RefusalCode::Unsupported,
    RefusalCode::Internal,
    RefusalCode::NoAccess,
];

/// A refusal: what the caller has to do, what kind it is, and a text for people that names the thing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{text}")]
pub struct Refusal {
    /// What the caller has to do.
    pub remedy: Remedy,
    /// What kind it is.
    pub code: RefusalCode,
    /// For people: the thing, the value, what would be right.
    pub text: String,
}

impl Refusal {
    /// Longest text that travels; a longer one is cut.
    pub const TEXT_MAX: usize = 1024;

    /// A refusal that says "do not send this again".
    pub fn reject(code: RefusalCode, text: impl Into<String>) -> Self {
        Self {
            remedy: Remedy::Reject,
            code,
            text: text.into(),
        }
    }

    /// A refusal that says "send the same again after a while".
    pub fn retry(code: RefusalCode, text: impl Into<String>) -> Self {
        Self {
            remedy: Remedy::Retry,
            code,
            text: text.into(),
        }
    }

    /// A refusal that says "look for the owner again".
    pub fn reroute(code: RefusalCode, text: impl Into<String>) -> Self {
        Self {
            remedy: Remedy::Reroute,
            code,
            text: text.into(),
        }
    }

    /// A refusal that says "the data is damaged".
    pub fn damaged(text: impl Into<String>) -> Self {
        Self {
            remedy: Remedy::Damaged,
            code: RefusalCode::Corrupt,
            text: text.into(),
        }
    }

    /// Appends `[remedy, code, text]`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let cut = self.text.floor_char_boundary(Self::TEXT_MAX);
        put_array(out, 3);
        put_uint(
            out,
            REMEDIES.iter().position(|r| *r == self.remedy).unwrap_or(0) as u64,
        );
        put_uint(
            out,
            CODES.iter().position(|c| *c == self.code).unwrap_or(0) as u64,
        );
        put_str(out, &self.text[..cut]);
    }

    /// Takes `[remedy, code, text]` off the front. An unknown code, of a newer minor version, reads as `Internal`.
    ///
    /// # Errors
    /// Not well-formed.
    pub fn decode(input: &mut &[u8]) -> Result<Self, DecodeError> {
        let more = take_fields(input, "refusal", 3)?;
        let remedy: usize = take_uint(input, "refusal.remedy")?;
        let code: usize = take_uint(input, "refusal.code")?;
        let text = take_str(input, "refusal.text", Self::TEXT_MAX)?.to_owned();
        skip(input, "refusal", more)?;
        let remedy = *REMEDIES.get(remedy).ok_or_else(|| DecodeError::Value {
            what: "refusal.remedy",
            found: remedy.to_string(),
            expected: "0 to 3",
        })?;
        Ok(Self {
            remedy,
            code: CODES.get(code).copied().unwrap_or(RefusalCode::Internal),
            text,
        })
    }
}
