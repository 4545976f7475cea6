//! The device's rules: what was appended is read back, files are recycled only when nobody reads them, faults are
//! told and never hidden.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use sconce_runtime::Chance;
use sconce_schemas::crc::crc32c;
use sconce_schemas::sco::{BatchBuilder, Entry, EntryKind, ScoHeader};
use sconce_schemas::{BatchSeq, CLUSTER_LEN, ClusterAddress, Epoch, ScoId, ScoSize, Slot, VolumeId};

use super::faults::{Call, Fault, FaultyDisk};
use super::{Device, Disk, ScoFile, Sought, SystemDisk, Tenant, check_clusters};

const VOLUME: VolumeId = VolumeId([1; 16]);
const LONG: Duration = Duration::from_secs(20);

fn small() -> ScoSize {
    ScoSize::new(64).unwrap()
}

fn header(volume: VolumeId, id: u64) -> ScoHeader {
    ScoHeader {
        volume,
        id: ScoId(id),
        epoch: Epoch(1),
        size: small(),
        first_batch: BatchSeq(1),
        synced_below: ScoId(1),
    }
}

fn open(dir: &Path, files: u64, disk: Arc<dyn Disk>) -> Device {
    Device::open(dir, files * small().file_len(), disk, &mut Chance::from_os()).unwrap()
}

#[derive(Debug, PartialEq, Eq)]
enum Asked {
    Evict(u64),
    FileReady,
    Pressed,
}

struct Recorder(Sender<Asked>);

impl Tenant for Recorder {
    fn evict(&self, sco: ScoId, _: Epoch) {
        let _ = self.0.send(Asked::Evict(sco.0));
    }
    fn file_ready(&self) {
        let _ = self.0.send(Asked::FileReady);
    }
    fn pressed(&self) {
        let _ = self.0.send(Asked::Pressed);
    }
}

fn tenant(device: &Device, volume: VolumeId) -> Receiver<Asked> {
    let (sender, asked) = channel();
    device.join(volume, Arc::new(Recorder(sender)));
    asked
}

/// A file for the SCO, waiting for the device to say that there is one.
fn obtain(device: &Device, asked: &Receiver<Asked>, id: u64) -> Arc<ScoFile> {
    obtain_for(device, asked, &header(VOLUME, id))
}

/// The same for any volume's.
fn obtain_for(device: &Device, asked: &Receiver<Asked>, header: &ScoHeader) -> Arc<ScoFile> {
    loop {
        if let Some(file) = device.open_sco(header).unwrap() {
            return file;
        }
        while asked.recv_timeout(LONG).unwrap() != Asked::FileReady {}
    }
}

fn cluster(seed: u64) -> Bytes {
    let mut bytes = vec![0; CLUSTER_LEN];
    Chance::seeded(seed).fill(&mut bytes);
    bytes.into()
}

fn read(file: &ScoFile, slot: u16, clusters: usize) -> BytesMut {
    let mut out = BytesMut::new();
    file.read(Slot(slot), clusters, &mut out).unwrap();
    out
}

#[test]
fn what_is_appended_is_read_back_through_short_writes_and_reads() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Arc::new(FaultyDisk::default());
    let device = open(dir.path(), 4, disk.clone());
    let asked = tenant(&device, VOLUME);
    let file = obtain(&device, &asked, 1);
    let parts: Vec<Bytes> = (0..3).map(cluster).collect();
    for short in [1, 4095, 4096, 5000] {
        disk.arm(Call::Write, 0, 3, Fault::Short(short));
        file.append(Slot(2), &parts, 128, &[9; 80]).unwrap();
        disk.arm(Call::Read, 0, 3, Fault::Short(short));
        assert_eq!(read(&file, 2, 3), parts.concat());
    }
    let whole = file.whole().unwrap();
    assert_eq!(whole[4096 + 128..4096 + 208], [9; 80]);
    assert_eq!(ScoHeader::from_bytes(&whole).unwrap(), header(VOLUME, 1));
    assert_eq!(file.image(4096).unwrap(), whole[..4096]);

    file.seal(200).unwrap();
    let sealed = file.whole().unwrap();
    assert_eq!(sealed[4096 + 128..4096 + 200], [9; 72]);
    let tlog_end = usize::try_from(small().data_offset()).unwrap();
    assert!(sealed[4096 + 200..tlog_end].iter().all(|byte| *byte == 0));
    assert_eq!(sealed[tlog_end..], whole[tlog_end..], "data is not touched");
}

