//! One volume, its host, its disk, its back end and its client, in one thread from one seed.
//!
//! Keeps: everything; each step takes in client operations, finishes one thing that is under way, or crashes.
//! Order: drawn from the seed.
//! Crash: before any effect, in the middle of a batch's writes, with or without the loss of power or of the disk.

use std::collections::BTreeMap;

use bytes::Bytes;
use sconce_schemas::checkpoint::{NodePlace, NodeRecord, NodeRef, decode_node};
use sconce_schemas::manifest::Manifest;
use sconce_schemas::object::ObjectKind;
use sconce_schemas::records::EpochStart;
use sconce_schemas::sco::ScoHeader;
use sconce_schemas::wire::volume::{ExtentKind, IoCode, IoFlags, IoRequest, VolumeReply};
use sconce_schemas::wire::{Refusal, Remedy};
use sconce_schemas::{BatchSeq, ByteLen, Epoch, ObjectName, ScoId, ScoSize, SessionId, VolumeId, VolumeSize};
use sconce_volume::{
    CheckpointPolicy, Effect, Event, Extent, FetchId, Origin, Recovered, Recovery, ScoImage, SessionSlot,
    Step, StoredRoots, Ticket, Volume, VolumeConfig,
};

use crate::disk::Disk;
use crate::oracle::{LogOracle, State, fill, stamp_of, stamps_of};
use crate::snapshots::Asks;

const VOLUME: VolumeId = VolumeId([7; 16]);
/// The volume ends in the middle of a cluster, and spans three levels of the map.
const SIZE: u64 = (700 << 30) + 1536;
/// What resizes cut it down to: in the middle of a cluster of the last hot region.
const SMALLER: u64 = (700 << 30) - (512 << 10) + 512;
/// Where operations go: around node borders, the start and the end.
pub(crate) const HOT: [u64; 4] = [0, 2 << 20, (1 << 30) - (1 << 20), SIZE - (1 << 20)];
pub(crate) const HOT_BYTES: u64 = 1 << 20;
/// More than the engine zeroes in one event.
const LONG: u64 = 200 << 20;

/// What may go wrong at a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Loss {
    /// The process is killed.
    Nothing,
    /// The power fails: unsynced sectors are lost in any subset.
    Unsynced,
    /// The disk is gone.
    Disk,
}

/// Something that was started and will be answered by an event.
enum Pending {
    Turn,
    Sync {
        upto: BatchSeq,
        moment: u64,
    },
    ScoSync {
        sco: ScoId,
        moment: u64,
    },
    Upload {
        name: ObjectName,
        bytes: Bytes,
        sco: ScoId,
    },
    Checkpoint(std::sync::Arc<sconce_volume::Frozen>),
    /// An object of the checkpoint that is being stored.
    MapObject {
        name: ObjectName,
        bytes: Bytes,
    },
    Manifest(Box<Manifest>),
    LoadNode {
        place: NodePlace,
        reference: NodeRef,
    },
    Fetch {
        fetch: FetchId,
        cluster: Bytes,
    },
}

/// An operation that the client has not had an answer to.
#[derive(Clone)]
pub(crate) struct Outstanding {
    request: IoRequest,
    data: Bytes,
    /// First and last sector, exclusive.
    sectors: std::ops::Range<u64>,
}

