//! The rules of a fragment's head and of how an object is cut, over random objects and damage, and its golden file.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use proptest::prelude::*;
use sconce_schemas::fragment::{CHUNK_BYTES_LOG2, Cut, FragmentHead, Sealing};
use sconce_schemas::records::{Compression, Protection};
use sconce_schemas::stored_object::{FragmentId, SealedObject, Span, StoredHeader};
use sconce_schemas::{Epoch, ObjectName, ScoId, VolumeId};

fn protections() -> impl Strategy<Value = Protection> {
    prop_oneof![
        (1..=8_u8).prop_map(Protection::Replicas),
        (2..=16_u8, 1..=8_u8).prop_map(|(data, parity)| Protection::Erasure { data, parity }),
    ]
}

fn sealing(is_sealed: bool) -> Option<Sealing> {
    is_sealed.then_some(Sealing {
        key: 7,
        fingerprint: 0x1122_3344_5566_7788,
        salt: [9; 16],
    })
}

/// A head whose every third chunk is compressed to half.
fn head(cut: Cut, compression: Option<Compression>, is_sealed: bool) -> FragmentHead {
    let tag = if is_sealed { 16 } else { 0 };
    let chunk = |place: sconce_schemas::fragment::ChunkPlace| {
        let is_compressed = compression.is_some() && place.index.is_multiple_of(3) && place.length > 1;
        let stored = if is_compressed {
            place.length / 2
        } else {
            place.length
        };
        (
            u32::try_from(stored + tag).unwrap(),
            is_compressed,
            u32::try_from(place.index).unwrap(),
        )
    };
    let chunks: Vec<_> = cut.chunks().map(chunk).collect();
    let crcs: Vec<u32> = (0..u32::try_from(cut.width()).unwrap())
        .map(|index| index * 17)
        .collect();
    FragmentHead::new(cut, compression, sealing(is_sealed), &crcs, &chunks).unwrap()
}

proptest! {
    #[test]
    fn chunks_cover_the_object_once_and_a_range_finds_its_own(
        protection in protections(), length in 0..3_000_000_u64, start in 0..3_100_000_u64, wanted in 0..300_000_u64
    ) {
        let cut = Cut::of(protection, length);
        let mut end = 0;
        let range = start..start + wanted;
        let holding = cut.chunks_holding(&range);
        for place in cut.chunks() {
            prop_assert_eq!(place.at, end);
            end += place.length as u64;
            prop_assert!(place.length > 0 && place.length <= 1 << CHUNK_BYTES_LOG2);
            prop_assert!(place.at % 4096 == 0, "no cluster is cut in two");
            let piece = cut.piece(place.fragment);
            prop_assert!(piece.start <= place.at && end <= piece.end, "a chunk is in one fragment");
            let overlaps = wanted > 0 && place.at < range.end && range.start < end;
            prop_assert_eq!(holding.contains(&place.index), overlaps);
        }
        prop_assert_eq!(end, length);
        prop_assert_eq!(cut.chunks().count(), cut.chunk_count());
    }

    #[test]
    fn a_head_comes_back_and_its_bodies_lie_end_to_end(
        protection in protections(), length in 0..2_000_000_u64, lz4 in any::<bool>(), is_sealed in any::<bool>()
    ) {
        let cut = Cut::of(protection, length);
        let head = head(cut, lz4.then_some(Compression::Lz4), is_sealed);
        prop_assert_eq!(head.bytes().len(), cut.head_bytes());
        prop_assert_eq!(FragmentHead::len_of(head.bytes()).unwrap(), cut.head_bytes());
        let mut longer = head.bytes().to_vec();
        longer.extend_from_slice(b"padding");
        prop_assert_eq!(&FragmentHead::from_bytes(&longer).unwrap(), &head);
        let mut ends = vec![0; usize::from(cut.data)];
        for place in cut.chunks() {
            let chunk = head.chunk(place.index).unwrap();
            let end = &mut ends[usize::from(place.fragment)];
            prop_assert_eq!(chunk.at, *end);
            *end += u64::from(chunk.stored);
        }
        for (fragment, end) in ends.iter().enumerate() {
            prop_assert_eq!(head.body_bytes(fragment), *end);
            prop_assert!(*end <= head.shard_bytes());
        }
    }

    #[test]
    fn a_flipped_bit_or_a_cut_is_noticed(
        protection in protections(), length in 0..500_000_u64, at in any::<prop::sample::Index>(), bit in 0..8_u8
    ) {
        let head = head(Cut::of(protection, length), Some(Compression::Zstd), true);
        let mut bytes = head.bytes().to_vec();
        prop_assert!(FragmentHead::from_bytes(&bytes[..at.index(bytes.len())]).is_err());
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        prop_assert!(FragmentHead::from_bytes(&bytes).is_err());
    }

    #[test]
    fn arbitrary_bytes_are_refused(mut bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        prop_assert!(FragmentHead::from_bytes(&bytes).is_err());
        if bytes.len() >= 6 {
            bytes[..6].copy_from_slice(b"SCfh\x01\x00");
            let _ = FragmentHead::len_of(&bytes);
            prop_assert!(FragmentHead::from_bytes(&bytes).is_err());
        }
    }

    #[test]
    fn a_fragment_in_its_envelope_is_that_one_alone(
        index in any::<u8>(), set in any::<u32>(), other in any::<u8>(), other_set in any::<u32>(), offset in 0..10_000_u64
    ) {
        let (id, wrong) = (FragmentId { index, set }, FragmentId { index: other, set: other_set });
        let data = vec![5; 10_000];
        let stored = SealedObject::seal_fragment(name(), Some(id), data.into()).unwrap().to_stored();
        prop_assert_eq!(StoredHeader::decode(&stored).unwrap().fragment(), Some(id));
        let span = Span::holding(offset, 1);
        let at = |bytes: u64| usize::try_from(bytes).unwrap();
        let start = at(span.stored_offset());
        let read = stored.slice(start..stored.len().min(start + at(span.stored_length())));
        let open = |id| span.open_fragment(name(), id, stored.len() as u64, read.clone());
        prop_assert_eq!(&open(Some(id)).unwrap()[..], &[5][..]);
        prop_assert!(open(None).is_err(), "it is no whole object");
        prop_assert!(id == wrong || open(Some(wrong)).is_err());
    }
}

