//! One volume, its host, its disk, its back end and its client, in one thread from one seed.
//!
//! Keeps: everything; each step takes in client operations, finishes one thing that is under way, or crashes.
//! Order: drawn from the seed.
//! Crash: before any effect, in the middle of a batch's writes, with or without the loss of power or of the disk.

mod checks;
mod client;
mod crash;
mod host;
pub(crate) mod stored;
mod twin;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use sconce_schemas::bundle::BundleIndex;
use sconce_schemas::checkpoint::{NodePlace, NodeRef};
use sconce_schemas::manifest::Manifest;
use sconce_schemas::object::ObjectKind;
use sconce_schemas::records::{DtlMode, EpochStart};
use sconce_schemas::sco::ScoHeader;
use sconce_schemas::wire::volume::IoRequest;
use sconce_schemas::{
    BatchSeq, ByteLen, Epoch, ObjectName, ScoId, ScoSize, SessionId, SnapshotId, VolumeId, VolumeSize,
};
use sconce_volume::{
    BundlePlan, CheckpointPolicy, CloneOf, Effect, Event, FetchId, Frozen, Recovery, ScoObject, ScrubPolicy,
    SessionSlot, Step, StoredRoots, SweepPolicy, Ticket, Volume, VolumeConfig,
};

use crate::changes::Comparisons;
use crate::disk::Disk;
use crate::history::Moments;
use crate::oracle::{LogOracle, State};
use crate::scrub::Late;
use crate::snapshots::Asks;
use twin::Twins;

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

/// Longer than a life: but for the first pass of each ownership, all objects are looked at only at the end.
pub(crate) const SWEEP_EVERY_US: u64 = 3_600_000_000;

/// What may go wrong at a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Loss {
    /// The process is killed.
    Nothing,
    /// The power fails: unsynced sectors are lost in any subset.
    Unsynced,
    /// The disk is gone.
    Disk,
    /// The machine is gone; the twin takes over if it may.
    Machine,
}

/// Something that was started and will be answered by an event.
enum Pending {
    Turn,
    HoldOver(SnapshotId),
    ReadTlog(ScoObject),
    ReadLog {
        sco: ScoId,
        epoch: Epoch,
        local: bool,
    },
    Bundle(Box<BundlePlan>),
    Delete(ScoObject),
    List(ObjectKind, Option<ObjectName>),
    Sweep(Vec<ObjectName>),
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
    Checkpoint(Arc<Frozen>),
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
    RecordInSync,
    RecordDegraded,
}

/// An operation that the client has not had an answer to.
#[derive(Clone)]
pub(crate) struct Outstanding {
    request: IoRequest,
    data: Bytes,
    /// First and last sector, exclusive.
    pub(crate) sectors: std::ops::Range<u64>,
}

