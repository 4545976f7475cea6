//! The engine's host: events in, effects carried out in order.
//!
//! Keeps: the engine, its files, and what is under way for it.
//! Order: effects are carried out in the order given; a batch is held before the next effect.
//! Crash: an effect that was not carried out did not happen.
//! Knows no sockets and no registry. This is the hot path: nothing here waits, boxes or spawns for an operation.

mod access;
mod history;
mod reads;
mod scrub;
mod traced;

use std::io;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use sconce_runtime::crash::{Point, hit};
use sconce_schemas::checkpoint::{NodePlace, NodeRef};
use sconce_schemas::records::{TwinHost, VolumeRecord};
use sconce_schemas::sco::ScoHeader;
use sconce_schemas::wire::volume::{IoCode, VolumeControlReply, VolumeReply};
use sconce_schemas::wire::{Refusal, RefusalCode};
use sconce_schemas::{
    BatchSeq, ByteLen, Epoch, NodeName, ScoId, ScoSize, SessionId, SnapshotId, VolumeId, VolumeSize,
};
use sconce_volume::{
    Append, Ask, Effect, Event, FlattenStatus, SessionSlot, SnapshotInfo, Status, Ticket, TwinState,
    TwinStatus, Volume,
};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::locals::Locals;
use super::messages::{Happened, Operation};
use super::pace::Pace;
use super::permits::{Pass, Permits};
use super::{Owner, Shard, VolumeHandle};
use crate::background::{ScrubJob, SweepJob, Upload};
use crate::device::{Device, FoundSco, PRESSED_FROM};
use crate::owner::{Owned, epoch_at};
use crate::port::OpenOn;
use crate::twin::{Ours, Release};
use traced::Traced;

/// The ticket of the host's own request to store everything.
const DRAIN: Ticket = Ticket(u64::MAX);

/// A volume that is served.
pub(super) struct Serving {
    volume: Volume,
    effects: Vec<Effect>,
    /// Kept for its capacity.
    spare: Vec<Effect>,
    /// Something was taken in that has not left as a batch.
    batch_open: bool,
    locals: Locals,
    pace: Pace,
    shard: Rc<Shard>,
    owner: Owner,
    me: VolumeHandle,
    path: Arc<str>,
    generation: u32,
    lineage: Arc<[VolumeId]>,
    /// The SCO that waits for a file.
    opening: Option<ScoHeader>,
    /// The write buffer failed: nothing is written any more.
    device_failed: bool,
    halted: Option<String>,
    drained: Option<oneshot::Sender<()>>,
    stopping: Stopping,
    /// What came while operations wait.
    waiting: Vec<Operation>,
    sco_size: ScoSize,
    traced: Traced,
    twin: Ours,
    permits: Permits,
}

/// How far an orderly stop or a move is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stopping {
    No,
    /// Operations wait here until the volume goes on, or are refused when it does so elsewhere.
    Holding,
    /// No operation is taken in any more; those that wait in the engine go on.
    Draining,
    /// The record is about to say that the back ends have everything: no change is acknowledged any more, so nothing
    /// that is applied from here on was promised to anybody.
    Releasing,
    /// The record is about to name another node as the owner: likewise, and operations wait.
    HandingOver,
}

impl Serving {
    /// Takes a recovered volume over with its files; those that it does not need are given back.
    pub(super) fn new(
        shard: &Rc<Shard>,
        me: VolumeHandle,
        owner: Owner,
        generation: u32,
        owned: Owned,
        found: Vec<FoundSco>,
    ) -> Self {
        let sco_size = owned.record.sco_size;
        let mut serving = Self {
            twin: Ours::new(
                shard,
                &owner,
                sco_size,
                (owned.moved_from, owned.record.twin_host.clone()),
            ),
            volume: owned.volume,
            effects: Vec::new(),
            spare: Vec::new(),
            batch_open: false,
            locals: Locals::default(),
            pace: Pace::default(),
            shard: Rc::clone(shard),
            owner,
            me,
            path: owned.subject.path,
            generation,
            lineage: owned.lineage,
            opening: None,
            device_failed: false,
            halted: None,
            drained: None,
            stopping: Stopping::No,
            waiting: Vec::new(),
            sco_size,
            traced: Traced::default(),
            permits: Permits::new(owned.record.access.clone()),
        };
        serving.adopt(found, &owned.recovered.unstored, &owned.record);
        if serving.volume.is_independent() && owned.record.origin.is_some() {
            // The ownership before this one did not come to it.
            serving.shard.node.background.independent(serving.owner.clone());
        }
        serving
    }

