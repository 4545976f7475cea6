//! The twins that a shard keeps for other nodes.
//!
//! Keeps: one stream for each volume, and the files of those that were ended for a takeover until the volume's actor has them.
//! Order: what a stream says is done in its order; an attach reads the registry first, and a later one or a takeover supersedes it.
//! Crash: no stream is taken up again; the files are found by the next start, and their volume's record says what they are worth.
//! Knows no engine; the volumes that this shard serves by their ids alone.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sconce_bus::Reply;
use sconce_runtime::Stop;
use sconce_runtime::simulated::{Planted, leaves_out};
use sconce_schemas::records::{DtlState, VolumePhase, VolumeRecord};
use sconce_schemas::wire::event::What;
use sconce_schemas::wire::twin::{TwinReply, TwinRequest, TwinSay};
use sconce_schemas::wire::volume::VolumeReply;
use sconce_schemas::wire::{Refusal, RefusalCode};
use sconce_schemas::{Epoch, ScoId, ScoSize, VolumeId};
use sconce_tracing::{Action, Point, Status, Step};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::files::{Broken, Outcome, Said, Stream, StreamId, Unsynced};
use crate::device::{FoundSco, Tenant};
use crate::node::Node;
use crate::owner::erasure;
use crate::owner::record::{self, RecordError, refusal_of};

/// Attaches that one shard works on at a time.
const ATTACHES_MAX: usize = 256;
/// How often streams that say nothing are looked for, and how long one has to have said nothing: its owner says something each
/// second.
const LOOK_EVERY: Duration = Duration::from_secs(5);
const SILENT: Duration = Duration::from_secs(10);

/// The twins of one shard.
pub(crate) struct Twins {
    node: Arc<Node>,
    /// Which shard it is.
    index: usize,
    /// The device has a free file.
    ready: Arc<Notify>,
    /// Counts the attaches under way.
    attaching: Rc<()>,
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    streams: HashMap<VolumeId, Stream>,
    /// The newest attach that is under way, for each volume.
    attaches: HashMap<VolumeId, u64>,
    last_attach: u64,
    /// The newest ownership and stream of each volume that attached to this run of the host.
    newest: HashMap<VolumeId, StreamId>,
    /// Volumes that an actor of this shard has, or is about to have.
    occupied: HashSet<VolumeId>,
    /// What ended streams had, for the actors that are starting.
    sealed: HashMap<VolumeId, Vec<FoundSco>>,
}

/// What an attach asks for.
struct Attach {
    number: u64,
    volume: VolumeId,
    epoch: Epoch,
    stream: u64,
    path: String,
    sco_size: ScoSize,
}

impl Twins {
    pub(crate) fn new(node: Arc<Node>, index: usize) -> Self {
        Self {
            node,
            index,
            ready: Arc::default(),
            attaching: Rc::default(),
            state: RefCell::default(),
        }
    }

    /// Does what an owner says. `closed`: why nothing is done now.
    pub(crate) fn take(
        self: &Rc<Self>,
        request: TwinRequest,
        data: Bytes,
        closed: Option<&Refusal>,
        reply: Reply<VolumeReply>,
    ) {
        let TwinRequest {
            volume,
            epoch,
            stream,
            say,
        } = request;
        let shard = self.node.shard_of(volume);
        if let Some(refusal) = closed {
            return refuse(reply, refusal.clone());
        }
        if shard != self.index {
            let text = format!(
                "twins of volume {volume} are kept at endpoint {shard} of {}",
                self.node.name
            );
            return refuse(reply, Refusal::reroute(RefusalCode::NotOwner, text));
        }
        if let TwinSay::Attach { path, sco_size } = say {
            let attach = Attach {
                number: 0,
                volume,
                epoch,
                stream,
                path,
                sco_size,
            };
            return self.attach(attach, reply);
        }
        self.say((volume, epoch, stream), Said { say, data, reply });
    }

