//! The machines of a cluster and what runs on them: volume-routers, fs-routers, storage-routers, the registry's host.
//!
//! Keeps: disks, wall clocks and the processes that run.
//! Order: none.
//! Crash: a machine that loses its process keeps its disk.
//! Knows what a service is started with, nothing of what it does.

use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use sconce_bus::{Endpoint, Hello, Identity, InProcess, Limits, Network, Protocol, Role, Version};
use sconce_registry::Registry;
use sconce_runtime::{Chance, Clock, Stop};
use sconce_schemas::NodeName;
use sconce_storage_router::testing::{FaultyBackend, MemoryBackend};
use sconce_storage_router::{Backend, testing};

use crate::disk::SimulatedDisk;
use crate::guests::Load;
use crate::history::History;
use crate::process::Process;

pub(crate) const REGISTRY: &str = "registry";
/// The names of the volume-routers.
pub(crate) const VOLUME_ROUTERS: [&str; 3] = ["v0", "v1", "v2"];
/// Of the fs-routers.
pub(crate) const FS_ROUTERS: [&str; 2] = ["f0", "f1"];
/// Of the storage-routers.
pub(crate) const STORAGE_ROUTERS: [&str; 2] = ["s0", "s1"];
const BACKENDS: [&str; 2] = ["b0", "b1"];
const BACKEND_BYTES: u64 = 1 << 30;
/// Longer than guests wait for their last answers.
const ENDS_WITHIN_10_MS: u32 = 30_000;
const STARTED_AGAIN_AFTER: Duration = Duration::from_millis(300);

/// What all machines have in common.
pub(crate) struct Site {
    pub(crate) dir: PathBuf,
    pub(crate) wires: InProcess,
    pub(crate) network: Network,
    /// What the registry's host has, whatever becomes of its process.
    pub(crate) registry: Registry,
    pub(crate) backends: Vec<Arc<FaultyBackend>>,
    pub(crate) history: Rc<RefCell<History>>,
    pub(crate) load: Load,
    pub(crate) chance: RefCell<Chance>,
    /// Processes of fs-routers so far.
    pub(crate) incarnations: Cell<u64>,
    /// The storm is over, and not all that it did is: guests ask for less.
    pub(crate) is_calm: Cell<bool>,
    /// Guests ask for nothing more.
    pub(crate) is_over: Cell<bool>,
}

pub(crate) fn node(name: &str) -> anyhow::Result<NodeName> {
    Ok(name.parse()?)
}

/// Where a machine's service listens.
pub(crate) fn endpoint(name: &str) -> anyhow::Result<Endpoint> {
    Ok(format!("inproc://{name}").parse()?)
}

fn hello(name: &str, protocol: Protocol, role: Role) -> anyhow::Result<Hello> {
    Ok(Hello {
        version: Version::CURRENT,
        protocol,
        role,
        node: node(name)?,
    })
}

impl Site {
    pub(crate) fn new(dir: PathBuf, mut chance: Chance, load: Load, history: Rc<RefCell<History>>) -> Self {
        let wires = InProcess::new(chance.u64());
        let backend = |name: &&str| {
            let memory: Arc<dyn Backend> = Arc::new(MemoryBackend::new(name, BACKEND_BYTES));
            Arc::new(FaultyBackend::new(
                memory,
                testing::Faults::default(),
                chance.u64(),
            ))
        };
        let backends = BACKENDS.iter().map(backend).collect();
        Self {
            dir,
            network: Network::in_process(wires.clone()),
            wires,
            registry: Registry::memory(),
            backends,
            history,
            load,
            chance: RefCell::new(chance),
            incarnations: Cell::new(0),
            is_calm: Cell::new(false),
            is_over: Cell::new(false),
        }
    }

    /// The registry as a machine reaches it. Within the machine's process.
    pub(crate) fn registry_from(&self, name: &str, role: Role) -> anyhow::Result<Registry> {
        let hello = hello(name, Protocol::Registry, role)?;
        Ok(Registry::remote(&self.network, &endpoint(REGISTRY)?, hello)?)
    }

    /// All connections of a machine break: what it says from now on, it says to nobody.
    pub(crate) fn break_off(&self, name: &str) -> anyhow::Result<()> {
        let others = [REGISTRY]
            .into_iter()
            .chain(VOLUME_ROUTERS)
            .chain(FS_ROUTERS)
            .chain(STORAGE_ROUTERS);
        for other in others {
            self.wires.break_connections(&node(name)?, &node(other)?);
        }
        Ok(())
    }
}

/// A machine, whose process comes and goes.
pub(crate) struct Machine {
    pub(crate) name: &'static str,
    pub(crate) clock: Clock,
    disk: Arc<SimulatedDisk>,
    process: RefCell<Option<Process>>,
    stop: RefCell<Stop>,
    /// Something is being done with it already.
    pub(crate) busy: Cell<bool>,
}

impl Machine {
    pub(crate) fn new(site: &Site, name: &'static str) -> anyhow::Result<Self> {
        let mut chance = site.chance.borrow_mut();
        // Machines' clocks are not set alike.
        let clock = Clock::simulated(1_700_000_000_000_000 + chance.below(60_000_000));
        let machine = Self {
            name,
            clock,
            disk: Arc::new(SimulatedDisk::new(chance.fork())),
            process: RefCell::new(None),
            stop: RefCell::new(Stop::new()),
            busy: Cell::new(false),
        };
        std::fs::create_dir_all(machine.dir(site))?;
        Ok(machine)
    }

    /// Its disk.
    pub(crate) fn dir(&self, site: &Site) -> PathBuf {
        site.dir.join(self.name)
    }

    /// What names its write buffer now.
    pub(crate) fn buffer(&self, site: &Site) -> Option<String> {
        let id = std::fs::read_to_string(self.dir(site).join("buffer/buffer.id")).ok()?;
        Some(id.trim().to_owned())
    }

