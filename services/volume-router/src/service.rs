//! The service: its threads, its announcement, its volumes at the start, its orderly stop.
//!
//! Keeps: nothing of its own.
//! Order: buffer and registry, shards that listen, the announcement, then the volumes; the stop goes backwards.
//! Crash: the registry and the write buffer tell a new process all that it needs.
//! Knows no operations.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use actix_rt::{Arbiter, System};
use sconce_bus::{BindError, Endpoint, Hello, Network, Protocol, Role, Version};
use sconce_registry::announce::{AnnounceError, Announcement, Tenure};
use sconce_registry::{OpenError, Registry, Revision};
use sconce_runtime::tasks::TasksError;
use sconce_runtime::{Backoff, Chance, Clock, Stop};
use sconce_schemas::records::{NodeRecord, VolumePhase, VolumeRecord, keys};
use sconce_schemas::{ByteLen, NodeName, VolumeId};
use tokio::sync::{mpsc, oneshot};

use crate::background::{self, Background, Subject};
use crate::device::{Device, DeviceError, Disk, LocalCheckpoints};
use crate::gate::Gate;
use crate::node::{Node, Volumes};
use crate::settings::{SettingError, Settings};
use crate::shard;

/// Threads of a shard that do what blocks: syncs, reads that are not in memory, recoveries.
const BLOCKING_THREADS: usize = 32;
/// Volumes that wait to be begun on a shard.
const BEGIN_MAX: usize = 1024;
/// How long a watch of the volumes' records waits for a change.
const WATCH_WAIT: Duration = Duration::from_secs(30);

/// What the service is built from; a test passes its own.
pub struct Components {
    /// How messages travel.
    pub network: Network,
    /// Who owns what.
    pub registry: Registry,
    /// The time.
    pub clock: Clock,
    /// The calls on the write buffer's files.
    pub disk: Arc<dyn Disk>,
    /// Asks for the orderly stop.
    pub stop: Stop,
}

impl Components {
    /// Those of a real process. To be called within [`block_on`].
    ///
    /// # Errors
    /// The registry cannot be opened.
    pub async fn of(settings: &Settings, network: Network, stop: Stop) -> Result<Self, OpenError> {
        let hello = hello(&settings.node.name, Protocol::Registry);
        Ok(Self {
            registry: Registry::open(&settings.registry, &network, hello).await?,
            network,
            clock: Clock::system(),
            disk: Arc::new(crate::device::SystemDisk),
            stop,
        })
    }
}

