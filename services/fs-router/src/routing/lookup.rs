//! What routing asks the registry: where a volume is served, what wrote a SCO, which storage-routers are alive.
//!
//! Keeps: nothing.
//! Order: none.
//! Crash: nothing is changed.
//! Knows no core: it answers in the core's words.

use futures_util::future::join;
use sconce_registry::Registry;
use sconce_schemas::VolumeId;
use sconce_schemas::records::{NodeRecord, PoolRecord, VolumePhase, VolumeRecord, keys};
use sconce_schemas::wire::{Refusal, RefusalCode, Role};

use super::core::{Routed, Writer};

/// Where a volume is served.
pub(super) async fn owner_of(registry: &Registry, volume: VolumeId) -> Routed {
    let record = match registry.get_record::<VolumeRecord>(&keys::volume(volume)).await {
        Ok(Some((record, _))) => record,
        Ok(None) => return gone(volume, "there is no volume"),
        Err(error) => return Routed::Unknown(error.to_string()),
    };
    if record.phase == VolumePhase::Deleting {
        return gone(volume, "deleted: volume");
    }
    let owner = keys::node(&record.owner);
    let (node, writer) = join(
        registry.get_record::<NodeRecord>(&owner),
        writer(registry, &record),
    )
    .await;
    let node = match node {
        Ok(Some((node, _))) => node,
        Ok(None) => {
            return Routed::Absent(format!(
                "volume {volume} waits for its owner {}, which is not running",
                record.owner
            ));
        }
        Err(error) => return Routed::Unknown(error.to_string()),
    };
    let Some(endpoint) = endpoint_for(volume, &node.endpoints) else {
        let text = format!("the owner {} of volume {volume} has no endpoint", record.owner);
        return Routed::Unknown(text);
    };
    match writer {
        Ok(writer) => Routed::At {
            endpoint: endpoint.to_owned(),
            writer,
        },
        Err(error) => Routed::Unknown(error),
    }
}

fn gone(volume: VolumeId, what: &str) -> Routed {
    Routed::Gone(Refusal::reject(RefusalCode::NotFound, format!("{what} {volume}")))
}

/// The endpoint of a node for a volume: by the first 8 bytes of its id, as [`NodeRecord::endpoints`] says.
#[must_use]
pub fn endpoint_for(volume: VolumeId, endpoints: &[String]) -> Option<&str> {
    let [a, b, c, d, e, f, g, h, ..] = volume.0;
    let number = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
    let index = number.checked_rem(endpoints.len() as u64)?;
    endpoints.get(usize::try_from(index).ok()?).map(String::as_str)
}

/// What locates the SCOs that a volume wrote. A deleted volume's clones still read them.
pub(super) async fn writer_of(registry: &Registry, volume: VolumeId) -> Result<Option<Writer>, String> {
    let found = registry.get_record::<VolumeRecord>(&keys::volume(volume)).await;
    match found.map_err(|error| error.to_string())? {
        Some((record, _)) => writer(registry, &record).await.map(Some),
        None => Ok(None),
    }
}

async fn writer(registry: &Registry, record: &VolumeRecord) -> Result<Writer, String> {
    let pool = registry.get_record::<PoolRecord>(&keys::pool(&record.pool)).await;
    let pool = pool.map_err(|error| error.to_string())?;
    Ok(Writer {
        pool: record.pool.clone(),
        sco_size: record.sco_size,
        // What may be in clear on its back ends may be in clear here (docs/decisions/0231).
        is_cacheable: pool.is_some_and(|(pool, _)| !pool.encrypted),
    })
}

/// One endpoint of each storage-router that is alive: IO threads are spread over a node's endpoints by `spread`.
pub(super) async fn storage_routers(registry: &Registry, spread: usize) -> Vec<String> {
    match registry.nodes().await {
        Ok(nodes) => nodes
            .into_iter()
            .filter(|node| node.role == Role::StorageRouter)
            .filter_map(|node| {
                let index = spread.checked_rem(node.endpoints.len())?;
                node.endpoints.get(index).cloned()
            })
            .collect(),
        Err(error) => {
            tracing::debug!(%error, "the registry does not tell which storage-routers are alive");
            Vec::new()
        }
    }
}
