//! Recovery: from a manifest and the SCOs after it to a volume that can serve.
//!
//! Keeps: the volume under construction and the batch that is being replayed.
//! Order: SCOs by id, batches by number; it ends at the first batch that is not whole. A crash ends the log only behind what
//! was synced; an end before what a later header proves synced is damage, and said ([`Damage`]).
//! Crash: it can begin again at any time; it changes nothing that is stored.
//! Knows no files: the host brings what [`Recovery::step`] asks for.

use bytes::Bytes;
use sconce_schemas::checkpoint::{NodePlace, NodeRecord, NodeRef};
use sconce_schemas::ids::Location;
use sconce_schemas::log_record::LogRecord;
use sconce_schemas::manifest::Manifest;
use sconce_schemas::records::EpochStart;
use sconce_schemas::sco::ScoHeader;
use sconce_schemas::wire::Refusal;
use sconce_schemas::{
    BatchSeq, ByteLen, ClusterAddress, Epoch, ScoId, SessionId, Slot, SnapshotId, VolumeSize,
};

use crate::event::SessionSlot;
use crate::frontier::Frontier;
use crate::log::Log;
use crate::replay::{Progress, RecordPlace, Replay, Target};
use crate::tree::Missing;
use crate::volume::{Volume, VolumeConfig, epoch_at};

/// Why a recovery cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    /// The manifest is of another volume, or of an ownership after this one.
    #[error("volume {volume}: the manifest {seq} of epoch {epoch} does not fit epoch {own}")]
    Foreign {
        /// The volume's path.
        volume: String,
        /// The manifest's number.
        seq: u64,
        /// The manifest's epoch.
        epoch: Epoch,
        /// The new epoch.
        own: Epoch,
    },
    /// The volume begins as a snapshot that the other volume's manifest does not have.
    #[error(
        "volume {volume}: it is a clone of snapshot {snapshot}, which manifest {seq} of its parent does not have"
    )]
    NoOrigin {
        /// The clone's path.
        volume: String,
        /// The parent's snapshot.
        snapshot: SnapshotId,
        /// The parent's manifest.
        seq: u64,
    },
}

/// Where a SCO's bytes came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The write buffer: perhaps torn, so its clusters are checked.
    Local,
    /// The back ends: it was complete when it was stored.
    Stored,
}

/// A SCO, from its first byte as far as it goes; what lies in the data area is needed only of local SCOs from
/// `synced_below` on.
#[derive(Debug, Clone)]
pub struct ScoImage {
    /// Header area, TLog area, data area.
    pub bytes: Bytes,
    /// Where they came from.
    pub origin: Origin,
}

/// What recovery needs next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// This SCO, answered by [`Recovery::sco`]: from the write buffer if it has it (unless `stored_only`), else from
    /// the back ends, else `None`.
    NeedSco {
        /// The SCO.
        sco: ScoId,
        /// Its epoch.
        epoch: Epoch,
        /// The write buffer's copy ended early: is there a longer one on the back ends?
        stored_only: bool,
        /// Whether the data area is looked at.
        data: bool,
    },
    /// This node, answered by [`Recovery::node`].
    NeedNode {
        /// Where it belongs.
        place: NodePlace,
        /// Where it is stored.
        reference: NodeRef,
    },
    /// A node could not be had: begin again later.
    Failed(Refusal),
    /// Call [`Recovery::finish`].
    Done,
}

/// The local SCO at the log's end: zero its TLog area from `tlog_len` on, so that what a crash left behind can never
/// be replayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seal {
    /// The SCO.
    pub sco: ScoId,
    /// Its epoch.
    pub epoch: Epoch,
    /// Bytes of its TLog area that stand.
    pub tlog_len: u64,
}