pub(crate) struct World {
    pub(crate) chance: fastrand::Rng,
    disk: Disk,
    pub(crate) store: BTreeMap<ObjectName, Bytes>,
    manifest: Option<Manifest>,
    epoch: Epoch,
    epochs: Vec<EpochStart>,
    pub(crate) volume: Volume,
    map_memory: ByteLen,
    session: SessionId,
    pub(crate) slot: SessionSlot,
    effects: Vec<Effect>,
    pending: Vec<Pending>,
    waiting_open: Option<ScoHeader>,
    headers: BTreeMap<ScoId, ScoHeader>,
    evictable: Vec<ScoId>,
    /// The checkpoint that is encoded, and how many of its objects are not stored yet.
    storing: Option<(StoredRoots, usize)>,
    pub(crate) now_us: u64,
    /// Client side.
    pub(crate) model: State,
    pub(crate) outstanding: BTreeMap<u64, Outstanding>,
    reads: BTreeMap<Ticket, IoRequest>,
    flushes: BTreeMap<Ticket, BatchSeq>,
    next_number: u64,
    stamp: u64,
    /// Oracle.
    pub(crate) log: LogOracle,
    held: BatchSeq,
    pub(crate) flushed: BatchSeq,
    crash_in: Option<usize>,
    pub(crate) crashes: usize,
    /// Recoveries that said that the log is damaged.
    pub(crate) damages: usize,
    pub(crate) asks: Asks,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let mut chance = fastrand::Rng::with_seed(seed);
        let size = ScoSize::new(64).unwrap();
        let files = chance.usize(6..40);
        let map_memory = ByteLen([6 << 10, 16 << 10, 64 << 10][chance.usize(0..3)]);
        let config = config(Epoch::FIRST, Vec::new(), map_memory);
        let mut recovery = Recovery::new(config, None, &[]).unwrap();
        assert_eq!(recovery.step(), Step::Done);
        let (mut volume, recovered) = recovery.finish();
        let session = SessionId(99);
        let slot = volume.open_session(session).unwrap();
        let model = State {
            size: SIZE,
            ..State::default()
        };
        Self {
            chance,
            disk: Disk::new(size, files),
            store: BTreeMap::new(),
            manifest: None,
            epoch: Epoch::FIRST,
            epochs: vec![EpochStart {
                epoch: Epoch::FIRST,
                first_sco: recovered.next_sco,
            }],
            volume,
            map_memory,
            session,
            slot,
            effects: Vec::new(),
            pending: Vec::new(),
            waiting_open: None,
            headers: BTreeMap::new(),
            evictable: Vec::new(),
            storing: None,
            now_us: 1,
            model,
            outstanding: BTreeMap::new(),
            reads: BTreeMap::new(),
            flushes: BTreeMap::new(),
            next_number: 1,
            stamp: 1,
            log: LogOracle::new(SIZE),
            held: BatchSeq::NONE,
            flushed: BatchSeq::NONE,
            crash_in: None,
            crashes: 0,
            damages: 0,
            asks: Asks::default(),
        }
    }

    /// Runs `steps` steps, then lets everything finish and compares every byte.
    pub(crate) fn run(&mut self, steps: usize) {
        for _ in 0..steps {
            self.now_us += self.chance.u64(0..400_000);
            match self.chance.u32(0..100) {
                0..50 => self.client_round(),
                50..90 => self.finish_one(),
                90..92 => self.lose_client(),
                92..95 => self.feed(Event::Tick {
                    now_us: self.now_us,
                    pressed: self.disk.free_files() < 3,
                }),
                95..98 => self.crash_in = Some(self.chance.usize(0..12)),
                _ => self.crash_in = Some(0),
            }
            if self.crash_in == Some(0) {
                self.crash();
            }
        }
        self.crash_in = None;
        self.settle();
        let state = self.read_all();
        assert_eq!(state, self.model, "the volume differs from the model at the end");
        self.check_snapshots(self.log.last());
        self.check_accounting();
    }

    // ---- the client

    fn client_round(&mut self) {
        for _ in 0..self.chance.usize(1..5) {
            match self.chance.u32(0..100) {
                0..55 => self.submit_change(),
                55..80 => self.submit_read(),
                80..92 => self.submit_flush(),
                92..95 => self.submit_extents(),
                95..97 => self.submit_ask(),
                _ => {
                    let number = self.outstanding.keys().next().copied();
                    // A duplicate of something that is under way: a resend that was too quick.
                    if let Some(number) = number {
                        self.send(number);
                    }
                }
            }
            if self.crash_in == Some(0) {
                return;
            }
        }
        self.feed(Event::BatchEnd { now_us: self.now_us });
    }

    fn range(&mut self) -> std::ops::Range<u64> {
        let base = HOT[self.chance.usize(0..HOT.len())];
        let most = (SIZE.min(base + HOT_BYTES) - base) / 512;
        let first = self.chance.u64(0..most);
        let longest = if self.chance.bool() { 8 } else { 160 };
        let count = self.chance.u64(1..=longest.min(most - first));
        let (mut from, mut to) = (base / 512 + first, base / 512 + first + count);
        if self.chance.bool() {
            (from, to) = (from / 8 * 8, (to.div_ceil(8) * 8).min(SIZE / 512));
        }
        from..to
    }

    fn submit_change(&mut self) {
        let mut sectors = self.range();
        if self.chance.u32(0..300) == 0 {
            // So long that it is done in pieces.
            sectors.end = sectors.start + (LONG + self.chance.u64(0..LONG)) / 512;
        }
        // Concurrent overlapping writes have no order; the model needs one.
        // Different sectors of one cluster may be written at the same time.
        let free = self
            .outstanding
            .values()
            .all(|o| o.sectors.end <= sectors.start || sectors.end <= o.sectors.start);
        if !free || self.outstanding.len() > 12 || self.asks.is_rolling_back() {
            return;
        }
        // One resize at a time, with nothing else under way: its effect on the others would have no order.
        let resizing = self
            .outstanding
            .values()
            .any(|o| o.request.code == IoCode::Resize);
        if resizing || (self.outstanding.is_empty() && self.chance.u32(0..4) == 0) {
            if !resizing {
                self.submit_resize();
            }
            return;
        }
        if sectors.end * 512 > self.model.size {
            return;
        }
        let code = match self.chance.u32(0..10) {
            _ if sectors.end - sectors.start >= LONG / 512 => IoCode::WriteZeroes,
            0..7 => IoCode::Write,
            7 => IoCode::Discard,
            _ => IoCode::WriteZeroes,
        };
        let mut flags = 0;
        if self.chance.u32(0..8) == 0 {
            flags |= IoFlags::FUA;
        }
        if code == IoCode::WriteZeroes && self.chance.bool() {
            flags |= IoFlags::NO_HOLE;
        }
        self.stamp += 1;
        let mut data = Vec::new();
        if code == IoCode::Write {
            fill(
                &mut data,
                self.stamp,
                usize::try_from(sectors.end - sectors.start).unwrap(),
            );
        }
        let request = IoRequest {
            handle: 0,
            number: self.next_number,
            below: 0,
            code,
            flags: IoFlags(flags),
            offset: sectors.start * 512,
            length: (sectors.end - sectors.start) * 512,
        };
        self.next_number += 1;
        self.outstanding.insert(
            request.number,
            Outstanding {
                request,
                data: data.into(),
                sectors,
            },
        );
        self.send(request.number);
    }

    fn submit_resize(&mut self) {
        let size = if self.model.size == SIZE { SMALLER } else { SIZE };
        let (_, mut request) = self.query(IoCode::Resize, size, 0);
        request.code = IoCode::Resize;
        // Reads of the last region have to be left alone meanwhile.
        let sectors = HOT[3] / 512..SIZE.div_ceil(512);
        self.outstanding.insert(
            request.number,
            Outstanding {
                request,
                data: Bytes::new(),
                sectors,
            },
        );
        self.send(request.number);
    }

    fn send(&mut self, number: u64) {
        let below = self.outstanding.keys().min().copied().unwrap_or(number);
        let Outstanding {
            mut request, data, ..
        } = self.outstanding[&number].clone();
        request.below = below;
        // The ticket of a change is its number: a duplicate may be answered twice.
        self.feed(Event::Io {
            ticket: Ticket(number),
            session: self.slot,
            request,
            data,
        });
    }

    fn submit_read(&mut self) {
        let sectors = self.range();
        if sectors.end * 512 > self.volume.size().bytes() {
            return;
        }
        let ticket = self.query(
            IoCode::Read,
            sectors.start * 512,
            (sectors.end - sectors.start) * 512,
        );
        self.reads.insert(ticket.0, ticket.1);
        self.feed(Event::Io {
            ticket: ticket.0,
            session: self.slot,
            request: ticket.1,
            data: Bytes::new(),
        });
    }

    fn submit_extents(&mut self) {
        let (ticket, request) = self.query(IoCode::Extents, 0, self.volume.size().bytes());
        self.reads.insert(ticket, request);
        self.feed(Event::Io {
            ticket,
            session: self.slot,
            request,
            data: Bytes::new(),
        });
    }

    /// A node that somebody asked for and that is not loaded yet.
    pub(crate) fn take_pending_load(&mut self) -> Option<(NodePlace, NodeRef)> {
        let is_load = |pending: &Pending| matches!(pending, Pending::LoadNode { .. });
        let at = self.pending.iter().position(is_load)?;
        match self.pending.swap_remove(at) {
            Pending::LoadNode { place, reference } => Some((place, reference)),
            _ => None,
        }
    }

    pub(crate) fn ticket(&mut self) -> Ticket {
        self.next_number += 1;
        Ticket(self.next_number - 1)
    }

    pub(crate) fn query(&mut self, code: IoCode, offset: u64, length: u64) -> (Ticket, IoRequest) {
        let number = self.next_number;
        self.next_number += 1;
        let request = IoRequest {
            handle: 0,
            number,
            below: 0,
            code,
            flags: IoFlags::default(),
            offset,
            length,
        };
        (Ticket(number), request)
    }

    fn submit_flush(&mut self) {
        let (ticket, request) = self.query(IoCode::Flush, 0, 0);
        self.flushes.insert(ticket, self.held);
        self.feed(Event::Io {
            ticket,
            session: self.slot,
            request,
            data: Bytes::new(),
        });
    }

    fn answered(&mut self, ticket: Ticket, reply: &VolumeReply) {
        if self.answered_ask(ticket, reply) {
            return;
        }
        match reply {
            VolumeReply::Refused(refusal) => {
                assert_eq!(refusal.remedy, Remedy::Retry, "{refusal}");
                self.reads.remove(&ticket);
                self.flushes.remove(&ticket);
            }
            VolumeReply::Extents(extents) => {
                let asked = self.reads.remove(&ticket).map(|request| request.length);
                let covered: u64 = extents.iter().map(|extent| extent.length).sum();
                assert!(
                    asked.is_none_or(|asked| 0 < covered && covered <= asked),
                    "extents say something of what was asked, perhaps only of its start"
                );
                self.check_extents(extents);
            }
            _ => {
                if let Some(upto) = self.flushes.remove(&ticket) {
                    self.flushed = self.flushed.max(upto);
                } else if let Some(done) = self.outstanding.remove(&ticket.0) {
                    assert!(
                        self.log.is_whole(ticket.0),
                        "operation {} is done, but the log does not say so",
                        ticket.0
                    );
                    if done.request.flags.has(IoFlags::FUA) {
                        // A change that needed no entry (a discard of holes) has nothing to lose.
                        let end = self.log.end_of(ticket.0).unwrap_or_default();
                        self.flushed = self.flushed.max(end);
                    }
                    self.model_change(&done);
                }
            }
        }
    }

    /// The client's connection is lost. Either the client comes back and sends again what was not answered, or it is
    /// dead and another takes its place: whatever the volume holds at that moment is what the other finds, and nothing
    /// of the dead one may come after it.
    fn lose_client(&mut self) {
        let gone = self.slot;
        self.reads.clear();
        self.flushes.clear();
        if self.chance.bool() {
            self.slot = self.volume.open_session(self.session).unwrap();
            self.feed(Event::ClientGone { session: gone });
            if self.crash_in != Some(0) {
                self.resend();
            }
            return;
        }
        self.feed(Event::ClientGone { session: gone });
        if self.crash_in == Some(0) {
            return;
        }
        self.session = SessionId(self.session.0 + 1);
        self.slot = self.volume.open_session(self.session).unwrap();
        // Looking at it is no part of the life.
        let crash_in = self.crash_in.take();
        let found = self.read_all();
        self.crash_in = crash_in;
        let dead = std::mem::take(&mut self.outstanding);
        self.check_taken_over(&found, &dead);
        self.model = found;
    }

    /// Apart from what the dead client had under way the volume is what the model says.
    fn check_taken_over(&self, found: &State, dead: &BTreeMap<u64, Outstanding>) {
        if dead.values().any(|o| o.request.code == IoCode::Resize) || self.asks.is_rolling_back() {
            return;
        }
        assert_eq!(found.size, self.model.size);
        let unsure = |sector| dead.values().any(|o| o.sectors.contains(&sector));
        for cluster in found.clusters.keys().chain(self.model.clusters.keys()) {
            let stamps = |state: &State| state.clusters.get(cluster).copied().unwrap_or_default();
            let (here, expected) = (stamps(found), stamps(&self.model));
            for sector in (0..8).filter(|sector| !unsure(cluster * 8 + *sector as u64)) {
                assert_eq!(
                    here[sector], expected[sector],
                    "sector {sector} of cluster {cluster}"
                );
            }
        }
    }

    fn resend(&mut self) {
        let numbers: Vec<u64> = self.outstanding.keys().copied().collect();
        for number in numbers {
            // One may be answered while others are sent.
            if self.crash_in != Some(0) && self.outstanding.contains_key(&number) {
                self.send(number);
            }
        }
        if self.crash_in != Some(0) {
            self.feed(Event::BatchEnd { now_us: self.now_us });
        }
    }

    /// Everything the model has must be data; holes must be zeros in the model (unless something is under way).
    fn check_extents(&self, extents: &[sconce_schemas::wire::volume::ExtentStatus]) {
        if self.asks.is_rolling_back() {
            return;
        }
        let mut at = 0;
        for extent in extents {
            let end = at + extent.length;
            if extent.kind != ExtentKind::Data {
                let range = at.div_ceil(4096)..end / 4096;
                for (cluster, stamps) in self.model.clusters.range(range) {
                    let busy = self
                        .outstanding
                        .values()
                        .any(|o| o.sectors.start / 8 <= *cluster && *cluster < o.sectors.end.div_ceil(8));
                    assert!(
                        busy,
                        "cluster {cluster} holds {stamps:?} but is reported as {:?}",
                        extent.kind
                    );
                }
            }
            at = end;
        }
    }

    fn model_change(&mut self, done: &Outstanding) {
        if done.request.code == IoCode::Resize {
            self.model.resize(done.request.offset);
            return;
        }
        if done.request.code == IoCode::WriteZeroes {
            self.model.zero(done.sectors.clone());
            return;
        }
        for sector in done.sectors.clone() {
            match done.request.code {
                IoCode::Write => self.model.set_sector(sector, stamp_of(&done.data[..512])),
                _ => {
                    let whole = |cluster: u64| {
                        done.sectors.start <= cluster * 8 && (cluster + 1) * 8 <= done.sectors.end
                    };
                    if whole(sector / 8) {
                        self.model.set_sector(sector, 0);
                    }
                }
            }
        }
    }

    fn check_read(&mut self, ticket: Ticket, extents: &[Extent]) {
        let Some(request) = self.reads.remove(&ticket) else {
            return;
        };
        if self.asks.is_rolling_back() {
            return;
        }
        let mut cluster = request.offset / 4096;
        for extent in extents {
            for content in self.contents(extent) {
                let busy = self
                    .outstanding
                    .values()
                    .any(|o| o.sectors.start / 8 <= cluster && cluster < o.sectors.end.div_ceil(8));
                if !busy {
                    let expected = self.model.clusters.get(&cluster).copied().unwrap_or_default();
                    assert_eq!(content, expected, "cluster {cluster} read from {extent:?}");
                }
                cluster += 1;
            }
        }
        assert_eq!(
            cluster,
            (request.offset + request.length).div_ceil(4096),
            "a read of another length"
        );
    }

    /// The stamps of an extent's clusters, CRCs checked.
    pub(crate) fn contents(&self, extent: &Extent) -> Vec<[u64; 8]> {
        match extent {
            Extent::Zeros { length } => vec![[0; 8]; (*length / 4096) as usize],
            _ => clusters(&self.disk, &self.store, &self.epochs, extent)
                .iter()
                .map(|c| stamps_of(c))
                .collect(),
        }
    }

    // ---- the host

    pub(crate) fn feed(&mut self, event: Event) {
        let mut effects = std::mem::take(&mut self.effects);
        self.volume.apply(event, &mut effects);
        for effect in effects.drain(..) {
            if self.crash_in == Some(0) {
                continue;
            }
            self.carry_out(effect);
        }
        self.effects = effects;
        self.open_if_possible();
    }

    pub(crate) fn carry_out(&mut self, effect: Effect) {
        if let Some(left) = &mut self.crash_in {
            *left -= 1;
            if *left == 0 {
                // In the middle of a batch's writes: some of them happen.
                if let Effect::Append(append) = &effect {
                    self.log.append(&self.headers[&append.sco], append);
                    let steps = self.chance.usize(0..append.data.len() + 2);
                    self.disk.append(append, steps);
                }
                return;
            }
        }
        match effect {
            Effect::OpenSco { header } => {
                assert!(
                    self.waiting_open.replace(header).is_none(),
                    "two SCOs are opened at once"
                );
            }
            Effect::Append(append) => {
                self.log.append(&self.headers[&append.sco], &append);
                self.disk.append(&append, usize::MAX);
                self.held = append.seq;
                let mut effects = Vec::new();
                self.volume
                    .apply(Event::AppendHeld { upto: append.seq }, &mut effects);
                effects.into_iter().for_each(|effect| {
                    if self.crash_in != Some(0) {
                        self.carry_out(effect);
                    }
                });
            }
            Effect::CloseSco { sco } => self.pending.push(Pending::ScoSync {
                sco,
                moment: self.disk.now(),
            }),
            Effect::Sync { upto } => self.pending.push(Pending::Sync {
                upto,
                moment: self.disk.now(),
            }),
            Effect::Read { ticket, extents } => self.check_read(ticket, &extents),
            Effect::Reply { ticket, reply } => self.answered(ticket, &reply),
            Effect::Fetch { fetch, from } => {
                // Read at once: the file is not taken away under a read.
                let cluster = clusters(&self.disk, &self.store, &self.epochs, &from).swap_remove(0);
                self.pending.push(Pending::Fetch { fetch, cluster });
            }
            Effect::LoadNode { place, reference } => {
                self.pending.push(Pending::LoadNode { place, reference });
            }
            Effect::Upload {
                sco,
                epoch,
                tlog_len,
                length,
            } => {
                let mut bytes = self
                    .disk
                    .image(sco, length.0)
                    .expect("an upload is local")
                    .to_vec();
                let used = usize::try_from(ScoSize::HEADER_AREA + tlog_len.0).unwrap();
                let data = usize::try_from(ScoSize::new(64).unwrap().data_offset()).unwrap();
                bytes[sconce_schemas::sco::HEADER_LEN..4096].fill(0);
                bytes[used..data].fill(0);
                let bytes = Bytes::from(bytes);
                let name = ObjectName::Sco {
                    volume: VOLUME,
                    id: sco,
                    epoch,
                    version: 0,
                };
                self.pending.push(Pending::Upload { name, bytes, sco });
            }
            Effect::StoreCheckpoint { frozen } => self.pending.push(Pending::Checkpoint(frozen)),
            Effect::StoreManifest { manifest } => self.pending.push(Pending::Manifest(manifest)),
            Effect::Evictable { sco } => self.evictable.push(sco),
            Effect::Turn => self.pending.push(Pending::Turn),
            Effect::Halt { reason } => panic!("halted: {reason}"),
        }
    }

    fn open_if_possible(&mut self) {
        while self.crash_in != Some(0) && self.waiting_open.is_some() {
            if self.disk.free_files() == 0 {
                if self.evictable.is_empty() {
                    return;
                }
                let sco = self.evictable.remove(0);
                self.disk.recycle(sco);
                self.feed_plain(Event::Evicted { sco });
            }
            let Some(header) = self.waiting_open.take() else {
                return;
            };
            assert!(self.disk.open(&header));
            self.headers.insert(header.id, header);
            self.feed_plain(Event::ScoOpened { sco: header.id });
        }
    }

    pub(crate) fn feed_plain(&mut self, event: Event) {
        let mut effects = Vec::new();
        self.volume.apply(event, &mut effects);
        for effect in effects {
            if self.crash_in != Some(0) {
                self.carry_out(effect);
            }
        }
    }

    /// Finishes one thing that is under way, any one.
    fn finish_one(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        let at = self.chance.usize(0..self.pending.len());
        match self.pending.swap_remove(at) {
            Pending::Sync { upto, moment } => {
                self.disk.sync(None, moment);
                self.feed(Event::Synced { upto });
            }
            Pending::ScoSync { sco, moment } => {
                self.disk.sync(Some(sco), moment);
                self.feed(Event::ScoSynced { sco });
            }
            Pending::Upload { name, bytes, sco } => {
                let before = self.store.insert(name, bytes.clone());
                assert!(
                    before.is_none_or(|before| before == bytes),
                    "{name} was stored with other bytes"
                );
                // An answer that is lost with a crash: the object is there all the same.
                self.feed(Event::ScoStored { sco });
            }
            Pending::Checkpoint(frozen) => {
                // Its objects are stored later, one by one: what is only encoded cannot be read back.
                let (objects, roots) = frozen.encode().unwrap();
                drop(frozen);
                let count = objects.len();
                for object in objects {
                    let name = ObjectName::Map {
                        volume: VOLUME,
                        id: object.id,
                        epoch: object.epoch,
                    };
                    let bytes = object.bytes;
                    self.pending.push(Pending::MapObject { name, bytes });
                }
                assert!(
                    self.storing.replace((roots, count)).is_none(),
                    "two checkpoints at once"
                );
                self.checkpoint_progress();
            }
            Pending::MapObject { name, bytes } => {
                assert!(
                    self.store.insert(name, bytes).is_none(),
                    "{name} is there already"
                );
                if let Some((_, left)) = &mut self.storing {
                    *left -= 1;
                }
                self.checkpoint_progress();
            }
            Pending::Manifest(manifest) => {
                self.check_manifest(&manifest);
                let bytes = manifest.to_bytes();
                let name = ObjectName::Manifest {
                    volume: VOLUME,
                    seq: manifest.seq,
                    epoch: manifest.epoch,
                };
                assert!(self.store.insert(name, bytes.into()).is_none());
                let seq = manifest.seq;
                self.manifest = Some(*manifest);
                self.feed(Event::ManifestStored { seq });
            }
            Pending::LoadNode { place, reference } => {
                let result = load_node(&self.store, &reference);
                self.feed(Event::NodeLoaded {
                    place,
                    reference,
                    result,
                });
            }
            Pending::Turn => self.feed(Event::Turn),
            Pending::Fetch { fetch, cluster } => {
                self.feed(Event::Fetched {
                    fetch,
                    result: Ok(cluster),
                });
            }
        }
    }

    /// Tells the volume once all objects of its checkpoint are stored.
    fn checkpoint_progress(&mut self) {
        if let Some((roots, _)) = self.storing.take_if(|(_, left)| *left == 0) {
            self.feed(Event::CheckpointStored { roots });
        }
    }

    /// A manifest may only refer to what is stored.
    fn check_manifest(&self, manifest: &Manifest) {
        let first = self
            .manifest
            .as_ref()
            .map_or(ScoId::NONE, |m| m.covered_sco)
            .next();
        for id in first.0..=manifest.covered_sco.0 {
            let id = ScoId(id);
            let epoch = epoch_at(&manifest.epochs, id);
            let name = ObjectName::Sco {
                volume: VOLUME,
                id,
                epoch,
                version: 0,
            };
            assert!(
                self.store.contains_key(&name),
                "the manifest refers to {name}, which is not stored"
            );
        }
    }

    /// Everything that is under way ends, until the newest manifest has all.
    fn settle(&mut self) {
        for _ in 0..100_000 {
            let numbers: Vec<u64> = self.outstanding.keys().copied().collect();
            if self.pending.is_empty() {
                if numbers.is_empty() && !self.volume.status().dirty {
                    return;
                }
                numbers.into_iter().for_each(|number| self.send(number));
                self.feed(Event::BatchEnd { now_us: self.now_us });
                self.now_us += 10_000_000;
                self.feed(Event::Tick {
                    now_us: self.now_us,
                    pressed: true,
                });
            } else {
                self.finish_one();
            }
        }
        panic!(
            "the volume does not settle: {:?}; {} free files, opening {:?}, evictable {:?}",
            self.volume.status(),
            self.disk.free_files(),
            self.waiting_open,
            self.evictable
        );
    }

    // ---- crashes

    fn crash(&mut self) {
        self.crash_in = None;
        self.crashes += 1;
        let loss = match self.chance.u32(0..10) {
            0..5 => Loss::Nothing,
            5..9 => Loss::Unsynced,
            _ => Loss::Disk,
        };
        match loss {
            Loss::Nothing => {}
            Loss::Unsynced => self.disk.power_loss(&mut self.chance),
            Loss::Disk => self.disk = Disk::new(ScoSize::new(64).unwrap(), self.chance.usize(6..40)),
        }
        let (held, flushed) = (self.held, self.flushed);
        if self.chance.bool() {
            self.recover_damaged();
        }
        let upto = self.recover();
        match loss {
            Loss::Nothing => assert!(upto >= held, "batches up to {held} were held, {upto} came back"),
            Loss::Unsynced => assert!(
                upto >= flushed,
                "batches up to {flushed} were flushed, {upto} came back"
            ),
            Loss::Disk => {}
        }
        let expected = self.log.state_at(upto);
        let state = self.read_all();
        assert_eq!(
            state, expected,
            "after {loss:?} the volume is not the log's prefix up to {upto}"
        );
        self.check_snapshots(upto);
        let rolled = self.asks.forget();
        if loss != Loss::Nothing || rolled {
            // A growth that was lost takes the writes behind it along.
            let size = state.size;
            self.outstanding
                .retain(|_, o| o.request.code == IoCode::Resize || o.sectors.end * 512 <= size);
            self.model = state;
        }
        self.log.truncate(upto);
        self.held = upto;
        if loss != Loss::Nothing {
            // What came back was on the platter or on the back end.
            self.flushed = upto;
        }
        // The client resends what was not answered, under the same numbers.
        self.resend();
    }

    /// A recovery with a damaged file: either nothing is lost that a header proves synced, or it says so and names the
    /// SCO, and changes nothing. Then the file is as it was.
    fn recover_damaged(&mut self) {
        let Some((sco, damaged)) = self.disk.damage(&mut self.chance) else {
            return;
        };
        let (_, recovered, headers) = self.replay();
        let upto = self.last_batch(&recovered);
        let proven = headers
            .iter()
            .filter_map(|header| self.headers.get(&header.synced_below))
            .map(|behind| behind.first_batch.prev())
            .max()
            .unwrap_or_default();
        match &recovered.damaged {
            Some(found) => {
                assert!(upto < proven, "a false alarm: {found}");
                assert_eq!(found.sco, sco, "{found}");
                self.damages += 1;
            }
            None => assert!(
                upto >= proven,
                "batches up to {proven} were synced, {upto} came back, and nobody said so"
            ),
        }
        self.disk.flip(&damaged);
    }

    /// What a host does at a start: claim an epoch, recover, seal, sync, adopt, serve.
    fn recover(&mut self) -> BatchSeq {
        self.pending.clear();
        self.evictable.clear();
        self.storing = None;
        self.waiting_open = None;
        self.reads.clear();
        self.flushes.clear();
        let (mut volume, recovered, headers) = self.replay();
        assert_eq!(recovered.damaged, None, "a crash alone is no damage");
        self.epochs.retain(|start| start.first_sco < recovered.next_sco);
        self.epochs.push(EpochStart {
            epoch: self.epoch,
            first_sco: recovered.next_sco,
        });
        if let Some(seal) = &recovered.seal {
            self.disk.seal(seal);
        }
        for header in &headers {
            let needed = recovered.unstored.contains(&header.id);
            if !needed {
                if volume.adopt_local(header.id, header.epoch) {
                    self.evictable.push(header.id);
                } else {
                    self.disk.recycle(header.id);
                }
            }
        }
        self.slot = volume.open_session(self.session).unwrap();
        self.volume = volume;
        let moment = self.disk.now();
        for sco in &recovered.unstored {
            self.pending.push(Pending::ScoSync { sco: *sco, moment });
        }
        self.last_batch(&recovered)
    }

    /// In the next epoch, from the newest manifest, the volume as the disk and the back end have it; and what headers the
    /// disk has. Changes nothing that is stored.
    fn replay(&mut self) -> (Volume, Recovered, Vec<ScoHeader>) {
        self.epoch = self.epoch.next();
        let epochs = self.epochs.clone();
        let headers = self
            .disk
            .scan(|sco| epochs.iter().rev().find(|e| e.first_sco <= sco).map(|e| e.epoch));
        let manifest = self.newest_manifest();
        let config = config(self.epoch, self.epochs.clone(), self.map_memory);
        let mut recovery = Recovery::new(config, manifest.as_ref(), &headers).unwrap();
        loop {
            match recovery.step() {
                Step::NeedSco {
                    sco,
                    epoch,
                    stored_only,
                    ..
                } => {
                    let local = self.disk.image(sco, ScoSize::new(64).unwrap().file_len());
                    let local = local.filter(|_| !stored_only).map(Bytes::copy_from_slice);
                    let name = ObjectName::Sco {
                        volume: VOLUME,
                        id: sco,
                        epoch,
                        version: 0,
                    };
                    let image = match local {
                        Some(bytes) => Some(ScoImage {
                            bytes,
                            origin: Origin::Local,
                        }),
                        None => self.store.get(&name).map(|bytes| ScoImage {
                            bytes: bytes.clone(),
                            origin: Origin::Stored,
                        }),
                    };
                    recovery.sco(image);
                }
                Step::NeedNode { reference, .. } => recovery.node(load_node(&self.store, &reference)),
                Step::Failed(refusal) => panic!("{refusal}"),
                Step::Done => break,
            }
        }
        let (volume, recovered) = recovery.finish();
        (volume, recovered, headers)
    }

    fn last_batch(&self, recovered: &Recovered) -> BatchSeq {
        let covered = self.newest_manifest().map_or(BatchSeq::NONE, |m| m.covered);
        BatchSeq(covered.0 + recovered.replayed)
    }

    fn newest_manifest(&self) -> Option<Manifest> {
        let names = self
            .store
            .iter()
            .filter(|(name, _)| name.kind() == ObjectKind::Manifest);
        let manifests = names.map(|(_, bytes)| Manifest::from_bytes(bytes).unwrap());
        manifests.max_by_key(|manifest| (manifest.epoch, manifest.seq))
    }

    /// What the volume holds.
    fn read_all(&mut self) -> State {
        self.read_root(None).state
    }
}