    fn say(self: &Rc<Self>, (volume, epoch, stream): (VolumeId, Epoch, u64), said: Said) {
        let mut state = self.state.borrow_mut();
        let known = state.streams.get_mut(&volume);
        let Some(known) = known.filter(|known| known.id() == (epoch, stream)) else {
            if leaves_out(Planted::NoSeal) && self.node.volumes.get(volume).is_some() {
                return done(said.reply);
            }
            let text = format!(
                "{} knows no such stream of volume {volume}: attach again",
                self.node.name
            );
            return refuse(said.reply, Refusal::reroute(RefusalCode::NotOpen, text));
        };
        known.heard = Instant::now();
        if let TwinSay::Append { seq, .. } = said.say {
            Point::VolumeTwinReceive.record(|| Step {
                operation: said.reply.operation(),
                action: Action::Write,
                volume,
                address: seq.0,
                length: said.data.len() as u64,
                status: Status::Ok,
            });
        }
        match said.say {
            // These wait for no file.
            TwinSay::Beat => done(said.reply),
            TwinSay::Detach => {
                drop(state);
                tracing::debug!(%volume, %epoch, "the owner gave its twin up");
                self.give_up(volume, "its owner gave it up");
                done(said.reply);
            }
            _ => {
                let queued = known.queue(said);
                drop(state);
                match queued {
                    Ok(()) => self.go_on(volume),
                    Err(refused) => {
                        let (said, broken) = *refused;
                        self.broken(volume, (epoch, stream), &broken, said.reply);
                    }
                }
            }
        }
    }

    /// Does what a stream has said, up to what waits for a file.
    fn go_on(self: &Rc<Self>, volume: VolumeId) {
        loop {
            let mut state = self.state.borrow_mut();
            let Some(stream) = state.streams.get_mut(&volume) else {
                return;
            };
            let Some(said) = stream.next() else { return };
            let id = stream.id();
            match stream.carry_out(&said) {
                Ok(Outcome::Done) => done(said.reply),
                Ok(Outcome::Waits) => return stream.put_back(said),
                Ok(Outcome::Sync(files)) if files.is_empty() => done(said.reply),
                Ok(Outcome::Sync(files)) => self.sync(volume, id, files, said.reply),
                Ok(Outcome::Copied(sco)) => self.finish_copy(volume, id, sco, said.reply),
                Err(broken) => {
                    drop(state);
                    return self.broken(volume, id, &broken, said.reply);
                }
            }
        }
    }

    fn sync(
        self: &Rc<Self>,
        volume: VolumeId,
        id: StreamId,
        files: Vec<Unsynced>,
        reply: Reply<VolumeReply>,
    ) {
        let twins = Rc::clone(self);
        actix_rt::spawn(async move {
            let synced = sconce_runtime::blocking(move || {
                files.iter().try_for_each(|unsynced| unsynced.file.sync())?;
                Ok(files)
            });
            let synced = synced.await.map_err(std::io::Error::other).flatten();
            match synced {
                Ok(files) => twins.ended(volume, id, reply, |stream| stream.synced(&files)),
                Err(error) => twins.broken(volume, id, &Broken::Device(error), reply),
            }
        });
    }

    fn finish_copy(
        self: &Rc<Self>,
        volume: VolumeId,
        id: StreamId,
        sco: FoundSco,
        reply: Reply<VolumeReply>,
    ) {
        let twins = Rc::clone(self);
        actix_rt::spawn(async move {
            let file = Arc::clone(&sco.file);
            let synced = sconce_runtime::blocking(move || file.sync()).await;
            let synced = synced.map_err(std::io::Error::other).flatten();
            let is_known = twins.is_known(volume, id);
            if !is_known || synced.is_err() {
                twins.node.device.retire(&sco.file);
            }
            match synced {
                Ok(()) => twins.ended(volume, id, reply, |stream| stream.copied(sco)),
                Err(error) => twins.broken(volume, id, &Broken::Device(error), reply),
            }
        });
    }

    fn is_known(&self, volume: VolumeId, id: StreamId) -> bool {
        let state = self.state.borrow();
        state.streams.get(&volume).is_some_and(|known| known.id() == id)
    }