#[test]
fn more_parts_than_one_call_takes_are_written() {
    let dir = tempfile::tempdir().unwrap();
    let size = ScoSize::new(2048).unwrap();
    let device = Device::open(dir.path(), 16 << 20, Arc::new(SystemDisk), &mut Chance::from_os()).unwrap();
    let asked = tenant(&device, VOLUME);
    let header = ScoHeader {
        size,
        ..header(VOLUME, 1)
    };
    let file = loop {
        match device.open_sco(&header).unwrap() {
            Some(file) => break file,
            None => assert_eq!(asked.recv_timeout(LONG).unwrap(), Asked::FileReady),
        }
    };
    let parts: Vec<Bytes> = (0..1500).map(cluster).collect();
    file.append(Slot(3), &parts, 0, &[1]).unwrap();
    assert_eq!(read(&file, 3, 1500), parts.concat());
}

#[test]
fn a_batch_outside_the_areas_is_refused_and_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let device = open(dir.path(), 4, Arc::new(SystemDisk));
    let asked = tenant(&device, VOLUME);
    let file = obtain(&device, &asked, 1);
    let before = file.whole().unwrap();
    for (slot, tlog_offset) in [(64, 0), (0, small().tlog_area()), (63, u64::MAX)] {
        let error = file
            .append(Slot(slot), &[cluster(1)], tlog_offset, &[1; 8])
            .unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput, "{error}");
    }
    let mut out = BytesMut::new();
    assert!(file.read(Slot(63), 2, &mut out).is_err());
    assert_eq!(file.whole().unwrap(), before);
}

#[test]
fn errors_are_told_and_a_failed_sync_writes_all_again() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Arc::new(FaultyDisk::default());
    let device = open(dir.path(), 4, disk.clone());
    let asked = tenant(&device, VOLUME);
    let file = obtain(&device, &asked, 1);
    for fault in [Fault::Io, Fault::NoSpace] {
        disk.arm(Call::Write, 0, 1, fault);
        assert!(file.append(Slot(0), &[cluster(1)], 0, &[1]).is_err());
    }
    disk.arm(Call::Sync, 0, 1, Fault::Io);
    assert!(file.sync().is_err());
    // The next sync has to write first: with writes failing it fails too, however well the sync itself goes.
    disk.arm(Call::Write, 0, 1, Fault::Io);
    assert!(file.sync().is_err());
    file.sync().unwrap();
    disk.arm(Call::Write, 0, 1, Fault::Io);
    file.sync().unwrap();
    disk.heal();
}

#[test]
fn two_syncs_of_a_file_do_not_share_one_error() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Arc::new(FaultyDisk::default());
    let device = open(dir.path(), 4, disk.clone());
    let asked = tenant(&device, VOLUME);
    let file = obtain(&device, &asked, 1);
    // As the system does it: of two syncs that are under way one hears of the error, and the other that all is well.
    // One after the other, the second one writes again what the first could not keep.
    disk.arm(Call::Sync, 0, 1, Fault::Io);
    disk.arm(Call::Write, 0, 1, Fault::Io);
    let outcomes: Vec<bool> = std::thread::scope(|scope| {
        let syncs = [(); 2].map(|()| scope.spawn(|| file.sync().is_ok()));
        syncs.map(|sync| sync.join().unwrap()).to_vec()
    });
    assert_eq!(outcomes, [false, false], "the second has to write first");
    file.sync().unwrap();

    // Another SCO in the same file has nothing to write again: that would race with its appends.
    disk.arm(Call::Sync, 0, 1, Fault::Io);
    assert!(file.sync().is_err());
    file.begin(&header(VOLUME, 2)).unwrap();
    disk.arm(Call::Write, 0, 1, Fault::Io);
    file.sync().unwrap();
}

#[test]
fn what_is_not_in_memory_is_left_to_the_blocking_read() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Arc::new(FaultyDisk::default());
    let device = open(dir.path(), 4, disk.clone());
    let asked = tenant(&device, VOLUME);
    let file = obtain(&device, &asked, 1);
    file.append(Slot(0), &[cluster(1)], 0, &[1]).unwrap();
    let mut out = BytesMut::from(&b"before"[..]);
    disk.arm(Call::Read, 0, 1, Fault::NotInMemory);
    assert!(!file.read_now(Slot(0), 1, &mut out).unwrap());
    assert_eq!(out, &b"before"[..]);
    assert!(file.read_now(Slot(0), 1, &mut out).unwrap());
    assert_eq!(out[6..], cluster(1));
}

