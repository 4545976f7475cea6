//! Our keys in etcd: below a prefix, so that an etcd is shared with others.
//!
//! Keeps: the prefix.
//! Order: below the prefix etcd sorts our keys as we do.
//! Crash: nothing.
//! Knows no requests.

use etcd_client::KeyValue;
use sconce_schemas::wire::registry::{Entry, Revision};

use super::to_u64;
use crate::Invalid;

/// A key that nobody writes: reading it tells whether etcd answers.
pub(super) const PROBE: &str = "sconce.probe";

/// The prefix below which all keys are.
#[derive(Debug, Clone)]
pub(super) struct Keys {
    prefix: String,
}

impl Keys {
    pub(super) fn new(prefix: &str) -> Result<Self, Invalid> {
        if prefix.ends_with('/') && prefix.len() <= 256 {
            let prefix = prefix.to_owned();
            return Ok(Self { prefix });
        }
        let expected = "at most 256 bytes with '/' at the end, such as /sconce/";
        Err(Invalid::new("prefix", format!("{prefix:?}"), expected))
    }

    /// A key as etcd has it.
    pub(super) fn stored(&self, key: &str) -> Vec<u8> {
        [self.prefix.as_bytes(), key.as_bytes()].concat()
    }

    /// The range of the keys that start with `prefix` and sort after `after`: its start, and what is behind its end.
    pub(super) fn range(&self, prefix: &str, after: Option<&str>) -> (Vec<u8>, Vec<u8>) {
        let mut start = self.stored(after.filter(|after| *after >= prefix).unwrap_or(prefix));
        if after.is_some_and(|after| after >= prefix) {
            // The next key that there can be.
            start.push(0);
        }
        let mut end = self.stored(prefix);
        // UTF-8 has no byte 255, so the last byte has a successor.
        if let Some(last) = end.last_mut() {
            *last += 1;
        }
        (start, end)
    }

    /// What etcd has, as we have it; `None` for what we cannot have written.
    pub(super) fn entry(&self, kv: KeyValue) -> Option<Entry> {
        let revision = Revision(to_u64(kv.mod_revision()));
        let (key, value) = kv.into_key_value();
        let key = self.key(&key)?;
        Some(Entry { key, value, revision })
    }

    /// A key of etcd's, as we have it; `None` for what we cannot have written.
    pub(super) fn key(&self, stored: &[u8]) -> Option<String> {
        let key = stored.strip_prefix(self.prefix.as_bytes())?;
        String::from_utf8(key.to_vec()).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_hold_the_prefix_and_what_follows_a_key() {
        let keys = Keys::new("/sconce/").unwrap();
        let text = |(start, end): (Vec<u8>, Vec<u8>)| {
            (String::from_utf8(start).unwrap(), String::from_utf8(end).unwrap())
        };
        assert_eq!(text(keys.range("", None)), ("/sconce/".into(), "/sconce0".into()));
        assert_eq!(
            text(keys.range("a/", None)),
            ("/sconce/a/".into(), "/sconce/a0".into())
        );
        let after = text(keys.range("a/", Some("a/x")));
        assert_eq!(after, ("/sconce/a/x\0".into(), "/sconce/a0".into()));
        assert_eq!(text(keys.range("a/", Some("A"))).0, "/sconce/a/");
    }

    #[test]
    fn a_prefix_ends_with_a_slash() {
        for wrong in ["", "sconce", "/sconce"] {
            let error = Keys::new(wrong).unwrap_err().to_string();
            assert!(
                error.contains(&format!("{wrong:?}")) && error.contains("/sconce/"),
                "{error}"
            );
        }
    }
}
