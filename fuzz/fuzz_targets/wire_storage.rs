//! Whatever a peer of the storage protocol sends is a message or refused: no panic, no memory on the word of a length field,
//! and what is a message means the same when it is sent on.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sconce_schemas::wire::storage::{StorageReply, StorageRequest};

fuzz_target!(|input: &[u8]| {
    sconce_fuzz::message::<StorageRequest>(input);
    sconce_fuzz::message::<StorageReply>(input);
});