    fn adopt(&mut self, mut found: Vec<FoundSco>, unstored: &[ScoId], record: &VolumeRecord) {
        found.sort_unstable_by_key(|found| (found.header.id, found.header.epoch));
        for FoundSco { header, file } in found {
            let of_the_log = epoch_at(&record.epochs, header.id) == Some(header.epoch);
            if of_the_log && unstored.contains(&header.id) {
                self.locals.insert_recovered(header, file);
                self.sync_sco(header.id);
            } else if self.volume.adopt_local(header.id, header.epoch) {
                self.device()
                    .evictable(header.volume, header.id, header.epoch, &file);
                self.locals.insert(header, file, true);
            } else {
                self.device().retire(&file);
            }
        }
    }

    pub(super) fn path(&self) -> &str {
        &self.path
    }

    pub(super) fn owner(&self) -> &Owner {
        &self.owner
    }

    pub(super) fn status(&self) -> Status {
        self.volume.status()
    }

    pub(super) fn flatten_status(&self) -> Option<FlattenStatus> {
        self.volume.flatten_status()
    }

    pub(super) fn read_only(&self) -> bool {
        self.volume.read_only()
    }

    pub(super) fn snapshots(&self) -> Vec<SnapshotInfo> {
        self.volume.snapshots()
    }

    /// Volume ids of the lineage, this volume last.
    pub(super) fn lineage(&self) -> &[VolumeId] {
        &self.lineage
    }

    pub(super) fn snapshot_named(&self, name: &str) -> Option<(SnapshotId, VolumeSize)> {
        self.volume.snapshot_named(name)
    }

    /// Why the engine stopped, once it has; whether it was the device.
    pub(super) fn halted(&self) -> Option<(&str, bool)> {
        self.halted.as_deref().map(|reason| (reason, self.device_failed))
    }

    /// The volume's files, for the next run of the engine.
    pub(super) fn into_found(self) -> Vec<FoundSco> {
        self.locals.into_found()
    }

    pub(super) fn open_session(&mut self, id: SessionId) -> Option<SessionSlot> {
        self.volume.open_session(id)
    }

    /// A connection opened a session twice, and closes it once.
    pub(super) fn opened_again(&mut self, slot: SessionSlot, twice: Option<Pass>) {
        self.volume.opened_again(slot);
        if let Some(pass) = twice {
            self.permits.gone(pass, slot);
        }
    }

    fn device(&self) -> &Device {
        &self.shard.node.device
    }

    /// Applies a round of operations as one batch.
    pub(super) fn round(&mut self, operations: Vec<Operation>) {
        if self.holds() {
            return self.waiting.extend(operations);
        }
        self.shard.node.guests.came(operations.len());
        for operation in operations {
            if self.stopping != Stopping::No {
                self.shard.replies.refuse(operation.ticket, self.stopping());
                continue;
            }
            if operation.generation != self.generation {
                let refusal = not_open(self.path());
                self.shard
                    .replies
                    .answer(operation.ticket, VolumeReply::Refused(refusal), Bytes::new());
                continue;
            }
            if !self.may_take_in(&operation) {
                self.shard
                    .replies
                    .refuse(operation.ticket, self.no_access(operation.pass));
                continue;
            }
            let Operation {
                ticket,
                on,
                request,
                data,
                recorded,
                ..
            } = operation;
            if let OpenOn::Session(session) = on {
                if let Some(trace) = recorded {
                    self.traced.recorded(ticket, session, &request, *trace);
                }
                let step = || self.shard.replies.step(ticket);
                self.traced.began(ticket, session, &request, step);
            }
            self.take(match on {
                OpenOn::Session(session) => Event::Io {
                    ticket,
                    session,
                    request,
                    data,
                },
                OpenOn::Snapshot(snapshot) => Event::SnapshotIo {
                    ticket,
                    snapshot,
                    request,
                },
                OpenOn::Compared(compared) => Event::ComparedIo {
                    ticket,
                    compared,
                    request,
                },
            });
        }
        self.settle();
    }

