//! The header frame: greeting, batches of requests and replies, keep-alives.
//!
//! Keeps: who may talk to whom, which reply answers which request, and whose data lies where in the data frame.
//! Order: a greeting first, a goodbye last; between them any.
//! Crash: a header is whole or refused; none is guessed.
//! Knows no bodies, no sockets.
//!
//! Layouts (msgpack):
//!
//! ```text
//! [0, {hello}]                                                      first message of a client
//! [1, {welcome}]                                                    the server's answer
//! [2, mark, [[id, data_len, reply_len, operation, body], ...]]      requests
//! [2, mark, [[id, data_len, reply_len, operation, body, cause], ...]]   of which some may be recorded (1.2)
//! [3, mark, [[id, data_len, body], ...]]                            replies
//! [4, mark]  [5, mark]                                              ping, pong
//! [6, refusal]                                                      goodbye: why the connection ends
//! ```
//!
//! In every major version a greeting and a welcome are maps that have `version` and `node`, and a goodbye is as it is here: so
//! peers that do not understand each other can say so. A kind that is not listed is an optional one of a newer minor version: it
//! has no answer, and who does not know it passes over it.
//!
//! A `cause` is `[trace id's high half, its low half, span id, flags]`, as in W3C's trace context, or empty for none.
//!
//! A `mark` bounds what a server has sent and nobody has read. The server puts one into each `Replies` and `Pong`;
//! the client gives back the newest that it has taken in with each `Requests` and `Ping` (0 before the first).
//! A mark cannot be guessed, so a client that does not read cannot pretend that it does.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::msgpack::{
    Body, put_array, put_named, put_uint, skip, take_array, take_fields, take_named, take_uint,
};
use super::refusal::Refusal;
use crate::DecodeError;
use crate::ids::NodeName;

/// Version of the protocol: a major step is refused, a minor step works both ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// Peers of different majors refuse each other.
    pub major: u16,
    /// Peers of different minors work with what both know.
    pub minor: u16,
}

impl Version {
    /// What this build speaks. 1.1 passes over kinds of headers that it does not know; 1.0 ended the connection. From 1.2 on a request
    /// may have a [`Cause`], which older ones pass over.
    pub const CURRENT: Version = Version { major: 1, minor: 2 };
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// What a service is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Front ends, names, routing.
    FsRouter,
    /// Owns volumes.
    VolumeRouter,
    /// Spreads objects over back ends.
    StorageRouter,
    /// The `sconce` command or a test.
    Client,
}

impl Role {
    /// Its name, as it is written.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Role::FsRouter => "fs-router",
            Role::VolumeRouter => "volume-router",
            Role::StorageRouter => "storage-router",
            Role::Client => "client",
        }
    }
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Which protocol's bodies a connection carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// [`super::volume`].
    Volume,
    /// [`super::storage`].
    Storage,
    /// [`super::registry`].
    Registry,
}

/// First message of a client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// What the client speaks.
    pub version: Version,
    /// The bodies that it will send.
    pub protocol: Protocol,
    /// What it is.
    pub role: Role,
    /// Who it is.
    pub node: NodeName,
}

/// The server's answer to [`Hello`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// What the server speaks.
    pub version: Version,
    /// What it is.
    pub role: Role,
    /// Who it is.
    pub node: NodeName,
    /// Bytes that the client may have outstanding: the sum over its unanswered requests of header, data and
    /// expected reply data.
    pub credit_bytes: u64,
    /// Largest message, both frames together, that the server takes.
    pub message_bytes_max: u64,
}

/// A greeting or welcome of another major version, of which no more is read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Foreign {
    /// What it speaks.
    pub version: Version,
    /// Who it is.
    pub node: NodeName,
}

