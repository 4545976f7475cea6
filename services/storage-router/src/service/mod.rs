//! The service: everything that a storage-router process does, on one thread beside the blocking ones.
//!
//! Keeps: its parts as supervised tasks; where its settings say so, the pool's registry too.
//! Order: registry, back ends, pools, socket, announcement, a look at what changed before that; then it answers. Whoever changes where
//! objects are waits for those that are announced.
//! Crash: nothing to recover: the next start finds objects on the back ends and records in the registry.
//! Knows no signals and no files of settings: those are `main`'s.

mod backends;
mod deep_scrubbing;
mod following;
mod handler;
mod keys;
mod moving;
mod pools;
mod restoring;
mod rounds;
mod serving;
mod standing;

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use sconce_bus::{Endpoint, Hello, Identity, Limits, Network, Protocol, Role, Version, bind};
use sconce_cache::{Cache, CacheSettings, SystemDisk};
use sconce_registry::announce::{Announcement, NODE_TTL};
use sconce_registry::{Registry, RegistrySettings};
use sconce_runtime::{Chance, Clock, Events, MetricsEndpoint, MetricsOf, Stop, Tasks};
use sconce_schemas::NodeName;
use sconce_schemas::records::NodeRecord;
use sconce_tracing::metrics::{Operations, Page};

use crate::backend::Backend;
use crate::cached::{self, ObjectCache};
use crate::checked::Checked;
use crate::settings::Settings;
use crate::workers::Workers;
use backends::Backends;
use deep_scrubbing::DeepScrubbing;
use handler::Handler;
use moving::Moving;
use pools::Pools;
use standing::Standing;

/// How long a stop waits for requests and repairs under way: longer than a put to a slow disk.
const STOP_WITHIN: Duration = Duration::from_secs(20);
/// Bytes of objects whose checksums are computed at once.
const CHECK_BYTES_AT_ONCE: u64 = 256 << 20;

/// What a storage-router is given besides its settings.
#[derive(Debug, Clone)]
pub struct Components {
    /// How its messages travel.
    pub network: Network,
    /// Asks it to stop.
    pub stop: Stop,
}

/// Runs a storage-router until the stop is requested. Call it within a [`tokio::task::LocalSet`] on a
/// current-thread runtime.
///
/// # Errors
/// It cannot start: the registry, a back end that was never set up, or the endpoint; the text names it and the
/// setting. Or a part of it ended by itself, or did not stop in time.
pub async fn run(settings: Settings, components: Components) -> anyhow::Result<()> {
    let Components { network, stop } = components;
    let node = settings.node.name.clone();
    let registry = Registry::open(&settings.registry, &network, hello(&node)).await?;
    let mut tasks = Tasks::new(&stop);
    if let RegistrySettings::Sled { listen, .. } = &settings.registry {
        let endpoint = endpoint("registry.listen", listen)?;
        let server = bind(&network, &endpoint, identity(&node, Protocol::Registry)).await?;
        tasks.spawn_local(
            "registry host",
            sconce_registry::host(registry.clone(), server, stop.clone()),
        );
    }
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    let workers = Workers::bounded(threads, CHECK_BYTES_AT_ONCE);
    let events = Events::new(node.clone(), Clock::system(), &mut Chance::from_os());
    let backends = Backends::of_settings(&settings, &registry, &workers, &events).await?;
    serve(
        &settings,
        Parts {
            network,
            stop,
            registry,
            tasks,
            workers,
            events,
            backends,
        },
    )
    .await
}

/// Runs a storage-router on back ends that somebody else made, with no thread beside its own: for simulations. Its
/// settings' back ends count by their names alone. Otherwise as [`run`].
///
/// # Errors
/// As [`run`].
pub async fn run_on(
    backends: Vec<Arc<dyn Backend>>,
    settings: Settings,
    components: Components,
    registry: Registry,
) -> anyhow::Result<()> {
    let Components { network, stop } = components;
    let tasks = Tasks::new(&stop);
    let workers = Workers::inline();
    let events = Events::new(
        settings.node.name.clone(),
        Clock::system(),
        &mut Chance::from_os(),
    );
    let deadline = settings.limits.backend_deadline.duration();
    let checked = |backend: Arc<dyn Backend>| {
        Arc::new(Checked::new(backend, workers.clone(), deadline).telling(events.clone()))
    };
    let backends = Backends::made(&registry, backends.into_iter().map(checked));
    serve(
        &settings,
        Parts {
            network,
            stop,
            registry,
            tasks,
            workers,
            events,
            backends,
        },
    )
    .await
}

