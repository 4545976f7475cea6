//! The volume: one event in, effects out.
//!
//! Keeps: the head (log, map, SCO table), sessions, and the operations that wait for something.
//! Order: an event is applied whole; upkeep follows every event; acknowledgements leave in log order.
//! Crash: see [`crate::Recovery`].
//! Knows no sockets, no clock, no tasks.

use std::collections::{BTreeMap, HashMap, VecDeque};

use sconce_schemas::ids::Location;
use sconce_schemas::manifest::{Manifest, TreeRoot};
use sconce_schemas::records::{DtlMode, EpochStart, Origin};
use sconce_schemas::wire::volume::VolumeReply;
use sconce_schemas::{
    BatchSeq, ByteLen, CheckpointId, Epoch, LineageIndex, ManifestSeq, ScoId, ScoSize, SessionId, SnapshotId,
    VolumeId, VolumeSize,
};

use crate::change::Change;
use crate::changes::Foreign;
use crate::checkpoint::{CheckpointPolicy, Checkpoints};
use crate::event::{Effect, Event, FetchId, SessionSlot, Ticket};
use crate::flatten::Flatten;
use crate::frontier::Frontier;
use crate::history::History;
use crate::locals::Locals;
use crate::log::Log;
use crate::moments::Moments;
use crate::operations::Parked;
use crate::reap::Reap;
use crate::renewal::Renewal;
use crate::scos::ScoState;
use crate::scrub::{Scrub, ScrubPolicy};
use crate::sessions::Sessions;
use crate::snapshots::Snapshots;
use crate::sweep::{Sweep, SweepPolicy};
use crate::tree::{Missing, StoredUpTo, Tree};
use crate::twin::Twin;

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
    /// What the volume begins as where there is no manifest, if it is a clone.
    pub origin: Option<CloneOf>,
    /// Memory that resident map nodes may take. Changes wait where they take twice as much and a checkpoint is under
    /// way, which lets them go.
    pub map_memory: ByteLen,
    /// When checkpoints are due.
    pub checkpoint: CheckpointPolicy,
    /// When scrubbing is worth it.
    pub scrub: ScrubPolicy,
    /// When what was left behind is looked for.
    pub sweep: SweepPolicy,
    /// What a twin is waited for.
    pub dtl: DtlMode,
    /// Bytes that a twin may be behind what is acknowledged in asynchronous mode.
    pub dtl_behind: ByteLen,
}

/// A snapshot of another volume, that a clone begins as.
#[derive(Debug, Clone)]
pub struct CloneOf {
    /// A manifest of that volume that has the snapshot.
    pub manifest: Box<Manifest>,
    /// The snapshot.
    pub snapshot: SnapshotId,
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
    /// The epochs of the volumes in `lineage` before this one.
    pub(crate) ancestor_epochs: Vec<Vec<EpochStart>>,
    /// What the volume began as: for whoever has only the back end.
    pub(crate) origin: Option<Origin>,
    pub(crate) map: Tree<Location>,
    pub(crate) scos: Tree<ScoState>,
    pub(crate) log: Log,
    pub(crate) locals: Locals,
    pub(crate) frontier: Frontier,
    pub(crate) twin: Twin,
    pub(crate) sessions: Sessions,
    pub(crate) checkpoints: Checkpoints,
    pub(crate) now_us: u64,
    /// The SCO at the log's head and how many of its slots the map refers to.
    pub(crate) head: (ScoId, u16),
    /// Scratch space of discards.
    pub(crate) dropped: Vec<Location>,
    /// Clusters that died (or came to life) in SCOs whose state is not resident, by SCO.
    pub(crate) unburied: BTreeMap<ScoId, i32>,
    /// Nodes that operations wait for.
    pub(crate) waiting: HashMap<Missing, Vec<Parked>>,
    /// Some of `unburied` may be counted now, or its nodes are to be asked for.
    pub(crate) bury_again: bool,
    /// SCO-table nodes that are to be loaded.
    pub(crate) wanted: Vec<Missing>,
    /// Recovery makes it: entries of the log are done again.
    pub(crate) replays: bool,
    /// Changes that wait for room, in the order in which they came.
    pub(crate) held: VecDeque<Change>,
    /// Changes that did a piece of their work, and whether a turn was asked for.
    pub(crate) turns: VecDeque<Change>,
    pub(crate) turn_asked: bool,
    pub(crate) fetches: HashMap<FetchId, (Change, Location)>,
    pub(crate) next_fetch: u64,
    pub(crate) snapshots: Snapshots,
    pub(crate) history: History,
    pub(crate) moments: Moments,
    pub(crate) foreign: Foreign,
    /// The way to independence, if the volume is on it.
    pub(crate) flatten: Option<Flatten>,
    /// A stored manifest says that the volume, a clone, is independent.
    pub(crate) independent: bool,
    pub(crate) renewal: Renewal,
    /// The removed snapshot that is being reaped.
    pub(crate) reap: Option<Reap>,
    pub(crate) scrub: Scrub,
    pub(crate) sweep: Sweep,
    pub(crate) map_memory: u64,
    /// No sweep before this moment.
    sweep_from_us: u64,
    sweep_snapshots_from_us: u64,
    /// A node of a map was loaded since the last sweep of the snapshots' maps.
    pub(crate) map_loaded: bool,
    pub(crate) halted: Option<String>,
    /// An invariant that was found broken where nothing could be answered: the event ends with a halt.
    pub(crate) broken: Option<String>,
}