/// A decoded header; request and reply bodies stay encoded until their protocol takes them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Header<B> {
    /// A client's greeting.
    Hello(Hello),
    /// The server's answer.
    Welcome(Welcome),
    /// A batch of requests.
    Requests {
        /// The newest mark that the client has taken in; 0 before the first.
        mark: u64,
        /// The requests, in order.
        requests: Vec<Request<B>>,
    },
    /// A batch of replies.
    Replies {
        /// Proof, once it comes back, that the client has taken this message in.
        mark: u64,
        /// The replies, in order.
        replies: Vec<Reply<B>>,
    },
    /// Are you there? With the newest mark that the client has taken in.
    Ping(u64),
    /// I am, with a mark as in `Replies`.
    Pong(u64),
    /// The connection ends, and why.
    Goodbye(Refusal),
    /// A greeting or welcome of another major version.
    Foreign(Foreign),
    /// A kind that a newer minor version may have added.
    Unknown(u64),
}

/// What a request belongs to, for traces.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Trace {
    /// Operation id, the same in every service that the operation passes; 0 for none.
    pub operation: u64,
    /// What caused the request, where that is recorded in spans.
    pub cause: Option<Cause>,
}

impl From<u64> for Trace {
    /// An operation that is not recorded.
    fn from(operation: u64) -> Self {
        Self {
            operation,
            cause: None,
        }
    }
}

/// A recorded span: what W3C's trace context names, with the flag "sampled" set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cause {
    /// The trace, the same for all spans that one cause has; not 0.
    pub trace_id: u128,
    /// The span; not 0.
    pub span_id: u64,
}

/// In W3C's flags: whoever sent this records it, so that the receiver should too.
const SAMPLED: u64 = 1;

/// One request of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request<B> {
    /// Chosen by the client, unique among its unanswered requests on this connection.
    pub id: u64,
    /// Its share of the data frame, in bytes.
    pub data_len: u32,
    /// Data that the client expects back, in bytes: part of the credit that the request takes.
    pub reply_len: u32,
    /// For traces.
    pub trace: Trace,
    /// The protocol's body.
    pub body: B,
}

/// One reply of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply<B> {
    /// The request that it answers.
    pub id: u64,
    /// Its share of the data frame, in bytes.
    pub data_len: u32,
    /// The protocol's body.
    pub body: B,
}

const HELLO: u64 = 0;
const WELCOME: u64 = 1;
const REQUESTS: u64 = 2;
const REPLIES: u64 = 3;
const PING: u64 = 4;
const PONG: u64 = 5;
const GOODBYE: u64 = 6;

/// Most requests that a client may have outstanding on a connection, whatever their size.
pub const OUTSTANDING_MAX: usize = 65_536;
/// Credit that a request takes beside its body, its data and its expected reply data: what both sides keep for it.
pub const REQUEST_OVERHEAD: u64 = 64;

/// Most requests or replies in one message: bounds what a hostile header makes the decoder allocate.
pub const BATCH_MAX: usize = 4096;

/// Appends a request to the requests of a batch header under construction (see [`close_requests`]).
pub fn put_request<B: Body>(
    out: &mut Vec<u8>,
    id: u64,
    data_len: u32,
    reply_len: u32,
    trace: Trace,
    body: &B,
) {
    put_array(out, if trace.cause.is_some() { 6 } else { 5 });
    put_uint(out, id);
    put_uint(out, u64::from(data_len));
    put_uint(out, u64::from(reply_len));
    put_uint(out, trace.operation);
    body.encode(out);
    if let Some(cause) = &trace.cause {
        put_cause(out, cause);
    }
}

#[cold]
fn put_cause(out: &mut Vec<u8>, cause: &Cause) {
    let (high, low) = halves(cause.trace_id);
    put_array(out, 4);
    put_uint(out, high);
    put_uint(out, low);
    put_uint(out, cause.span_id);
    put_uint(out, SAMPLED);
}

/// A trace id as two numbers.
const fn halves(trace_id: u128) -> (u64, u64) {
    let bytes = trace_id.to_be_bytes();
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = bytes;
    (
        u64::from_be_bytes([a, b, c, d, e, f, g, h]),
        u64::from_be_bytes([i, j, k, l, m, n, o, p]),
    )
}

