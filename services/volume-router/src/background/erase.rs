//! Deletion: a volume that is gone from the names gives its space back.
//!
//! Keeps: nothing; the record's phase says that it is not over.
//! Order: objects first, manifests last of them, then the record: while a manifest is there the volume is a volume.
//! Crash: begun again at the next start, from whatever is still there.
//! Knows no engine: the volume is not served any more.

use std::sync::Arc;

use sconce_schemas::object::ObjectKind;

use super::outage::{Outage, Tried};
use super::{Shared, StoreError, Subject};
use crate::owner::record::{self, RecordError};

/// Runs until nothing of the volume is left.
pub(super) async fn run(shared: &Shared, subject: &Subject) {
    if !shared.erasing.borrow_mut().insert(subject.volume) {
        return;
    }
    erase(shared, subject).await;
    shared.erasing.borrow_mut().remove(&subject.volume);
}

async fn erase(shared: &Shared, subject: &Subject) {
    let (copies, volume) = (Arc::clone(&shared.checkpoints), subject.volume);
    // What stays of the local copies is only space, until it is the oldest.
    let _ = tokio::task::spawn_blocking(move || copies.forget(volume)).await;
    let outage = Outage::default();
    for kind in [ObjectKind::Sco, ObjectKind::Map, ObjectKind::Manifest] {
        let delete = || async {
            match delete_all(shared, subject, kind).await {
                Ok(()) => Tried::Over(()),
                Err(error) => Tried::Again(error),
            }
        };
        outage.endure("deleting", &subject.path, || true, delete).await;
    }
    let remove = || async {
        match record::remove(&shared.registry, subject.volume).await {
            Ok(()) => Tried::Over(Ok(())),
            Err(RecordError::Refused(refusal)) => Tried::Over(Err(refusal)),
            Err(RecordError::Unavailable(cause)) => Tried::Again(cause),
        }
    };
    match outage.endure("deleting", &subject.path, || true, remove).await {
        Some(Ok(())) => tracing::info!(volume = %subject.path, "deleted"),
        Some(Err(refusal)) => {
            tracing::warn!(volume = %subject.path, %refusal, "deleted, but its record stays")
        }
        None => {}
    }
}

async fn delete_all(shared: &Shared, subject: &Subject, kind: ObjectKind) -> Result<(), StoreError> {
    loop {
        let page = shared
            .store
            .list(&subject.pool, subject.volume, kind, None)
            .await?;
        if page.is_empty() {
            return Ok(());
        }
        for name in page {
            shared.store.delete(&subject.pool, name).await?;
        }
    }
}
