//! The rules of a bundle, over random SCOs, slots and ranges, and its golden file.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use bytes::Bytes;
use proptest::prelude::*;
use sconce_schemas::bundle::{BundleIndex, KeptCluster, Member};
use sconce_schemas::crc::crc32c;
use sconce_schemas::{ClusterAddress, DecodeError, Epoch, ScoId, ScoSize, Slot, VolumeId};

fn cluster(sco: u64, slot: u16) -> Vec<u8> {
    let byte = u8::try_from((sco * 67 + u64::from(slot)) % 255 + 1).unwrap();
    vec![byte; 4096]
}

/// A SCO with the slots of these bits.
fn member(sco: u64, bits: u64) -> Option<Member> {
    let size = ScoSize::new(64).unwrap();
    let slots: Vec<u16> = (0..64).filter(|slot| bits >> slot & 1 == 1).collect();
    let last = *slots.last()?;
    let kept = slots.into_iter().map(|slot| KeptCluster {
        slot: Slot(slot),
        address: ClusterAddress(sco * 1000 + u64::from(slot)),
        crc: crc32c(&cluster(sco, slot)),
    });
    Some(Member {
        sco: ScoId(sco),
        epoch: Epoch(2),
        size,
        length: size.slot_offset(Slot(last)) + 4096,
        kept: kept.collect(),
    })
}

fn bundle(members: Vec<Member>) -> (BundleIndex, Bytes) {
    let index = BundleIndex {
        volume: VolumeId::from_u128(0x1234_5678),
        members,
    };
    let clusters: Vec<Vec<u8>> = index
        .members
        .iter()
        .flat_map(|member| member.kept.iter().map(|kept| cluster(member.sco.0, kept.slot.0)))
        .collect();
    let bytes = index.pack(clusters.iter().map(Vec::as_slice)).unwrap();
    (index, bytes)
}

proptest! {
    #[test]
    fn every_slot_of_every_sco_is_found(
        all in prop::collection::btree_map(1..500_u64, any::<(u64, u64)>(), 1..20),
        offset in 0..280_000_u64, length in 0..280_000_u64,
    ) {
        let members: Vec<Member> = all.iter().filter_map(|(sco, (a, b))| member(*sco, a & b)).collect();
        prop_assume!(!members.is_empty());
        let (index, bytes) = bundle(members);
        BundleIndex::check_whole(&bytes).unwrap();
        prop_assert_eq!(&BundleIndex::from_bytes(&bytes).unwrap(), &index);
        for (at, member) in index.members.iter().enumerate() {
            let view = index.view(at).unwrap().unwrap();
            let range = view.packed_range(offset, length);
            prop_assert!(range.end - range.start <= length);
            let part = usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
            let read = view.expand(offset, length, bytes.slice(part)).unwrap();
            let mut sco = vec![0; usize::try_from(member.length).unwrap()];
            for kept in &member.kept {
                let from = usize::try_from(member.size.slot_offset(kept.slot)).unwrap();
                sco[from..from + 4096].copy_from_slice(&cluster(member.sco.0, kept.slot.0));
            }
            let within = |at: u64| usize::try_from(at.min(member.length)).unwrap();
            prop_assert_eq!(&read[..], &sco[within(offset)..within(offset + length)]);
        }
        prop_assert!(index.view(index.members.len()).unwrap().is_none());
    }

    #[test]
    fn no_changed_byte_of_the_index_goes_unnoticed(at in 0..4096_usize, bit in 0..8_u32, cut in 0..4096_usize) {
        let (_, bytes) = bundle(vec![member(7, 0b1011).unwrap(), member(9, 1).unwrap()]);
        let mut changed = bytes.to_vec();
        changed[at] ^= 1 << bit;
        prop_assert!(BundleIndex::from_bytes(&changed).is_err());
        prop_assert!(BundleIndex::from_bytes(&bytes[..cut]).is_err());
        prop_assert!(BundleIndex::check_whole(&bytes[..bytes.len() - 1]).is_err());
    }
}

#[test]
fn what_is_out_of_order_is_not_written() {
    let right = member(7, 0b1011).unwrap();
    let swapped = {
        let mut member = right.clone();
        member.kept.swap(0, 1);
        member
    };
    let short = Member {
        length: right.length - 1,
        ..right.clone()
    };
    let empty = Member {
        kept: Vec::new(),
        ..right.clone()
    };
    for members in [
        vec![],
        vec![swapped],
        vec![short],
        vec![empty],
        vec![right.clone(), right.clone()],
    ] {
        let index = BundleIndex {
            volume: VolumeId::from_u128(1),
            members,
        };
        assert!(
            matches!(index.check(), Err(DecodeError::Value { .. })),
            "{index:?}"
        );
    }
    let (index, bytes) = bundle(vec![right]);
    assert!(
        index.pack([&[0; 4096][..]]).is_err(),
        "fewer clusters than it has"
    );
    let mut newer = bytes.to_vec();
    newer[8] = 2;
    assert!(matches!(
        BundleIndex::from_bytes(&newer),
        Err(DecodeError::Version { .. })
    ));
}

#[test]
fn the_golden_bundle_is_read() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/bundle-1.bin");
    let (index, bytes) = bundle(vec![member(7, 0b1011).unwrap(), member(9, 1 << 63).unwrap()]);
    if !path.exists() && std::env::var_os("SCONCE_WRITE_GOLDEN").is_some() {
        std::fs::write(&path, &bytes).unwrap();
    }
    let golden = std::fs::read(&path).unwrap();
    assert_eq!(BundleIndex::from_bytes(&golden).unwrap(), index);
    assert_eq!(golden, bytes);
}
