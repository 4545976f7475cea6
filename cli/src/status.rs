//! Keeps: `sconce status`.
//! Order: everything is asked at the same time, and given a moment to answer.
//! Crash: nothing is changed.
//! Knows no volume's data.

use anyhow::{Result, bail};
use futures_util::StreamExt as _;
use futures_util::future::join_all;
use futures_util::stream;
use sconce_fs_router::peers::{PeerError, is_served};
use sconce_schemas::records::{NodeRecord, PoolRecord};
use sconce_schemas::wire::Role;
use sconce_schemas::wire::storage::StorageNodeStatus;
use sconce_schemas::wire::volume::{NodeStatus, VolumeControl, VolumeControlReply, VolumeStatus};
use sconce_schemas::{NodeName, VolumeId};

use crate::args::{Format, Status};
use crate::cluster::{Cluster, LIVE_DEADLINE, explained};
use crate::deletions::{Erasing, Gone};
use crate::owned::{self, Owned, OwnedView, VolumeCounts};
use crate::pool;
use crate::view::{BackendView, NodeView, StatusView, print, status_tables};

/// Paths that are looked up at the same time.
const PATHS_AT_ONCE: usize = 32;

/// What a service said of itself.
enum Said {
    /// A volume-router.
    Volumes(Result<NodeStatus, PeerError>),
    /// A storage-router.
    Storage(Result<StorageNodeStatus, PeerError>),
    /// It takes no questions: its record is held by a lease, so it runs.
    Nothing,
}

/// Runs `sconce status`.
///
/// # Errors
/// The registry is unreachable, or there are problems: they are shown first.
pub async fn run(cluster: &Cluster, options: &Status, format: Format) -> Result<()> {
    let nodes = cluster.names.nodes().await.map_err(explained)?;
    let pools = cluster.names.pools().await.map_err(explained)?;
    let gone = Gone::find(&cluster.names).await.map_err(explained)?;
    let said = join_all(nodes.iter().map(|node| ask(cluster, node))).await;
    let volumes = volumes(cluster, format, &nodes, &gone, &said).await;
    let mut status = status_of(&nodes, &pools, &gone, said);
    status.volume_counts = owned::counts(&volumes);
    status.risks = owned::risks(&volumes);
    if !options.services {
        status.problems.extend(owned::problems(&volumes));
    }
    status.volumes = volumes;
    for pool in &pools {
        let scrub = cluster.names.deep_scrub(&pool.name).await.map_err(explained)?;
        let lost = scrub.map_or(0, |(record, _)| record.lost);
        if lost > 0 {
            status.problems.push(format!(
                "pool {}: the deep scrub found {lost} objects of which no good copy is left; the storage-routers' logs name them",
                pool.name
            ));
        }
    }
    status.healthy = status.problems.is_empty();
    print(format, &status, status_tables)?;
    if !status.healthy {
        bail!("the cluster is not healthy: {}", status.problems.join("; "));
    }
    Ok(())
}

/// All volumes, as the registry and their owners know them.
async fn volumes(
    cluster: &Cluster,
    format: Format,
    nodes: &[NodeRecord],
    gone: &Gone,
    said: &[Said],
) -> Vec<OwnedView> {
    let answers = nodes.iter().zip(said).filter_map(|(node, said)| match said {
        Said::Volumes(Ok(found)) => Some((&node.name, found.volumes.as_slice())),
        Said::Volumes(Err(_)) | Said::Storage(_) | Said::Nothing => None,
    });
    let answers: Vec<(&NodeName, &[VolumeStatus])> = answers.collect();
    let running = nodes.iter().map(|node| (&node.name, node.failure_domain()));
    let owned = Owned::new(gone.active(), &answers, running);
    // Each takes the registry a few reads: a table names only those that it shows.
    let to_name = owned.to_name(format == Format::Json);
    let named = to_name
        .into_iter()
        .map(|id| async move { (id, cluster.path_or_id(id).await) });
    let paths = stream::iter(named).buffer_unordered(PATHS_AT_ONCE);
    owned.views(&paths.collect().await)
}

async fn ask(cluster: &Cluster, node: &NodeRecord) -> Said {
    match node.role {
        Role::VolumeRouter => {
            let asked = cluster.owners.ask(
                &node.name,
                VolumeId::default(),
                VolumeControl::NodeStatus,
                LIVE_DEADLINE,
            );
            Said::Volumes(match asked.await {
                Ok(VolumeControlReply::Node(status)) => Ok(status),
                Ok(_) => Err(PeerError::Answer {
                    node: node.name.clone(),
                }),
                Err(error) => Err(error),
            })
        }
        Role::StorageRouter => Said::Storage(cluster.storage.status(node, LIVE_DEADLINE).await),
        Role::FsRouter | Role::Client => Said::Nothing,
    }
}

