//! A bundle is written here for another node's volume, because its owner asked.
//!
//! Keeps: nothing; the budget is that of this node's own scrubs.
//! Order: who has no time says so at once, so that the owner looks elsewhere. One bundle at a time.
//! Crash: the owner has no answer, and writes the bundle itself.
//! Knows no volume of its own in this.

use bytes::Bytes;
use sconce_schemas::ByteLen;
use sconce_schemas::bundle::BundleIndex;
use sconce_schemas::wire::scrub::BundleJob;
use sconce_schemas::wire::{Refusal, RefusalCode};

use super::Shared;
use super::budget::Turn;
use super::bundle::{self, Bundle, JobError};

/// Carries the job out, unless this node's own volumes or guests need what it would take. What cannot be read is the owner's to tell: of a
/// job that comes late, what it was to read may be gone.
pub(super) async fn run(shared: &Shared, job: BundleJob, index: &Bytes) -> Result<ByteLen, Refusal> {
    let (name, owner) = (job.bundle, job.owner.clone());
    let bundle = BundleIndex::from_bytes(index).and_then(|index| Bundle::new(job, index));
    let bundle = bundle.map_err(|error| {
        let text = format!("bundle {name} is not written for {owner}: {error}");
        Refusal::reject(RefusalCode::Invalid, text)
    })?;
    let is_short = !shared.may_scrub || shared.level.is_pressed();
    let turn = match is_short {
        true => None,
        false => shared.scrubs.turn_now(&bundle.job().pool, false),
    };
    let turn = turn.ok_or_else(|| {
        let text = format!("no time to write bundle {name} for {owner} now");
        Refusal::retry(RefusalCode::Unavailable, text)
    })?;
    let written = write(shared, &bundle, &turn).await;
    tracing::debug!(%name, %owner, is_written = written.is_ok(), "a neighbour's bundle");
    written.map_err(|error| error.refusal())
}

/// Who comes late is told before anything is read: it would be found out only before the put.
async fn write(shared: &Shared, bundle: &Bundle, turn: &Turn<'_>) -> Result<ByteLen, JobError> {
    bundle::still_wanted(shared, bundle.job()).await?;
    bundle::write(shared, bundle, turn).await
}