/// Appends a reply to the replies of a batch header under construction (see [`close_replies`]).
pub fn put_reply<B: Body>(out: &mut Vec<u8>, id: u64, data_len: u32, body: &B) {
    put_array(out, 3);
    put_uint(out, id);
    put_uint(out, u64::from(data_len));
    body.encode(out);
}

/// Writes into `out` the header of a batch of `count` requests that [`put_request`] appended to `requests`.
pub fn close_requests(out: &mut Vec<u8>, mark: u64, count: usize, requests: &[u8]) {
    put_array(out, 3);
    put_uint(out, REQUESTS);
    put_uint(out, mark);
    put_array(out, count);
    out.extend_from_slice(requests);
}

/// Writes into `out` the header of a batch of `count` replies that [`put_reply`] appended to `replies`.
pub fn close_replies(out: &mut Vec<u8>, mark: u64, count: usize, replies: &[u8]) {
    put_array(out, 3);
    put_uint(out, REPLIES);
    put_uint(out, mark);
    put_array(out, count);
    out.extend_from_slice(replies);
}

impl<B: Body> Header<B> {
    /// Appends the header.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Header::Hello(hello) => {
                put_array(out, 2);
                put_uint(out, HELLO);
                put_named(out, hello);
            }
            Header::Welcome(welcome) => {
                put_array(out, 2);
                put_uint(out, WELCOME);
                put_named(out, welcome);
            }
            Header::Requests { mark, requests } => {
                close_requests(out, *mark, requests.len(), &[]);
                requests
                    .iter()
                    .for_each(|r| put_request(out, r.id, r.data_len, r.reply_len, r.trace, &r.body));
            }
            Header::Replies { mark, replies } => {
                close_replies(out, *mark, replies.len(), &[]);
                replies
                    .iter()
                    .for_each(|r| put_reply(out, r.id, r.data_len, &r.body));
            }
            Header::Ping(nonce) => put_pair(out, PING, *nonce),
            Header::Pong(nonce) => put_pair(out, PONG, *nonce),
            Header::Goodbye(refusal) => {
                put_array(out, 2);
                put_uint(out, GOODBYE);
                refusal.encode(out);
            }
            Header::Foreign(foreign) => {
                put_array(out, 2);
                put_uint(out, HELLO);
                put_named(out, foreign);
            }
            Header::Unknown(kind) => put_pair(out, *kind, 0),
        }
    }

    /// The header that `frame` holds; the frame ends with it. Checks that the shares of the data frame add up to
    /// `data_len`.
    ///
    /// # Errors
    /// Not well-formed, too many requests, or shares that do not add up.
    pub fn decode(mut frame: &[u8], data_len: usize) -> Result<Self, DecodeError> {
        let input = &mut frame;
        let more = take_fields(input, "header", 2)?;
        let header = match take_uint::<u64>(input, "header.kind")? {
            HELLO => take_greeting(input, "hello", Header::Hello)?,
            WELCOME => take_greeting(input, "welcome", Header::Welcome)?,
            REQUESTS => {
                let mark = take_uint(input, "header.mark")?;
                let requests = take_batch(input, take_request)?;
                check_shares(requests.iter().map(|r| r.data_len), data_len)?;
                Header::Requests { mark, requests }
            }
            REPLIES => {
                let mark = take_uint(input, "header.mark")?;
                let replies = take_batch(input, take_reply)?;
                check_shares(replies.iter().map(|r| r.data_len), data_len)?;
                Header::Replies { mark, replies }
            }
            PING => Header::Ping(take_uint(input, "ping")?),
            PONG => Header::Pong(take_uint(input, "pong")?),
            GOODBYE => Header::Goodbye(Refusal::decode(input)?),
            kind => {
                skip(input, "header", 1)?;
                Header::Unknown(kind)
            }
        };
        let taken = match header {
            Header::Requests { .. } | Header::Replies { .. } => 1,
            _ => 0,
        };
        skip(input, "header", more.saturating_sub(taken))?;
        if input.is_empty() {
            return Ok(header);
        }
        Err(DecodeError::Value {
            what: "header",
            found: format!("followed by {} bytes", input.len()),
            expected: "the whole frame",
        })
    }
}