/// What a storage-router serves with.
struct Parts {
    network: Network,
    stop: Stop,
    registry: Registry,
    tasks: Tasks,
    workers: Workers,
    events: Events,
    backends: Backends,
}

async fn serve(settings: &Settings, parts: Parts) -> anyhow::Result<()> {
    let Parts {
        network,
        stop,
        registry,
        mut tasks,
        workers,
        events,
        backends,
    } = parts;
    let node = settings.node.name.clone();
    let care = keys::Cares::read(settings)?;
    let pools = Pools::new(registry.clone(), backends, workers, care);
    pools.propose(&settings.pools).await?;
    let cache = settings.cache.as_ref().map(open_cache);
    let listen = endpoint("node.endpoints", settings.endpoint())?;
    let server = bind(&network, &listen, identity(&node, Protocol::Storage)).await?;
    let announcement = Announcement::register(&registry, &record(settings), NODE_TTL)
        .await
        .with_context(|| format!("{node} is not announced"))?;
    let handler = Rc::new(Handler {
        cache,
        node: node.clone(),
        pools,
        standing: Standing::new(announcement.tenure()),
        events: events.clone(),
        stop: stop.clone(),
        operations: Operations::default(),
        under_way: Rc::new(()),
    });
    if let Err(error) = following::look(&handler).await {
        tracing::info!(%error, "the registry does not tell now which pools and back ends there are");
    }
    if let Some(endpoint) = MetricsEndpoint::bind(settings.metrics.as_ref()).await? {
        let of = MetricsOf {
            service: "storage-router",
            node: node.to_string(),
            version: env!("CARGO_PKG_VERSION"),
        };
        let told = Rc::clone(&handler);
        let tell = async move |page: &mut Page| told.tell_metrics(page).await;
        tasks.spawn_local("metrics", endpoint.serve(of, tell, stop.clone()));
    }
    let following = following::follow(Rc::clone(&handler), registry.clone(), stop.clone());
    tasks.spawn_local("following the registry", following);
    let deep_scrubbing = DeepScrubbing {
        handler: Rc::clone(&handler),
        registry: registry.clone(),
        settings: settings.deep_scrub,
        clock: Clock::system(),
        stop: stop.clone(),
    };
    tasks.spawn_local("deep scrubs", deep_scrubbing.run());
    let moving = Moving {
        handler: Rc::clone(&handler),
        registry: registry.clone(),
        settings: settings.moves,
        clock: Clock::system(),
        stop: stop.clone(),
    };
    tasks.spawn_local("moves", moving.run());
    tasks.spawn_local("restoring", restoring::restore(Rc::clone(&handler), stop.clone()));
    let limits = settings.limits.clone();
    tasks.spawn_local(
        "storage server",
        serving::serve(server, handler, limits, stop.clone()),
    );
    let nodes = sconce_registry::nodes::tell(registry, node.clone(), events, stop.clone());
    tasks.spawn_local("events of nodes", nodes);
    tasks.spawn_local(
        "announcement",
        keep_announced(announcement, node.clone(), stop.clone()),
    );
    tracing::info!(%node, endpoint = %listen, "storage-router serves");
    tasks.finish(STOP_WITHIN).await?;
    Ok(())
}

fn open_cache(settings: &CacheSettings) -> Rc<ObjectCache> {
    let components = sconce_cache::Components {
        disk: Arc::new(SystemDisk),
        clock: Clock::system(),
    };
    let cache = Cache::open(settings, cached::PIECE, components, &mut Chance::from_os());
    Rc::new(ObjectCache::new(cache))
}

/// What the node is announced as.
fn record(settings: &Settings) -> NodeRecord {
    NodeRecord {
        name: settings.node.name.clone(),
        role: Role::StorageRouter,
        endpoints: settings.node.endpoints.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        place: Some(settings.node.place()),
        buffer: None,
    }
}

/// Keeps the node announced for as long as it serves. Ends early, and with that the service, when another process has its name.
async fn keep_announced(announcement: Announcement, node: NodeName, stop: Stop) {
    if let Err(error) = announcement.keep(stop).await {
        tracing::error!(%node, %error, "not announced");
    }
}

fn hello(node: &NodeName) -> Hello {
    Hello {
        version: Version::CURRENT,
        protocol: Protocol::Registry,
        role: Role::StorageRouter,
        node: node.clone(),
    }
}

fn identity(node: &NodeName, protocol: Protocol) -> Identity {
    Identity {
        node: node.clone(),
        role: Role::StorageRouter,
        protocol,
        limits: Limits::of(protocol),
    }
}

fn endpoint(key: &str, text: &str) -> anyhow::Result<Endpoint> {
    text.parse()
        .with_context(|| format!("settings: {key} = {text:?}"))
}
