//! Whole clusters in one process, from one seed (docs/decisions/0195).
//!
//! Keeps: nothing between runs.
//! Order: machines start, a storm blows while guests work, everything is put right, what is there is read, and every cluster's
//! history is judged.
//! Crash: a run is repeated by its seed, byte for byte.
//! Knows the services from outside: their `run`, their settings, their components. What runs is their own code: volume-routers
//! with actors, devices and twins, the registry's host and client, the routing of fs-routers, storage-routers with their pools. Not
//! theirs are threads, sockets, clocks, disks and back ends.

mod disk;
mod entropy;
mod guests;
mod history;
pub mod linear;
mod log;
mod machine;
mod process;
mod promise;
mod storm;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;
use std::sync::Once;
use std::time::Duration;

use anyhow::Context as _;
use sconce_registry::{Registry, Revision};
use sconce_runtime::Chance;
use sconce_runtime::simulated::{self, Planted, Simulated};
use sconce_schemas::access::{Access, AccessMode};
use sconce_schemas::records::{DtlMode, InodeKind, InodeRecord, ROOT_INODE, VolumeRecord, keys};
use sconce_schemas::{ScoSize, VolumeSize};
use tokio::task::LocalSet;
use tokio::time::{Instant, sleep};
use tracing::Level;
use tracing_subscriber::layer::SubscriberExt as _;

use guests::Load;
use history::History;
use machine::{FS_ROUTERS, Machine, REGISTRY, STORAGE_ROUTERS, Service, Site, VOLUME_ROUTERS};
use promise::Promises;
use storm::{Cluster, Storm};

pub use storm::Fault;

/// What is run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Decides everything.
    pub seed: u64,
    /// Rules that the services leave out.
    pub planted: Vec<Planted>,
    /// What the storm is made of; empty: the seed decides.
    pub faults: Vec<Fault>,
    /// Whether guests read while the storm blows.
    pub reads: bool,
    /// Whether the trace has what the services log at all levels; otherwise warnings and errors.
    pub is_detailed: bool,
}

impl Plan {
    /// The usual run of a seed.
    #[must_use]
    pub const fn of(seed: u64) -> Self {
        Self {
            seed,
            planted: Vec::new(),
            faults: Vec::new(),
            reads: true,
            is_detailed: false,
        }
    }
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// What went wrong that must not.
    pub failures: Vec<String>,
    /// Operations on single clusters.
    pub operations: u64,
    /// Those that were answered.
    pub acked: u64,
    /// How many faults of each kind.
    pub faults: BTreeMap<&'static str, u64>,
    /// How long it took the cluster.
    pub lasted: Duration,
    /// One line for each thing that happened.
    pub trace: String,
}

thread_local! {
    static PANICKED: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Runs a plan. `dir`: a folder for the machines' disks, best in memory; what is left there of the seed is removed.
///
/// # Errors
/// The run itself cannot be done; what goes wrong within it is in the report.
pub fn run(plan: &Plan, dir: &Path) -> anyhow::Result<Report> {
    hear_panics();
    let (plan, dir) = (plan.clone(), dir.join(format!("seed-{:020}", plan.seed)));
    // A thread of its own: hash maps are keyed by what the thread has drawn so far.
    let thread = std::thread::Builder::new()
        .name(format!("seed {}", plan.seed))
        .spawn(move || {
            entropy::leave_out(plan.seed);
            let _here = Simulated::enter(plan.seed, &plan.planted);
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .start_paused(true)
                .build()?;
            drop(std::fs::remove_dir_all(&dir));
            std::fs::create_dir_all(&dir).with_context(|| format!("folder {}", dir.display()))?;
            let subscriber = tracing_subscriber::registry().with(log::ToHistory {
                most: if plan.is_detailed {
                    Level::DEBUG
                } else {
                    Level::WARN
                },
                hidden: [
                    dir.display().to_string(),
                    format!("process {}", std::process::id()),
                ],
            });
            let report = tracing::subscriber::with_default(subscriber, || {
                LocalSet::new().block_on(&runtime, live(&plan, &dir))
            });
            drop(std::fs::remove_dir_all(&dir));
            report
        })?;
    thread
        .join()
        .map_err(|_| anyhow::anyhow!("the simulation itself panicked"))?
}

/// A panic in a simulated process is something that went wrong; elsewhere it is told as always.
fn hear_panics() {
    static HEARD: Once = Once::new();
    HEARD.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if simulated::is_here() {
                PANICKED.with_borrow_mut(|panicked| panicked.push(panic.to_string()));
            } else {
                before(panic);
            }
        }));
    });
}

async fn live(plan: &Plan, dir: &Path) -> anyhow::Result<Report> {
    let begun = Instant::now();
    let mut chance = Chance::seeded(plan.seed);
    let history = Rc::new(RefCell::new(History::new()));
    log::to(Some(Rc::clone(&history)));
    let lived = within(plan, dir, &mut chance, &history).await;
    log::to(None);
    for panic in PANICKED.take() {
        history.borrow_mut().fail(format!("panicked: {panic}"));
    }
    lived?;
    history.borrow_mut().judge();
    let mut history = history.borrow_mut();
    let history = std::mem::replace(&mut *history, History::new());
    Ok(Report {
        failures: history.failures.clone(),
        operations: history.operations(),
        acked: history.acked,
        faults: history.faults.clone(),
        lasted: begun.elapsed(),
        trace: history.into_trace(),
    })
}

