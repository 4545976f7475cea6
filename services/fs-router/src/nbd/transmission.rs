//! The transmission phase of a connection: requests in, replies out, on one thread and in one task.
//!
//! Keeps: the client's requests that are under way, and their bytes.
//! Order: requests go to the router in the order in which they came; replies leave in the order in which their
//! operations end.
//! Crash: a client that is gone leaves operations behind, which are abandoned; one that breaks the protocol is gone. At a
//! hand-over no more requests are taken; when those that were are answered, the connection is left to the next process.
//! Knows no owner and no other client. What a client can make this process hold is bounded here, and together with
//! all others by its share of the process's [`Budget`].

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use sconce_runtime::Stop;
use sconce_schemas::wire::volume::IoFlags;
use sconce_tracing::telemetry::Recorded;
use sconce_tracing::{Action, OperationId, Point, Span, Status, Step};
use slab::Slab;
use tokio::io::{AsyncReadExt as _, AsyncWrite as _};

use super::budget::{Budget, Share};
use super::contexts::{ContextKind, Selected};
use super::handover::{Left, Record};
use super::inbox::{Inbox, Taken, weight};
use super::outbox::{Outbox, SLICES};
use super::protocol::Violation;
use super::protocol::request::{Agreed, Command, Request};
use super::replies::{self, Part, Pending};
use super::statuses::Statuses;
use super::stream::Stream;
use crate::routing::{Completion, FrontEnd, Operation, Outcome, SessionHandle, Token};