fn config(epoch: Epoch, epochs: Vec<EpochStart>, map_memory: ByteLen) -> VolumeConfig {
    VolumeConfig {
        id: VOLUME,
        epoch,
        path: "/sim/disk.raw".into(),
        pool: "default".into(),
        sco_size: ScoSize::new(64).unwrap(),
        initial_size: VolumeSize::new(SIZE).unwrap(),
        epochs,
        origin: None,
        map_memory,
        checkpoint: CheckpointPolicy {
            entries_max: 400,
            idle_us: 2_000_000,
            age_us: 20_000_000,
        },
    }
}

fn epoch_at(epochs: &[EpochStart], sco: ScoId) -> Epoch {
    epochs
        .iter()
        .rev()
        .find(|start| start.first_sco <= sco)
        .expect("an epoch for every SCO")
        .epoch
}

/// The clusters of an extent, CRCs checked. A local copy that does not hold (after a power loss a recycled file may have
/// its old header back) gives way to the stored one.
fn clusters(
    disk: &Disk,
    store: &BTreeMap<ObjectName, Bytes>,
    epochs: &[EpochStart],
    extent: &Extent,
) -> Vec<Bytes> {
    let size = ScoSize::new(64).unwrap();
    let (sco, first, crcs, local) = match extent {
        Extent::Zeros { .. } => return vec![Bytes::from_static(&[0; 4096])],
        Extent::Local {
            sco,
            first_slot,
            crcs,
        } => (*sco, *first_slot, crcs, true),
        Extent::Stored {
            sco,
            first_slot,
            crcs,
            epoch,
            ..
        } => {
            assert_eq!(*epoch, epoch_at(epochs, *sco));
            (*sco, *first_slot, crcs, false)
        }
    };
    let name = ObjectName::Sco {
        volume: VOLUME,
        id: sco,
        epoch: epoch_at(epochs, sco),
        version: 0,
    };
    let content = (first.0..)
        .map(sconce_schemas::Slot)
        .zip(crcs)
        .map(|(slot, crc)| {
            let good = |bytes: &Bytes| sconce_schemas::crc::crc32c(bytes) == *crc;
            let from_disk = || disk.cluster(sco, slot).map(Bytes::copy_from_slice).filter(good);
            let from_store = || {
                let at = usize::try_from(size.slot_offset(slot)).unwrap();
                store
                    .get(&name)
                    .map(|object| object.slice(at..at + 4096))
                    .filter(good)
            };
            let found = if local {
                from_disk().or_else(from_store)
            } else {
                from_store()
            };
            found.unwrap_or_else(|| {
                panic!(
                    "SCO {sco} slot {} (local: {local}) is not what was written",
                    slot.0
                )
            })
        });
    content.collect()
}

pub(crate) fn load_node(
    store: &BTreeMap<ObjectName, Bytes>,
    reference: &NodeRef,
) -> Result<Vec<NodeRecord>, Refusal> {
    let mut records = Vec::new();
    let mut at = Some(*reference);
    while let Some(reference) = at {
        let name = ObjectName::Map {
            volume: VOLUME,
            id: reference.checkpoint,
            epoch: reference.epoch,
        };
        let object = store.get(&name).unwrap_or_else(|| panic!("{name} is gone"));
        let from = reference.offset as usize;
        let record = decode_node(
            VOLUME,
            &reference,
            &object[from..from + reference.length as usize],
        )
        .unwrap();
        at = record.base;
        records.push(record);
    }
    Ok(records)
}
