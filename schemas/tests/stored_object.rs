//! The rules of the stored object's envelope, over random objects, ranges and damage, and its golden file.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use bytes::Bytes;
use proptest::prelude::*;
use sconce_schemas::stored_object::{CHUNK_BYTES, HEADER_BYTES, SealedObject, Span, StoredHeader, length_of};
use sconce_schemas::{Epoch, ObjectName, ScoId, VolumeId};

fn name(id: u64) -> ObjectName {
    ObjectName::Sco {
        volume: VolumeId::from_u128(0x1234_5678),
        id: ScoId(id),
        epoch: Epoch(3),
        version: 1,
    }
}

/// Bytes that differ from chunk to chunk.
fn content(len: usize) -> Bytes {
    (0..len)
        .map(|i| u8::try_from((i * 31 + i / 4096) % 251).unwrap())
        .collect()
}

fn sealed(len: usize) -> Bytes {
    SealedObject::seal(name(7), content(len)).unwrap().to_stored()
}

fn read(stored: &Bytes, offset: u64, length: u64) -> Result<Bytes, sconce_schemas::DecodeError> {
    let span = Span::holding(offset, length);
    let have = stored.len();
    let start = usize::try_from(span.stored_offset()).unwrap().min(have);
    let end = usize::try_from(span.stored_offset() + span.stored_length())
        .unwrap()
        .min(have);
    span.open(name(7), stored.len() as u64, stored.slice(start..end))
}

fn lengths() -> impl Strategy<Value = usize> {
    prop_oneof![
        0..3 * CHUNK_BYTES,
        (0..4usize, -2..3i64).prop_map(|(chunks, off)| {
            usize::try_from(i64::try_from(chunks * CHUNK_BYTES).unwrap() + off).unwrap_or(0)
        }),
    ]
}

proptest! {
    #[test]
    fn any_range_reads_what_was_sealed(len in lengths(), offset in 0..20_000u64, length in 0..20_000u64) {
        let (data, stored) = (content(len), sealed(len));
        prop_assert_eq!(length_of(stored.len() as u64).unwrap(), len as u64);
        let from = usize::try_from(offset).unwrap().min(len);
        let to = usize::try_from(offset + length).unwrap().min(len);
        prop_assert_eq!(read(&stored, offset, length).unwrap(), data.slice(from..to));
        let own_buffer = Bytes::from(stored.to_vec());
        let whole = Span::holding(0, u64::MAX).open(name(7), stored.len() as u64, own_buffer).unwrap();
        prop_assert_eq!(whole, data, "within the buffer too");
    }

    #[test]
    fn a_flipped_bit_is_never_returned(len in lengths(), at in any::<prop::sample::Index>(), bit in 0..8u8,
                                       offset in 0..20_000u64, length in 1..20_000u64) {
        let data = content(len);
        let mut flipped = sealed(len).to_vec();
        let at = at.index(flipped.len());
        flipped[at] ^= 1 << bit;
        let flipped = Bytes::from(flipped);
        prop_assert!(read(&flipped, 0, u64::MAX).is_err(), "a whole read notices byte {}", at);
        if let Ok(got) = read(&flipped, offset, length) {
            let from = usize::try_from(offset).unwrap().min(len);
            prop_assert_eq!(&got, &data.slice(from..from + got.len()));
        }
    }

    #[test]
    fn a_cut_or_grown_object_is_noticed(len in 1..3 * CHUNK_BYTES, other in 0..4 * CHUNK_BYTES) {
        let mut stored = sealed(len).to_vec();
        prop_assume!(other != stored.len());
        stored.resize(other, 0);
        prop_assert!(read(&Bytes::from(stored), 0, u64::MAX).is_err());
    }

    #[test]
    fn another_object_is_noticed_wherever_it_is_read(len in 1..3 * CHUNK_BYTES, offset in 0..20_000u64) {
        prop_assume!(offset < len as u64);
        let stored = SealedObject::seal(name(8), content(len)).unwrap().to_stored();
        prop_assert!(read(&stored, offset, 1).is_err());
    }

    #[test]
    fn arbitrary_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..9000), stored_len in any::<u64>(),
                                   offset in any::<u64>(), length in any::<u64>()) {
        prop_assert!(StoredHeader::decode(&bytes).is_err());
        let bytes = Bytes::from(bytes);
        let span = Span::holding(offset, length);
        if let Ok(got) = span.open(name(7), stored_len, bytes.clone()) {
            prop_assert!(got.is_empty(), "only what is beyond the end reads as nothing");
        }
        if let Ok(got) = span.open(name(7), bytes.len() as u64, bytes.clone()) {
            prop_assert!(got.is_empty());
        }
    }
}

#[test]
fn the_largest_object_is_the_limit() {
    let max = sconce_schemas::wire::storage::OBJECT_BYTES_MAX;
    assert!(StoredHeader::new(name(7), max).is_ok());
    assert!(StoredHeader::new(name(7), max + 1).is_err());
    assert!(length_of(sconce_schemas::stored_object::STORED_BYTES_MAX).is_ok());
    assert!(length_of(sconce_schemas::stored_object::STORED_BYTES_MAX + 1).is_err());
}

#[test]
fn version_1_reads_for_ever() {
    const GOLDEN: &[u8] = include_bytes!("../golden/stored-object-1.bin");
    assert_eq!(
        sealed(CHUNK_BYTES + 5),
        GOLDEN,
        "what is stored never changes meaning"
    );
    let golden = Bytes::from_static(GOLDEN);
    assert_eq!(read(&golden, 0, u64::MAX).unwrap(), content(CHUNK_BYTES + 5));
    assert_eq!(
        read(&golden, 4096, 9).unwrap(),
        content(CHUNK_BYTES + 5).slice(4096..)
    );
    let header = StoredHeader::decode(&golden).unwrap();
    assert_eq!(
        (header.name(), header.length()),
        (name(7), CHUNK_BYTES as u64 + 5)
    );
    assert_eq!(GOLDEN.len(), HEADER_BYTES + CHUNK_BYTES + 5 + 8);
}