async fn within(
    plan: &Plan,
    dir: &Path,
    chance: &mut Chance,
    history: &Rc<RefCell<History>>,
) -> anyhow::Result<()> {
    let volumes = 1 + u8::try_from(chance.below(2))?;
    let load = Load {
        volumes: (0..volumes).map(guests::volume).collect(),
        guests: 2 + chance.below(2),
        pause_ms: 50 + chance.below(400),
        reads: if plan.reads { 20 + chance.below(50) } else { 0 },
    };
    history
        .borrow_mut()
        .note(format_args!("seed {}: {load:?}", plan.seed));
    let site = Rc::new(Site::new(dir.to_owned(), chance.fork(), load, Rc::clone(history)));
    site.wires.set_faults(storm::fair());
    create_volumes(&site.registry, &site.load, chance).await?;
    let machines = |names: &[&'static str]| -> anyhow::Result<Vec<Rc<Machine>>> {
        names
            .iter()
            .map(|name| Ok(Rc::new(Machine::new(&site, name)?)))
            .collect()
    };
    let cluster = Rc::new(Cluster {
        volume_routers: machines(&VOLUME_ROUTERS)?,
        fs_routers: machines(&FS_ROUTERS)?,
        storage_routers: machines(&STORAGE_ROUTERS)?,
        registry_host: Rc::new(Machine::new(&site, REGISTRY)?),
        promises: Rc::new(Promises::default()),
        site: Rc::clone(&site),
    });
    let following = tokio::task::spawn_local(Rc::clone(&cluster.promises).follow(site.registry.clone()));
    start(&cluster);
    sleep(Duration::from_secs(2)).await;
    Storm::new(&cluster, chance.fork(), &plan.faults).blow().await?;
    // Whoever does not read does not write over what tells of it.
    site.is_over.set(!plan.reads);
    put_right(&cluster).await;
    look(&cluster).await?;
    // What is there is there after a restart of everything, too.
    for machine in &cluster.volume_routers {
        machine.kill(&site)?;
        machine.start(&site, Service::VolumeRouter);
    }
    look(&cluster).await?;
    following.abort();
    for machine in cluster.volume_routers.iter().chain(&cluster.storage_routers) {
        machine.kill(&site)?;
    }
    Ok(())
}

fn start(cluster: &Cluster) {
    let site = &cluster.site;
    cluster.registry_host.start(site, Service::RegistryHost);
    cluster
        .storage_routers
        .iter()
        .for_each(|machine| machine.start(site, Service::StorageRouter));
    cluster
        .volume_routers
        .iter()
        .for_each(|machine| machine.start(site, Service::VolumeRouter));
    cluster
        .fs_routers
        .iter()
        .for_each(|machine| machine.start(site, Service::Guests));
}

async fn create_volumes(registry: &Registry, load: &Load, chance: &mut Chance) -> anyhow::Result<()> {
    for (number, volume) in load.volumes.iter().enumerate() {
        let inode = 100 + number as u64;
        let owner = VOLUME_ROUTERS[number % VOLUME_ROUTERS.len()];
        let record = VolumeRecord {
            inode,
            dtl_mode: match number > 0 && chance.one_of(1, 3) {
                true => DtlMode::None,
                false => DtlMode::Sync,
            },
            // Guests of two fs-routers write each.
            access: Access {
                mode: AccessMode::Shared,
                ..Access::default()
            },
            ..VolumeRecord::unowned(
                *volume,
                VolumeSize::new(guests::SIZE)?,
                ScoSize::new(64)?,
                "default".to_owned(),
                machine::node(owner)?,
            )
        };
        let file = InodeRecord {
            kind: InodeKind::File(*volume),
            parent: ROOT_INODE,
            name: format!("disk-{number}"),
            mode: 0o600,
            uid: 0,
            gid: 0,
            mtime_ns: 0,
            ctime_ns: 0,
        };
        registry
            .put_record(&keys::inode(inode), None, &file, None)
            .await?;
        registry
            .put_record(&keys::volume(*volume), Some(Revision::ABSENT), &record, None)
            .await?;
    }
    Ok(())
}

/// Every fault is over: what is gone comes back, and guests stop once they are answered.
async fn put_right(cluster: &Rc<Cluster>) {
    let site = &cluster.site;
    site.history.borrow_mut().note(format_args!("the storm is over"));
    site.is_calm.set(true);
    // Longer than any fault lasts.
    sleep(Duration::from_secs(10)).await;
    site.wires.heal_all();
    site.wires.set_faults(storm::fair());
    site.is_over.set(true);
}

/// Waits for the guests that are left, and reads what is there.
async fn look(cluster: &Cluster) -> anyhow::Result<()> {
    let site = &cluster.site;
    for machine in &cluster.fs_routers {
        if !machine.has_ended().await {
            site.history
                .borrow_mut()
                .fail(format!("{} does not come to its end", machine.name));
        }
    }
    let machine = &cluster.fs_routers[0];
    guests::look(machine, site).await
}
