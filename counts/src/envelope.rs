//! The bus's part: requests and replies as bytes of a message, 32 in each.

use std::hint::black_box;

use sconce_schemas::wire::Body;
use sconce_schemas::wire::envelope::{Header, Trace, close_replies, close_requests, put_reply, put_request};
use sconce_schemas::wire::volume::{IoCode, IoFlags, IoRequest, VolumeReply, VolumeRequest};

const IN_A_MESSAGE: u64 = 32;
const COUNT: usize = 32;
const BLOCK: u32 = 4096;

fn request(number: u64) -> VolumeRequest {
    VolumeRequest::Io(IoRequest {
        handle: 3,
        number,
        below: number.saturating_sub(IN_A_MESSAGE),
        code: IoCode::Write,
        flags: IoFlags::default(),
        offset: number.wrapping_mul(0x9e37_79b9) % (1 << 23) * u64::from(BLOCK),
        length: u64::from(BLOCK),
    })
}

/// A message's header, of requests from `first` on.
fn requests(entries: &mut Vec<u8>, message: &mut Vec<u8>, first: u64) {
    entries.clear();
    message.clear();
    for number in first..first + IN_A_MESSAGE {
        let trace = Trace::from(0x5fe5_0e47_f612_0000 + number);
        put_request(entries, number, BLOCK, 0, trace, &request(number));
    }
    close_requests(message, 1 << 40, COUNT, entries);
}

fn replies(entries: &mut Vec<u8>, message: &mut Vec<u8>, first: u64) {
    entries.clear();
    message.clear();
    for number in first..first + IN_A_MESSAGE {
        put_reply(entries, number, 0, &VolumeReply::Done);
    }
    close_replies(message, 1 << 40, COUNT, entries);
}

fn encode(operations: u64, message: fn(&mut Vec<u8>, &mut Vec<u8>, u64)) -> anyhow::Result<()> {
    let (mut entries, mut bytes) = (Vec::new(), Vec::new());
    for turn in 0..operations / IN_A_MESSAGE {
        message(
            &mut entries,
            &mut bytes,
            black_box(1_000_000 + turn * IN_A_MESSAGE),
        );
        black_box(&bytes);
    }
    Ok(())
}

fn decode<B: Body>(
    operations: u64,
    message: fn(&mut Vec<u8>, &mut Vec<u8>, u64),
    data_len: u32,
) -> anyhow::Result<()> {
    let (mut entries, mut bytes) = (Vec::new(), Vec::new());
    message(&mut entries, &mut bytes, 1_000_000);
    let data_len = data_len as usize * COUNT;
    for _ in 0..operations / IN_A_MESSAGE {
        drop(black_box(Header::<B>::decode(black_box(&bytes), data_len)?));
    }
    Ok(())
}

pub(crate) fn encode_requests(operations: u64) -> anyhow::Result<()> {
    encode(operations, requests)
}

pub(crate) fn encode_replies(operations: u64) -> anyhow::Result<()> {
    encode(operations, replies)
}

pub(crate) fn decode_requests(operations: u64) -> anyhow::Result<()> {
    decode::<VolumeRequest>(operations, requests, BLOCK)
}

pub(crate) fn decode_replies(operations: u64) -> anyhow::Result<()> {
    decode::<VolumeReply>(operations, replies, 0)
}
