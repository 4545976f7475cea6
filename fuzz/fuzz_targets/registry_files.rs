//! Whatever the registry finds in its journal or its snapshot is a frame or ends the file, and damage never hides a
//! commit that is whole.
//!
//! The input is one byte whose lowest bit says which file, and the file. It is read as it is and with its CRCs made right.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sconce_fuzz::{seal_frame, within_memory};
use sconce_schemas::registry_log::{
    FRAME_HEADER_LEN, FileKind, JournalHead, SnapshotHead, StoredCommit, StoredEntry, find_commit, put_frame,
    take_frame, take_head,
};

/// The generation of the corpus's files.
const GENERATION: u64 = 3;
/// Looking for a commit tries each offset; longer inputs would only be slow.
const SEARCHED_MAX: usize = 2048;

fuzz_target!(|input: &[u8]| {
    let Some((&first, file)) = input.split_first() else {
        return;
    };
    let kind = if first & 1 == 0 {
        FileKind::Journal
    } else {
        FileKind::Snapshot
    };
    let mut sealed = file.to_vec();
    let mut rest = sealed.as_mut_slice();
    while let Some(behind) = seal_frame(rest, FRAME_HEADER_LEN, kind.salt(GENERATION)) {
        rest = behind;
    }
    for file in [file, &sealed] {
        within_memory(file, || match kind {
            FileKind::Journal => journal(file),
            FileKind::Snapshot => snapshot(file),
        });
    }
});

fn journal(mut rest: &[u8]) {
    if let Ok(head) = take_head::<JournalHead>(&mut rest) {
        assert_eq!(
            take_head(&mut encoded(FileKind::Journal, head.generation, &head).as_slice()).as_ref(),
            Ok(&head)
        );
    }
    while let Ok(commit) = take_frame::<StoredCommit>(&mut rest, FileKind::Journal, GENERATION) {
        let again = encoded(FileKind::Journal, GENERATION, &commit);
        assert_eq!(
            take_frame(&mut again.as_slice(), FileKind::Journal, GENERATION).as_ref(),
            Ok(&commit)
        );
        let torn = [&[0xff; 3], again.as_slice()].concat();
        if torn.len() <= SEARCHED_MAX {
            assert_eq!(
                find_commit(&torn, GENERATION),
                Some((3, commit)),
                "behind what was torn"
            );
        }
    }
}

fn snapshot(mut rest: &[u8]) {
    if let Ok(head) = take_head::<SnapshotHead>(&mut rest) {
        assert_eq!(
            take_head(&mut encoded(FileKind::Snapshot, head.generation, &head).as_slice()).as_ref(),
            Ok(&head)
        );
    }
    while let Ok(entry) = take_frame::<StoredEntry>(&mut rest, FileKind::Snapshot, GENERATION) {
        let again = encoded(FileKind::Snapshot, GENERATION, &entry);
        let back: Result<StoredEntry, _> = take_frame(&mut again.as_slice(), FileKind::Snapshot, GENERATION);
        assert_eq!(back.as_ref().map(StoredEntry::digest), Ok(entry.digest()));
    }
}

fn encoded<T: serde::Serialize>(kind: FileKind, generation: u64, payload: &T) -> Vec<u8> {
    let mut out = Vec::new();
    // What was decoded may be longer once it is encoded by this build, but not longer than a frame may be.
    put_frame(&mut out, kind, generation, payload).expect("it was a frame before");
    out
}
