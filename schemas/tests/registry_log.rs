//! The rules of the registry's snapshot and journal, over random commits and damage, and their golden files.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use proptest::prelude::*;
use sconce_schemas::DecodeError;
use sconce_schemas::registry_log::{
    FileKind, JournalHead, PAYLOAD_BYTES_MAX, SnapshotHead, StoredChange, StoredCommit, StoredEntry,
    StoredLease, VERSION, find_commit, put_frame, take_frame, take_head,
};
use sconce_schemas::wire::registry::{LeaseId, Revision};

const GENERATION: u64 = 3;

fn head() -> JournalHead {
    JournalHead {
        version: VERSION,
        generation: GENERATION,
        base: Revision(40),
    }
}

fn commit(revision: u64, value: &[u8]) -> StoredCommit {
    StoredCommit {
        revision: Revision(revision),
        changes: vec![
            StoredChange {
                key: "node/vr-1".to_owned(),
                value: Some(value.to_vec()),
                lease: Some(StoredLease {
                    id: LeaseId(77),
                    ttl_ms: 5000,
                }),
            },
            StoredChange {
                key: "volume/gone".to_owned(),
                value: None,
                lease: None,
            },
        ],
    }
}

fn journal(values: &[Vec<u8>]) -> Vec<u8> {
    let mut file = Vec::new();
    put_frame(&mut file, FileKind::Journal, GENERATION, &head()).unwrap();
    for (revision, value) in (41..).zip(values) {
        put_frame(&mut file, FileKind::Journal, GENERATION, &commit(revision, value)).unwrap();
    }
    file
}

/// The commits up to the first frame that does not validate.
fn read(mut file: &[u8]) -> Result<Vec<StoredCommit>, DecodeError> {
    let head: JournalHead = take_head(&mut file)?;
    let mut commits = Vec::new();
    while let Ok(commit) = take_frame(&mut file, FileKind::Journal, head.generation) {
        commits.push(commit);
    }
    Ok(commits)
}

fn values() -> impl Strategy<Value = Vec<Vec<u8>>> {
    prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..8)
}

proptest! {
    #[test]
    fn what_was_written_is_read(values in values()) {
        let wanted: Vec<_> = (41..).zip(&values).map(|(revision, value)| commit(revision, value)).collect();
        prop_assert_eq!(read(&journal(&values)).unwrap(), wanted);
    }

    #[test]
    fn a_file_that_is_cut_off_reads_as_a_prefix(values in values(), cut in any::<prop::sample::Index>()) {
        let whole = journal(&values);
        let cut = cut.index(whole.len() + 1);
        if let Ok(commits) = read(&whole[..cut]) {
            let all = read(&whole).unwrap();
            prop_assert!(commits.len() <= all.len());
            prop_assert_eq!(&commits[..], &all[..commits.len()]);
        }
    }

    #[test]
    fn a_flipped_bit_ends_the_reading_and_what_follows_is_found(
        values in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 2..8),
        at in any::<prop::sample::Index>(), bit in 0..8u8,
    ) {
        let whole = journal(&values);
        let last = whole.len() - journal(&values[..values.len() - 1]).len();
        let mut damaged = whole.clone();
        let at = at.index(whole.len() - last);
        damaged[at] ^= 1 << bit;
        let all = read(&whole).unwrap();
        if let Ok(commits) = read(&damaged) {
            prop_assert!(commits.len() < all.len());
            prop_assert_eq!(&commits[..], &all[..commits.len()]);
            let good = journal(&values[..commits.len()]).len();
            prop_assert!(find_commit(&damaged[good..], GENERATION).is_some());
        }
    }

    #[test]
    fn any_bytes_decode_or_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = take_head::<JournalHead>(&mut bytes.as_slice());
        let _ = take_head::<SnapshotHead>(&mut bytes.as_slice());
        let _ = take_frame::<StoredCommit>(&mut bytes.as_slice(), FileKind::Journal, GENERATION);
        prop_assert!(find_commit(&bytes, GENERATION).is_none());
    }
}

#[test]
fn a_frame_of_another_file_does_not_validate() {
    let file = journal(&[b"x".to_vec()]);
    let mut input = file.as_slice();
    let other = take_frame::<JournalHead>(&mut input, FileKind::Journal, GENERATION + 1);
    assert!(matches!(other, Err(DecodeError::Crc { .. })));
    let other = take_frame::<JournalHead>(&mut input, FileKind::Snapshot, GENERATION);
    assert!(matches!(other, Err(DecodeError::Crc { .. })));
    assert_eq!(input.len(), file.len(), "a refused frame stays");
}

#[test]
fn a_commit_too_large_is_refused_and_nothing_is_appended() {
    let mut file = journal(&[]);
    let before = file.clone();
    let large = commit(41, &vec![0; PAYLOAD_BYTES_MAX]);
    let refused = put_frame(&mut file, FileKind::Journal, GENERATION, &large).unwrap_err();
    assert!(refused.to_string().contains("at most 2 MiB"), "{refused}");
    assert_eq!(file, before);
}

#[test]
fn a_newer_version_is_refused_by_name() {
    let newer = JournalHead {
        version: VERSION + 1,
        ..head()
    };
    let mut file = Vec::new();
    put_frame(&mut file, FileKind::Journal, GENERATION, &newer).unwrap();
    let refused = take_head::<JournalHead>(&mut file.as_slice()).unwrap_err();
    assert!(matches!(
        refused,
        DecodeError::Version {
            found: 2,
            newest: 1,
            ..
        }
    ));
}

#[test]
fn the_golden_files_are_read_and_written() {
    let entry = StoredEntry {
        key: "node/vr-1".to_owned(),
        value: b"value".to_vec(),
        revision: Revision(40),
        lease: Some(StoredLease {
            id: LeaseId(77),
            ttl_ms: 5000,
        }),
    };
    let snapshot_head = SnapshotHead {
        version: VERSION,
        generation: GENERATION,
        revision: Revision(40),
        entries: 1,
        digest: entry.digest(),
    };
    let mut snapshot = Vec::new();
    put_frame(&mut snapshot, FileKind::Snapshot, GENERATION, &snapshot_head).unwrap();
    put_frame(&mut snapshot, FileKind::Snapshot, GENERATION, &entry).unwrap();
    compare("registry-snapshot-1.bin", &snapshot);
    compare(
        "registry-journal-1.bin",
        &journal(&[b"one".to_vec(), b"two".to_vec()]),
    );
}

/// `SCONCE_GOLDEN=write` writes the file instead: for a new format, never for a changed one.
fn compare(name: &str, bytes: &[u8]) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("golden")
        .join(name);
    if std::env::var_os("SCONCE_GOLDEN").is_some_and(|value| value == "write") {
        std::fs::write(&path, bytes).unwrap();
    }
    assert_eq!(std::fs::read(&path).unwrap(), bytes, "{name}");
}
