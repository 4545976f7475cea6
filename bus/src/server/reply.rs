//! The duty to answer a request.
//!
//! Keeps: what the request was charged and how much data its answer may have.
//! Order: each request is answered exactly once; who forgets it answers "try again".
//! Crash: nothing; a client whose connection is lost sends again.
//! Knows no request's meaning.

use std::marker::PhantomData;
use std::rc::Rc;

use bytes::Bytes;
use sconce_schemas::CLUSTER_BYTES;
use sconce_schemas::wire::envelope::{Request, put_reply};
use sconce_schemas::wire::{Body, Refusal, RefusalCode, Trace};
use sconce_tracing::{OperationId, Point, Span, SpanKind, Step};

use super::PeerId;
use super::peer::{Answer, Shared};
use crate::batch::HEADER_ROOM;
use crate::credit::charge;
use crate::limits::Limits;
use crate::refuse::Refuse;
use crate::tolerant::Tolerant;

/// Answers one request. Dropped without an answer it answers "try again" and is counted: no client waits for ever
/// because of an early return here.
#[must_use = "a request must be answered"]
pub struct Reply<R: Body + Refuse> {
    shared: Rc<Shared>,
    slot: usize,
    peer: PeerId,
    id: u64,
    operation: u64,
    /// What it belongs to where it is recorded elsewhere, and not here.
    passed_on: Option<Box<Trace>>,
    /// Ends with the answer.
    span: Span,
    charge: u64,
    reply_bytes: u32,
    answered: bool,
    body: PhantomData<fn(R)>,
}

impl<R: Body + Refuse> Reply<R> {
    pub(super) fn new<Q: Body>(
        shared: &Rc<Shared>,
        slot: usize,
        peer: PeerId,
        request: &Request<Tolerant<Q>>,
    ) -> Self {
        let mut reply = Self {
            shared: shared.clone(),
            slot,
            peer,
            id: request.id,
            operation: request.trace.operation,
            passed_on: None,
            span: Span::NONE,
            charge: charge(request.body.len, request.data_len as usize, request.reply_len),
            reply_bytes: request.reply_len,
            answered: false,
            body: PhantomData,
        };
        if let Ok(body) = &request.body.body
            && (request.trace.cause.is_some() || body.is_control())
        {
            reply.record(request.trace, body);
        }
        reply
    }

    #[cold]
    fn record<Q: Body>(&mut self, trace: Trace, body: &Q) {
        self.span = if body.is_control() {
            Span::control_below(trace, SpanKind::Server, body.name())
        } else {
            Span::below(trace, SpanKind::Server, body.name())
        };
        if self.span.is_recorded() {
            self.operation = self.span.trace_or(trace).operation;
        } else if trace.cause.is_some() {
            self.passed_on = Some(Box::new(trace));
        }
    }

    /// The operation that the request is of, for traces.
    #[must_use]
    pub fn operation(&self) -> OperationId {
        OperationId(self.operation)
    }

    /// What is done to answer the request belongs to this.
    #[must_use]
    pub fn trace(&self) -> Trace {
        let without = self.passed_on.as_deref().copied();
        self.span
            .trace_or(without.unwrap_or_else(|| Trace::from(self.operation)))
    }

    /// Whether the request is of a trace that is recorded, here or elsewhere.
    #[must_use]
    pub fn is_recorded(&self) -> bool {
        self.span.is_recorded() || self.passed_on.is_some()
    }

    /// Answers. What is sent to a client that is gone is thrown away. An answer with more data than the request took
    /// credit for (and two clusters, since reads are answered cluster-aligned) is refused in its place: a client that
    /// asks for much and announces little would have it kept here at no cost to itself.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "the answer is handed over with the duty"
    )]
    pub fn send(mut self, body: R, data: Bytes) {
        self.answer(&body, data);
    }

    fn answer(&mut self, body: &R, data: Bytes) {
        self.answered = true;
        let room = u64::from(self.reply_bytes) + DATA_SLACK;
        let room = room.min(Limits::MESSAGE_BYTES_CEILING - BODY_ROOM);
        let fits = u32::try_from(data.len())
            .ok()
            .filter(|len| u64::from(*len) <= room);
        let Some(data_len) = fits else {
            let text = format!(
                "the answer has {} bytes of data; the request announced {}, and a message takes {}",
                data.len(),
                self.reply_bytes,
                Limits::MESSAGE_BYTES_CEILING - BODY_ROOM
            );
            let refusal = R::refused(Refusal::reject(RefusalCode::Invalid, text));
            return self.put(&refusal, 0, Bytes::new());
        };
        self.put(body, data_len, data);
    }

    fn put(&mut self, body: &R, data_len: u32, data: Bytes) {
        if self.span.is_recorded()
            && let Some(refusal) = body.refusal()
        {
            self.span.fail(refusal);
        }
        Point::BusReplyOut.record(|| Step {
            operation: OperationId(self.operation),
            length: u64::from(data_len),
            ..Step::default()
        });
        let answer = Answer {
            slot: self.slot,
            peer: self.peer,
            charge: self.charge,
            data,
        };
        self.shared
            .answer(answer, |entry| put_reply(entry, self.id, data_len, body));
    }
}

/// What an answer may have beyond the data that its request announced: a read of any range is answered with the whole
/// clusters that hold it.
const DATA_SLACK: u64 = 2 * CLUSTER_BYTES;

/// Room for a reply's body beside its data in the largest message.
const BODY_ROOM: u64 = (1 << 20) + HEADER_ROOM as u64;

impl<R: Body + Refuse> Drop for Reply<R> {
    fn drop(&mut self) {
        if !self.answered {
            self.shared.dropped.set(self.shared.dropped.get() + 1);
            let refusal = Refusal::retry(
                RefusalCode::Unavailable,
                "the service dropped the request without an answer",
            );
            self.answer(&R::refused(refusal), Bytes::new());
        }
    }
}
