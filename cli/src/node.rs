//! Keeps: `sconce node …`: the volume-routers, spreading volumes over them, and emptying one before its machine is stopped.
//! Order: a node is marked as drained before anything is moved off it, so that nothing new comes; twins go after the volumes.
//! Crash: what was moved stays moved; the command can be given again.
//! Knows no data: owners move their volumes themselves.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures_util::StreamExt as _;
use futures_util::future::join_all;
use sconce_balance::{Band, Loads, Pool, Volume};
use sconce_fs_router::names::Resolved;
use sconce_schemas::NodeName;
use sconce_schemas::records::{DtlMode, NodeRecord, VolumeRecord};
use sconce_schemas::wire::volume::VolumeControl;
use serde::Serialize;

use crate::args::{Format, Node};
use crate::cluster::{Cluster, explained};
use crate::owned::NAMED_MAX;
use crate::view::{columns, print, unknown};
use crate::volume::move_to;

/// Volumes that are moved at the same time.
const MOVES: usize = 4;
/// How long all may take: volumes are moved and twins made elsewhere, to which what is not stored is copied.
const EMPTY_WITHIN: Duration = Duration::from_secs(900);
/// Who is drained is known everywhere after this time.
const MARK_SEEN_WITHIN: Duration = Duration::from_millis(1500);
/// Each look reads all volumes' records.
const LOOK_EVERY: Duration = Duration::from_secs(1);
const LEAVE_DEADLINE: Duration = Duration::from_secs(10);

/// A volume-router, as its volumes' records say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct RouterView {
    /// Its name.
    name: String,
    /// Whether it runs.
    running: bool,
    /// Whether it is given no volumes and no twins.
    drained: bool,
    /// Its failure domain; null where it does not run.
    failure_domain: Option<String>,
    /// Volumes that it owns.
    volumes: usize,
    /// Other nodes' volumes that rely on a twin there.
    twins: usize,
}

/// What became of a drained node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct DrainView {
    /// Its name.
    node: String,
    /// Volumes that were moved off it.
    moved: usize,
    /// Twins that were given up there for others elsewhere.
    twins: usize,
}

/// What became of a node's share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct MoveView {
    /// The volume's path.
    path: String,
    /// Who owned it.
    from: String,
    /// Who owns it now, or is to own it.
    to: String,
    /// Whether it was moved, or would be.
    moved: bool,
}

/// Runs `sconce node …`.
///
/// # Errors
/// The registry is unreachable, or not everything could be moved.
pub async fn run(cluster: &Cluster, command: Node, format: Format) -> Result<()> {
    match command {
        Node::List => list(cluster, format).await,
        Node::Balance { dry_run } => balance(cluster, dry_run, format).await,
        Node::Drain { node, degrade } => drain(cluster, &node, degrade, format).await,
        Node::Undrain { node } => {
            cluster.names.set_drained(&node, false).await.map_err(explained)?;
            list(cluster, format).await
        }
    }
}

async fn list(cluster: &Cluster, format: Format) -> Result<()> {
    let routers = Found::read(cluster).await?.views();
    print(format, &routers, |routers| {
        let mut table = columns(
            &["VOLUME-ROUTER", "STATE", "FAILURE DOMAIN", "VOLUMES", "TWINS"],
            &[3, 4],
        );
        for router in routers {
            let state = match (router.running, router.drained) {
                (true, false) => "runs",
                (true, true) => "runs, drained",
                (false, false) => "does not run",
                (false, true) => "does not run, drained",
            };
            table.add_row([
                router.name.clone(),
                state.to_owned(),
                router.failure_domain.clone().unwrap_or_else(unknown),
                router.volumes.to_string(),
                router.twins.to_string(),
            ]);
        }
        table.trim_fmt()
    })
}

