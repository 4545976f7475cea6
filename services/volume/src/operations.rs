//! Operations: where each one goes, and what it waits for.
//!
//! Keeps: operations that wait for a map node, for an old cluster, for room (in the open SCO, or in memory for what the map
//! becomes), or for their turn.
//! Order: changes that wait for room go on in the order in which they came; the others start again when what they wait
//! for is there, and look at everything anew.
//! Crash: a waiting operation was not acknowledged; its client sends it again.
//! Knows no data beyond passing it on.

use std::collections::VecDeque;

use bytes::Bytes;
use sconce_schemas::SnapshotId;
use sconce_schemas::checkpoint::{NodeRecord, TreeKind};
use sconce_schemas::ids::Location;
use sconce_schemas::wire::volume::{IoCode, IoFlags, IoRequest, VolumeReply};
use sconce_schemas::wire::{Refusal, RefusalCode};

use crate::change::{Blocked, Change, check_range};
use crate::changes::{Base, Compared, Comparison};
use crate::event::{Effect, Event, FetchId, SessionSlot, Ticket};
use crate::read::Query;
use crate::sessions::Seen;
use crate::snapshots::{Ask, snapshot_gone};
use crate::tree::{Missing, adopt};
use crate::volume::Volume;

/// An operation that waits for a map node.
#[derive(Debug)]
pub(crate) enum Parked {
    Change(Change),
    Read(Query),
    Extents(Query),
    Compare(Comparison),
    /// The walk over a removed snapshot.
    Reap,
    /// The scrub's search, or its look at the roots.
    Scrub,
    /// The moment that is being made.
    Moment,
    /// The walk of a flattening.
    Flatten,
    /// The walk of a renewal.
    Renewal,
    /// The sweep's judgement.
    Sweep,
}

impl Volume {
    pub(crate) fn io(
        &mut self,
        ticket: Ticket,
        session: SessionSlot,
        request: &IoRequest,
        data: Bytes,
        effects: &mut Vec<Effect>,
    ) {
        match request.code {
            IoCode::Flush => self.frontier.flush(self.last_seq(), ticket),
            IoCode::Read | IoCode::Extents => match check_range(request, self.size) {
                Ok(end) => {
                    let query = Query {
                        ticket,
                        of: None,
                        offset: request.offset,
                        end,
                    };
                    self.query(query, request.code, effects);
                }
                Err(refusal) => self.refuse(ticket, refusal, effects),
            },
            IoCode::Changes => self.compare(ticket, with_nothing(None), request, effects),
            _ => self.change(ticket, session, request, data, effects),
        }
    }

    fn query(&mut self, query: Query, code: IoCode, effects: &mut Vec<Effect>) {
        let parked = match code {
            IoCode::Read => Parked::Read(query),
            _ => Parked::Extents(query),
        };
        self.run(parked, effects);
    }

    /// An operation on a snapshot: what reads it, and a flush, which has nothing to do.
    pub(crate) fn snapshot_io(
        &mut self,
        ticket: Ticket,
        snapshot: SnapshotId,
        request: &IoRequest,
        effects: &mut Vec<Effect>,
    ) {
        let size = match self.snapshots.get(snapshot) {
            Some(found) if found.removed.is_none() => found.size,
            _ => return self.refuse(ticket, snapshot_gone(), effects),
        };
        match request.code {
            IoCode::Flush => effects.push(Effect::Reply {
                ticket,
                reply: VolumeReply::Done,
            }),
            IoCode::Read | IoCode::Extents => match check_range(request, size) {
                Ok(end) => {
                    let query = Query {
                        ticket,
                        of: Some(snapshot),
                        offset: request.offset,
                        end,
                    };
                    self.query(query, request.code, effects);
                }
                Err(refusal) => self.refuse(ticket, refusal, effects),
            },
            IoCode::Changes => self.compare(ticket, with_nothing(Some(snapshot)), request, effects),
            _ => {
                let refusal = Refusal::reject(RefusalCode::ReadOnly, "a snapshot takes no writes");
                self.refuse(ticket, refusal, effects);
            }
        }
    }

    /// A request that becomes a record in the log.
    pub(crate) fn ask(&mut self, ticket: Ticket, ask: Ask, effects: &mut Vec<Effect>) {
        self.take_change(Change::ask(ticket, ask), effects);
    }

    /// A change that no session's number says it was seen before.
    pub(crate) fn take_change(&mut self, change: Change, effects: &mut Vec<Effect>) {
        self.run(Parked::Change(change), effects);
    }

