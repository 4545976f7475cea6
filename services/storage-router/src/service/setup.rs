//! The start of a storage-router: back ends are recognised, pools are made where they are not there.
//!
//! Keeps: in the registry, each back end's identity and each pool's record.
//! Order: a back end has its identity before the registry knows it; whoever comes later compares.
//! Crash: a start that ended in between is completed by the next.
//! Knows no requests.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use sconce_registry::{CommitError, Registry, Revision};
use sconce_runtime::Events;
use sconce_schemas::BackendId;
use sconce_schemas::records::{BackendRecord, Record, keys};
use sconce_schemas::wire::event::What;

use crate::backend::Identified;
use crate::checked::Checked;
use crate::directory::{DirectoryBackend, DirectorySettings};
use crate::s3::S3Backend;
use crate::settings::{BackendSettings, Settings, StoreSettings};
use crate::workers::Workers;

/// Opens the back ends of the settings. One that is known and absent now is served as absent, until it is back.
pub(super) async fn backends(
    settings: &Settings,
    registry: &Registry,
    workers: &Workers,
    events: &Events,
) -> anyhow::Result<HashMap<String, Arc<Checked>>> {
    let mut open = HashMap::new();
    let limits = &settings.limits;
    let deadline = limits.backend_deadline.duration();
    // A single back end gets half: what it does not concern is answered then, too.
    let sharers = settings.backends.len().max(2);
    for backend in &settings.backends {
        let recognised = recognised(settings, backend, registry, events)
            .await
            .with_context(|| format!("back end {}", backend.name))?;
        let checked = Checked::new(recognised, workers.clone(), deadline)
            .at_most(limits.requests / sharers, limits.bytes.bytes() / sharers as u64)
            .telling(events.clone());
        open.insert(backend.name.to_string(), Arc::new(checked));
    }
    Ok(open)
}

async fn recognised(
    settings: &Settings,
    backend: &BackendSettings,
    registry: &Registry,
    events: &Events,
) -> anyhow::Result<Arc<dyn Identified>> {
    let name = backend.name.to_string();
    let key = keys::backend(&name);
    let known = registry.get_record::<BackendRecord>(&key).await?;
    let expected = known.as_ref().map(|(record, _)| record.id);
    let found = open(settings, backend, expected)?;
    match (found.attach().await, known) {
        (Ok(id), None) => {
            let registered = register(registry, &key, BackendRecord { name, id }).await?.id;
            use_registered(&*found, id, registered);
        }
        (Ok(_), Some(_)) => {}
        // Nothing was ever stored there: most likely a wrong place in the settings.
        (Err(error), None) => bail!("{error}"),
        (Err(error), Some(_)) => {
            let (backend, cause) = (
                found.name().to_owned(),
                format!("serving without it until it is back: {error}"),
            );
            events.tell(What::BackendFails { backend, cause });
        }
    }
    Ok(found)
}

fn open(
    settings: &Settings,
    backend: &BackendSettings,
    expected: Option<BackendId>,
) -> anyhow::Result<Arc<dyn Identified>> {
    let name = backend.name.to_string();
    Ok(match &backend.store {
        StoreSettings::Directory(root) => Arc::new(DirectoryBackend::new(DirectorySettings {
            name,
            root: root.clone(),
            node: settings.node.name.clone(),
            expected,
        })),
        StoreSettings::S3(s3) => {
            let deadline = settings.limits.backend_deadline.duration();
            Arc::new(S3Backend::new(&name, s3, deadline, expected).map_err(anyhow::Error::msg)?)
        }
    })
}

fn use_registered(found: &dyn Identified, ours: BackendId, registered: BackendId) {
    if ours != registered {
        found.expect(registered);
        tracing::warn!(
            backend = found.name(), %ours, %registered,
            "another storage-router registered this back end with another identity: serving without ours"
        );
    }
}

/// Makes the pools of the settings that the registry does not have.
pub(super) async fn pools(settings: &Settings, registry: &Registry) -> anyhow::Result<()> {
    for pool in &settings.pools {
        let wanted = pool.record();
        let found = register(registry, &keys::pool(&wanted.name), wanted.clone())
            .await
            .with_context(|| format!("pool {}", pool.name))?;
        if found != wanted {
            tracing::warn!(
                pool = %pool.name, registry = ?found, settings = ?wanted,
                "the settings describe the pool differently from the registry; the registry's record counts"
            );
        }
    }
    Ok(())
}

/// The record at `key`; `record` where there is none yet.
async fn register<R: Record>(registry: &Registry, key: &str, record: R) -> anyhow::Result<R> {
    match registry
        .put_record(key, Some(Revision::ABSENT), &record, None)
        .await
    {
        Ok(_) => return Ok(record),
        // Somebody else was first, or it was us and the answer was lost.
        Err(CommitError::Conflict { .. } | CommitError::Unknown { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    let found = registry.get_record::<R>(key).await?;
    found
        .map(|(record, _)| record)
        .context("the registry lost the record; start again")
}