#[test]
fn a_file_that_is_read_goes_to_nobody_else() {
    let dir = tempfile::tempdir().unwrap();
    let device = open(dir.path(), 1, Arc::new(SystemDisk));
    let asked = tenant(&device, VOLUME);
    let first = obtain(&device, &asked, 1);
    first.append(Slot(0), &[cluster(1)], 0, &[1]).unwrap();
    assert!(
        device.open_sco(&header(VOLUME, 2)).unwrap().is_none(),
        "one file is all there is"
    );
    device.evictable(VOLUME, ScoId(1), Epoch(1), &first);
    while asked.recv_timeout(LONG).unwrap() != Asked::Evict(1) {}
    let reader = Arc::clone(&first);
    device.retire(&first);
    drop(first);
    assert!(
        device.open_sco(&header(VOLUME, 2)).unwrap().is_none(),
        "it is being read"
    );
    assert_eq!(read(&reader, 0, 1), cluster(1));
    drop(reader);
    let second = obtain(&device, &asked, 2);
    let whole = second.whole().unwrap();
    assert_eq!(ScoHeader::from_bytes(&whole).unwrap().id, ScoId(2));
    let tlog = 4096..usize::try_from(small().data_offset()).unwrap();
    assert!(
        whole[tlog].iter().all(|byte| *byte == 0),
        "nothing of the SCO before shows"
    );
}

#[test]
fn caches_go_first_in_first_out_and_unstored_scos_never() {
    let dir = tempfile::tempdir().unwrap();
    let device = open(dir.path(), 6, Arc::new(SystemDisk));
    let asked = tenant(&device, VOLUME);
    let mut files: HashMap<u64, Arc<ScoFile>> = HashMap::new();
    for id in 1..=6 {
        files.insert(id, obtain(&device, &asked, id));
    }
    assert_eq!(device.fullness(), 1000);
    for id in [4, 2, 6] {
        device.evictable(VOLUME, ScoId(id), Epoch(1), &files[&id]);
    }
    assert_eq!(device.fullness(), 500);
    let mut evicted = Vec::new();
    let mut pressed = false;
    for id in 7..=9 {
        // Room for spares may be asked for ahead of need, so evictions are followed as they come.
        let file = loop {
            if let Some(file) = device.open_sco(&header(VOLUME, id)).unwrap() {
                break file;
            }
            match asked.recv_timeout(LONG).unwrap() {
                Asked::Evict(sco) => {
                    evicted.push(sco);
                    device.retire(&files.remove(&sco).unwrap());
                }
                Asked::FileReady => {}
                Asked::Pressed => pressed = true,
            }
        };
        files.insert(id, file);
    }
    assert_eq!(evicted, [4, 2, 6]);
    assert!(device.open_sco(&header(VOLUME, 10)).unwrap().is_none());
    while !pressed {
        pressed = asked.recv_timeout(LONG).unwrap() == Asked::Pressed;
    }
    assert_eq!(
        (device.usage().unstored, device.usage().waiting),
        (device.usage().size, 1)
    );
}

#[test]
fn a_restart_finds_by_headers_what_was_held_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let other = VolumeId([2; 16]);
    let id = {
        let device = open(dir.path(), 6, Arc::new(SystemDisk));
        let asked = tenant(&device, VOLUME);
        let kept = obtain(&device, &asked, 1);
        kept.append(Slot(0), &[cluster(1)], 0, &[1]).unwrap();
        let given_back = obtain(&device, &asked, 2);
        device.retire(&given_back);
        let foreign = obtain(&device, &asked, 3);
        foreign.begin(&header(other, 3)).unwrap();
        device.id().to_owned()
    };
    fs::write(dir.path().join("sco/99999990"), [0; 10]).unwrap();
    fs::write(dir.path().join("sco/stray.txt"), "not ours").unwrap();
    let device = open(dir.path(), 6, Arc::new(SystemDisk));
    assert_eq!(device.id(), id);
    assert_eq!(device.unclaimed(), [VOLUME, other]);
    assert_eq!(device.usage().unstored.0, 2 * small().file_len());
    let found = device.claim(VOLUME);
    assert_eq!(
        found.iter().map(|found| found.header).collect::<Vec<_>>(),
        [header(VOLUME, 1)]
    );
    assert_eq!(read(&found[0].file, 0, 1), cluster(1));
    assert!(device.claim(VOLUME).is_empty());
    device.disclaim(VOLUME, found);
    let found = device.claim(VOLUME);
    assert_eq!(found.len(), 1);
    assert!(device.unclaimed_of(VOLUME).is_none());
    device.disclaim(VOLUME, found);
    let seen = device.unclaimed_of(VOLUME).unwrap();
    let claimed = device.claim(VOLUME);
    device.disclaim(VOLUME, claimed);
    let judged = device.give_up(seen, |_| panic!("what came after it was seen is not judged"));
    assert_eq!(judged, 0, "it is kept");
    assert_eq!(device.give_up(device.unclaimed_of(VOLUME).unwrap(), |_| false), 0);
    assert_eq!(device.give_up(device.unclaimed_of(VOLUME).unwrap(), |_| true), 1);
    assert!(
        !dir.path().join("sco/99999990").exists(),
        "a file that was being made is removed"
    );
    assert!(
        dir.path().join("sco/stray.txt").exists(),
        "what is not ours is left alone"
    );
}

