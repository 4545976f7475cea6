//! A volume at its owner: an engine and a host that takes its time.
//!
//! Keeps: the SCOs of the write buffer, and what is under way.
//! Order: what takes time ends in an order drawn from the seed.
//! Crash: what is under way is forgotten; the write buffer and the back ends stay.
//! Knows no model.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use sconce_schemas::checkpoint::{NodePlace, NodeRef};
use sconce_schemas::manifest::Manifest;
use sconce_schemas::records::{DtlMode, EpochStart};
use sconce_schemas::sco::{HEADER_LEN, ScoHeader};
use sconce_schemas::wire::volume::VolumeReply;
use sconce_schemas::wire::{Refusal, RefusalCode};
use sconce_schemas::{
    BatchSeq, ByteLen, Epoch, ObjectName, ScoId, ScoSize, SessionId, Slot, VolumeId, VolumeSize,
};
use sconce_volume::{
    CheckpointPolicy, CloneOf, Effect, Event, Extent, FetchId, Frozen, Origin, Recovery, ScoImage,
    ScrubPolicy, SessionSlot, Step, SweepPolicy, Ticket, Volume, VolumeConfig,
};

use crate::closure;
use crate::store::{Store, index, sco_size};

/// Three levels of the map.
pub(crate) const SIZE: u64 = 4 << 30;

enum Pending {
    List,
    Turn,
    Sync(BatchSeq),
    ScoSync(ScoId),
    Upload(ScoId, ObjectName, Bytes),
    Checkpoint(Arc<Frozen>),
    Manifest(Box<Manifest>),
    Node(NodePlace, NodeRef),
    Fetch(FetchId, Extent),
    Copy(Vec<Extent>),
    ReadLog(ScoId, Epoch, bool),
    Independent,
}

pub(crate) struct Host {
    pub(crate) id: VolumeId,
    pub(crate) volume: Volume,
    pub(crate) lineage: Vec<VolumeId>,
    epoch: Epoch,
    epochs: Vec<EpochStart>,
    pub(crate) session: SessionSlot,
    local: BTreeMap<ScoId, (ScoHeader, Vec<u8>)>,
    evictable: Vec<ScoId>,
    pending: Vec<Pending>,
    pub(crate) now_us: u64,
    pub(crate) chance: fastrand::Rng,
    pub(crate) replies: BTreeMap<Ticket, VolumeReply>,
    pub(crate) reads: BTreeMap<Ticket, Vec<Extent>>,
    map_memory: u64,
    /// The registry knows that the clone is independent.
    pub(crate) independent: bool,
    /// Reads for a flattening that failed.
    pub(crate) failed: u64,
}

fn config(
    id: VolumeId,
    epoch: Epoch,
    epochs: Vec<EpochStart>,
    memory: u64,
    origin: Option<CloneOf>,
) -> VolumeConfig {
    VolumeConfig {
        id,
        epoch,
        path: format!("/flatten/{}", id.0[0]),
        pool: "default".into(),
        sco_size: sco_size(),
        initial_size: VolumeSize::new(SIZE).unwrap(),
        epochs,
        origin,
        map_memory: ByteLen(memory),
        checkpoint: CheckpointPolicy {
            entries_max: 300,
            idle_us: 2_000_000,
            age_us: 20_000_000,
            // Renewals and flattening walk the same map.
            renewal_bytes: 4 << 10,
            renewal_step: 2,
        },
        // What scrubs and sweeps do is no part of this.
        scrub: ScrubPolicy {
            enabled: false,
            ..ScrubPolicy::default()
        },
        sweep: SweepPolicy {
            every_us: 0,
            ..SweepPolicy::default()
        },
        dtl: DtlMode::None,
        dtl_behind: ByteLen(0),
    }
}

