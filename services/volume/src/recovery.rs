//! Recovery: from a manifest and the SCOs after it to a volume that can serve.
//!
//! Keeps: the volume under construction and the batch that is being replayed.
//! Order: SCOs by id, batches by number; it ends at the first batch that is not whole. A crash ends the log only behind what
//! was synced; an end before what a later header proves synced is damage, and said ([`Damage`]).
//! Crash: it can begin again at any time; it changes nothing that is stored.
//! Knows no files: the host brings what [`Recovery::step`] asks for.

use bytes::Bytes;
use sconce_schemas::checkpoint::{NodePlace, NodeRecord, NodeRef};
use sconce_schemas::crc::crc32c;
use sconce_schemas::ids::Location;
use sconce_schemas::log_record::LogRecord;
use sconce_schemas::manifest::{LogPlace, Manifest};
use sconce_schemas::records::EpochStart;
use sconce_schemas::sco::{Batch, EntryKind, ScoHeader};
use sconce_schemas::wire::Refusal;
use sconce_schemas::{BatchSeq, ByteLen, CLUSTER_LEN, Epoch, ScoId, SessionId, Slot, SnapshotId, VolumeSize};

use crate::event::SessionSlot;
use crate::frontier::Frontier;
use crate::log::Log;
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
    unstored: Vec<ScoId>,
    seal: Option<Seal>,
}

/// A SCO that is being replayed.
#[derive(Debug)]
struct Replay {
    header: ScoHeader,
    image: ScoImage,
    /// Where the next batch begins in the TLog area.
    tlog_len: usize,
    slots: u16,
    batch: Option<Batch>,
    /// Entries of the batch that were applied.
    entry_at: usize,
    /// Writes of the batch that were applied.
    write_at: u16,
    /// The stored copy was asked for too.
    asked_stored: bool,
    /// The pieces so far of a record.
    record: Vec<u8>,
}

enum Progress {
    Went,
    /// A record does not fit the volume.
    Wrong(String),
    Needs(Missing),
    /// No whole batch follows; `torn`: something is there that is damaged.
    Ended {
        torn: bool,
    },
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
            match replay_step(replay, &mut self.volume, self.seq, self.sco >= self.proven.scos) {
                Progress::Went => {
                    if let Some(batch) = &replay.batch {
                        self.entries += batch.entries.len() as u64;
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
                self.replay = Some(Replay {
                    header,
                    image,
                    tlog_len: 0,
                    slots: 0,
                    batch: None,
                    entry_at: 0,
                    write_at: 0,
                    asked_stored: false,
                    record: Vec::new(),
                });
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
        volume.log = Log::new(volume.id, volume.epoch, volume.sco_size, self.sco, self.seq);
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

/// Replays one entry, or reads the next batch.
fn replay_step(replay: &mut Replay, volume: &mut Volume, expected: BatchSeq, check_data: bool) -> Progress {
    if replay.batch.is_none() {
        return read_batch(replay, volume, expected, check_data);
    }
    let Some(batch) = &replay.batch else {
        return Progress::Went;
    };
    while let Some(entry) = batch.entries.get(replay.entry_at) {
        let applied = match entry.kind {
            EntryKind::Write { address, crc } => {
                let slot = Slot(batch.first_slot.0 + replay.write_at);
                let place = Location::new(volume.own_lineage(), replay.header.id, slot, crc);
                volume.place(address, place).map(|()| replay.write_at += 1)
            }
            EntryKind::Discard { address, count } => volume.zero(address, u64::from(count), false),
            EntryKind::Zero { address, count } => volume.zero(address, u64::from(count), true),
            EntryKind::Resize { size } => volume.resize(VolumeSize::new(size).unwrap_or(VolumeSize::MAX)),
            EntryKind::Session { id } => {
                volume.sessions.assign(SessionSlot(entry.session), SessionId(id));
                Ok(())
            }
            EntryKind::Record(piece) => {
                replay.record.extend_from_slice(piece.bytes());
                if entry.last {
                    let at = LogPlace {
                        sco: replay.header.id,
                        slots: batch.first_slot.0 + replay.write_at,
                    };
                    let record = LogRecord::from_bytes(&std::mem::take(&mut replay.record));
                    let applied = record
                        .map_err(|error| error.to_string())
                        .and_then(|record| volume.apply_record(record, at));
                    if let Err(text) = applied {
                        return Progress::Wrong(text);
                    }
                }
                replay.entry_at += 1;
                continue;
            }
        };
        if let Err(missing) = applied {
            return Progress::Needs(missing);
        }
        if entry.last {
            volume.sessions.applied(SessionSlot(entry.session), entry.number);
        }
        replay.entry_at += 1;
    }
    replay.slots = batch.first_slot.0 + replay.write_at;
    replay.tlog_len += batch.len;
    (replay.batch, replay.entry_at, replay.write_at) = (None, 0, 0);
    Progress::Went
}

/// Reads the next batch and checks that it is whole.
fn read_batch(replay: &mut Replay, volume: &Volume, expected: BatchSeq, check_data: bool) -> Progress {
    let size = volume.sco_size;
    let to_index = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX);
    let start = to_index(sconce_schemas::ScoSize::HEADER_AREA) + replay.tlog_len;
    let end = to_index(size.data_offset()).min(replay.image.bytes.len());
    let tlog = replay.image.bytes.get(start..end).unwrap_or_default();
    // Never written: the log simply ends here.
    if tlog.iter().take(4).all(|byte| *byte == 0) {
        return Progress::Ended { torn: false };
    }
    let Ok(batch) = Batch::from_bytes(tlog, replay.header.salt()) else {
        return Progress::Ended { torn: true };
    };
    let writes = batch.entries.iter().filter_map(|entry| match entry.kind {
        EntryKind::Write { crc, .. } => Some(crc),
        _ => None,
    });
    let crcs: Vec<u32> = writes.collect();
    let fits = batch.seq == expected
        && batch.first_slot.0 == replay.slots
        && usize::from(replay.slots) + crcs.len() <= usize::from(size.slots());
    let check = check_data && replay.image.origin == Origin::Local;
    if !fits
        || (check
            && !clusters_hold(
                &replay.image.bytes,
                to_index(size.slot_offset(batch.first_slot)),
                &crcs,
            ))
    {
        return Progress::Ended { torn: true };
    }
    replay.batch = Some(batch);
    Progress::Went
}

/// Whether the clusters at `offset` have these CRCs.
fn clusters_hold(bytes: &[u8], offset: usize, crcs: &[u32]) -> bool {
    let clusters = bytes.get(offset..offset + crcs.len() * CLUSTER_LEN);
    clusters.is_some_and(|bytes| {
        bytes
            .chunks_exact(CLUSTER_LEN)
            .zip(crcs)
            .all(|(c, crc)| crc32c(c) == *crc)
    })
}