/// How much more than `map_memory` map nodes may take that are not stored yet: while one checkpoint is stored, the changes
/// for the next go on.
const MAP_MEMORY_FACTOR: u64 = 2;

/// Beside the map, nodes of the SCO table take at most this part of its memory, and the last one, whatever it takes.
const SCOS_MEMORY_PART: u64 = 4;

/// After a sweep that found too little to evict, this much time passes before the next: so long at least stays what an
/// operation has loaded, which may need several nodes at the same time.
const SWEEP_PAUSE_US: u64 = 500_000;

/// The maps of all snapshots together may have this part of `map_memory` in addition.
const SNAPSHOTS_SHARE: u64 = 4;

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
    /// Whether the newest manifest lacks anything; ticks are needed then.
    pub dirty: bool,
    /// Whether something is to be counted or scrubbed, which can wait for another owner: ticks are needed too.
    pub wants_ticks: bool,
    /// Operations that wait for room, in the write buffer or in memory for the map.
    pub held: usize,
}

impl Volume {
    /// A volume as its newest manifest has it, before replay.
    pub(crate) fn restore(config: &VolumeConfig, manifest: Option<&Manifest>) -> Self {
        let covered_sco = manifest.map_or(ScoId::NONE, |m| m.covered_sco);
        let covered = manifest.map_or(BatchSeq::NONE, |m| m.covered);
        let next = covered_sco.next();
        let history = manifest.map_or_else(History::default, |m| History::restore(&m.history));
        let mut snapshots = manifest.map_or_else(Snapshots::default, Snapshots::restore);
        snapshots.hold_after = history.holds_after();
        let stamp_us = manifest.map_or(0, |m| m.history.upto_us);
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
            ancestor_epochs: manifest.map_or_else(Vec::new, |m| m.ancestor_epochs.clone()),
            origin: manifest.and_then(|m| m.origin),
            map: manifest.map_or_else(Tree::default, |m| Tree::stored(m.map, m.allocated_clusters)),
            scos: manifest.map_or_else(Tree::default, |m| Tree::stored(m.scos, m.scos_count)),
            log: Log::new(
                config.id,
                config.epoch,
                config.sco_size,
                next,
                covered.next(),
                stamp_us,
            ),
            locals: Locals::recovered(next),
            frontier: Frontier::recovered(covered, covered),
            twin: Twin::new(config.dtl, config.dtl_behind),
            sessions: manifest.map_or_else(Sessions::default, |m| Sessions::restore(&m.sessions)),
            checkpoints: Checkpoints::new(config.checkpoint, manifest),
            now_us: 0,
            head: (ScoId::NONE, 0),
            dropped: Vec::new(),
            unburied: BTreeMap::new(),
            waiting: HashMap::new(),
            bury_again: false,
            wanted: Vec::new(),
            replays: false,
            held: VecDeque::new(),
            turns: VecDeque::new(),
            turn_asked: false,
            fetches: HashMap::new(),
            next_fetch: 0,
            snapshots,
            history,
            moments: Moments::default(),
            foreign: Foreign::default(),
            flatten: manifest.and_then(|m| m.flatten).map(Flatten::restore),
            independent: manifest.is_some_and(|m| m.independent),
            renewal: Renewal::restore(manifest),
            reap: None,
            scrub: Scrub::restore(config.scrub, manifest.map_or(&[], |m| &m.condemned)),
            sweep: Sweep::new(config.sweep),
            map_memory: config.map_memory.0,
            sweep_from_us: 0,
            sweep_snapshots_from_us: 0,
            map_loaded: false,
            halted: None,
            broken: None,
        }
    }

    /// Makes an empty volume what a snapshot of another volume is. `None`: that manifest has no such snapshot.
    pub(crate) fn begin_as(&mut self, origin: &CloneOf) -> Option<()> {
        let CloneOf { manifest, snapshot } = origin;
        let found = manifest
            .snapshots
            .iter()
            .find(|state| state.label.id == *snapshot && state.removed.is_none() && !state.hidden)?;
        self.size = found.size;
        // Its nodes are the other volume's.
        let root = TreeRoot {
            floor: CheckpointId::NONE,
            ..found.map
        };
        self.map = Tree::stored(root, found.allocated_clusters);
        self.lineage = manifest.lineage.iter().copied().chain([self.id]).collect();
        self.ancestor_epochs.clone_from(&manifest.ancestor_epochs);
        self.ancestor_epochs.push(manifest.epochs.clone());
        self.origin = Some(Origin {
            volume: manifest.volume,
            snapshot: *snapshot,
        });
        Some(())
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
            Event::Ask { ticket, ask, now_us } => {
                self.now_us = self.now_us.max(now_us);
                self.ask(ticket, ask, effects);
                Ok(())
            }
            Event::Moment { ticket, ask, now_us } => {
                self.now_us = self.now_us.max(now_us);
                self.ask_moment(ticket, &ask, effects);
                Ok(())
            }
            Event::LogRead { sco, epoch, result } => {
                self.log_read(sco, epoch, result, effects);
                Ok(())
            }
            Event::Copied { result } => {
                self.copied(result);
                Ok(())
            }
            Event::Listed { result } => {
                self.listed(result);
                Ok(())
            }
            Event::Deleted { done } => {
                self.deleted(done, effects);
                Ok(())
            }
            Event::HoldOver { snapshot } => {
                self.frontier.let_go(snapshot);
                Ok(())
            }
            Event::TlogRead { object, result } => {
                self.tlog_read(object, result, effects);
                Ok(())
            }
            Event::BundleWritten { above, to } => {
                self.bundle_written(above, to, effects);
                Ok(())
            }
            Event::ScoDeleted { object, done } => {
                self.sco_deleted(object, done);
                Ok(())
            }
            Event::SnapshotIo {
                ticket,
                snapshot,
                request,
            } => {
                self.snapshot_io(ticket, snapshot, &request, effects);
                Ok(())
            }
            Event::ComparedIo {
                ticket,
                compared,
                request,
            } => {
                self.compared_io(ticket, compared, &request, effects);
                Ok(())
            }
            Event::ClientGone { session } => {
                self.sessions.client_gone(session);
                self.drop_changes_of(session, effects);
                Ok(())
            }
            Event::SessionFenced { session } => {
                self.drop_changes_of(session, effects);
                Ok(())
            }
            Event::OthersFenced { session } => {
                self.drop_changes_where(|of| of != session && of != SessionSlot::NONE, effects);
                Ok(())
            }
            Event::SessionClosed { session } => {
                self.sessions.close(session);
                self.drop_changes_of(session, effects);
                Ok(())
            }
            Event::BatchEnd { now_us } => {
                self.set_clock(now_us);
                self.end_batch(effects);
                self.keep_within_memory(effects);
                Ok(())
            }
            Event::ScoOpened { sco } => self.opened(sco, effects),
            Event::TwinMode { mode } => {
                self.twin_mode(mode, effects);
                Ok(())
            }
            Event::TwinAttached => {
                self.twin_attached(effects);
                Ok(())
            }
            Event::TwinCopied { sco } => {
                self.twin_copied(sco);
                Ok(())
            }
            Event::TwinHeld { upto } => self.twin_held(upto),
            Event::TwinSynced { upto } => {
                self.twin_synced(upto);
                Ok(())
            }
            Event::TwinInSync => {
                self.twin_in_sync();
                Ok(())
            }
            Event::TwinLost => {
                self.twin_lost(effects);
                Ok(())
            }
            Event::TwinDegraded => {
                self.twin_degraded();
                Ok(())
            }
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
            Event::Turn => {
                self.turn(effects);
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
            Event::BackEndsFull { full } => {
                self.back_ends_full(full);
                Ok(())
            }
            Event::Renamed { path } => {
                self.path = path;
                self.checkpoints.manifest_due = true;
                Ok(())
            }
            Event::Tick { now_us, pressed } => {
                self.set_clock(now_us);
                self.bury_again = true;
                self.history_tick();
                self.checkpoint_if_due(pressed, effects);
                self.withdraw_abandoned(effects);
                self.go_on_reaping();
                self.flatten_tick(pressed);
                self.renewal_tick(pressed);
                self.sweep_tick(pressed);
                self.scrub_tick(pressed, effects);
                Ok(())
            }
        };
        if applied.is_ok() {
            self.upkeep(effects);
        }
        if let Some(reason) = applied.err().or(self.broken.take()) {
            self.halt(reason, effects);
        }
    }

    /// After every event: changes that have room now, turns, counts that are not made yet, manifests and checkpoints that are
    /// due, and acknowledgements, which leave in log order.
    fn upkeep(&mut self, effects: &mut Vec<Effect>) {
        self.resume_held(effects);
        self.end_moments(effects);
        let wants_turn = self.wants_to_reap()
            || self.scrub.wants_turn()
            || self.moments.wants_turn()
            || self.wants_to_flatten()
            || self.wants_to_renew()
            || self.sweep.wants_turn();
        if (!self.turns.is_empty() || wants_turn) && !std::mem::replace(&mut self.turn_asked, true) {
            effects.push(Effect::Turn);
        }
        for missing in std::mem::take(&mut self.wanted) {
            self.wait(missing, None, effects);
        }
        self.bury_unburied(effects);
        self.manifest_if_ready(effects);
        self.checkpoint_if_due(false, effects);
        self.twin_upkeep(effects);
        let twin = &self.twin;
        self.frontier.upkeep(twin, effects, |ticket, effects| {
            if ticket == Ticket::NOBODY {
                return;
            }
            effects.push(Effect::Reply {
                ticket,
                reply: VolumeReply::Done,
            });
        });
        self.twin_sync(effects);
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
        if let Some(header) = self.log.open_header().filter(|_| self.twin.listens()) {
            effects.push(Effect::TwinOpen { header });
        }
        Ok(())
    }

    fn sco_synced(&mut self, sco: ScoId, effects: &mut Vec<Effect>) {
        if let Some(local) = self.locals.synced(sco) {
            let (epoch, tlog_len, length) = (local.epoch, local.tlog_len, local.length);
            let upload = Effect::Upload {
                sco,
                epoch,
                tlog_len,
                length,
            };
            self.upload_with_twin(sco, upload, effects);
        }
    }

    /// Sends the batch off, if anything is in it.
    pub(crate) fn end_batch(&mut self, effects: &mut Vec<Effect>) {
        let twin = self.twin.listens();
        if let Some(ended) = self.log.end_batch(self.now_us, twin, effects) {
            if let Err(reason) = self.frontier.append(ended.seq) {
                self.broken.get_or_insert(reason);
            }
            if twin {
                self.twin.told(&ended);
            }
            self.checkpoints.changed(u64::from(ended.entries), self.now_us);
        }
    }

    /// Closes the open SCO, if anything is in it.
    pub(crate) fn close_sco(&mut self, effects: &mut Vec<Effect>) {
        self.end_batch(effects);
        if let Some(closed) = self.log.close_sco(effects) {
            self.locals.closed(closed.id, closed.tlog_len, closed.length);
            self.twin.closed(closed.id, self.frontier.appended());
            self.enter_sco(closed.id, closed.slots);
        }
    }

    fn keep_within_memory(&mut self, effects: &mut Vec<Effect>) {
        self.sweep_snapshots();
        if self.scos.resident_bytes() > self.map_memory / SCOS_MEMORY_PART {
            // The leaf of the SCO that is entered next has to be there.
            let entered_next = self.log.open_sco().unwrap_or(self.log.next_sco()).prev();
            let stored = self.stored_up_to();
            self.scos
                .evict_before(entered_next.0, self.map_memory / SCOS_MEMORY_PART / 2, stored);
        }
        if self.let_go_of_nodes() > self.map_memory {
            // What is left has to be stored before it can go.
            self.checkpoint_if_due(true, effects);
        }
    }

    /// Lets go of map nodes beyond the budget, unless it just tried; gives what is resident then.
    pub(crate) fn let_go_of_nodes(&mut self) -> u64 {
        let resident = self.map.resident_bytes();
        if resident <= self.map_memory || self.now_us < self.sweep_from_us {
            return resident;
        }
        let stored = self.stored_up_to();
        let left = self.map.evict(self.map_memory, stored);
        if left > self.map_memory {
            self.sweep_from_us = self.now_us + SWEEP_PAUSE_US;
        }
        left
    }

    /// The same for what reads of snapshots, walks and scrubs loaded into the maps of snapshots. What is in use at a time
    /// may be a node of each, so each sweep has its pause, and is made only once more was loaded: whoever waited for that has
    /// used the others again.
    fn sweep_snapshots(&mut self) {
        if !self.map_loaded || self.now_us < self.sweep_snapshots_from_us {
            return;
        }
        self.map_loaded = false;
        self.sweep_snapshots_from_us = self.now_us + SWEEP_PAUSE_US;
        let stored = self.stored_up_to();
        self.snapshots.evict(self.map_memory / SNAPSHOTS_SHARE, stored);
    }

    /// Whether changes have to wait until a checkpoint is stored, because the map has grown beyond its memory and cannot let
    /// go of what it has; begins the checkpoint if none is under way. Without that a slow back end and random writes would
    /// fill the memory with nodes long before they fill the write buffer.
    pub(crate) fn map_is_full(&mut self, effects: &mut Vec<Effect>) -> bool {
        let most = self.map_memory.saturating_mul(MAP_MEMORY_FACTOR);
        if self.map.resident_bytes() <= most {
            return false;
        }
        if !self.checkpoints.is_running() {
            if self.let_go_of_nodes() <= most {
                return false;
            }
            // Also what is not in a batch yet is to be stored. If there is nothing, waiting would be in vain.
            self.end_batch(effects);
            self.checkpoint_if_due(true, effects);
        }
        self.checkpoints.is_running()
    }

    /// The map can let go of what a checkpoint stored.
    pub(crate) fn checkpoint_is_over(&mut self, effects: &mut Vec<Effect>) {
        self.sweep_from_us = 0;
        self.keep_within_memory(effects);
    }

    /// What time it is, before what is taken in next: a batch that is full while it is taken in carries it.
    pub fn set_now(&mut self, now_us: u64) {
        self.set_clock(now_us);
    }

    /// A wall clock may be set back; what was noted by it moves along, or nothing would be due until it is where it was.
    fn set_clock(&mut self, now_us: u64) {
        if now_us < self.now_us {
            self.checkpoints.clock_set_back(now_us);
            self.sweep.clock_set_back(now_us);
            self.sweep_from_us = 0;
            self.sweep_snapshots_from_us = 0;
        }
        self.now_us = now_us;
    }

    /// Which nodes can be read back.
    pub(crate) fn stored_up_to(&self) -> StoredUpTo {
        StoredUpTo {
            lineage: self.own_lineage(),
            epoch: self.epoch,
            next: self.checkpoints.next_id,
        }
    }

    /// The last batch that has anything of what was applied so far.
    pub(crate) fn last_seq(&self) -> BatchSeq {
        if self.log.is_batch_empty() {
            self.frontier.appended()
        } else {
            self.log.next_seq()
        }
    }

    /// A connection opens a client's session: its slot; the same id gives the same slot. Taken back by
    /// [`Event::ClientGone`] or [`Event::SessionClosed`], one for each call. `None`: as many sessions are open as a volume
    /// can have.
    pub fn open_session(&mut self, id: SessionId) -> Option<SessionSlot> {
        self.sessions.open(id)
    }

    /// A connection that has the session open has opened it again: that call of [`Volume::open_session`] is taken back, and nothing else.
    pub fn opened_again(&mut self, session: SessionSlot) {
        self.sessions.client_gone(session);
    }

    /// A SCO of this volume whose file recovery did not need: kept as a cache if it is of the log: below its
    /// end, and of the epoch that wrote that SCO. `false`: it is none of ours, the file may be recycled.
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
            map_memory: ByteLen(self.map.resident_bytes() + self.snapshots.resident_bytes()),
            dirty: self.checkpoints.dirty(self.last_seq()),
            wants_ticks: self.has_to_reap()
                || self.scrub.has_work()
                || self.history_has_work()
                || self.has_to_flatten()
                || self.has_to_renew()
                || self.has_to_sweep()
                || self.snapshots.first_proposed().is_some(),
            held: self.held.len(),
        }
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
        let epochs = match self.ancestor_epochs.get(usize::from(location.lineage().0)) {
            Some(ancestor) => ancestor,
            None => &self.epochs,
        };
        epoch_at(epochs, location.sco()).unwrap_or(Epoch::NONE)
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
