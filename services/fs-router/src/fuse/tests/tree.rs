//! Names, directories and attributes as programs see them.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use super::Mounted;
use crate::fuse::Told;

fn errno<T: std::fmt::Debug>(result: io::Result<T>) -> i32 {
    result.unwrap_err().raw_os_error().unwrap()
}

fn names(directory: &Path) -> BTreeSet<String> {
    fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

#[test]
fn files_and_directories_come_move_and_go() {
    let mounted = Mounted::new();
    fs::create_dir_all(mounted.path("vm1/snapshots")).unwrap();
    fs::write(mounted.path("vm1/disk.vmdk"), "descriptor").unwrap();
    fs::write(mounted.path("vm1/disk-flat.vmdk"), [7; 10_000]).unwrap();
    assert_eq!(
        names(&mounted.path("vm1")),
        ["disk-flat.vmdk", "disk.vmdk", "snapshots"]
            .map(str::to_owned)
            .into()
    );
    fs::rename(
        mounted.path("vm1/disk.vmdk"),
        mounted.path("vm1/snapshots/d.vmdk"),
    )
    .unwrap();
    fs::rename(mounted.path("vm1"), mounted.path("vm2")).unwrap();
    assert_eq!(
        fs::read_to_string(mounted.path("vm2/snapshots/d.vmdk")).unwrap(),
        "descriptor"
    );
    fs::write(mounted.path("new"), "new").unwrap();
    fs::rename(mounted.path("new"), mounted.path("vm2/disk-flat.vmdk")).unwrap();
    assert_eq!(
        fs::read_to_string(mounted.path("vm2/disk-flat.vmdk")).unwrap(),
        "new"
    );
    fs::remove_dir_all(mounted.path("vm2")).unwrap();
    assert_eq!(names(mounted.point()), BTreeSet::new());
    let deleted = mounted
        .volumes
        .told()
        .iter()
        .filter(|(_, told)| *told == Told::Deleted)
        .count();
    assert_eq!(deleted, 3);
    assert_eq!(mounted.volumes.open_volumes(), 0);
}

#[test]
fn errors_are_those_of_any_file_system() {
    let mounted = Mounted::new();
    fs::create_dir_all(mounted.path("a/b")).unwrap();
    fs::write(mounted.path("f"), "f").unwrap();
    assert_eq!(errno(fs::read(mounted.path("none"))), libc::ENOENT);
    assert_eq!(errno(fs::create_dir(mounted.path("a"))), libc::EEXIST);
    assert_eq!(errno(fs::File::create_new(mounted.path("f"))), libc::EEXIST);
    assert_eq!(errno(fs::remove_dir(mounted.path("a"))), libc::ENOTEMPTY);
    assert_eq!(errno(fs::remove_file(mounted.path("a"))), libc::EISDIR);
    assert_eq!(
        errno(fs::rename(mounted.path("a"), mounted.path("a/b/c"))),
        libc::EINVAL
    );
    assert_eq!(
        errno(fs::rename(mounted.path("f"), mounted.path("a"))),
        libc::EISDIR
    );
    assert_eq!(errno(fs::read(mounted.path("f/x"))), libc::ENOTDIR);
    assert_eq!(errno(fs::write(mounted.path("disk@monday"), "")), libc::EINVAL);
    assert_eq!(
        errno(fs::write(mounted.path(&"x".repeat(256)), "")),
        libc::ENAMETOOLONG
    );
    assert_eq!(
        errno(std::os::unix::fs::symlink("f", mounted.path("s"))),
        libc::EPERM
    );
    assert_eq!(
        errno(fs::hard_link(mounted.path("f"), mounted.path("l"))),
        libc::EPERM
    );
    assert!(matches!(
        errno(
            rustix::fs::mknodat(
                rustix::fs::CWD,
                mounted.path("pipe"),
                rustix::fs::FileType::Fifo,
                rustix::fs::Mode::RUSR,
                0,
            )
            .map_err(io::Error::from)
        ),
        libc::EPERM
    ));
}

#[test]
fn attributes_are_kept() {
    let mounted = Mounted::new();
    let path = mounted.path("f");
    let file = fs::File::create(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    chown(&path, Some(1234), Some(99)).unwrap();
    let then = UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_789);
    file.set_modified(then).unwrap();
    let found = fs::metadata(&path).unwrap();
    assert_eq!(
        (found.mode() & 0o7777, found.uid(), found.gid()),
        (0o640, 1234, 99)
    );
    assert_eq!(found.modified().unwrap(), then);
    fs::write(&path, "later").unwrap();
    drop(file);
    let found = fs::metadata(&path).unwrap();
    assert!(found.modified().unwrap() > then);
    assert_eq!((found.mode() & 0o7777, found.len()), (0o640, 5));
}

#[test]
fn a_large_directory_is_listed_whole() {
    let mounted = Mounted::new();
    let expected: BTreeSet<String> = (0..1300).map(|n| format!("directory-{n:04}")).collect();
    expected
        .iter()
        .for_each(|name| fs::create_dir(mounted.path(name)).unwrap());
    assert_eq!(names(mounted.point()), expected);
}