    fn change(
        &mut self,
        ticket: Ticket,
        session: SessionSlot,
        request: &IoRequest,
        data: Bytes,
        effects: &mut Vec<Effect>,
    ) {
        match self.sessions.begin(session, request.number, request.below) {
            Seen::New => match Change::new(ticket, session, request, data, self.size, self.read_only) {
                Ok(change) => self.run_new(change, effects),
                Err(refusal) => {
                    self.sessions.refused(session, request.number);
                    self.refuse(ticket, refusal, effects);
                }
            },
            // A resend of what is in the log: once that is held, so is this.
            Seen::Applied => {
                let fua = request.flags.has(IoFlags::FUA);
                self.frontier.acknowledge(self.last_seq(), ticket, fua);
            }
            Seen::Pending => {
                let text = format!("operation {} is under way", request.number);
                self.refuse(ticket, Refusal::retry(RefusalCode::Unavailable, text), effects);
            }
            Seen::Crowded => {
                let text = format!("operation {} has to wait for earlier ones", request.number);
                self.refuse(ticket, Refusal::retry(RefusalCode::Unavailable, text), effects);
            }
            Seen::TooFar => {
                let text = format!(
                    "operation {} is too far ahead of {}",
                    request.number, request.below
                );
                self.refuse(ticket, Refusal::reject(RefusalCode::Invalid, text), effects);
            }
        }
    }

    /// Drops the changes of a session that wait for something. What of one is in the log stands: it was not
    /// acknowledged, so it may be there in part.
    pub(crate) fn drop_changes_of(&mut self, session: SessionSlot, effects: &mut Vec<Effect>) {
        self.drop_changes_where(|of| of == session, effects);
    }

    /// The same, for all sessions that are like this.
    pub(crate) fn drop_changes_where(
        &mut self,
        is_over: impl Fn(SessionSlot) -> bool,
        effects: &mut Vec<Effect>,
    ) {
        let of_session = |change: &Change| is_over(change.session);
        let mut dropped: Vec<Change> = Vec::new();
        for parked in self.waiting.values_mut() {
            let theirs = |parked: &mut Parked| matches!(parked, Parked::Change(change) if of_session(change));
            dropped.extend(parked.extract_if(.., theirs).filter_map(|parked| match parked {
                Parked::Change(change) => Some(change),
                Parked::Read(_)
                | Parked::Extents(_)
                | Parked::Compare(_)
                | Parked::Reap
                | Parked::Scrub
                | Parked::Moment
                | Parked::Flatten
                | Parked::Renewal
                | Parked::Sweep => None,
            }));
        }
        let fetches = self.fetches.extract_if(|_, (change, _)| of_session(change));
        dropped.extend(fetches.map(|(_, (change, _))| change));
        let (theirs, others) = std::mem::take(&mut self.held).into_iter().partition(of_session);
        self.held = others;
        dropped.extend::<VecDeque<Change>>(theirs);
        let (theirs, others) = std::mem::take(&mut self.turns).into_iter().partition(of_session);
        self.turns = others;
        dropped.extend::<VecDeque<Change>>(theirs);
        // Tables have no order of their own, and a run has to be repeatable.
        dropped.sort_unstable_by_key(|change| (change.session, change.number));
        for change in &dropped {
            let refusal = Refusal::retry(
                RefusalCode::Unavailable,
                "its client's connection is gone, or may not write any more",
            );
            self.refuse_change(change, refusal, effects);
        }
    }

    /// Takes a change as far as it goes, if the map has room for what it becomes. One that waited for a node has room: it
    /// would lose the node again if it had to wait for anything else.
    fn run_new(&mut self, change: Change, effects: &mut Vec<Effect>) {
        if self.map_is_full(effects) {
            self.held.push_back(change);
        } else {
            self.run(Parked::Change(change), effects);
        }
    }

    /// Takes an operation as far as it goes now.
    fn run(&mut self, parked: Parked, effects: &mut Vec<Effect>) {
        match parked {
            Parked::Change(change) if !self.held.is_empty() => self.held.push_back(change),
            Parked::Change(change) => {
                if let Some(change) = self.run_change(change, effects) {
                    self.held.push_back(change);
                }
            }
            Parked::Read(query) => {
                if let Err(missing) = self.read(&query, effects) {
                    self.wait(missing, Some(Parked::Read(query)), effects);
                }
            }
            Parked::Extents(query) if self.map_of(query.of).is_none() => {
                self.refuse(query.ticket, snapshot_gone(), effects);
            }
            Parked::Extents(query) => match self.extents(&query) {
                Ok(extents) => {
                    let reply = VolumeReply::Extents(extents);
                    effects.push(Effect::Reply {
                        ticket: query.ticket,
                        reply,
                    });
                }
                Err(missing) => self.wait(missing, Some(Parked::Extents(query)), effects),
            },
            Parked::Compare(comparison) => self.run_comparison(comparison, effects),
            Parked::Reap => self.reap(effects),
            Parked::Scrub => self.scrub_turn(effects),
            Parked::Moment => self.moment_turn(effects),
            Parked::Flatten => self.flatten_resumed(),
            Parked::Renewal => self.renewal_resumed(effects),
            Parked::Sweep => self.sweep_resumed(effects),
        }
    }

