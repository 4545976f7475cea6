//! What a client sent: a buffer that one read fills with many requests.
//!
//! Keeps: bytes that were read and not taken as requests yet.
//! Order: requests are taken in the order in which they were sent.
//! Crash: nothing.
//! Knows no socket: its owner reads into what [`Inbox::target`] gives.
//!
//! A small write's data is copied out of the buffer: a slice would keep all of it in memory for as long as that one
//! write is held, and the buffer could not be used again. A large write's data is a slice, or has a buffer of its own,
//! so that the rest of it is read to where it stays.

use bytes::buf::Limit;
use bytes::{Buf as _, BufMut, Bytes, BytesMut};

use super::protocol::request::{REQUEST_LEN, Request};
use super::protocol::{PAYLOAD_MAX, Violation};

/// Size of a buffer.
const BUFFER: usize = 256 << 10;
/// Room that a read is given at least: with less left, another buffer is begun.
const READ_MIN: usize = 32 << 10;
/// Data of at least this length gets a buffer of its own; shorter data is copied.
const OWN_BUFFER_MIN: usize = 64 << 10;
/// What is read after a large write, which another one often follows: its header, and hardly any of its data, which
/// would have to be copied to where the rest of it is read to.
const READ_AFTER_LARGE: usize = 512;

/// Bytes that are held for a request until its reply has left. What carries too much is answered with an error, and
/// its data thrown away.
pub(super) fn weight(request: &Request) -> u64 {
    match request.carried() {
        carried if carried > PAYLOAD_MAX => 0,
        carried => u64::from(carried),
    }
}

/// Bytes of a client, on their way to be requests.
pub(super) struct Inbox {
    buffer: BytesMut,
    state: State,
    /// The last request was a write with a buffer of its own.
    after_large: bool,
}

enum State {
    /// A header is next.
    Header,
    /// The data of a large write is being read.
    Payload(Request, BytesMut),
    /// The data of a write that is too large is being thrown away: this much is left.
    Skipping(Request, u32),
}

/// What is at the front.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// A request with its data.
    Request(Request, Bytes),
    /// Not enough bytes yet.
    More,
    /// A request that carries more than there is room for.
    NoRoom,
}

impl Inbox {
    /// Begins with what was read during the handshake.
    pub(super) fn new(buffer: BytesMut) -> Self {
        Self {
            buffer,
            state: State::Header,
            after_large: false,
        }
    }

    /// What was read and not taken, for one who begins with it. `None` in the middle of a write that is thrown away: what
    /// of it is gone already cannot be said again.
    pub(super) fn into_rest(self) -> Option<Vec<u8>> {
        match self.state {
            State::Header => Some(self.buffer.into()),
            State::Payload(request, data) => {
                let mut rest = request.header().to_vec();
                rest.extend_from_slice(&data);
                rest.extend_from_slice(&self.buffer);
                Some(rest)
            }
            State::Skipping(..) => None,
        }
    }

    /// Where the next bytes go, with its limit.
    pub(super) fn target(&mut self) -> Limit<&mut BytesMut> {
        match &mut self.state {
            State::Payload(request, data) => {
                let left = request.payload() as usize - data.len();
                data.limit(left)
            }
            State::Header | State::Skipping(..) => {
                if self.buffer.capacity() - self.buffer.len() < READ_MIN {
                    self.buffer.reserve(BUFFER);
                }
                let room = self.buffer.capacity() - self.buffer.len();
                let is_header = self.after_large && self.buffer.len() < REQUEST_LEN;
                (&mut self.buffer).limit(if is_header { READ_AFTER_LARGE } else { room })
            }
        }
    }