    /// What took its time is done, if the stream still is.
    fn ended(
        &self,
        volume: VolumeId,
        id: StreamId,
        reply: Reply<VolumeReply>,
        then: impl FnOnce(&mut Stream),
    ) {
        let mut state = self.state.borrow_mut();
        let known = state.streams.get_mut(&volume);
        match known.filter(|known| known.id() == id) {
            Some(stream) => {
                then(stream);
                done(reply);
            }
            None => refuse(reply, over(volume, "it ended meanwhile")),
        }
    }

    /// A stream cannot go on. Its files stay in the write buffer: what was acknowledged before relies on them.
    fn broken(&self, volume: VolumeId, id: StreamId, broken: &Broken, reply: Reply<VolumeReply>) {
        if !self.is_known(volume, id) {
            return refuse(reply, over(volume, "it ended meanwhile"));
        }
        let ended = self.end(volume, "it broke");
        let path = ended.as_ref().map_or("", |(path, _)| path);
        let refusal = broken.refusal(path);
        self.node.events.tell_of(
            volume,
            path,
            What::TwinEnded {
                cause: refusal.to_string(),
            },
        );
        if let Some((_, found)) = ended {
            self.node.device.disclaim(volume, found);
        }
        refuse(reply, refusal);
    }

    /// Ends a volume's stream; gives its path and its files, which are the caller's.
    fn end(&self, volume: VolumeId, cause: &str) -> Option<(String, Vec<FoundSco>)> {
        let stream = self.state.borrow_mut().streams.remove(&volume)?;
        // An actor's place there is its own.
        if self.node.volumes.get(volume).is_none() {
            self.node.device.leave(volume);
        }
        let path = stream.path.clone();
        Some((path, stream.end(&over(volume, cause))))
    }

    /// Ends a volume's stream that nobody relies on.
    fn give_up(&self, volume: VolumeId, cause: &str) {
        for found in self.end(volume, cause).into_iter().flat_map(|(_, found)| found) {
            self.node.device.retire(&found.file);
        }
    }

    fn attach(self: &Rc<Self>, mut attach: Attach, reply: Reply<VolumeReply>) {
        if Rc::strong_count(&self.attaching) > ATTACHES_MAX {
            let text = "too many owners ask for a twin at the same time";
            return refuse(reply, Refusal::retry(RefusalCode::Unavailable, text));
        }
        let mut state = self.state.borrow_mut();
        state.last_attach += 1;
        attach.number = state.last_attach;
        state.attaches.insert(attach.volume, attach.number);
        drop(state);
        let (twins, counted) = (Rc::clone(self), Rc::clone(&self.attaching));
        actix_rt::spawn(async move {
            let read = record::read(&twins.node.registry, attach.volume).await;
            match twins.attached(attach, read) {
                Ok(attached) => reply.send(VolumeReply::Twin(attached), Bytes::new()),
                Err(refusal) => refuse(reply, refusal),
            }
            drop(counted);
        });
    }

    fn attached(
        &self,
        attach: Attach,
        read: Result<(VolumeRecord, sconce_registry::Revision), RecordError>,
    ) -> Result<TwinReply, Refusal> {
        let Attach { volume, number, .. } = attach;
        let device = &self.node.device;
        let mut state = self.state.borrow_mut();
        if state.attaches.get(&volume) != Some(&number) {
            return Err(over(volume, "a later attach or a takeover came before it"));
        }
        state.attaches.remove(&volume);
        let newest = state.newest.get(&volume).copied();
        let occupied = state.occupied.contains(&volume);
        drop(state);
        let (record, _) = read.map_err(refusal_of)?;
        self.may_attach(&record, &attach)?;
        if newest.is_some_and(|newest| (attach.epoch, attach.stream) < newest) {
            // Its owner gave it up and went on with a newer one, on which the record may be about to rely.
            return Err(over(volume, "a newer one attached before it"));
        }
        if occupied {
            let text = format!(
                "{} is about to serve volume {} itself",
                self.node.name, attach.path
            );
            return Err(Refusal::retry(RefusalCode::Unavailable, text));
        }
        self.give_up(volume, "another one began");
        if let Some(left) = device.unclaimed_of(volume) {
            device.give_up(left, |newest| newest <= record.epoch);
        }
        if device.unclaimed_of(volume).is_some() {
            let text = format!(
                "the write buffer of {} holds SCOs of volume {} of an ownership after epoch {}, which the registry does not know: \
                 they may be the only copy, and no twin is kept beside them",
                self.node.name, attach.path, record.epoch
            );
            return Err(Refusal::retry(RefusalCode::Conflict, text));
        }
        let (owner, epoch) = (record.owner, record.epoch);
        let keeps = What::KeepsTwin { owner, epoch };
        self.node.events.tell_of(volume, &attach.path, keeps);
        let key = (volume, attach.epoch, attach.stream);
        let stream = Stream::new(device, key, attach.path, attach.sco_size);
        let mut state = self.state.borrow_mut();
        state.newest.insert(volume, (key.1, key.2));
        state.streams.insert(volume, stream);
        drop(state);
        self.join(volume);
        Ok(TwinReply::Attached {
            buffer: device.id().to_owned(),
            boot: device.identity().boot.clone(),
        })
    }

