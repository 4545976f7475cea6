//! A SCO: its header, its log, and whether its clusters are what the log says.
//!
//! Keeps: nothing.
//! Order: as the log has it.
//! Crash: nothing.
//! Knows no map.

use bytes::Bytes;
use sconce_schemas::bundle::BundleIndex;
use sconce_schemas::crc::crc32c;
use sconce_schemas::log_record::LogRecord;
use sconce_schemas::sco::EntryKind;
use sconce_schemas::{CLUSTER_BYTES, CLUSTER_LEN, DecodeError, ObjectName, Slot};
use serde::Serialize;

use super::{ShowError, content, moment};
use crate::bundle;
use crate::sco::ScoFile;
use crate::store::Store;
use crate::subject::Subject;
use crate::walk::ByteOffsetChecked as _;

/// A SCO.
#[derive(Debug, Clone, Serialize)]
pub struct ScoView {
    /// Its object.
    pub object: String,
    /// The volume that wrote it.
    pub volume: String,
    /// Its number.
    pub sco: u64,
    /// The ownership that wrote it.
    pub epoch: u64,
    /// 0 as written, more once scrubbed.
    pub version: u16,
    /// Clusters that it could hold.
    pub slots_max: u16,
    /// Number of its first batch.
    pub first_batch: u64,
    /// SCOs below this one were synced when it was begun.
    pub synced_below: u64,
    /// Length of the SCO as its readers see it.
    pub length_bytes: u64,
    /// Clusters that were written.
    pub slots: usize,
    /// Clusters that are still stored.
    pub kept: u64,
    /// Stored clusters whose CRC is not what the log says.
    pub bad: u64,
    /// Why its log ends early; null where it does not.
    pub log_problem: Option<String>,
    /// Its log; empty for a bundle.
    pub batches: Vec<BatchView>,
    /// The SCOs in it, if it is a bundle.
    pub members: Vec<MemberView>,
}

/// A SCO in a bundle.
#[derive(Debug, Clone, Serialize)]
pub struct MemberView {
    /// The SCO.
    pub sco: u64,
    /// The ownership that wrote it.
    pub epoch: u64,
    /// Its clusters, as writes.
    pub entries: Vec<EntryView>,
}

/// A batch of the log.
#[derive(Debug, Clone, Serialize)]
pub struct BatchView {
    /// Its number.
    pub batch: u64,
    /// When it was closed.
    pub time: String,
    /// Slot of its first cluster.
    pub first_slot: u16,
    /// What happened.
    pub entries: Vec<EntryView>,
}

/// An entry of the log.
#[derive(Debug, Clone, Default, Serialize)]
pub struct EntryView {
    /// `write`, `discard`, `zero`, `resize`, `session`, `record`.
    pub kind: &'static str,
    /// Byte offset in the volume (`resize`: the new size).
    pub address: Option<u64>,
    /// Bytes.
    pub length: Option<u64>,
    /// The slot of a write.
    pub slot: Option<u16>,
    /// CRC32C of a write's cluster.
    pub crc: Option<u32>,
    /// `good`, `bad`, or `dropped` by a scrub.
    pub content: Option<&'static str>,
    /// Slot in the session table.
    pub session: Option<u16>,
    /// The operation's number in its session.
    pub number: Option<u64>,
    /// Whether the operation ends here.
    pub last: bool,
    /// A record, where its last piece is.
    pub record: Option<String>,
}

/// Shows a SCO.
///
/// # Errors
/// It is not there, or not readable.
pub async fn sco(store: &Store, subject: &Subject, name: ObjectName) -> Result<ScoView, ShowError> {
    let bytes = content(store, subject, name).await?;
    if bundle::is_bundle(name) {
        return of_bundle(name, &bytes);
    }
    let file = ScoFile::of_content(name, bytes)
        .map_err(|error| ShowError::Object(format!("object {name}: {error}")))?;
    let Some(log) = &file.log else {
        return Err(ShowError::Object(format!("object {name} has no log")));
    };
    let mut record = Vec::new();
    let mut batches = Vec::with_capacity(log.tlog.batches.len());
    let mut bad = 0;
    for batch in &log.tlog.batches {
        let mut slot = batch.first_slot.0;
        let entries = batch.entries.iter().map(|entry| {
            let mut view = entry_view(&file, &entry.kind, &mut slot);
            view.last = entry.last;
            if let EntryKind::Record(piece) = &entry.kind {
                record.extend_from_slice(piece.bytes());
                if entry.last {
                    let whole = LogRecord::from_bytes(&std::mem::take(&mut record));
                    view.record =
                        Some(whole.map_or_else(|error| error.to_string(), |whole| format!("{whole:?}")));
                }
            } else {
                (view.session, view.number) = (Some(entry.session), Some(entry.number));
            }
            bad += u64::from(view.content == Some("bad"));
            view
        });
        batches.push(BatchView {
            batch: batch.seq.0,
            time: moment(batch.time_us),
            first_slot: batch.first_slot.0,
            entries: entries.collect(),
        });
    }
    let version = match name {
        ObjectName::Sco { version, .. } => version,
        ObjectName::Map { .. } | ObjectName::Manifest { .. } => 0,
    };
    Ok(ScoView {
        object: name.to_string(),
        volume: log.header.volume.to_string(),
        sco: log.header.id.0,
        epoch: log.header.epoch.0,
        version,
        slots_max: log.header.size.slots(),
        first_batch: log.header.first_batch.0,
        synced_below: log.header.synced_below.0,
        length_bytes: file.length,
        slots: log.tlog.slots.len(),
        kept: file.kept(),
        bad,
        log_problem: log.tlog.wrong.as_ref().map(ToString::to_string),
        batches,
        members: Vec::new(),
    })
}