    /// Takes the next request. `admit` is told once what a request will carry, [`weight`] of it, before memory is taken
    /// for it, and says whether it may.
    ///
    /// # Errors
    /// What comes next is no request.
    pub(super) fn take(&mut self, mut admit: impl FnMut(u64) -> bool) -> Result<Taken, Violation> {
        loop {
            match std::mem::replace(&mut self.state, State::Header) {
                State::Header => {
                    let Some(request) = Request::parse(&self.buffer)? else {
                        return Ok(Taken::More);
                    };
                    if self.is_short_of(&request) {
                        return Ok(Taken::More);
                    }
                    if !admit(weight(&request)) {
                        return Ok(Taken::NoRoom);
                    }
                    if let Some(taken) = self.begin(request) {
                        return Ok(taken);
                    }
                }
                State::Payload(request, data) => {
                    if data.len() < request.payload() as usize {
                        self.state = State::Payload(request, data);
                        return Ok(Taken::More);
                    }
                    self.after_large = true;
                    return Ok(Taken::Request(request, data.freeze()));
                }
                State::Skipping(request, left) => {
                    let here = self.buffer.len().min(left as usize);
                    let _ = self.buffer.split_to(here);
                    let left = left - u32::try_from(here).unwrap_or(left);
                    if left > 0 {
                        self.state = State::Skipping(request, left);
                        return Ok(Taken::More);
                    }
                    return Ok(Taken::Request(request, Bytes::new()));
                }
            }
        }
    }

    /// Whether data of a small write at the front is missing, which is to come behind what is here.
    fn is_short_of(&mut self, request: &Request) -> bool {
        let payload = request.payload() as usize;
        let missing = (REQUEST_LEN + payload).saturating_sub(self.buffer.len());
        let is_short = payload < OWN_BUFFER_MIN && missing > 0;
        if is_short {
            // It may not fit there.
            self.buffer.reserve(missing);
        }
        is_short
    }