    /// Whether a stream may begin: nobody relies on what this write buffer has of the volume.
    fn may_attach(&self, record: &VolumeRecord, attach: &Attach) -> Result<(), Refusal> {
        let path = &attach.path;
        if record.phase == VolumePhase::Deleting {
            let text = format!("volume {path} is being deleted");
            return Err(Refusal::reject(RefusalCode::NotFound, text));
        }
        if record.epoch != attach.epoch {
            let text = format!(
                "{} owns volume {path} in epoch {} now, not in epoch {}",
                record.owner, record.epoch, attach.epoch
            );
            return Err(Refusal::reroute(RefusalCode::NotOwner, text));
        }
        if record.owner == self.node.name {
            let text = format!(
                "{} owns volume {path}: its twin is to be on another node",
                record.owner
            );
            return Err(Refusal::reject(RefusalCode::Invalid, text));
        }
        if record.sco_size != attach.sco_size {
            let text = format!(
                "SCOs of volume {path} have {} clusters, not {}",
                record.sco_size.slots(),
                attach.sco_size.slots()
            );
            return Err(Refusal::reject(RefusalCode::Invalid, text));
        }
        let is_relied_on =
            record.dtl_state == DtlState::InSync || record.buffer.as_deref() == Some(self.node.device.id());
        if is_relied_on {
            let text = format!(
                "the registry's record of volume {path} relies on a twin, or on the write buffer of {}: it has to say that it does \
                 not before a twin begins",
                self.node.name
            );
            return Err(Refusal::retry(RefusalCode::Conflict, text));
        }
        Ok(())
    }

    /// From here on the device tells this shard of free files for the volume, unless the volume's actor passes that on.
    fn join(&self, volume: VolumeId) {
        if self.node.volumes.get(volume).is_none() {
            let waiter = Waiter(Arc::clone(&self.ready));
            self.node.device.join(volume, Arc::new(waiter));
        }
    }

    /// There is a free file.
    pub(crate) fn file_ready(self: &Rc<Self>) {
        let state = self.state.borrow();
        let waits = |(volume, stream): (&VolumeId, &Stream)| stream.waits().then_some(*volume);
        let waiting: Vec<VolumeId> = state.streams.iter().filter_map(waits).collect();
        drop(state);
        for volume in waiting {
            self.go_on(volume);
        }
    }

    /// An actor has the volume, or is about to: no stream of it begins. One that is goes on until [`Self::seal`].
    pub(crate) fn occupy(&self, volume: VolumeId) {
        self.state.borrow_mut().occupied.insert(volume);
    }

    /// No actor has anything of the volume.
    pub(crate) fn vacate(self: &Rc<Self>, volume: VolumeId) {
        let mut state = self.state.borrow_mut();
        state.occupied.remove(&volume);
        let has_stream = state.streams.contains_key(&volume);
        drop(state);
        if has_stream {
            self.join(volume);
            self.go_on(volume);
        }
    }

