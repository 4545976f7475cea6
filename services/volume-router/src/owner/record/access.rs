//! Write access in the volume's record: taken for a front end, given up, changed as a person asks.
//!
//! Keeps: nothing; the registry does.
//! Order: whoever takes it from another raises the generation in the same commit.
//! Crash: what was committed and not heard of is found when the record is read again.
//! Knows no sessions.

use sconce_registry::Registry;
use sconce_runtime::Clock;
use sconce_schemas::access::{Access, AccessChange, AccessHolder};
use sconce_schemas::records::keys;
use sconce_schemas::wire::event::AccessWhy;
use sconce_schemas::{NodeName, VolumeId};

use crate::actor::Claim;

use super::{Changed, Ownership, RecordError, change_own, read, retry_or};

/// What came of a front end's wish to write.
#[derive(Debug)]
pub(crate) enum Claimed {
    /// The record names it as the holder.
    Taken(Access, AccessWhy),
    /// It names another one, which may have it.
    Held(Access),
}

/// Names a front end as the one that may write, if no other may; `known`: what the owner knows beside the record. Where that is in doubt
/// the record is written also if it names the front end already: a release that is still on its way comes to nothing by that.
pub(crate) async fn take_access(
    registry: &Registry,
    volume: VolumeId,
    own: &Ownership,
    (node, known): (&NodeName, &Claim),
    clock: &Clock,
) -> Result<Claimed, RecordError> {
    let mut first_why = None;
    loop {
        let (mut record, revision) = read(registry, volume).await?;
        own.holds(&record).map_err(RecordError::Refused)?;
        let now_us = clock.unix_micros();
        let why = match record.access.held_by() {
            Some(holder) if holder.node == *node && known.doubt && first_why.is_none() => AccessWhy::Free,
            // One whose outcome was not known.
            Some(holder) if holder.node == *node => {
                return Ok(Claimed::Taken(
                    record.access,
                    first_why.unwrap_or(AccessWhy::Free),
                ));
            }
            Some(_) if record.access.is_offered(now_us) => AccessWhy::HandedOver,
            Some(holder) if known.given_up.as_ref() == Some(&holder.node) => AccessWhy::Free,
            Some(holder) => {
                let is_there = known.connected || registry.get(&keys::node(&holder.node)).await?.is_some();
                if is_there {
                    return Ok(Claimed::Held(record.access));
                }
                AccessWhy::Gone
            }
            None => AccessWhy::Free,
        };
        let why = *first_why.get_or_insert(why);
        let is_anothers = record
            .access
            .holder
            .as_ref()
            .is_none_or(|holder| holder.node != *node);
        if record.access.held_by().is_none_or(|holder| holder.node != *node) {
            record.access = Access {
                mode: record.access.mode,
                generation: record.access.generation + u64::from(is_anothers),
                holder: Some(AccessHolder {
                    node: node.clone(),
                    since_us: now_us,
                    released: false,
                }),
                hand_over_until_us: None,
            };
        }
        let key = keys::volume(volume);
        match registry.put_record(&key, Some(revision), &record, None).await {
            Ok(_) => return Ok(Claimed::Taken(record.access, why)),
            Err(error) => retry_or(error)?,
        }
    }
}

/// Notes that the front end that may write has given that up. Gives what the record says. `doubt`: a change of it may be on its way, so that it
/// is written also where it says so; that change comes to nothing by that.
pub(crate) async fn release_access(
    registry: &Registry,
    volume: VolumeId,
    own: &Ownership,
    doubt: bool,
) -> Result<Access, RecordError> {
    let record = change_own(registry, volume, own, |record| {
        record.access.hand_over_until_us = None;
        match &mut record.access.holder {
            Some(holder) if !holder.released => {
                holder.released = true;
                Changed::Yes
            }
            _ => Changed::when(doubt),
        }
    })
    .await?;
    Ok(record.access)
}

/// Changes write access as a person asks. Gives what the record says.
pub(crate) async fn change_access(
    registry: &Registry,
    volume: VolumeId,
    own: &Ownership,
    change: AccessChange,
    clock: &Clock,
) -> Result<Access, RecordError> {
    let record = change_own(registry, volume, own, |record| {
        let access = &mut record.access;
        match change {
            AccessChange::Mode { mode } if mode == access.mode => return Changed::No,
            AccessChange::Mode { mode } => {
                // Who writes first has it, or all have it.
                access.mode = mode;
                access.holder = None;
                access.hand_over_until_us = None;
            }
            AccessChange::HandOver { within_us } if access.held_by().is_some() => {
                access.hand_over_until_us = Some(clock.unix_micros().saturating_add(within_us));
            }
            AccessChange::Break if access.held_by().is_some() => {
                access.generation += 1;
                access.holder = None;
                access.hand_over_until_us = None;
            }
            // Nobody has it: whoever writes next gets it without that.
            AccessChange::HandOver { .. } | AccessChange::Break => return Changed::No,
        }
        Changed::Yes
    })
    .await?;
    Ok(record.access)
}
