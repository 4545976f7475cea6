//! What a client sends in the transmission phase is a request that is right, one that is answered with an error, or a
//! violation; what is right lies within the export.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sconce_fuzz::nbd::request::{Agreed, Command, REQUEST_LEN, Request};
use sconce_fuzz::nbd::{Export, PAYLOAD_MAX};

fuzz_target!(|bytes: &[u8]| {
    let Some((&first, mut rest)) = bytes.split_first() else {
        return;
    };
    let size = 1_u64 << (first & 63);
    let agreed = Agreed {
        export: Export {
            size,
            read_only: first & 64 != 0,
        },
        structured: first & 128 != 0,
        contexts: first & 128 != 0,
    };
    while let Ok(Some(request)) = Request::parse(rest) {
        if let Ok(command) = request.judge(&agreed) {
            let is_range = !matches!(command, Command::Flush | Command::Disconnect);
            assert!(!is_range || request.offset + u64::from(request.length) <= size);
            assert!(request.carried() <= PAYLOAD_MAX || !is_range);
        }
        rest = &rest[REQUEST_LEN..];
    }
});