impl Host {
    pub(crate) fn new(id: VolumeId, chance: fastrand::Rng, origin: Option<CloneOf>) -> Self {
        let mut chance = chance;
        let map_memory = [8 << 10, 64 << 10, 1 << 20][chance.usize(0..3)];
        let lineage = origin
            .as_ref()
            .map_or_else(Vec::new, |origin| origin.manifest.lineage.clone());
        let config = config(id, Epoch::FIRST, Vec::new(), map_memory, origin);
        let mut recovery = Recovery::new(config, None, &[]).unwrap();
        assert_eq!(recovery.step(), Step::Done);
        let (mut volume, recovered) = recovery.finish();
        let session = volume.open_session(SessionId(1)).unwrap();
        let mut host = Self {
            id,
            volume,
            lineage: lineage.into_iter().chain([id]).collect(),
            epoch: Epoch::FIRST,
            epochs: vec![EpochStart {
                epoch: Epoch::FIRST,
                first_sco: recovered.next_sco,
            }],
            session,
            local: BTreeMap::new(),
            evictable: Vec::new(),
            pending: Vec::new(),
            now_us: 1,
            chance,
            replies: BTreeMap::new(),
            reads: BTreeMap::new(),
            map_memory,
            independent: false,
            failed: 0,
        };
        host.tick();
        host
    }

    pub(crate) fn feed(&mut self, event: Event) {
        let mut effects = Vec::new();
        self.volume.apply(event, &mut effects);
        self.carry_out(effects);
        let mut effects = Vec::new();
        let now_us = self.now_us;
        self.volume.apply(Event::BatchEnd { now_us }, &mut effects);
        self.carry_out(effects);
    }

    pub(crate) fn tick(&mut self) {
        self.now_us += self.chance.u64(1..2_000_000);
        let (now_us, pressed) = (self.now_us, self.chance.u8(0..8) == 0);
        self.feed(Event::Tick { now_us, pressed });
    }

    fn carry_out(&mut self, mut effects: Vec<Effect>) {
        while !effects.is_empty() {
            let mut next = Vec::new();
            for effect in effects {
                if let Some(event) = self.begin(effect) {
                    self.volume.apply(event, &mut next);
                }
            }
            effects = next;
        }
    }

    /// What is done at once; the rest is under way.
    fn begin(&mut self, effect: Effect) -> Option<Event> {
        let pending = match effect {
            Effect::OpenSco { header } => {
                let mut image = vec![0; index(sco_size().file_len())];
                image[..HEADER_LEN].copy_from_slice(&header.to_bytes());
                self.local.insert(header.id, (header, image));
                return Some(Event::ScoOpened { sco: header.id });
            }
            Effect::Append(append) => {
                let (_, image) = self.local.get_mut(&append.sco).unwrap();
                let at = index(ScoSize::HEADER_AREA + append.tlog_offset);
                image[at..at + append.tlog.len()].copy_from_slice(&append.tlog);
                let (at, data) = (
                    index(sco_size().slot_offset(append.first_slot)),
                    append.data.concat(),
                );
                image[at..at + data.len()].copy_from_slice(&data);
                return Some(Event::AppendHeld { upto: append.seq });
            }
            Effect::Read { ticket, extents } => {
                self.reads.insert(ticket, extents);
                return None;
            }
            Effect::Reply { ticket, reply } => {
                self.replies.insert(ticket, reply);
                return None;
            }
            Effect::Upload {
                sco, epoch, length, ..
            } => {
                let name = self.name_of(sco, epoch);
                let bytes = Bytes::copy_from_slice(&self.local[&sco].1[..index(length.0)]);
                Pending::Upload(sco, name, bytes)
            }
            Effect::Evictable { sco } => {
                self.evictable.push(sco);
                return None;
            }
            Effect::CloseSco { sco } => Pending::ScoSync(sco),
            Effect::Sync { upto } => Pending::Sync(upto),
            Effect::Turn => Pending::Turn,
            Effect::Fetch { fetch, from } => Pending::Fetch(fetch, from),
            Effect::LoadNode { place, reference } => Pending::Node(place, reference),
            Effect::StoreCheckpoint { frozen } => Pending::Checkpoint(frozen),
            Effect::StoreManifest { manifest } => Pending::Manifest(manifest),
            Effect::ReadTlog { .. } | Effect::WriteBundle { .. } | Effect::DeleteSco { .. } => {
                panic!("scrubbing is off")
            }
            Effect::Copy { extents } => Pending::Copy(extents),
            Effect::List { .. } => Pending::List,
            Effect::Delete { .. } => panic!("nothing is listed"),
            Effect::Independent => Pending::Independent,
            Effect::Hold { .. } => return None,
            Effect::ReadLog { sco, epoch, local } => Pending::ReadLog(sco, epoch, local),
            Effect::TwinOpen { .. }
            | Effect::TwinCopy { .. }
            | Effect::TwinSync { .. }
            | Effect::TwinRelease { .. }
            | Effect::RecordInSync
            | Effect::RecordDegraded => panic!("it has no twin"),
            Effect::Halt { reason } => panic!("{reason}"),
        };
        self.pending.push(pending);
        None
    }