/// Why the service ended otherwise than by an orderly stop.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A setting cannot work.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// The write buffer cannot be used.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// An endpoint cannot be listened on.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// A thread cannot be started.
    #[error("a thread cannot be started: {0}")]
    Thread(#[from] io::Error),
    /// A part of a shard ended or panicked.
    #[error(transparent)]
    Part(#[from] TasksError),
    /// Another process took this node's name.
    #[error(transparent)]
    Announce(#[from] AnnounceError),
    /// A thread ended without saying why.
    #[error("a thread of the service ended without an answer")]
    ThreadEnded,
}

/// Runs a future on this thread as the service needs it: [`Components::of`] and [`run`].
///
/// # Errors
/// The thread's runtime cannot be made.
pub fn block_on<T>(future: impl Future<Output = T>) -> io::Result<T> {
    let runtime = runtime(2)?;
    Ok(System::with_tokio_rt(move || runtime).block_on(future))
}

fn runtime(blocking: usize) -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(blocking)
        .build()
}

fn hello(node: &NodeName, protocol: Protocol) -> Hello {
    Hello {
        version: Version::CURRENT,
        protocol,
        role: Role::VolumeRouter,
        node: node.clone(),
    }
}

/// Runs the service until the stop is requested. To be called within [`block_on`].
///
/// # Errors
/// The service cannot start, or a part of it failed.
pub async fn run(settings: Settings, components: Components) -> Result<(), RunError> {
    let endpoints = settings.check()?;
    raise_file_limit();
    let stop = components.stop.clone();
    let (node, arbiters) = node(&settings, &components, endpoints.len()).await?;
    let shards = shards(&settings, &components, &node, &endpoints)?;
    let served = serve(&settings, &components, &node, &endpoints, shards).await;
    stop.request();
    arbiters.stop();
    served
}

/// The threads of the service that are not shards.
struct Arbiters(Vec<Arbiter>);

impl Arbiters {
    fn stop(self) {
        for arbiter in self.0 {
            arbiter.stop();
            // A thread that panicked has said so in the log.
            let _ = arbiter.join();
        }
    }
}

async fn node(
    settings: &Settings,
    components: &Components,
    shards: usize,
) -> Result<(Arc<Node>, Arbiters), RunError> {
    let dir = &settings.buffer.dir;
    let told = |source| DeviceError {
        dir: dir.clone(),
        source,
    };
    let device = Device::open(
        dir,
        settings.buffer.size.bytes(),
        Arc::clone(&components.disk),
        &mut Chance::from_os(),
    )?;
    let checkpoints = LocalCheckpoints::open(dir, settings.checkpoint_bytes()).map_err(told)?;
    let checkpoints = Arc::new(checkpoints);
    let (background, arbiter) = background(settings, components, &checkpoints).await?;
    let node = Node {
        name: settings.node.name.clone(),
        shards,
        device,
        checkpoints,
        registry: components.registry.clone(),
        clock: components.clock.clone(),
        background,
        gate: Arc::new(Gate::new()),
        map_memory: ByteLen(settings.volumes.map_memory.bytes()),
        checkpoint: settings.checkpoint_policy(),
        volumes: Volumes::default(),
    };
    Ok((Arc::new(node), Arbiters(vec![arbiter])))
}

async fn background(
    settings: &Settings,
    components: &Components,
    checkpoints: &Arc<LocalCheckpoints>,
) -> Result<(Background, Arbiter), RunError> {
    let arbiter = Arbiter::try_with_tokio_rt(|| runtime(BLOCKING_THREADS))?;
    let parts = background::Components {
        network: components.network.clone(),
        registry: components.registry.clone(),
        hello: hello(&settings.node.name, Protocol::Storage),
        checkpoints: Arc::clone(checkpoints),
        uploads: settings.uploads.clone(),
    };
    let (started, handle) = oneshot::channel();
    arbiter.spawn_fn(move || drop(started.send(Background::start(parts))));
    let background = handle.await.map_err(|_| RunError::ThreadEnded)?;
    Ok((background, arbiter))
}

/// A shard that runs.
struct Running {
    arbiter: Arbiter,
    begin: mpsc::Sender<VolumeId>,
    listening: oneshot::Receiver<Result<(), BindError>>,
    ended: oneshot::Receiver<Result<(), TasksError>>,
}

fn shards(
    settings: &Settings,
    components: &Components,
    node: &Arc<Node>,
    endpoints: &[Endpoint],
) -> Result<Vec<Running>, RunError> {
    let start = |(index, endpoint): (usize, &Endpoint)| {
        let arbiter = Arbiter::try_with_tokio_rt(|| runtime(BLOCKING_THREADS))?;
        let (listening, heard) = oneshot::channel();
        let (ended, end) = oneshot::channel();
        let (begin, to_begin) = mpsc::channel(BEGIN_MAX);
        let start = shard::Start {
            index,
            network: components.network.clone(),
            endpoint: endpoint.clone(),
            node: Arc::clone(node),
            operations_max: settings.limits.operations,
            operation_bytes_max: settings.limits.operation_bytes.bytes(),
            stop_within: settings.volumes.stop_within.duration(),
            stop: components.stop.clone(),
            listening,
            begin: to_begin,
        };
        arbiter.spawn_fn(move || {
            actix_rt::spawn(async move { drop(ended.send(shard::run(start).await)) });
        });
        Ok(Running {
            arbiter,
            begin,
            listening: heard,
            ended: end,
        })
    };
    endpoints.iter().enumerate().map(start).collect()
}

async fn serve(
    settings: &Settings,
    components: &Components,
    node: &Arc<Node>,
    endpoints: &[Endpoint],
    mut shards: Vec<Running>,
) -> Result<(), RunError> {
    let stop = &components.stop;
    for shard in &mut shards {
        (&mut shard.listening)
            .await
            .map_err(|_| RunError::ThreadEnded)??;
    }
    let begin: Vec<mpsc::Sender<VolumeId>> = shards.iter().map(|shard| shard.begin.clone()).collect();
    let record = NodeRecord {
        name: node.name.clone(),
        role: Role::VolumeRouter,
        endpoints: endpoints.iter().map(ToString::to_string).collect(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
    };
    let ttl = settings.volumes.lease.duration();
    // The announcement outlives the stop's request until the volumes are stored: a released volume is released by
    // an owner that still may.
    let withdraw = Stop::new();
    let announced = announce(node, record, ttl, begin, stop.clone(), withdraw.clone());
    let announced = actix_rt::spawn(announced);
    let mut outcome = Ok(());
    for shard in shards {
        let ended = shard.ended.await.map_err(|_| RunError::ThreadEnded);
        // One that fails stops the others.
        stop.request();
        outcome = outcome.and(ended.and_then(|ended| ended.map_err(RunError::from)));
        shard.arbiter.stop();
        let _ = shard.arbiter.join();
    }
    withdraw.request();
    let announced = announced.await.unwrap_or(Ok(()));
    outcome.and(announced.map_err(RunError::from))
}

/// Announces the node, keeps its lease, begins its volumes and follows their records.
fn announce(
    node: &Arc<Node>,
    record: NodeRecord,
    ttl: Duration,
    begin: Vec<mpsc::Sender<VolumeId>>,
    stop: Stop,
    withdraw: Stop,
) -> impl Future<Output = Result<(), AnnounceError>> + 'static {
    let node = Arc::clone(node);
    async move {
        let registered = tokio::select! {
            registered = register(&node, &record, ttl) => registered,
            () = withdraw.requested() => return Ok(()),
        };
        let tenure = registered.tenure();
        node.gate.hold(tenure.held_until());
        let guard = actix_rt::spawn(guard(Arc::clone(&node), tenure, ttl));
        let follow = actix_rt::spawn(follow(Arc::clone(&node), begin));
        let kept = registered.keep(withdraw).await;
        guard.abort();
        follow.abort();
        node.gate.close();
        // Without its name the node may serve nothing.
        stop.request();
        kept
    }
}

async fn register(node: &Arc<Node>, record: &NodeRecord, ttl: Duration) -> Announcement {
    let mut backoff = Backoff::new(
        Duration::from_millis(20),
        Duration::from_secs(1),
        Chance::from_os(),
    );
    let mut told = false;
    loop {
        match Announcement::register(&node.registry, record, ttl).await {
            Ok(registered) => return registered,
            Err(error) => {
                if !std::mem::replace(&mut told, true) {
                    tracing::warn!(%error, "cannot announce this node: trying again until it is announced");
                }
                tokio::time::sleep(backoff.wait()).await;
            }
        }
    }
}

/// Extends the gate as the lease is renewed. A lease that was renewed after its end may have been another's meanwhile:
/// then every volume is verified before any is served again.
async fn guard(node: Arc<Node>, tenure: Tenure, ttl: Duration) {
    let mut known = tenure.held_until();
    loop {
        tokio::time::sleep(ttl / 4).await;
        let until = tenure.held_until();
        if until == known {
            continue;
        }
        let renewed_at = until.checked_sub(ttl).unwrap_or(until);
        if renewed_at >= known {
            tracing::warn!(node = %node.name, "the lease had ended: verifying every volume before it is served again");
            for (_, volume) in node.volumes.all() {
                volume.verify().await;
            }
        }
        known = until;
        node.gate.hold(until);
    }
}

/// Begins the node's volumes, and from then on does what changes of their records ask for.
async fn follow(node: Arc<Node>, begin: Vec<mpsc::Sender<VolumeId>>) {
    let mut backoff = Backoff::new(
        Duration::from_millis(50),
        Duration::from_secs(2),
        Chance::from_os(),
    );
    let mut after = None;
    loop {
        let followed = match after {
            None => list(&node, &begin).await,
            Some(revision) => watch(&node, &begin, revision).await,
        };
        match followed {
            Ok(next) => {
                backoff.reset();
                after = next;
            }
            Err(error) => {
                tracing::debug!(%error, "the volumes' records cannot be followed now");
                tokio::time::sleep(backoff.wait()).await;
            }
        }
    }
}

type Followed = Result<Option<Revision>, sconce_registry::RegistryError>;

async fn list(node: &Arc<Node>, begin: &[mpsc::Sender<VolumeId>]) -> Followed {
    let revision = node.registry.revision().await?;
    for (_, record, _) in node.registry.list_records::<VolumeRecord>(keys::VOLUMES).await? {
        changed(node, begin, &record).await;
    }
    Ok(Some(revision))
}

async fn watch(node: &Arc<Node>, begin: &[mpsc::Sender<VolumeId>], after: Revision) -> Followed {
    let watched = node.registry.watch(keys::VOLUMES, after, WATCH_WAIT).await?;
    if watched.lost {
        return Ok(None);
    }
    for event in watched.events {
        let Some(entry) = event.entry else { continue };
        match sconce_registry::record::decode::<VolumeRecord>(&entry) {
            Ok(record) => changed(node, begin, &record).await,
            Err(error) => tracing::error!(%error, "a volume's record is damaged"),
        }
    }
    Ok(Some(watched.revision))
}

/// What a volume's record asks of this node.
async fn changed(node: &Arc<Node>, begin: &[mpsc::Sender<VolumeId>], record: &VolumeRecord) {
    let served = node.volumes.get(record.id);
    let ours = record.owner == node.name;
    match (served, ours, record.phase) {
        (Some(volume), true, VolumePhase::Deleting) => {
            if let Err(refusal) = volume.delete().await {
                tracing::debug!(volume = %record.id, %refusal, "not deleted yet");
            }
        }
        (None, true, VolumePhase::Deleting) => {
            for found in node.device.claim(record.id) {
                node.device.retire(&found.file);
            }
            node.background.erase(Subject {
                volume: record.id,
                path: format!("(volume {})", record.id).into(),
                pool: record.pool.as_str().into(),
            });
        }
        (None, true, VolumePhase::Active) => {
            if let Some(shard) = begin.get(node.shard_of(record.id)) {
                // A shard that takes none is stopping.
                let _ = shard.send(record.id).await;
            }
        }
        (Some(volume), _, VolumePhase::Active) => volume.follow(record),
        (Some(volume), false, VolumePhase::Deleting) => volume.verify().await,
        (None, false, _) => {
            // Another node's: what was left of it here is not needed, unless the record still names this buffer.
            if record.buffer.as_deref() != Some(node.device.id()) && record.epoch.0 > 0 {
                for found in node.device.claim(record.id) {
                    node.device.retire(&found.file);
                }
            }
        }
    }
}

/// Every SCO file is open: as many as the system allows may be.
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, current = ?limit.current, "the limit of open files could not be raised");
    }
}