/// The log ends before what later SCOs' headers prove synced. No crash does that: a file was damaged, or a SCO's file is
/// missing. To serve the volume now is to lose what was acknowledged, and flushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Damage {
    /// The SCO that the log ends in or before.
    pub sco: ScoId,
    /// Its epoch.
    pub epoch: Epoch,
    /// The first batch that is lost.
    pub lost_from: BatchSeq,
    /// SCOs below this one were synced.
    pub synced_below: ScoId,
    /// The first batch that a header says to lie behind what was synced: those before it were.
    pub synced_before: BatchSeq,
}

impl std::fmt::Display for Damage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "SCO {} (epoch {}) is damaged or missing: the log ends before batch {}, but later SCOs say that what lies below SCO \
             {} (batches below {}) was synced",
            self.sco, self.epoch, self.lost_from, self.synced_below, self.synced_before
        )
    }
}

/// What the headers in the write buffer prove synced.
#[derive(Debug, Clone, Copy, Default)]
struct Proven {
    /// SCOs below this one.
    scos: ScoId,
    /// Batches below this one.
    batches: BatchSeq,
}

impl Proven {
    /// The largest statements of the headers that are of the log; those of other epochs tell of SCOs that a takeover left
    /// behind.
    fn by(headers: &[ScoHeader], epochs: &[EpochStart]) -> Self {
        let of_the_log = || {
            headers
                .iter()
                .filter(|header| epoch_at(epochs, header.id) == Some(header.epoch))
        };
        let scos = of_the_log().map(|header| header.synced_below).max();
        let scos = scos.unwrap_or(ScoId::NONE);
        // All batches before a SCO's first lie in SCOs below it.
        let batches = of_the_log()
            .filter(|header| header.id <= scos)
            .map(|header| header.first_batch);
        Self {
            scos,
            batches: batches.max().unwrap_or(BatchSeq::NONE),
        }
    }
}

/// What recovery found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered {
    /// First SCO of the new epoch: the registry's record has to say so before the volume serves.
    pub next_sco: ScoId,
    /// Batches that were replayed.
    pub replayed: u64,
    /// What to seal before the volume serves.
    pub seal: Option<Seal>,
    /// Local SCOs that no manifest covers: the write buffer counts them as not synced, syncs each and says
    /// [`crate::Event::ScoSynced`].
    pub unstored: Vec<ScoId>,
    /// The log is damaged: serve the volume only if a person accepts the loss, and do nothing to its files otherwise.
    pub damaged: Option<Damage>,
}

/// A recovery under way.
#[derive(Debug)]
pub struct Recovery {
    volume: Volume,
    proven: Proven,
    sco: ScoId,
    /// The SCO behind the log's end begins with a later batch than the next: the end lies in the SCO before it.
    gap: bool,
    seq: BatchSeq,
    replay: Option<Replay>,
    missing: Option<Missing>,
    failed: Option<Refusal>,
    ended: bool,
    replayed: u64,
    entries: u64,
    /// Time of the last batch that was read.
    stamp_us: u64,
    unstored: Vec<ScoId>,
    seal: Option<Seal>,
}

impl Recovery {
    /// Begins: from `manifest`, the newest there is, or from an empty volume. `headers`: those of the volume's files in the
    /// write buffer, all of them, in any order.
    ///
    /// # Errors
    /// A manifest that is not of this volume or of a later ownership.
    pub fn new(
        mut config: VolumeConfig,
        manifest: Option<&Manifest>,
        headers: &[ScoHeader],
    ) -> Result<Self, RecoveryError> {
        if let Some(manifest) = manifest {
            if manifest.volume != config.id || manifest.epoch > config.epoch {
                return Err(RecoveryError::Foreign {
                    volume: config.path,
                    seq: manifest.seq.0,
                    epoch: manifest.epoch,
                    own: config.epoch,
                });
            }
            if config.epochs.is_empty() {
                config.epochs.clone_from(&manifest.epochs);
            }
        }
        let mut volume = Volume::restore(&config, manifest);
        volume.replays = true;
        if let (None, Some(origin)) = (manifest, &config.origin)
            && volume.begin_as(origin).is_none()
        {
            return Err(RecoveryError::NoOrigin {
                volume: config.path,
                snapshot: origin.snapshot,
                seq: origin.manifest.seq.0,
            });
        }
        Ok(Self {
            proven: Proven::by(headers, &config.epochs),
            gap: false,
            sco: volume.log.next_sco(),
            seq: volume.log.next_seq(),
            volume,
            replay: None,
            missing: None,
            failed: None,
            ended: false,
            replayed: 0,
            entries: 0,
            stamp_us: manifest.map_or(0, |m| m.history.upto_us),
            unstored: Vec::new(),
            seal: None,
        })
    }

