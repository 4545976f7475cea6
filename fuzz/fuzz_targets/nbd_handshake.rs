//! What a stranger sends during the NBD handshake is an option, a wait for more, or a violation; never a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sconce_fuzz::nbd::Export;
use sconce_fuzz::nbd::handshake::{self, ClientOption, OPTION_MAX};

fuzz_target!(|bytes: &[u8]| {
    let Ok(Some((flags, mut at))) = handshake::take_client_flags(bytes) else {
        return;
    };
    let export = Export {
        size: 1 << 30,
        read_only: false,
    };
    while let Ok(Some((number, option, length))) = handshake::take_option(&bytes[at..]) {
        assert!(
            length > 0 && length <= OPTION_MAX as usize + 16,
            "an option takes what it says"
        );
        let mut out = Vec::new();
        match option {
            ClientOption::Go(query) | ClientOption::Info(query) => {
                assert!(query.name.len() <= 4096);
                handshake::put_export(&mut out, number, &query, export, true);
            }
            ClientOption::ExportName(_) => handshake::put_export_name(&mut out, export, flags.no_zeroes),
            ClientOption::Malformed(why) => {
                handshake::put_error(&mut out, number, handshake::OptionReply::ErrInvalid, why);
            }
            _ => {}
        }
        at += length;
    }
});
