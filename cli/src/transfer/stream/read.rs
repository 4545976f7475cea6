//! Keeps: a stream that is being read: its checksum, and what was read so far.
//! Order: from the header to the end; nothing is given out before its CRC and its place were checked.
//! Crash: nothing.
//! Knows no cluster. What is wrong is told with the record and the byte of the stream.

use std::io::{ErrorKind, Read};

use anyhow::{Context, Result, anyhow, bail};
use bytes::Bytes;
use ring::digest::{Context as Digest, SHA256};
use sconce_schemas::stream::{
    RECORD_HEAD_LEN, RecordHead, RecordKind, STREAM_PREFIX_LEN, StreamEnd, StreamHeader, StreamOrder,
};

/// What comes next in a stream.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    Record(RecordHead, Bytes),
    /// All of it was there, and is what was written.
    End(StreamEnd),
}

/// A stream that is being read.
pub(super) struct StreamReader<R> {
    input: R,
    pub(super) header: StreamHeader,
    pub(super) order: StreamOrder,
    /// Of all bytes that were taken.
    pub(super) digest: Digest,
    /// Bytes that were taken.
    pub(super) position: u64,
}

impl<R: Read> StreamReader<R> {
    /// Takes the header.
    pub(super) fn new(mut input: R) -> Result<Self> {
        let mut digest = Digest::new(&SHA256);
        let mut prefix = [0; STREAM_PREFIX_LEN];
        let cut = || "the stream is cut off in its header";
        if !fill(&mut input, &mut prefix)? {
            bail!(cut());
        }
        let mut body = vec![0; StreamHeader::body_len(&prefix)?];
        if !fill(&mut input, &mut body)? {
            bail!(cut());
        }
        let header = StreamHeader::from_parts(&prefix, &body)?;
        digest.update(&prefix);
        digest.update(&body);
        Ok(Self {
            input,
            order: StreamOrder::new(header.to.size),
            header,
            digest,
            position: (prefix.len() + body.len()) as u64,
        })
    }

    /// Takes what comes next. After [`Next::End`] there is nothing.
    pub(super) fn next(&mut self) -> Result<Next> {
        let (number, position) = (self.order.records, self.position);
        self.take()
            .with_context(|| format!("record {number}, at byte {position} of the stream"))
    }

    fn take(&mut self) -> Result<Next> {
        let cut = || anyhow!("the stream is cut off here: neither it nor an end is there");
        let mut bytes = [0; RECORD_HEAD_LEN];
        if !fill(&mut self.input, &mut bytes)? {
            return Err(cut());
        }
        let head = RecordHead::from_bytes(&bytes)?;
        let mut payload = vec![0; head.payload as usize];
        if !fill(&mut self.input, &mut payload)? {
            return Err(cut());
        }
        RecordHead::check(&bytes, &payload)?;
        self.order.take(&head)?;
        if head.kind == RecordKind::End {
            return self.end(&payload).map(Next::End);
        }
        self.digest.update(&bytes);
        self.digest.update(&payload);
        self.position += (bytes.len() + payload.len()) as u64;
        Ok(Next::Record(head, payload.into()))
    }

    fn end(&mut self, payload: &[u8]) -> Result<StreamEnd> {
        let end = StreamEnd::from_bytes(payload)?;
        self.order.check_end(&end)?;
        if self.digest.clone().finish().as_ref() != end.sha256 {
            bail!("the SHA-256 of the whole stream is another than its end says: it was altered");
        }
        if fill(&mut self.input, &mut [0])? {
            bail!("something follows the end of the stream");
        }
        Ok(end)
    }
}

/// Fills the buffer; `false`: the input ends before that.
fn fill(input: &mut impl Read, buffer: &mut [u8]) -> Result<bool> {
    match input.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error.into()),
    }
}