async fn drain(cluster: &Cluster, node: &NodeName, degrade: bool, format: Format) -> Result<()> {
    let pool = Found::read(cluster).await?;
    pool.may_be_drained(node, degrade)?;
    cluster.names.set_drained(node, true).await.map_err(explained)?;
    let emptied = empty(cluster, node, degrade).await;
    let (moved, twins) = emptied.with_context(|| {
        format!(
            "{node} is not empty yet, and is given nothing more: give the command again to go on, or `sconce node undrain {node}` to \
             let it have volumes and twins"
        )
    })?;
    let view = DrainView {
        node: node.to_string(),
        moved,
        twins,
    };
    print(format, &view, |view| {
        format!(
            "{} is empty and can be stopped: {} volumes and {} twins were moved. `sconce node undrain {}` lets it have others",
            view.node, view.moved, view.twins, view.node
        )
    })
}

/// Moves everything off a node that is marked, until nothing is left there; gives how many volumes and twins there were. What was on its way
/// there before the mark comes late, so it is looked again after a while.
async fn empty(cluster: &Cluster, node: &NodeName, degrade: bool) -> Result<(usize, usize)> {
    let give_up = Instant::now() + EMPTY_WITHIN;
    let (mut moved, mut twins) = (0, BTreeSet::new());
    let mut is_first_clean_look = true;
    loop {
        let pool = Found::read(cluster).await?;
        let mut loads = pool.pool.loads();
        let owned = pool.owned_by(node);
        let moves: Vec<(&VolumeRecord, NodeName)> = owned
            .filter_map(|record| Some((record, pool.successor(record, &mut loads)?)))
            .collect();
        move_all(cluster, &moves).await?;
        moved += moves.len();
        let there = match degrade {
            true => Vec::new(),
            false => pool.twins_on(node),
        };
        leave_twins(cluster, node, &there).await?;
        twins.extend(there.iter().map(|record| record.id));
        let waits: Vec<&VolumeRecord> = pool
            .volumes
            .iter()
            .filter(|record| twins.contains(&record.id))
            .collect();
        let unprotected: Vec<&VolumeRecord> = waits
            .into_iter()
            .filter(|record| pool.waits_for_twin(record, node))
            .collect();
        let is_clean = moves.is_empty() && there.is_empty() && unprotected.is_empty();
        match is_clean {
            true if !is_first_clean_look => return Ok((moved, twins.len())),
            true => tokio::time::sleep(MARK_SEEN_WITHIN).await,
            false => tokio::time::sleep(LOOK_EVERY).await,
        }
        is_first_clean_look = !is_clean;
        if Instant::now() >= give_up {
            let named = unprotected
                .iter()
                .take(NAMED_MAX)
                .map(|record| cluster.path_or_id(record.id));
            bail!(
                "{} volumes whose twin was on {node} have none in sync elsewhere after {EMPTY_WITHIN:?}: {}",
                unprotected.len(),
                join_all(named).await.join(", ")
            );
        }
    }
}

/// Has owners make their twins elsewhere.
async fn leave_twins(cluster: &Cluster, node: &NodeName, there: &[&VolumeRecord]) -> Result<()> {
    let mut failures = Vec::new();
    for record in there {
        let leave = VolumeControl::LeaveTwin {
            volume: record.id,
            node: node.clone(),
        };
        if let Err(error) = cluster.owners.call(record.id, leave, LEAVE_DEADLINE).await {
            failures.push(format!("{}: {error}", cluster.path_or_id(record.id).await));
        }
    }
    none_failed(&failures, there.len(), "twins were not given up")
}

async fn balance(cluster: &Cluster, dry_run: bool, format: Format) -> Result<()> {
    let pool = Found::read(cluster).await?;
    let moves = pool.even_out();
    if !dry_run {
        move_all(cluster, &moves).await?;
    }
    let views = moves.iter().map(async |(record, to)| MoveView {
        path: cluster.path_or_id(record.id).await,
        from: record.owner.to_string(),
        to: to.to_string(),
        moved: !dry_run,
    });
    let views: Vec<MoveView> = join_all(views).await;
    print(format, &views, |views| {
        if views.is_empty() {
            return "the volumes are spread evenly: nothing to move".to_owned();
        }
        let mut table = columns(&["PATH", "FROM", "TO"], &[]);
        for view in views {
            table.add_row([&view.path, &view.from, &view.to]);
        }
        table.trim_fmt()
    })
}