    pub(crate) fn is_up(&self) -> bool {
        self.process.borrow().is_some()
    }

    /// `kill -9`.
    pub(crate) fn kill(&self, site: &Site) -> anyhow::Result<()> {
        site.break_off(self.name)?;
        let process = self.process.borrow_mut().take();
        drop(process);
        Ok(())
    }

    /// The machine loses power.
    pub(crate) fn lose_power(&self, site: &Site) -> anyhow::Result<()> {
        self.kill(site)?;
        Ok(self.disk.lose_power(&self.dir(site).join("buffer"))?)
    }

    /// The machine is lost; another one takes its place, with an empty disk.
    pub(crate) fn lose_disk(&self, site: &Site) -> anyhow::Result<()> {
        self.kill(site)?;
        Ok(self.disk.replace(&self.dir(site))?)
    }

    /// Waits until its process has ended by itself; `false`: it does not.
    pub(crate) async fn has_ended(&self) -> bool {
        for _ in 0..ENDS_WITHIN_10_MS {
            // Not held over the wait: it may be killed meanwhile.
            let is_over = self.process.borrow().as_ref().is_none_or(Process::is_over);
            if is_over {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        false
    }

    pub(crate) fn hold(&self) {
        self.process.borrow().iter().for_each(Process::hold);
    }

    pub(crate) fn go_on(&self) {
        self.process.borrow().iter().for_each(Process::go_on);
    }

    /// An orderly stop is asked for.
    pub(crate) fn request_stop(&self) {
        self.stop.borrow().request();
    }

    /// Starts a process. What it ends with by itself is written down, and it is started again, as a supervisor does.
    pub(crate) fn start(self: &Rc<Self>, site: &Rc<Site>, service: Service) {
        let stop = Stop::new();
        self.stop.replace(stop.clone());
        let (machine, site) = (Rc::clone(self), Rc::clone(site));
        let main = async move {
            loop {
                let ended = Box::pin(service.run(&machine, &site, stop.clone())).await;
                site.history
                    .borrow_mut()
                    .note(format_args!("{} ended: {ended:?}", machine.name));
                if stop.is_requested() {
                    return;
                }
                tokio::time::sleep(STARTED_AGAIN_AFTER).await;
            }
        };
        self.process.replace(Some(Process::begin(main)));
    }
}

/// What runs on a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Service {
    RegistryHost,
    StorageRouter,
    VolumeRouter,
    /// An fs-router with its guests.
    Guests,
}

impl Service {
    async fn run(self, machine: &Machine, site: &Rc<Site>, stop: Stop) -> anyhow::Result<()> {
        match self {
            Service::RegistryHost => host_registry(site, stop).await,
            Service::StorageRouter => storage_router(machine, site, stop).await,
            Service::VolumeRouter => volume_router(machine, site, stop).await,
            Service::Guests => crate::guests::run(machine, site, &stop).await,
        }
    }
}

async fn host_registry(site: &Site, stop: Stop) -> anyhow::Result<()> {
    let identity = Identity {
        node: node(REGISTRY)?,
        role: Role::StorageRouter,
        protocol: Protocol::Registry,
        limits: Limits::of(Protocol::Registry),
    };
    let server = sconce_bus::bind(&site.network, &endpoint(REGISTRY)?, identity).await?;
    sconce_registry::host(site.registry.clone(), server, stop).await;
    Ok(())
}

async fn storage_router(machine: &Machine, site: &Site, stop: Stop) -> anyhow::Result<()> {
    let name = machine.name;
    let backends =
        BACKENDS.map(|name| format!("[[backends]]\nname = \"{name}\"\ndir = \"/nowhere/{name}\"\n"));
    let settings: sconce_storage_router::Settings = toml::from_str(&format!(
        "{}{}[limits]\nbackend_deadline = \"2s\"\n[[pools]]\nname = \"default\"\nprotect = \"replica:2\"\nbackends = {BACKENDS:?}\n",
        common(name),
        backends.concat()
    ))?;
    let backends = site
        .backends
        .iter()
        .map(|backend| Arc::clone(backend) as Arc<dyn Backend>)
        .collect();
    let components = sconce_storage_router::Components {
        network: site.network.clone(),
        stop,
    };
    let registry = site.registry_from(name, Role::StorageRouter)?;
    sconce_storage_router::run_on(backends, settings, components, registry).await
}

async fn volume_router(machine: &Machine, site: &Site, stop: Stop) -> anyhow::Result<()> {
    let name = machine.name;
    let settings: sconce_volume_router::Settings = toml::from_str(&format!(
        "{}[buffer]\ndir = {:?}\nsize = \"32 MiB\"\n[dtl]\ntimeout = \"500ms\"\n[volumes]\nlease = \"2s\"\n\
         checkpoint_entries = 1000\ncheckpoint_idle = \"1s\"\ncheckpoint_age = \"5s\"\nstop_within = \"5s\"\n",
        common(name),
        machine.dir(site).join("buffer"),
    ))?;
    let components = sconce_volume_router::Components {
        network: site.network.clone(),
        registry: site.registry_from(name, Role::VolumeRouter)?,
        clock: machine.clock.clone(),
        disk: Arc::clone(&machine.disk) as Arc<dyn sconce_volume_router::device::Disk>,
        stop,
    };
    Ok(sconce_volume_router::run(settings, components).await?)
}

fn common(name: &str) -> String {
    format!(
        "[node]\nname = \"{name}\"\nrun_dir = \"/nowhere\"\nendpoints = [\"inproc://{name}\"]\n\
         [registry]\nhome = \"remote\"\nendpoint = \"inproc://{REGISTRY}\"\n"
    )
}