    /// What is answered to what is not taken in.
    pub(super) fn stopping(&self) -> Refusal {
        let text = match self.stopping {
            Stopping::Holding | Stopping::HandingOver => {
                format!("volume {} is being moved to another volume-router", self.path)
            }
            Stopping::No | Stopping::Draining | Stopping::Releasing => {
                "the volume-router is stopping".to_owned()
            }
        };
        Refusal::retry(RefusalCode::Unavailable, text)
    }

    /// Whether the twin is given up because none is wanted any more.
    pub(super) fn wants_no_twin(&self) -> bool {
        self.volume.twin_status().state == TwinState::Off
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping != Stopping::No
    }

    const fn holds(&self) -> bool {
        matches!(self.stopping, Stopping::Holding | Stopping::HandingOver)
    }

    /// A request that becomes a record in the log. As an operation, it is not taken in once the volume stops: what is in
    /// the log after the last manifest would be lost with the release.
    pub(super) fn request(&mut self, ticket: Ticket, ask: Ask) {
        if self.stopping != Stopping::No {
            return self.shard.replies.refuse(ticket, self.stopping());
        }
        let now_us = self.shard.node.clock.unix_micros();
        self.happened(Event::Ask { ticket, ask, now_us });
    }

    /// Something happened beside the volume.
    pub(super) fn happened(&mut self, event: Event) {
        match &event {
            Event::ScoSynced { sco } => self.locals.synced(*sco),
            Event::ScoStored { sco } => self.locals.stored(*sco),
            Event::Synced { .. } => self.traced.synced(),
            Event::TwinHeld { upto } => self.traced.twin_held(*upto),
            Event::TwinLost => self.traced.twin_lost(),
            Event::DeviceFailed { .. } => self.device_failed = true,
            Event::TwinAttached if !self.twin.has_stream() => return,
            _ => {}
        }
        self.take(event);
        self.settle();
    }

    /// The path changed.
    pub(super) fn renamed(&mut self, path: String) {
        self.owner.rename(&path);
        self.path = path.as_str().into();
        self.take(Event::Renamed { path });
        self.settle();
    }

    /// A bug was noticed beside the engine.
    pub(super) fn broken(&mut self, reason: String) {
        self.halted = Some(reason);
    }

    pub(super) const fn sco_size(&self) -> ScoSize {
        self.sco_size
    }

    /// Time passes.
    pub(super) fn tick(&mut self, pressed: bool) {
        let pressed = pressed || self.opening.is_some() || self.device().fullness() > PRESSED_FROM;
        self.take_tick(pressed);
        self.settle();
    }

    /// What is not stored is stored now, as if the write buffer were short of room. Nothing else is to make way for that, nor to say
    /// that it does: what follows at once is a tick that says how it is.
    pub(super) fn store_soon(&mut self) {
        self.tick(true);
        self.tick(false);
    }

    /// Takes in no more operations and asks the engine to store everything; the receiver hears when it has.
    pub(super) fn drain(&mut self) -> oneshot::Receiver<()> {
        self.stay();
        self.stopping = Stopping::Draining;
        self.store_all()
    }

