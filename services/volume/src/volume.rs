//! The volume: one event in, effects out.
//!
//! Keeps: the head (log, map, SCO table), sessions, and the operations that wait for something.
//! Order: an event is applied whole; upkeep follows every event; acknowledgements leave in log order.
//! Crash: see [`crate::Recovery`].
//! Knows no sockets, no clock, no tasks.

use std::collections::{BTreeMap, HashMap, VecDeque};

use bytes::Bytes;
use sconce_schemas::checkpoint::{NodeRecord, TreeKind};
use sconce_schemas::ids::Location;
use sconce_schemas::manifest::Manifest;
use sconce_schemas::records::EpochStart;
use sconce_schemas::wire::volume::{IoCode, IoRequest, VolumeReply};
use sconce_schemas::wire::{Refusal, RefusalCode};
use sconce_schemas::{
    BatchSeq, ByteLen, ClusterAddress, Epoch, LineageIndex, ManifestSeq, ScoId, ScoSize, SessionId, VolumeId,
    VolumeSize,
};

use crate::change::{Blocked, Change, check_range};
use crate::checkpoint::{CheckpointPolicy, Checkpoints};
use crate::event::{Effect, Event, FetchId, SessionSlot, Ticket};
use crate::frontier::Frontier;
use crate::locals::Locals;
use crate::log::Log;
use crate::read::Query;
use crate::scos::ScoState;
use crate::sessions::{Seen, Sessions};
use crate::tree::{Missing, Tree};

/// What a host tells a volume about itself.
#[derive(Debug, Clone)]
pub struct VolumeConfig {
    /// The volume.
    pub id: VolumeId,
    /// The new ownership.
    pub epoch: Epoch,
    /// Its path, for messages and manifests.
    pub path: String,
    /// Its storage pool.
    pub pool: String,
    /// Clusters of a SCO.
    pub sco_size: ScoSize,
    /// Its size where no manifest says another.
    pub initial_size: VolumeSize,
    /// The ownerships before this one that wrote SCOs, as the registry's record says.
    pub epochs: Vec<EpochStart>,
    /// Memory that resident map nodes may take.
    pub map_memory: ByteLen,
    /// When checkpoints are due.
    pub checkpoint: CheckpointPolicy,
}

/// A volume at its owner.
#[derive(Debug)]
pub struct Volume {
    pub(crate) id: VolumeId,
    pub(crate) epoch: Epoch,
    pub(crate) path: String,
    pub(crate) pool: String,
    pub(crate) size: VolumeSize,
    pub(crate) sco_size: ScoSize,
    pub(crate) read_only: bool,
    pub(crate) lineage: Vec<VolumeId>,
    pub(crate) epochs: Vec<EpochStart>,
    pub(crate) map: Tree<Location>,
    pub(crate) scos: Tree<ScoState>,
    pub(crate) log: Log,
    pub(crate) locals: Locals,
    pub(crate) frontier: Frontier,
    pub(crate) sessions: Sessions,
    pub(crate) checkpoints: Checkpoints,
    pub(crate) now_us: u64,
    /// The SCO at the log's head and how many of its slots the map refers to.
    pub(crate) head: (ScoId, u16),
    /// Scratch space of discards.
    pub(crate) dropped: Vec<Location>,
    /// Clusters that died in SCOs whose state is not resident, by SCO.
    unburied: BTreeMap<ScoId, u16>,
    /// Nodes that operations wait for.
    waiting: HashMap<Missing, Vec<Parked>>,
    /// SCO-table nodes that are to be loaded, for `unburied`.
    wanted: Vec<Missing>,
    /// Changes that wait for room, in the order in which they came.
    held: VecDeque<Change>,
    fetches: HashMap<FetchId, (Change, Location)>,
    next_fetch: u64,
    map_memory: u64,
    sweep_in: u32,
    halted: Option<String>,
}

/// An operation that waits for a map node.
#[derive(Debug)]
enum Parked {
    Change(Change),
    Read(Query),
    Extents(Query),
}

/// After a sweep that found too little to evict, this many batches pass before the next.
const SWEEP_BACKOFF: u32 = 16;

/// What a volume knows of itself, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    /// Its size.
    pub size: VolumeSize,
    /// Clusters that are mapped, in bytes.
    pub allocated: ByteLen,
    /// Bytes of closed SCOs that are not on the back ends yet.
    pub unstored: ByteLen,
    /// Memory that resident map nodes take.
    pub map_memory: ByteLen,
    /// Whether the newest manifest lacks anything: ticks are needed.
    pub dirty: bool,
    /// Operations that wait for room in the write buffer.
    pub held: usize,
}

