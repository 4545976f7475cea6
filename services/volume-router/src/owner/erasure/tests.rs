//! Whose objects may go, by the registry alone.

use sconce_schemas::records::{CloneRecord, ROOT_INODE};
use sconce_schemas::{Epoch, ScoSize, SnapshotId, VolumeSize};

use super::*;

const VOLUME: VolumeId = VolumeId([1; 16]);
const INODE: u64 = 100;

fn name(text: &str) -> NodeName {
    text.parse().unwrap()
}

fn own(node: &str, epoch: u64) -> Ownership {
    Ownership {
        node: name(node),
        epoch: Epoch(epoch),
    }
}

fn deleted() -> VolumeRecord {
    VolumeRecord {
        inode: INODE,
        phase: VolumePhase::Deleting,
        epoch: Epoch(5),
        buffer: Some("theirs".to_owned()),
        ..VolumeRecord::unowned(
            VOLUME,
            VolumeSize::default(),
            ScoSize::default(),
            "fast".to_owned(),
            name("gone"),
        )
    }
}

fn file(volume: VolumeId) -> InodeRecord {
    InodeRecord {
        kind: InodeKind::File(volume),
        parent: ROOT_INODE,
        name: "disk".to_owned(),
        mode: 0o600,
        uid: 0,
        gid: 0,
        mtime_ns: 0,
        ctime_ns: 0,
    }
}

async fn put<R: sconce_schemas::records::Record>(registry: &Registry, key: String, record: &R) -> Revision {
    registry.put_record(&key, None, record, None).await.unwrap()
}

async fn may(registry: &Registry, right: Right) -> Result<(), String> {
    match may_erase(registry, VOLUME, &right).await {
        Ok(()) => Ok(()),
        Err(RecordError::Refused(refusal)) => Err(format!("never: {refusal}")),
        Err(RecordError::Unavailable(text)) => Err(format!("later: {text}")),
    }
}

fn is_refused(answer: Result<(), String>, wanted: &str) {
    let told = answer.unwrap_err();
    assert!(told.contains(wanted), "{wanted:?} is not in {told:?}");
}

#[tokio::test]
async fn only_what_is_deleted_and_nobodys_may_be_erased_and_only_by_its_owner() {
    let registry = Registry::memory();
    let right = || Right::Owned(own("gone", 5));
    is_refused(may(&registry, right()).await, "never: ");
    let active = VolumeRecord {
        phase: VolumePhase::Active,
        ..deleted()
    };
    put(&registry, keys::volume(VOLUME), &active).await;
    is_refused(may(&registry, right()).await, "never: ");
    put(&registry, keys::volume(VOLUME), &deleted()).await;
    may(&registry, right()).await.unwrap();
    for other in [own("gone", 4), own("gone", 6), own("another", 5)] {
        is_refused(may(&registry, Right::Owned(other)).await, "never: ");
    }
    is_refused(may(&registry, Right::Noted("theirs".to_owned())).await, "never: ");

    let clone = CloneRecord {
        snapshot: SnapshotId(1),
        inode: 7,
    };
    let key = keys::clone(VOLUME, VolumeId([2; 16]));
    put(&registry, key.clone(), &clone).await;
    is_refused(may(&registry, right()).await, "later: volume 0202");
    registry.commit(vec![Change::delete(key, None)]).await.unwrap();
    may(&registry, right()).await.unwrap();

    // An inode is given again at most to another volume's file.
    put(&registry, keys::inode(INODE), &file(VolumeId([3; 16]))).await;
    may(&registry, right()).await.unwrap();
    put(&registry, keys::inode(INODE), &file(VOLUME)).await;
    is_refused(may(&registry, right()).await, "later: its file \"disk\"");
}