/// Requests of a connection that are under way at most.
const REQUESTS_MAX: usize = 1024;
/// With more replies than this not written, no more requests are taken: the client does not read.
const UNWRITTEN_MAX: usize = 8 << 20;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Ended {
    /// The client said goodbye, and has all its answers.
    #[error("the client disconnected")]
    Disconnected,
    /// The client closed the connection without a word.
    #[error("the client closed the connection")]
    Closed,
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Broken(#[from] io::Error),
    /// The client does not keep to the protocol.
    #[error("the client broke the protocol: {0}")]
    Protocol(#[from] Violation),
}

/// How a connection comes to an end that nothing has broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Closing {
    /// The client disconnects, or the service stops.
    ForGood,
    /// The next process goes on with it.
    Over,
}

/// A connection that has an export.
pub(super) struct Connection {
    pub(super) stream: Stream,
    pub(super) agreed: Agreed,
    pub(super) front_end: FrontEnd,
    pub(super) session: SessionHandle,
    pub(super) contexts: Vec<Selected>,
    /// What the client sent already.
    pub(super) unread: BytesMut,
    /// What it was to be sent first.
    pub(super) unsent: Vec<u8>,
}

pub(super) struct Transmission {
    stream: Stream,
    agreed: Agreed,
    front_end: FrontEnd,
    session: SessionHandle,
    contexts: Vec<Selected>,
    /// Questions of block status that not all contexts have answered.
    statuses: Statuses,
    inbox: Inbox,
    outbox: Outbox,
    pending: Slab<Pending>,
    /// What is held for requests, from their header until their reply has left.
    share: Share,
    /// Of it: answers that wait to leave.
    leaving: u64,
    /// Operations that found no room at the router, or came behind one; each with its context, if it is for one.
    stalled: VecDeque<(Token, Option<usize>, Operation)>,
    /// Operations under way that are recorded in spans, by token.
    recorded: Recorded<u64>,
    /// No more requests are taken.
    closing: Option<Closing>,
    /// When something was last read from the client: of many requests that came together, that of each.
    read_at: Instant,
    /// Reused.
    completions: Vec<Completion>,
}

impl Transmission {
    pub(super) fn new(connection: Connection, budget: &Budget) -> Self {
        Self {
            stream: connection.stream,
            agreed: connection.agreed,
            front_end: connection.front_end,
            session: connection.session,
            contexts: connection.contexts,
            statuses: Statuses::default(),
            inbox: Inbox::new(connection.unread),
            outbox: Outbox::with(connection.unsent),
            pending: Slab::new(),
            share: budget.share(),
            leaving: 0,
            stalled: VecDeque::new(),
            recorded: Recorded::default(),
            closing: None,
            read_at: Instant::now(),
            completions: Vec::new(),
        }
    }

    /// Serves the client until it goes, or until the stop and all that it had asked for is answered. Gives what is left
    /// to the next process.
    ///
    /// # Errors
    /// Nothing is left: why the connection ended.
    pub(super) async fn run(mut self, stop: &Stop) -> Result<Left<Stream>, Ended> {
        let mut stopping = pin!(stop.requested());
        let ended = poll_fn(|cx| {
            if self.closing.is_none() && stopping.as_mut().poll(cx).is_ready() {
                self.closing = Some(match stop.hands_over() {
                    true => Closing::Over,
                    false => Closing::ForGood,
                });
            }
            self.poll(cx)
        });
        ended.await?;
        // In the middle of a request that is thrown away the connection ends as it does at a stop.
        let unread = self.inbox.into_rest().ok_or(Ended::Disconnected)?;
        Ok(Left {
            record: Record::new(&self.agreed, &self.session, &self.contexts),
            stream: self.stream,
            unsent: self.outbox.into_unwritten(),
            unread,
        })
    }

    /// Ready when the connection is to be handed over, or has ended.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Ended>> {
        loop {
            let mut progress = self.take_requests(cx)?;
            progress |= self.take_completions(cx);
            progress |= self.write(cx)?;
            match self.closing.filter(|_| self.pending.is_empty()) {
                Some(Closing::Over) => return Poll::Ready(Ok(())),
                Some(Closing::ForGood) if self.outbox.is_empty() => {
                    return Poll::Ready(Err(Ended::Disconnected));
                }
                _ => {}
            }
            if !progress {
                return Poll::Pending;
            }
        }
    }

    /// Reads and takes requests until nothing more is there or nothing more may be; then all that were taken leave
    /// together.
    fn take_requests(&mut self, cx: &mut Context<'_>) -> Result<bool, Ended> {
        let mut submitted = self.resubmit();
        while self.may_take() {
            let share = &mut self.share;
            match self.inbox.take(|bytes| share.take(bytes, cx))? {
                Taken::Request(request, data) => {
                    self.begin(&request, data);
                    submitted = true;
                }
                Taken::NoRoom => break,
                Taken::More => match self.read(cx)? {
                    Poll::Ready(()) => {}
                    Poll::Pending => break,
                },
            }
        }
        if submitted {
            self.front_end.router().send();
        }
        Ok(submitted)
    }

    fn may_take(&self) -> bool {
        self.closing.is_none()
            && self.stalled.is_empty()
            && self.pending.len() < REQUESTS_MAX
            && self.outbox.len() < UNWRITTEN_MAX
    }

    fn read(&mut self, cx: &mut Context<'_>) -> Result<Poll<()>, Ended> {
        let mut target = self.inbox.target();
        let reading = pin!(self.stream.read_buf(&mut target));
        match reading.poll(cx) {
            Poll::Ready(Ok(0)) => Err(Ended::Closed),
            Poll::Ready(Ok(_)) => {
                self.read_at = Instant::now();
                Ok(Poll::Ready(()))
            }
            Poll::Ready(Err(error)) => Err(error.into()),
            Poll::Pending => Ok(Poll::Pending),
        }
    }

    fn begin(&mut self, request: &Request, data: Bytes) {
        let (cookie, structured) = (request.cookie, self.agreed.structured);
        let command = match request.judge(&self.agreed) {
            Ok(Command::Disconnect) => {
                self.closing = Some(Closing::ForGood);
                self.share.give(weight(request));
                return;
            }
            Ok(command) => command,
            Err(wrong) => {
                self.share.give(weight(request));
                return replies::put_error(&mut self.outbox, structured, cookie, wrong.code, wrong.why);
            }
        };
        if matches!(command, Command::BlockStatus { .. }) {
            return self.begin_status(command, request);
        }
        let asked = operation(command, request, data);
        self.stall(command, request, None, None, asked);
        self.resubmit();
    }

    /// Puts an operation behind those that wait for the router.
    fn stall(
        &mut self,
        command: Command,
        request: &Request,
        part: Option<Part>,
        context: Option<usize>,
        asked: Operation,
    ) {
        let id = self.front_end.operation_id();
        Point::NbdEntry.record(|| self.step(id, command, request.offset, request.length));
        let token = Token(self.pending.insert(Pending {
            id,
            cookie: request.cookie,
            command,
            offset: request.offset,
            length: request.length,
            since: self.read_at,
            part,
        }) as u64);
        let mut span = Span::sampled(span_name(command), id);
        if span.is_recorded() {
            span.text("sconce.volume", self.session.volume());
            span.number("sconce.address", request.offset);
            span.number("sconce.length", u64::from(request.length));
            self.recorded.put(token.0, span);
        }
        self.stalled.push_back((token, context, asked.with_id(id)));
    }

    fn step(&self, operation: OperationId, command: Command, address: u64, length: u32) -> Step {
        Step {
            operation,
            action: action(command),
            volume: self.session.volume(),
            address,
            length: u64::from(length),
            status: Status::Ok,
        }
    }

    /// Asks each context that was selected.
    fn begin_status(&mut self, command: Command, request: &Request) {
        let question = self.statuses.begin(request.cookie, self.contexts.len());
        for at in 0..self.contexts.len() {
            let (id, asked) = match &self.contexts[at] {
                Selected {
                    id,
                    kind: ContextKind::Allocation,
                } => (*id, operation(command, request, Bytes::new())),
                Selected { id, .. } => (*id, Operation::changes(request.offset, u64::from(request.length))),
            };
            let part = Part {
                question,
                context: id,
            };
            self.stall(command, request, Some(part), Some(at), asked);
        }
        self.resubmit();
    }

    /// Gives the router what waits for it, as far as it has room; whether it took anything.
    fn resubmit(&mut self) -> bool {
        let mut taken = false;
        while let Some((token, context, operation)) = self.stalled.pop_front() {
            let session = match context.map(|at| &self.contexts[at].kind) {
                Some(ContextKind::Changes(session)) => session,
                _ => &self.session,
            };
            if let Err(back) = self.front_end.submit(session, token, operation) {
                self.stalled.push_front((token, context, back));
                break;
            }
            taken = true;
        }
        taken
    }

    fn take_completions(&mut self, cx: &mut Context<'_>) -> bool {
        let mut completions = std::mem::take(&mut self.completions);
        let ready = self.front_end.poll(cx, &mut completions).is_ready();
        let now = (!completions.is_empty()).then(Instant::now);
        for Completion { token, outcome } in completions.drain(..) {
            let key = usize::try_from(token.0).unwrap_or(usize::MAX);
            if let Some(request) = self.pending.try_remove(key) {
                if let Some(mut span) = self.recorded.take(&token.0)
                    && let Outcome::Refused(refusal) = &outcome
                {
                    span.fail(refusal);
                }
                Point::NbdExit.record(|| Step {
                    status: outcome.status(),
                    ..self.step(request.id, request.command, request.offset, request.length)
                });
                if let Some(now) = now {
                    let counts = &self.front_end.router().counts().nbd;
                    let took = now.saturating_duration_since(request.since);
                    let (action, length) = (action(request.command), u64::from(request.length));
                    counts.ended(action, took, length, outcome.status());
                }
                self.leaving += carried(&request);
                if let Some(part) = request.part {
                    let states = replies::states(request.command, request.length, outcome);
                    let Part { question, context } = part;
                    self.statuses
                        .answered(&mut self.outbox, question, context, states);
                    continue;
                }
                replies::put(&mut self.outbox, self.agreed.structured, request, outcome);
            }
        }
        self.completions = completions;
        self.give_what_left();
        ready
    }

    fn write(&mut self, cx: &mut Context<'_>) -> Result<bool, Ended> {
        let mut progress = false;
        while !self.outbox.is_empty() {
            match self.write_some(cx) {
                Poll::Ready(Ok(0)) => return Err(Ended::Closed),
                Poll::Ready(Ok(written)) => self.outbox.advance(written),
                Poll::Ready(Err(error)) => return Err(error.into()),
                Poll::Pending => break,
            }
            progress = true;
        }
        self.give_what_left();
        Ok(progress)
    }

    /// Gives back what is held for answers that have left, or that have no data.
    fn give_what_left(&mut self) {
        let unwritten = self.outbox.len() as u64;
        if self.leaving > unwritten {
            self.share.give(self.leaving - unwritten);
            self.leaving = unwritten;
        }
    }

    fn write_some(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut slices = [IoSlice::new(&[]); SLICES];
        let count = self.outbox.slices(&mut slices);
        let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, &slices[..count]))?;
        Poll::Ready(Ok(written))
    }
}

