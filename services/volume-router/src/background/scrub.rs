//! The host's part of a scrub: an object's TLog or index is read, a bundle of what is kept is written, an object is deleted.
//!
//! Keeps: nothing; the budget says whose turn it is.
//! Order: the bundle is durable before the volume hears of it; the old objects go when the volume says so.
//! Crash: a bundle that the volume did not hear of stays as an object too many.
//! Knows no map: the volume says what is kept.

use bytes::{Bytes, BytesMut};
use sconce_schemas::bundle::{BUNDLE_FROM, BundleIndex, Member, START_BYTES};
use sconce_schemas::crc::crc32c;
use sconce_schemas::wire::storage::GET_BYTES_MAX;
use sconce_schemas::wire::{Refusal, RefusalCode};
use sconce_schemas::{CLUSTER_BYTES, CLUSTER_LEN, ObjectName, ScoSize};
use sconce_volume::{BundlePlan, BundleSource, Event, KeptSco, ScoObject};

use super::budget::Turn;
use super::{Shared, StoreError, Subject};
use crate::actor::Owner;
use crate::owner::record::RecordError;
use crate::owner::verify;

/// Versions that crashes may have left behind and that are passed over.
const VERSIONS_TRIED: u16 = 64;
/// Clusters that are not kept and lie between two that are, and are read along: a request costs more than they do.
const GAP_MAX: u64 = 16 * CLUSTER_BYTES;

/// What a volume asks for.
#[derive(Debug)]
pub(crate) enum ScrubJob {
    /// The first bytes of a SCO, or the index of a bundle.
    ReadTlog(ScoObject),
    /// A bundle.
    Write(Box<BundlePlan>),
    /// An object is to go.
    Delete(ScoObject),
}