    /// Asks the engine to store everything that was taken in by now; the receiver hears when it has.
    pub(super) fn store_all(&mut self) -> oneshot::Receiver<()> {
        let (drained, heard) = oneshot::channel();
        self.drained = Some(drained);
        self.take(Event::Sync { ticket: DRAIN });
        self.settle();
        heard
    }

    /// After a drain: whether all that was acknowledged is stored. From then on nothing more is acknowledged.
    pub(super) fn may_release(&mut self) -> bool {
        // A change that waited when the drain began may have been applied since.
        if self.volume.status().dirty {
            return false;
        }
        self.stopping = Stopping::Releasing;
        true
    }

    /// The volume is about to go elsewhere: operations wait from here on.
    pub(super) fn take_none_in(&mut self) {
        self.stopping = Stopping::Holding;
    }

    /// It does not: they are taken in. Not while it is handed over: then nobody knows.
    pub(super) fn stay(&mut self) {
        self.twin.anywhere();
        if self.stopping == Stopping::Holding {
            self.stopping = Stopping::No;
            let waiting = std::mem::take(&mut self.waiting);
            self.round(waiting);
        }
    }

    /// It was not handed over, and cannot be any more by what was asked for: operations wait again.
    pub(super) fn is_not_handed_over(&mut self) {
        self.stopping = Stopping::Holding;
        self.twin.stays();
    }