    /// What is needed next.
    pub fn step(&mut self) -> Step {
        loop {
            if let Some(refusal) = &self.failed {
                return Step::Failed(refusal.clone());
            }
            if let Some(Missing { place, reference }) = self.missing {
                return Step::NeedNode { place, reference };
            }
            // The SCO table's leaf of the next SCO has to be here before anything is entered.
            if let Err(missing) = self.volume.scos.get(self.sco.0) {
                self.missing = Some(missing);
                continue;
            }
            if self.ended {
                return Step::Done;
            }
            let Some(replay) = &mut self.replay else {
                match epoch_at(&self.volume.epochs, self.sco) {
                    Some(epoch) => return self.need_sco(epoch, false),
                    None => self.ended = true,
                }
                continue;
            };
            let progress = if replay.batch.is_none() {
                replay.read(self.seq, self.sco >= self.proven.scos)
            } else {
                let mut budget = u64::MAX;
                replay.apply(&mut self.volume, &mut budget)
            };
            match progress {
                Progress::Went => {
                    if let Some(batch) = &replay.batch {
                        self.entries += batch.entries.len() as u64;
                        self.stamp_us = self.stamp_us.max(batch.time_us);
                    } else {
                        self.seq = self.seq.next();
                        self.replayed += 1;
                    }
                }
                Progress::Needs(missing) => self.missing = Some(missing),
                Progress::Wrong(text) => {
                    let text = format!("volume {}: SCO {}: {text}", self.volume.path, self.sco);
                    self.failed = Some(Refusal::damaged(text));
                }
                Progress::Ended { torn } => {
                    if torn && replay.image.origin == Origin::Local && !replay.asked_stored {
                        replay.asked_stored = true;
                        let epoch = replay.header.epoch;
                        return self.need_sco(epoch, true);
                    }
                    self.end_sco();
                }
            }
        }
    }

    fn need_sco(&self, epoch: Epoch, stored_only: bool) -> Step {
        let data = !stored_only && self.sco >= self.proven.scos;
        Step::NeedSco {
            sco: self.sco,
            epoch,
            stored_only,
            data,
        }
    }

    /// Answers [`Step::NeedSco`]. `None`, or what is not the SCO that was asked for, ends the log.
    pub fn sco(&mut self, image: Option<ScoImage>) {
        let header = image.as_ref().and_then(|image| self.fitting_header(image));
        match (&mut self.replay, image, header) {
            // The stored copy of a SCO whose local copy is torn: go on in it.
            (Some(replay), Some(image), Some(_)) => replay.image = image,
            (Some(_), ..) => {}
            (None, Some(image), Some(header)) => {
                self.volume.head = (self.sco, 0);
                self.replay = Some(Replay::new(header, image, self.volume.own_lineage()));
            }
            (None, image, None) => {
                let header = image.and_then(|image| ScoHeader::from_bytes(&image.bytes).ok());
                self.gap = header.is_some_and(|h| h.id == self.sco && h.first_batch > self.seq);
                self.ended = true;
            }
            (None, None, Some(_)) => self.ended = true,
        }
    }

    fn fitting_header(&self, image: &ScoImage) -> Option<ScoHeader> {
        let header = ScoHeader::from_bytes(&image.bytes).ok()?;
        let fits = header.volume == self.volume.id
            && header.id == self.sco
            && Some(header.epoch) == epoch_at(&self.volume.epochs, self.sco)
            && header.size == self.volume.sco_size
            // A SCO continues the log; one that was begun after a batch that is lost does not.
            && (header.first_batch == self.seq || self.replay.is_some());
        fits.then_some(header)
    }