/// A buffer with one SCO that has one batch; gives the SCO's file and what recovery would look for.
fn with_one_batch(dir: &Path) -> (PathBuf, Sought) {
    let device = open(dir, 2, Arc::new(SystemDisk));
    let asked = tenant(&device, VOLUME);
    let file = obtain(&device, &asked, 1);
    let entry = Entry {
        kind: EntryKind::Write {
            address: ClusterAddress(0),
            crc: crc32c(&cluster(7)),
        },
        session: 0,
        number: 1,
        last: true,
    };
    let mut batch = BatchBuilder::default();
    batch.push(&entry);
    let tlog = batch.close(header(VOLUME, 1).salt(), BatchSeq(5), Slot(0), 0);
    file.append(Slot(0), &[cluster(7)], 0, &tlog).unwrap();
    // The keeper may be making the other file right now: it is empty at first.
    let holds = |path: &PathBuf| {
        let bytes = fs::read(path).unwrap();
        bytes.get(..4).is_some_and(|magic| magic != [0; 4])
    };
    let mut paths = fs::read_dir(dir.join("sco"))
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let sought = Sought {
        volume: VOLUME,
        sco: ScoId(1),
        epoch: Epoch(1),
        size: small(),
    };
    (paths.find(holds).unwrap(), sought)
}

#[test]
fn a_file_with_a_wrong_header_is_not_free_and_is_known_by_its_batches() {
    let dir = tempfile::tempdir().unwrap();
    let (path, sought) = with_one_batch(dir.path());
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(&[0xff], 20).unwrap();

    let device = open(dir.path(), 2, Arc::new(SystemDisk));
    let asked = tenant(&device, VOLUME);
    assert!(device.unclaimed().is_empty());
    let _other = obtain(&device, &asked, 2);
    assert!(device.open_sco(&header(VOLUME, 3)).unwrap().is_none());
    while asked.recv_timeout(LONG).unwrap() != Asked::Pressed {}

    let other = |change: &dyn Fn(&mut Sought)| {
        let mut other = sought;
        change(&mut other);
        device.identify(&other)
    };
    assert_eq!(other(&|other| other.sco = ScoId(2)), Ok(false));
    assert_eq!(other(&|other| other.epoch = Epoch(2)), Ok(false));
    assert_eq!(other(&|other| other.volume = VolumeId([3; 16])), Ok(false));
    assert_eq!(device.identify(&sought), Ok(true));
    let found = device.claim(VOLUME);
    assert_eq!(
        (found[0].header.id, found[0].header.first_batch),
        (ScoId(1), BatchSeq(5))
    );
    assert_eq!(read(&found[0].file, 0, 1), cluster(7));
    drop(device);
    let device = open(dir.path(), 2, Arc::new(SystemDisk));
    assert!(device.unclaimed().contains(&VOLUME), "it has its header again");
}

#[test]
fn a_file_that_cannot_be_read_may_be_any_sco_and_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (path, sought) = with_one_batch(dir.path());
    let disk = Arc::new(FaultyDisk::default());
    disk.arm(Call::Read, 0, u32::MAX, Fault::Io);
    let device = open(dir.path(), 2, disk.clone());
    assert!(device.unclaimed().is_empty());
    let text = device.identify(&sought).unwrap_err();
    assert!(
        text.contains(path.file_name().unwrap().to_str().unwrap()),
        "{text}"
    );
    disk.heal();
    assert_eq!(device.identify(&sought), Ok(true));
}

