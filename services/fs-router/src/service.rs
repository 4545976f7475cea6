//! The service: its front ends on its IO threads, from start to stop.
//!
//! Keeps: what was started, until it has ended.
//! Order: sockets and the mount first, so that what cannot be used is told before anyone relies on it; then the
//! announcement; at the stop front ends go first, IO threads last. At a hand-over the front ends leave what they have
//! with the descriptor store.
//! Crash: the sockets and the mount stay in the store, for the next process; without one they stay behind, dead, until
//! the next start.
//! Knows no protocol.

use std::convert::Infallible;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use sconce_bus::Network;
use sconce_cache::{Cache, CacheSettings, SystemDisk};
use sconce_registry::Registry;
use sconce_registry::announce::{AnnounceError, Announcement, NODE_TTL};
use sconce_runtime::tasks::TasksError;
use sconce_runtime::{
    Backoff, Chance, Clock, DescriptorStore, MetricsEndpoint, MetricsError, MetricsOf, Stop, Tasks,
};
use sconce_schemas::CLUSTER_LEN;
use sconce_schemas::records::NodeRecord;
use sconce_schemas::wire::Role;
use sconce_tracing::metrics::Page;
use tokio::sync::{mpsc, oneshot};

use crate::fuse::{FuseSettings, Mount, MountError, RoutedVolumes};
use crate::in_use::InUse;
use crate::io_thread::{IoThread, IoThreads, Stopped};
use crate::metrics::Metrics;
use crate::nameless::Nameless;
use crate::names::Names;
use crate::nbd::{ListenError, Listener};
use crate::peers::{Identity, Owners};
use crate::routing::{self, ClusterCache, Incarnation, Limits, Orphans};
use crate::settings::Settings;

/// What the service is given.
#[derive(Clone)]
pub struct Components {
    /// How messages travel.
    pub network: Network,
    /// Who owns what.
    pub registry: Registry,
    /// The time.
    pub clock: Clock,
    /// Who holds descriptors for the next process.
    pub descriptors: DescriptorStore,
}