    /// Answers [`Step::NeedNode`]: the node's records, newest first, the last one whole.
    pub fn node(&mut self, result: Result<Vec<NodeRecord>, Refusal>) {
        let Some(missing) = self.missing.take() else {
            return;
        };
        if let Err(refusal) = result.and_then(|records| self.volume.adopt(&missing, &records)) {
            self.failed = Some(refusal);
        }
    }

    fn end_sco(&mut self) {
        let Some(replay) = self.replay.take() else { return };
        if replay.tlog_len == 0 {
            self.volume.head = (ScoId::NONE, 0);
            self.ended = true;
            return;
        }
        let (sco, epoch) = (self.sco, replay.header.epoch);
        self.volume.enter_sco(sco, replay.slots);
        self.seal = None;
        if replay.image.origin == Origin::Local {
            let length = self.volume.sco_size.slot_offset(Slot(replay.slots));
            self.volume
                .locals
                .replayed(sco, epoch, ByteLen(replay.tlog_len as u64), ByteLen(length));
            self.unstored.push(sco);
            self.seal = Some(Seal {
                sco,
                epoch,
                tlog_len: replay.tlog_len as u64,
            });
        }
        self.sco = sco.next();
    }

    /// Whether the log ends before what the headers prove synced: a SCO that cannot be had ends it, and so does a batch that
    /// is not whole, since the SCO behind it does not continue the log then. (Something that is not whole at the end says
    /// nothing: a recycled file still has there what another volume wrote.)
    fn damage(&self) -> Option<Damage> {
        let lost = self.sco < self.proven.scos || self.seq < self.proven.batches;
        let sco = if self.gap { self.sco.prev() } else { self.sco };
        lost.then(|| Damage {
            sco,
            epoch: epoch_at(&self.volume.epochs, sco).unwrap_or(Epoch::NONE),
            lost_from: self.seq,
            synced_below: self.proven.scos,
            synced_before: self.proven.batches,
        })
    }

    /// The volume, ready to serve once the host did what [`Recovered`] says.
    #[must_use]
    pub fn finish(self) -> (Volume, Recovered) {
        let damaged = self.damage();
        let mut volume = self.volume;
        let start = EpochStart {
            epoch: volume.epoch,
            first_sco: self.sco,
        };
        // An ownership that wrote nothing leaves no trace.
        volume
            .epochs
            .retain(|earlier| earlier.first_sco < start.first_sco);
        volume.epochs.push(start);
        volume.log = Log::new(
            volume.id,
            volume.epoch,
            volume.sco_size,
            self.sco,
            self.seq,
            self.stamp_us,
        );
        volume.frontier = Frontier::recovered(self.seq.prev(), volume.checkpoints.covered);
        volume.checkpoints.entries = self.entries;
        volume.locals.recovery_done(self.sco);
        volume.replays = false;
        let recovered = Recovered {
            next_sco: self.sco,
            replayed: self.replayed,
            seal: self.seal,
            unstored: self.unstored,
            damaged,
        };
        (volume, recovered)
    }
}

impl Target for Volume {
    fn replay_write(&mut self, address: ClusterAddress, location: Location) -> Result<(), Missing> {
        self.place(address, location)
    }

    fn replay_zero(&mut self, address: ClusterAddress, count: u64, allocate: bool) -> Result<(), Missing> {
        self.zero(address, count, allocate)
    }

    fn replay_resize(&mut self, size: VolumeSize) -> Result<(), Missing> {
        self.resize(size)
    }

    fn replay_session(&mut self, slot: SessionSlot, id: SessionId) {
        self.sessions.assign(slot, id);
    }

    fn replay_end(&mut self, slot: SessionSlot, number: u64) {
        self.sessions.applied(slot, number);
    }

    fn replay_record(&mut self, record: LogRecord, at: RecordPlace) -> Result<(), String> {
        self.apply_record(record, at)
    }
}
