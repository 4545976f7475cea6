//! Whatever a fragment begins with is a head or refused; as it is and with its CRC made right. What a head says fits together.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sconce_fuzz::{seal_before, within_memory};
use sconce_schemas::fragment::FragmentHead;

fuzz_target!(|bytes: &[u8]| {
    check(bytes);
    let mut sealed = bytes.to_vec();
    if let Ok(length) = FragmentHead::len_of(bytes)
        && length <= sealed.len()
    {
        seal_before(&mut sealed, 0, length - 4);
        check(&sealed);
    }
});

fn check(bytes: &[u8]) {
    let Ok(head) = within_memory(bytes, || FragmentHead::from_bytes(bytes)) else {
        return;
    };
    assert_eq!(FragmentHead::from_bytes(head.bytes()).as_ref(), Ok(&head));
    let cut = head.cut();
    assert_eq!(head.bytes().len(), cut.head_bytes());
    for place in cut.chunks() {
        let chunk = head.chunk(place.index).expect("each chunk has its entry");
        let body = head.body_bytes(usize::from(place.fragment));
        assert!(chunk.at + u64::from(chunk.stored) <= body);
    }
    for fragment in 0..cut.width() {
        assert!(head.body_crc(fragment).is_some() && head.body_bytes(fragment) <= head.shard_bytes());
    }
}