#[test]
fn a_file_that_was_cut_off_is_missed_by_its_sco_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (path, sought) = with_one_batch(dir.path());
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(8192).unwrap();
    let device = open(dir.path(), 2, Arc::new(SystemDisk));
    assert!(device.identify(&sought).unwrap_err().contains("8192"));
    let mut other = sought;
    other.sco = ScoId(2);
    assert_eq!(device.identify(&other), Ok(false));
    assert!(path.exists());
}

#[test]
fn what_no_volume_asked_for_stays_however_full_the_buffer_is() {
    let dir = tempfile::tempdir().unwrap();
    let other = VolumeId([2; 16]);
    {
        let device = open(dir.path(), 2, Arc::new(SystemDisk));
        let asked = tenant(&device, VOLUME);
        let only_copy = obtain(&device, &asked, 1);
        only_copy.begin(&header(other, 1)).unwrap();
        only_copy.append(Slot(0), &[cluster(7)], 0, &[1]).unwrap();
    }
    let device = open(dir.path(), 2, Arc::new(SystemDisk));
    let asked = tenant(&device, VOLUME);
    let _first = obtain(&device, &asked, 1);
    assert!(device.open_sco(&header(VOLUME, 2)).unwrap().is_none());
    // Its own volumes are asked to store what they have; the other's file is nobody's to take.
    while asked.recv_timeout(LONG).unwrap() != Asked::Pressed {}
    assert!(device.open_sco(&header(VOLUME, 2)).unwrap().is_none());
    assert_eq!(device.unclaimed(), [other]);

    // Only when its volume, or whoever knows that it is deleted, gives it back.
    let found = device.claim(other);
    assert_eq!(read(&found[0].file, 0, 1), cluster(7));
    device.retire(&found[0].file);
    drop(found);
    obtain(&device, &asked, 2);
}

/// A device that is full: of a SCO that has to stay, and of one that is a cache.
fn with_a_cache(dir: &Path) -> (Device, Receiver<Asked>, Arc<ScoFile>, Arc<ScoFile>) {
    let device = open(dir, 2, Arc::new(SystemDisk));
    let asked = tenant(&device, VOLUME);
    let first = obtain(&device, &asked, 1);
    let second = obtain(&device, &asked, 2);
    device.evictable(VOLUME, ScoId(2), Epoch(1), &second);
    (device, asked, first, second)
}

#[test]
fn a_cache_that_was_given_back_by_a_volume_that_waits_can_be_taken_from_there() {
    let dir = tempfile::tempdir().unwrap();
    let (device, asked, _first, second) = with_a_cache(dir.path());
    // It is served no more, but hears of its files.
    let given_back = super::FoundSco {
        header: header(VOLUME, 2),
        file: second,
    };
    device.disclaim(VOLUME, vec![given_back]);
    let another = VolumeId([9; 16]);
    let other = tenant(&device, another);
    let wanted = header(another, 3);
    assert!(device.open_sco(&wanted).unwrap().is_none());
    while asked.recv_timeout(LONG).unwrap() != Asked::Evict(2) {}
    device.evict_left(VOLUME, ScoId(2), Epoch(1));
    obtain_for(&device, &other, &wanted);
}

#[test]
fn a_cache_whose_volume_ended_while_it_was_asked_for_can_be_asked_for_again() {
    let dir = tempfile::tempdir().unwrap();
    let (device, asked, _first, second) = with_a_cache(dir.path());
    while asked.recv_timeout(LONG).unwrap() != Asked::Evict(2) {}
    // It does not hear that: its volume ends, and its next run finds the file and takes it for a cache again.
    device.leave(VOLUME);
    device.disclaim(
        VOLUME,
        vec![super::FoundSco {
            header: header(VOLUME, 2),
            file: second,
        }],
    );
    let asked = tenant(&device, VOLUME);
    let found = device.claim(VOLUME);
    device.evictable(VOLUME, ScoId(2), Epoch(1), &found[0].file);
    assert!(device.open_sco(&header(VOLUME, 3)).unwrap().is_none());
    while asked.recv_timeout(LONG).unwrap() != Asked::Evict(2) {}
    // This time there is nobody left to hear it: the device takes the file by itself.
    device.leave(VOLUME);
    let second = Arc::clone(&found[0].file);
    device.disclaim(VOLUME, found);
    device.evictable(VOLUME, ScoId(2), Epoch(1), &second);
    drop(second);
    let another = VolumeId([9; 16]);
    let asked = tenant(&device, another);
    obtain_for(&device, &asked, &header(another, 3));
    assert!(device.unclaimed().is_empty());
}

