//! The host: carries out what the volume asks for, at once or some time later.
//!
//! Keeps: what is under way, in the world.
//! Order: what takes time ends in an order drawn from the seed.
//! Crash: before any effect (`crash_in` counts them), or in the middle of a batch's writes.
//! Knows no client but by its answers.

use bytes::Bytes;
use sconce_schemas::checkpoint::{NodePlace, NodeRef};
use sconce_schemas::crc::crc32c;
use sconce_schemas::manifest::Manifest;
use sconce_schemas::wire::{Refusal, RefusalCode};
use sconce_schemas::{ByteLen, ObjectName, ScoId, ScoSize};
use sconce_volume::{Effect, Event};

use super::stored::epoch_at;
use super::{Pending, World};

impl World {
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
                    if self.chance.bool() {
                        self.tell_twin(append);
                    }
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
                self.tell_twin(&append);
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
                let cluster = self.clusters(&from).swap_remove(0);
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
                let bytes = self.object(sco, tlog_len, length);
                let name = ObjectName::Sco {
                    volume: self.id,
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
            Effect::ReadLog { sco, epoch, local } => {
                self.pending.push(Pending::ReadLog { sco, epoch, local });
            }
            Effect::Hold { snapshot } => {
                self.asks.held(snapshot);
                self.pending.push(Pending::HoldOver(snapshot));
            }
            Effect::ReadTlog { object } => self.pending.push(Pending::ReadTlog(object)),
            Effect::WriteBundle { plan } => self.pending.push(Pending::Bundle(plan)),
            Effect::DeleteSco { object } => self.pending.push(Pending::Delete(object)),
            Effect::List { kind, after } => self.pending.push(Pending::List(kind, after)),
            Effect::Delete { names } => self.pending.push(Pending::Sweep(names)),
            effect @ (Effect::TwinOpen { .. }
            | Effect::TwinCopy { .. }
            | Effect::TwinSync { .. }
            | Effect::TwinRelease { .. }
            | Effect::RecordInSync
            | Effect::RecordDegraded) => self.carry_out_for_twin(&effect),
            Effect::Copy { .. } | Effect::Independent => panic!("the volume is no clone"),
            Effect::Halt { reason } => panic!("halted: {reason}"),
        }
    }

    /// A local SCO as it is stored.
    pub(super) fn object(&self, sco: ScoId, tlog_len: ByteLen, length: ByteLen) -> Bytes {
        let image = self.disk.image(sco, length.0);
        let mut bytes = image.expect("an upload is local").to_vec();
        let used = usize::try_from(ScoSize::HEADER_AREA + tlog_len.0).unwrap();
        let data = usize::try_from(ScoSize::new(64).unwrap().data_offset()).unwrap();
        bytes[sconce_schemas::sco::HEADER_LEN..4096].fill(0);
        bytes[used..data].fill(0);
        bytes.into()
    }

    pub(super) fn open_if_possible(&mut self) {
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

    /// Stores an object; whether it was not there.
    pub(crate) fn put(&mut self, name: ObjectName, bytes: Bytes) -> bool {
        let crc = crc32c(&bytes);
        let before = self.contents.insert(name, crc);
        assert!(
            before.is_none_or(|before| before == crc),
            "{name} was stored with other bytes"
        );
        self.store.insert(name, bytes).is_none()
    }

    /// Finishes one thing that is under way, any one.
    pub(super) fn finish_one(&mut self) {
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
                self.put(name, bytes);
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
                        volume: self.id,
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
                assert!(self.put(name, bytes), "{name} is there already");
                if let Some((_, left)) = &mut self.storing {
                    *left -= 1;
                }
                self.checkpoint_progress();
            }
            Pending::Manifest(manifest) => {
                self.check_manifest(&manifest);
                let bytes = manifest.to_bytes();
                let name = ObjectName::Manifest {
                    volume: self.id,
                    seq: manifest.seq,
                    epoch: manifest.epoch,
                };
                assert!(self.put(name, bytes.into()), "{name} is there already");
                self.check_floors(&manifest);
                let seq = manifest.seq;
                self.manifest = Some(*manifest);
                self.feed(Event::ManifestStored { seq });
            }
            Pending::LoadNode { place, reference } => {
                // The back end is not always there.
                let result = match self.chance.u32(0..60) {
                    0 if !self.settling => Err(Refusal::retry(RefusalCode::Unavailable, "no back end now")),
                    _ => self.load_node(&reference),
                };
                self.feed(Event::NodeLoaded {
                    place,
                    reference,
                    result,
                });
            }
            Pending::Turn => self.feed(Event::Turn),
            Pending::RecordInSync => self.record_in_sync(),
            Pending::RecordDegraded => self.record_degraded(),
            Pending::HoldOver(snapshot) => {
                self.asks.let_go(snapshot);
                self.feed(Event::HoldOver { snapshot });
            }
            Pending::ReadTlog(object) => self.read_tlog(object),
            Pending::ReadLog { sco, epoch, local } => self.read_log(sco, epoch, local),
            Pending::Bundle(plan) => self.write_bundle(&plan),
            Pending::Delete(object) => self.delete_sco(object),
            Pending::List(kind, after) => self.list(kind, after),
            Pending::Sweep(names) => self.sweep(&names),
            Pending::Fetch { fetch, cluster } => {
                self.feed(Event::Fetched {
                    fetch,
                    result: Ok(cluster),
                });
            }
        }
    }

    /// Tells the volume once all objects of its checkpoint are stored.
    pub(super) fn checkpoint_progress(&mut self) {
        if let Some((roots, _)) = self.storing.take_if(|(_, left)| *left == 0) {
            self.feed(Event::CheckpointStored { roots });
        }
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

    /// A manifest may only refer to what is stored.
    pub(super) fn check_manifest(&self, manifest: &Manifest) {
        let first = self
            .manifest
            .as_ref()
            .map_or(ScoId::NONE, |m| m.covered_sco)
            .next();
        for id in first.0..=manifest.covered_sco.0 {
            let id = ScoId(id);
            let epoch = epoch_at(&manifest.epochs, id);
            let name = ObjectName::Sco {
                volume: self.id,
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
    pub(crate) fn settle(&mut self) {
        self.settling = true;
        for _ in 0..100_000 {
            let numbers: Vec<u64> = self.outstanding.keys().copied().collect();
            if !self.twin_is_quiet() {
                self.finish_one_of_twin();
            } else if self.pending.is_empty() {
                let status = self.volume.status();
                if numbers.is_empty() && !status.dirty && !status.wants_ticks {
                    self.settling = false;
                    return;
                }
                for number in numbers {
                    // One may be answered while others are sent.
                    if self.outstanding.contains_key(&number) {
                        self.send(number);
                    }
                }
                self.feed(Event::BatchEnd { now_us: self.now_us });
                self.now_us += 10_000_000;
                self.feed(Event::Tick {
                    now_us: self.now_us,
                    pressed: self.disk.free_files() + self.evictable.len() < 3,
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
}