    /// A read whose extents are not true any more.
    pub(crate) fn read_again(&mut self, query: Query, effects: &mut Vec<Effect>) {
        self.run(Parked::Read(query), effects);
    }

    /// Gives the change back if it has to wait for room.
    fn run_change(&mut self, mut change: Change, effects: &mut Vec<Effect>) -> Option<Change> {
        match self.advance(&mut change, effects) {
            Ok(()) => {
                self.sessions.applied(change.session, change.number);
                if change.is_proposal() {
                    self.frontier.acknowledge_proposal(change.ticket);
                } else {
                    self.frontier
                        .acknowledge(self.last_seq(), change.ticket, change.fua);
                }
            }
            Err(Blocked::Room) => return Some(change),
            Err(Blocked::Node(missing)) => self.wait(missing, Some(Parked::Change(change)), effects),
            Err(Blocked::Turn) => self.turns.push_back(change),
            Err(Blocked::Fetch(location)) => self.fetch(change, location, effects),
            Err(Blocked::Refused(refusal)) => self.refuse_change(&change, refusal, effects),
        }
        None
    }

    /// Goes on with the changes that wait for room, as far as there is any.
    pub(crate) fn resume_held(&mut self, effects: &mut Vec<Effect>) {
        while !self.held.is_empty()
            && !self.log.is_opening()
            && !self.map_is_full(effects)
            && let Some(change) = self.held.pop_front()
        {
            if let Some(change) = self.run_change(change, effects) {
                self.held.push_front(change);
                return;
            }
        }
    }

    /// A piece of the work whose turn it is.
    pub(crate) fn turn(&mut self, effects: &mut Vec<Effect>) {
        self.turn_asked = false;
        if self.wants_to_reap() {
            self.reap(effects);
        }
        if self.scrub.wants_turn() {
            self.scrub_turn(effects);
        } else if self.wants_to_flatten() {
            self.flatten_turn(effects);
        } else if self.wants_to_renew() {
            self.renewal_turn(effects);
        } else if self.sweep.wants_turn() {
            self.sweep_turn(effects);
        }
        if self.moments.wants_turn() {
            self.moment_turn(effects);
        }
        if let Some(change) = self.turns.pop_front() {
            self.run_new(change, effects);
        }
    }

    fn fetch(&mut self, change: Change, location: Location, effects: &mut Vec<Effect>) {
        let from = match self.extent_of(location) {
            Ok(from) => from,
            Err(missing) => return self.wait(missing, Some(Parked::Change(change)), effects),
        };
        let fetch = FetchId(self.next_fetch);
        self.next_fetch += 1;
        if self.log.is_pending(location.sco(), location.slot()) {
            self.end_batch(effects);
        }
        self.fetches.insert(fetch, (change, location));
        effects.push(Effect::Fetch { fetch, from });
    }

    pub(crate) fn cluster_fetched(
        &mut self,
        fetch: FetchId,
        result: Result<Bytes, Refusal>,
        effects: &mut Vec<Effect>,
    ) {
        let Some((mut change, location)) = self.fetches.remove(&fetch) else {
            return;
        };
        match result {
            Ok(cluster) if cluster.len() == sconce_schemas::CLUSTER_LEN => {
                change.fetched(location, cluster);
                self.run(Parked::Change(change), effects);
            }
            Ok(cluster) => {
                let text = format!("a cluster came back {} bytes long", cluster.len());
                self.refuse_change(&change, Refusal::retry(RefusalCode::Internal, text), effects);
            }
            Err(refusal) => self.refuse_change(&change, refusal, effects),
        }
    }

    /// Lets an operation wait for a node, which is asked for once.
    pub(crate) fn wait(&mut self, missing: Missing, parked: Option<Parked>, effects: &mut Vec<Effect>) {
        let waiting = self.waiting.entry(missing).or_insert_with(|| {
            effects.push(Effect::LoadNode {
                place: missing.place,
                reference: missing.reference,
            });
            Vec::new()
        });
        waiting.extend(parked);
    }