/// Moves volumes, a few at a time.
async fn move_all(cluster: &Cluster, moves: &[(&VolumeRecord, NodeName)]) -> Result<()> {
    let outcomes = futures_util::stream::iter(moves.iter().map(|(record, to)| move_one(cluster, record, to)));
    let outcomes: Vec<Result<(), String>> = outcomes.buffer_unordered(MOVES).collect().await;
    let failures: Vec<String> = outcomes.into_iter().filter_map(Result::err).collect();
    none_failed(
        &failures,
        moves.len(),
        "volumes were not moved; give the command again",
    )
}

fn none_failed(failures: &[String], all: usize, what: &str) -> Result<()> {
    if !failures.is_empty() {
        let named = failures[..failures.len().min(NAMED_MAX)].join("; ");
        bail!("{} of {all} {what}: {named}", failures.len());
    }
    Ok(())
}

async fn move_one(cluster: &Cluster, record: &VolumeRecord, to: &NodeName) -> Result<(), String> {
    let path = cluster.names.path_of(record.inode).await;
    let path = path.map_err(|error| format!("volume {}: {error}", record.id))?;
    let file = Resolved {
        inode: record.inode,
        volume: record.id,
        path,
    };
    move_to(cluster, &file, to)
        .await
        .map_err(|error| format!("{}: {error:#}", file.path))
}

/// The volume-routers and the volumes, as the registry has them.
struct Found {
    pool: Pool,
    volumes: Vec<VolumeRecord>,
}

impl Found {
    async fn read(cluster: &Cluster) -> Result<Self> {
        let names = &cluster.names;
        let nodes = names.nodes().await.map_err(explained)?;
        let drained = names.drained().await.map_err(explained)?;
        let volumes = names.known_volumes().await.map_err(explained)?.active;
        Ok(Self::of(&nodes, drained, volumes))
    }

    fn of(nodes: &[NodeRecord], drained: BTreeSet<NodeName>, volumes: Vec<VolumeRecord>) -> Self {
        Self {
            pool: Pool::new(nodes, drained, volumes.iter().map(Volume::from)),
            volumes,
        }
    }

    fn owned_by(&self, node: &NodeName) -> impl Iterator<Item = &VolumeRecord> {
        self.volumes.iter().filter(move |record| record.owner == *node)
    }

    /// Volumes of others whose records rely on a twin on this node.
    fn twins_on(&self, node: &NodeName) -> Vec<&VolumeRecord> {
        let there = self.volumes.iter().filter(|record| record.twin() == Some(node));
        there.collect()
    }

    /// Whether a volume wants a twin and has none in sync but on this node.
    fn waits_for_twin(&self, record: &VolumeRecord, node: &NodeName) -> bool {
        record.dtl_mode != DtlMode::None && record.twin().is_none_or(|twin| twin == node)
    }

    /// Who is to own a volume next.
    fn successor(&self, record: &VolumeRecord, loads: &mut Loads) -> Option<NodeName> {
        self.pool.successor(self.pool.volume(record.id)?, loads)
    }

    /// Volumes and where they are to go.
    fn even_out(&self) -> Vec<(&VolumeRecord, NodeName)> {
        let steps = self.pool.even_out(Band::EVEN, |_| true, |_| 0);
        let with_record = steps.into_iter().filter_map(|step| {
            let record = self.volumes.iter().find(|record| record.id == step.volume)?;
            Some((record, step.to))
        });
        with_record.collect()
    }