    /// Ends one thing that is under way; `false`: there is none.
    pub(crate) fn finish_one(&mut self, store: &mut Store) -> bool {
        if self.pending.is_empty() {
            return false;
        }
        let at = self.chance.usize(0..self.pending.len());
        let event = match self.pending.swap_remove(at) {
            Pending::Turn => Event::Turn,
            Pending::List => Event::Listed {
                result: Ok(Vec::new()),
            },
            Pending::Sync(upto) => Event::Synced { upto },
            Pending::ScoSync(sco) => Event::ScoSynced { sco },
            Pending::Upload(sco, name, bytes) => {
                store.put(name, &bytes);
                Event::ScoStored { sco }
            }
            Pending::Checkpoint(frozen) => {
                let (objects, roots) = frozen.encode().unwrap();
                drop(frozen);
                for object in objects {
                    let name = ObjectName::Map {
                        volume: self.id,
                        id: object.id,
                        epoch: object.epoch,
                    };
                    store.put(name, &object.bytes);
                }
                Event::CheckpointStored { roots }
            }
            Pending::Manifest(manifest) => self.store_manifest(store, &manifest),
            Pending::Node(place, reference) => Event::NodeLoaded {
                place,
                reference,
                result: Ok(store.node(&self.lineage, reference)),
            },
            Pending::Fetch(fetch, from) => Event::Fetched {
                fetch,
                result: Ok(self.clusters(store, &from).swap_remove(0)),
            },
            Pending::Copy(extents) => self.copied(store, &extents),
            Pending::ReadLog(sco, epoch, local) => self.log_read(store, sco, epoch, local),
            Pending::Independent => {
                self.independent = true;
                return true;
            }
        };
        self.feed(event);
        true
    }

    fn store_manifest(&self, store: &mut Store, manifest: &Manifest) -> Event {
        let name = ObjectName::Manifest {
            volume: self.id,
            seq: manifest.seq,
            epoch: manifest.epoch,
        };
        if manifest.independent {
            closure::check(store, manifest);
        }
        store.put(name, &manifest.to_bytes().into());
        Event::ManifestStored { seq: manifest.seq }
    }

    fn log_read(&self, store: &Store, sco: ScoId, epoch: Epoch, local: bool) -> Event {
        let here = self.local.get(&sco).filter(|_| local);
        let image = match here {
            Some((_, image)) => image,
            None => &store.objects[&self.name_of(sco, epoch)][..],
        };
        let length = index(sco_size().data_offset());
        let result = Ok(Bytes::copy_from_slice(&image[..length]));
        Event::LogRead { sco, epoch, result }
    }

    fn copied(&mut self, store: &Store, extents: &[Extent]) -> Event {
        if self.chance.u8(0..8) == 0 {
            self.failed += 1;
            let refusal = Refusal::retry(RefusalCode::Unavailable, "the back ends are away");
            return Event::Copied { result: Err(refusal) };
        }
        let clusters = extents.iter().flat_map(|extent| self.clusters(store, extent));
        Event::Copied {
            result: Ok(clusters.collect()),
        }
    }

