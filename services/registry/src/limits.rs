//! What a registry takes at most: the same for every home, so that none can be filled or stalled by a request.
//!
//! Keeps: the limits and the checks, made before a home sees a request.
//! Order: none.
//! Crash: nothing.
//! Knows no home; but every limit is within what etcd takes in its default settings.

use std::collections::HashSet;
use std::time::Duration;

use sconce_schemas::wire::registry::Change;

use crate::Invalid;

/// Longest key and longest prefix, in bytes.
pub const KEY_BYTES_MAX: usize = 512;
/// Largest value, in bytes.
pub const VALUE_BYTES_MAX: usize = 1 << 20;
/// Most changes in a commit (etcd: 128 operations).
pub const CHANGES_MAX: usize = 100;
/// Largest sum of a commit's keys and values, in bytes (etcd: 1.5 MiB a request).
pub const COMMIT_BYTES_MAX: usize = 1_310_720;
/// Most entries that a listing is asked for.
pub const LIST_MAX: usize = 1000;
/// Shortest time to live of a lease (etcd counts in whole seconds and rounds up).
pub const TTL_MIN: Duration = Duration::from_millis(500);
/// Longest time to live of a lease.
pub const TTL_MAX: Duration = Duration::from_secs(24 * 3600);
/// Longest wait of one watch request; a longer one is asked again.
pub const WAIT_MAX: Duration = Duration::from_secs(30);
/// Most keys that one lease holds: their deletion is one commit.
pub const LEASE_KEYS_MAX: usize = 1000;

/// Bytes after which a page of a listing, or an answer to a watch, ends; at least one entry, or one commit, is
/// in it, so that the next one gets further.
pub(crate) const ANSWER_BYTES_MAX: usize = 1 << 20;
/// Events after which an answer to a watch ends.
pub(crate) const ANSWER_EVENTS_MAX: usize = 1000;

const _: () = assert!(VALUE_BYTES_MAX + KEY_BYTES_MAX <= COMMIT_BYTES_MAX);
const _: () = assert!(COMMIT_BYTES_MAX < sconce_schemas::registry_log::PAYLOAD_BYTES_MAX);
// A lease's end deletes its keys in one commit, which has to fit the journal.
const _: () =
    assert!(LEASE_KEYS_MAX * (KEY_BYTES_MAX + 64) < sconce_schemas::registry_log::PAYLOAD_BYTES_MAX);

pub(crate) fn check_key(key: &str) -> Result<(), Invalid> {
    if (1..=KEY_BYTES_MAX).contains(&key.len()) {
        return Ok(());
    }
    let start = &key[..key.floor_char_boundary(40)];
    let found = format!("{} bytes long ({start:?}…)", key.len());
    Err(Invalid::new(
        "key",
        found,
        format!("1 to {KEY_BYTES_MAX} bytes long"),
    ))
}

pub(crate) fn check_prefix(prefix: &str) -> Result<(), Invalid> {
    if prefix.is_empty() {
        Ok(())
    } else {
        check_key(prefix)
    }
}

pub(crate) fn check_limit(limit: usize) -> Result<(), Invalid> {
    if limit > 0 {
        return Ok(());
    }
    Err(Invalid::new("limit of a listing", 0, "at least 1"))
}

pub(crate) fn check_ttl(ttl: Duration) -> Result<(), Invalid> {
    if (TTL_MIN..=TTL_MAX).contains(&ttl) {
        return Ok(());
    }
    let (found, expected) = (
        format!("{} ms", ttl.as_millis()),
        format!("{} to {} ms", TTL_MIN.as_millis(), TTL_MAX.as_millis()),
    );
    Err(Invalid::new("time to live of a lease", found, expected))
}

pub(crate) fn check_changes(changes: &[Change]) -> Result<(), Invalid> {
    let wrong = |what: &str, found: String, expected: String| Err(Invalid::new(what, found, expected));
    if !(1..=CHANGES_MAX).contains(&changes.len()) {
        let found = format!("of {} changes", changes.len());
        return wrong("commit", found, format!("of 1 to {CHANGES_MAX} changes"));
    }
    let mut keys = HashSet::new();
    let mut bytes = 0;
    for change in changes {
        check_key(&change.key)?;
        if !keys.insert(change.key.as_str()) {
            let found = format!("changing {:?} twice", change.key);
            return wrong("commit", found, "of changes to different keys".to_owned());
        }
        let value_len = change.value.as_ref().map_or(0, Vec::len);
        if value_len > VALUE_BYTES_MAX {
            let found = format!("{value_len} bytes long (key {:?})", change.key);
            return wrong("value", found, format!("at most {VALUE_BYTES_MAX} bytes long"));
        }
        if change.value.is_none() && change.lease.is_some() {
            let found = format!("under a lease (key {:?})", change.key);
            return wrong("deletion", found, "without a lease".to_owned());
        }
        bytes += change.key.len() + value_len;
    }
    if bytes > COMMIT_BYTES_MAX {
        let found = format!("{bytes} bytes large");
        return wrong("commit", found, format!("at most {COMMIT_BYTES_MAX} bytes large"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &str, len: usize) -> Change {
        Change::put(key, None, vec![0; len])
    }

    fn text(changes: &[Change]) -> String {
        check_changes(changes).unwrap_err().to_string()
    }

    #[test]
    fn commits_within_the_limits_are_taken() {
        assert!(check_changes(&[put("a", VALUE_BYTES_MAX), put(&"k".repeat(KEY_BYTES_MAX), 0)]).is_ok());
        let many: Vec<_> = (0..CHANGES_MAX).map(|i| put(&i.to_string(), 1)).collect();
        assert!(check_changes(&many).is_ok());
    }

    #[test]
    fn what_is_beyond_them_is_named() {
        assert!(text(&[]).contains("of 0 changes; it has to be of 1 to 100 changes"));
        assert!(text(&[put("", 0)]).contains("0 bytes long"));
        assert!(text(&[put(&"k".repeat(513), 0)]).contains("513 bytes long (\"kkk"));
        assert!(text(&[put("a", VALUE_BYTES_MAX + 1)]).contains("1048577 bytes long (key \"a\")"));
        assert!(text(&[put("a", 1), put("a", 2)]).contains("changing \"a\" twice"));
        assert!(text(&[put("a", 700_000), put("b", 700_000)]).contains("1400002 bytes large"));
        let under = Change::delete("a", None).under(sconce_schemas::wire::registry::LeaseId(1));
        assert!(text(&[under]).contains("under a lease"));
        assert!(
            check_ttl(Duration::ZERO)
                .unwrap_err()
                .to_string()
                .contains("500 to 86400000 ms")
        );
        assert!(check_limit(0).is_err() && check_limit(1).is_ok());
    }
}