impl Volume {
    /// A volume as its newest manifest has it, before replay.
    pub(crate) fn restore(config: &VolumeConfig, manifest: Option<&Manifest>) -> Self {
        let covered_sco = manifest.map_or(ScoId::NONE, |m| m.covered_sco);
        let covered = manifest.map_or(BatchSeq::NONE, |m| m.covered);
        let next = covered_sco.next();
        Self {
            id: config.id,
            epoch: config.epoch,
            path: config.path.clone(),
            pool: config.pool.clone(),
            size: manifest.map_or(config.initial_size, |m| m.size),
            sco_size: config.sco_size,
            read_only: manifest.is_some_and(|m| m.read_only),
            lineage: manifest.map_or_else(|| vec![config.id], |m| m.lineage.clone()),
            epochs: config.epochs.clone(),
            map: manifest.map_or_else(Tree::default, |m| Tree::stored(m.map, m.allocated_clusters)),
            scos: manifest.map_or_else(Tree::default, |m| Tree::stored(m.scos, 0)),
            log: Log::new(config.id, config.epoch, config.sco_size, next, covered.next()),
            locals: Locals::recovered(next),
            frontier: Frontier::recovered(covered, covered),
            sessions: manifest.map_or_else(Sessions::default, |m| Sessions::restore(&m.sessions)),
            checkpoints: Checkpoints::new(config.checkpoint, manifest),
            now_us: 0,
            head: (ScoId::NONE, 0),
            dropped: Vec::new(),
            unburied: BTreeMap::new(),
            waiting: HashMap::new(),
            wanted: Vec::new(),
            held: VecDeque::new(),
            fetches: HashMap::new(),
            next_fetch: 0,
            map_memory: config.map_memory.0,
            sweep_in: 0,
            halted: None,
        }
    }

    /// Applies one event and says, as data, what must happen.
    pub fn apply(&mut self, event: Event, effects: &mut Vec<Effect>) {
        if self.halted.is_some() {
            self.refuse_halted(event, effects);
            return;
        }
        let applied = match event {
            Event::Io {
                ticket,
                session,
                request,
                data,
            } => {
                self.io(ticket, session, &request, data, effects);
                Ok(())
            }
            Event::BatchEnd { now_us } => {
                self.now_us = self.now_us.max(now_us);
                self.end_batch(effects);
                self.keep_within_memory(effects);
                Ok(())
            }
            Event::ScoOpened { sco } => self.opened(sco, effects),
            Event::AppendHeld { upto } => self.frontier.held(upto),
            Event::Synced { upto } => self.frontier.synced(upto),
            Event::ScoSynced { sco } => {
                self.sco_synced(sco, effects);
                Ok(())
            }
            Event::DeviceFailed { error } => Err(format!("the write buffer failed: {error}")),
            Event::Fetched { fetch, result } => {
                self.cluster_fetched(fetch, result, effects);
                Ok(())
            }
            Event::NodeLoaded {
                place,
                reference,
                result,
            } => {
                self.node_loaded(&Missing { place, reference }, result, effects);
                Ok(())
            }
            Event::ScoStored { sco } => {
                self.locals.stored(sco);
                Ok(())
            }
            Event::CheckpointStored { roots } => {
                self.checkpoint_stored(roots);
                Ok(())
            }
            Event::ManifestStored { seq } => {
                self.manifest_stored(seq, effects);
                Ok(())
            }
            Event::Evicted { sco } => match self.locals.evicted(sco) {
                true => Ok(()),
                false => Err(format!(
                    "invariant 3: SCO {sco} was taken away before it was stored and covered"
                )),
            },
            Event::Sync { ticket } => {
                self.sync(ticket, effects);
                Ok(())
            }
            Event::Renamed { path } => {
                self.path = path;
                self.checkpoints.manifest_due = true;
                Ok(())
            }
            Event::Tick { now_us, pressed } => {
                self.now_us = self.now_us.max(now_us);
                self.checkpoint_if_due(pressed, effects);
                Ok(())
            }
        };
        match applied {
            Ok(()) => self.upkeep(effects),
            Err(reason) => self.halt(reason, effects),
        }
    }

    /// After every event: nodes that are wanted, manifests and checkpoints that are due, and acknowledgements, which
    /// leave in log order.
    fn upkeep(&mut self, effects: &mut Vec<Effect>) {
        for missing in std::mem::take(&mut self.wanted) {
            self.wait(missing, None, effects);
        }
        self.manifest_if_ready(effects);
        self.checkpoint_if_due(false, effects);
        self.frontier.upkeep(effects, |ticket, effects| {
            effects.push(Effect::Reply {
                ticket,
                reply: VolumeReply::Done,
            });
        });
    }

