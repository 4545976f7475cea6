//! A shard: one thread with its endpoint, its volumes and their files.
//!
//! Keeps: nothing of its own; its port and its volumes' actors live on its thread.
//! Order: the port listens before the node is announced; at a stop it refuses first, then the volumes are stored.
//! Crash: a part that panics stops the service in order.
//! Knows the other shards only by the node.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use sconce_bus::{BindError, Endpoint, Hello, Identity, Limits, Network, Protocol, Role, Server, bind};
use sconce_runtime::tasks::TasksError;
use sconce_runtime::{Stop, Tasks};
use sconce_schemas::VolumeId;
use sconce_schemas::wire::volume::{VolumeReply, VolumeRequest};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::actor::{Replies, Shard, VolumeActor, VolumeHandle};
use crate::node::Node;
use crate::owner::record::TakeOver;
use crate::port::Port;
use crate::twin::{Lines, Twins};

/// Longer than the port needs to send its last replies.
const PORT_STOPS_WITHIN: Duration = Duration::from_secs(2);

/// What a shard is asked to do by the node's records.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Begin {
    /// Begin this volume: it is the node's.
    Volume(VolumeId),
    /// Take this volume over: its owner is gone, and its twin is here.
    Orphan(VolumeId),
}

/// What a shard starts with.
pub(crate) struct Start {
    pub(crate) index: usize,
    pub(crate) network: Network,
    /// How the shard greets other volume-routers.
    pub(crate) to_others: Hello,
    pub(crate) endpoint: Endpoint,
    pub(crate) node: Arc<Node>,
    pub(crate) operation_bytes_max: u64,
    pub(crate) stop_within: Duration,
    pub(crate) stop: Stop,
    /// Hears when the shard listens, or why it cannot.
    pub(crate) listening: oneshot::Sender<Result<(), BindError>>,
    /// Volumes that the shard is to begin.
    pub(crate) begin: tokio::sync::mpsc::Receiver<Begin>,
}

/// Runs until the stop is requested and the volumes are stored or the time for that is over.
pub(crate) async fn run(start: Start) -> Result<(), TasksError> {
    let Start {
        index,
        network,
        to_others,
        endpoint,
        node,
        operation_bytes_max,
        stop_within,
        stop,
        listening,
        mut begin,
    } = start;
    let identity = Identity {
        node: node.name.clone(),
        role: Role::VolumeRouter,
        protocol: Protocol::Volume,
        limits: Limits::of(Protocol::Volume),
    };
    let server: Server<VolumeRequest, VolumeReply> = match bind(&network, &endpoint, identity).await {
        Ok(server) => server,
        Err(error) => {
            // Whoever waits for it stops the service.
            let _ = listening.send(Err(error));
            return Ok(());
        }
    };
    // The service waits for it, unless it is stopping.
    let _ = listening.send(Ok(()));
    let counts = node.counts.get(index).cloned().unwrap_or_default();
    let shard = Rc::new(Shard {
        replies: Replies::new(node.operations_max, operation_bytes_max, counts),
        lines: Lines::new(network, node.registry.clone(), to_others),
        twins: Rc::new(Twins::new(Arc::clone(&node), index)),
        node,
    });
    let mut tasks = Tasks::new(&stop);
    tasks.spawn_local("twins", Rc::clone(&shard.twins).run(stop.clone()));
    let (drained, over) = oneshot::channel::<()>();
    let port = Port::new(Rc::clone(&shard), index, stop.clone());
    tasks.spawn_local("port", port.serve(server, async move { drop(over.await) }));
    let begun = Rc::clone(&shard);
    let until = stop.clone();
    tasks.spawn_local("begin volumes", async move {
        loop {
            tokio::select! {
                biased;
                () = until.requested() => return,
                volume = begin.recv() => match volume {
                    Some(wanted) => begin_volume(&begun, wanted),
                    None => return until.requested().await,
                },
            }
        }
    });
    tasks.spawn_local("drain", async move {
        stop.requested().await;
        drain(&shard, index, stop_within).await;
        drop(drained);
    });
    tasks.finish(stop_within + PORT_STOPS_WITHIN).await
}

fn begin_volume(shard: &Rc<Shard>, wanted: Begin) {
    let volumes = &shard.node.volumes;
    match wanted {
        Begin::Volume(volume) if volumes.get(volume).is_none() => {
            VolumeActor::begin(shard, volume, None);
        }
        Begin::Volume(_) => {}
        Begin::Orphan(volume) => match volumes.get(volume) {
            Some(handle) => handle.orphaned(),
            None => drop(VolumeActor::begin(shard, volume, Some(TakeOver::orphaned()))),
        },
    }
}

/// Stores and releases the shard's volumes, all at the same time.
async fn drain(shard: &Rc<Shard>, index: usize, within: Duration) {
    let node = &shard.node;
    let volumes: Vec<(VolumeId, VolumeHandle)> = node
        .volumes
        .all()
        .into_iter()
        .filter(|(volume, _)| node.shard_of(*volume) == index)
        .collect();
    let drained = join_all(volumes.iter().map(|(_, handle)| handle.drain(within)));
    let drained = timeout(within, drained).await.unwrap_or_default();
    let stored = drained.iter().filter(|stored| **stored).count();
    if stored < volumes.len() {
        tracing::info!(
            shard = index,
            volumes = volumes.len(),
            stored,
            "stopped before everything was stored: what is not stays in the write buffer for the next start"
        );
    }
}
