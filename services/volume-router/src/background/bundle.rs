//! The work of one bundle: what is kept of its sources is read, each cluster checked, and put under the bundle's name. The volume's
//! owner runs it, or a neighbour that the owner asked.
//!
//! Keeps: nothing.
//! Order: nothing is put that is not whole and checked, nor for an ownership that is over.
//! Crash: what was put stays. Whoever carries the job out again puts the same bytes under the same name, which is as good.
//! Knows no map and decides nothing: the owner says what is kept, and what becomes of the bundle.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use sconce_runtime::crash::{Point, hit};
use sconce_schemas::bundle::{BundleIndex, Member, START_BYTES};
use sconce_schemas::crc::crc32c;
use sconce_schemas::records::VolumePhase;
use sconce_schemas::wire::scrub::BundleJob;
use sconce_schemas::wire::storage::GET_BYTES_MAX;
use sconce_schemas::wire::{Refusal, RefusalCode};
use sconce_schemas::{ByteLen, CLUSTER_BYTES, CLUSTER_LEN, DecodeError, ObjectName};

use super::budget::Turn;
use super::{Shared, StoreError};
use crate::owner::record::{self, Ownership, RecordError};

/// Clusters that are not kept and lie between two that are, and are read along: a request costs more than they do.
const GAP_MAX: u64 = 16 * CLUSTER_BYTES;

/// A bundle to be written.
#[derive(Debug)]
pub(super) struct Bundle {
    job: BundleJob,
    index: BundleIndex,
}

/// Why a bundle was not written.
#[derive(Debug)]
pub(super) enum JobError {
    /// There is an object of that name, and it holds something else.
    Exists(Refusal),
    /// The ownership that wants it is over.
    Lost(Refusal),
    /// A cluster that is to be kept is not what was written.
    Damaged(String),
    /// Something could not be read, or not be put.
    Store(StoreError),
}

impl From<StoreError> for JobError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Refused(refusal) if refusal.code == RefusalCode::Exists => Self::Exists(refusal),
            error => Self::Store(error),
        }
    }
}

impl JobError {
    /// What to answer to whoever asked for it.
    pub(super) fn refusal(&self) -> Refusal {
        match self {
            Self::Exists(refusal) | Self::Lost(refusal) => refusal.clone(),
            Self::Damaged(text) => Refusal::damaged(text.clone()),
            Self::Store(error) => error.refusal(),
        }
    }
}

impl Bundle {
    /// A job and the index that came beside it.
    ///
    /// # Errors
    /// They are not of one bundle.
    pub(super) fn new(job: BundleJob, index: BundleIndex) -> Result<Self, DecodeError> {
        job.check(&index)?;
        Ok(Self { job, index })
    }

    pub(super) const fn job(&self) -> &BundleJob {
        &self.job
    }

    pub(super) const fn index(&self) -> &BundleIndex {
        &self.index
    }

    /// The objects that it is made of, each with what is kept of it.
    fn sources(&self) -> impl Iterator<Item = (ObjectName, &[Member])> {
        let mut members = self.index.members.as_slice();
        self.job.sources.iter().map(move |source| {
            let count = usize::try_from(source.members).unwrap_or(usize::MAX);
            // The job was checked: there are as many.
            let (of_source, rest) = members.split_at(count.min(members.len()));
            members = rest;
            (source.object, of_source)
        })
    }
}

/// Writes the bundle; gives its length.
pub(super) async fn write(shared: &Shared, bundle: &Bundle, turn: &Turn<'_>) -> Result<ByteLen, JobError> {
    let (job, index) = (bundle.job(), bundle.index());
    let pool: Arc<str> = job.pool.as_str().into();
    let length = index.object_len();
    let _room = shared.room.take(&pool, length).await;
    let mut clusters = BytesMut::with_capacity(index.clusters() * CLUSTER_LEN);
    for (object, members) in bundle.sources() {
        gather(shared, job, object, members, turn, &mut clusters).await?;
    }
    let packed = index
        .pack(clusters.chunks(CLUSTER_LEN))
        .map_err(|error| wrong(&error))?;
    drop(clusters);
    still_wanted(shared, job).await?;
    hit(Point::BeforeBundlePut);
    shared.store.put(&pool, job.bundle, packed).await?;
    hit(Point::AfterBundlePut);
    turn.moved(usize::try_from(length).unwrap_or(usize::MAX));
    Ok(ByteLen(length))
}

