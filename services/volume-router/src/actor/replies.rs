//! Requests that wait for their answer, of all volumes of a shard.
//!
//! Keeps: the duty to answer each, and what is needed to word the answer.
//! Order: none; a ticket is answered once.
//! Crash: nothing; clients send again.
//! Knows no volumes but by id.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use bytes::Bytes;
use sconce_bus::Reply;
use sconce_schemas::VolumeId;
use sconce_schemas::wire::Refusal;
use sconce_schemas::wire::volume::{IoCode, VolumeReply};
use sconce_tracing::metrics::Operations;
use sconce_tracing::{Action, OperationId, Point, Status, Step};
use sconce_volume::Ticket;
use slab::Slab;

/// A request that waits.
pub(crate) struct Waiting {
    /// The duty to answer it.
    pub(crate) reply: Reply<VolumeReply>,
    /// Its volume.
    pub(crate) volume: VolumeId,
    /// Its operation, for traces.
    pub(crate) operation: OperationId,
    /// What it does; `None` for a control request.
    pub(crate) code: Option<IoCode>,
    /// Where, for messages.
    pub(crate) offset: u64,
    /// Data that came with it and that it expects back.
    pub(crate) bytes: u64,
    /// When it came.
    pub(crate) since: Instant,
}

/// What a shard counts, for metrics. Its thread counts, any reads.
#[derive(Debug, Default)]
pub(crate) struct ShardCounts {
    /// How operations went; control requests are not among them.
    pub(crate) operations: Operations,
    under_way: AtomicU64,
}

impl ShardCounts {
    /// Requests that wait.
    pub(crate) fn under_way(&self) -> u64 {
        self.under_way.load(Ordering::Relaxed)
    }
}

impl Waiting {
    /// For traces.
    fn step(&self, status: Status) -> Step {
        Step {
            operation: self.operation,
            action: self.code.map_or(Action::Control, Action::from),
            volume: self.volume,
            address: self.offset,
            length: self.bytes,
            status,
        }
    }
}

fn status(reply: &VolumeReply) -> Status {
    match reply {
        VolumeReply::Refused(refusal) => refusal.into(),
        _ => Status::Ok,
    }
}

/// The requests that wait on one shard, within limits.
pub(crate) struct Replies {
    requests_max: usize,
    bytes_max: u64,
    counts: Arc<ShardCounts>,
    waiting: RefCell<Table>,
}

#[derive(Default)]
struct Table {
    /// With each request the number of its place's use: a ticket is never mistaken for a later one's.
    places: Slab<(u32, Waiting)>,
    uses: u32,
    bytes: u64,
}

impl Replies {
    pub(crate) fn new(requests_max: usize, bytes_max: u64, counts: Arc<ShardCounts>) -> Self {
        Self {
            requests_max,
            bytes_max,
            counts,
            waiting: RefCell::default(),
        }
    }

    /// Takes a request in; gives it back where the limits are reached.
    pub(crate) fn put(&self, waiting: Waiting) -> Result<Ticket, Box<Waiting>> {
        let mut table = self.waiting.borrow_mut();
        if table.places.len() >= self.requests_max || table.bytes + waiting.bytes > self.bytes_max {
            return Err(Box::new(waiting));
        }
        table.bytes += waiting.bytes;
        table.uses = table.uses.wrapping_add(1);
        let uses = table.uses;
        let place = table.places.insert((uses, waiting));
        self.tell(&table);
        Ok(Ticket(u64::from(uses) << 32 | place as u64))
    }

    /// Takes a request out, to answer it; `None` where it was answered.
    pub(crate) fn take(&self, ticket: Ticket) -> Option<Waiting> {
        let mut table = self.waiting.borrow_mut();
        let (place, uses) = split(ticket);
        if table.places.get(place)?.0 != uses {
            return None;
        }
        let (_, waiting) = table.places.remove(place);
        table.bytes -= waiting.bytes;
        self.tell(&table);
        Some(waiting)
    }

    fn tell(&self, table: &Table) {
        let under_way = table.places.len() as u64;
        self.counts.under_way.store(under_way, Ordering::Relaxed);
    }

    /// An operation has ended, or was refused before it was taken in.
    pub(crate) fn ended(&self, code: IoCode, since: Instant, bytes: u64, status: Status) {
        self.counts
            .operations
            .ended(code.into(), since.elapsed(), bytes, status);
    }

    /// What is asked by a request that waits: its code and its offset.
    pub(crate) fn asked(&self, ticket: Ticket) -> Option<(Option<IoCode>, u64)> {
        let table = self.waiting.borrow();
        let (place, uses) = split(ticket);
        let (_, waiting) = table.places.get(place).filter(|(at, _)| *at == uses)?;
        Some((waiting.code, waiting.offset))
    }

    /// What is traced of a request that waits.
    pub(crate) fn step(&self, ticket: Ticket) -> Step {
        let table = self.waiting.borrow();
        let (place, uses) = split(ticket);
        let waiting = table.places.get(place).filter(|(at, _)| *at == uses);
        waiting.map_or_else(Step::default, |(_, waiting)| waiting.step(Status::Ok))
    }

    /// Answers a request.
    pub(crate) fn answer(&self, ticket: Ticket, reply: VolumeReply, data: Bytes) {
        if let Some(waiting) = self.take(ticket) {
            let status = status(&reply);
            Point::VolumeAck.record(|| waiting.step(status));
            if let Some(code) = waiting.code {
                self.ended(code, waiting.since, waiting.bytes, status);
            }
            waiting.reply.send(reply, data);
        }
    }

    /// Refuses a request.
    pub(crate) fn refuse(&self, ticket: Ticket, refusal: Refusal) {
        self.answer(ticket, VolumeReply::Refused(refusal), Bytes::new());
    }

    /// Answers every request of a volume that is served no more.
    pub(crate) fn refuse_all(&self, volume: VolumeId, refusal: &Refusal) {
        let tickets: Vec<Ticket> = {
            let table = self.waiting.borrow();
            let of_volume = table
                .places
                .iter()
                .filter(|(_, (_, waiting))| waiting.volume == volume);
            of_volume
                .map(|(place, (uses, _))| Ticket(u64::from(*uses) << 32 | place as u64))
                .collect()
        };
        for ticket in tickets {
            self.refuse(ticket, refusal.clone());
        }
    }

    /// Most requests that wait, and most bytes.
    pub(crate) const fn limits(&self) -> (usize, u64) {
        (self.requests_max, self.bytes_max)
    }

    /// Requests that wait, and their bytes.
    pub(crate) fn gauge(&self) -> (usize, u64) {
        let table = self.waiting.borrow();
        (table.places.len(), table.bytes)
    }
}

/// Takes the two halves apart that `put` joined.
const fn split(ticket: Ticket) -> (usize, u32) {
    ((ticket.0 & 0xffff_ffff) as usize, (ticket.0 >> 32) as u32)
}
