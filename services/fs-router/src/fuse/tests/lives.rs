//! Starts, stops and restarts: of the mount, of owners, of files without a name.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::rc::Rc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, mount};

use sconce_runtime::{Chance, Clock};
use sconce_schemas::VolumeSize;
use sconce_schemas::records::{ROOT_INODE, VolumeRecord, keys};

use super::volumes::MemoryVolumes;
use super::{Mounted, block_on, node, registry};
use crate::fuse::Told;
use crate::fuse::front::Front;
use crate::fuse::handles::Handles;
use crate::fuse::mount::mounted_at;
use crate::in_use::InUse;
use crate::names::{Keep, Names, NewEntry, NewVolume};

#[test]
fn a_removed_file_lives_until_its_last_close() {
    let mounted = Mounted::new();
    fs::write(mounted.path("f"), "content").unwrap();
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(mounted.path("f"))
        .unwrap();
    fs::remove_file(mounted.path("f")).unwrap();
    assert!(fs::metadata(mounted.path("f")).is_err());
    file.write_all_at(b"C", 0).unwrap();
    let mut found = [0; 7];
    file.read_exact_at(&mut found, 0).unwrap();
    assert_eq!(&found, b"Content");
    assert_eq!(file.metadata().unwrap().nlink(), 0);
    assert_eq!(mounted.volumes.told(), []);
    drop(file);
    // The kernel tells of the close after it: the next request waits behind it only by chance.
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while mounted.volumes.told().is_empty() && std::time::Instant::now() < deadline {
        std::thread::yield_now();
    }
    assert!(matches!(mounted.volumes.told()[..], [(_, Told::Deleted)]));
}

#[test]
fn files_that_were_open_without_a_name_are_removed_at_the_next_start() {
    let registry = registry();
    let names = Names::new(
        registry.clone(),
        sconce_runtime::Clock::system(),
        sconce_runtime::Chance::seeded(1),
    );
    let volume = block_on(async {
        let path = "/f".parse().unwrap();
        let made = names
            .create_volume(&path, &NewVolume::default(), NewEntry::FILE, false)
            .await
            .unwrap();
        let keep = Keep::Open {
            holder: &node(),
            is_open: &|_| true,
            is_used: &|_| false,
        };
        names
            .unlink(sconce_schemas::records::ROOT_INODE, "f", keep)
            .await
            .unwrap();
        made.volume
    });
    let mut mounted = Mounted::over(
        registry,
        MemoryVolumes::default(),
        Rc::new(tempfile::tempdir().unwrap()),
    );
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while mounted.volumes.told().is_empty() && std::time::Instant::now() < deadline {
        std::thread::yield_now();
    }
    mounted.stop();
    assert_eq!(mounted.volumes.told(), [(volume, Told::Deleted)]);
    assert_eq!(block_on(names.nameless(&node())).unwrap(), []);
}

/// A front end without a mount, as the next process has it that finds these files open.
fn front(names: &Names, volumes: &MemoryVolumes, handles: Handles) -> Rc<Front<MemoryVolumes>> {
    let front = Front::new(
        names.clone(),
        volumes.clone(),
        node(),
        Clock::system(),
        InUse::default(),
        handles,
    );
    Rc::new(front)
}

