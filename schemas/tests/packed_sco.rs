//! The rules of a packed SCO, over random SCOs, live slots and ranges, and its golden file.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use bytes::Bytes;
use proptest::prelude::*;
use sconce_schemas::packed_sco::{HEAD_BYTES, LENGTH_MAX, PackedHead, PackedSco};
use sconce_schemas::sco::ScoHeader;
use sconce_schemas::{BatchSeq, CLUSTER_LEN, DecodeError, Epoch, ScoId, ScoSize, Slot, VolumeId};

/// Header and TLog area of the smallest SCO, the one of these tests.
const FRONT: usize = 2 * CLUSTER_LEN;

/// A SCO that ends after `data` bytes of its data area; no two chunks are the same, none is zeros.
fn sco(data: usize) -> Vec<u8> {
    let header = ScoHeader {
        volume: VolumeId::from_u128(0x1234_5678),
        id: ScoId(7),
        epoch: Epoch(3),
        size: ScoSize::new(64).unwrap(),
        first_batch: BatchSeq(1),
        synced_below: ScoId(1),
    };
    let mut object: Vec<u8> = (0..FRONT + data)
        .map(|i| u8::try_from((i * 31 + i / 4096) % 251 + 1).unwrap())
        .collect();
    let stored = header.to_bytes();
    object[..stored.len()].copy_from_slice(&stored);
    object
}

/// What a reader must see: zeros in place of the clusters that are not live.
fn seen(object: &[u8], is_live: impl Fn(Slot) -> bool) -> Bytes {
    let mut seen = object.to_vec();
    for (slot, cluster) in (0..).zip(seen[FRONT..].chunks_mut(CLUSTER_LEN)) {
        if !is_live(Slot(slot)) {
            cluster.fill(0);
        }
    }
    seen.into()
}

fn read(packed: &Bytes, offset: u64, length: u64) -> Result<Bytes, DecodeError> {
    let head = PackedHead::from_bytes(packed)?;
    let range = head.packed_range(offset, length);
    assert!(
        range.end - range.start <= length,
        "never reads more than was asked for"
    );
    let part = usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
    head.expand(offset, length, packed.slice(part))
}

fn data_lengths() -> impl Strategy<Value = usize> {
    prop_oneof![
        0..64 * CLUSTER_LEN,
        (0..=64_usize).prop_map(|clusters| clusters * CLUSTER_LEN)
    ]
}

/// Sparse, even and dense.
fn live() -> impl Strategy<Value = u64> {
    (any::<u64>(), any::<u64>(), 0..4).prop_map(|(a, b, density)| match density {
        0 => a & b,
        1 => a,
        2 => a | b,
        _ => u64::MAX,
    })
}

proptest! {
    #[test]
    fn any_range_reads_what_is_kept_and_zeros_elsewhere(
        data in data_lengths(), live in live(), offset in 0..280_000_u64, length in 0..280_000_u64,
    ) {
        let is_live = |slot: Slot| live >> slot.0 & 1 == 1;
        let object = sco(data);
        let packed = PackedSco::pack(&object, is_live).unwrap();
        PackedSco::check(&packed).unwrap();
        let seen = seen(&object, is_live);
        let head = PackedHead::from_bytes(&packed).unwrap();
        prop_assert_eq!(head.length(), object.len() as u64);
        let kept: usize = seen[FRONT..].chunks(CLUSTER_LEN).filter(|c| c[0] != 0).map(<[u8]>::len).sum();
        prop_assert_eq!(packed.len(), HEAD_BYTES + FRONT + kept, "what is dropped takes no space");
        let from = seen.len().min(usize::try_from(offset).unwrap());
        let to = seen.len().min(from + usize::try_from(length).unwrap());
        prop_assert_eq!(read(&packed, offset, length).unwrap(), seen.slice(from..to));
        prop_assert_eq!(read(&packed, 0, u64::MAX).unwrap(), seen.clone());
        let again = PackedSco::pack(&seen, is_live).unwrap();
        prop_assert_eq!(again, packed, "packing what a reader sees gives the same");
    }

    #[test]
    fn a_scrub_of_a_scrubbed_sco_reads_as_one(data in data_lengths(), first in live(), second in live(),
                                              offset in 0..280_000_u64, length in 0..280_000_u64) {
        let object = sco(data);
        let once = PackedSco::pack(&object, |slot| first >> slot.0 & 1 == 1).unwrap();
        let seen = read(&once, 0, u64::MAX).unwrap();
        let twice = PackedSco::pack(&seen, |slot| (first & second) >> slot.0 & 1 == 1).unwrap();
        let at_once = PackedSco::pack(&object, |slot| (first & second) >> slot.0 & 1 == 1).unwrap();
        prop_assert_eq!(read(&twice, offset, length), read(&at_once, offset, length));
        prop_assert_eq!(twice, at_once);
    }

    #[test]
    fn a_flipped_bit_in_the_head_is_noticed(live in live(), at in 0..HEAD_BYTES, bit in 0..8_u8) {
        let mut packed = PackedSco::pack(&sco(64 * CLUSTER_LEN), |slot| live >> slot.0 & 1 == 1).unwrap().to_vec();
        packed[at] ^= 1_u8 << bit;
        prop_assert!(PackedHead::from_bytes(&packed).is_err());
    }

    #[test]
    fn a_part_of_another_length_is_refused(live in live(), offset in 0..280_000_u64, length in 0..280_000_u64,
                                           part in 0..280_000_usize) {
        let packed = PackedSco::pack(&sco(64 * CLUSTER_LEN), |slot| live >> slot.0 & 1 == 1).unwrap();
        let head = PackedHead::from_bytes(&packed).unwrap();
        let range = head.packed_range(offset, length);
        let expanded = head.expand(offset, length, vec![1; part].into());
        prop_assert_eq!(expanded.is_ok(), part as u64 == range.end - range.start);
    }

    #[test]
    fn arbitrary_bytes_are_refused_or_a_head(bytes in prop::collection::vec(any::<u8>(), 0..5000)) {
        prop_assert!(PackedHead::from_bytes(&bytes).is_err());
        prop_assert!(PackedSco::check(&bytes).is_err());
        prop_assert!(PackedSco::pack(&bytes, |_| true).is_err());
    }

    #[test]
    fn what_a_head_says_is_checked_under_a_right_crc(at in 8..400_usize, value in any::<u8>(), live in live()) {
        let packed = PackedSco::pack(&sco(5000), |slot| live >> slot.0 & 1 == 1).unwrap();
        let mut head = packed[..HEAD_BYTES].to_vec();
        head[at] = value;
        seal(&mut head);
        if let Ok(decoded) = PackedHead::from_bytes(&head) {
            prop_assert_eq!(&decoded.to_bytes()[..], &head[..]);
            prop_assert!(decoded.packed_len() <= HEAD_BYTES as u64 + decoded.length());
        }
    }
}