    /// Acknowledges nothing from here on, and has the record name the twin's host as the owner.
    pub(super) fn hand_over(&mut self) -> impl Future<Output = Result<(), Refusal>> + 'static {
        self.stopping = Stopping::HandingOver;
        self.twin.hand_over()
    }

    /// The twin is to be on this node and on no other.
    pub(super) fn twin_only_on(&self, node: &NodeName) {
        self.twin.only_on(node);
    }

    /// Where an operator wants the twin to be.
    pub(super) fn wish_twin(&self, wish: Option<TwinHost>) {
        self.twin.wish(wish);
    }

    /// A twin on this node is given up for one elsewhere.
    pub(super) fn leave_twin(&self, node: &NodeName) {
        self.twin.leave(node);
    }

    /// Why the only node that may keep the twin does not.
    pub(super) fn refusal_of_only_twin(&self) -> Option<String> {
        self.twin.refusal_of_only()
    }

    /// Whether the record says that the twin on this node has every acknowledged write.
    pub(super) fn is_in_sync_on(&self, node: &NodeName) -> bool {
        self.volume.twin_status().state == TwinState::InSync && self.twin.host().as_ref() == Some(node)
    }

    /// Whether the twin has all that was taken in.
    pub(super) fn twin_has_all(&self) -> bool {
        self.volume.twin_has_all()
    }

    /// What is known of the twin, and where it is.
    pub(super) fn twin(&self) -> (TwinStatus, Option<NodeName>) {
        (self.volume.twin_status(), self.twin.host())
    }

    /// Why it has no twin that is in sync, where something went wrong.
    pub(super) fn twin_trouble(&self) -> Option<String> {
        self.twin.trouble()
    }

    /// The volume is about to be released, and its twin with it.
    pub(super) fn releases_twin(&self) -> Release {
        self.twin.releases()
    }

    /// The volume is deleted: its twin may go.
    pub(super) fn forget_twin(&mut self) {
        self.twin.over();
    }

    /// The device has a free file.
    pub(super) fn file_ready(&mut self) {
        if let Some(header) = self.opening.take() {
            self.open_sco(header);
            self.settle();
        }
    }

    /// The device wants a cache's file.
    pub(super) fn evict(&mut self, sco: ScoId, epoch: Epoch) {
        self.drop_cache(sco, epoch);
        self.settle();
    }

    /// Lets go of a cache. The caller settles: it may be carrying effects out, and what comes of this comes after them.
    fn drop_cache(&mut self, sco: ScoId, epoch: Epoch) {
        if let Some(file) = self.locals.remove(sco, epoch) {
            self.take(Event::Evicted { sco });
            self.device().retire(&file);
        }
    }

    fn take(&mut self, event: Event) {
        self.begin_round();
        self.volume.apply(event, &mut self.effects);
    }

    /// A batch that is full while a round is taken in carries the round's time, not that of the one before. So what is stamped
    /// in a round is stamped after this, or it would look as if the clock had been set back.
    fn begin_round(&mut self) {
        if !std::mem::replace(&mut self.batch_open, true) {
            self.volume.set_now(self.shard.node.clock.unix_micros());
        }
    }

    fn take_tick(&mut self, pressed: bool) {
        self.begin_round();
        let now_us = self.shard.node.clock.unix_micros();
        self.take(Event::Tick { now_us, pressed });
    }

    /// Ends the batch and carries effects out until there are none.
    fn settle(&mut self) {
        loop {
            if self.effects.is_empty() {
                if !std::mem::replace(&mut self.batch_open, false) {
                    self.twin.tend(self.volume.twin_status().state);
                    return self.note_size();
                }
                let now_us = self.shard.node.clock.unix_micros();
                self.volume.apply(Event::BatchEnd { now_us }, &mut self.effects);
            }
            let mut effects = std::mem::replace(&mut self.effects, std::mem::take(&mut self.spare));
            for effect in effects.drain(..) {
                self.carry_out(effect);
            }
            self.spare = effects;
        }
    }

    /// The registry hears of another size soon: whoever asks while this node is away is told what it has.
    fn note_size(&self) {
        if self.owner.sized(self.volume.size()) {
            self.shard.node.background.size(self.owner.clone());
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Reply { ticket, reply } => self.answer(ticket, reply),
            Effect::Halt { reason } => self.halted = Some(reason),
            // What follows a failure of the device would rely on what is not there. What is not answered is refused when
            // the volume halts, which it is about to.
            _ if self.device_failed => {}
            Effect::Read { ticket, extents } => self.read(ticket, extents),
            Effect::Append(append) => self.append(&append),
            Effect::OpenSco { header } => self.open_sco(header),
            Effect::CloseSco { sco } => self.sync_sco(sco),
            Effect::Sync { upto } => self.sync(upto),
            Effect::Turn => self.me.tell(Happened {
                generation: self.generation,
                event: Event::Turn,
            }),
            Effect::Fetch { fetch, from } => self.fetch(fetch, from),
            Effect::LoadNode { place, reference } => self.load_node(place, reference),
            Effect::Upload {
                sco,
                epoch,
                tlog_len,
                length,
            } => self.upload(sco, epoch, tlog_len, length),
            Effect::StoreCheckpoint { frozen } => {
                self.shard.node.background.checkpoint(self.owner.clone(), frozen);
            }
            Effect::StoreManifest { manifest } => {
                self.shard.node.background.manifest(self.owner.clone(), manifest);
            }
            Effect::Evictable { sco } => self.evictable(sco),
            Effect::ReadLog { sco, epoch, local } => self.read_log(sco, epoch, local),
            Effect::Hold { snapshot } => self.hold(snapshot),
            Effect::Copy { extents } => {
                let background = &self.shard.node.background;
                background.copy(self.owner.clone(), self.sco_size, extents);
            }
            Effect::List { kind, after } => self.sweep(SweepJob::List(kind, after)),
            Effect::Delete { names } => self.sweep(SweepJob::Delete(names)),
            Effect::Independent => self.shard.node.background.independent(self.owner.clone()),
            Effect::ReadTlog { object } => self.scrub(ScrubJob::ReadTlog(object)),
            Effect::WriteBundle { plan } => self.scrub(ScrubJob::Write(plan)),
            Effect::DeleteSco { object } => self.scrub(ScrubJob::Delete(object)),
            Effect::TwinOpen { header } => self.twin.open(&header),
            Effect::TwinCopy {
                sco,
                tlog_len,
                length,
                ..
            } => self.copy_to_twin(sco, tlog_len, length),
            Effect::TwinSync { upto } => self.twin.sync(upto),
            Effect::TwinRelease { upto } => self.twin.release(upto),
            Effect::RecordInSync => self.twin.record_in_sync(),
            Effect::RecordDegraded => self.twin.record_degraded(),
        }
    }

    fn append(&mut self, append: &Append) {
        let header = || self.locals.get(append.sco).map(|local| local.header);
        let recorded = self.traced.recorded_in(append, header);
        if append.twin {
            // Before the write here, so that both go on at the same time.
            self.twin.append(append, recorded);
        }
        let appended = match self.locals.append_to(append.sco) {
            Some(file) => file.append(append.first_slot, &append.data, append.tlog_offset, &append.tlog),
            None => Err(io::Error::new(io::ErrorKind::NotFound, "its SCO has no file")),
        };
        match appended {
            Ok(()) => {
                hit(Point::AfterAppend);
                let header = || self.locals.get(append.sco).map(|local| local.header);
                self.traced.appended(append, header);
                self.volume
                    .apply(Event::AppendHeld { upto: append.seq }, &mut self.effects);
            }
            Err(error) => self.fail(format!("batch {} of SCO {}: {error}", append.seq, append.sco)),
        }
    }

    fn fail(&mut self, error: String) {
        self.device_failed = true;
        self.take(Event::DeviceFailed { error });
    }

    fn open_sco(&mut self, header: ScoHeader) {
        match self.device().open_sco(&header) {
            Ok(Some(file)) => {
                if let Some(other) = self.locals.insert(header, file, false) {
                    self.device().retire(&other.file);
                }
                self.take(Event::ScoOpened { sco: header.id });
            }
            Ok(None) => {
                self.opening = Some(header);
                // Store what can be, so that files come back.
                self.take_tick(true);
            }
            Err(error) => self.fail(format!("SCO {} cannot be opened: {error}", header.id)),
        }
    }

    /// Syncs a SCO that takes no more appends.
    fn sync_sco(&mut self, sco: ScoId) {
        let Some(local) = self.locals.get(sco) else { return };
        let file = Arc::clone(&local.file);
        self.beside(move || match file.sync() {
            Ok(()) => Event::ScoSynced { sco },
            Err(error) => Event::DeviceFailed {
                error: format!("SCO {sco} cannot be synced: {error}"),
            },
        });
    }

    /// Syncs every file with appends that are not synced, for all flushes that wait at this moment.
    fn sync(&mut self, upto: BatchSeq) {
        self.traced.sync_begins();
        let files = self.locals.take_unsynced();
        self.beside(move || match files.iter().try_for_each(|file| file.sync()) {
            Ok(()) => Event::Synced { upto },
            Err(error) => Event::DeviceFailed {
                error: format!("the batches up to {upto} cannot be synced: {error}"),
            },
        });
    }

    /// Does what blocks on another thread; its event comes back as a message.
    fn beside(&self, work: impl FnOnce() -> Event + Send + 'static) {
        let (me, generation) = (self.me.clone(), self.generation);
        sconce_runtime::blocking(move || {
            let event = work();
            me.tell(Happened { generation, event });
        });
    }

    /// Acknowledgements are held for a snapshot: not for longer than is set, whatever becomes of who takes it.
    fn hold(&self, snapshot: SnapshotId) {
        let (me, generation) = (self.me.clone(), self.generation);
        let within = self.shard.node.group_hold;
        actix_rt::spawn(async move {
            tokio::time::sleep(within).await;
            let event = Event::HoldOver { snapshot };
            me.tell(Happened { generation, event });
        });
    }

    fn upload(&mut self, sco: ScoId, epoch: Epoch, tlog_len: ByteLen, length: ByteLen) {
        let Some(local) = self.locals.get(sco) else {
            return self.fail(format!("SCO {sco} is to be stored and has no file"));
        };
        let file = Arc::clone(&local.file);
        let upload = Upload {
            sco,
            epoch,
            tlog_len,
            length,
            file,
            recorded: self.traced.recorded_of(sco),
        };
        self.shard.node.background.upload(self.owner.clone(), upload);
    }

    fn copy_to_twin(&self, sco: ScoId, tlog_len: ByteLen, length: ByteLen) {
        let local = self.locals.get(sco);
        let local = local.map(|local| (local.header, Arc::clone(&local.file)));
        self.twin.copy(sco, (tlog_len, length), local);
    }

    fn scrub(&self, job: ScrubJob) {
        let background = &self.shard.node.background;
        let is_urgent = self.volume.scrub_is_urgent();
        background.scrub(self.owner.clone(), self.sco_size, job, is_urgent);
    }

    fn sweep(&self, job: SweepJob) {
        self.shard.node.background.sweep(self.owner.clone(), job);
    }

    fn evictable(&mut self, sco: ScoId) {
        if let Some(local) = self.locals.get(sco) {
            let header = &local.header;
            self.device()
                .evictable(header.volume, header.id, header.epoch, &local.file);
        }
    }

    fn load_node(&self, place: NodePlace, reference: NodeRef) {
        let background = self.shard.node.background.clone();
        let (subject, lineage) = (self.owner.subject(), Arc::clone(&self.lineage));
        let (me, generation) = (self.me.clone(), self.generation);
        actix_rt::spawn(async move {
            let result = background.node(subject, lineage, place, reference).await;
            let event = Event::NodeLoaded {
                place,
                reference,
                result,
            };
            me.tell(Happened { generation, event });
        });
    }

    fn answer(&mut self, ticket: Ticket, reply: VolumeReply) {
        if ticket == DRAIN {
            if let (Some(drained), VolumeReply::Control(_)) = (self.drained.take(), reply) {
                // Whoever drains may have given up.
                let _ = drained.send(());
            }
            return;
        }
        self.traced.ended(ticket);
        if matches!(reply, VolumeReply::Done) {
            let fullness = self.device().fullness();
            if self.pace.may_delay(fullness) && self.is_change(ticket) && self.pace.delay(ticket, fullness) {
                return;
            }
            return self.acknowledge(ticket);
        }
        self.shard.replies.answer(ticket, reply, Bytes::new());
    }

    /// Says that a change, a flush or a request about snapshots is done, if this node may still say so. Otherwise the
    /// client asks again, under the same number or id, whoever serves the volume then.
    fn acknowledge(&self, ticket: Ticket) {
        if matches!(self.stopping, Stopping::Releasing | Stopping::HandingOver) {
            return self.shard.replies.refuse(ticket, self.stopping());
        }
        if !self.shard.node.gate.is_open() {
            return self.shard.replies.refuse(ticket, crate::gate::no_lease());
        }
        hit(Point::BeforeAck);
        let done = if self.is_control(ticket) {
            VolumeReply::Control(VolumeControlReply::Done)
        } else {
            VolumeReply::Done
        };
        self.shard.replies.answer(ticket, done, Bytes::new());
    }

    fn is_control(&self, ticket: Ticket) -> bool {
        matches!(self.shard.replies.asked(ticket), Some((None, _)))
    }

    fn is_change(&self, ticket: Ticket) -> bool {
        let asked = self.shard.replies.asked(ticket);
        asked.is_some_and(|(code, _)| code.is_some_and(IoCode::changes))
    }

    /// When the next acknowledgement that is late may leave.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.pace.next_due()
    }

    /// Lets late acknowledgements leave.
    pub(super) fn release_due(&mut self) {
        let now = Instant::now();
        while let Some(ticket) = self.pace.pop(now) {
            self.acknowledge(ticket);
        }
    }
}

fn not_open(path: &str) -> Refusal {
    Refusal::reroute(
        RefusalCode::NotOpen,
        format!("volume {path} was started again since it was opened: open it again"),
    )
}