    /// Ends a volume's stream, before the volume is claimed here: from here on its owner can acknowledge nothing that relies on this
    /// twin. Gives its SCOs; the actor that is starting takes them with [`Self::take_sealed`], however its start ends.
    pub(crate) fn seal(&self, volume: VolumeId) -> Vec<FoundSco> {
        self.state.borrow_mut().attaches.remove(&volume);
        let ended = self.end(volume, "the volume is taken over");
        if let Some((path, found)) = &ended {
            tracing::info!(volume = %path, scos = found.len(), "a twin ended, for a takeover");
        }
        let mut found = ended.map_or_else(Vec::new, |(_, found)| found);
        // One that broke since the actor claimed what there was has left its files to the device.
        found.extend(self.node.device.claim(volume));
        if !found.is_empty() {
            let mut state = self.state.borrow_mut();
            state
                .sealed
                .entry(volume)
                .or_default()
                .extend(found.iter().cloned());
        }
        found
    }

    /// What [`Self::seal`] gave, for whoever keeps it from here on.
    pub(crate) fn take_sealed(&self, volume: VolumeId) -> Vec<FoundSco> {
        self.state.borrow_mut().sealed.remove(&volume).unwrap_or_default()
    }

    /// Goes on with what waits for files, and gives up what its owner has left without a word, until the stop.
    pub(crate) async fn run(self: Rc<Self>, stop: Stop) {
        let mut look = tokio::time::interval(LOOK_EVERY);
        loop {
            tokio::select! {
                biased;
                () = stop.requested() => return,
                () = self.ready.notified() => self.file_ready(),
                _ = look.tick() => self.look_for_silent().await,
            }
        }
    }

    async fn look_for_silent(&self) {
        for silent in self.silent() {
            let (volume, epoch, ..) = silent;
            // Where the registry cannot tell, they stay.
            let is_over = match record::read(&self.node.registry, volume).await {
                Ok((record, _)) => {
                    record.phase == VolumePhase::Deleting
                        || record::wants_none(&record)
                        || record.epoch > epoch
                            && !record::relies_on_twin(&record, &self.node.name, self.node.device.id())
                        || record::relies_elsewhere(&record, self.node.device.id())
                }
                Err(RecordError::Refused(refusal)) if refusal.code == RefusalCode::NotFound => {
                    // Without a word that it was erased, its record may have been lost.
                    matches!(erasure::is_gone(&self.node.registry, volume).await, Ok(true))
                }
                Err(_) => false,
            };
            // One that has said something meanwhile may be relied on by now.
            if is_over && self.silent().contains(&silent) {
                tracing::info!(%volume, "gave a twin up: its owner has left it, and the registry's record will not rely on it");
                self.give_up(volume, "its owner said nothing for a while");
            }
        }
    }

    /// Streams that have said nothing for a while, with when they last did.
    fn silent(&self) -> Vec<(VolumeId, Epoch, u64, Instant)> {
        let state = self.state.borrow();
        let silent = |stream: &&Stream| stream.heard.elapsed() > SILENT;
        let streams = state.streams.values().filter(silent);
        streams
            .map(|stream| (stream.volume, stream.epoch, stream.number, stream.heard))
            .collect()
    }
}

/// The device's way to a shard's twins.
struct Waiter(Arc<Notify>);

impl Tenant for Waiter {
    fn evict(&self, _: ScoId, _: Epoch) {
        // A twin's files are no caches.
    }

    fn file_ready(&self) {
        self.0.notify_one();
    }

    fn pressed(&self) {
        // The owner stores them: it is told by late answers.
    }
}

/// The stream is none any more.
fn over(volume: VolumeId, cause: &str) -> Refusal {
    let text = format!("the stream to the twin of volume {volume} is over: {cause}");
    Refusal::reroute(RefusalCode::NotOpen, text)
}

fn done(reply: Reply<VolumeReply>) {
    reply.send(VolumeReply::Twin(TwinReply::Done), Bytes::new());
}

fn refuse(reply: Reply<VolumeReply>, refusal: Refusal) {
    reply.send(VolumeReply::Refused(refusal), Bytes::new());
}
