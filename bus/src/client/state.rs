//! What a client's handles and tasks share.
//!
//! Keeps: where the connection is, the credit that is left, what is unanswered, what waits to leave.
//! Order: a stage that the caller has to hear of lasts until it was told; what is sent before that finds it down.
//! Crash: a lost connection forgets all that was unanswered.
//! Knows no sockets and no bodies.

use std::cell::RefCell;

use bytes::Bytes;
use sconce_schemas::wire::envelope::{close_requests, put_request};
use sconce_schemas::wire::{Body, Refusal, Welcome};
use sconce_tracing::{OperationId, Point, Span, SpanKind, Step, Trace};
use slab::Slab;

use super::SendError;
use crate::batch::{HEADER_ROOM, Outbox};
use crate::bell::Bell;
use crate::credit::{Credit, charge};
use crate::link::{Frames, LinkReceiver, LostReason};

/// Where a connection is.
pub(super) enum Stage {
    /// The driver tries to reach the server.
    Dialing,
    /// The server welcomed us; the receiver has not told its caller yet.
    Greeted(Welcome, LinkReceiver),
    /// Requests flow.
    Up,
    /// Lost; the receiver has not told its caller yet.
    Lost(LostReason),
    /// The server will not have us; the receiver has not told its caller yet.
    Refused(Refusal),
    /// No further try is made.
    Over,
}

/// What the sender, the receiver and the driver share.
pub(super) struct Shared {
    /// Rung for the driver: something is queued, or the stage changed.
    pub(super) driver: Bell,
    /// Rung for the receiver: the stage changed.
    pub(super) receiver: Bell,
    state: RefCell<State>,
}

struct State {
    stage: Stage,
    credit: Credit,
    message_bytes_max: u64,
    outstanding: Slab<Outstanding>,
    /// Requests sent since the start; makes each wire id another.
    sequence: u64,
    outbox: Outbox<()>,
    /// The newest mark that was taken in.
    mark: u64,
    /// Messages that came in; the driver's keep-alive looks whether it moves.
    arrivals: u64,
    /// A send found no credit since the last `Room`.
    short: bool,
    /// Credit came back since: the receiver has to tell.
    room: bool,
}

struct Outstanding {
    wire_id: u64,
    id: u64,
    operation: u64,
    charge: u64,
    /// Ends with the answer, or with the connection.
    span: Span,
}

/// What a request was sent with, for its reply.
pub(super) struct Answered {
    pub(super) id: u64,
    pub(super) operation: u64,
    pub(super) span: Span,
}

/// Bits of a wire id that are the slot; the rest make a late reply to an earlier request of the slot recognizable.
const SLOT_BITS: u32 = 17;
const _: () = assert!(sconce_schemas::wire::envelope::OUTSTANDING_MAX < 1 << SLOT_BITS);

impl Shared {
    pub(super) fn new() -> Self {
        let state = State {
            stage: Stage::Dialing,
            credit: Credit::default(),
            message_bytes_max: 0,
            outstanding: Slab::new(),
            sequence: 0,
            outbox: Outbox::default(),
            mark: 0,
            arrivals: 0,
            short: false,
            room: false,
        };
        Self {
            driver: Bell::default(),
            receiver: Bell::default(),
            state: RefCell::new(state),
        }
    }

    pub(super) fn is_up(&self) -> bool {
        matches!(self.state.borrow().stage, Stage::Up)
    }

    pub(super) fn outstanding(&self) -> usize {
        self.state.borrow().outstanding.len()
    }

    pub(super) fn arrivals(&self) -> u64 {
        self.state.borrow().arrivals
    }

    pub(super) fn mark(&self) -> u64 {
        self.state.borrow().mark
    }

