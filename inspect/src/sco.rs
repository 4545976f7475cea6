//! A SCO as its object tells of itself: header, log, and which of its clusters are kept.
//!
//! Keeps: nothing.
//! Order: batches as they lie in the TLog area.
//! Crash: nothing.
//! Knows no map: whether a slot is live is the maps' to say.

use bytes::Bytes;
use sconce_schemas::bundle::BUNDLE_FROM;
use sconce_schemas::packed_sco::{HEAD_BYTES, PackedHead, PackedSco};
use sconce_schemas::sco::{Batch, EntryKind, ScoHeader};
use sconce_schemas::wire::storage::OBJECT_BYTES_MAX;
use sconce_schemas::{BatchSeq, CLUSTER_BYTES, ClusterAddress, DecodeError, ObjectName, ScoSize, Slot};

use crate::report::ProblemKind;
use crate::store::Store;
use crate::subject::{Spot, Subject, kind_of};

/// A cluster that was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Where in the volume.
    pub address: ClusterAddress,
    /// Its CRC32C.
    pub crc: u32,
}

/// What a TLog area tells.
#[derive(Debug, Clone, Default)]
pub struct Tlog {
    /// Its batches, as far as they are whole.
    pub batches: Vec<Batch>,
    /// What was written into each slot.
    pub slots: Vec<Written>,
    /// Why it ends before its end.
    pub wrong: Option<DecodeError>,
}

/// A SCO's object, as far as it was read.
#[derive(Debug, Clone)]
pub struct ScoFile {
    /// Its header and its log; `None` in a bundle, which has an index in their place.
    pub log: Option<Log>,
    /// Its size when full.
    pub size: ScoSize,
    /// What was written into each slot, as far as the object tells.
    pub written: Vec<Option<Written>>,
    /// Length of the SCO as its readers see it, in bytes.
    pub length: u64,
    /// What of it is kept, if it was scrubbed.
    pub packed: Option<PackedHead>,
    /// All of it, as its readers see it, if it was asked for.
    pub whole: Option<Bytes>,
}

/// The front of a SCO.
#[derive(Debug, Clone)]
pub struct Log {
    /// Its header.
    pub header: ScoHeader,
    /// Its log.
    pub tlog: Tlog,
}

impl Tlog {
    /// Reads a TLog area: up to its end, or to what is not whole.
    #[must_use]
    pub fn read(header: &ScoHeader, area: &[u8]) -> Self {
        let mut tlog = Self::default();
        let mut rest = area;
        let mut seq = header.first_batch;
        while rest.iter().take(4).any(|byte| *byte != 0) {
            let batch = match Batch::from_bytes(rest, header.salt()) {
                Ok(batch) => batch,
                Err(error) => {
                    tlog.wrong = Some(error);
                    return tlog;
                }
            };
            if batch.seq != seq || usize::from(batch.first_slot.0) != tlog.slots.len() {
                tlog.wrong = Some(DecodeError::Value {
                    what: "TLog batch",
                    found: format!("batch {} from slot {} on", batch.seq, batch.first_slot.0),
                    expected: "the next batch, from the next slot on",
                });
                return tlog;
            }
            let written = batch.entries.iter().filter_map(|entry| match entry.kind {
                EntryKind::Write { address, crc } => Some(Written { address, crc }),
                _ => None,
            });
            tlog.slots.extend(written);
            if tlog.slots.len() > usize::from(header.size.slots()) {
                tlog.wrong = Some(DecodeError::Value {
                    what: "slots of a SCO",
                    found: tlog.slots.len().to_string(),
                    expected: "at most its size",
                });
                return tlog;
            }
            rest = rest.get(batch.len..).unwrap_or_default();
            seq = BatchSeq(seq.0.saturating_add(1));
            tlog.batches.push(batch);
        }
        if tlog.batches.is_empty() {
            tlog.wrong = Some(DecodeError::Value {
                what: "TLog area",
                found: "empty".to_owned(),
                expected: "at least one batch",
            });
        }
        tlog
    }

    /// The number of the last batch.
    #[must_use]
    pub fn last_batch(&self) -> Option<BatchSeq> {
        self.batches.last().map(|batch| batch.seq)
    }
}

impl ScoFile {
    fn of_log(
        header: ScoHeader,
        area: &[u8],
        length: u64,
        packed: Option<PackedHead>,
        whole: Option<Bytes>,
    ) -> Self {
        let tlog = Tlog::read(&header, area);
        Self {
            size: header.size,
            written: tlog.slots.iter().copied().map(Some).collect(),
            log: Some(Log { header, tlog }),
            length,
            packed,
            whole,
        }
    }

    /// Why its log ends before its end.
    #[must_use]
    pub fn log_wrong(&self) -> Option<&DecodeError> {
        self.log.as_ref()?.tlog.wrong.as_ref()
    }

    /// Whether a slot's cluster is stored.
    #[must_use]
    pub fn has(&self, slot: Slot) -> bool {
        let offset = self.size.slot_offset(slot);
        let is_inside = offset.saturating_add(CLUSTER_BYTES) <= self.length;
        is_inside
            && self
                .packed
                .as_ref()
                .is_none_or(|head| !head.packed_range(offset, CLUSTER_BYTES).is_empty())
    }

    /// Clusters that are stored.
    #[must_use]
    pub fn kept(&self) -> u64 {
        let slots = (0..self.size.slots()).map(Slot);
        slots.filter(|slot| self.has(*slot)).count() as u64
    }

