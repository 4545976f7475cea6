//! Whatever a checkpoint object holds is an index and nodes, or refused; as it is and with its CRCs made right.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sconce_fuzz::{seal, seal_before, within_memory};
use sconce_schemas::checkpoint::{CheckpointBuilder, NODE_REF_LEN, NodeRef, decode_index, decode_node};
use sconce_schemas::crc::{crc32c_append, sco_salt};
use sconce_schemas::{CheckpointId, Epoch, LineageIndex, ScoId, VolumeId};

/// Those of the corpus's checkpoint.
const VOLUME: VolumeId = VolumeId([0xab; 16]);
const CHECKPOINT: CheckpointId = CheckpointId(7);
const EPOCH: Epoch = Epoch(3);

const HEADER_LEN: usize = 48;
const FOOTER_LEN: usize = 16;
const INDEX_ENTRY_LEN: usize = 32;

fuzz_target!(|object: &[u8]| {
    index(object);
    index(&sealed(object));
    // The same bytes as a node alone, and as a reference to one.
    node(object.to_vec());
    if let Some(stored) = object.first_chunk::<NODE_REF_LEN>()
        && let Ok(reference) = NodeRef::from_bytes(stored)
    {
        assert_eq!(NodeRef::from_bytes(&reference.to_bytes()), Ok(reference));
    }
});

fn index(object: &[u8]) {
    let Ok(index) = within_memory(object, || decode_index(VOLUME, object)) else {
        return;
    };
    for (_, offset, length) in index {
        let (start, length) = (offset as usize, length as usize);
        if let Some(bytes) = object.get(start..).and_then(|rest| rest.get(..length)) {
            node(bytes.to_vec());
        }
    }
}

fn node(mut bytes: Vec<u8>) {
    seal(&mut bytes, 0, salt());
    let Some(&crc) = bytes.first_chunk() else {
        return;
    };
    let reference = NodeRef {
        checkpoint: CHECKPOINT,
        epoch: EPOCH,
        offset: 0,
        length: bytes.len() as u32,
        crc: u32::from_le_bytes(crc),
        lineage: LineageIndex(0),
        chain: 0,
    };
    let Ok(record) = within_memory(&bytes, || decode_node(VOLUME, &reference, &bytes)) else {
        return;
    };
    assert_eq!(
        record.values.len(),
        record.present.count() * usize::from(record.width)
    );
    let mut builder = CheckpointBuilder::new(VOLUME, CHECKPOINT, EPOCH);
    let again = builder.push(&record, LineageIndex(0)).expect("there is room");
    let object = builder.finish();
    let stored = &object[again.offset as usize..][..again.length as usize];
    assert_eq!(decode_node(VOLUME, &again, stored).as_ref(), Ok(&record));
}

fn sealed(object: &[u8]) -> Vec<u8> {
    let mut object = object.to_vec();
    let Some(footer) = object
        .len()
        .checked_sub(FOOTER_LEN)
        .filter(|at| *at >= HEADER_LEN)
    else {
        return object;
    };
    object[8..40].copy_from_slice(&CheckpointBuilder::new(VOLUME, CHECKPOINT, EPOCH).finish()[8..40]);
    seal_before(&mut object, 0, HEADER_LEN - 4);
    let nodes = u32::from_le_bytes([4, 5, 6, 7].map(|at| object[footer + at])) as usize;
    if let Some(start) = nodes
        .checked_mul(INDEX_ENTRY_LEN)
        .and_then(|len| footer.checked_sub(len))
    {
        let crc = crc32c_append(salt(), &object[start..footer]);
        object[footer + 8..footer + 12].copy_from_slice(&crc.to_le_bytes());
    }
    seal_before(&mut object, footer, footer + 12);
    object
}

fn salt() -> u32 {
    !sco_salt(VOLUME, ScoId(CHECKPOINT.0), EPOCH)
}