#[tokio::test]
async fn of_two_nodes_one_adopts_and_then_nobody_else_may_erase() {
    let registry = Registry::memory();
    let seen = deleted();
    let revision = put(&registry, keys::volume(VOLUME), &seen).await;
    let adopted = adopt(&registry, (&seen, revision), &name("first")).await.unwrap();
    assert_eq!((adopted.owner.as_str(), adopted.epoch), ("first", Epoch(6)));
    let late = adopt(&registry, (&seen, revision), &name("second")).await;
    assert!(matches!(late, Err(RecordError::Refused(_))), "{late:?}");
    may(&registry, Right::Owned(own("first", 6))).await.unwrap();
    for other in [own("gone", 5), own("second", 6)] {
        is_refused(may(&registry, Right::Owned(other)).await, "never: ");
    }
    let alive = VolumeRecord {
        phase: VolumePhase::Active,
        ..deleted()
    };
    let revision = put(&registry, keys::volume(VOLUME), &alive).await;
    let refused = adopt(&registry, (&alive, revision), &name("first")).await;
    assert!(
        matches!(refused, Err(RecordError::Refused(_))),
        "it is not deleted: {refused:?}"
    );
}

#[tokio::test]
async fn a_record_that_may_have_had_twins_goes_with_a_note_for_whoever_has_one() {
    let registry = Registry::memory();
    let right = Right::Owned(own("gone", 5));
    put(&registry, keys::volume(VOLUME), &deleted()).await;
    end(&registry, VOLUME, &right, "ours", 7).await.unwrap();
    assert!(!is_gone(&registry, VOLUME).await.unwrap(), "it never had any");

    let mut record = deleted();
    record.set_dtl_mode(sconce_schemas::records::DtlMode::Sync);
    record.set_dtl_mode(sconce_schemas::records::DtlMode::None);
    put(&registry, keys::volume(VOLUME), &record).await;
    end(&registry, VOLUME, &right, "ours", 7).await.unwrap();
    assert!(is_gone(&registry, VOLUME).await.unwrap());
    // What its former owner has goes by its own note; this one is for others yet.
    end(&registry, VOLUME, &Right::Noted("theirs".to_owned()), "theirs", 8)
        .await
        .unwrap();
    let [note] = &gone(&registry).await.unwrap()[..] else {
        panic!("one note");
    };
    assert_eq!((note.volume, note.note), (VOLUME, GoneRecord { erased_us: 7 }));

    put(&registry, keys::volume(VOLUME), &record).await;
    assert!(!is_gone(&registry, VOLUME).await.unwrap(), "its record came back");
    forget_gone(&registry, note).await.unwrap();
    assert!(gone(&registry).await.unwrap().is_empty());
}

#[tokio::test]
async fn the_record_goes_with_a_note_for_another_write_buffer_which_is_a_right_until_it_is_over() {
    let registry = Registry::memory();
    let right = Right::Owned(own("gone", 5));
    let noted = || Right::Noted("theirs".to_owned());
    put(&registry, keys::volume(VOLUME), &deleted()).await;
    end(&registry, VOLUME, &right, "theirs", 7).await.unwrap();
    assert!(
        erased(&registry).await.unwrap().is_empty(),
        "its own buffer needs no note"
    );

    put(&registry, keys::volume(VOLUME), &deleted()).await;
    end(&registry, VOLUME, &right, "ours", 7).await.unwrap();
    end(&registry, VOLUME, &right, "ours", 7).await.unwrap();
    assert_eq!(registry.get(&keys::volume(VOLUME)).await.unwrap(), None);
    let notes = erased(&registry).await.unwrap();
    let note = ErasedRecord {
        buffer: "theirs".to_owned(),
        pool: "fast".to_owned(),
        erased_us: 7,
    };
    assert_eq!(
        notes.iter().map(|erased| &erased.note).collect::<Vec<_>>(),
        [&note]
    );
    is_refused(may(&registry, Right::Noted("ours".to_owned())).await, "never: ");
    may(&registry, noted()).await.unwrap();

    put(&registry, keys::volume(VOLUME), &deleted()).await;
    is_refused(may(&registry, noted()).await, "never: ");
    let delete = Change::delete(keys::volume(VOLUME), None);
    registry.commit(vec![delete]).await.unwrap();
    end(&registry, VOLUME, &noted(), "theirs", 8).await.unwrap();
    assert!(erased(&registry).await.unwrap().is_empty());
}
