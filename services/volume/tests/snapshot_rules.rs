//! Single rules of snapshots and of what dies: what a random life reaches too seldom, or what needs much of something.
//!
//! The host here keeps what is stored in memory, so that a volume can begin again from its manifest with nothing in memory.
//! Nodes are loaded when a test says so.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use sconce_schemas::checkpoint::{NodePlace, NodeRecord, NodeRef, TreeKind, decode_node};
use sconce_schemas::manifest::Manifest;
use sconce_schemas::records::EpochStart;
use sconce_schemas::sco::ScoHeader;
use sconce_schemas::wire::volume::{IoCode, IoFlags, IoRequest, VolumeReply};
use sconce_schemas::wire::{Refusal, RefusalCode};
use sconce_schemas::{
    ByteLen, CheckpointId, Epoch, ScoId, ScoSize, SessionId, SnapshotId, VolumeId, VolumeSize,
};
use sconce_volume::{
    Ask, CheckpointPolicy, Effect, Event, FetchId, Frozen, Origin, Recovery, ScoImage, ScrubPolicy, SweepPolicy,
    SessionSlot, Step, Ticket, Volume, VolumeConfig,
};

const VOLUME: VolumeId = VolumeId([5; 16]);
const SIZE: u64 = 1 << 40;
const ROOMY: u64 = 256 << 20;
/// What a leaf of the map covers.
const LEAF: u64 = 2 << 20;

struct Host {
    volume: Volume,
    map_memory: u64,
    epoch: Epoch,
    epochs: Vec<EpochStart>,
    session: SessionSlot,
    number: u64,
    now_us: u64,
    turns: usize,
    syncs: Vec<Event>,
    fetches: Vec<FetchId>,
    closed: Vec<ScoId>,
    uploads: Vec<ScoId>,
    checkpoints: Vec<Arc<Frozen>>,
    manifests: Vec<Manifest>,
    loads: Vec<(NodePlace, NodeRef)>,
    replies: Vec<(u64, VolumeReply)>,
    /// What is stored.
    scos: BTreeMap<ScoId, Vec<u8>>,
    objects: HashMap<(Epoch, CheckpointId), Bytes>,
    manifest: Option<Manifest>,
}

fn index(offset: u64) -> usize {
    usize::try_from(offset).unwrap()
}

impl Host {
    fn new(map_memory: u64) -> Self {
        let mut recovery = Recovery::new(config(Epoch(1), map_memory), None, &[]).unwrap();
        assert_eq!(recovery.step(), Step::Done);
        let (mut volume, _) = recovery.finish();
        let session = volume.open_session(SessionId(1)).unwrap();
        let mut host = Self {
            volume,
            map_memory,
            epoch: Epoch(1),
            epochs: vec![EpochStart {
                epoch: Epoch(1),
                first_sco: ScoId::FIRST,
            }],
            session,
            number: 0,
            now_us: 1_000_000_000,
            turns: 0,
            syncs: Vec::new(),
            fetches: Vec::new(),
            closed: Vec::new(),
            uploads: Vec::new(),
            checkpoints: Vec::new(),
            manifests: Vec::new(),
            loads: Vec::new(),
            replies: Vec::new(),
            scos: BTreeMap::new(),
            objects: HashMap::new(),
            manifest: None,
        };
        host.checkpoint();
        host
    }

    /// Begins again from the newest manifest, with nothing in memory.
    fn restart(&mut self) {
        self.epoch = self.epoch.next();
        self.turns = 0;
        self.syncs.clear();
        self.fetches.clear();
        self.closed.clear();
        self.uploads.clear();
        self.checkpoints.clear();
        self.manifests.clear();
        self.loads.clear();
        let mut config = config(self.epoch, self.map_memory);
        config.epochs.clone_from(&self.epochs);
        let mut recovery = Recovery::new(config, self.manifest.as_ref(), &[]).unwrap();
        loop {
            match recovery.step() {
                Step::NeedSco { sco, .. } => {
                    let bytes = self.scos.get(&sco).cloned();
                    recovery.sco(bytes.map(|bytes| ScoImage {
                        bytes: bytes.into(),
                        origin: Origin::Stored,
                    }));
                }
                Step::NeedNode { reference, .. } => recovery.node(Ok(self.records(reference))),
                Step::Failed(refusal) => panic!("{refusal}"),
                Step::Done => break,
            }
        }
        let (mut volume, recovered) = recovery.finish();
        assert_eq!(recovered.damaged, None);
        self.epochs.retain(|start| start.first_sco < recovered.next_sco);
        self.epochs.push(EpochStart {
            epoch: self.epoch,
            first_sco: recovered.next_sco,
        });
        self.session = volume.open_session(SessionId(self.epoch.0)).unwrap();
        self.volume = volume;
    }

