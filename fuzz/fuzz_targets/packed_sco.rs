//! Whatever lies where the head of a packed SCO should be is a head or refused, and what is packed reads as it was.
//!
//! The input is offset and length of a range (four bytes each, little endian), which slots are live (eight bytes, a bit
//! each), and a head, read as it is and with its CRC made right. The same bytes are packed as the data of a SCO.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use sconce_fuzz::{seal, within_memory};
use sconce_schemas::packed_sco::{HEAD_BYTES, PackedHead, PackedSco};
use sconce_schemas::sco::ScoHeader;
use sconce_schemas::{BatchSeq, CLUSTER_LEN, Epoch, ScoId, ScoSize, Slot, VolumeId};

/// Longest range that is expanded: the length of one is the caller's to bound.
const EXPANDED_MAX: u64 = 1 << 20;
/// Header and TLog area of the smallest SCO.
const FRONT: usize = 2 * CLUSTER_LEN;

fuzz_target!(|input: &[u8]| {
    let Some((&[a, b, c, d, e, f, g, h], rest)) = input.split_first_chunk::<8>() else {
        return;
    };
    let Some((&live, bytes)) = rest.split_first_chunk::<8>() else {
        return;
    };
    let (offset, length) = (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]));
    let (offset, length) = (u64::from(offset), u64::from(length));

    head(bytes, offset, length);
    let mut sealed = bytes.to_vec();
    sealed.resize(HEAD_BYTES, 0);
    seal(&mut sealed, 4, 0);
    head(&sealed, offset, length);
    pack(bytes, u64::from_le_bytes(live), offset, length);
});

fn head(bytes: &[u8], offset: u64, length: u64) {
    let Ok(head) = within_memory(bytes, || PackedHead::from_bytes(bytes)) else {
        return;
    };
    assert_eq!(head.to_bytes(), bytes[..HEAD_BYTES]);
    let kept: u32 = bytes[24..HEAD_BYTES].iter().map(|byte| byte.count_ones()).sum();
    let chunks = (head.packed_len() - HEAD_BYTES as u64).div_ceil(CLUSTER_LEN as u64);
    assert_eq!(u64::from(kept), chunks, "no chunk beyond the SCO");
    let range = head.packed_range(offset, length);
    let part = range.end - range.start;
    assert!(range.start >= HEAD_BYTES as u64 && range.end <= head.packed_len() && part <= length);
    if length <= EXPANDED_MAX {
        let expanded = head.expand(offset, length, vec![1; part as usize].into());
        let expanded = expanded.expect("as long as the range");
        let ones = expanded.iter().filter(|byte| **byte == 1).count();
        assert_eq!(ones as u64, part, "all of it, and each once");
        let due = head.length().saturating_sub(offset).min(length);
        assert_eq!(expanded.len() as u64, due);
    }
}

fn pack(data: &[u8], live: u64, offset: u64, length: u64) {
    let is_live = |slot: Slot| live >> (slot.0 % 64) & 1 == 1;
    let header = ScoHeader {
        volume: VolumeId::from_u128(0x1234_5678),
        id: ScoId(7),
        epoch: Epoch(3),
        size: ScoSize::new(64).expect("the smallest"),
        first_batch: BatchSeq(1),
        synced_below: ScoId(1),
    };
    let mut sco = header.to_bytes().to_vec();
    sco.resize(FRONT, 7);
    // An input has two clusters at most.
    (0..8).for_each(|_| sco.extend_from_slice(data));
    let packed = PackedSco::pack(&sco, is_live).expect("it has a header");
    PackedSco::check(&packed).expect("it is whole");
    for (slot, cluster) in (0..).zip(sco[FRONT..].chunks_mut(CLUSTER_LEN)) {
        if !is_live(Slot(slot)) {
            cluster.fill(0);
        }
    }
    let head = PackedHead::from_bytes(&packed).expect("it was packed");
    let range = head.packed_range(offset, length);
    let part: Bytes = packed.slice(range.start as usize..range.end as usize);
    let start = sco.len().min(offset as usize);
    let end = sco.len().min(start + length as usize);
    assert_eq!(
        head.expand(offset, length, part).expect("its range"),
        sco[start..end]
    );
}
