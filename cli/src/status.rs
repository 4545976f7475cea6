//! Keeps: `sconce status`.
//! Order: everything is asked at the same time, and given a moment to answer.
//! Crash: nothing is changed.
//! Knows no volume's data.

use anyhow::{Result, bail};
use futures_util::future::join_all;
use sconce_fs_router::peers::PeerError;
use sconce_schemas::VolumeId;
use sconce_schemas::records::{DtlMode, DtlState, NodeRecord, PoolRecord, Protection};
use sconce_schemas::wire::Role;
use sconce_schemas::wire::storage::StorageNodeStatus;
use sconce_schemas::wire::volume::{NodeStatus, VolumeControl, VolumeControlReply};

use crate::args::Format;
use crate::cluster::{Cluster, LIVE_DEADLINE, explained};
use crate::deletions::{Erasing, Gone};
use crate::view::{BackendView, NodeView, PoolView, StatusView, print, status_tables};

/// Volumes at risk that are named.
const NAMED_MAX: usize = 5;

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
/// The registry is unreachable, or something does not answer: that is shown first.
pub async fn run(cluster: &Cluster, format: Format) -> Result<()> {
    let nodes = cluster.names.nodes().await.map_err(explained)?;
    let pools = cluster.names.pools().await.map_err(explained)?;
    let gone = Gone::find(&cluster.names).await.map_err(explained)?;
    let said = join_all(nodes.iter().map(|node| ask(cluster, node))).await;
    let at_risk = at_risk(cluster, &said).await;
    let mut status = status_of(&nodes, &pools, &gone, said);
    status.problems.extend(at_risk);
    status.healthy = status.problems.is_empty();
    print(format, &status, status_tables)?;
    if !status.healthy {
        bail!("the cluster is not healthy: {}", status.problems.join("; "));
    }
    Ok(())
}

/// Volumes whose acknowledged writes are to be on two nodes, and are not.
async fn at_risk(cluster: &Cluster, said: &[Said]) -> Option<String> {
    let volumes = said.iter().flat_map(|said| match said {
        Said::Volumes(Ok(found)) => found.volumes.as_slice(),
        Said::Volumes(Err(_)) | Said::Storage(_) | Said::Nothing => &[],
    });
    let alone: Vec<VolumeId> = volumes
        .filter(|volume| volume.dtl_mode == Some(DtlMode::Sync) && volume.dtl_state == DtlState::Degraded)
        .map(|volume| volume.id)
        .collect();
    let named = alone.iter().take(NAMED_MAX).map(|id| cluster.path_or_id(*id));
    let mut named = join_all(named).await.join(", ");
    if alone.len() > NAMED_MAX {
        named.push_str(", …");
    }
    (!alone.is_empty()).then(|| {
        format!(
            "{} volumes with --dtl sync have no twin that is in sync, so that what they acknowledge is in one write buffer \
             alone until it is stored: {named}",
            alone.len()
        )
    })
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
    let mut status = StatusView {
        healthy: false,
        problems: Vec::new(),
        nodes: Vec::new(),
        pools: pools.iter().map(pool_view).collect(),
        backends: Vec::new(),
        deletions: Vec::new(),
    };
    let mut erasing = Erasing::new();
    for role in [Role::FsRouter, Role::VolumeRouter, Role::StorageRouter] {
        if !nodes.iter().any(|node| node.role == role) {
            status.problems.push(format!("no {} is running", role_name(role)));
        }
    }
    if pools.is_empty() {
        status.problems.push("there is no storage pool".to_owned());
    }
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
        role: role_name(node.role).to_owned(),
        version: node.version.clone(),
        pid: node.pid,
        endpoints: node.endpoints.clone(),
        state: "running".to_owned(),
        volumes: None,
        buffer_bytes: None,
        buffer_unstored_bytes: None,
    }
}

fn pool_view(pool: &PoolRecord) -> PoolView {
    let Protection::Replicas(copies) = pool.protection;
    PoolView {
        name: pool.name.clone(),
        protection: format!("replicas {copies}"),
        backends: pool
            .backends
            .iter()
            .map(|placed| placed.backend.clone())
            .collect(),
    }
}

fn role_name(role: Role) -> &'static str {
    match role {
        Role::FsRouter => "fs-router",
        Role::VolumeRouter => "volume-router",
        Role::StorageRouter => "storage-router",
        Role::Client => "client",
    }
}

#[cfg(test)]
mod tests {
    use sconce_schemas::wire::storage::{BackendStatus, Written};

    use super::*;

    fn node(name: &str, role: Role) -> NodeRecord {
        NodeRecord {
            name: name.parse().unwrap(),
            role,
            endpoints: Vec::new(),
            version: "0.1.0".to_owned(),
            pid: 1,
        }
    }

    #[test]
    fn what_is_missing_or_silent_is_a_problem() {
        let pools = [PoolRecord {
            name: "default".to_owned(),
            protection: Protection::Replicas(2),
            backends: Vec::new(),
            placement_version: 1,
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
