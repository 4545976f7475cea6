//! Whatever lies where a manifest should be is one or refused; as it is and with its length and CRC made right.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sconce_fuzz::{seal, within_memory};
use sconce_schemas::manifest::Manifest;

fuzz_target!(|bytes: &[u8]| {
    check(bytes);
    let mut sealed = bytes.to_vec();
    if let Some(body) = sealed.len().checked_sub(16) {
        sealed[8..12].copy_from_slice(&(body as u32).to_le_bytes());
        seal(&mut sealed, 12, 0);
        check(&sealed);
    }
});

fn check(bytes: &[u8]) {
    let Ok(manifest) = within_memory(bytes, || Manifest::from_bytes(bytes)) else {
        return;
    };
    assert_eq!(Manifest::from_bytes(&manifest.to_bytes()).as_ref(), Ok(&manifest));
}
