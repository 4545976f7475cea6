//! Random operations on a file, each compared with what a plain buffer says.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek, statvfs};
use sconce_runtime::Chance;

use super::Mounted;

const SIZE_MAX: u64 = 300_000;

fn open(mounted: &Mounted, name: &str) -> File {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(mounted.path(name))
        .unwrap()
}

fn index(at: u64) -> usize {
    usize::try_from(at).unwrap()
}

/// One random change, in the file and in the model.
fn change(file: &File, model: &mut Vec<u8>, chance: &mut Chance) {
    let offset = chance.below(SIZE_MAX);
    let length = 1 + chance.below(40_000);
    let (from, to) = (index(offset), index(offset + length));
    match chance.below(6) {
        0 | 1 => {
            let mut data = vec![0; index(length)];
            chance.fill(&mut data);
            file.write_all_at(&data, offset).unwrap();
            model.resize(model.len().max(to), 0);
            model[from..to].copy_from_slice(&data);
        }
        2 => {
            file.set_len(offset).unwrap();
            model.resize(from, 0);
        }
        3 => {
            fallocate(
                file,
                FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
                offset,
                length,
            )
            .unwrap();
            let end = model.len();
            model[from.min(end)..to.min(end)].fill(0);
        }
        4 => {
            fallocate(file, FallocateFlags::ZERO_RANGE, offset, length).unwrap();
            model.resize(model.len().max(to), 0);
            model[from..to].fill(0);
        }
        _ => {
            fallocate(file, FallocateFlags::empty(), offset, length).unwrap();
            model.resize(model.len().max(to), 0);
        }
    }
}

fn check(file: &File, model: &[u8], chance: &mut Chance) {
    assert_eq!(file.metadata().unwrap().len(), model.len() as u64);
    let offset = chance.below(SIZE_MAX);
    let mut found = vec![0; index(chance.below(60_000))];
    let mut filled = 0;
    while filled < found.len() {
        let read = file
            .read_at(&mut found[filled..], offset + filled as u64)
            .unwrap();
        if read == 0 {
            break;
        }
        filled += read;
    }
    let end = model.len().min(index(offset) + found.len());
    assert_eq!(
        &found[..filled],
        model.get(index(offset)..end).unwrap_or_default()
    );
}

/// The data that `SEEK_DATA` and `SEEK_HOLE` show is all that is not zero.
fn check_holes(file: &File, model: &[u8]) {
    let mut at = 0;
    loop {
        let data = match seek(file, SeekFrom::Data(at)) {
            Ok(data) => index(data),
            Err(rustix::io::Errno::NXIO) => model.len(),
            Err(other) => panic!("{other}"),
        };
        assert!(
            model[index(at)..data].iter().all(|byte| *byte == 0),
            "data at {at} was not shown"
        );
        if data == model.len() {
            return;
        }
        at = seek(file, SeekFrom::Hole(data as u64)).unwrap();
        assert!(index(at) > data && index(at) <= model.len());
    }
}

#[test]
fn random_operations_do_what_a_plain_buffer_does() {
    let mounted = Mounted::new();
    for seed in 0..4 {
        let mut chance = Chance::seeded(seed);
        let (file, mut model) = (open(&mounted, &format!("f{seed}")), Vec::new());
        for _ in 0..120 {
            change(&file, &mut model, &mut chance);
            check(&file, &model, &mut chance);
        }
        check_holes(&file, &model);
        drop(file);
        assert_eq!(
            std::fs::read(mounted.path(&format!("f{seed}"))).unwrap(),
            model,
            "seed {seed}"
        );
    }
}

#[test]
fn what_another_client_changed_is_seen_at_once() {
    let mounted = Mounted::new();
    std::fs::write(mounted.path("f"), b"one").unwrap();
    let (reader, writer) = (open(&mounted, "f"), open(&mounted, "f"));
    let mut found = [0; 8];
    assert_eq!(reader.read_at(&mut found, 0).unwrap(), 3);
    writer.write_all_at(b"second", 0).unwrap();
    assert_eq!(reader.read_at(&mut found, 0).unwrap(), 6);
    assert_eq!(&found[..6], b"second");
    writer.set_len(2).unwrap();
    assert_eq!(reader.read_at(&mut found, 0).unwrap(), 2);
}

#[test]
fn syncs_are_flushes_and_synchronous_writes_are_durable() {
    let mounted = Mounted::new();
    let file = open(&mounted, "f");
    file.write_all_at(b"x", 0).unwrap();
    assert_eq!(
        (mounted.volumes.flushes(), mounted.volumes.durable_writes()),
        (0, 0)
    );
    file.sync_all().unwrap();
    file.sync_data().unwrap();
    assert_eq!(mounted.volumes.flushes(), 2);
    let sync = OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_DSYNC)
        .open(mounted.path("f"))
        .unwrap();
    sync.write_all_at(b"y", 0).unwrap();
    assert_eq!(
        mounted.volumes.durable_writes() + (mounted.volumes.flushes() - 2),
        1
    );
}

#[test]
fn space_and_blocks_are_shown() {
    let mounted = Mounted::new();
    let file = open(&mounted, "f");
    file.set_len(1 << 30).unwrap();
    file.write_all_at(&[1; 8192], 1 << 20).unwrap();
    let metadata = std::fs::metadata(mounted.path("f")).unwrap();
    assert_eq!((metadata.len(), metadata.blocks()), (1 << 30, 16));
    // The part of a cluster at the start is zeroed, the whole one after it is given back.
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(&file, punch, (1 << 20) + 100, 8092).unwrap();
    let mut found = [9; 200];
    file.read_exact_at(&mut found, 1 << 20).unwrap();
    assert_eq!((found[..100] == [1; 100], found[100..] == [0; 100]), (true, true));
    assert_eq!(file.metadata().unwrap().blocks(), 8);
    let space = statvfs(mounted.point()).unwrap();
    assert_eq!(
        (space.f_blocks * space.f_bsize, space.f_bfree * space.f_bsize),
        (1 << 40, 1 << 39)
    );
    let too_large = file.set_len((64 << 40) + 1).unwrap_err();
    assert_eq!(too_large.raw_os_error(), Some(libc::EFBIG));
}