#[test]
fn the_next_process_answers_for_what_it_did_not_open() {
    const RESENT: u64 = 1 << 63;
    let volumes = MemoryVolumes::default();
    let names = Names::new(registry(), Clock::system(), Chance::seeded(1));
    let table = tempfile::tempfile().unwrap();
    let handles = || Handles::read(table.try_clone().unwrap(), Path::new("/mnt"));
    let local = tokio::task::LocalSet::new();
    block_on(local.run_until(async {
        let first = Handles::over(table.try_clone().unwrap(), Path::new("/mnt")).unwrap();
        let before = front(&names, &volumes, first);
        let name = std::ffi::OsStr::new("f");
        let (made, handle) = before
            .create(2, ROOT_INODE, name, NewEntry::FILE, true)
            .await
            .unwrap();
        let inode = made.ino.0;
        before.write(inode, 0, "content".into(), false).await.unwrap();
        let gone = before.open_handle(4, inode, true).await.unwrap();
        let directory = before.open_directory(ROOT_INODE).await.unwrap();
        before.unlink(ROOT_INODE, name).await.unwrap();
        names
            .make_directory(ROOT_INODE, "d", NewEntry::DIRECTORY)
            .await
            .unwrap();

        let (handles, opened) = handles().unwrap();
        let after = front(&names, &volumes, handles);
        after.go_on(opened);
        // It is not one of those that a process left behind without anybody having it open.
        after.remove_all_nameless().await.unwrap();
        let read = after.read(inode, 0, 100).await.unwrap();
        assert_eq!(&read.into_bytes()[..], b"content");
        assert_eq!(after.attributes(inode).await.unwrap().nlink, 0);
        assert_eq!(
            after.entries(ROOT_INODE, directory, 0, 10).await.unwrap().len(),
            1
        );
        // What comes again is not done again.
        assert_eq!(after.open_handle(4 | RESENT, inode, true).await, Ok(gone));
        for _ in 0..2 {
            after.close_handle(gone, inode).await;
        }
        assert!(after.file(inode).is_ok(), "closed once too often");
        after.close_handle(handle, inode).await;
        assert!(after.file(inode).is_err());
    }));
    assert!(matches!(volumes.told()[..], [(_, Told::Deleted)]));
    assert_eq!(block_on(names.nameless(&node())).unwrap(), []);
}

#[test]
fn a_file_that_is_closed_while_its_name_goes_is_removed() {
    let volumes = MemoryVolumes::default();
    let names = Names::new(registry(), Clock::system(), Chance::seeded(1));
    let front = front(&names, &volumes, Handles::new(Path::new("/mnt")).unwrap());
    let volume = block_on(async {
        let path = "/f".parse().unwrap();
        let made = names
            .create_volume(&path, &NewVolume::default(), NewEntry::FILE, false)
            .await
            .unwrap();
        // It was open when its name went, and is not any more when that is known.
        let keep = Keep::Open {
            holder: &node(),
            is_open: &|_| true,
            is_used: &|_| false,
        };
        let removed = names.unlink(ROOT_INODE, "f", keep).await.unwrap();
        front.removed(removed).await;
        made.volume
    });
    assert_eq!(volumes.told(), [(volume, Told::Deleted)]);
    assert_eq!(block_on(names.nameless(&node())).unwrap(), []);
}

#[test]
fn a_disk_that_a_guest_uses_over_nbd_is_busy() {
    let mounted = Mounted::new();
    fs::write(mounted.path("disk"), "disk").unwrap();
    fs::write(mounted.path("other"), "other").unwrap();
    let used = mounted.in_use.enter(mounted.volume_of("disk"));
    let busy = |result: std::io::Result<()>| {
        assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EBUSY));
    };
    busy(fs::remove_file(mounted.path("disk")));
    busy(fs::rename(mounted.path("other"), mounted.path("disk")));
    // Another name is no harm.
    fs::rename(mounted.path("disk"), mounted.path("moved")).unwrap();
    drop(used);
    fs::remove_file(mounted.path("moved")).unwrap();
}

