//! Whatever a registry key holds is a record or refused; a record means the same after it was stored again.
#![no_main]

use std::fmt::Debug;

use libfuzzer_sys::fuzz_target;
use sconce_fuzz::within_memory;
use sconce_schemas::VolumeId;
use sconce_schemas::records::{
    BackendRecord, DeepScrubRecord, InodeRecord, MoveRecord, NameRecord, NodeRecord, PoolRecord, Record, VolumeRecord,
};

fn check<R: Record + Debug + PartialEq>(bytes: &[u8]) -> Option<R> {
    let record = within_memory(bytes, || R::from_bytes(bytes)).ok()?;
    assert_eq!(R::from_bytes(&record.to_bytes()).as_ref(), Ok(&record));
    Some(record)
}

fuzz_target!(|bytes: &[u8]| {
    if let Some(node) = check::<NodeRecord>(bytes) {
        let endpoint = node.endpoint_of(VolumeId([0xff; 16]));
        assert_eq!(endpoint.is_some(), !node.endpoints.is_empty());
    }
    check::<VolumeRecord>(bytes);
    check::<InodeRecord>(bytes);
    check::<NameRecord>(bytes);
    check::<PoolRecord>(bytes);
    check::<BackendRecord>(bytes);
    check::<DeepScrubRecord>(bytes);
    check::<MoveRecord>(bytes);
});