/// Runs to its end, good or bad: the volume asks again in time. What is urgent does not make way for guests.
pub(super) async fn run(shared: &Shared, owner: &Owner, size: ScoSize, job: ScrubJob, is_urgent: bool) {
    let subject = owner.subject();
    let turn = shared.scrubs.turn(is_urgent).await;
    let event = match job {
        ScrubJob::ReadTlog(object) => Event::TlogRead {
            object,
            result: read_tlog(shared, &subject, size, object, &turn).await,
        },
        ScrubJob::Write(plan) => {
            let to = match write(shared, owner, &plan, &turn).await {
                Ok(to) => to,
                Err(error) => {
                    let sco = plan.above.sco;
                    tracing::debug!(volume = %subject.path, %sco, %error, "not scrubbed now");
                    None
                }
            };
            Event::BundleWritten {
                above: plan.above,
                to,
            }
        }
        ScrubJob::Delete(object) => {
            let deleted = shared
                .store
                .delete(&subject.pool, name_of(&subject, object))
                .await;
            turn.moved(0);
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

fn wrong(text: &impl ToString) -> StoreError {
    StoreError::Unavailable(text.to_string())
}

async fn read_tlog(
    shared: &Shared,
    subject: &Subject,
    size: ScoSize,
    object: ScoObject,
    turn: &Turn<'_>,
) -> Result<Bytes, Refusal> {
    if object.is_bundle() {
        let index = index_of(shared, subject, object, turn).await;
        return index.map(|(bytes, _)| bytes).map_err(|error| error.refusal());
    }
    let name = name_of(subject, object);
    let read = shared
        .store
        .get_whole(&subject.pool, name, size.data_offset())
        .await;
    match read {
        Ok(Some(bytes)) => {
            turn.moved(bytes.len());
            Ok(bytes)
        }
        Ok(None) => {
            let text = format!("volume {}: object {name} is gone", subject.path);
            tracing::error!("{text}");
            Err(Refusal::damaged(text))
        }
        Err(error) => Err(error.refusal()),
    }
}

async fn index_of(
    shared: &Shared,
    subject: &Subject,
    object: ScoObject,
    turn: &Turn<'_>,
) -> Result<(Bytes, BundleIndex), StoreError> {
    let name = name_of(subject, object);
    let mut length = CLUSTER_LEN;
    loop {
        let bytes = shared.store.get_whole(&subject.pool, name, length as u64).await?;
        let bytes = bytes.ok_or_else(|| StoreError::NotFound(format!("object {name} is gone")))?;
        turn.moved(bytes.len());
        let due =
            BundleIndex::len_of(bytes.get(..START_BYTES).unwrap_or(&bytes)).map_err(|error| wrong(&error))?;
        if due <= bytes.len() || due <= length {
            let index = BundleIndex::from_bytes(&bytes).map_err(|error| wrong(&error))?;
            return Ok((bytes.slice(..due), index));
        }
        length = due;
    }
}

/// The bundle's version; `None` where the volume is served here no more.
async fn write(
    shared: &Shared,
    owner: &Owner,
    plan: &BundlePlan,
    turn: &Turn<'_>,
) -> Result<Option<u16>, StoreError> {
    let subject = owner.subject();
    let kept = plan.sources.iter().flat_map(|source| &source.scos);
    let length: usize = kept.map(|sco| sco.kept.len() * CLUSTER_LEN).sum();
    let _room = shared.room.take(&subject.pool, length as u64).await;
    if !owner.is_current() {
        return Ok(None);
    }
    let mut clusters = BytesMut::with_capacity(length);
    let mut members = Vec::new();
    for source in &plan.sources {
        gather(shared, &subject, source, turn, &mut clusters).await?;
        members.extend(source.scos.iter().filter_map(member));
    }
    let index = BundleIndex {
        volume: subject.volume,
        members,
    };
    let bundle = index
        .pack(clusters.chunks(CLUSTER_LEN))
        .map_err(|error| wrong(&error))?;
    drop(clusters);
    let mut version = plan.above.version.max(BUNDLE_FROM - 1);
    for _ in 0..VERSIONS_TRIED {
        let Some(next) = version.checked_add(1) else { break };
        version = next;
        let name = name_of(
            &subject,
            ScoObject {
                version,
                ..plan.above
            },
        );
        match shared.store.put(&subject.pool, name, bundle.clone()).await {
            Ok(()) => {
                turn.moved(bundle.len());
                return Ok(Some(version));
            }
            // A crash left it: what it keeps may be another choice. Or another owner scrubs: to go on would put what this
            // one keeps in front of what that one needs.
            Err(StoreError::Refused(refusal)) if refusal.code == RefusalCode::Exists => {
                match verify(&shared.registry, subject.volume, owner.ownership()).await {
                    Ok(()) => {}
                    Err(RecordError::Refused(refusal)) => {
                        owner.lost(refusal);
                        return Ok(None);
                    }
                    Err(RecordError::Unavailable(cause)) => return Err(StoreError::Unavailable(cause)),
                }
            }
            Err(error) => return Err(error),
        }
    }
    Err(wrong(&format!(
        "no version of SCO {} is free for a bundle",
        plan.above.sco
    )))
}

fn member(sco: &KeptSco) -> Option<Member> {
    let last = sco.kept.last()?;
    Some(Member {
        sco: sco.sco,
        epoch: sco.epoch,
        size: sco.size,
        length: sco.size.slot_offset(last.slot) + CLUSTER_BYTES,
        kept: sco.kept.clone(),
    })
}

/// Reads what is kept of an object, checked, in order.
async fn gather(
    shared: &Shared,
    subject: &Subject,
    source: &BundleSource,
    turn: &Turn<'_>,
    clusters: &mut BytesMut,
) -> Result<(), StoreError> {
    let name = name_of(subject, source.object);
    let wanted = match source.object.is_bundle() {
        true => in_bundle(&index_of(shared, subject, source.object, turn).await?.1, source),
        false => in_sco(source),
    };
    for range in ranges(&wanted) {
        let (Some((first, _)), Some((last, _))) = (range.first(), range.last()) else {
            continue;
        };
        let length = u32::try_from(last - first + CLUSTER_BYTES).unwrap_or(GET_BYTES_MAX);
        let bytes = shared.store.get(&subject.pool, name, *first, length).await?;
        turn.moved(bytes.len());
        for (offset, crc) in range {
            let at = usize::try_from(offset - first).unwrap_or(usize::MAX);
            let cluster = bytes.get(at..at.saturating_add(CLUSTER_LEN)).unwrap_or_default();
            if crc32c(cluster) != *crc || cluster.is_empty() {
                let text = format!(
                    "volume {}: object {name}: the cluster at byte {offset} is not what was written there: it is not scrubbed",
                    subject.path
                );
                tracing::error!("{text}");
                return Err(wrong(&text));
            }
            clusters.extend_from_slice(cluster);
        }
    }
    Ok(())
}

/// Offset and CRC32C of each cluster that is kept of a SCO.
fn in_sco(source: &BundleSource) -> Vec<(u64, u32)> {
    let scos = source.scos.iter();
    scos.flat_map(|sco| {
        sco.kept
            .iter()
            .map(|kept| (sco.size.slot_offset(kept.slot), kept.crc))
    })
    .collect()
}

/// The same of a bundle.
fn in_bundle(index: &BundleIndex, source: &BundleSource) -> Vec<(u64, u32)> {
    let there = index
        .members
        .iter()
        .flat_map(|member| member.kept.iter().map(|kept| (member.sco, kept.slot)));
    let mut places = there.zip((index.index_len() as u64..).step_by(CLUSTER_LEN));
    let kept = source
        .scos
        .iter()
        .flat_map(|sco| sco.kept.iter().map(|kept| (sco.sco, kept)));
    // Both ascend, and what is kept is there: the volume has it from this index.
    kept.filter_map(|(sco, kept)| {
        let place = places.find(|(place, _)| *place == (sco, kept.slot));
        place.map(|(_, offset)| (offset, kept.crc))
    })
    .collect()
}

/// Cuts into what is read at once.
fn ranges(wanted: &[(u64, u32)]) -> impl Iterator<Item = &[(u64, u32)]> {
    let mut first = 0;
    wanted.chunk_by(move |(at, _), (next, _)| {
        first = if first == 0 { *at } else { first };
        let is_near = next - at <= GAP_MAX && next - first + CLUSTER_BYTES <= u64::from(GET_BYTES_MAX);
        first = if is_near { first } else { *next };
        is_near
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_near_is_read_at_once_and_no_read_is_too_long() {
        let most = u64::from(GET_BYTES_MAX) / CLUSTER_BYTES;
        let clusters: Vec<(u64, u32)> = [1, 2, 17, 34, 35]
            .into_iter()
            .chain(100..100 + most * 2 + 1)
            .map(|cluster| (cluster * CLUSTER_BYTES, 0))
            .collect();
        let counts: Vec<usize> = ranges(&clusters).map(<[_]>::len).collect();
        let most = usize::try_from(most).unwrap_or(0);
        assert_eq!(counts, [3, 2, most, most, 1]);
    }
}