/// Why the service did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A socket cannot listen.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// There can be no endpoint for metrics.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// The tree cannot be mounted.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The system gives no thread.
    #[error("cannot start an IO thread: {0}")]
    Threads(#[from] io::Error),
    /// An IO thread ended.
    #[error(transparent)]
    Stopped(#[from] Stopped),
    /// What is handed over may be lost.
    #[error("handing over: {0}")]
    DescriptorStore(io::Error),
    /// A part ended that should not have.
    #[error(transparent)]
    Tasks(#[from] TasksError),
}

/// How long the parts have to end after the stop was requested.
const STOP_MAX: Duration = Duration::from_secs(20);

/// Bytes of what the cluster cache holds: a cluster.
#[expect(clippy::cast_possible_truncation, reason = "it is 4096")]
const CLUSTER_PIECE: u32 = CLUSTER_LEN as u32;

/// Runs the service until the stop is requested. On a current-thread runtime, within a `LocalSet`.
///
/// # Errors
/// A front end cannot start; a part ended by itself.
pub async fn run(settings: Settings, components: Components, stop: Stop) -> Result<(), RunError> {
    let names = Names::new(
        components.registry.clone(),
        components.clock.clone(),
        Chance::from_os(),
    );
    let listener = match &settings.nbd {
        Some(nbd) => Some(Listener::bind(nbd, &components.descriptors).await?),
        None => None,
    };
    let metrics = MetricsEndpoint::bind(settings.metrics.as_ref()).await?;
    let incarnation = Incarnation::to_be_told();
    let cache = settings
        .cache
        .as_ref()
        .map(|cache| open_cache(cache, &components.clock));
    let threads = IoThreads::start(
        settings.routing.thread_count(),
        &routing::Components {
            node: settings.node.name.clone(),
            role: Role::FsRouter,
            network: components.network.clone(),
            registry: components.registry.clone(),
            clock: components.clock.clone(),
            limits: Limits::default(),
            orphans: Orphans::default(),
            incarnation: incarnation.clone(),
            cache: cache.clone(),
            counts: Arc::default(),
        },
    )?;
    let in_use = InUse::default();
    // Nothing is sent: it ends when each front end has dropped its own.
    let (serving, front_ends) = mpsc::channel::<Infallible>(1);
    let mut tasks = Tasks::new(&stop);
    let identity = Identity {
        network: components.network.clone(),
        role: Role::FsRouter,
        node: settings.node.name.clone(),
    };
    let nameless = Nameless::new(
        names.clone(),
        settings.node.name.clone(),
        settings.fuse.is_some(),
        settings.nameless,
    );
    if let Some(endpoint) = metrics {
        let of = MetricsOf {
            service: "fs-router",
            node: settings.node.name.to_string(),
            version: env!("CARGO_PKG_VERSION"),
        };
        let numbers = Metrics {
            threads: threads.counts().to_vec(),
            cache,
            has_nbd: listener.is_some(),
            has_fuse: settings.fuse.is_some(),
        };
        let tell = async move |page: &mut Page| numbers.tell(page);
        tasks.spawn_local("metrics", endpoint.serve(of, tell, stop.clone()));
    }
    let owners = Owners::new(names.clone(), identity.clone());
    tasks.spawn_local("files without a name", nameless.run(owners, stop.clone()));
    if let Some(fuse) = &settings.fuse {
        let mount = MountPart {
            settings: fuse.clone(),
            names: names.clone(),
            identity,
            clock: components.clock.clone(),
            in_use: in_use.clone(),
            descriptors: components.descriptors.clone(),
        };
        let served = mount.start(&threads.pick(), &stop).await?;
        let serving = serving.clone();
        tasks.spawn_local("the mount", async move {
            // An error means that the thread is gone; so is the mount then.
            let _ = served.await;
            drop(serving);
        });
    }
    if let Some(listener) = listener {
        let (all, names, stop) = (threads.all().to_vec(), names, stop.clone());
        let serving = serving.clone();
        tasks.spawn_local("NBD", async move {
            listener.serve(&all, &names, &in_use, &stop).await;
            drop(serving);
        });
    }
    drop(serving);
    let record = NodeRecord {
        name: settings.node.name.clone(),
        role: Role::FsRouter,
        // Nobody calls an fs-router.
        endpoints: Vec::new(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        place: Some(settings.node.place()),
        buffer: None,
    };
    tasks.spawn_local(
        "the announcement",
        announce(
            components.registry.clone(),
            record,
            incarnation,
            stop.clone(),
            front_ends,
        ),
    );
    tracing::info!(node = %settings.node.name, threads = threads.all().len(), "serving");
    let finished = tasks.finish(STOP_MAX).await;
    if stop.hands_over() {
        threads.leave();
        components
            .descriptors
            .settled()
            .map_err(RunError::DescriptorStore)?;
    } else {
        threads.finish();
    }
    Ok(finished?)
}

fn open_cache(settings: &CacheSettings, clock: &Clock) -> ClusterCache {
    let components = sconce_cache::Components {
        disk: Arc::new(SystemDisk),
        clock: clock.clone(),
    };
    let mut chance = Chance::from_os();
    ClusterCache::new(Cache::open(settings, CLUSTER_PIECE, components, &mut chance))
}

/// The FUSE front end before it is on its thread.
struct MountPart {
    settings: FuseSettings,
    names: Names,
    identity: Identity,
    clock: Clock,
    in_use: InUse,
    descriptors: DescriptorStore,
}

impl MountPart {
    /// Mounts, and serves the mount on `thread`; what it gives is ready when serving has ended.
    async fn start(self, thread: &IoThread, stop: &Stop) -> Result<oneshot::Receiver<()>, RunError> {
        let (mounted, is_mounted) = oneshot::channel();
        let (ended, has_ended) = oneshot::channel();
        let stop = stop.clone();
        thread
            .spawn(move |router| async move {
                let node = self.identity.node.clone();
                let volumes = RoutedVolumes::new(router, self.names.clone(), self.identity);
                let mounting = Mount::new(
                    &self.settings,
                    self.names,
                    volumes,
                    node,
                    self.clock,
                    self.in_use,
                    self.descriptors,
                );
                match mounting.await {
                    Ok(mount) => {
                        // Whoever waits for these is gone only when the service is.
                        let _ = mounted.send(Ok(()));
                        mount.serve(&stop).await;
                        let _ = ended.send(());
                    }
                    Err(error) => {
                        let _ = mounted.send(Err(error));
                    }
                }
            })
            .await?;
        is_mounted.await.map_err(|_| Stopped)??;
        Ok(has_ended)
    }
}

/// Announces the node as soon as the registry is there, and keeps it announced until the stop and until the front ends have ended: what
/// their clients write until then needs write access, and that goes to others where the node is gone.
async fn announce(
    registry: Registry,
    record: NodeRecord,
    incarnation: Incarnation,
    stop: Stop,
    mut front_ends: mpsc::Receiver<Infallible>,
) {
    let mut backoff = Backoff::new(
        Duration::from_millis(50),
        Duration::from_secs(1),
        Chance::from_os(),
    );
    let announcement = loop {
        let registered = tokio::select! {
            registered = Announcement::register(&registry, &record, NODE_TTL) => registered,
            () = stop.requested() => return,
        };
        match registered {
            Ok(announcement) => break announcement,
            Err(error) => tracing::info!(%error, "not announced yet: trying again"),
        }
        tokio::select! {
            () = tokio::time::sleep(backoff.wait()) => {}
            () = stop.requested() => return,
        }
    };
    incarnation.tell(announcement.revision().0);
    let over = Stop::new();
    let ended = async {
        stop.requested().await;
        front_ends.recv().await;
        if stop.hands_over() {
            over.request_hand_over();
        } else {
            over.request();
        }
    };
    let mut kept = pin!(announcement.keep(over.clone()));
    let kept = tokio::select! {
        kept = &mut kept => kept,
        () = ended => kept.await,
    };
    if let Err(error @ AnnounceError::Replaced { .. }) = kept {
        tracing::error!(%error, "stopping");
    }
}