    pub(super) fn send<Q: Body>(
        &self,
        id: u64,
        trace: Trace,
        body: &Q,
        data: Bytes,
        reply_bytes: u32,
    ) -> Result<(), SendError> {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        if !matches!(state.stage, Stage::Up) {
            return Err(SendError::Down(data));
        }
        let slot = state.outstanding.vacant_key();
        let wire_id = state.sequence << SLOT_BITS | slot as u64;
        let mut entry = state.outbox.scratch();
        let data_len = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let span = Span::below(trace, SpanKind::Client, body.name());
        let trace = span.trace_or(trace);
        put_request(&mut entry, wire_id, data_len, reply_bytes, trace, body);
        let charge = charge(entry.len(), data.len(), reply_bytes);
        let message = (entry.len() + data.len() + HEADER_ROOM) as u64;
        let too_large = if message > state.message_bytes_max || u64::from(data_len) != data.len() as u64 {
            Some((message, state.message_bytes_max))
        } else if charge > state.credit.total() {
            Some((charge, state.credit.total()))
        } else {
            None
        };
        if let Some((bytes, limit)) = too_large {
            span.discard();
            state.outbox.put_back(entry);
            return Err(SendError::TooLarge { data, bytes, limit });
        }
        if !state.credit.take(charge, state.outstanding.len()) {
            state.short = true;
            span.discard();
            state.outbox.put_back(entry);
            return Err(SendError::NoCredit(data));
        }
        state.sequence += 1;
        state.outstanding.insert(Outstanding {
            wire_id,
            id,
            operation: trace.operation,
            charge,
            span,
        });
        Point::BusRequestOut.record(|| Step {
            operation: OperationId(trace.operation),
            length: data.len() as u64,
            ..Step::default()
        });
        state.outbox.push(entry, data, state.message_bytes_max);
        self.driver.ring();
        Ok(())
    }

    /// The next message that the driver sends.
    pub(super) fn next_message(&self) -> Option<Frames> {
        let mut state = self.state.borrow_mut();
        let mark = state.mark;
        state
            .outbox
            .pop(|header, (), count| close_requests(header, mark, count, &[]))
    }

    /// A message came in; its mark, where it carries one.
    pub(super) fn arrived(&self, mark: Option<u64>) {
        let mut state = self.state.borrow_mut();
        state.arrivals += 1;
        if let Some(mark) = mark {
            state.mark = mark;
        }
    }

    /// A reply came: what its request was sent with, unless there is none (the in-process network's duplicate).
    pub(super) fn answered(&self, wire_id: u64) -> Option<Answered> {
        let mut state = self.state.borrow_mut();
        let slot = usize::try_from(wire_id & ((1 << SLOT_BITS) - 1)).ok()?;
        state.outstanding.get(slot).filter(|o| o.wire_id == wire_id)?;
        let outstanding = state.outstanding.try_remove(slot)?;
        state.credit.give_back(outstanding.charge);
        state.room |= std::mem::take(&mut state.short);
        Some(Answered {
            id: outstanding.id,
            operation: outstanding.operation,
            span: outstanding.span,
        })
    }

    /// Whether to tell that there is credit again.
    pub(super) fn take_room(&self) -> bool {
        std::mem::take(&mut self.state.borrow_mut().room)
    }

    /// The driver greeted the server, or was refused.
    pub(super) fn enter(&self, stage: Stage) {
        self.state.borrow_mut().stage = stage;
        self.receiver.ring();
    }

    /// The connection is lost: forgets all that was on it.
    pub(super) fn lose(&self, reason: LostReason) {
        let mut state = self.state.borrow_mut();
        state.stage = match state.stage {
            // Nobody was told that it was up.
            Stage::Greeted(..) => Stage::Dialing,
            Stage::Up => Stage::Lost(reason),
            _ => return,
        };
        for (_, lost) in &mut state.outstanding {
            lost.span.fail("the connection was lost");
        }
        state.outstanding.clear();
        state.outbox.clear();
        state.short = false;
        state.room = false;
        self.driver.ring();
        self.receiver.ring();
    }

    /// For the receiver: leaves a stage that its caller has to be told of.
    pub(super) fn tell(&self) -> Option<Stage> {
        let mut state = self.state.borrow_mut();
        let next = match state.stage {
            Stage::Greeted(..) => Stage::Up,
            Stage::Lost(_) => Stage::Dialing,
            Stage::Refused(_) => Stage::Over,
            Stage::Dialing | Stage::Up | Stage::Over => return None,
        };
        let told = std::mem::replace(&mut state.stage, next);
        if let Stage::Greeted(welcome, _) = &told {
            state.credit = Credit::new(welcome.credit_bytes);
            state.message_bytes_max = welcome.message_bytes_max;
            state.mark = 0;
        }
        self.driver.ring();
        Some(told)
    }

    /// Whether the driver may dial.
    pub(super) fn is_dialing(&self) -> bool {
        matches!(self.state.borrow().stage, Stage::Dialing)
    }

    /// Whether the driver's connection is still the one in use.
    pub(super) fn is_connected(&self) -> bool {
        matches!(self.state.borrow().stage, Stage::Up | Stage::Greeted(..))
    }
}
