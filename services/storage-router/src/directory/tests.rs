//! What a directory does beyond what every back end does: identities, foreign files, leftovers, lost mounts.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use sconce_schemas::{Epoch, ScoId};

use super::*;
use crate::checked::Checked;

fn open(root: &Path, name: &str, expected: Option<BackendId>) -> DirectoryBackend {
    DirectoryBackend::new(DirectorySettings {
        name: name.to_owned(),
        root: root.to_owned(),
        node: "sr-1".parse().unwrap(),
        expected,
    })
}

fn object(id: u64) -> SealedObject {
    SealedObject::seal(name(id), Bytes::from(vec![7; 10_000])).unwrap()
}

fn name(id: u64) -> ObjectName {
    ObjectName::Sco {
        volume: VolumeId::from_u128(1),
        id: ScoId(id),
        epoch: Epoch(1),
        version: 0,
    }
}

fn checked(backend: DirectoryBackend) -> Checked {
    Checked::new(
        Arc::new(backend),
        Workers::bounded(2, 1 << 20),
        Duration::from_secs(20),
    )
}

/// Storage-routers that share a directory start at about the same time: whatever one of them is about to do when the other has
/// made it a back end.
#[tokio::test]
async fn two_that_attach_an_empty_directory_find_one_identity() {
    for behind in 0..300 {
        let dir = tempfile::tempdir().unwrap();
        let at = |node: &str| {
            DirectoryBackend::new(DirectorySettings {
                name: "disk".to_owned(),
                root: dir.path().to_owned(),
                node: node.parse().unwrap(),
                expected: None,
            })
        };
        let (one, two) = (at("sr-1"), at("sr-2"));
        let later = async {
            tokio::time::sleep(Duration::from_micros(behind * 10)).await;
            two.attach().await
        };
        let (first, second) = tokio::join!(one.attach(), later);
        assert_eq!(
            (&first, first.is_ok()),
            (&second, true),
            "{} us behind",
            behind * 10
        );
    }
}

#[tokio::test]
async fn the_first_start_makes_the_directory_and_later_ones_know_it() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("not/there/yet");
    let id = open(&root, "disk", None).attach().await.unwrap();
    assert_eq!(
        open(&root, "disk", None).attach().await,
        Ok(id),
        "found again without a registry"
    );
    assert_eq!(open(&root, "disk", Some(id)).attach().await, Ok(id));
    let other = open(&root, "disk", Some(BackendId(7)))
        .attach()
        .await
        .unwrap_err()
        .to_string();
    assert!(
        other.contains(&id.to_string()) && other.contains(&BackendId(7).to_string()),
        "{other}"
    );
    let named = open(&root, "another", None)
        .attach()
        .await
        .unwrap_err()
        .to_string();
    assert!(
        named.contains("\"disk\"") && named.contains("\"another\""),
        "{named}"
    );
}

#[tokio::test]
async fn a_directory_of_somebody_else_is_refused_and_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("photo.jpg"), "x").unwrap();
    let error = open(dir.path(), "disk", None).attach().await.unwrap_err();
    assert!(
        matches!(&error, BackendError::Denied { why } if why.contains("photo.jpg")),
        "{error}"
    );
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    fs::remove_file(dir.path().join("photo.jpg")).unwrap();
    fs::create_dir(dir.path().join("lost+found")).unwrap();
    open(dir.path(), "disk", None)
        .attach()
        .await
        .expect("a fresh file system is empty");
}

#[tokio::test]
async fn a_lost_mount_is_unavailable_until_it_is_back_and_nothing_is_made_in_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let (root, elsewhere) = (dir.path().join("disk"), dir.path().join("unmounted"));
    let backend = open(&root, "disk", None);
    let id = backend.attach().await.unwrap();
    backend.put_new(object(1)).await.unwrap();

    fs::rename(&root, &elsewhere).unwrap();
    fs::create_dir(&root).unwrap();
    let is_unavailable = |answer: Result<(), BackendError>| {
        let error = answer.unwrap_err();
        assert!(
            matches!(&error, BackendError::Unavailable { why } if why.contains("mounted")),
            "{error}"
        );
    };
    for restarted in [open(&root, "disk", Some(id)), backend] {
        is_unavailable(restarted.read(name(1), 0, 10).await.map(drop));
        is_unavailable(restarted.put_new(object(1)).await);
        is_unavailable(restarted.replace(object(1)).await);
        is_unavailable(restarted.delete(name(1)).await);
        is_unavailable(
            restarted
                .list(VolumeId::from_u128(1), ObjectKind::Sco, None, 9)
                .await
                .map(drop),
        );
        is_unavailable(restarted.list_volumes(None, 9).await.map(drop));
        is_unavailable(restarted.space().await.map(drop));
        assert_eq!(fs::read_dir(&root).unwrap().count(), 0);

        fs::remove_dir(&root).unwrap();
        is_unavailable(restarted.put_new(object(2)).await);
        assert!(!root.exists());

        fs::rename(&elsewhere, &root).unwrap();
        assert_eq!(restarted.read(name(1), 0, 10).await.unwrap().bytes.len(), 10);
        restarted
            .put_new(object(2))
            .await
            .unwrap_or_else(|error| assert_eq!(error, BackendError::Exists));
        fs::rename(&root, &elsewhere).unwrap();
        fs::create_dir(&root).unwrap();
    }
}