fn of_bundle(name: ObjectName, bytes: &Bytes) -> Result<ScoView, ShowError> {
    let wrong = |error: DecodeError| ShowError::Object(format!("object {name}: {error}"));
    BundleIndex::check_whole(bytes).map_err(wrong)?;
    let index = BundleIndex::from_bytes(bytes).map_err(wrong)?;
    let (mut clusters, mut bad) = (bytes.slice(index.index_len()..), 0);
    let mut members = Vec::with_capacity(index.members.len());
    for member in &index.members {
        let mut entries = Vec::with_capacity(member.kept.len());
        for kept in &member.kept {
            // As many as the index has are there: that was checked.
            let cluster = clusters.split_to(CLUSTER_LEN.min(clusters.len()));
            let is_good = crc32c(&cluster) == kept.crc;
            bad += u64::from(!is_good);
            entries.push(EntryView {
                kind: "write",
                address: Some(kept.address.byte_offset_checked()),
                length: Some(CLUSTER_BYTES),
                slot: Some(kept.slot.0),
                crc: Some(kept.crc),
                content: Some(if is_good { "good" } else { "bad" }),
                ..EntryView::default()
            });
        }
        members.push(MemberView {
            sco: member.sco.0,
            epoch: member.epoch.0,
            entries,
        });
    }
    let (sco, epoch, version) = match name {
        ObjectName::Sco {
            id, epoch, version, ..
        } => (id.0, epoch.0, version),
        ObjectName::Map { .. } | ObjectName::Manifest { .. } => (0, 0, 0),
    };
    Ok(ScoView {
        object: name.to_string(),
        volume: index.volume.to_string(),
        sco,
        epoch,
        version,
        slots_max: index.members.last().map_or(0, |member| member.size.slots()),
        first_batch: 0,
        synced_below: 0,
        length_bytes: bytes.len() as u64,
        slots: index.clusters(),
        kept: index.clusters() as u64,
        bad,
        log_problem: None,
        batches: Vec::new(),
        members,
    })
}

fn entry_view(file: &ScoFile, kind: &EntryKind, next_slot: &mut u16) -> EntryView {
    match kind {
        EntryKind::Write { address, crc } => {
            let slot = Slot(*next_slot);
            *next_slot = next_slot.saturating_add(1);
            let content = match file.cluster(slot).filter(|_| file.has(slot)) {
                None => "dropped",
                Some(cluster) if crc32c(cluster) == *crc => "good",
                Some(_) => "bad",
            };
            EntryView {
                kind: "write",
                address: Some(address.byte_offset_checked()),
                length: Some(CLUSTER_BYTES),
                slot: Some(slot.0),
                crc: Some(*crc),
                content: Some(content),
                ..EntryView::default()
            }
        }
        EntryKind::Discard { address, count } | EntryKind::Zero { address, count } => EntryView {
            kind: match kind {
                EntryKind::Discard { .. } => "discard",
                _ => "zero",
            },
            address: Some(address.byte_offset_checked()),
            length: Some(u64::from(*count) * CLUSTER_BYTES),
            ..EntryView::default()
        },
        EntryKind::Resize { size } => EntryView {
            kind: "resize",
            address: Some(*size),
            ..EntryView::default()
        },
        EntryKind::Session { .. } => EntryView {
            kind: "session",
            ..EntryView::default()
        },
        EntryKind::Record(_) => EntryView {
            kind: "record",
            ..EntryView::default()
        },
    }
}
