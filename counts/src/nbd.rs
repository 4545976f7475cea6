//! The NBD front end's part: from bytes of the socket to requests, and from answers to bytes.
//!
//! These are the fs-router's own files: they refer to nothing outside, and the fs-router's tree takes minutes to build.

#[path = "../../services/fs-router/src/nbd/inbox.rs"]
#[cfg_attr(not(test), expect(dead_code, reason = "a connection's end is not counted"))]
mod inbox;
#[path = "../../services/fs-router/src/nbd/outbox.rs"]
#[expect(dead_code, reason = "a connection's end is not counted")]
mod outbox;
#[path = "../../services/fs-router/src/nbd/protocol/mod.rs"]
#[expect(
    dead_code,
    unreachable_pub,
    reason = "a part of the fs-router's library, of which the handshake is not counted"
)]
mod protocol;

use std::hint::black_box;
use std::io::IoSlice;

use anyhow::anyhow;
use bytes::{BufMut as _, Bytes, BytesMut};

use inbox::{Inbox, Taken};
use outbox::{Outbox, SLICES};
use protocol::request::{Agreed, REQUEST_LEN};
use protocol::{Export, reply};

const BLOCK: usize = 4096;
const BLOCK_LEN: u32 = 4096;
/// What one read of the socket gives, of a client with a deep queue.
const READ: usize = 32;
/// What one write of the socket takes.
const WRITTEN: u64 = 32;

/// A write of 4 KiB as a client sends it.
fn sent() -> Vec<u8> {
    let mut header = BytesMut::with_capacity(REQUEST_LEN);
    header.put_u32(0x2560_9513);
    header.put_u16(0);
    header.put_u16(1);
    header.put_u64(77);
    header.put_u64(1 << 30);
    header.put_u32(BLOCK_LEN);
    let mut bytes = header.to_vec();
    bytes.resize(REQUEST_LEN + BLOCK, 7);
    bytes
}

pub(crate) fn requests(operations: u64) -> anyhow::Result<()> {
    let agreed = Agreed {
        export: Export {
            size: 8 << 30,
            read_only: false,
        },
        structured: true,
        contexts: false,
    };
    let message = sent().repeat(READ);
    let mut inbox = Inbox::new(BytesMut::new());
    let mut taken = 0;
    while taken < operations {
        let mut rest = &message[..];
        while !rest.is_empty() {
            let mut target = inbox.target();
            let some = rest.len().min(target.remaining_mut());
            target.put_slice(&rest[..some]);
            rest = &rest[some..];
            while let Taken::Request(request, data) = inbox.take(|_| true)? {
                let command = request.judge(&agreed).map_err(|wrong| anyhow!("{}", wrong.why))?;
                black_box((command, data));
                taken += 1;
            }
        }
    }
    Ok(())
}

/// Answers, of which as many leave together as a write of the socket takes.
fn answers(operations: u64, put: impl Fn(&mut Outbox, u64)) -> anyhow::Result<()> {
    let mut outbox = Outbox::default();
    for number in 0..operations {
        put(&mut outbox, number);
        if (number + 1).is_multiple_of(WRITTEN) {
            while !outbox.is_empty() {
                let mut slices = [IoSlice::new(&[]); SLICES];
                let count = outbox.slices(&mut slices);
                let length = slices[..count].iter().map(|slice| slice.len()).sum();
                outbox.advance(black_box(length));
            }
        }
    }
    Ok(())
}

pub(crate) fn done(operations: u64) -> anyhow::Result<()> {
    answers(operations, |outbox, number| {
        outbox.header(|out| reply::put_simple(out, black_box(number), None));
    })
}

pub(crate) fn data(operations: u64) -> anyhow::Result<()> {
    let data = Bytes::from(vec![7; BLOCK]);
    answers(operations, |outbox, number| {
        let offset = black_box(number * BLOCK as u64);
        outbox.header(|out| reply::put_offset_data(out, number, true, offset, BLOCK_LEN));
        outbox.data(data.clone());
    })
}