    fn io(
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
                        offset: request.offset,
                        end,
                    };
                    let reads = request.code == IoCode::Read;
                    self.run(
                        if reads {
                            Parked::Read(query)
                        } else {
                            Parked::Extents(query)
                        },
                        effects,
                    );
                }
                Err(refusal) => self.refuse(ticket, refusal, effects),
            },
            _ => self.change(ticket, session, request, data, effects),
        }
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
                Ok(change) => self.run(Parked::Change(change), effects),
                Err(refusal) => {
                    self.sessions.refused(session, request.number);
                    self.refuse(ticket, refusal, effects);
                }
            },
            // A resend of what is in the log: once that is held, so is this.
            Seen::Applied => {
                let fua = request.flags.has(sconce_schemas::wire::volume::IoFlags::FUA);
                self.frontier.acknowledge(self.last_seq(), ticket, fua);
            }
            Seen::Pending => {
                let text = format!("operation {} is under way", request.number);
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
        }
    }

    /// Gives the change back if it has to wait for room.
    fn run_change(&mut self, mut change: Change, effects: &mut Vec<Effect>) -> Option<Change> {
        match self.advance(&mut change, effects) {
            Ok(()) => {
                self.sessions.applied(change.session, change.number);
                self.frontier
                    .acknowledge(self.last_seq(), change.ticket, change.fua);
            }
            Err(Blocked::Room) => return Some(change),
            Err(Blocked::Node(missing)) => self.wait(missing, Some(Parked::Change(change)), effects),
            Err(Blocked::Fetch(location)) => self.fetch(change, location, effects),
            Err(Blocked::Refused(refusal)) => self.refuse_change(&change, refusal, effects),
        }
        None
    }

    fn fetch(&mut self, change: Change, location: Location, effects: &mut Vec<Effect>) {
        let fetch = FetchId(self.next_fetch);
        self.next_fetch += 1;
        if self.log.is_pending(location.sco(), location.slot()) {
            self.end_batch(effects);
        }
        self.fetches.insert(fetch, (change, location));
        effects.push(Effect::Fetch {
            fetch,
            from: self.extent_of(location),
        });
    }

    fn cluster_fetched(&mut self, fetch: FetchId, result: Result<Bytes, Refusal>, effects: &mut Vec<Effect>) {
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
    fn wait(&mut self, missing: Missing, parked: Option<Parked>, effects: &mut Vec<Effect>) {
        let waiting = self.waiting.entry(missing).or_insert_with(|| {
            effects.push(Effect::LoadNode {
                place: missing.place,
                reference: missing.reference,
            });
            Vec::new()
        });
        waiting.extend(parked);
    }

    fn node_loaded(
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
                }
            }
            return;
        }
        if missing.place.tree == TreeKind::Scos {
            for (sco, dead) in std::mem::take(&mut self.unburied) {
                self.bury_in(sco, dead);
            }
        }
        for parked in waiting {
            self.run(parked, effects);
        }
    }

    /// Puts a loaded node into its tree.
    pub(crate) fn adopt(&mut self, missing: &Missing, records: &[NodeRecord]) -> Result<(), Refusal> {
        let adopted = match missing.place.tree {
            TreeKind::Map => self.map.adopt(missing, records),
            TreeKind::Scos => self.scos.adopt(missing, records),
        };
        adopted.map_err(|error| {
            let (place, at) = (missing.place, missing.reference);
            Refusal::damaged(format!(
                "node {} of level {} in checkpoint {} is damaged: {error}",
                place.index, place.level, at.checkpoint
            ))
        })
    }

    fn opened(&mut self, sco: ScoId, effects: &mut Vec<Effect>) -> Result<(), String> {
        if !self.log.opened(sco) {
            return Err(format!(
                "invariant 4: SCO {sco} was opened, but SCO {} is next",
                self.log.next_sco()
            ));
        }
        self.locals.open(sco, self.epoch);
        self.head = (sco, 0);
        while let Some(change) = self.held.pop_front() {
            if let Some(change) = self.run_change(change, effects) {
                self.held.push_front(change);
                break;
            }
        }
        Ok(())
    }

    fn sco_synced(&mut self, sco: ScoId, effects: &mut Vec<Effect>) {
        if let Some(local) = self.locals.synced(sco) {
            let (epoch, tlog_len, length) = (local.epoch, local.tlog_len, local.length);
            effects.push(Effect::Upload {
                sco,
                epoch,
                tlog_len,
                length,
            });
        }
    }

    /// Sends the batch off, if anything is in it.
    pub(crate) fn end_batch(&mut self, effects: &mut Vec<Effect>) {
        if let Some((seq, entries)) = self.log.end_batch(self.now_us, effects) {
            self.frontier.append(seq);
            self.checkpoints.changed(u64::from(entries), self.now_us);
        }
    }

    /// Closes the open SCO, if anything is in it.
    pub(crate) fn close_sco(&mut self, effects: &mut Vec<Effect>) {
        self.end_batch(effects);
        if let Some(closed) = self.log.close_sco(effects) {
            self.locals.closed(closed.id, closed.tlog_len, closed.length);
            self.enter_sco(closed.id, closed.slots);
        }
    }

    /// Enters the SCO at the head, which is complete, into the SCO table. Its leaf is resident: recovery saw to it,
    /// and later leaves are new.
    pub(crate) fn enter_sco(&mut self, sco: ScoId, slots: u16) {
        let live = if self.head.0 == sco { self.head.1 } else { slots };
        self.head = (ScoId::NONE, 0);
        if let Err(missing) = self.scos.set(
            sco.0,
            Some(ScoState {
                slots,
                live,
                version: 0,
            }),
        ) {
            debug_assert!(false, "the SCO table's last leaf is not resident: {missing:?}");
        }
    }

    /// Gives a cluster its place in the map; what it had before is dead.
    pub(crate) fn place(&mut self, address: ClusterAddress, location: Location) -> Result<(), Missing> {
        let old = self.map.set(address.0, Some(location))?;
        self.head.1 += 1;
        if let Some(old) = old {
            self.bury(old);
        }
        Ok(())
    }

    /// The map no longer refers to this location.
    pub(crate) fn bury(&mut self, location: Location) {
        if !location.reads_zeros() && self.is_own(location) {
            self.bury_in(location.sco(), 1);
        }
    }

    fn bury_in(&mut self, sco: ScoId, dead: u16) {
        if sco == self.head.0 {
            self.head.1 = self.head.1.saturating_sub(dead);
            return;
        }
        match self.scos.get(sco.0) {
            Ok(Some(state)) => {
                let live = state.live.saturating_sub(dead);
                // The leaf is resident: `get` has just read it.
                let _ = self.scos.set(sco.0, Some(ScoState { live, ..state }));
            }
            Ok(None) => {}
            Err(missing) => {
                let count = self.unburied.entry(sco).or_default();
                *count = count.saturating_add(dead);
                self.wanted.push(missing);
            }
        }
    }

    /// Nodes that recovery's replay left wanted are loaded once the volume serves.
    pub(crate) fn forget_wanted(&mut self) {
        self.wanted.dedup();
    }

    fn keep_within_memory(&mut self, effects: &mut Vec<Effect>) {
        if self.map.resident_bytes() <= self.map_memory {
            return;
        }
        if self.sweep_in > 0 {
            self.sweep_in -= 1;
            return;
        }
        if self.map.evict(self.map_memory) > self.map_memory {
            // What is left has to be stored before it can go.
            self.sweep_in = SWEEP_BACKOFF;
            self.checkpoint_if_due(true, effects);
        }
    }

    /// The last batch that has anything of what was applied so far.
    fn last_seq(&self) -> BatchSeq {
        if self.log.is_batch_empty() {
            self.frontier.appended()
        } else {
            self.log.next_seq()
        }
    }

    fn refuse_change(&mut self, change: &Change, refusal: Refusal, effects: &mut Vec<Effect>) {
        self.sessions.refused(change.session, change.number);
        self.refuse(change.ticket, refusal, effects);
    }

    fn refuse(&self, ticket: Ticket, mut refusal: Refusal, effects: &mut Vec<Effect>) {
        refusal.text = format!("volume {}: {}", self.path, refusal.text);
        effects.push(Effect::Reply {
            ticket,
            reply: VolumeReply::Refused(refusal),
        });
    }

    fn halt(&mut self, reason: String, effects: &mut Vec<Effect>) {
        let waiting: Vec<Parked> = std::mem::take(&mut self.waiting)
            .into_values()
            .flatten()
            .collect();
        let mut tickets: Vec<Ticket> = self
            .frontier
            .abandon()
            .chain(self.checkpoints.abandon())
            .collect();
        tickets.extend(waiting.iter().map(|parked| match parked {
            Parked::Change(change) => change.ticket,
            Parked::Read(query) | Parked::Extents(query) => query.ticket,
        }));
        tickets.extend(std::mem::take(&mut self.held).iter().map(|change| change.ticket));
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

    fn refuse_halted(&self, event: Event, effects: &mut Vec<Effect>) {
        if let (Event::Io { ticket, .. } | Event::Sync { ticket }, Some(reason)) = (event, &self.halted) {
            self.refuse(ticket, halted(reason), effects);
        }
    }

    /// The slot of a client's session; the same id gives the same slot.
    pub fn open_session(&mut self, id: SessionId) -> SessionSlot {
        self.sessions.open(id)
    }

    /// The session is over: none of its numbers comes again.
    pub fn close_session(&mut self, slot: SessionSlot) {
        self.sessions.close(slot);
    }

    /// A SCO of this volume whose file recovery did not need: kept as a cache if the SCO table knows it in this
    /// epoch. `false`: it is none of ours, the file may be recycled.
    pub fn adopt_local(&mut self, sco: ScoId, epoch: Epoch) -> bool {
        let ours = sco < self.log.next_sco() && self.epoch_at(sco) == Some(epoch) && !self.locals.has(sco);
        if ours {
            self.locals.adopt(sco, epoch);
        }
        ours
    }

    /// Its size.
    #[must_use]
    pub const fn size(&self) -> VolumeSize {
        self.size
    }

    /// Whether it takes no writes.
    #[must_use]
    pub const fn read_only(&self) -> bool {
        self.read_only
    }

    /// What it knows of itself.
    #[must_use]
    pub fn status(&self) -> Status {
        Status {
            size: self.size,
            allocated: ByteLen(self.map.count() * sconce_schemas::CLUSTER_BYTES),
            unstored: self.locals.unstored(),
            map_memory: ByteLen(self.map.resident_bytes()),
            dirty: self.checkpoints.dirty(self.last_seq()),
            held: self.held.len(),
        }
    }

    /// Checks the counters against a scan of what is resident of the map: no SCO has fewer live slots on record than
    /// the map refers to. For tests and inspection; its cost grows with the map.
    ///
    /// # Errors
    /// What does not add up.
    pub fn check_resident(&self) -> Result<(), String> {
        let mut live: BTreeMap<ScoId, u64> = BTreeMap::new();
        let mut mapped = 0;
        let scan = self.map.visit(0..VolumeSize::MAX.clusters().0, |_, location| {
            mapped += 1;
            if !location.reads_zeros() && self.is_own(location) {
                *live.entry(location.sco()).or_default() += 1;
            }
            std::ops::ControlFlow::Continue(())
        });
        if scan.is_ok() && mapped != self.map.count() {
            return Err(format!(
                "{mapped} clusters are mapped, but {} are counted",
                self.map.count()
            ));
        }
        for (sco, found) in live.into_iter().filter(|(sco, _)| *sco != self.head.0) {
            let counted = match self.scos.get(sco.0) {
                Ok(Some(state)) => u64::from(state.live),
                Ok(None) => return Err(format!("SCO {sco} is referred to, but the SCO table lacks it")),
                Err(_) => continue,
            };
            if counted < found {
                return Err(format!(
                    "SCO {sco} has {found} live slots, but {counted} are counted"
                ));
            }
        }
        Ok(())
    }

    /// The number that the next manifest has.
    #[must_use]
    pub const fn next_manifest(&self) -> ManifestSeq {
        self.checkpoints.next_manifest
    }

    /// The volume's own index in its lineage.
    pub(crate) fn own_lineage(&self) -> LineageIndex {
        LineageIndex(u16::try_from(self.lineage.len().saturating_sub(1)).unwrap_or(u16::MAX))
    }

    pub(crate) fn is_own(&self, location: Location) -> bool {
        location.lineage() == self.own_lineage()
    }

    pub(crate) fn volume_of(&self, location: Location) -> Option<VolumeId> {
        self.lineage.get(usize::from(location.lineage().0)).copied()
    }

    /// The epoch in which a SCO of this volume was written.
    pub(crate) fn epoch_at(&self, sco: ScoId) -> Option<Epoch> {
        epoch_at(&self.epochs, sco)
    }

    pub(crate) fn epoch_of(&self, location: Location) -> Epoch {
        self.epoch_at(location.sco()).unwrap_or(Epoch::NONE)
    }
}

/// The ownership whose SCOs include `sco`: the last that began at or before it.
pub(crate) fn epoch_at(epochs: &[EpochStart], sco: ScoId) -> Option<Epoch> {
    epochs
        .iter()
        .rev()
        .find(|start| start.first_sco <= sco)
        .map(|start| start.epoch)
}

fn halted(reason: &str) -> Refusal {
    Refusal::retry(RefusalCode::Unavailable, format!("stopped: {reason}"))
}