    fn records(&self, reference: NodeRef) -> Vec<NodeRecord> {
        let mut records: Vec<NodeRecord> = Vec::new();
        let mut at = Some(reference);
        while let Some(reference) = at {
            let object = &self.objects[&(reference.epoch, reference.checkpoint)];
            let from = reference.offset as usize;
            let stored = &object[from..from + reference.length as usize];
            let record = decode_node(VOLUME, &reference, stored).unwrap();
            at = record.base;
            records.push(record);
        }
        records
    }

    fn feed(&mut self, event: Event) {
        let mut effects = Vec::new();
        self.volume.apply(event, &mut effects);
        for effect in effects {
            match effect {
                Effect::OpenSco { header } => {
                    let mut bytes = vec![0; index(header.size.data_offset())];
                    bytes[..ScoHeader::to_bytes(&header).len()].copy_from_slice(&header.to_bytes());
                    self.scos.insert(header.id, bytes);
                    self.feed(Event::ScoOpened { sco: header.id });
                }
                Effect::Append(append) => {
                    let at = index(ScoSize::HEADER_AREA + append.tlog_offset);
                    let file = self.scos.get_mut(&append.sco).unwrap();
                    file[at..at + append.tlog.len()].copy_from_slice(&append.tlog);
                    self.feed(Event::AppendHeld { upto: append.seq });
                }
                Effect::Sync { upto } => self.syncs.push(Event::Synced { upto }),
                Effect::CloseSco { sco } => self.closed.push(sco),
                Effect::Upload { sco, .. } => self.uploads.push(sco),
                Effect::StoreCheckpoint { frozen } => self.checkpoints.push(frozen),
                Effect::StoreManifest { manifest } => self.manifests.push(*manifest),
                Effect::Reply { ticket, reply } => self.replies.push((ticket.0, reply)),
                Effect::Fetch { fetch, .. } => self.fetches.push(fetch),
                Effect::LoadNode { place, reference } => self.loads.push((place, reference)),
                Effect::Turn => self.turns += 1,
                Effect::Read { ticket, .. } => self.replies.push((ticket.0, VolumeReply::Done)),
                Effect::ReadTlog { object } => self.feed(Event::TlogRead {
                    object,
                    result: Err(Refusal::retry(RefusalCode::Unavailable, "not here")),
                }),
                Effect::Evictable { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }

    fn request(&mut self, code: IoCode, flags: u8, offset: u64, length: u64) -> IoRequest {
        self.number += 1;
        IoRequest {
            handle: 0,
            number: self.number,
            below: 0,
            code,
            flags: IoFlags(flags),
            offset,
            length,
        }
    }

    /// Sends an operation; gives its number.
    fn io(&mut self, code: IoCode, offset: u64, length: u64) -> u64 {
        let request = self.request(code, 0, offset, length);
        let data = if code == IoCode::Write {
            vec![1; index(length)]
        } else {
            Vec::new()
        };
        self.feed(Event::Io {
            ticket: Ticket(self.number),
            session: self.session,
            request,
            data: Bytes::from(data),
        });
        self.end_batch();
        self.number
    }

    fn ask(&mut self, ask: Ask) -> u64 {
        self.number += 1;
        self.feed(Event::Ask {
            ticket: Ticket(self.number),
            ask,
            now_us: self.now_us,
        });
        self.end_batch();
        self.number
    }

    fn take(&mut self, id: u64) {
        let taken = self.ask(Ask::Take {
            id: SnapshotId(id),
            name: format!("s{id}"),
            metadata: BTreeMap::new(),
        });
        assert!(self.is_done(taken));
    }

    fn end_batch(&mut self) {
        self.feed(Event::BatchEnd { now_us: self.now_us });
        for synced in std::mem::take(&mut self.syncs) {
            self.feed(synced);
        }
    }

    fn tick(&mut self) {
        self.feed(Event::Tick {
            now_us: self.now_us,
            pressed: false,
        });
        self.end_batch();
    }

    fn turn(&mut self) {
        while std::mem::take(&mut self.turns) > 0 {
            self.feed(Event::Turn);
            self.end_batch();
        }
    }

    /// Loads what is asked for, until nothing is.
    fn load(&mut self) {
        loop {
            for (place, reference) in std::mem::take(&mut self.loads) {
                let result = Ok(self.records(reference));
                self.feed(Event::NodeLoaded {
                    place,
                    reference,
                    result,
                });
                self.now_us += 300_000;
                self.end_batch();
            }
            self.turn();
            if self.loads.is_empty() {
                return;
            }
        }
    }

    /// Stores everything that is to be stored, once.
    fn store(&mut self) {
        for sco in std::mem::take(&mut self.closed) {
            self.feed(Event::ScoSynced { sco });
        }
        for sco in std::mem::take(&mut self.uploads) {
            self.feed(Event::ScoStored { sco });
        }
        for frozen in std::mem::take(&mut self.checkpoints) {
            let (objects, roots) = frozen.encode().unwrap();
            drop(frozen);
            let named = objects
                .into_iter()
                .map(|object| ((object.epoch, object.id), object.bytes));
            self.objects.extend(named);
            self.feed(Event::CheckpointStored { roots });
        }
        for manifest in std::mem::take(&mut self.manifests) {
            let seq = manifest.seq;
            // As it is read again.
            self.manifest = Some(Manifest::from_bytes(&manifest.to_bytes()).unwrap());
            self.feed(Event::ManifestStored { seq });
        }
    }

    /// Stores until the newest manifest has everything, with what a removed snapshot leaves counted.
    fn checkpoint(&mut self) {
        for _ in 0..20 {
            self.now_us += 10_000_000;
            self.tick();
            self.load();
            self.store();
            self.store();
        }
        assert!(!self.volume.status().dirty, "{:?}", self.volume.status());
    }

    fn reply(&self, number: u64) -> Option<&VolumeReply> {
        let found = self.replies.iter().find(|(ticket, _)| *ticket == number);
        found.map(|(_, reply)| reply)
    }

    fn is_done(&self, number: u64) -> bool {
        matches!(self.reply(number), Some(VolumeReply::Done))
    }

    fn refusal(&self, number: u64) -> RefusalCode {
        match self.reply(number) {
            Some(VolumeReply::Refused(refusal)) => refusal.code,
            other => panic!("{other:?}"),
        }
    }

    /// Slots that the SCO table says are live.
    fn live(&mut self) -> u64 {
        loop {
            match self.volume.sco_states() {
                Ok(states) => return states.iter().map(|(_, state)| u64::from(state.live)).sum(),
                Err((place, reference)) => {
                    let result = Ok(self.records(reference));
                    self.feed(Event::NodeLoaded {
                        place,
                        reference,
                        result,
                    });
                }
            }
        }
    }
}

fn config(epoch: Epoch, map_memory: u64) -> VolumeConfig {
    VolumeConfig {
        id: VOLUME,
        epoch,
        path: "/snapshot-rules.raw".into(),
        pool: "default".into(),
        sco_size: ScoSize::new(64).unwrap(),
        initial_size: VolumeSize::new(SIZE).unwrap(),
        epochs: Vec::new(),
        origin: None,
        map_memory: ByteLen(map_memory),
        checkpoint: CheckpointPolicy::default(),
        scrub: ScrubPolicy::default(),
        sweep: SweepPolicy {
            every_us: 0,
            ..SweepPolicy::default()
        },
    }
}

/// One cluster in each of the first leaves.
fn written(map_memory: u64, leaves: u64) -> Host {
    let mut host = Host::new(map_memory);
    for leaf in 0..leaves {
        host.io(IoCode::Write, leaf * LEAF, 4096);
        host.store();
    }
    host.checkpoint();
    host
}

#[test]
fn discards_of_what_is_not_in_memory_are_few_at_a_time_also_in_a_replay() {
    let leaves = 300;
    let mut host = written(ROOMY, leaves);
    host.restart();
    assert_eq!(host.live(), leaves);
    let before = host.manifest.clone();
    for leaf in 0..leaves {
        let discard = host.io(IoCode::Discard, leaf * LEAF, LEAF);
        while !host.is_done(discard) {
            assert!(!host.loads.is_empty(), "it waits for nothing");
            host.load();
        }
    }
    let unseen = |host: &mut Host| {
        // A checkpoint that nothing was reaped before.
        host.now_us += 10_000_000;
        host.feed(Event::Sync {
            ticket: Ticket(u64::MAX),
        });
        host.store();
        host.store();
        host.manifest
            .as_ref()
            .map_or(0, |manifest| manifest.snapshots.len())
    };
    host.store();
    assert!((1..=64).contains(&unseen(&mut host)));
    // The same in a replay of the log.
    host.manifest = before;
    host.restart();
    assert_eq!(host.volume.status().allocated.0, 0);
    host.tick();
    assert!((1..=64).contains(&unseen(&mut host)));
    host.checkpoint();
    assert_eq!(host.live(), 0);
}

#[test]
fn a_long_discard_of_what_is_not_in_memory_is_done_leaf_by_leaf() {
    let leaves = 40;
    // Memory for one discard at a time of which nothing is known.
    let mut host = written(64 << 10, leaves);
    host.restart();
    for (from, to) in [(0, 3), (3, 38), (38, 40)] {
        let discard = host.io(IoCode::Discard, from * LEAF, (to - from) * LEAF);
        for _ in 0..200 {
            host.load();
            host.turn();
            host.store();
            assert!(host.volume.status().map_memory.0 < 512 << 10);
        }
        assert!(host.is_done(discard));
    }
    assert_eq!(host.volume.status().allocated.0, 0);
    host.checkpoint();
    assert_eq!(host.live(), 0);
}

#[test]
fn a_node_of_the_sco_table_that_cannot_be_had_is_asked_for_again() {
    let mut host = Host::new(ROOMY);
    // More SCOs than a leaf of the table has.
    for at in 0..520 {
        host.io(IoCode::Write, at * 4096, 4096);
        host.now_us += 10_000_000;
        host.tick();
        host.store();
        host.store();
    }
    host.checkpoint();
    host.restart();
    let overwrite = host.io(IoCode::Write, 0, 4096);
    while !host.is_done(overwrite) {
        let (place, reference) = host.loads.remove(0);
        assert_eq!(place.tree, TreeKind::Map);
        let result = Ok(host.records(reference));
        host.feed(Event::NodeLoaded {
            place,
            reference,
            result,
        });
        host.end_batch();
    }
    for _ in 0..3 {
        let (place, reference) = host.loads.pop().unwrap();
        assert_eq!((place.tree, host.loads.len()), (TreeKind::Scos, 0));
        let result = Err(Refusal::retry(RefusalCode::Unavailable, "no back end"));
        host.feed(Event::NodeLoaded {
            place,
            reference,
            result,
        });
        host.end_batch();
        assert!(host.loads.is_empty(), "not before the next tick");
        host.now_us += 1_000_000;
        host.tick();
    }
    host.checkpoint();
    assert_eq!(host.live(), 520);
}

#[test]
fn a_rollback_that_is_asked_for_again_is_not_done_again() {
    let mut host = Host::new(ROOMY);
    host.io(IoCode::Write, 0, 4096);
    host.take(1);
    host.io(IoCode::Write, 4096, 4096);
    let back = Ask::RollBack {
        to: "s1".into(),
        id: SnapshotId(2),
        keep: None,
    };
    let first = host.ask(back.clone());
    assert!(host.is_done(first));
    for restart in [false, true] {
        host.io(IoCode::Write, 8192, 8192);
        // The state before is reaped: nothing of it is left but its id.
        host.checkpoint();
        assert_eq!(host.live(), 3);
        if restart {
            host.restart();
        }
        let again = host.ask(back.clone());
        host.load();
        assert!(host.is_done(again));
        assert_eq!(
            host.volume.status().allocated.0,
            3 * 4096,
            "what came after it stands"
        );
    }
}

#[test]
fn a_write_that_waited_does_not_change_a_template() {
    let mut host = Host::new(ROOMY);
    host.io(IoCode::Write, 0, 4096);
    let waits = host.io(IoCode::Write, 512, 512);
    let fetch = host.fetches.pop().unwrap();
    let template = host.ask(Ask::ReadOnly(true));
    assert!(host.is_done(template));
    host.feed(Event::Fetched {
        fetch,
        result: Ok(Bytes::from(vec![1; 4096])),
    });
    assert_eq!(host.refusal(waits), RefusalCode::ReadOnly);
}

#[test]
fn who_asks_for_the_extents_of_a_snapshot_that_is_removed_meanwhile_is_told() {
    for code in [IoCode::Extents, IoCode::Read] {
        let mut host = written(ROOMY, 2);
        host.take(1);
        host.checkpoint();
        host.restart();
        let request = host.request(code, 0, 0, LEAF);
        let waits = host.number;
        host.feed(Event::SnapshotIo {
            ticket: Ticket(waits),
            snapshot: SnapshotId(1),
            request,
        });
        assert!(host.reply(waits).is_none());
        let removed = host.ask(Ask::Remove { name: "s1".into() });
        assert!(host.is_done(removed));
        host.load();
        assert_eq!(host.refusal(waits), RefusalCode::NotFound);
    }
}

#[test]
fn what_a_checkpoint_froze_is_not_taken_for_what_came_after_it() {
    let leaves = 4;
    let mut host = written(ROOMY, leaves);
    host.restart();
    host.io(IoCode::Discard, 0, 2 * LEAF);
    host.load();
    // A checkpoint freezes what is to be walked over; the walk ends before it is stored.
    host.now_us += 10_000_000;
    host.tick();
    assert_eq!(host.checkpoints.len(), 1);
    host.load();
    host.turn();
    host.io(IoCode::Discard, 2 * LEAF, 2 * LEAF);
    host.load();
    host.store();
    host.store();
    host.checkpoint();
    assert_eq!(host.live(), 0);
}

#[test]
fn a_walk_over_a_large_snapshot_lets_go_of_what_it_has_seen() {
    let leaves = 1500;
    let mut host = written(1 << 20, leaves);
    host.take(1);
    for leaf in 0..leaves {
        let write = host.io(IoCode::Write, leaf * LEAF, 4096);
        while !host.is_done(write) {
            host.load();
            host.store();
            host.now_us += 1_000_000;
            host.tick();
        }
        host.store();
    }
    host.checkpoint();
    assert_eq!(host.live(), 2 * leaves);
    host.restart();
    host.ask(Ask::Remove { name: "s1".into() });
    host.tick();
    let mut most = 0;
    while let Some((place, reference)) = host.loads.pop() {
        let result = Ok(host.records(reference));
        host.feed(Event::NodeLoaded {
            place,
            reference,
            result,
        });
        host.now_us += 10_000;
        host.end_batch();
        host.turn();
        most = most.max(host.volume.status().map_memory.0);
    }
    assert!(most < 1 << 19, "{most} bytes of map nodes");
    host.checkpoint();
    assert_eq!(host.live(), leaves);
}

#[test]
fn removed_snapshots_are_reaped_one_after_the_other_without_waiting_for_ticks() {
    let mut host = Host::new(ROOMY);
    for id in 1..=20 {
        host.io(IoCode::Write, 0, 4096);
        host.take(id);
    }
    host.checkpoint();
    assert_eq!(host.live(), 20);
    for id in 1..=20 {
        host.ask(Ask::Remove {
            name: format!("s{id}"),
        });
    }
    host.tick();
    host.load();
    assert_eq!(host.live(), 1);
}