#[test]
fn a_file_whose_owner_is_gone_is_listed_moved_and_removed() {
    let mounted = Mounted::new();
    fs::write(mounted.path("f"), [0; 5000]).unwrap();
    let volume = mounted.volume_of("f");
    block_on(async {
        let key = keys::volume(volume);
        let found = mounted.registry.get_record::<VolumeRecord>(&key).await.unwrap();
        let (mut record, revision) = found.unwrap();
        record.size = Some(VolumeSize::new(7000).unwrap());
        let put = mounted.registry.put_record(&key, Some(revision), &record, None);
        put.await.unwrap();
    });
    mounted.volumes.lose_owners();
    // Until then the kernel knows better.
    let deadline = Instant::now() + Duration::from_secs(60);
    while fs::metadata(mounted.path("f")).unwrap().len() != 7000 {
        assert!(Instant::now() < deadline, "the size is not the registry's");
        std::thread::yield_now();
    }
    fs::rename(mounted.path("f"), mounted.path("g")).unwrap();
    fs::remove_file(mounted.path("g")).unwrap();
    assert_eq!(
        mounted.volumes.told(),
        [(volume, Told::Renamed), (volume, Told::Deleted)]
    );
    assert!(Instant::now() < deadline, "somebody waited for the owner");
}

#[test]
fn what_an_owner_does_not_answer_is_held_and_the_rest_goes_on() {
    let mounted = Mounted::new();
    fs::write(mounted.path("f"), [0; 5000]).unwrap();
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(mounted.path("f"))
        .unwrap();
    mounted.volumes.answer(false);
    let (done, is_done) = channel();
    let writing = std::thread::spawn(move || {
        file.write_all_at(&[1; 10], 4990).unwrap();
        done.send(()).unwrap();
        file
    });
    // Names do not need the owner, and an open file's size is known.
    fs::create_dir(mounted.path("d")).unwrap();
    assert_eq!(fs::metadata(mounted.path("f")).unwrap().len(), 5000);
    assert_eq!(
        is_done.recv_timeout(Duration::from_millis(100)),
        Err(RecvTimeoutError::Timeout)
    );
    mounted.volumes.answer(true);
    is_done.recv().unwrap();
    let mut found = [0; 10];
    writing.join().unwrap().read_exact_at(&mut found, 4990).unwrap();
    assert_eq!(found, [1; 10]);
}

#[test]
fn a_mount_that_a_killed_process_left_is_replaced() {
    let dir = Rc::new(tempfile::tempdir().unwrap());
    let point = dir.path().join("mnt");
    fs::create_dir(&point).unwrap();
    // Its type is `fuse` where root mounted it, `fuse.sconce` where fusermount3 did.
    for kind in ["fuse", "fuse.sconce"] {
        // As after `kill -9`: the mount is there, its device is closed.
        let device = File::options().read(true).write(true).open("/dev/fuse").unwrap();
        let fd = std::os::fd::AsRawFd::as_raw_fd(&device);
        let options = format!("fd={fd},rootmode=40000,user_id=0,group_id=0");
        let options = std::ffi::CString::new(options).unwrap();
        mount(
            "sconce",
            &point,
            kind,
            MountFlags::empty(),
            Some(options.as_c_str()),
        )
        .unwrap();
    }
    assert_eq!(
        fs::read_dir(&point).unwrap_err().raw_os_error(),
        Some(libc::ENOTCONN)
    );
    let mut mounted = Mounted::over(registry(), MemoryVolumes::default(), dir);
    fs::write(mounted.path("f"), "alive").unwrap();
    assert!(mounted_at(&point).unwrap().is_some_and(|found| found.is_ours()));
    mounted.stop();
    assert_eq!(mounted_at(&point).unwrap(), None);
}

#[test]
fn names_and_content_are_there_after_a_stop_with_open_files() {
    let dir = Rc::new(tempfile::tempdir().unwrap());
    let mut first = Mounted::over(registry(), MemoryVolumes::default(), Rc::clone(&dir));
    fs::write(first.path("f"), "content").unwrap();
    let open = File::open(first.path("f")).unwrap();
    first.stop();
    assert_eq!(mounted_at(first.point()).unwrap(), None);
    drop(open);
    let second = Mounted::over(first.registry.clone(), first.volumes.clone(), dir);
    assert_eq!(fs::read_to_string(second.path("f")).unwrap(), "content");
}