#[test]
fn a_new_file_is_used_only_once_its_name_survives_a_loss_of_power() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Arc::new(FaultyDisk::default());
    disk.arm(Call::Keep, 2, u32::MAX, Fault::Io);
    let device = open(dir.path(), 6, disk.clone());
    let asked = tenant(&device, VOLUME);
    let _first = obtain(&device, &asked, 1);
    let _second = obtain(&device, &asked, 2);
    assert!(device.open_sco(&header(VOLUME, 3)).unwrap().is_none());
    while asked.recv_timeout(LONG).unwrap() != Asked::Pressed {}
    assert_eq!(device.usage().allocated.0, 2 * small().file_len());
    assert_eq!(fs::read_dir(dir.path().join("sco")).unwrap().count(), 2);
}

#[test]
fn a_disk_without_space_ends_growth_but_not_service() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Arc::new(FaultyDisk::default());
    disk.arm(Call::Allocate, 2, u32::MAX, Fault::NoSpace);
    let device = open(dir.path(), 6, disk.clone());
    let asked = tenant(&device, VOLUME);
    let first = obtain(&device, &asked, 1);
    let _second = obtain(&device, &asked, 2);
    assert!(device.open_sco(&header(VOLUME, 3)).unwrap().is_none());
    while asked.recv_timeout(LONG).unwrap() != Asked::Pressed {}
    device.evictable(VOLUME, ScoId(1), Epoch(1), &first);
    while asked.recv_timeout(LONG).unwrap() != Asked::Evict(1) {}
    device.retire(&first);
    drop(first);
    obtain(&device, &asked, 3);
    assert_eq!(device.usage().allocated.0, 2 * small().file_len());
}

#[test]
fn a_header_that_cannot_be_written_gives_the_file_back() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Arc::new(FaultyDisk::default());
    let device = open(dir.path(), 1, disk.clone());
    let asked = tenant(&device, VOLUME);
    assert!(device.open_sco(&header(VOLUME, 1)).unwrap().is_none());
    while asked.recv_timeout(LONG).unwrap() != Asked::FileReady {}
    disk.arm(Call::Write, 0, 1, Fault::Io);
    assert!(device.open_sco(&header(VOLUME, 2)).is_err());
    obtain(&device, &asked, 3);
}

#[test]
fn readers_and_recycling_never_meet() {
    let dir = tempfile::tempdir().unwrap();
    let device = open(dir.path(), 4, Arc::new(SystemDisk));
    let asked = tenant(&device, VOLUME);
    let live: Mutex<HashMap<u64, Arc<ScoFile>>> = Mutex::default();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for seed in 0..2 {
            let (live, done) = (&live, &done);
            scope.spawn(move || {
                let mut chance = Chance::seeded(seed);
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    let some = {
                        let live = live.lock().unwrap();
                        let at = usize::try_from(chance.below(live.len() as u64)).unwrap();
                        live.iter().nth(at).map(|(id, file)| (*id, Arc::clone(file)))
                    };
                    let Some((id, file)) = some else { continue };
                    let crcs = [crc32c(&cluster(id)), crc32c(&cluster(id + 1000))];
                    check_clusters(&read(&file, 0, 2), &crcs).unwrap();
                }
            });
        }
        for id in 1..400 {
            let file = loop {
                if let Some(file) = device.open_sco(&header(VOLUME, id)).unwrap() {
                    break file;
                }
                if let Asked::Evict(sco) = asked.recv_timeout(LONG).unwrap() {
                    let file = live.lock().unwrap().remove(&sco);
                    device.retire(&file.unwrap());
                }
            };
            file.append(Slot(0), &[cluster(id), cluster(id + 1000)], 0, &[1])
                .unwrap();
            device.evictable(VOLUME, ScoId(id), Epoch(1), &file);
            live.lock().unwrap().insert(id, file);
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

#[test]
fn a_wrong_cluster_is_named() {
    let (one, two) = (cluster(1), cluster(2));
    let both = [one.clone(), two.clone()].concat();
    let crcs = [crc32c(&one), crc32c(&two)];
    check_clusters(&both, &crcs).unwrap();
    let mut flipped = both.clone();
    flipped[CLUSTER_LEN + 17] ^= 4;
    let bad = check_clusters(&flipped, &crcs).unwrap_err();
    assert_eq!((bad.at, bad.expected), (1, crcs[1]));
    assert!(
        check_clusters(&both[..CLUSTER_LEN], &crcs).is_err(),
        "a missing cluster is a bad one"
    );
}
