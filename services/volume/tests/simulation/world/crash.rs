//! Crashes: what is lost with each, and what has to come back.
//!
//! Keeps: nothing.
//! Order: what is under way is forgotten, the disk loses what it may lose, then the volume is recovered and compared.
//! Crash: this is it.
//! Knows no effects.

use bytes::Bytes;
use sconce_schemas::manifest::Manifest;
use sconce_schemas::object::ObjectKind;
use sconce_schemas::records::EpochStart;
use sconce_schemas::sco::ScoHeader;
use sconce_schemas::wire::volume::IoCode;
use sconce_schemas::{BatchSeq, ObjectName, ScoSize, VolumeId};
use sconce_volume::{Origin, Recovered, Recovery, ScoImage, Step, Volume};

use super::{Loss, Pending, World, config};
use crate::disk::Disk;

impl World {
    pub(super) fn crash(&mut self) {
        self.crash_in = None;
        self.crashes += 1;
        let loss = match self.chance.u32(0..10) {
            _ if self.twins.in_sync && self.chance.bool() => Loss::Machine,
            0..5 => Loss::Nothing,
            5..9 => Loss::Unsynced,
            _ => Loss::Disk,
        };
        match loss {
            Loss::Nothing => {}
            Loss::Unsynced => self.disk.power_loss(&mut self.chance),
            Loss::Disk | Loss::Machine => {}
        }
        let taken_over = match loss {
            Loss::Machine => self.lose_owner(),
            _ => None,
        };
        if taken_over.is_none() && matches!(loss, Loss::Disk | Loss::Machine) {
            self.disk = Disk::new(ScoSize::new(64).unwrap(), self.chance.usize(6..40));
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
            Loss::Disk | Loss::Machine => {}
        }
        if let Some(promised) = taken_over {
            assert!(
                upto >= promised,
                "the twin was in sync, batches up to {promised} were promised, {upto} came back"
            );
        }
        let expected = self.log.state_at(upto);
        let state = self.read_all();
        state.assert_is(
            &expected,
            &format!("the log's prefix up to {upto}, after {loss:?}"),
        );
        self.forget_lost_moments();
        self.check_snapshots(upto);
        self.check_comparisons(1);
        let rolled = self.asks.forget();
        if loss != Loss::Nothing || rolled {
            // A growth that was lost takes the writes behind it along.
            let size = state.size;
            self.outstanding
                .retain(|_, o| o.request.code == IoCode::Resize || o.sectors.end * 512 <= size);
            self.model = state;
        }
        self.log.truncate(upto);
        self.forget_twin(upto);
        self.held = upto;
        if loss != Loss::Nothing && taken_over.is_none() {
            // What came back was on the platter or on the back end.
            self.flushed = upto;
        }
        // The client resends what was not answered, under the same numbers.
        self.resend();
    }

    /// A recovery with a damaged file: either nothing is lost that a header proves synced, or it says so and names the
    /// SCO, and changes nothing. Then the file is as it was.
    pub(super) fn recover_damaged(&mut self) {
        let Some((sco, damaged)) = self.disk.damage(&mut self.chance) else {
            return;
        };
        let (_, recovered, headers) = self.replay();
        let upto = self.last_batch(&recovered);
        let statements = || headers.iter().map(|header| header.synced_below);
        let last_before = |behind: &ScoHeader| behind.first_batch.prev();
        let behind = statements().filter_map(|below| self.headers.get(&below));
        let proven = behind.map(last_before).max().unwrap_or_default();
        // What says with which batch the synced SCOs end is the header behind them; a power loss may take it and spare a
        // later one.
        let here = statements().filter_map(|below| headers.iter().find(|header| header.id == below));
        let provable = here.map(last_before).max().unwrap_or_default();
        match &recovered.damaged {
            Some(found) => {
                assert!(upto < proven, "a false alarm: {found}");
                assert_eq!(found.sco, sco, "{found}");
                self.damages += 1;
            }
            None => assert!(
                upto >= provable,
                "batches up to {provable} were synced, {upto} came back, and nobody said so"
            ),
        }
        self.disk.flip(&damaged);
    }

    /// What a host does at a start: claim an epoch, recover, seal, sync, adopt, serve.
    pub(super) fn recover(&mut self) -> BatchSeq {
        self.pending.clear();
        self.evictable.clear();
        self.storing = None;
        self.waiting_open = None;
        self.reads.clear();
        self.flushes.clear();
        self.comparisons.forget();
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
    pub(super) fn replay(&mut self) -> (Volume, Recovered, Vec<ScoHeader>) {
        self.epoch = self.epoch.next();
        let epochs = self.epochs.clone();
        let headers = self
            .disk
            .scan(|sco| epochs.iter().rev().find(|e| e.first_sco <= sco).map(|e| e.epoch));
        let manifest = self.newest_manifest();
        let mut config = config(self.id, self.epoch, self.epochs.clone(), self.map_memory);
        config.dtl = self.twins.mode;
        config.origin = self.origin();
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
                        volume: self.id,
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
                Step::NeedNode { reference, .. } => recovery.node(self.load_node(&reference)),
                Step::Failed(refusal) => panic!("{refusal}"),
                Step::Done => break,
            }
        }
        let (volume, recovered) = recovery.finish();
        (volume, recovered, headers)
    }

    pub(super) fn last_batch(&self, recovered: &Recovered) -> BatchSeq {
        let covered = self.newest_manifest().map_or(BatchSeq::NONE, |m| m.covered);
        BatchSeq(covered.0 + recovered.replayed)
    }

    pub(crate) fn newest_manifest(&self) -> Option<Manifest> {
        self.newest_manifest_of(self.id)
    }

    pub(crate) fn newest_manifest_of(&self, volume: VolumeId) -> Option<Manifest> {
        let names = self
            .store
            .iter()
            .filter(|(name, _)| name.kind() == ObjectKind::Manifest && name.volume() == volume);
        let manifests = names.map(|(_, bytes)| Manifest::from_bytes(bytes).unwrap());
        manifests.max_by_key(|manifest| (manifest.epoch, manifest.seq))
    }
}