    pub(crate) fn node_loaded(
        &mut self,
        missing: &Missing,
        result: Result<Vec<NodeRecord>, Refusal>,
        effects: &mut Vec<Effect>,
    ) {
        let waiting = self.waiting.remove(missing).unwrap_or_default();
        if let Err(refusal) = result.and_then(|records| self.adopt(missing, &records)) {
            for parked in waiting {
                match parked {
                    Parked::Change(change) => self.refuse_change(&change, refusal.clone(), effects),
                    Parked::Read(query) | Parked::Extents(query) => {
                        self.refuse(query.ticket, refusal.clone(), effects);
                    }
                    Parked::Reap => self.reap_failed(),
                    Parked::Compare(comparison) => {
                        self.refuse(comparison.ticket, refusal.clone(), effects);
                    }
                    Parked::Scrub => self.scrub_failed(),
                    Parked::Moment => {
                        let tickets = self.moments.take_failed();
                        self.moment_failed(tickets, &refusal, effects);
                    }
                    Parked::Flatten => self.flatten_failed(&refusal),
                    Parked::Renewal => self.renewal_failed(),
                    Parked::Sweep => self.sweep_failed(),
                }
            }
            return;
        }
        self.bury_again |= missing.place.tree == TreeKind::Scos;
        for parked in waiting {
            self.run(parked, effects);
        }
    }

    /// Puts a loaded node into its tree.
    pub(crate) fn adopt(&mut self, missing: &Missing, records: &[NodeRecord]) -> Result<(), Refusal> {
        let adopted = match missing.place.tree {
            TreeKind::Map => {
                self.map_loaded = true;
                let maps = std::iter::once(&mut self.map)
                    .chain(self.snapshots.all_maps_mut())
                    .chain(std::iter::once(self.history.map_mut()))
                    .chain(self.moments.map_mut());
                let adopted = adopt(maps, missing, records);
                adopted.and_then(|()| self.foreign.adopt(missing, records))
            }
            TreeKind::Scos => adopt([&mut self.scos], missing, records),
        };
        adopted.map_err(|error| {
            let (place, at) = (missing.place, missing.reference);
            Refusal::damaged(format!(
                "node {} of level {} in checkpoint {} is damaged: {error}",
                place.index, place.level, at.checkpoint
            ))
        })
    }

    fn refuse_change(&mut self, change: &Change, refusal: Refusal, effects: &mut Vec<Effect>) {
        self.sessions.refused(change.session, change.number);
        self.refuse(change.ticket, refusal, effects);
    }

    pub(crate) fn refuse(&self, ticket: Ticket, mut refusal: Refusal, effects: &mut Vec<Effect>) {
        if ticket == Ticket::NOBODY {
            return;
        }
        refusal.text = format!("volume {}: {}", self.path, refusal.text);
        effects.push(Effect::Reply {
            ticket,
            reply: VolumeReply::Refused(refusal),
        });
    }

    pub(crate) fn halt(&mut self, reason: String, effects: &mut Vec<Effect>) {
        let waiting: Vec<Parked> = std::mem::take(&mut self.waiting)
            .into_values()
            .flatten()
            .collect();
        let mut tickets: Vec<Ticket> = self
            .frontier
            .abandon()
            .chain(self.checkpoints.abandon())
            .collect();
        tickets.extend(waiting.iter().filter_map(|parked| match parked {
            Parked::Change(change) => Some(change.ticket),
            Parked::Read(query) | Parked::Extents(query) => Some(query.ticket),
            Parked::Compare(comparison) => Some(comparison.ticket),
            Parked::Reap
            | Parked::Scrub
            | Parked::Moment
            | Parked::Flatten
            | Parked::Renewal
            | Parked::Sweep => None,
        }));
        tickets.extend(self.moments.abandon());
        tickets.extend(self.abandon_twin());
        let (held, turns) = (std::mem::take(&mut self.held), std::mem::take(&mut self.turns));
        tickets.extend(held.iter().chain(&turns).map(|change| change.ticket));
        tickets.extend(
            std::mem::take(&mut self.fetches)
                .values()
                .map(|(change, _)| change.ticket),
        );
        for ticket in tickets {
            self.refuse(ticket, halted(&reason), effects);
        }
        effects.push(Effect::Halt {
            reason: format!("volume {}: {reason}", self.path),
        });
        self.halted = Some(reason);
    }

    pub(crate) fn refuse_halted(&self, event: Event, effects: &mut Vec<Effect>) {
        if let (
            Event::Io { ticket, .. }
            | Event::Sync { ticket }
            | Event::Ask { ticket, .. }
            | Event::Moment { ticket, .. }
            | Event::SnapshotIo { ticket, .. }
            | Event::ComparedIo { ticket, .. },
            Some(reason),
        ) = (event, &self.halted)
        {
            self.refuse(ticket, halted(reason), effects);
        }
    }
}

fn with_nothing(of: Option<SnapshotId>) -> Compared {
    Compared {
        of,
        since: Base::Nothing,
    }
}

fn halted(reason: &str) -> Refusal {
    Refusal::retry(RefusalCode::Unavailable, format!("stopped: {reason}"))
}
