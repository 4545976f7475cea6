//! Whatever a peer of the volume protocol sends is a message or refused: no panic, no memory on the word of a length field,
//! and what is a message means the same when it is sent on.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sconce_schemas::wire::volume::{VolumeReply, VolumeRequest};

fuzz_target!(|input: &[u8]| {
    sconce_fuzz::message::<VolumeRequest>(input);
    sconce_fuzz::message::<VolumeReply>(input);
});