    /// Looks whether there is somewhere to go for all that is on a node, before anything is changed.
    fn may_be_drained(&self, node: &NodeName, degrade: bool) -> Result<()> {
        let names = |nodes: &mut dyn Iterator<Item = &NodeName>| {
            nodes.map(NodeName::as_str).collect::<Vec<_>>().join(", ")
        };
        let running = self.pool.routers();
        if !running.contains_key(node) {
            bail!(
                "{node} is no volume-router that runs; those that do: {}. Volumes of one that is gone: sconce volume takeover",
                names(&mut running.keys())
            );
        }
        let others: BTreeSet<&NodeName> = running
            .keys()
            .filter(|other| *other != node && self.pool.may_take(other).is_some())
            .collect();
        if others.is_empty() && self.owned_by(node).next().is_some() {
            bail!(
                "there is no other volume-router that runs and is not drained: nothing can be moved off {node}"
            );
        }
        let is_on = |record: &&VolumeRecord| record.owner == *node || record.twin() == Some(node);
        let want_twins = self
            .volumes
            .iter()
            .filter(is_on)
            .filter(|record| record.dtl_mode != DtlMode::None)
            .count();
        if want_twins > 0 && others.len() < 2 && !degrade {
            bail!(
                "without {node} only {} would be left, and {want_twins} volumes that want a twin could have none: start another \
                 volume-router, or accept that they are degraded with --degrade",
                names(&mut others.into_iter())
            );
        }
        Ok(())
    }

    fn views(&self) -> Vec<RouterView> {
        let owners = self.volumes.iter().map(|record| &record.owner);
        let (running, drained) = (self.pool.routers(), self.pool.drained());
        let known: BTreeSet<&NodeName> = running.keys().chain(drained).chain(owners).collect();
        let view = |node: &NodeName| RouterView {
            name: node.to_string(),
            running: running.contains_key(node),
            drained: drained.contains(node),
            failure_domain: running.get(node).map(|router| router.failure_domain.clone()),
            volumes: self.owned_by(node).count(),
            twins: self.twins_on(node).len(),
        };
        known.into_iter().map(view).collect()
    }
}

#[cfg(test)]
mod tests {
    use sconce_schemas::Epoch;
    use sconce_schemas::records::DtlState;
    use sconce_schemas::wire::Role;

    use super::*;
    use crate::testing::{self, name};

    fn volume(number: u8, owner: &str, twin: Option<&str>) -> VolumeRecord {
        VolumeRecord {
            inode: u64::from(number),
            epoch: Epoch(1),
            dtl_mode: DtlMode::Sync,
            dtl_host: twin.map(name),
            dtl_state: twin.map_or(DtlState::Degraded, |_| DtlState::InSync),
            ..testing::volume(number, owner)
        }
    }

    fn pool(running: &[&str], drained: &[&str], volumes: Vec<VolumeRecord>) -> Found {
        let nodes = running.iter().map(|node| NodeRecord {
            name: name(node),
            role: Role::VolumeRouter,
            endpoints: Vec::new(),
            version: String::new(),
            pid: 1,
            place: None,
            buffer: None,
        });
        let nodes: Vec<NodeRecord> = nodes.collect();
        Found::of(&nodes, drained.iter().map(|node| name(node)).collect(), volumes)
    }

    #[test]
    fn a_node_is_drained_only_where_everything_has_a_place_to_go() {
        let told = |pool: &Found, node: &str, degrade| {
            pool.may_be_drained(&name(node), degrade)
                .map_err(|error| error.to_string())
        };
        let three = pool(&["a", "b", "c"], &[], vec![volume(1, "a", Some("b"))]);
        assert_eq!(told(&three, "a", false), Ok(()));
        assert!(told(&three, "d", false).unwrap_err().contains("a, b, c"));

        let two = pool(&["a", "b"], &[], vec![volume(1, "a", Some("b"))]);
        for node in ["a", "b"] {
            assert!(told(&two, node, false).unwrap_err().contains("--degrade"));
            assert_eq!(told(&two, node, true), Ok(()));
        }
        let drained = pool(&["a", "b", "c"], &["c"], vec![volume(1, "a", Some("b"))]);
        assert!(
            told(&drained, "b", false)
                .unwrap_err()
                .contains("without b only a would be left")
        );
        let one = pool(&["a"], &[], vec![volume(1, "a", None)]);
        assert!(
            told(&one, "a", true)
                .unwrap_err()
                .contains("nothing can be moved off a")
        );
    }
}
