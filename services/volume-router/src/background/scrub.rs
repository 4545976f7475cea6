//! The host's part of a scrub: a SCO's TLog is read, a SCO is written again without what is dead, an object is deleted.
//!
//! Keeps: whose turn it is: one SCO of the node at a time, and pauses that keep the bandwidth.
//! Order: the new version is durable before the volume hears of it; the old one goes when the volume says so.
//! Crash: a version that the volume did not hear of stays as an object too many.
//! Knows no map: the volume says what is kept.

use std::time::Duration;

use sconce_schemas::crc::crc32c;
use sconce_schemas::packed_sco::PackedSco;
use sconce_schemas::wire::{Refusal, RefusalCode};
use sconce_schemas::{ByteLen, CLUSTER_LEN, ObjectName, ScoSize, Slot};
use sconce_volume::{Event, Kept, ScoObject};

use super::{Shared, StoreError, Subject};
use crate::actor::Owner;

/// Versions that crashes may have left behind and that are passed over.
const VERSIONS_TRIED: u16 = 64;

/// What a volume asks for.
#[derive(Debug)]
pub(crate) enum ScrubJob {
    /// The first bytes of a SCO.
    ReadTlog(ScoObject),
    /// A later version of a SCO.
    Rewrite(ScoObject, Kept),
    /// An object.
    Delete(ScoObject),
}

/// Runs to its end, good or bad: the volume asks again in time.
pub(super) async fn run(shared: &Shared, owner: &Owner, size: ScoSize, job: ScrubJob) {
    let subject = owner.subject();
    let event = match job {
        ScrubJob::ReadTlog(object) => Event::TlogRead {
            object,
            result: read_tlog(shared, &subject, size, object).await,
        },
        ScrubJob::Rewrite(from, kept) => {
            let _turn = shared.scrubs.acquire().await;
            let to = match rewrite(shared, owner, size, from, &kept).await {
                Ok(to) => to,
                Err(error) => {
                    tracing::debug!(volume = %subject.path, sco = %from.sco, %error, "not scrubbed now");
                    None
                }
            };
            Event::ScoRewritten { from, to }
        }
        ScrubJob::Delete(object) => {
            let deleted = shared
                .store
                .delete(&subject.pool, name_of(&subject, object))
                .await;
            if let Err(error) = &deleted {
                tracing::debug!(volume = %subject.path, sco = %object.sco, %error, "not deleted now");
            }
            Event::ScoDeleted {
                object,
                done: deleted.is_ok(),
            }
        }
    };
    owner.happened(event);
}

fn name_of(subject: &Subject, object: ScoObject) -> ObjectName {
    ObjectName::Sco {
        volume: subject.volume,
        id: object.sco,
        epoch: object.epoch,
        version: object.version,
    }
}

async fn read_tlog(
    shared: &Shared,
    subject: &Subject,
    size: ScoSize,
    object: ScoObject,
) -> Result<bytes::Bytes, Refusal> {
    let name = name_of(subject, object);
    let read = shared
        .store
        .get_whole(&subject.pool, name, size.data_offset())
        .await;
    match read {
        Ok(Some(bytes)) => Ok(bytes),
        Ok(None) => {
            let text = format!("volume {}: object {name} is gone", subject.path);
            tracing::error!("{text}");
            Err(Refusal::damaged(text))
        }
        Err(error) => Err(error.refusal()),
    }
}

/// The new version; `None` where the volume is served here no more.
async fn rewrite(
    shared: &Shared,
    owner: &Owner,
    size: ScoSize,
    from: ScoObject,
    kept: &Kept,
) -> Result<Option<u16>, StoreError> {
    let subject = owner.subject();
    let length = size.file_len();
    let _room = shared.room.take(&subject.pool, length).await;
    if !owner.is_current() {
        return Ok(None);
    }
    let name = name_of(&subject, from);
    let whole = shared.store.get_whole(&subject.pool, name, length).await?;
    let whole = whole.ok_or_else(|| StoreError::NotFound(format!("object {name} is gone")))?;
    if let Err(slot) = check(&whole, size, kept) {
        let text = format!(
            "volume {}: object {name}: slot {} does not hold what was written there: it is not scrubbed",
            subject.path, slot.0
        );
        tracing::error!("{text}");
        return Err(StoreError::Unavailable(text));
    }
    let packed = PackedSco::pack(&whole, |slot| kept.has(slot))
        .map_err(|error| StoreError::Unavailable(error.to_string()))?;
    let moved = ByteLen(whole.len() as u64 + packed.len() as u64);
    drop(whole);
    let mut version = from.version;
    for _ in 0..VERSIONS_TRIED {
        let Some(next) = version.checked_add(1) else { break };
        version = next;
        let name = name_of(&subject, ScoObject { version, ..from });
        match shared.store.put(&subject.pool, name, packed.clone()).await {
            Ok(()) => {
                pause(shared, moved).await;
                return Ok(Some(version));
            }
            // A crash left it: what it keeps may be another choice.
            Err(StoreError::Refused(refusal)) if refusal.code == RefusalCode::Exists => {}
            Err(error) => return Err(error),
        }
    }
    Err(StoreError::Unavailable(format!("no version of {name} is free")))
}

/// The first slot that is to be kept and is not what was written; its object is left as it is, for a person to see.
fn check(sco: &[u8], size: ScoSize, kept: &Kept) -> Result<(), Slot> {
    for slot in (0..size.slots()).map(Slot) {
        let Some(crc) = kept.crc(slot) else { continue };
        let at = usize::try_from(size.slot_offset(slot)).unwrap_or(usize::MAX);
        if sco.get(at..at.saturating_add(CLUSTER_LEN)).map(crc32c) != Some(crc) {
            return Err(slot);
        }
    }
    Ok(())
}

/// Waits as long as the bytes that were moved may take.
pub(super) async fn pause(shared: &Shared, moved: ByteLen) {
    let micros = moved.0.saturating_mul(1_000_000) / shared.scrub_bandwidth.max(1);
    tokio::time::sleep(Duration::from_micros(micros)).await;
}
