//! A small NBD client that can be asked what no packaged client shows: which request was answered when, and with what.
//!
//! Keeps: the requests that were sent and not yet answered.
//! Order: requests leave in the order of the calls; answers are taken as they come.
//! Crash: a broken connection is an `io::Error`; the caller connects again and sends again what was not answered.
//! Knows fixed newstyle and simple replies, which every NBD server must serve.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

const HELLO: u64 = 0x4e42_444d_4147_4943;
const OPTION: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
const REQUEST: u32 = 0x2560_9513;
const REPLY: u32 = 0x6744_6698;
const FLAGS_FIXED_NEWSTYLE_NO_ZEROES: u32 = 3;
const OPT_GO: u32 = 7;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const INFO_EXPORT: u16 = 0;

/// What is asked of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Ask {
    /// Bytes.
    Read = 0,
    /// Keep these bytes.
    Write = 1,
    /// All acknowledged writes survive a power loss.
    Flush = 3,
    /// Bytes that are needed no more.
    Trim = 4,
}

/// An answer to a request.
#[derive(Debug)]
pub struct Answer {
    /// The number that [`Nbd::send`] gave it.
    pub request: u64,
    /// NBD's error number; 0: done.
    pub error: u32,
    /// What was read.
    pub data: Vec<u8>,
}

/// A connection to one export.
#[derive(Debug)]
pub struct Nbd {
    stream: UnixStream,
    size: u64,
    next: u64,
    /// Bytes of data that each unanswered request's answer carries.
    unanswered: HashMap<u64, usize>,
}

impl Nbd {
    /// Connects and negotiates `export`; each later wait for the server is bounded by `limit`.
    ///
    /// # Errors
    /// No server, or it refuses the export: `ErrorKind::NotFound` with its text.
    pub fn connect(socket: &Path, export: &str, limit: Duration) -> io::Result<Nbd> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(limit))?;
        stream.set_write_timeout(Some(limit))?;
        let greeting: [u8; 18] = take(&mut stream)?;
        if greeting[..8] != HELLO.to_be_bytes() || greeting[8..16] != OPTION.to_be_bytes() {
            return Err(wrong(format!("greeting {greeting:02x?}")));
        }
        stream.write_all(&FLAGS_FIXED_NEWSTYLE_NO_ZEROES.to_be_bytes())?;
        let mut go = length_of(export.as_bytes())?.to_be_bytes().to_vec();
        go.extend_from_slice(export.as_bytes());
        go.extend_from_slice(&0_u16.to_be_bytes());
        let mut option = OPTION.to_be_bytes().to_vec();
        option.extend_from_slice(&OPT_GO.to_be_bytes());
        option.extend_from_slice(&length_of(&go)?.to_be_bytes());
        option.extend_from_slice(&go);
        stream.write_all(&option)?;
        let size = negotiated_size(&mut stream)?;
        Ok(Nbd {
            stream,
            size,
            next: 0,
            unanswered: HashMap::new(),
        })
    }

    /// Size of the export in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// How many requests wait for their answer.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.unanswered.len()
    }

    /// Sends a request for `length` bytes at `offset` and returns its number; `data` is what a write writes.
    ///
    /// # Errors
    /// The connection is broken.
    pub fn send(&mut self, ask: Ask, offset: u64, length: u32, data: &[u8]) -> io::Result<u64> {
        let request = self.next;
        let message = self.message(ask, offset, length, data);
        self.stream.write_all(&message)?;
        Ok(request)
    }

    /// A request's bytes; its answer is expected from here on.
    fn message(&mut self, ask: Ask, offset: u64, length: u32, data: &[u8]) -> Vec<u8> {
        let request = self.next;
        self.next += 1;
        let mut message = Vec::with_capacity(28 + data.len());
        message.extend_from_slice(&REQUEST.to_be_bytes());
        message.extend_from_slice(&0_u16.to_be_bytes());
        message.extend_from_slice(&(ask as u16).to_be_bytes());
        message.extend_from_slice(&request.to_be_bytes());
        message.extend_from_slice(&offset.to_be_bytes());
        message.extend_from_slice(&length.to_be_bytes());
        message.extend_from_slice(data);
        let expected = if ask == Ask::Read { length as usize } else { 0 };
        self.unanswered.insert(request, expected);
        message
    }

    /// Sends two writes of `data`, one behind the other, of the second only a half: the rest is for [`Nbd::send_rest`].
    /// Once the first is answered, the server has the half too.
    ///
    /// # Errors
    /// The connection is broken.
    pub fn send_one_and_a_half(&mut self, offset: u64, data: &[u8]) -> io::Result<Vec<u8>> {
        let length = length_of(data)?;
        let first = self.message(Ask::Write, offset, length, data);
        let mut second = self.message(Ask::Write, offset + u64::from(length), length, data);
        let rest = second.split_off(second.len() / 2);
        self.stream.write_all(&[first, second].concat())?;
        Ok(rest)
    }

    /// Sends what was left of a request.
    ///
    /// # Errors
    /// The connection is broken.
    pub fn send_rest(&mut self, rest: &[u8]) -> io::Result<()> {
        self.stream.write_all(rest)
    }

    /// Waits for the next answer.
    ///
    /// # Errors
    /// The connection is broken, or the server answers what was not asked.
    pub fn receive(&mut self) -> io::Result<Answer> {
        let header: [u8; 16] = take(&mut self.stream)?;
        let (magic, rest) = header.split_at(4);
        let (error, request) = rest.split_at(4);
        if magic != REPLY.to_be_bytes() {
            return Err(wrong(format!("reply {header:02x?}")));
        }
        let error = u32::from_be_bytes(error.try_into().map_err(io::Error::other)?);
        let request = u64::from_be_bytes(request.try_into().map_err(io::Error::other)?);
        let Some(length) = self.unanswered.remove(&request) else {
            return Err(wrong(format!(
                "an answer to request {request}, which was not asked"
            )));
        };
        let mut data = vec![0; if error == 0 { length } else { 0 }];
        self.stream.read_exact(&mut data)?;
        Ok(Answer { request, error, data })
    }

    /// Waits up to `wait` for the next answer to begin to come; `None`: it did not.
    ///
    /// # Errors
    /// As [`Nbd::receive`].
    pub fn receive_within(&mut self, wait: Duration) -> io::Result<Option<Answer>> {
        let wait = Timespec::try_from(wait).map_err(io::Error::other)?;
        let mut ready = [PollFd::new(&self.stream, PollFlags::IN)];
        match poll(&mut ready, Some(&wait)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => Ok(None),
            Ok(_) => self.receive().map(Some),
            Err(error) => Err(error.into()),
        }
    }

    /// Sends one request and waits for its answer; nothing else may be under way.
    ///
    /// # Errors
    /// The connection is broken, or the server answers with an error.
    pub fn ask(&mut self, ask: Ask, offset: u64, length: u32, data: &[u8]) -> io::Result<Vec<u8>> {
        let request = self.send(ask, offset, length, data)?;
        let answer = self.receive()?;
        if answer.request != request || answer.error != 0 {
            return Err(wrong(format!(
                "{ask:?} of {length} bytes at {offset}: error {}",
                answer.error
            )));
        }
        Ok(answer.data)
    }
}