fn carried(request: &Pending) -> u64 {
    match request.command {
        Command::Read { .. } | Command::Write { .. } => u64::from(request.length),
        _ => 0,
    }
}

/// For traces.
const fn span_name(command: Command) -> &'static str {
    match command {
        Command::Read { .. } => "nbd.read",
        Command::Write { .. } => "nbd.write",
        Command::Trim { .. } => "nbd.trim",
        Command::WriteZeroes { .. } => "nbd.write_zeroes",
        Command::BlockStatus { .. } => "nbd.block_status",
        Command::Flush | Command::Disconnect => "nbd.flush",
    }
}

/// For traces.
fn action(command: Command) -> Action {
    match command {
        Command::Read { .. } => Action::Read,
        Command::Write { .. } => Action::Write,
        Command::Trim { .. } => Action::Discard,
        Command::WriteZeroes { .. } => Action::WriteZeroes,
        Command::BlockStatus { .. } => Action::Extents,
        Command::Flush | Command::Disconnect => Action::Flush,
    }
}

fn operation(command: Command, request: &Request, data: Bytes) -> Operation {
    let (offset, length) = (request.offset, u64::from(request.length));
    let flag = |set, flag| if set { flag } else { 0 };
    match command {
        Command::Read { .. } => Operation::read(offset, length),
        Command::Write { fua } => Operation::write(offset, data, flag(fua, IoFlags::FUA)),
        Command::Trim { fua } => Operation::discard(offset, length, flag(fua, IoFlags::FUA)),
        Command::WriteZeroes { fua, no_hole } => {
            let flags = flag(fua, IoFlags::FUA) | flag(no_hole, IoFlags::NO_HOLE);
            Operation::write_zeroes(offset, length, flags)
        }
        Command::BlockStatus { .. } => Operation::extents(offset, length),
        Command::Flush | Command::Disconnect => Operation::flush(),
    }
}
