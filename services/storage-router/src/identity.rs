//! The line by which a back end is known: which back end it is, and that it is there at all (docs/decisions/0022).
//!
//! Keeps: one line, `sconce-backend 1 <name> <32 hex digits>`.
//! Order: it is durable before the first object.
//! Crash: it is there whole or not at all.
//! Knows no kind of back end, and no registry, where the identity is remembered as well.

use std::fmt;

use sconce_schemas::BackendId;

/// Name of the file in the back end's directory, of the key in its bucket, and first word of the line in it.
pub const IDENTITY_FILE: &str = "sconce-backend";

/// Longest line that can be one: a name, an id and two words.
pub(crate) const IDENTITY_BYTES_MAX: u64 = 256;

/// What the line says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) name: String,
    pub(crate) id: BackendId,
}

impl Identity {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut words = text.strip_suffix('\n')?.split(' ');
        let (IDENTITY_FILE, "1") = (words.next()?, words.next()?) else {
            return None;
        };
        let identity = Self {
            name: words.next()?.to_owned(),
            id: words.next()?.parse().ok()?,
        };
        words.next().is_none().then_some(identity)
    }
}

/// The line, with its end.
impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{IDENTITY_FILE} 1 {} {}", self.name, self.id)
    }
}