    fn name_of(&self, id: ScoId, epoch: Epoch) -> ObjectName {
        ObjectName::Sco {
            volume: self.id,
            id,
            epoch,
            version: 0,
        }
    }

    /// What an extent holds.
    pub(crate) fn clusters(&self, store: &Store, extent: &Extent) -> Vec<Bytes> {
        match extent {
            Extent::Zeros { length } => vec![Bytes::from_static(&[0; 4096]); (*length / 4096) as usize],
            Extent::Local {
                sco,
                first_slot,
                crcs,
            } => {
                let (_, image) = &self.local[sco];
                let slots = (first_slot.0..).map(Slot).zip(crcs);
                slots
                    .map(|(slot, _)| {
                        let at = index(sco_size().slot_offset(slot));
                        Bytes::copy_from_slice(&image[at..at + 4096])
                    })
                    .collect()
            }
            Extent::Stored { .. } => store.clusters(extent),
        }
    }

    /// The buffer needs room.
    pub(crate) fn evict_some(&mut self) {
        let most = self.chance.usize(0..=self.evictable.len());
        for sco in self.evictable.drain(..most).collect::<Vec<_>>() {
            self.local.remove(&sco);
            self.feed(Event::Evicted { sco });
        }
    }

    /// Until nothing is under way and the newest manifest has everything.
    pub(crate) fn settle(&mut self, store: &mut Store) {
        for _ in 0..200_000 {
            if self.finish_one(store) {
                continue;
            }
            let status = self.volume.status();
            if !status.dirty && !status.wants_ticks {
                return;
            }
            self.tick();
        }
        panic!(
            "it does not settle: {:?} {:?}",
            self.volume.status(),
            self.volume.flatten_status()
        );
    }

    /// `kill -9`, and the next ownership.
    pub(crate) fn crash(&mut self, store: &Store) {
        self.pending.clear();
        self.evictable.clear();
        self.replies.clear();
        self.reads.clear();
        self.epoch = self.epoch.next();
        let headers: Vec<ScoHeader> = self.local.values().map(|(header, _)| *header).collect();
        let manifest = store.newest_manifest(self.id);
        let origin = None;
        let epochs = self.epochs.clone();
        let config = config(self.id, self.epoch, epochs, self.map_memory, origin);
        let mut recovery = Recovery::new(config, manifest.as_ref(), &headers).unwrap();
        loop {
            match recovery.step() {
                Step::NeedSco {
                    sco,
                    epoch,
                    stored_only,
                    ..
                } => {
                    let local = self.local.get(&sco).filter(|_| !stored_only);
                    let name = self.name_of(sco, epoch);
                    recovery.sco(match local {
                        Some((_, image)) => Some(ScoImage {
                            bytes: Bytes::copy_from_slice(image),
                            origin: Origin::Local,
                        }),
                        None => store.objects.get(&name).map(|bytes| ScoImage {
                            bytes: bytes.clone(),
                            origin: Origin::Stored,
                        }),
                    });
                }
                Step::NeedNode { reference, .. } => recovery.node(Ok(store.node(&self.lineage, reference))),
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
        for header in &headers {
            if recovered.unstored.contains(&header.id) {
                self.pending.push(Pending::ScoSync(header.id));
            } else if volume.adopt_local(header.id, header.epoch) {
                self.evictable.push(header.id);
            } else {
                self.local.remove(&header.id);
            }
        }
        self.session = volume.open_session(SessionId(1)).unwrap();
        self.volume = volume;
        if self.volume.is_independent() && !self.independent {
            self.pending.push(Pending::Independent);
        }
        let now_us = self.now_us;
        self.feed(Event::BatchEnd { now_us });
    }

    pub(crate) fn has_manifest(&self, store: &Store) -> bool {
        store.newest_manifest(self.id).is_some()
    }
}
