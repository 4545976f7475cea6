//! The routing core as a state machine: what to send where, what to hold, what to send again.
//!
//! Keeps: each operation until it has ended, the session of each volume, the owner that each session is open at.
//! Order: an operation ends exactly once; nothing is sent to an owner that refused until that owner has opened the
//! volume again; a changing operation keeps its number for all its sends.
//! Crash: what was not acknowledged may have happened or not; nothing else is lost with this process.
//! Knows no sockets, no clock, no tasks.

mod access;
mod answers;
mod fetches;
mod operations;
mod owners;
mod sending;
mod sessions;
mod storage;
mod types;
mod view;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use sconce_runtime::Chance;
use sconce_schemas::VolumeId;
use sconce_tracing::{OperationId, OperationIds};
use slab::Slab;

use access::Me;
use fetches::{Fetch, FetchKey, WriterState};
use operations::{Part, PartKey, Running};
use owners::Link;
use sessions::Session;
use storage::Storage;

pub use types::{
    Clusters, Effect, Event, FrontEndKey, Limits, LinkKey, Lookup, Micros, OwnerKey, Patience, Routed, Sent,
    SessionKey, StorageKey, Token, Wire, Writer,
};
pub use view::View;

/// The routing core of one IO thread.
pub struct Core {
    limits: Limits,
    chance: Chance,
    me: Option<Me>,
    sessions: Slab<Session>,
    by_volume: HashMap<VolumeId, SessionKey>,
    links: Slab<Link>,
    by_endpoint: HashMap<String, OwnerKey>,
    running: Slab<Running>,
    parts: Slab<Part>,
    fetches: Slab<Fetch>,
    writers: HashMap<VolumeId, WriterState>,
    storage: Storage,
    timers: BinaryHeap<Reverse<(Micros, Timer)>>,
    /// Sessions that may have nothing left to do.
    unused: Vec<SessionKey>,
    /// Counts sends, so that no two sends share an id.
    sends: u64,
    operation_ids: OperationIds,
}

/// What a timer is for. A timer whose owner's `wake_at` says otherwise by then is stale and does nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Session(SessionKey),
    Link(OwnerKey),
    Part(PartKey),
    Fetch(FetchKey),
    Storage,
}

impl Core {
    /// A core without sessions.
    #[must_use]
    pub fn new(limits: Limits, mut chance: Chance) -> Self {
        let operation_ids = OperationIds::starting_at(chance.u64());
        Self {
            limits,
            chance,
            me: None,
            sessions: Slab::new(),
            by_volume: HashMap::new(),
            links: Slab::new(),
            by_endpoint: HashMap::new(),
            running: Slab::new(),
            parts: Slab::new(),
            fetches: Slab::new(),
            writers: HashMap::new(),
            storage: Storage::default(),
            timers: BinaryHeap::new(),
            unused: Vec::new(),
            sends: 0,
            operation_ids,
        }
    }

    /// Takes in what happened. Call [`Core::drain_sends`] after one or several events.
    pub fn apply(&mut self, now: Micros, event: Event, effects: &mut Vec<Effect>) {
        match event {
            Event::OwnerReplied {
                link,
                id,
                reply,
                data,
            } => self.owner_replied(now, link, id, reply, data, effects),
            Event::StorageReplied {
                link,
                id,
                reply,
                data,
            } => self.storage_replied(now, link, id, reply, data, effects),
            Event::Room(LinkKey::Owner(link)) => self.owner_has_room(link),
            Event::Room(LinkKey::Storage(link)) => self.storage_has_room(link),
            Event::Up(LinkKey::Owner(link)) => self.owner_up(link),
            Event::Up(LinkKey::Storage(link)) => self.storage_up(link),
            Event::Down(LinkKey::Owner(link)) => self.owner_down(now, link),
            Event::Down(LinkKey::Storage(link)) => self.storage_down(link, effects),
            Event::Refused {
                link: LinkKey::Owner(link),
                refusal,
            } => self.owner_refused(now, link, &refusal, effects),
            Event::Refused {
                link: LinkKey::Storage(link),
                ..
            } => self.storage_refused(now, link, effects),
            Event::Routed { session, routed } => self.routed(now, session, routed, effects),
            Event::WriterFound { volume, writer } => self.writer_found(now, volume, writer, effects),
            Event::StorageFound { endpoints } => self.storage_found(now, endpoints, effects),
            Event::LookedUp { id, clusters, found } => self.looked_up(id, &clusters, &found, effects),
            Event::Announced { incarnation } => self.announced(incarnation),
            Event::Tick => self.tick(now, effects),
        }
        self.end_unused(now);
    }

    /// When [`Event::Tick`] is due, if nothing else happens before.
    #[must_use]
    pub fn next_wake(&self) -> Option<Micros> {
        self.timers.peek().map(|Reverse((at, _))| *at)
    }

    /// Operations that have not ended.
    #[must_use]
    pub fn held_requests(&self) -> usize {
        self.running.len()
    }

    fn tick(&mut self, now: Micros, effects: &mut Vec<Effect>) {
        while let Some(Reverse((at, timer))) = self.timers.peek().copied()
            && at <= now
        {
            self.timers.pop();
            match timer {
                Timer::Session(key) => self.wake_session(at, key, effects),
                Timer::Link(key) => self.wake_link(at, key, effects),
                Timer::Part(key) => self.wake_part(at, key, effects),
                Timer::Fetch(key) => self.wake_fetch(at, key, effects),
                Timer::Storage => self.wake_storage(at, effects),
            }
        }
    }

    /// Sets a timer after a wait that doubles with each of `attempts`, drawn from its upper half, so that what
    /// failed together does not come back together. Gives when it is due, for the owner's `wake_at`.
    fn set_backoff(&mut self, now: Micros, attempts: u32, timer: Timer) -> Micros {
        let whole = self
            .limits
            .backoff_first_us
            .saturating_mul(1 << attempts.min(20))
            .min(self.limits.backoff_max_us);
        let at = now + whole / 2 + self.chance.below(whole / 2 + 1);
        self.set_timer(at, timer);
        at
    }

    fn set_timer(&mut self, at: Micros, timer: Timer) {
        self.timers.push(Reverse((at, timer)));
    }

    /// An id for the next send of the entry `key` of a slab: the key, and a count that no other send shares.
    fn next_id(&mut self, kind: IdKind, key: usize) -> u64 {
        self.sends = (self.sends + 1) & ((1 << SENDS_BITS) - 1);
        (self.sends << (KEY_BITS + 2)) | ((key as u64) << 2) | kind as u64
    }

    /// An id for one operation, for traces.
    pub fn operation_id(&mut self) -> OperationId {
        self.operation_ids.give()
    }
}

/// What the key in an id is the key of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum IdKind {
    Part = 0,
    Open = 1,
    Close = 2,
    Fetch = 3,
}

const KEY_BITS: u32 = 22;
/// The key of nothing.
const KEY_MAX: usize = (1 << KEY_BITS) - 1;
const SENDS_BITS: u32 = 40;
const _: () = assert!(KEY_BITS + SENDS_BITS + 2 == 64);

/// The kind and the key of an id.
fn split_id(id: u64) -> (IdKind, usize) {
    let kind = match id & 3 {
        0 => IdKind::Part,
        1 => IdKind::Open,
        2 => IdKind::Close,
        _ => IdKind::Fetch,
    };
    (
        kind,
        usize::try_from((id >> 2) & ((1 << KEY_BITS) - 1)).unwrap_or(usize::MAX),
    )
}
