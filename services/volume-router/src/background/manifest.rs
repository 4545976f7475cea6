//! Manifests: stored, named in the registry, found again.
//!
//! Keeps: nothing.
//! Order: on the back ends first, then in the registry's record, then the one before the last is removed.
//! Crash: a manifest that the record does not name is found by listing; a superseded one that stayed is harmless.
//! Knows no trees.

use std::sync::Arc;

use sconce_runtime::crash::{Point, hit};
use sconce_schemas::manifest::{MANIFEST_BYTES_MAX, Manifest};
use sconce_schemas::object::ObjectKind;
use sconce_schemas::records::{EpochStart, ManifestRef};
use sconce_schemas::wire::Refusal;
use sconce_schemas::{Epoch, ManifestSeq, ObjectName};
use sconce_volume::Event;

use super::outage::Tried;
use super::{Shared, StoreError, Subject};
use crate::actor::Owner;
use crate::owner::is_of_the_log;
use crate::owner::record::note_manifest;

/// Runs until the registry names the manifest, or the owner is owner no more.
pub(super) async fn store(shared: &Shared, owner: &Owner, manifest: &Manifest) {
    let subject = owner.subject();
    let bytes = bytes::Bytes::from(manifest.to_bytes());
    if bytes.len() > MANIFEST_BYTES_MAX {
        // Stored, it could not be read, and a recovery would begin with an older one.
        return owner.broken(&format!(
            "manifest {} is {} bytes long",
            manifest.seq,
            bytes.len()
        ));
    }
    let name = name_of(manifest);
    let put = || async {
        match shared.store.put(&subject.pool, name, bytes.clone()).await {
            Ok(()) => Tried::Over(()),
            Err(error) => Tried::Again(error),
        }
    };
    let wanted = || owner.is_current();
    if owner
        .outage()
        .endure("storing", &subject.path, wanted, put)
        .await
        .is_none()
    {
        return;
    }
    hit(Point::AfterManifestStored);
    keep(shared, &subject, manifest).await;
    let reference = ManifestRef {
        seq: manifest.seq,
        epoch: manifest.epoch,
    };
    let own = owner.ownership();
    let note = || async {
        Tried::from(note_manifest(&shared.registry, subject.volume, own, reference, || owner.size()).await)
    };
    let noted = owner
        .outage()
        .endure("noting a manifest in the registry", &subject.path, wanted, note);
    match noted.await {
        Some(Ok(())) => {
            hit(Point::AfterRecordUpdated);
            owner.happened(Event::ManifestStored { seq: manifest.seq });
            forget(shared, &subject, owner.superseded(reference)).await;
        }
        Some(Err(refusal)) => owner.lost(refusal),
        None => {}
    }
}

fn name_of(manifest: &Manifest) -> ObjectName {
    ObjectName::Manifest {
        volume: manifest.volume,
        seq: manifest.seq,
        epoch: manifest.epoch,
    }
}

async fn keep(shared: &Shared, subject: &Subject, manifest: &Manifest) {
    let (copies, manifest) = (Arc::clone(&shared.checkpoints), manifest.clone());
    let kept = sconce_runtime::blocking(move || copies.keep_manifest(&manifest)).await;
    if let Ok(Err(error)) = kept {
        tracing::info!(volume = %subject.path, %error, "no local copy of the manifest");
    }
}

/// Removes a manifest that two newer ones supersede. One that stays, because this fails, is only space.
async fn forget(shared: &Shared, subject: &Subject, superseded: Option<ManifestRef>) {
    let Some(ManifestRef { seq, epoch }) = superseded else {
        return;
    };
    let name = ObjectName::Manifest {
        volume: subject.volume,
        seq,
        epoch,
    };
    if let Err(error) = shared.store.delete(&subject.pool, name).await {
        tracing::debug!(volume = %subject.path, %name, %error, "a superseded manifest stays");
    }
}

/// The manifest of the highest epoch, then number, that the back ends have and that is of the log of these ownerships: the one that
/// the registry's record names, or a later one. A listing may be older than the record, and what it lists be gone.
pub(super) async fn newest(
    shared: &Shared,
    subject: &Subject,
    epochs: &[EpochStart],
    recorded: Option<ManifestRef>,
) -> Result<Option<Manifest>, StoreError> {
    let mut found: Vec<(Epoch, ManifestSeq)> = Vec::new();
    let mut after = None;
    loop {
        let page = shared
            .store
            .list(&subject.pool, subject.volume, ObjectKind::Manifest, after)
            .await?;
        let Some(last) = page.last() else { break };
        after = Some(*last);
        found.extend(page.iter().filter_map(|name| match name {
            ObjectName::Manifest { seq, epoch, .. } => Some((*epoch, *seq)),
            _ => None,
        }));
    }
    let is_newer = |(epoch, seq): &(Epoch, ManifestSeq)| {
        recorded.is_none_or(|recorded| (*epoch, *seq) > (recorded.epoch, recorded.seq))
    };
    found.retain(is_newer);
    found.sort_unstable();
    for (epoch, seq) in found.into_iter().rev() {
        let name = ObjectName::Manifest {
            volume: subject.volume,
            seq,
            epoch,
        };
        let Some(manifest) = named(shared, subject, name).await? else {
            // Not the same as that there is none.
            let text = format!(
                "volume {}: manifest {name} was superseded while it was read",
                subject.path
            );
            return Err(StoreError::Unavailable(text));
        };
        if is_taken(subject, &manifest, epochs) {
            return Ok(Some(manifest));
        }
    }
    let Some(reference) = recorded else {
        return Ok(None);
    };
    let manifest = self::recorded(shared, subject, reference).await?;
    Ok(is_taken(subject, &manifest, epochs).then_some(manifest))
}

fn is_taken(subject: &Subject, manifest: &Manifest, epochs: &[EpochStart]) -> bool {
    let is_taken = is_of_the_log(manifest.epoch, manifest.covered_sco, epochs);
    if !is_taken {
        let name = name_of(manifest);
        tracing::info!(volume = %subject.path, %name, "a manifest that an owner stored after it was owner no more is passed over");
    }
    is_taken
}

/// The manifest that the registry's record names.
pub(super) async fn recorded(
    shared: &Shared,
    subject: &Subject,
    ManifestRef { seq, epoch }: ManifestRef,
) -> Result<Manifest, StoreError> {
    let name = ObjectName::Manifest {
        volume: subject.volume,
        seq,
        epoch,
    };
    named(shared, subject, name).await?.ok_or_else(|| {
        StoreError::NotFound(format!(
            "volume {}: the registry names the manifest {name}, but pool {} has no such object",
            subject.path, subject.pool
        ))
    })
}

/// This manifest, checked.
async fn named(shared: &Shared, subject: &Subject, name: ObjectName) -> Result<Option<Manifest>, StoreError> {
    let length = MANIFEST_BYTES_MAX as u64;
    let Some(bytes) = shared.store.get_whole(&subject.pool, name, length).await? else {
        return Ok(None);
    };
    let manifest = Manifest::from_bytes(&bytes).map_err(|error| {
        let text = format!("volume {}: manifest {name}: {error}", subject.path);
        StoreError::Refused(Refusal::damaged(text))
    })?;
    Ok(Some(manifest))
}
