//! The rules of backup streams, over random records, and their golden file.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use proptest::prelude::*;
use sconce_schemas::stream::{
    RECORD_HEAD_LEN, RecordHead, RecordKind, STREAM_PREFIX_LEN, StreamEnd, StreamHeader, StreamOrder,
    StreamSnapshot,
};
use sconce_schemas::{DecodeError, SnapshotId, VolumeId, VolumeSize};

const SIZE: u64 = (1 << 20) + 512;

fn snapshot(id: u64, name: &str) -> StreamSnapshot {
    StreamSnapshot {
        volume: VolumeId([7; 16]),
        id: SnapshotId(id),
        name: name.to_owned(),
        created_us: 1_700_000_000_000_000,
        size: VolumeSize::new(SIZE).unwrap(),
        metadata: [("why".to_owned(), "because".to_owned())].into(),
    }
}

fn header() -> StreamHeader {
    StreamHeader {
        path: "/vm1/disk.raw".to_owned(),
        cluster_bytes: 4096,
        record_bytes_max: 1 << 20,
        from: Some(snapshot(5, "monday")),
        to: snapshot(u64::MAX >> 1, "tuesday"),
    }
}

fn parse(bytes: &[u8]) -> Result<StreamHeader, DecodeError> {
    let prefix = bytes[..STREAM_PREFIX_LEN].try_into().unwrap();
    let len = StreamHeader::body_len(&prefix)?;
    StreamHeader::from_parts(&prefix, &bytes[STREAM_PREFIX_LEN..STREAM_PREFIX_LEN + len])
}

fn record(kind: RecordKind, number: u64, offset: u64, length: u64, payload: &[u8]) -> Vec<u8> {
    let head = RecordHead {
        kind,
        number,
        offset,
        length,
        payload: u32::try_from(payload.len()).unwrap(),
    };
    let mut bytes = head.to_bytes(payload).to_vec();
    bytes.extend_from_slice(payload);
    bytes
}

#[test]
fn a_stream_keeps_its_meaning() {
    let end = StreamEnd {
        records: 3,
        data_bytes: 4096,
        zero_bytes: 8192,
        sha256: vec![0xee; 32],
    };
    let mut bytes = header().to_bytes();
    bytes.extend(record(RecordKind::Data, 0, 0, 4096, &[0xab; 4096]));
    bytes.extend(record(RecordKind::Zeros, 1, 8192, 4096, &[]));
    bytes.extend(record(RecordKind::Hole, 2, 16384, 4096, &[]));
    bytes.extend(record(RecordKind::End, 3, SIZE, 0, &end.to_bytes()));
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/stream-1.bin");
    if !path.exists() && std::env::var_os("SCONCE_WRITE_GOLDEN").is_some() {
        std::fs::write(&path, &bytes).unwrap();
    }
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
    assert_eq!(parse(&bytes), Ok(header()));
    assert!(StreamHeader::is_stream(&bytes) && !StreamHeader::is_stream(b"SCO1"));
    let payload = &bytes[bytes.len() - end.to_bytes().len()..];
    assert_eq!(StreamEnd::from_bytes(payload), Ok(end));
}

#[test]
fn a_newer_version_is_told() {
    let mut bytes = header().to_bytes();
    bytes[4] = 2;
    let error = parse(&bytes).unwrap_err().to_string();
    assert!(error.contains("version 2"), "{error}");
}

#[test]
fn steps_are_compared_by_what_they_lead_from_and_to() {
    let mut other = header();
    other.path = "/elsewhere.raw".to_owned();
    assert!(header().is_same_step(&other));
    other.from = None;
    assert!(!header().is_same_step(&other));
    let mut other = header();
    other.to.id = SnapshotId(1);
    assert!(!header().is_same_step(&other));
}

#[test]
fn records_that_are_missing_moved_or_beyond_the_end_are_refused() {
    let order = |heads: &[(RecordKind, u64, u64, u64)]| {
        let mut order = StreamOrder::new(VolumeSize::new(SIZE).unwrap());
        heads.iter().try_for_each(|(kind, number, offset, length)| {
            order.take(&RecordHead {
                kind: *kind,
                number: *number,
                offset: *offset,
                length: *length,
                payload: 0,
            })
        })
    };
    use RecordKind::{End, Hole};
    assert_eq!(
        order(&[(Hole, 0, 0, 4096), (Hole, 1, 1 << 20, 512), (End, 2, SIZE, 0)]),
        Ok(())
    );
    for wrong in [
        &[(Hole, 1, 0, 4096)][..],
        &[(Hole, 0, 4096, 4096), (Hole, 1, 0, 4096)],
        &[(Hole, 0, 4096, 4096), (Hole, 1, 4096, 4096)],
        &[(Hole, 0, 512, 4096)],
        &[(Hole, 0, 0, 512)],
        &[(Hole, 0, 1 << 20, 4096)],
        &[(Hole, 0, u64::MAX - 4095, 4096)],
        &[(End, 0, 0, 0)],
    ] {
        assert!(order(wrong).is_err(), "{wrong:?}");
    }
}

proptest! {
    #[test]
    fn a_record_with_any_bit_flipped_is_refused(
        data in proptest::collection::vec(any::<u8>(), 1..5000), at in any::<prop::sample::Index>(), bit in 0..8_u8,
    ) {
        let bytes = record(RecordKind::Data, 3, 4096, data.len() as u64, &data);
        let check = |bytes: &[u8]| {
            let (head, payload) = bytes.split_at(RECORD_HEAD_LEN);
            let head: &[u8; RECORD_HEAD_LEN] = head.try_into().unwrap();
            RecordHead::from_bytes(head)?;
            RecordHead::check(head, payload)
        };
        prop_assert_eq!(check(&bytes), Ok(()));
        let mut bad = bytes.clone();
        bad[at.index(bytes.len())] ^= 1 << bit;
        prop_assert!(check(&bad).is_err());
    }

    #[test]
    fn arbitrary_bytes_are_refused_or_a_header(bytes in proptest::collection::vec(any::<u8>(), 40..200)) {
        let prefix = bytes[..STREAM_PREFIX_LEN].try_into().unwrap();
        let _ = StreamHeader::body_len(&prefix);
        let _ = StreamHeader::from_parts(&prefix, &bytes[STREAM_PREFIX_LEN..]);
        let _ = RecordHead::from_bytes(bytes[..RECORD_HEAD_LEN].try_into().unwrap());
        let _ = StreamEnd::from_bytes(&bytes);
    }
}