    /// A slot's cluster, if all of the SCO was read.
    #[must_use]
    pub fn cluster(&self, slot: Slot) -> Option<&[u8]> {
        let at = to_index(self.size.slot_offset(slot));
        self.whole
            .as_ref()?
            .get(at..at.checked_add(sconce_schemas::CLUSTER_LEN)?)
    }

    /// The SCO in an object's content, which is no bundle.
    ///
    /// # Errors
    /// It is none.
    pub fn of_content(name: ObjectName, content: Bytes) -> Result<Self, DecodeError> {
        let (packed, whole) = if is_packed(name) {
            PackedSco::check(&content)?;
            let head = PackedHead::from_bytes(&content)?;
            let length = head.length();
            let whole = head.expand(0, length, content.slice(HEAD_BYTES..))?;
            (Some(head), whole)
        } else {
            (None, content)
        };
        let header = ScoHeader::from_bytes(&whole)?;
        let area = to_index(ScoSize::HEADER_AREA)..to_index(header.size.data_offset());
        let area = whole.get(area).ok_or_else(|| cut_off(&header, whole.len()))?;
        let length = whole.len() as u64;
        Ok(Self::of_log(header, area, length, packed, Some(whole.clone())))
    }
}

fn cut_off(header: &ScoHeader, have: usize) -> DecodeError {
    DecodeError::Short {
        what: "SCO",
        have,
        need: to_index(header.size.data_offset()),
    }
}

pub(crate) const fn is_packed(name: ObjectName) -> bool {
    matches!(
        name,
        ObjectName::Sco {
            version: 1..BUNDLE_FROM,
            ..
        }
    )
}

fn to_index(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}

/// Reads a SCO of this volume; what is wrong with it is told. `data`: all of it, else header and log.
pub(crate) async fn read(
    store: &Store,
    subject: &mut Subject,
    spot: &Spot,
    name: ObjectName,
    data: bool,
) -> Option<ScoFile> {
    let spot = spot.clone().object(name);
    let Some(copies) = subject.scos.get(&name).cloned() else {
        subject.tell(ProblemKind::Missing, &spot, "no back end has it");
        return None;
    };
    let file = if data {
        let answers = store.read(name, &copies, 0, OBJECT_BYTES_MAX).await;
        let content = subject.take(store, &spot, answers)?;
        ScoFile::of_content(name, content)
    } else {
        parts(store, subject, &spot, name, &copies).await?
    };
    let file = match file {
        Ok(file) => file,
        Err(error) => {
            subject.tell(kind_of(&error), &spot, error);
            return None;
        }
    };
    let Some(log) = &file.log else { return Some(file) };
    let own = (log.header.volume, log.header.id, log.header.epoch);
    if let ObjectName::Sco {
        volume, id, epoch, ..
    } = name
        && own != (volume, id, epoch)
    {
        let what = format!(
            "its header says SCO {} of volume {}, epoch {}",
            own.1, own.0, own.2
        );
        subject.tell(ProblemKind::Mismatch, &spot, what);
        return None;
    }
    if let Some(wrong) = &log.tlog.wrong {
        let behind = log
            .tlog
            .last_batch()
            .map_or("at its beginning".to_owned(), |batch| {
                format!("behind batch {batch}")
            });
        subject.tell(kind_of(wrong), &spot, format!("its log ends {behind}: {wrong}"));
    }
    Some(file)
}

/// Reads header and log. `None`: it was told why not.
async fn parts(
    store: &Store,
    subject: &mut Subject,
    spot: &Spot,
    name: ObjectName,
    copies: &[usize],
) -> Option<Result<ScoFile, DecodeError>> {
    let lengths = store.length(name, copies).await;
    // A copy that failed once is told once.
    let good: Vec<usize> = copies
        .iter()
        .copied()
        .filter(|copy| lengths.bad.iter().all(|bad| bad.backend != *copy))
        .collect();
    let content_len = subject.take(store, spot, lengths)?;
    let packed = if is_packed(name) {
        let answers = store.read(name, &good, 0, HEAD_BYTES as u64).await;
        let bytes = subject.take(store, spot, answers)?;
        match PackedHead::from_bytes(&bytes) {
            Ok(head) if head.packed_len() == content_len => Some(head),
            Ok(head) => {
                return Some(Err(DecodeError::Short {
                    what: "packed SCO",
                    have: to_index(content_len),
                    need: to_index(head.packed_len()),
                }));
            }
            Err(error) => return Some(Err(error)),
        }
    } else {
        None
    };
    // The first bytes say how long the log may be; the largest log is 1 MiB.
    let log_max = ScoSize::HEADER_AREA + 16384 * ScoSize::TLOG_BYTES_PER_SLOT;
    let mut want = ScoSize::HEADER_AREA;
    loop {
        let range = match &packed {
            Some(head) => head.packed_range(0, want),
            None => 0..want,
        };
        let answers = store
            .read(name, &good, range.start, range.end - range.start)
            .await;
        let bytes = subject.take(store, spot, answers)?;
        let front = match &packed {
            Some(head) => match head.expand(0, want, bytes) {
                Ok(front) => front,
                Err(error) => return Some(Err(error)),
            },
            None => bytes,
        };
        let header = match ScoHeader::from_bytes(&front) {
            Ok(header) => header,
            Err(error) => return Some(Err(error)),
        };
        let due = header.size.data_offset().min(log_max);
        if want < due {
            want = due;
            continue;
        }
        let area = to_index(ScoSize::HEADER_AREA)..to_index(due);
        let Some(area) = front.get(area) else {
            return Some(Err(cut_off(&header, front.len())));
        };
        let length = packed.as_ref().map_or(content_len, PackedHead::length);
        return Some(Ok(ScoFile::of_log(header, area, length, packed, None)));
    }
}
