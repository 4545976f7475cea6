//! The service: its threads, its announcement, its volumes at the start, its orderly stop.
//!
//! Keeps: nothing of its own.
//! Order: buffer and registry, shards that listen, the announcement, then the volumes; the stop goes backwards.
//! Crash: the registry and the write buffer tell a new process all that it needs.
//! Knows no operations.

use std::io;
use std::sync::Arc;

use actix_rt::{Arbiter, System};
use sconce_bus::{BindError, Endpoint, Hello, Network, Protocol, Role, Version};
use sconce_registry::announce::AnnounceError;
use sconce_registry::{OpenError, Registry};
use sconce_runtime::tasks::TasksError;
use sconce_runtime::{Chance, Clock, Events, MetricsEndpoint, MetricsError, MetricsOf, Stop, simulated};
use sconce_schemas::records::NodeRecord;
use sconce_schemas::{ByteLen, NodeName};
use sconce_tracing::metrics::Page;
use tokio::sync::{mpsc, oneshot};

use crate::announce::announce;
use crate::background::{self, Background, Guests};
use crate::device::{Device, DeviceError, Disk, LocalCheckpoints};
use crate::gate::Gate;
use crate::metrics;
use crate::node::{Node, Volumes};
use crate::placement::{IoCounts, Seen};
use crate::settings::{SettingError, Settings};
use crate::shard;
use crate::twin::Relied;

/// Threads of a shard that do what blocks: syncs, reads that are not in memory, recoveries.
const BLOCKING_THREADS: usize = 32;
/// Volumes that wait to be begun on a shard.
const BEGIN_MAX: usize = 1024;

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
    /// There can be no endpoint for metrics.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
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

/// Runs the service until the stop is requested. To be called within [`block_on`], or within the `LocalSet` of a simulated process.
///
/// # Errors
/// The service cannot start, or a part of it failed.
pub async fn run(settings: Settings, components: Components) -> Result<(), RunError> {
    let endpoints = settings.check()?;
    raise_file_limit();
    let stop = components.stop.clone();
    let endpoint = MetricsEndpoint::bind(settings.metrics.as_ref()).await?;
    let (node, beside) = node(&settings, &components, endpoints.len()).await?;
    if let Some(endpoint) = endpoint {
        let of = MetricsOf {
            service: "volume-router",
            node: node.name.to_string(),
            version: env!("CARGO_PKG_VERSION"),
        };
        let told = Arc::clone(&node);
        let tell = async move |page: &mut Page| metrics::tell(&told, page).await;
        actix_rt::spawn(endpoint.serve(of, tell, stop.clone()));
    }
    let shards = shards(&settings, &components, &node, &endpoints)?;
    let served = serve(&settings, &components, &node, &endpoints, shards).await;
    stop.request();
    beside.stop();
    served
}

/// A thread of the service; in a simulation all of them are the one that there is.
enum Thread {
    Own(Arbiter),
    Simulated,
}

impl Thread {
    fn start() -> io::Result<Self> {
        Ok(match simulated::is_here() {
            true => Self::Simulated,
            false => Self::Own(Arbiter::try_with_tokio_rt(|| runtime(BLOCKING_THREADS))?),
        })
    }

    fn spawn_fn(&self, begin: impl FnOnce() + Send + 'static) {
        match self {
            // One that takes nothing more has ended: whoever waits for what was begun is told.
            Self::Own(arbiter) => drop(arbiter.spawn_fn(begin)),
            Self::Simulated => begin(),
        }
    }

    fn stop(self) {
        if let Self::Own(arbiter) = self {
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
) -> Result<(Arc<Node>, Thread), RunError> {
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
    let guests = Guests::default();
    let (name, clock) = (settings.node.name.clone(), components.clock.clone());
    let events = Events::new(name, clock, &mut Chance::from_os());
    let shared = (&checkpoints, &device, guests.clone(), events.clone());
    let (background, thread) = background(settings, components, shared).await?;
    let node = Node {
        name: settings.node.name.clone(),
        place: settings.node.place(),
        shards,
        counts: (0..shards).map(|_| Arc::default()).collect(),
        operations_max: settings.limits.operations,
        device,
        checkpoints,
        registry: components.registry.clone(),
        clock: components.clock.clone(),
        events,
        background,
        guests,
        gate: Arc::new(Gate::new()),
        map_memory: ByteLen(settings.volumes.map_memory.bytes()),
        checkpoint: settings.checkpoint_policy(),
        scrub: settings.scrub.policy(),
        sweep: settings.sweep.policy(&settings.scrub),
        dtl: settings.dtl,
        placement: settings.placement,
        group_hold: settings.volumes.group_hold.duration(),
        adopt_after: settings.erase.adopt_after.duration(),
        volumes: Volumes::default(),
        relied: Relied::default(),
        seen: Seen::default(),
        io: IoCounts::default(),
    };
    Ok((Arc::new(node), thread))
}

async fn background(
    settings: &Settings,
    components: &Components,
    (checkpoints, device, guests, events): (&Arc<LocalCheckpoints>, &Device, Guests, Events),
) -> Result<(Background, Thread), RunError> {
    let thread = Thread::start()?;
    let parts = background::Components {
        network: components.network.clone(),
        registry: components.registry.clone(),
        hello: hello(&settings.node.name, Protocol::Storage),
        checkpoints: Arc::clone(checkpoints),
        level: device.level(),
        uploads: settings.uploads.clone(),
        scrub: settings.scrub.clone(),
        guests,
        erase: settings.erase,
        clock: components.clock.clone(),
        events,
        buffer: device.id().to_owned(),
    };
    let (started, handle) = oneshot::channel();
    thread.spawn_fn(move || drop(started.send(Background::start(parts))));
    let background = handle.await.map_err(|_| RunError::ThreadEnded)?;
    Ok((background, thread))
}

/// A shard that runs.
struct Running {
    thread: Thread,
    begin: mpsc::Sender<shard::Begin>,
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
        let thread = Thread::start()?;
        let (listening, heard) = oneshot::channel();
        let (ended, end) = oneshot::channel();
        let (begin, to_begin) = mpsc::channel(BEGIN_MAX);
        let start = shard::Start {
            index,
            network: components.network.clone(),
            to_others: hello(&settings.node.name, Protocol::Volume),
            endpoint: endpoint.clone(),
            node: Arc::clone(node),
            operation_bytes_max: settings.limits.operation_bytes.bytes(),
            stop_within: settings.volumes.stop_within.duration(),
            stop: components.stop.clone(),
            listening,
            begin: to_begin,
        };
        thread.spawn_fn(move || {
            actix_rt::spawn(async move { drop(ended.send(shard::run(start).await)) });
        });
        Ok(Running {
            thread,
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
    let begin: Vec<mpsc::Sender<shard::Begin>> = shards.iter().map(|shard| shard.begin.clone()).collect();
    let record = NodeRecord {
        name: node.name.clone(),
        role: Role::VolumeRouter,
        endpoints: endpoints.iter().map(ToString::to_string).collect(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        place: Some(node.place.clone()),
        buffer: Some(node.device.identity().clone()),
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
        shard.thread.stop();
    }
    withdraw.request();
    let announced = announced.await.unwrap_or(Ok(()));
    outcome.and(announced.map_err(RunError::from))
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
