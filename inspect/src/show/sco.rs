//! A SCO: its header, its log, and whether its clusters are what the log says.
//!
//! Keeps: nothing.
//! Order: as the log has it.
//! Crash: nothing.
//! Knows no map.

use sconce_schemas::crc::crc32c;
use sconce_schemas::log_record::LogRecord;
use sconce_schemas::sco::EntryKind;
use sconce_schemas::{CLUSTER_BYTES, ObjectName, Slot};
use serde::Serialize;

use super::{ShowError, content, moment};
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
    /// Its log.
    pub batches: Vec<BatchView>,
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
    let file = ScoFile::of_content(name, bytes)
        .map_err(|error| ShowError::Object(format!("object {name}: {error}")))?;
    let mut record = Vec::new();
    let mut batches = Vec::with_capacity(file.tlog.batches.len());
    let mut bad = 0;
    for batch in &file.tlog.batches {
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
        volume: file.header.volume.to_string(),
        sco: file.header.id.0,
        epoch: file.header.epoch.0,
        version,
        slots_max: file.header.size.slots(),
        first_batch: file.header.first_batch.0,
        synced_below: file.header.synced_below.0,
        length_bytes: file.length,
        slots: file.tlog.slots.len(),
        kept: file.kept(),
        bad,
        log_problem: file.tlog.wrong.as_ref().map(ToString::to_string),
        batches,
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