    /// Begins with a request whose header is at the front; `None`: look at the state again.
    fn begin(&mut self, request: Request) -> Option<Taken> {
        let payload = request.payload() as usize;
        if request.payload() > PAYLOAD_MAX {
            let _ = self.buffer.split_to(REQUEST_LEN);
            self.state = State::Skipping(request, request.payload());
            return None;
        }
        let all = REQUEST_LEN + payload;
        if self.buffer.len() >= all {
            self.after_large = false;
            let data = if payload < OWN_BUFFER_MIN {
                let data = Bytes::copy_from_slice(&self.buffer[REQUEST_LEN..all]);
                self.buffer.advance(all);
                data
            } else {
                self.buffer.split_to(all).split_off(REQUEST_LEN).freeze()
            };
            return Some(Taken::Request(request, data));
        }
        self.buffer.advance(REQUEST_LEN);
        let mut data = BytesMut::with_capacity(payload);
        data.extend_from_slice(&self.buffer.split());
        self.state = State::Payload(request, data);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encode(kind: u16, cookie: u64, length: u32) -> Vec<u8> {
        let mut bytes = 0x2560_9513_u32.to_be_bytes().to_vec();
        bytes.extend(0_u16.to_be_bytes());
        bytes.extend(kind.to_be_bytes());
        bytes.extend(cookie.to_be_bytes());
        bytes.extend(0_u64.to_be_bytes());
        bytes.extend(length.to_be_bytes());
        bytes
    }

    /// Feeds `stream` in pieces, as a socket would, each to what `goes_on` makes of the inbox, and gives what comes out.
    fn feed(stream: &[u8], pieces: &[usize], goes_on: impl Fn(Inbox) -> Inbox) -> Vec<(u64, Bytes)> {
        let mut inbox = Inbox::new(BytesMut::new());
        let (mut out, mut rest, mut turn) = (Vec::new(), stream, 0);
        loop {
            match inbox.take(|_| true).unwrap() {
                Taken::Request(request, data) => out.push((request.cookie, data)),
                Taken::NoRoom => unreachable!("there is room without end"),
                Taken::More if rest.is_empty() => return out,
                Taken::More => {
                    inbox = goes_on(inbox);
                    let mut target = inbox.target();
                    let room = target.remaining_mut();
                    assert!(room > 0, "a read has room");
                    let some = pieces[turn % pieces.len()].min(rest.len()).min(room);
                    turn += 1;
                    target.put_slice(&rest[..some]);
                    rest = &rest[some..];
                }
            }
        }
    }

    proptest! {
        #[test]
        fn however_a_stream_is_cut_the_same_requests_come_out(
            lengths in proptest::collection::vec(prop_oneof![Just(0_usize), 1_usize..300, 60_000_usize..70_000], 1..12),
            pieces in proptest::collection::vec(1_usize..100_000, 1..10),
        ) {
            let (mut stream, mut wanted) = (Vec::new(), Vec::new());
            for (cookie, length) in lengths.into_iter().enumerate() {
                let cookie = cookie as u64;
                let data = vec![u8::try_from(cookie).unwrap(); length];
                stream.extend(encode(1, cookie, u32::try_from(length).unwrap()));
                stream.extend(&data);
                stream.extend(encode(0, cookie + 100, 4096));
                wanted.push((cookie, Bytes::from(data)));
                wanted.push((cookie + 100, Bytes::new()));
            }
            prop_assert_eq!(feed(&stream, &pieces, |inbox| inbox), wanted);
        }

        #[test]
        fn arbitrary_bytes_are_requests_or_a_violation(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut inbox = Inbox::new(BytesMut::from(&bytes[..]));
            while let Ok(Taken::Request(..)) = inbox.take(|_| true) {}
        }
    }

    /// Another inbox, for what one has left.
    fn the_next(inbox: Inbox) -> Inbox {
        let left = inbox.into_rest().unwrap();
        let mut next = Inbox::new(BytesMut::from(&left[..]));
        assert_eq!(next.take(|_| true), Ok(Taken::More));
        next
    }

    #[test]
    fn what_one_left_another_goes_on_with() {
        let (mut stream, mut wanted) = (Vec::new(), Vec::new());
        for (cookie, length) in [(0, 300), (1, 70_000), (2, 0), (3, 200_000), (4, 1)] {
            let data = vec![u8::try_from(cookie).unwrap(); length];
            stream.extend(encode(1, cookie, u32::try_from(length).unwrap()));
            stream.extend(&data);
            wanted.push((cookie, Bytes::from(data)));
        }
        for pieces in [&[1000, 27, 1][..], &[65_536], &[9_999, 28]] {
            assert_eq!(feed(&stream, pieces, the_next), wanted, "{pieces:?}");
        }
    }

    #[test]
    fn a_write_that_is_thrown_away_cannot_be_left() {
        let mut inbox = Inbox::new(BytesMut::from(&encode(1, 1, PAYLOAD_MAX + 1)[..]));
        assert_eq!(inbox.take(|_| true), Ok(Taken::More));
        assert!(inbox.into_rest().is_none());
    }

    #[test]
    fn a_write_that_is_too_large_is_thrown_away_and_told_of() {
        let length = PAYLOAD_MAX + 7;
        let mut stream = encode(1, 1, length);
        stream.resize(stream.len() + length as usize, 9);
        stream.extend(encode(3, 2, 0));
        let out = feed(&stream, &[1 << 20], |inbox| inbox);
        assert_eq!(out, vec![(1, Bytes::new()), (2, Bytes::new())]);
    }

    #[test]
    fn a_small_writes_data_does_not_keep_the_buffer() {
        let mut inbox = Inbox::new(BytesMut::with_capacity(BUFFER));
        let mut held = Vec::new();
        let mut buffers = std::collections::BTreeSet::new();
        for cookie in 0..1000 {
            let mut target = inbox.target();
            target.put_slice(&encode(1, cookie, 4096));
            target.put_slice(&[7; 4096]);
            buffers.insert(inbox.buffer.as_ptr() as usize & !(BUFFER - 1));
            match inbox.take(|_| true) {
                Ok(Taken::Request(_, data)) => held.push(data),
                other => panic!("{other:?}"),
            }
        }
        // 4 MiB went through buffers of 256 KiB, which lie across two such lines.
        assert!(buffers.len() <= 2, "{} buffers", buffers.len());
    }

    #[test]
    fn a_request_waits_for_room_without_a_buffer() {
        let mut inbox = Inbox::new(BytesMut::from(&encode(1, 1, 1 << 20)[..]));
        assert_eq!(inbox.take(|wanted| wanted < 1 << 20), Ok(Taken::NoRoom));
        assert_eq!(inbox.take(|wanted| wanted == 1 << 20), Ok(Taken::More));
        // It has its room: nobody is asked again.
        assert_eq!(inbox.take(|_| false), Ok(Taken::More));
        assert_eq!(inbox.target().remaining_mut(), 1 << 20);
    }
}