/// Reads option replies up to the acknowledgement and returns the size that one of them told.
fn negotiated_size(stream: &mut UnixStream) -> io::Result<u64> {
    let mut size = None;
    loop {
        let header: [u8; 20] = take(stream)?;
        let number = |at: usize| -> io::Result<u32> {
            let bytes = header.get(at..at + 4).unwrap_or_default();
            Ok(u32::from_be_bytes(bytes.try_into().map_err(io::Error::other)?))
        };
        if header[..8] != OPTION_REPLY.to_be_bytes() {
            return Err(wrong(format!("option reply {header:02x?}")));
        }
        let (kind, length) = (number(12)?, number(16)?);
        let mut body = vec![0; usize::try_from(length.min(65_536)).map_err(io::Error::other)?];
        stream.read_exact(&mut body)?;
        match kind {
            REP_ACK => return size.ok_or_else(|| wrong("no size was told".to_owned())),
            REP_INFO if body.starts_with(&INFO_EXPORT.to_be_bytes()) => {
                let bytes = body.get(2..10).unwrap_or_default();
                size = Some(u64::from_be_bytes(bytes.try_into().map_err(io::Error::other)?));
            }
            REP_INFO => {}
            refused => {
                let text = String::from_utf8_lossy(&body).into_owned();
                return Err(io::Error::new(
                    io::ErrorKind::NotFound,
                    format!("option refused with {refused:#x}: {text}"),
                ));
            }
        }
    }
}

fn take<const N: usize>(stream: &mut UnixStream) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn length_of(bytes: &[u8]) -> io::Result<u32> {
    u32::try_from(bytes.len()).map_err(io::Error::other)
}

fn wrong(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
