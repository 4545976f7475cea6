//! Streams that are cut and altered at every byte, and continued after every cut.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;

use sconce_schemas::stream::{RecordKind, StreamHeader, StreamSnapshot};
use sconce_schemas::{SnapshotId, VolumeId, VolumeSize};

use super::read::{Next, StreamReader};
use super::verify::whole;
use super::write::{StreamWriter, finish, open, partial_of};

const SIZE: u64 = 64 * 4096 + 512;

fn header(id: u64) -> StreamHeader {
    let snapshot = |id, name: &str| StreamSnapshot {
        volume: VolumeId([7; 16]),
        id: SnapshotId(id),
        name: name.to_owned(),
        created_us: 1,
        size: VolumeSize::new(SIZE).unwrap(),
        metadata: BTreeMap::new(),
    };
    StreamHeader {
        path: "/vm1/disk.raw".to_owned(),
        cluster_bytes: 4096,
        record_bytes_max: 1 << 20,
        from: Some(snapshot(1, "monday")),
        to: snapshot(id, "tuesday"),
    }
}

/// Offset, length and kind of each record; a data record's content follows from its offset.
const RECORDS: [(u64, u64, RecordKind); 5] = [
    (0, 4096, RecordKind::Data),
    (4096, 8192, RecordKind::Zeros),
    (16384, 4096, RecordKind::Hole),
    (20480, 4096, RecordKind::Data),
    (64 * 4096, 512, RecordKind::Data),
];

fn write_from<W: std::io::Write>(writer: &mut StreamWriter<W>, at: u64) {
    for (offset, length, kind) in RECORDS.into_iter().filter(|(offset, ..)| *offset >= at) {
        let byte = u8::try_from(offset / 4096 + 1).unwrap();
        let payload = vec![byte; usize::try_from(length).unwrap()];
        let payload = if kind == RecordKind::Data {
            &payload[..]
        } else {
            &[]
        };
        writer.record(kind, offset, length, payload).unwrap();
    }
}

fn stream() -> Vec<u8> {
    let mut writer = StreamWriter::new(Vec::new(), &header(2)).unwrap();
    write_from(&mut writer, 0);
    writer.end(SIZE).unwrap()
}

/// How many whole records are before this byte.
fn records_in(bytes: &[u8]) -> u64 {
    let Ok(mut reader) = StreamReader::new(bytes) else {
        return 0;
    };
    while let Ok(Next::Record(..)) = reader.next() {}
    reader.order.records
}

#[test]
fn a_stream_is_read_as_it_was_written() {
    let (found, end) = whole(&stream()[..]).unwrap();
    assert_eq!(found, header(2));
    assert_eq!((end.records, end.data_bytes, end.zero_bytes), (5, 8704, 12288));
}

#[test]
fn wherever_it_is_cut_that_is_told_with_the_record() {
    let stream = stream();
    for cut in 0..stream.len() {
        let error = whole(&stream[..cut]).map(drop).unwrap_err();
        let told = format!("{error:#}");
        assert!(told.contains("cut off"), "{cut}: {told}");
        let header = header(2).to_bytes().len();
        if cut >= header {
            let record = format!("record {}, at byte ", records_in(&stream[..cut]));
            assert!(told.contains(&record), "{cut}: {told}");
        }
    }
}

#[test]
fn whichever_byte_is_altered_it_is_refused_and_told_where() {
    let stream = stream();
    let header = header(2).to_bytes().len();
    for at in 0..stream.len() {
        let mut bad = stream.clone();
        bad[at] ^= 0x10;
        let told = format!("{:#}", whole(&bad[..]).map(drop).unwrap_err());
        assert_eq!(
            told.contains("record "),
            at >= header || told.contains("stream record"),
            "{at}: {told}"
        );
    }
    let mut longer = stream;
    longer.push(0);
    assert!(whole(&longer[..]).is_err(), "something follows the end");
}

#[test]
fn a_record_that_is_missing_or_altered_with_its_crc_is_seen() {
    let stream = stream();
    let begin = header(2).to_bytes().len();
    // The first record is gone.
    let mut missing = stream[..begin].to_vec();
    missing.extend_from_slice(&stream[begin + 40 + 4096..]);
    let told = format!("{:#}", whole(&missing[..]).map(drop).unwrap_err());
    assert!(told.contains("missing or moved"), "{told}");
    // A record was made anew, with a CRC that fits: the checksum of the whole does not.
    let mut forged = stream.clone();
    let other = sconce_schemas::stream::RecordHead {
        kind: RecordKind::Data,
        number: 0,
        offset: 0,
        length: 4096,
        payload: 4096,
    };
    let payload = vec![0xee; 4096];
    forged[begin..begin + 40].copy_from_slice(&other.to_bytes(&payload));
    forged[begin + 40..begin + 40 + 4096].copy_from_slice(&payload);
    let told = format!("{:#}", whole(&forged[..]).map(drop).unwrap_err());
    assert!(told.contains("SHA-256"), "{told}");
}

#[test]
fn a_newer_version_is_refused_and_told() {
    let mut newer = stream();
    newer[4] = 9;
    let told = format!("{:#}", whole(&newer[..]).map(drop).unwrap_err());
    assert!(told.contains("version 9"), "{told}");
}

#[test]
fn wherever_an_export_was_cut_the_next_one_continues_it_to_the_same_stream() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let stream = stream();
    for cut in (0..=stream.len()).filter(|cut| cut % 7 == 0 || *cut + 50 > stream.len()) {
        fs::write(partial_of(&path), &stream[..cut]).unwrap();
        let mut writer = open(&path, &header(2), false).unwrap();
        assert_eq!(writer.order.records, records_in(&stream[..cut]), "{cut}");
        assert_eq!(writer.is_over, cut == stream.len());
        if !writer.is_over {
            let at = writer.order.at;
            write_from(&mut writer, at);
        }
        finish(writer.end(SIZE).unwrap(), &path).unwrap();
        assert!(fs::read(&path).unwrap() == stream, "{cut}");
        assert!(!partial_of(&path).exists());
    }
}

#[test]
fn what_another_export_left_is_not_continued() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    fs::write(partial_of(&path), &stream()[..5000]).unwrap();
    let told = format!("{:#}", open(&path, &header(3), false).map(drop).unwrap_err());
    assert!(told.contains("tuesday") && told.contains("--force"), "{told}");
    // What is no stream at all is not written over, and nor is what another export writes now.
    for other in [&b"somebody's"[..], &vec![7; 5000]] {
        fs::write(partial_of(&path), other).unwrap();
        open(&path, &header(2), false).map(drop).unwrap_err();
        assert_eq!(fs::read(partial_of(&path)).unwrap(), other);
    }
    let busy = fs::File::open(partial_of(&path)).unwrap();
    busy.lock().unwrap();
    let told = format!("{:#}", open(&path, &header(2), true).map(drop).unwrap_err());
    assert!(told.contains("another export"), "{told}");
    drop(busy);
    // Or it is damaged in the middle: what is good of it stays.
    let mut bad = stream();
    let at = header(2).to_bytes().len() + 40 + 4096 + 40 + 10;
    bad[at] ^= 1;
    fs::write(partial_of(&path), &bad).unwrap();
    assert_eq!(open(&path, &header(2), false).unwrap().order.records, 2);
    let mut writer = open(&path, &header(3), true).unwrap();
    assert_eq!(writer.order.records, 0);
    write_from(&mut writer, 0);
    let mut out = writer.end(SIZE).unwrap();
    out.flush().unwrap();
    assert!(whole(fs::File::open(partial_of(&path)).unwrap()).is_ok());
}
