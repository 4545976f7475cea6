//! A host that keeps what is stored in memory, so that a volume can begin again from its manifest with nothing in memory.
//!
//! Keeps: SCOs, checkpoints, the newest manifest.
//! Order: what takes time ends when a test says so; nodes are loaded then too.
//! Crash: [`Host::restart`] begins from what is stored.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use sconce_schemas::checkpoint::{NodePlace, NodeRecord, NodeRef, decode_node};
use sconce_schemas::manifest::Manifest;
use sconce_schemas::object::ObjectKind;
use sconce_schemas::records::{DtlMode, EpochStart};
use sconce_schemas::sco::ScoHeader;
use sconce_schemas::wire::volume::{IoCode, IoFlags, IoRequest, VolumeReply};
use sconce_schemas::wire::{Refusal, RefusalCode};
use sconce_schemas::{
    ByteLen, CheckpointId, Epoch, ObjectName, ScoId, ScoSize, SessionId, SnapshotId, VolumeId, VolumeSize,
};
use sconce_volume::{
    Ask, CheckpointPolicy, Effect, Event, FetchId, Frozen, Origin, Recovery, ScoImage, ScrubPolicy,
    SessionSlot, Step, SweepPolicy, Ticket, Volume, VolumeConfig,
};

pub(crate) const VOLUME: VolumeId = VolumeId([5; 16]);
pub(crate) const SIZE: u64 = 1 << 40;
pub(crate) const ROOMY: u64 = 256 << 20;
/// What a leaf of the map covers.
pub(crate) const LEAF: u64 = 2 << 20;

pub(crate) struct Host {
    pub(crate) volume: Volume,
    pub(crate) map_memory: u64,
    pub(crate) epoch: Epoch,
    pub(crate) epochs: Vec<EpochStart>,
    pub(crate) session: SessionSlot,
    pub(crate) number: u64,
    pub(crate) now_us: u64,
    pub(crate) turns: usize,
    pub(crate) syncs: Vec<Event>,
    pub(crate) fetches: Vec<FetchId>,
    pub(crate) closed: Vec<ScoId>,
    pub(crate) uploads: Vec<ScoId>,
    pub(crate) checkpoints: Vec<Arc<Frozen>>,
    pub(crate) manifests: Vec<Manifest>,
    pub(crate) loads: Vec<(NodePlace, NodeRef)>,
    pub(crate) replies: Vec<(u64, VolumeReply)>,
    /// What is stored.
    pub(crate) scos: BTreeMap<ScoId, Vec<u8>>,
    pub(crate) objects: HashMap<(Epoch, CheckpointId), Bytes>,
    pub(crate) manifest: Option<Manifest>,
}

fn index(offset: u64) -> usize {
    usize::try_from(offset).unwrap()
}

impl Host {
    pub(crate) fn new(map_memory: u64) -> Self {
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
    pub(crate) fn restart(&mut self) {
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

    pub(crate) fn records(&self, reference: NodeRef) -> Vec<NodeRecord> {
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

    pub(crate) fn feed(&mut self, event: Event) {
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
                Effect::List { kind, after } => {
                    let page = self.page(kind, after);
                    self.feed(Event::Listed { result: Ok(page) });
                }
                Effect::Delete { names } => {
                    for name in names {
                        let ObjectName::Map { id, epoch, .. } = name else {
                            panic!("{name}");
                        };
                        self.objects.remove(&(epoch, id)).unwrap();
                    }
                    self.feed(Event::Deleted { done: true });
                }
                other => panic!("{other:?}"),
            }
        }
    }

    /// Only checkpoints are listed.
    fn page(&self, kind: ObjectKind, after: Option<ObjectName>) -> Vec<ObjectName> {
        let maps = self.objects.keys().map(|(epoch, id)| ObjectName::Map {
            volume: VOLUME,
            id: *id,
            epoch: *epoch,
        });
        let behind = |name: &ObjectName| name.kind() == kind && after.is_none_or(|after| *name > after);
        let mut names: Vec<_> = maps.filter(behind).collect();
        names.sort_unstable();
        names
    }

    pub(crate) fn request(&mut self, code: IoCode, flags: u8, offset: u64, length: u64) -> IoRequest {
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
    pub(crate) fn io(&mut self, code: IoCode, offset: u64, length: u64) -> u64 {
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

    pub(crate) fn ask(&mut self, ask: Ask) -> u64 {
        self.number += 1;
        self.feed(Event::Ask {
            ticket: Ticket(self.number),
            ask,
            now_us: self.now_us,
        });
        self.end_batch();
        self.number
    }

    pub(crate) fn take(&mut self, id: u64) {
        let taken = self.ask(Ask::Take {
            id: SnapshotId(id),
            name: format!("s{id}"),
            metadata: BTreeMap::new(),
        });
        assert!(self.is_done(taken));
    }

    pub(crate) fn end_batch(&mut self) {
        self.feed(Event::BatchEnd { now_us: self.now_us });
        for synced in std::mem::take(&mut self.syncs) {
            self.feed(synced);
        }
    }

    pub(crate) fn tick(&mut self) {
        self.feed(Event::Tick {
            now_us: self.now_us,
            pressed: false,
        });
        self.end_batch();
    }

    pub(crate) fn turn(&mut self) {
        while std::mem::take(&mut self.turns) > 0 {
            self.feed(Event::Turn);
            self.end_batch();
        }
    }

    pub(crate) fn one_turn(&mut self) {
        if self.turns > 0 {
            self.turns -= 1;
            self.feed(Event::Turn);
            self.end_batch();
        }
    }

    /// Loads what is asked for, until nothing is.
    pub(crate) fn load(&mut self) {
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
    pub(crate) fn store(&mut self) {
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
    pub(crate) fn checkpoint(&mut self) {
        for _ in 0..20 {
            self.now_us += 10_000_000;
            self.tick();
            self.load();
            self.store();
            self.store();
        }
        assert!(!self.volume.status().dirty, "{:?}", self.volume.status());
    }

    pub(crate) fn reply(&self, number: u64) -> Option<&VolumeReply> {
        let found = self.replies.iter().find(|(ticket, _)| *ticket == number);
        found.map(|(_, reply)| reply)
    }

    pub(crate) fn is_done(&self, number: u64) -> bool {
        matches!(self.reply(number), Some(VolumeReply::Done))
    }

    pub(crate) fn refusal(&self, number: u64) -> RefusalCode {
        match self.reply(number) {
            Some(VolumeReply::Refused(refusal)) => refusal.code,
            other => panic!("{other:?}"),
        }
    }

    /// Slots that the SCO table says are live.
    pub(crate) fn live(&mut self) -> u64 {
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
        checkpoint: CheckpointPolicy {
            renewal_bytes: 16 << 10,
            renewal_step: 1,
            ..CheckpointPolicy::default()
        },
        scrub: ScrubPolicy::default(),
        sweep: SweepPolicy {
            every_us: 0,
            ..SweepPolicy::default()
        },
        dtl: DtlMode::None,
        dtl_behind: ByteLen(0),
    }
}

/// One cluster in each of the first leaves.
pub(crate) fn written(map_memory: u64, leaves: u64) -> Host {
    let mut host = Host::new(map_memory);
    for leaf in 0..leaves {
        host.io(IoCode::Write, leaf * LEAF, 4096);
        host.store();
    }
    host.checkpoint();
    host
}