/// Whether the ownership that wants the bundle still is one. A bundle for one that is over would do no harm, and no good either: whoever
/// owns the volume now has its own plans, and of a volume that is being deleted it would be left over.
pub(super) async fn still_wanted(shared: &Shared, job: &BundleJob) -> Result<(), JobError> {
    let own = Ownership {
        node: job.owner.clone(),
        epoch: job.epoch,
    };
    let read = record::read(&shared.registry, job.bundle.volume()).await;
    let (record, _) = read.map_err(|error| match error {
        RecordError::Refused(refusal) => JobError::Lost(refusal),
        RecordError::Unavailable(cause) => JobError::Store(StoreError::Unavailable(cause)),
    })?;
    own.holds(&record).map_err(JobError::Lost)?;
    if record.pool != job.pool {
        let text = format!(
            "volume {} is in pool {}, not in {}",
            job.path, record.pool, job.pool
        );
        return Err(JobError::Lost(Refusal::reject(RefusalCode::Invalid, text)));
    }
    match record.phase {
        VolumePhase::Active => Ok(()),
        VolumePhase::Deleting => {
            let text = format!("volume {} is being deleted", job.path);
            Err(JobError::Lost(Refusal::reject(RefusalCode::NotFound, text)))
        }
    }
}

pub(super) fn wrong(text: &impl ToString) -> StoreError {
    StoreError::Unavailable(text.to_string())
}

/// The index of a stored bundle, as bytes too.
pub(super) async fn index_of(
    shared: &Shared,
    pool: &str,
    name: ObjectName,
    turn: &Turn<'_>,
) -> Result<(Bytes, BundleIndex), StoreError> {
    let mut length = CLUSTER_LEN;
    loop {
        let bytes = shared.store.get_whole(pool, name, length as u64).await?;
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

/// Reads what is kept of an object, checked, in order.
async fn gather(
    shared: &Shared,
    job: &BundleJob,
    object: ObjectName,
    members: &[Member],
    turn: &Turn<'_>,
    clusters: &mut BytesMut,
) -> Result<(), JobError> {
    let wanted = match object.is_bundle() {
        true => in_bundle(&index_of(shared, &job.pool, object, turn).await?.1, members),
        false => in_sco(members),
    };
    for range in ranges(&wanted) {
        let (Some((first, _)), Some((last, _))) = (range.first(), range.last()) else {
            continue;
        };
        let length = u32::try_from(last - first + CLUSTER_BYTES).unwrap_or(GET_BYTES_MAX);
        let bytes = shared.store.get(&job.pool, object, *first, length).await?;
        turn.moved(bytes.len());
        for (offset, crc) in range {
            let at = usize::try_from(offset - first).unwrap_or(usize::MAX);
            let cluster = bytes.get(at..at.saturating_add(CLUSTER_LEN)).unwrap_or_default();
            if crc32c(cluster) != *crc || cluster.is_empty() {
                let text = format!(
                    "volume {}: object {object}: the cluster at byte {offset} is not what was written there: it is not scrubbed",
                    job.path
                );
                return Err(JobError::Damaged(text));
            }
            clusters.extend_from_slice(cluster);
        }
    }
    Ok(())
}

/// Offset and CRC32C of each cluster that is kept of a SCO.
fn in_sco(members: &[Member]) -> Vec<(u64, u32)> {
    let members = members.iter();
    members
        .flat_map(|member| {
            member
                .kept
                .iter()
                .map(|kept| (member.size.slot_offset(kept.slot), kept.crc))
        })
        .collect()
}

/// The same of a bundle.
fn in_bundle(index: &BundleIndex, members: &[Member]) -> Vec<(u64, u32)> {
    let there = index
        .members
        .iter()
        .flat_map(|member| member.kept.iter().map(|kept| (member.sco, kept.slot)));
    let mut places = there.zip((index.index_len() as u64..).step_by(CLUSTER_LEN));
    let kept = members
        .iter()
        .flat_map(|member| member.kept.iter().map(|kept| (member.sco, kept)));
    // Both ascend, and what is kept is there: the volume has it from this index. One that is not makes the bundle too short,
    // and it is not written.
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