#[tokio::test]
async fn foreign_files_are_damaged_or_not_listed() {
    let dir = tempfile::tempdir().unwrap();
    let backend = open(dir.path(), "disk", None);
    backend.attach().await.unwrap();
    backend.put_new(object(1)).await.unwrap();
    let folder = dir.path().join(name(1).to_string()).parent().unwrap().to_owned();
    let at = |id| dir.path().join(name(id).to_string());
    fs::copy(at(1), at(2)).unwrap();
    fs::write(at(3), "").unwrap();
    fs::write(at(4), vec![9; 5000]).unwrap();
    fs::write(at(5), &object(5).to_stored()[..5000]).unwrap();
    fs::create_dir(at(6)).unwrap();
    symlink(at(1), at(7)).unwrap();
    assert!(
        std::process::Command::new("mkfifo")
            .arg(at(8))
            .status()
            .unwrap()
            .success()
    );
    for leaf in [
        "1.1.0",
        "readme",
        "00000000000A.00000001.0000",
        "000000000009.00000001",
        ".hidden",
    ] {
        fs::write(folder.join(leaf), "x").unwrap();
    }
    fs::write(dir.path().join("notes.txt"), "x").unwrap();
    fs::create_dir(dir.path().join("backup")).unwrap();

    let listed = backend
        .list(VolumeId::from_u128(1), ObjectKind::Sco, None, 100)
        .await
        .unwrap();
    assert_eq!(
        listed,
        (1..=8).map(name).collect::<Vec<_>>(),
        "what is not named like an object is left out"
    );
    assert_eq!(
        backend.list_volumes(None, 100).await.unwrap(),
        [VolumeId::from_u128(1)]
    );
    let checked = checked(backend);
    for id in 2..=8 {
        for answer in [
            checked.get(name(id), 0, 10).await.map(drop),
            checked.stat(name(id)).await.map(drop),
        ] {
            assert!(
                matches!(answer, Err(BackendError::Damaged { .. })),
                "{id}: {answer:?}"
            );
        }
        if id != 6 {
            let put = checked.put(&object(id)).await;
            assert!(matches!(put, Err(BackendError::Damaged { .. })), "{id}: {put:?}");
            checked.replace(&object(id)).await.unwrap();
            assert_eq!(checked.get(name(id), 0, 10).await.unwrap(), [7; 10].as_slice());
        }
    }
}

#[tokio::test]
async fn a_start_removes_its_own_temporary_files_and_old_ones_of_others() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path(), "disk", None).attach().await.unwrap();
    let other = dir.path().join(".tmp/sr-2");
    fs::create_dir(&other).unwrap();
    for file in [
        dir.path().join(".tmp/sr-1/1-1"),
        other.join("new"),
        other.join("old"),
    ] {
        fs::write(file, "half").unwrap();
    }
    let two_days_ago = SystemTime::now() - Duration::from_hours(48);
    fs::File::options()
        .append(true)
        .open(other.join("old"))
        .unwrap()
        .set_modified(two_days_ago)
        .unwrap();

    let backend = open(dir.path(), "disk", None);
    backend.attach().await.unwrap();
    let left = |folder: &Path| {
        fs::read_dir(folder)
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        left(&dir.path().join(".tmp/sr-1")),
        Vec::<std::ffi::OsString>::new()
    );
    assert_eq!(left(&other), ["new"], "another service may be writing it");

    fs::remove_dir_all(dir.path().join(".tmp")).unwrap();
    backend
        .put_new(object(1))
        .await
        .expect("the folder is made again");
    assert_eq!(
        left(&dir.path().join(".tmp/sr-1")),
        Vec::<std::ffi::OsString>::new(),
        "nothing stays after a put"
    );
}

#[tokio::test]
async fn folders_go_with_their_last_object_and_come_back_under_concurrent_puts() {
    let dir = tempfile::tempdir().unwrap();
    let backend = open(dir.path(), "disk", None);
    backend.attach().await.unwrap();
    let rounds = (0..6).map(|id| {
        let backend = &backend;
        async move {
            for _ in 0..50 {
                backend.put_new(object(id)).await.unwrap();
                backend.read(name(id), 0, 1).await.unwrap();
                backend.delete(name(id)).await.unwrap();
                assert_eq!(backend.read(name(id), 0, 1).await, Err(BackendError::NotFound));
            }
        }
    });
    futures_util::future::join_all(rounds).await;
    assert!(!dir.path().join(VolumeId::from_u128(1).to_string()).exists());
}

#[tokio::test]
async fn a_disk_without_space_answers_full() {
    // A file size limit would raise a signal; /dev/full gives what a full disk gives.
    let error = std::io::Write::write(&mut fs::File::create("/dev/full").unwrap(), b"x").unwrap_err();
    assert_eq!(
        root::failed("write", Path::new("/dev/full"))(error),
        BackendError::Full
    );
    let denied = std::io::Error::from_raw_os_error(rustix::io::Errno::ROFS.raw_os_error());
    assert!(matches!(
        root::failed("write", Path::new("/x"))(denied),
        BackendError::Denied { .. }
    ));
}

#[tokio::test]
async fn a_mount_that_is_lost_after_the_link_is_no_durable_name_and_a_deleted_object_is() {
    let dir = tempfile::tempdir().unwrap();
    let (path, elsewhere) = (dir.path().join("disk"), dir.path().join("unmounted"));
    let backend = open(&path, "disk", None);
    backend.attach().await.unwrap();
    backend.put_new(object(1)).await.unwrap();
    let sync = || files::sync_names(&backend.root, name(1), &path);

    fs::rename(&path, &elsewhere).unwrap();
    fs::create_dir(&path).unwrap();
    let error = sync().unwrap_err();
    assert!(
        matches!(&error, BackendError::Unavailable { why } if why.contains("mounted")),
        "{error}"
    );

    fs::remove_dir(&path).unwrap();
    fs::rename(&elsewhere, &path).unwrap();
    backend.delete(name(1)).await.unwrap();
    assert!(!path.join(VolumeId::from_u128(1).to_string()).exists());
    sync().unwrap();
}