fn name() -> ObjectName {
    ObjectName::Sco {
        volume: VolumeId::from_u128(0x1234_5678),
        id: ScoId(7),
        epoch: Epoch(3),
        version: 0,
    }
}

#[test]
fn tables_that_do_not_fit_the_object_are_refused() {
    let cut = Cut::of(Protection::Erasure { data: 2, parity: 1 }, 100_000);
    let right: Vec<_> = cut
        .chunks()
        .map(|place| (u32::try_from(place.length).unwrap(), false, 0))
        .collect();
    let new =
        |chunks: &[(u32, bool, u32)], compression| FragmentHead::new(cut, compression, None, &[0; 3], chunks);
    assert!(new(&right, None).is_ok());
    let mut wrong = right.clone();
    wrong[0].0 -= 1;
    assert!(new(&wrong, None).is_err(), "shorter without compression");
    wrong[0].1 = true;
    assert!(new(&wrong, None).is_err(), "compressed where nothing is");
    assert!(new(&wrong, Some(Compression::Lz4)).is_ok());
    wrong[0].0 += 1;
    assert!(
        new(&wrong, Some(Compression::Lz4)).is_err(),
        "compressed and not shorter"
    );
    assert!(new(&right[1..], None).is_err(), "one too few");
}

#[test]
fn version_1_reads_for_ever() {
    let cut = Cut::of(Protection::Erasure { data: 4, parity: 2 }, 700_001);
    let head = head(cut, Some(Compression::Zstd), true);
    let sealed = SealedObject::seal_fragment(name(), head.id_of(5), head.bytes().to_vec().into()).unwrap();
    let stored = sealed.to_stored();
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/fragment-1.bin");
    if !path.exists() && std::env::var_os("SCONCE_WRITE_GOLDEN").is_some() {
        std::fs::write(&path, &stored).unwrap();
    }
    let golden = std::fs::read(&path).unwrap();
    assert_eq!(golden, stored, "what is stored never changes meaning");
    let opened = Span::holding(0, u64::MAX)
        .open_fragment(name(), head.id_of(5), golden.len() as u64, golden.into())
        .unwrap();
    assert_eq!(FragmentHead::from_bytes(&opened).unwrap(), head);
}

#[test]
fn protections_are_written_as_they_are_read() {
    for (text, width) in [("replica:3", 3), ("ec:4+2", 6), ("ec:16+8", 24)] {
        let protection: Protection = text.parse().unwrap();
        assert_eq!(
            (protection.to_string(), protection.width()),
            (text.to_owned(), width)
        );
    }
    for text in [
        "replica:0",
        "replica:9",
        "ec:1+1",
        "ec:17+1",
        "ec:4+0",
        "ec:4+9",
        "ec:4",
        "raid5",
        "replica:",
    ] {
        let error = text.parse::<Protection>().unwrap_err().to_string();
        assert!(error.contains(text) && error.contains("replica:"), "{error}");
    }
    assert_eq!(Protection::Erasure { data: 4, parity: 2 }.room_in(600), 400);
    assert_eq!(Protection::Replicas(3).room_in(600), 200);
    let sealed = Protection::Replicas(3).as_fragments();
    assert_ne!(
        sealed,
        Protection::Replicas(3),
        "builds before there were fragments refuse it"
    );
    assert_eq!(
        (sealed.to_string(), sealed.width(), sealed.room_in(600)),
        ("replica:3".to_owned(), 3, 200)
    );
}
