//! Whatever a back end gives for a range of an object is that range or refused.
//!
//! The input is offset and length of the range (four bytes each, little endian) and what is stored. It is read as it is,
//! where hardly anything holds, and as the object that its content makes, where everything has to.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use sconce_fuzz::{seal_before, within_memory};
use sconce_schemas::stored_object::{HEADER_BYTES, SealedObject, Span, StoredHeader};
use sconce_schemas::{Epoch, ObjectName, ScoId, VolumeId};

fuzz_target!(|input: &[u8]| {
    let Some((&range, stored)) = input.split_first_chunk::<8>() else {
        return;
    };
    let [a, b, c, d, e, f, g, h] = range;
    let (offset, length) = (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]));
    let (offset, length) = (u64::from(offset), u64::from(length));

    let _ = read(name(), stored, offset, length);
    let mut header = stored.to_vec();
    seal_before(&mut header, 0, HEADER_BYTES - 4);
    if let Ok(header) = StoredHeader::decode(&header) {
        assert_eq!(
            StoredHeader::of(header.name(), header.fragment(), header.length()).as_ref(),
            Ok(&header)
        );
        let _ = read(header.name(), stored, offset, length);
    }

    let sealed = SealedObject::seal(name(), Bytes::copy_from_slice(stored)).expect("it is small");
    let got = read(name(), &sealed.to_stored(), offset, length).expect("nothing is damaged");
    let start = stored.len().min(offset as usize);
    let end = stored.len().min(start + length as usize);
    assert_eq!(got, stored[start..end]);
});

fn read(name: ObjectName, stored: &[u8], offset: u64, length: u64) -> Option<Bytes> {
    let span = Span::holding(offset, length);
    let start = stored.len().min(span.stored_offset() as usize);
    let end = stored.len().min(start + span.stored_length() as usize);
    let part = Bytes::copy_from_slice(&stored[start..end]);
    within_memory(stored, || span.open(name, stored.len() as u64, part)).ok()
}

fn name() -> ObjectName {
    ObjectName::Sco {
        volume: VolumeId::from_u128(0x1234_5678),
        id: ScoId(7),
        epoch: Epoch(3),
        version: 1,
    }
}