pub(crate) struct World {
    pub(crate) id: VolumeId,
    /// Its ancestors and itself.
    lineage: Vec<VolumeId>,
    /// The parent's snapshot that it began as.
    pub(crate) begun_as: Option<SnapshotId>,
    /// Snapshots that clones begin as: the registry lets nobody remove them.
    pub(crate) pinned: BTreeSet<SnapshotId>,
    pub(crate) chance: fastrand::Rng,
    pub(crate) disk: Disk,
    pub(crate) store: BTreeMap<ObjectName, Bytes>,
    /// CRC32C of everything that was ever stored under a name of this volume: a name has one content for ever.
    contents: BTreeMap<ObjectName, u32>,
    /// What the bundles in the store hold.
    pub(crate) bundles: BTreeMap<ObjectName, BundleIndex>,
    /// Bundles of several SCOs that were written.
    pub(crate) merged: usize,
    /// Bundles that a neighbour was asked for and may still write.
    pub(crate) late: Vec<Late>,
    /// Those that it did, when nobody waited for them any more.
    pub(crate) came_late: usize,
    pub(crate) manifest: Option<Manifest>,
    pub(crate) epoch: Epoch,
    pub(crate) epochs: Vec<EpochStart>,
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
    /// Everything is to end: the back end is there.
    settling: bool,
    pub(crate) now_us: u64,
    /// Client side.
    pub(crate) model: State,
    pub(crate) outstanding: BTreeMap<u64, Outstanding>,
    pub(crate) reads: BTreeMap<Ticket, IoRequest>,
    /// Changes that were acknowledged while a read waited for the twin: it may show either.
    overtook: Vec<(Ticket, std::ops::Range<u64>)>,
    flushes: BTreeMap<Ticket, BatchSeq>,
    next_number: u64,
    stamp: u64,
    /// Oracle.
    pub(crate) log: LogOracle,
    held: BatchSeq,
    pub(crate) flushed: BatchSeq,
    pub(crate) crash_in: Option<usize>,
    pub(crate) crashes: usize,
    /// Otherwise it lives to its end.
    pub(crate) may_crash: bool,
    is_calm: bool,
    /// Objects that were swept.
    pub(crate) swept: BTreeMap<ObjectKind, u64>,
    /// Recoveries that said that the log is damaged.
    pub(crate) damages: usize,
    pub(crate) asks: Asks,
    pub(crate) moments: Moments,
    pub(crate) comparisons: Comparisons,
    pub(crate) twins: Twins,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let model = State {
            size: SIZE,
            ..State::default()
        };
        Self::begin(seed, vec![VOLUME], None, model)
    }

    /// A clone that begins as a snapshot of this volume, which a manifest on the back end has.
    pub(crate) fn clone_of(&mut self, snapshot: SnapshotId, id: VolumeId, seed: u64) -> Self {
        self.pinned.insert(snapshot);
        let lineage = self.lineage.iter().copied().chain([id]).collect();
        let origin = CloneOf {
            manifest: Box::new(self.newest_manifest().unwrap()),
            snapshot,
        };
        let (_, model) = self.log.snapshots_at(self.log.last()).remove(&snapshot).unwrap();
        Self::begin(seed, lineage, Some(origin), model)
    }

    /// The volume that it is a clone of.
    pub(crate) fn parent(&self) -> Option<VolumeId> {
        self.lineage.iter().rev().nth(1).copied()
    }

    /// What a clone without a manifest of its own begins as: the newest manifest of its parent has it.
    fn origin(&self) -> Option<CloneOf> {
        Some(CloneOf {
            manifest: Box::new(self.newest_manifest_of(self.parent()?)?),
            snapshot: self.begun_as?,
        })
    }

    fn begin(seed: u64, lineage: Vec<VolumeId>, origin: Option<CloneOf>, model: State) -> Self {
        let mut chance = fastrand::Rng::with_seed(seed);
        let size = ScoSize::new(64).unwrap();
        let files = chance.usize(6..40);
        let map_memory = ByteLen([6 << 10, 16 << 10, 64 << 10][chance.usize(0..3)]);
        let id = *lineage.last().unwrap();
        let mut config = config(id, Epoch::FIRST, Vec::new(), map_memory);
        let begun_as = origin.as_ref().map(|origin| origin.snapshot);
        config.origin = origin;
        let mut recovery = Recovery::new(config, None, &[]).unwrap();
        assert_eq!(recovery.step(), Step::Done);
        let (mut volume, recovered) = recovery.finish();
        let session = SessionId(99);
        let slot = volume.open_session(session).unwrap();
        Self {
            id,
            lineage,
            begun_as,
            pinned: BTreeSet::new(),
            chance,
            disk: Disk::new(size, files),
            store: BTreeMap::new(),
            contents: BTreeMap::new(),
            bundles: BTreeMap::new(),
            merged: 0,
            late: Vec::new(),
            came_late: 0,
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
            settling: false,
            now_us: 1,
            model: model.clone(),
            outstanding: BTreeMap::new(),
            reads: BTreeMap::new(),
            overtook: Vec::new(),
            flushes: BTreeMap::new(),
            next_number: 1,
            stamp: 1,
            log: LogOracle::new(model),
            held: BatchSeq::NONE,
            flushed: BatchSeq::NONE,
            crash_in: None,
            crashes: 0,
            may_crash: true,
            is_calm: seed.is_multiple_of(3),
            swept: BTreeMap::new(),
            damages: 0,
            asks: Asks::default(),
            moments: Moments::default(),
            comparisons: Comparisons::default(),
            twins: Twins::default(),
        }
    }

    /// Runs `steps` steps, then lets everything finish and compares every byte.
    pub(crate) fn run(&mut self, steps: usize) {
        (0..steps).for_each(|_| self.step());
        self.end();
    }

    pub(crate) fn step(&mut self) {
        self.now_us += self.chance.u64(0..400_000);
        if self.chance.u32(0..100) == 0 {
            // The clock is set back.
            self.now_us = self.now_us.saturating_sub(self.chance.u64(0..3_000_000)).max(1);
        }
        self.volume.set_now(self.now_us);
        self.twin_step();
        match self.chance.u32(0..100) {
            _ if self.crash_in == Some(0) => {}
            0..50 => self.client_round(),
            50..88 => {
                for _ in 0..if self.is_calm { 8 } else { 1 } {
                    self.finish_one();
                    if self.crash_in == Some(0) {
                        break;
                    }
                }
            }
            88..90 => self.lose_client(),
            90 => {
                let full = self.chance.bool();
                self.feed(Event::BackEndsFull { full });
            }
            91 if self.may_crash => self.change_twin_mode(),
            91..95 => self.feed(Event::Tick {
                now_us: self.now_us,
                pressed: self.disk.free_files() + self.evictable.len() < 3,
            }),
            // In some lives crashes are rare and the host is quick, so that what takes long comes to its end.
            95.. if self.is_calm && self.chance.u32(0..6) > 0 => {}
            95..98 if self.may_crash => self.crash_in = Some(self.chance.usize(0..12)),
            98.. if self.may_crash => self.crash_in = Some(0),
            _ => {}
        }
        if self.crash_in == Some(0) {
            self.crash();
        }
        self.check_moments();
    }

    /// Lets everything finish and compares every byte.
    pub(crate) fn end(&mut self) {
        self.crash_in = None;
        self.settle();
        self.compare();
        self.check_moments();
        self.check_comparisons(4);
        self.check_accounting();
        self.check_space();
        self.check_swept();
    }

    pub(crate) fn compare(&mut self) {
        let state = self.read_all();
        state.assert_is(&self.model, "at the end");
        self.check_snapshots(self.log.last());
    }
}

fn config(id: VolumeId, epoch: Epoch, epochs: Vec<EpochStart>, map_memory: ByteLen) -> VolumeConfig {
    VolumeConfig {
        id,
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
            renewal_bytes: 8 << 10,
            renewal_step: 1,
        },
        scrub: ScrubPolicy {
            utilisation_percent: 92,
            objects_spare: 2,
            grace_us: 500_000,
            lookups_step: 20,
            ..ScrubPolicy::default()
        },
        sweep: SweepPolicy {
            every_us: SWEEP_EVERY_US,
            pause_us: 3_000_000,
            grace_us: 1_000_000,
        },
        dtl: DtlMode::None,
        dtl_behind: ByteLen(64 << 10),
    }
}