/// What is greeted with, or as much of it as another major version can be relied on to say.
fn take_greeting<B, T: DeserializeOwned>(
    input: &mut &[u8],
    what: &'static str,
    known: impl FnOnce(T) -> Header<B>,
) -> Result<Header<B>, DecodeError> {
    let foreign: Foreign = take_named(&mut &**input, what)?;
    if foreign.version.major == Version::CURRENT.major {
        return take_named(input, what).map(known);
    }
    skip(input, what, 1)?;
    Ok(Header::Foreign(foreign))
}

fn put_pair(out: &mut Vec<u8>, kind: u64, value: u64) {
    put_array(out, 2);
    put_uint(out, kind);
    put_uint(out, value);
}

fn take_batch<T>(
    input: &mut &[u8],
    take: impl Fn(&mut &[u8]) -> Result<T, DecodeError>,
) -> Result<Vec<T>, DecodeError> {
    let len = take_array(input, "batch")?;
    if len > BATCH_MAX {
        return Err(DecodeError::Value {
            what: "batch",
            found: format!("{len} long"),
            expected: "at most 4096 long",
        });
    }
    let mut batch = Vec::with_capacity(len);
    for _ in 0..len {
        batch.push(take(input)?);
    }
    Ok(batch)
}

fn take_request<B: Body>(input: &mut &[u8]) -> Result<Request<B>, DecodeError> {
    let more = take_fields(input, "request", 5)?;
    let mut request = Request {
        id: take_uint(input, "request.id")?,
        data_len: take_uint(input, "request.data_len")?,
        reply_len: take_uint(input, "request.reply_len")?,
        trace: Trace::from(take_uint::<u64>(input, "request.operation")?),
        body: B::decode(input)?,
    };
    if more > 0 {
        request.trace.cause = take_cause(input)?;
        skip(input, "request", more - 1)?;
    }
    Ok(request)
}

/// Takes a cause. One that is empty, says "not sampled", or has an id that is none is no error: the request is not recorded.
#[cold]
fn take_cause(input: &mut &[u8]) -> Result<Option<Cause>, DecodeError> {
    let fields = take_array(input, "request.cause")?;
    let Some(more) = fields.checked_sub(4) else {
        skip(input, "request.cause", fields)?;
        return Ok(None);
    };
    let high: u64 = take_uint(input, "request.cause.trace_id")?;
    let low: u64 = take_uint(input, "request.cause.trace_id")?;
    let span_id: u64 = take_uint(input, "request.cause.span_id")?;
    let flags: u64 = take_uint(input, "request.cause.flags")?;
    skip(input, "request.cause", more)?;
    let trace_id = u128::from(high) << 64 | u128::from(low);
    let is_recorded = trace_id != 0 && span_id != 0 && flags & SAMPLED != 0;
    Ok(is_recorded.then_some(Cause { trace_id, span_id }))
}

fn take_reply<B: Body>(input: &mut &[u8]) -> Result<Reply<B>, DecodeError> {
    let more = take_fields(input, "reply", 3)?;
    let reply = Reply {
        id: take_uint(input, "reply.id")?,
        data_len: take_uint(input, "reply.data_len")?,
        body: B::decode(input)?,
    };
    skip(input, "reply", more)?;
    Ok(reply)
}

fn check_shares(shares: impl Iterator<Item = u32>, data_len: usize) -> Result<(), DecodeError> {
    let sum: u64 = shares.map(u64::from).sum();
    if sum == data_len as u64 {
        return Ok(());
    }
    Err(DecodeError::Value {
        what: "data frame",
        found: format!("{data_len} bytes long"),
        expected: "as long as its batch's shares add up to",
    })
}
