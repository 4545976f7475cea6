//! The host's part of a scrub: an object's TLog or index is read, a bundle of what is kept is written, an object is deleted.
//!
//! Keeps: nothing; the budget says whose turn it is.
//! Order: the bundle is durable before the volume hears of it; the old objects go when the volume says so.
//! Crash: a bundle that the volume did not hear of stays as an object too many.
//! Knows no map: the volume says what is kept.

use bytes::Bytes;
use sconce_schemas::bundle::{BUNDLE_FROM, BundleIndex, Member};
use sconce_schemas::wire::Refusal;
use sconce_schemas::wire::scrub::{BundleJob, JobSource};
use sconce_schemas::{ByteLen, CLUSTER_BYTES, DecodeError, ObjectName, ScoSize};
use sconce_volume::{BundlePlan, Event, KeptSco, ScoObject};

use super::budget::Turn;
use super::bundle::{self, Bundle, JobError, index_of, wrong};
use super::{Shared, StoreError, Subject};
use crate::actor::Owner;
use crate::settings::ScrubHelp;

/// Versions that crashes may have left behind and that are passed over.
const VERSIONS_TRIED: u16 = 64;

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
    let event = match job {
        ScrubJob::ReadTlog(object) => {
            let turn = shared.scrubs.turn(&subject.pool, is_urgent).await;
            Event::TlogRead {
                object,
                result: read_tlog(shared, &subject, size, object, &turn).await,
            }
        }
        ScrubJob::Write(plan) => {
            let to = match write(shared, owner, &plan, is_urgent).await {
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
            let turn = shared.scrubs.turn(&subject.pool, is_urgent).await;
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

async fn read_tlog(
    shared: &Shared,
    subject: &Subject,
    size: ScoSize,
    object: ScoObject,
    turn: &Turn<'_>,
) -> Result<Bytes, Refusal> {
    if object.is_bundle() {
        let index = index_of(shared, &subject.pool, name_of(subject, object), turn).await;
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

/// The bundle's version; `None` where the volume is served here no more.
async fn write(
    shared: &Shared,
    owner: &Owner,
    plan: &BundlePlan,
    is_urgent: bool,
) -> Result<Option<u16>, StoreError> {
    let sco = plan.above.sco;
    let known = plan.above.version.max(BUNDLE_FROM - 1);
    let mut version = owner.help(|help| help.taken(sco, known));
    for _ in 0..VERSIONS_TRIED {
        let Some(next) = version.checked_add(1) else { break };
        version = next;
        if !owner.is_current() {
            return Ok(None);
        }
        let bundle = bundle_of(owner, plan, version).map_err(|error| wrong(&error))?;
        match carry_out(shared, owner, &bundle, is_urgent).await {
            Ok(_) => {
                owner.help(|help| help.known(sco));
                return Ok(Some(version));
            }
            // A crash left it: what it keeps may be another choice. Or another owner scrubs: to go on would put what this
            // one keeps in front of what that one needs. The next try finds that out before it puts anything.
            Err(JobError::Exists(_)) => {}
            Err(JobError::Lost(refusal)) => {
                owner.lost(refusal);
                return Ok(None);
            }
            Err(JobError::Damaged(text)) => {
                tracing::error!("{text}");
                return Err(wrong(&text));
            }
            Err(JobError::Store(error)) => return Err(error),
        }
    }
    Err(wrong(&format!("no version of SCO {sco} is free for a bundle")))
}

/// Writes the bundle, here or at a neighbour. A neighbour's work takes nothing of this node's budget.
async fn carry_out(
    shared: &Shared,
    owner: &Owner,
    bundle: &Bundle,
    is_urgent: bool,
) -> Result<ByteLen, JobError> {
    let pool = bundle.job().pool.as_str();
    let turn = match shared.neighbours.help() {
        ScrubHelp::Off => Some(shared.scrubs.turn(pool, is_urgent).await),
        ScrubHelp::WhenBusy => shared.scrubs.turn_now(pool, is_urgent),
        ScrubHelp::Always => None,
    };
    let turn = match turn {
        Some(turn) => turn,
        None => match shared.neighbours.write(owner, bundle).await {
            Some(done) => return done,
            None => shared.scrubs.turn(pool, is_urgent).await,
        },
    };
    bundle::write(shared, bundle, &turn).await
}

fn bundle_of(owner: &Owner, plan: &BundlePlan, version: u16) -> Result<Bundle, DecodeError> {
    let (subject, ownership) = (owner.subject(), owner.ownership());
    let (mut sources, mut members) = (Vec::new(), Vec::new());
    for source in &plan.sources {
        let kept: Vec<Member> = source.scos.iter().filter_map(member).collect();
        // What goes whole is not read.
        if !kept.is_empty() {
            sources.push(JobSource {
                object: name_of(&subject, source.object),
                members: u32::try_from(kept.len()).unwrap_or(u32::MAX),
            });
        }
        members.extend(kept);
    }
    let above = ScoObject {
        version,
        ..plan.above
    };
    let job = BundleJob {
        bundle: name_of(&subject, above),
        sources,
        pool: subject.pool.to_string(),
        path: subject.path.to_string(),
        owner: ownership.node.clone(),
        epoch: ownership.epoch,
    };
    let index = BundleIndex {
        volume: subject.volume,
        members,
    };
    Bundle::new(job, index)
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
