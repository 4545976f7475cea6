//! Snapshots as programs see them.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirEntryExt, FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use sconce_runtime::{Chance, Clock};
use sconce_schemas::VolumeId;

use super::volumes::MemoryVolumes;
use super::{Mounted, block_on, registry};
use crate::names::Names;

fn errno<T: std::fmt::Debug>(result: io::Result<T>) -> i32 {
    result.unwrap_err().raw_os_error().unwrap()
}

fn names(directory: &Path) -> BTreeSet<String> {
    fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

/// `/disk` with `monday` (8 KiB of 1) and `tuesday` (4 KiB of 2), and 3 in it now; `/other` without snapshots.
fn mounted() -> (Mounted, VolumeId) {
    let mounted = Mounted::new();
    fs::write(mounted.path("other"), "other").unwrap();
    fs::create_dir(mounted.path("below")).unwrap();
    fs::write(mounted.path("disk"), [1; 8192]).unwrap();
    let volume = mounted.volume_of("disk");
    mounted
        .volumes
        .take_snapshot(volume, 5, "monday", 1_000_000_000_123_456);
    fs::write(mounted.path("disk"), [2; 4096]).unwrap();
    mounted
        .volumes
        .take_snapshot(volume, 6, "tuesday", 1_000_086_400_000_000);
    fs::write(mounted.path("disk"), [3; 100]).unwrap();
    (mounted, volume)
}

#[test]
fn a_snapshot_is_a_file_below_the_hidden_directory() {
    let (mounted, _) = mounted();
    let dir = mounted.path(".snapshots");
    assert_eq!(
        names(&dir),
        ["disk@monday", "disk@tuesday"].map(str::to_owned).into()
    );
    assert_eq!(
        names(mounted.point()),
        ["below", "disk", "other"].map(str::to_owned).into(),
        "what walks the tree does not meet it"
    );
    assert_eq!(names(&mounted.path("below/.snapshots")), BTreeSet::new());
    let (monday, tuesday) = (dir.join("disk@monday"), dir.join("disk@tuesday"));
    assert_eq!(fs::read(&monday).unwrap(), [1; 8192]);
    assert_eq!(fs::read(&tuesday).unwrap(), [2; 4096]);
    assert_eq!(fs::read(mounted.path("disk")).unwrap(), [3; 100]);
    let found = fs::metadata(&monday).unwrap();
    let taken = UNIX_EPOCH + Duration::from_micros(1_000_000_000_123_456);
    assert!(found.is_file());
    assert_eq!((found.len(), found.blocks(), found.nlink()), (8192, 16, 1));
    assert_eq!(found.modified().unwrap(), taken);
    let of = fs::metadata(mounted.path("disk")).unwrap();
    assert_eq!((found.uid(), found.mode() & 0o777), (of.uid(), of.mode() & 0o555));
    let found = fs::metadata(&dir).unwrap();
    assert!(found.is_dir() && found.mode() & 0o222 == 0);
    // What a read beyond the end, a hole and the end of one are.
    let file = File::open(&monday).unwrap();
    assert_eq!(file.read_at(&mut [0; 100], 8150).unwrap(), 42);
    assert_eq!(file.read_at(&mut [0; 100], 8192).unwrap(), 0);
    let hole = rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(0));
    assert_eq!(hole.unwrap(), 8192);
    file.sync_all().unwrap();
    drop(file);
    for missing in [
        "disk@friday",
        "disk",
        "@monday",
        "below@monday",
        "other@monday",
        "x@y@z",
    ] {
        assert_eq!(errno(fs::metadata(dir.join(missing))), libc::ENOENT, "{missing}");
    }
    assert_eq!(errno(fs::metadata(dir.join(".snapshots"))), libc::ENOENT);
    assert_eq!(mounted.volumes.open_volumes(), 0);
}

#[test]
fn nothing_below_the_hidden_directory_can_be_changed() {
    let (mounted, _) = mounted();
    let dir = mounted.path(".snapshots");
    let monday = dir.join("disk@monday");
    let rofs = |what: &str, done: io::Result<()>| assert_eq!(errno(done), libc::EROFS, "{what}");
    rofs("create", File::create(dir.join("new")).map(drop));
    rofs("write", OpenOptions::new().write(true).open(&monday).map(drop));
    rofs("append", OpenOptions::new().append(true).open(&monday).map(drop));
    let read = OpenOptions::new().read(true).write(true).open(&monday);
    rofs("read and write", read.map(drop));
    rofs("truncate", fs::write(&monday, ""));
    rofs("mkdir", fs::create_dir(dir.join("new")));
    rofs("unlink", fs::remove_file(&monday));
    rofs("rmdir", fs::remove_dir(&dir));
    rofs("rename out", fs::rename(&monday, mounted.path("out")));
    rofs("rename in", fs::rename(mounted.path("disk"), dir.join("in")));
    rofs("rename within", fs::rename(&monday, dir.join("disk@sunday")));
    rofs("rename of it", fs::rename(&dir, mounted.path("out")));
    rofs("rename onto it", fs::rename(mounted.path("below"), &dir));
    rofs(
        "chmod",
        fs::set_permissions(&monday, fs::Permissions::from_mode(0o777)),
    );
    rofs(
        "chmod of it",
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)),
    );
    let file = File::open(&monday).unwrap();
    rofs("utimes", file.set_modified(UNIX_EPOCH));
    assert_eq!(errno(fs::create_dir(&dir)), libc::EEXIST);
    assert_eq!(fs::read(&monday).unwrap(), [1; 8192]);
    assert_eq!(names(mounted.point()).len(), 3);
}