fn seal(head: &mut [u8]) {
    let crc = sconce_schemas::crc::crc32c(&head[8..]);
    head[4..8].copy_from_slice(&crc.to_le_bytes());
}

/// The head of a SCO of this length with nothing kept, as a writer without bounds would make it.
fn head_of(length: u64) -> Vec<u8> {
    let mut head = PackedSco::pack(&sco(0), |_| false).unwrap()[..HEAD_BYTES].to_vec();
    let chunks = u32::try_from(length.div_ceil(4096)).unwrap();
    head[12..16].copy_from_slice(&chunks.to_le_bytes());
    head[16..24].copy_from_slice(&length.to_le_bytes());
    head[24..].fill(0);
    seal(&mut head);
    head
}

#[test]
fn chunks_that_the_sco_does_not_have_are_refused() {
    for (length, chunk) in [
        (0, 0),
        (5 * 4096, 5),
        (5 * 4096 - 1, 63),
        (64 * 4096, 64),
        (64 * 4096, 8000),
    ] {
        let mut head = head_of(length);
        assert!(PackedHead::from_bytes(&head).is_ok());
        head[24 + chunk / 8] |= 1 << (chunk % 8);
        seal(&mut head);
        let error = PackedHead::from_bytes(&head).unwrap_err();
        assert!(
            matches!(error, DecodeError::Value { .. }),
            "{length} {chunk}: {error}"
        );
    }
    let mut head = head_of(4096);
    head[12] = 2;
    seal(&mut head);
    assert!(PackedHead::from_bytes(&head).is_err(), "2 chunks of 4096 bytes");
}

#[test]
fn the_longest_sco_is_the_limit() {
    let longest = PackedHead::from_bytes(&head_of(LENGTH_MAX)).unwrap();
    assert_eq!(
        (longest.length(), longest.packed_len()),
        (LENGTH_MAX, HEAD_BYTES as u64)
    );
    for length in [LENGTH_MAX + 1, 1 << 40] {
        let error = PackedHead::from_bytes(&head_of(length)).unwrap_err();
        assert!(matches!(error, DecodeError::Value { .. }), "{error}");
    }
    let most = ScoSize::new(16384).unwrap().file_len();
    assert!(PackedHead::from_bytes(&head_of(most)).is_ok(), "the largest SCO");
}

#[test]
fn version_1_reads_for_ever() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/packed-sco-1.bin");
    let is_live = |slot: Slot| slot != Slot(1);
    let object = sco(2 * CLUSTER_LEN + 100);
    let packed = PackedSco::pack(&object, is_live).unwrap();
    if !std::path::Path::new(path).exists() && std::env::var_os("SCONCE_WRITE_GOLDEN").is_some() {
        std::fs::write(path, &packed).unwrap();
    }
    let golden = Bytes::from(std::fs::read(path).unwrap_or_else(|e| panic!("{path}: {e}")));
    assert_eq!(golden, packed, "what is stored never changes meaning");
    assert_eq!(golden.len(), HEAD_BYTES + FRONT + CLUSTER_LEN + 100);
    assert_eq!(read(&golden, 0, u64::MAX).unwrap(), seen(&object, is_live));
    let newer = {
        let mut head = golden[..HEAD_BYTES].to_vec();
        head[8] = 2;
        seal(&mut head);
        PackedHead::from_bytes(&head)
    };
    assert!(
        matches!(newer, Err(DecodeError::Version { found: 2, .. })),
        "{newer:?}"
    );
}
