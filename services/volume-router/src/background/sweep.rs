//! The host's part of a sweep: objects are listed, and what the volume found to be garbage is deleted.
//!
//! Keeps: nothing; it takes turns with scrubs, within their budget.
//! Order: the registry says that this is still the owner, then objects go.
//! Crash: what was not deleted is found again.
//! Knows no map: the volume says what is garbage.

use std::sync::Arc;

use sconce_schemas::ObjectName;
use sconce_schemas::object::ObjectKind;
use sconce_schemas::wire::{Refusal, RefusalCode};
use sconce_volume::Event;

use super::{Shared, Subject};
use crate::actor::Owner;
use crate::owner::record::RecordError;
use crate::owner::verify;

/// What a volume asks for.
#[derive(Debug)]
pub(crate) enum SweepJob {
    /// A page of its objects of a kind, those after this one.
    List(ObjectKind, Option<ObjectName>),
    /// These are to go.
    Delete(Vec<ObjectName>),
}

/// Runs to its end, good or bad: the volume tries again in time.
pub(super) async fn run(shared: &Shared, owner: &Owner, job: SweepJob) {
    let event = match job {
        SweepJob::List(kind, after) => Event::Listed {
            result: list(shared, owner, kind, after).await,
        },
        SweepJob::Delete(names) => Event::Deleted {
            done: delete(shared, owner, &names).await.is_ok(),
        },
    };
    owner.happened(event);
}

async fn list(
    shared: &Shared,
    owner: &Owner,
    kind: ObjectKind,
    after: Option<ObjectName>,
) -> Result<Vec<ObjectName>, Refusal> {
    let subject = owner.subject();
    let turn = shared.scrubs.turn(&subject.pool, false).await;
    let names = shared
        .store
        .list(&subject.pool, subject.volume, kind, after)
        .await;
    turn.moved(0);
    names.map_err(|error| not_now(&subject, error.refusal()))
}

fn not_now(subject: &Subject, refusal: Refusal) -> Refusal {
    tracing::debug!(volume = %subject.path, %refusal, "not swept now");
    refusal
}

async fn delete(shared: &Shared, owner: &Owner, names: &[ObjectName]) -> Result<(), Refusal> {
    let subject = owner.subject();
    let turn = shared.scrubs.turn(&subject.pool, false).await;
    match verify(&shared.registry, subject.volume, owner.ownership()).await {
        Ok(()) => {}
        Err(RecordError::Refused(refusal)) => {
            owner.lost(refusal.clone());
            return Err(refusal);
        }
        Err(RecordError::Unavailable(cause)) => {
            return Err(not_now(&subject, Refusal::retry(RefusalCode::Unavailable, cause)));
        }
    }
    let mut failed = None;
    for name in names {
        if let Err(error) = shared.store.delete(&subject.pool, *name).await {
            // Where one back end is away the others' objects go.
            failed = Some(error);
            continue;
        }
        turn.moved(0);
        tracing::debug!(volume = %subject.path, %name, "swept: nothing refers to it");
        if let ObjectName::Map { volume, id, epoch } = *name {
            let copies = Arc::clone(&shared.checkpoints);
            // What stays of the local copy is only space, until it is the oldest.
            let _ = sconce_runtime::blocking(move || copies.discard(volume, id, epoch)).await;
        }
    }
    if let Some(error) = failed {
        return Err(not_now(&subject, error.refusal()));
    }
    tracing::info!(volume = %subject.path, objects = names.len(), "swept objects that nothing refers to");
    Ok(())
}