fn status_of(nodes: &[NodeRecord], pools: &[PoolRecord], gone: &Gone, said: Vec<Said>) -> StatusView {
    let storage = said.iter().filter_map(|said| match said {
        Said::Storage(Ok(found)) => Some(found),
        Said::Storage(Err(_)) | Said::Volumes(_) | Said::Nothing => None,
    });
    let storage: Vec<&StorageNodeStatus> = storage.collect();
    let mut status = StatusView {
        healthy: false,
        problems: Vec::new(),
        nodes: Vec::new(),
        pools: pools.iter().map(|pool| pool::view(pool, &storage)).collect(),
        backends: Vec::new(),
        deletions: Vec::new(),
        volume_counts: VolumeCounts::default(),
        risks: Vec::new(),
        volumes: Vec::new(),
    };
    let mut erasing = Erasing::new();
    for role in [Role::FsRouter, Role::VolumeRouter, Role::StorageRouter] {
        if !nodes.iter().any(|node| node.role == role) {
            status.problems.push(format!("no {} is running", role));
        }
    }
    if pools.is_empty() {
        status.problems.push("there is no storage pool".to_owned());
    }
    let unserved = status.pools.iter().filter(|pool| pool.state != "ok");
    let unserved = unserved.map(|pool| format!("pool {}: {}", pool.name, pool.state));
    status.problems.extend(unserved.collect::<Vec<_>>());
    let damaged = gone.damaged().iter();
    let problems = damaged.map(|key| {
        format!("the record {key} is damaged: deletions are not taken over while it may be that of a clone")
    });
    status.problems.extend(problems);
    for (node, said) in nodes.iter().zip(said) {
        let mut view = node_view(node);
        match said {
            Said::Nothing => {}
            Said::Volumes(Ok(found)) => {
                view.state = "answers".to_owned();
                view.volumes = Some(found.volumes.len());
                view.serving = Some(found.volumes.iter().filter(|volume| is_served(volume)).count());
                view.buffer_bytes = Some(found.buffer_size.0);
                view.buffer_unstored_bytes = Some(found.buffer_unstored.0);
                erasing.insert(node.name.clone(), found.erasing);
            }
            Said::Storage(Ok(found)) => {
                view.state = "answers".to_owned();
                add_backends(&mut status, found);
            }
            Said::Volumes(Err(error)) | Said::Storage(Err(error)) => {
                view.state = "does not answer".to_owned();
                status.problems.push(error.to_string());
            }
        }
        status.nodes.push(view);
    }
    status.deletions = gone.views(nodes, &erasing);
    status.healthy = status.problems.is_empty();
    status
}

fn add_backends(status: &mut StatusView, found: StorageNodeStatus) {
    for backend in found.backends {
        if backend.state != "ok" {
            status
                .problems
                .push(format!("back end {}: {}", backend.name, backend.state));
        }
        status.backends.push(BackendView {
            name: backend.name,
            node: found.node.to_string(),
            state: backend.state,
            capacity_bytes: backend.capacity.map(|bytes| bytes.0),
            free_bytes: backend.free.map(|bytes| bytes.0),
            requests: backend.requests,
            errors: backend.errors,
            written_objects: backend.written.objects,
            written_bytes: backend.written.bytes,
        });
    }
}

fn node_view(node: &NodeRecord) -> NodeView {
    NodeView {
        name: node.name.to_string(),
        role: node.role.to_string(),
        version: node.version.clone(),
        pid: node.pid,
        endpoints: node.endpoints.clone(),
        state: "running".to_owned(),
        volumes: None,
        buffer_bytes: None,
        buffer_unstored_bytes: None,
        serving: None,
    }
}

#[cfg(test)]
mod tests {
    use sconce_schemas::records::Protection;
    use sconce_schemas::wire::storage::{BackendStatus, Written};

    use super::*;

    fn node(name: &str, role: Role) -> NodeRecord {
        NodeRecord {
            name: name.parse().unwrap(),
            role,
            endpoints: Vec::new(),
            version: "0.1.0".to_owned(),
            pid: 1,
            place: None,
            buffer: None,
        }
    }

    #[test]
    fn what_is_missing_or_silent_is_a_problem() {
        let pools = [PoolRecord {
            name: "default".to_owned(),
            protection: Protection::Replicas(2),
            backends: Vec::new(),
            placement_version: 1,
            compression: None,
            encrypted: false,
            keys: Vec::new(),
            change: None,
        }];
        let nodes = [
            node("fs", Role::FsRouter),
            node("sr", Role::StorageRouter),
            node("vr", Role::VolumeRouter),
        ];
        let backend = |state: &str| BackendStatus {
            name: "local".to_owned(),
            state: state.to_owned(),
            capacity: None,
            free: None,
            requests: 0,
            errors: 0,
            written: Written::default(),
        };
        let said = |state: &str, volumes: Result<NodeStatus, PeerError>| {
            let storage = StorageNodeStatus {
                node: nodes[1].name.clone(),
                backends: vec![backend(state)],
                pools: Vec::new(),
            };
            vec![Said::Nothing, Said::Storage(Ok(storage)), Said::Volumes(volumes)]
        };
        let volumes = || NodeStatus {
            node: nodes[2].name.clone(),
            buffer_size: sconce_schemas::ByteLen(10),
            buffer_unstored: sconce_schemas::ByteLen(1),
            volumes: Vec::new(),
            queues: Vec::new(),
            erasing: Vec::new(),
        };
        let none = Gone::default();
        let healthy = status_of(&nodes, &pools, &none, said("ok", Ok(volumes())));
        assert!(healthy.healthy, "{:?}", healthy.problems);
        assert_eq!(
            (healthy.nodes[2].volumes, healthy.nodes[2].buffer_unstored_bytes),
            (Some(0), Some(1))
        );
        let silent = PeerError::Silent {
            node: nodes[2].name.clone(),
            why: "no answer came in time".to_owned(),
        };
        let sick = status_of(&nodes, &pools, &none, said("absent", Err(silent)));
        assert_eq!(
            sick.problems,
            [
                "back end local: absent",
                "vr does not answer: no answer came in time"
            ]
        );
        let empty = status_of(&[], &[], &none, Vec::new());
        assert_eq!(empty.problems.len(), 4);
    }
}
