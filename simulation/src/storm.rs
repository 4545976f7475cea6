//! The storm: everything that goes wrong, drawn from the seed.
//!
//! Keeps: what is wrong now, so that it can be put right.
//! Order: one fault begins after another, and each lasts its own time.
//! Crash: that is what it is for.
//! Knows what the services promise ([`crate::promise`]) and does no more than that to them.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use sconce_bus::{Caller, Faults, Hello, Protocol, Role, Version};
use sconce_runtime::Chance;
use sconce_schemas::NodeName;
use sconce_schemas::wire::volume::{VolumeControl, VolumeReply, VolumeRequest};
use tokio::time::{Instant, sleep};

use crate::machine::{Machine, REGISTRY, Service, Site, endpoint, node};
use crate::promise::{Buffers, Promises};

macro_rules! faults {
    ($($(#[$doc:meta])* $fault:ident = $name:literal,)+) => {
        /// A kind of fault.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Fault {
            $($(#[$doc])* $fault,)+
        }

        impl Fault {
            /// All kinds.
            pub const ALL: &[Fault] = &[$(Fault::$fault,)+];

            /// Its name.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Fault::$fault => $name,)+
                }
            }
        }
    };
}

faults! {
    /// A volume-router is killed, and started again.
    Kill = "kill",
    /// The machine of a volume-router loses power.
    PowerLoss = "power-loss",
    /// The machine of a volume-router is lost; another takes its place, with an empty disk.
    DiskLoss = "disk-loss",
    /// A volume-router gets no time for a while.
    Hold = "hold",
    /// A volume-router is stopped in order.
    Stop = "stop",
    /// Messages from a volume-router to another machine do not arrive, or those from there.
    CutOneWay = "cut",
    /// The same both ways.
    Part = "part",
    /// The connections between a volume-router and another machine break.
    BreakConnections = "break",
    /// The network is slow, loses connections, duplicates and reorders.
    Weather = "weather",
    /// The registry's host is killed, and started again.
    RegistryGone = "registry-gone",
    /// A volume-router and the registry do not reach each other, one way or both.
    RegistryCut = "registry-cut",
    /// A back end is slow, full or absent, loses answers and flips bits.
    BackEnds = "back-ends",
    /// A storage-router is killed, and started again.
    StorageGone = "storage-gone",
    /// The wall clock of a volume-router is set.
    ClockJump = "clock-jump",
    /// An fs-router is killed with its guests, and started again with others.
    GuestsGone = "guests-gone",
    /// The owner of a volume does not reach its twin any more, and is killed before it can say so.
    OwnerLost = "owner-lost",
    /// The owner of a volume and one fs-router do not reach anybody else: another owner comes for the others.
    OwnerFenced = "owner-fenced",
    /// An operator moves a volume to another volume-router.
    Move = "move",
}

/// All machines of the cluster.
pub(crate) struct Cluster {
    pub(crate) site: Rc<Site>,
    pub(crate) volume_routers: Vec<Rc<Machine>>,
    pub(crate) fs_routers: Vec<Rc<Machine>>,
    pub(crate) storage_routers: Vec<Rc<Machine>>,
    pub(crate) registry_host: Rc<Machine>,
    pub(crate) promises: Rc<Promises>,
}

impl Cluster {
    pub(crate) fn buffers(&self) -> Buffers {
        let buffer = |machine: &Rc<Machine>| Some((machine.name.to_owned(), machine.buffer(&self.site)?));
        self.volume_routers.iter().filter_map(buffer).collect()
    }

    fn tell(&self, kind: Fault, what: std::fmt::Arguments<'_>) {
        self.site.history.borrow_mut().fault(kind.name(), what);
    }
}

/// The storm itself: how long it lasts, and of what it is made.
pub(crate) struct Storm {
    cluster: Rc<Cluster>,
    chance: Chance,
    kinds: Vec<Fault>,
    /// Ends what is wrong with the network: later weather is not cleared by the end of what was before it.
    weather: Rc<Cell<u64>>,
}

impl Storm {
    /// A storm of these kinds. Where none are given it has about half of all, so that each comes with and without any other.
    pub(crate) fn new(cluster: &Rc<Cluster>, mut chance: Chance, kinds: &[Fault]) -> Self {
        let all = || Fault::ALL.iter().copied();
        let kinds: Vec<Fault> = match kinds {
            [] => all().filter(|_| chance.one_of(1, 2)).collect(),
            kinds => kinds.to_vec(),
        };
        let kinds = if kinds.is_empty() { all().collect() } else { kinds };
        Self {
            cluster: Rc::clone(cluster),
            chance,
            kinds,
            weather: Rc::default(),
        }
    }

    /// Lets it blow.
    pub(crate) async fn blow(mut self) -> anyhow::Result<()> {
        let until = Instant::now() + self.millis(6_000, 20_000);
        let calm = self.millis(50, 1_500);
        while Instant::now() < until {
            sleep(self.millis(0, 2 * u64::try_from(calm.as_millis())?)).await;
            let drawn = self.chance.below(self.kinds.len() as u64);
            self.begin(self.kinds[usize::try_from(drawn)?])?;
        }
        Ok(())
    }

    fn millis(&mut self, least: u64, most: u64) -> Duration {
        Duration::from_millis(least + self.chance.below(most.saturating_sub(least) + 1))
    }

    fn one_of<T: Clone>(&mut self, of: &[T]) -> anyhow::Result<T> {
        let drawn = usize::try_from(self.chance.below(of.len() as u64))?;
        of.get(drawn)
            .cloned()
            .ok_or_else(|| anyhow::anyhow!("nothing to choose from"))
    }

    fn begin(&mut self, kind: Fault) -> anyhow::Result<()> {
        match kind {
            Fault::Kill | Fault::PowerLoss | Fault::DiskLoss | Fault::Stop | Fault::Hold => {
                self.volume_router(kind)
            }
            Fault::RegistryGone | Fault::StorageGone | Fault::GuestsGone => self.service(kind),
            Fault::CutOneWay | Fault::Part | Fault::BreakConnections | Fault::RegistryCut => self.ways(kind),
            Fault::Weather => self.weather(),
            Fault::BackEnds => self.back_ends(),
            Fault::ClockJump => self.clock_jump(),
            Fault::Move => self.planned_move(),
            Fault::OwnerLost => self.owner_lost(),
            Fault::OwnerFenced => self.owner_fenced(),
        }
    }

    fn volume_router(&mut self, kind: Fault) -> anyhow::Result<()> {
        let cluster = Rc::clone(&self.cluster);
        let machine = self.one_of(&cluster.volume_routers)?;
        if machine.busy.get() || !machine.is_up() {
            return Ok(());
        }
        let is_loss = matches!(kind, Fault::PowerLoss | Fault::DiskLoss);
        if is_loss && !cluster.promises.survive_without(machine.name, &cluster.buffers()) {
            return Ok(());
        }
        let site = &cluster.site;
        let lasts = match kind {
            Fault::Hold => self.millis(100, 6_000),
            _ => self.millis(0, 5_000),
        };
        cluster.tell(kind, format_args!("{} for {lasts:?}", machine.name));
        machine.busy.set(true);
        match kind {
            Fault::PowerLoss => machine.lose_power(site)?,
            Fault::DiskLoss => machine.lose_disk(site)?,
            Fault::Hold => machine.hold(),
            Fault::Stop => machine.request_stop(),
            _ => machine.kill(site)?,
        }
        if is_loss {
            cluster.promises.lost(machine.name);
        }
        let site = Rc::clone(site);
        tokio::task::spawn_local(async move {
            sleep(lasts).await;
            match kind {
                Fault::Hold => machine.go_on(),
                _ => again(&site, &machine, Service::VolumeRouter),
            }
            machine.busy.set(false);
        });
        Ok(())
    }

    fn service(&mut self, kind: Fault) -> anyhow::Result<()> {
        let cluster = Rc::clone(&self.cluster);
        let (machine, service) = match kind {
            Fault::RegistryGone => (Rc::clone(&cluster.registry_host), Service::RegistryHost),
            Fault::StorageGone => (self.one_of(&cluster.storage_routers)?, Service::StorageRouter),
            _ => (self.one_of(&cluster.fs_routers)?, Service::Guests),
        };
        if machine.busy.get() {
            return Ok(());
        }
        let lasts = self.millis(0, 5_000);
        cluster.tell(kind, format_args!("{} for {lasts:?}", machine.name));
        machine.busy.set(true);
        machine.kill(&cluster.site)?;
        tokio::task::spawn_local(async move {
            sleep(lasts).await;
            again(&cluster.site, &machine, service);
            machine.busy.set(false);
        });
        Ok(())
    }

    fn ways(&mut self, kind: Fault) -> anyhow::Result<()> {
        let cluster = Rc::clone(&self.cluster);
        let one = self.one_of(&cluster.volume_routers)?.name;
        let others: Vec<&str> = match kind {
            Fault::RegistryCut => vec![REGISTRY],
            _ => {
                let all = [
                    &cluster.volume_routers,
                    &cluster.fs_routers,
                    &cluster.storage_routers,
                ];
                let all = all.into_iter().flatten().map(|machine| machine.name);
                all.chain([REGISTRY]).filter(|name| *name != one).collect()
            }
        };
        let other = self.one_of(&others)?;
        let (one, other) = (node(one)?, node(other)?);
        let (one, other) = match self.chance.one_of(1, 2) {
            true => (one, other),
            false => (other, one),
        };
        let wires = cluster.site.wires.clone();
        let lasts = self.millis(50, 6_000);
        cluster.tell(kind, format_args!("{one} to {other} for {lasts:?}"));
        let both = kind == Fault::Part || (kind == Fault::RegistryCut && self.chance.one_of(1, 2));
        match kind {
            Fault::BreakConnections => {
                wires.break_connections(&one, &other);
                return Ok(());
            }
            _ if both => wires.part(&one, &other),
            _ => wires.cut(&one, &other),
        }
        tokio::task::spawn_local(async move {
            sleep(lasts).await;
            wires.heal(&one, &other);
            if both {
                wires.heal(&other, &one);
            }
        });
        Ok(())
    }

    fn weather(&mut self) -> anyhow::Result<()> {
        let cluster = Rc::clone(&self.cluster);
        let lasts = self.millis(200, 6_000);
        let mut part = |of: u64| self.chance.below(of) as f64 / 1_000.0;
        let faults = Faults {
            delay: Duration::ZERO..=Duration::from_secs_f64(part(120)),
            loss: part(30),
            late: part(1_000),
            duplicate: part(100),
            reorder: part(300),
        };
        cluster.tell(Fault::Weather, format_args!("{faults:?} for {lasts:?}"));
        cluster.site.wires.set_faults(faults);
        self.weather.set(self.weather.get() + 1);
        let (weather, now) = (Rc::clone(&self.weather), self.weather.get());
        tokio::task::spawn_local(async move {
            sleep(lasts).await;
            if weather.get() == now {
                cluster.site.wires.set_faults(fair());
            }
        });
        Ok(())
    }

    fn back_ends(&mut self) -> anyhow::Result<()> {
        use sconce_storage_router::testing::Faults;
        let cluster = Rc::clone(&self.cluster);
        let backend = self.one_of(&cluster.site.backends)?;
        let lasts = self.millis(200, 6_000);
        let chance = &mut self.chance;
        let mut in_1000 = |most: u64| u16::try_from(chance.below(most)).unwrap_or(0);
        let faults = Faults {
            slow: in_1000(1000),
            delay_max: Duration::from_millis(u64::from(in_1000(1500))),
            full: in_1000(200),
            absent: match in_1000(3) {
                0 => 1000,
                _ => in_1000(500),
            },
            flip: in_1000(100),
            lost_answer: in_1000(300),
            torn: 0,
        };
        cluster.tell(Fault::BackEnds, format_args!("{faults:?} for {lasts:?}"));
        backend.set(faults);
        tokio::task::spawn_local(async move {
            sleep(lasts).await;
            backend.set(Faults::default());
        });
        Ok(())
    }

    fn clock_jump(&mut self) -> anyhow::Result<()> {
        let machine = self.one_of(&self.cluster.volume_routers.clone())?;
        let by = i64::try_from(self.chance.below(7_200_000_000))? - 3_600_000_000;
        self.cluster
            .tell(Fault::ClockJump, format_args!("{} by {by} us", machine.name));
        machine.clock.set_by(by);
        Ok(())
    }

    /// A volume's owner that runs, with its twin's host where the record relies on one.
    fn owner(&mut self) -> anyhow::Result<Option<(Rc<Machine>, NodeName)>> {
        let cluster = Rc::clone(&self.cluster);
        let volume = self.one_of(&cluster.site.load.volumes)?;
        let Some((owner, Some(twin))) = cluster.promises.owner_and_twin(volume) else {
            return Ok(None);
        };
        let owner = cluster
            .volume_routers
            .iter()
            .find(|machine| machine.name == owner.to_string());
        let owner = owner.filter(|machine| machine.is_up() && !machine.busy.get());
        Ok(owner.map(|owner| (Rc::clone(owner), twin)))
    }

    fn owner_lost(&mut self) -> anyhow::Result<()> {
        let Some((machine, twin)) = self.owner()? else {
            return Ok(());
        };
        let cluster = Rc::clone(&self.cluster);
        let (alone, lasts) = (self.millis(20, 450), self.millis(3_500, 7_000));
        let fault = Fault::OwnerLost;
        cluster.tell(
            fault,
            format_args!(
                "{} has no way to {twin} for {alone:?}, and is gone for {lasts:?}",
                machine.name
            ),
        );
        machine.busy.set(true);
        let owner = node(machine.name)?;
        cluster.site.wires.cut(&owner, &twin);
        tokio::task::spawn_local(async move {
            sleep(alone).await;
            if let Err(error) = machine.kill(&cluster.site) {
                cluster.site.history.borrow_mut().fail(error.to_string());
            }
            cluster.site.wires.heal(&owner, &twin);
            sleep(lasts).await;
            again(&cluster.site, &machine, Service::VolumeRouter);
            machine.busy.set(false);
        });
        Ok(())
    }

    fn owner_fenced(&mut self) -> anyhow::Result<()> {
        let Some((machine, _)) = self.owner()? else {
            return Ok(());
        };
        let cluster = Rc::clone(&self.cluster);
        let stays = self.one_of(&cluster.fs_routers)?.name;
        let lasts = self.millis(3_500, 8_000);
        let fault = Fault::OwnerFenced;
        cluster.tell(fault, format_args!("{} with {stays} for {lasts:?}", machine.name));
        let all = [
            &cluster.volume_routers,
            &cluster.fs_routers,
            &cluster.storage_routers,
        ];
        let all = all
            .into_iter()
            .flatten()
            .map(|machine| machine.name)
            .chain([REGISTRY]);
        let others = all
            .filter(|name| *name != machine.name && *name != stays)
            .map(node);
        let others = others.collect::<anyhow::Result<Vec<NodeName>>>()?;
        let (owner, wires) = (node(machine.name)?, cluster.site.wires.clone());
        for other in &others {
            wires.part(&owner, other);
            wires.break_connections(&owner, other);
        }
        tokio::task::spawn_local(async move {
            sleep(lasts).await;
            for other in &others {
                wires.heal(&owner, other);
                wires.heal(other, &owner);
            }
        });
        Ok(())
    }

    fn planned_move(&mut self) -> anyhow::Result<()> {
        let cluster = Rc::clone(&self.cluster);
        let volume = self.one_of(&cluster.site.load.volumes)?;
        let to = self.one_of(&cluster.volume_routers)?.name;
        let owner = cluster
            .promises
            .owner_and_twin(volume)
            .map(|(owner, _)| owner.to_string());
        let Some(owner) = owner.filter(|owner| owner != to) else {
            return Ok(());
        };
        cluster.tell(Fault::Move, format_args!("volume {volume} from {owner} to {to}"));
        let request = VolumeRequest::Control(VolumeControl::Move {
            volume,
            to: node(to)?,
        });
        let hello = Hello {
            version: Version::CURRENT,
            protocol: Protocol::Volume,
            role: Role::Client,
            node: node("operator")?,
        };
        let caller: Caller<VolumeRequest, VolumeReply> =
            Caller::new(&cluster.site.network, &endpoint(&owner)?, hello);
        tokio::task::spawn_local(async move {
            let answer = caller
                .call(&request, Bytes::new(), 0, Duration::from_secs(20))
                .await;
            let told = format!("{:?}", answer.map(|(reply, _)| reply));
            cluster
                .site
                .history
                .borrow_mut()
                .note(format_args!("the move of {volume} to {to}: {told}"));
        });
        Ok(())
    }
}

/// The network without faults.
pub(crate) fn fair() -> Faults {
    Faults {
        delay: Duration::ZERO..=Duration::from_millis(2),
        ..Faults::default()
    }
}

fn again(site: &Rc<Site>, machine: &Rc<Machine>, service: Service) {
    // One that is stopping is killed, as a supervisor does that has waited long enough.
    if machine.is_up() && machine.kill(site).is_err() {
        return;
    }
    site.history
        .borrow_mut()
        .note(format_args!("{} starts", machine.name));
    machine.start(site, service);
}