#[test]
fn inodes_are_the_same_after_a_restart_and_in_listings() {
    let dir = Rc::new(tempfile::tempdir().unwrap());
    let (registry, volumes) = (registry(), MemoryVolumes::default());
    let mut seen = BTreeSet::new();
    for life in 0..2 {
        let mounted = Mounted::over(registry.clone(), volumes.clone(), Rc::clone(&dir));
        if life == 0 {
            fs::write(mounted.path("disk"), "x").unwrap();
            volumes.take_snapshot(mounted.volume_of("disk"), 5, "monday", 1);
            volumes.take_snapshot(mounted.volume_of("disk"), 6, "tuesday", 2);
        }
        let snapshots = mounted.path(".snapshots");
        let number = |path: &Path| fs::metadata(path).unwrap().ino();
        let mut numbers = BTreeSet::from([number(&snapshots)]);
        for entry in fs::read_dir(&snapshots).unwrap() {
            let entry = entry.unwrap();
            assert_eq!(entry.ino(), number(&entry.path()));
            numbers.insert(entry.ino());
        }
        assert_eq!(numbers.len(), 3);
        assert!(
            numbers.iter().all(|number| number >> 63 == 1),
            "no record has such a number"
        );
        seen.insert(numbers);
    }
    assert_eq!(seen.len(), 1);
}

#[test]
fn a_snapshot_is_seen_at_once_and_one_that_is_removed_soon_no_more() {
    let (mounted, volume) = mounted();
    let dir = mounted.path(".snapshots");
    let monday = dir.join("disk@monday");
    let file = File::open(&monday).unwrap();
    // What is believed of the volume is a moment old.
    mounted.volumes.take_snapshot(volume, 7, "wednesday", 3);
    assert_eq!(fs::read(dir.join("disk@wednesday")).unwrap(), [3; 100]);
    let (asked, begun) = (mounted.volumes.asked(), Instant::now());
    for _ in 0..100 {
        fs::metadata(dir.join("disk@tuesday")).unwrap();
    }
    // Once a second, however long it takes.
    let seconds = usize::try_from(begun.elapsed().as_secs()).unwrap();
    assert!(
        mounted.volumes.asked() <= asked + 3 + seconds,
        "owners are not asked for each name"
    );
    mounted.volumes.remove_snapshot(volume, 5);
    assert_eq!(errno(file.read_at(&mut [0; 10], 0)), libc::ESTALE);
    let deadline = Instant::now() + Duration::from_secs(60);
    while fs::metadata(&monday).is_ok() {
        assert!(Instant::now() < deadline, "it stays");
        std::thread::yield_now();
    }
    assert_eq!(errno(File::open(&monday)), libc::ENOENT);
    // Another has its name: it is another file.
    mounted.volumes.take_snapshot(volume, 8, "monday", 4);
    assert_eq!(fs::read(&monday).unwrap(), [3; 100]);
    assert_eq!(errno(file.read_at(&mut [0; 10], 0)), libc::ESTALE);
}

#[test]
fn a_listing_that_may_not_be_whole_ends_with_an_error() {
    let (mounted, _) = mounted();
    mounted.volumes.lose_owner_of(mounted.volume_of("other"));
    let listed: Vec<_> = fs::read_dir(mounted.path(".snapshots")).unwrap().collect();
    let found = listed.iter().filter(|entry| entry.is_ok()).count();
    assert_eq!((found, listed.len()), (2, 3), "{listed:?}");
    // The files whose owners answer are there all the same.
    let monday = mounted.path(".snapshots/disk@monday");
    assert_eq!(fs::read(monday).unwrap(), [1; 8192]);
}

#[test]
fn a_file_is_not_removed_while_a_snapshot_of_it_is_read() {
    let (mounted, _) = mounted();
    let open = File::open(mounted.path(".snapshots/disk@monday")).unwrap();
    assert_eq!(errno(fs::remove_file(mounted.path("disk"))), libc::EBUSY);
    drop(open);
    // The kernel tells of a close a moment later.
    let deadline = Instant::now() + Duration::from_secs(60);
    while fs::remove_file(mounted.path("disk")).is_err() {
        assert!(Instant::now() < deadline, "it is busy for ever");
        std::thread::yield_now();
    }
    fs::create_dir(mounted.path("vm")).unwrap();
    fs::write(mounted.path("vm/disk"), "x").unwrap();
    assert_eq!(names(&mounted.path("vm/.snapshots")), BTreeSet::new());
    fs::remove_dir_all(mounted.path("vm")).unwrap();
}

#[test]
fn a_directory_of_that_name_that_somebody_made_is_as_any_other() {
    let (mounted, _) = mounted();
    let tree = Names::new(mounted.registry.clone(), Clock::system(), Chance::seeded(3));
    let path = "/below/.snapshots".parse().unwrap();
    block_on(tree.make_directories(&path)).unwrap();
    let dir = mounted.path("below/.snapshots");
    fs::write(dir.join("mine"), "mine").unwrap();
    assert_eq!(names(&mounted.path("below")), [".snapshots".to_owned()].into());
    assert_eq!(fs::read_to_string(dir.join("mine")).unwrap(), "mine");
    fs::rename(&dir, mounted.path("below/renamed")).unwrap();
}
