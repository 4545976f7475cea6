//! The scenario's file: what a person typed, checked as a whole before anything is started.
//!
//! Keeps: the scenario.
//! Order: none.
//! Crash: nothing; a scenario is only read.
//! Knows no process.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sconce_runtime::settings::{self, ByteSize, Interval};
use serde::Deserialize;

use crate::generator::Arrivals;
use crate::sconce::SERVICES;

/// Requests of an open loop that are under way at most, unless the scenario says otherwise.
const IN_FLIGHT_MAX: u32 = 256;
const BLOCK: u64 = 4096;
/// The largest request: what all ways take whole.
const BLOCK_MAX: u64 = 1 << 20;
/// A second volume-router's name is this with `-2`.
pub(super) const VOLUME_ROUTER: &str = "volume-router";

/// A scenario.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Scenario {
    /// Its name: of the report and its directory.
    pub(super) name: String,
    /// How long there is load.
    pub(super) duration: Interval,
    /// Of the figures over time.
    #[serde(default = "second")]
    pub(super) interval: Interval,
    /// Whether LTTng records it.
    #[serde(default)]
    pub(super) trace: Trace,
    /// Section `[cluster]`.
    #[serde(default)]
    pub(super) cluster: ClusterSection,
    /// `[[volumes]]`.
    pub(super) volumes: Vec<Volume>,
    /// `[[loads]]`.
    pub(super) loads: Vec<Load>,
    /// `[[chaos]]`.
    #[serde(default)]
    pub(super) chaos: Vec<Chaos>,
}

fn second() -> Interval {
    Interval::new(Duration::from_secs(1))
}

/// Whether LTTng records.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Trace {
    /// Where it is installed.
    #[default]
    IfPossible,
    /// Or the run fails.
    Required,
    /// Not.
    Off,
}

/// Which cluster.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ClusterSection {
    /// The run directory of one that runs; none: one is brought up, and stopped at the end.
    pub(super) attach: Option<PathBuf>,
    /// Volume-routers of one that is brought up; 1 unless it is said.
    pub(super) volume_routers: Option<u32>,
    /// The write buffer of each.
    pub(super) buffer: Option<ByteSize>,
}

/// A volume; one that is not there is created.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Volume {
    pub(super) path: String,
    pub(super) size: ByteSize,
    /// What its twin is waited for.
    #[serde(default)]
    pub(super) dtl: Dtl,
    /// It is written once before the load.
    #[serde(default)]
    pub(super) fill: bool,
}

/// As `sconce volume create --dtl` takes it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Dtl {
    #[default]
    None,
    Async,
    Sync,
}

impl Dtl {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Dtl::None => "none",
            Dtl::Async => "async",
            Dtl::Sync => "sync",
        }
    }
}

/// A load on a volume.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "TypedLoad")]
pub(super) struct Load {
    pub(super) name: String,
    /// The volume's path.
    pub(super) volume: String,
    /// Bytes of a request.
    pub(super) block: u64,
    pub(super) flush_each: Option<u32>,
    pub(super) client: Client,
}

/// Who makes the load.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Client {
    /// The generator, over NBD or over the bus.
    Open {
        bus: bool,
        per_second: f64,
        reads: u8,
        arrivals: Arrivals,
        in_flight_max: u32,
    },
    /// fio's nbd engine, a closed loop.
    Fio { rw: String, depth: u32 },
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TypedLoad {
    name: String,
    volume: String,
    client: ClientName,
    block: Option<ByteSize>,
    flush_each: Option<u32>,
    per_second: Option<f64>,
    reads: Option<u8>,
    arrivals: Option<Arrivals>,
    in_flight_max: Option<u32>,
    rw: Option<String>,
    depth: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum ClientName {
    Nbd,
    Bus,
    Fio,
}

impl TryFrom<TypedLoad> for Load {
    type Error = String;

    fn try_from(typed: TypedLoad) -> Result<Self, String> {
        let name = &typed.name;
        let block = typed.block.map_or(BLOCK, ByteSize::bytes);
        if !block.is_multiple_of(BLOCK) || !(BLOCK..=BLOCK_MAX).contains(&block) {
            return Err(format!(
                "load {name}: block = {block} bytes; right would be a multiple of {BLOCK} up to {BLOCK_MAX}"
            ));
        }
        if typed.flush_each == Some(0) {
            return Err(format!(
                "load {name}: flush_each = 0; right would be 1 at least, or no flush_each"
            ));
        }
        let client = match typed.client {
            ClientName::Fio => typed.fio()?,
            ClientName::Nbd | ClientName::Bus => typed.open_loop()?,
        };
        Ok(Load {
            name: typed.name,
            volume: typed.volume,
            block,
            flush_each: typed.flush_each,
            client,
        })
    }
}

impl TypedLoad {
    fn fio(&self) -> Result<Client, String> {
        let name = &self.name;
        let others = self.per_second.is_some()
            || self.reads.is_some()
            || self.arrivals.is_some()
            || self.in_flight_max.is_some();
        if others {
            return Err(format!(
                "load {name}: per_second, reads, arrivals and in_flight_max are the generator's (client = \"nbd\" or \"bus\"); fio has rw and depth"
            ));
        }
        let rw = self.rw.clone().unwrap_or_default();
        if !["read", "write", "randread", "randwrite"].contains(&rw.as_str()) {
            return Err(format!(
                "load {name}: rw = {rw:?}; right would be read, write, randread or randwrite"
            ));
        }
        match self.depth {
            Some(depth @ 1..=4096) => Ok(Client::Fio { rw, depth }),
            other => Err(format!(
                "load {name}: depth = {}; right would be 1 to 4096",
                other.map_or("nothing".to_owned(), |depth| depth.to_string())
            )),
        }
    }

    fn open_loop(&self) -> Result<Client, String> {
        let name = &self.name;
        if self.rw.is_some() || self.depth.is_some() {
            return Err(format!(
                "load {name}: rw and depth are fio's; the generator has per_second, reads, arrivals and in_flight_max"
            ));
        }
        let per_second = self.per_second.unwrap_or(0.0);
        if !(0.1..=1e6).contains(&per_second) {
            return Err(format!(
                "load {name}: per_second = {per_second}; right would be 0.1 to 1000000"
            ));
        }
        let reads = self.reads.unwrap_or(0);
        if reads > 100 {
            return Err(format!(
                "load {name}: reads = {reads}; right would be 0 to 100, in percent"
            ));
        }
        let in_flight_max = self.in_flight_max.unwrap_or(IN_FLIGHT_MAX);
        if !(1..=65_536).contains(&in_flight_max) {
            return Err(format!(
                "load {name}: in_flight_max = {in_flight_max}; right would be 1 to 65536"
            ));
        }
        Ok(Client::Open {
            bus: self.client == ClientName::Bus,
            per_second,
            reads,
            arrivals: self.arrivals.unwrap_or(Arrivals::Random),
            in_flight_max,
        })
    }
}

impl Load {
    fn writes(&self) -> bool {
        match &self.client {
            Client::Open { reads, .. } => *reads < 100,
            Client::Fio { rw, .. } => rw.ends_with("write"),
        }
    }

    fn verifies(&self) -> bool {
        matches!(self.client, Client::Open { .. })
    }
}

/// Something that is done to a service.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Chaos {
    /// Since the begin of the load.
    pub(super) at: Interval,
    pub(super) action: Action,
    /// `fs-router`, `storage-router`, `volume-router`, or a further one: `volume-router-2`.
    pub(super) service: String,
    /// How long, of `pause` and `slow`.
    #[serde(rename = "for")]
    pub(super) lasts: Option<Interval>,
    /// Of the time in which a slow service is stopped, in percent.
    pub(super) share: Option<u8>,
}

/// What is done to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Action {
    /// Started anew by its supervisor, in order.
    Swap,
    /// `kill -9`; its supervisor starts it again.
    Kill,
    /// Stopped in order, and started.
    Restart,
    /// SIGSTOP, and after a while SIGCONT.
    Pause,
    /// SIGSTOP and SIGCONT by turns, many times a second: as on a machine that is overloaded.
    Slow,
}

impl Action {
    fn lasts(self) -> bool {
        matches!(self, Action::Pause | Action::Slow)
    }
}

impl Chaos {
    /// What it is called in reports.
    pub(super) fn name(&self) -> String {
        let action = match self.action {
            Action::Swap => "swap",
            Action::Kill => "kill -9",
            Action::Restart => "restart",
            Action::Pause => "pause",
            Action::Slow => "slow",
        };
        format!("{action} {}", self.service)
    }
}

impl Scenario {
    /// Reads a scenario.
    ///
    /// # Errors
    /// It cannot be read, or does not make sense: the text names the key, the value and what would be right.
    pub(super) fn load(path: &Path) -> Result<Scenario> {
        let scenario: Scenario = settings::load(path)?;
        scenario
            .check()
            .with_context(|| format!("scenario {}", path.display()))?;
        Ok(scenario)
    }

    /// The services that there are.
    pub(super) fn services(&self) -> Vec<String> {
        let others = 2..=self.volume_routers();
        let others = others.map(|number| format!("{VOLUME_ROUTER}-{number}"));
        SERVICES
            .iter()
            .map(|&name| name.to_owned())
            .chain(others)
            .collect()
    }

    pub(super) fn volume_routers(&self) -> u32 {
        self.cluster.volume_routers.unwrap_or(1)
    }

    pub(super) fn volume(&self, path: &str) -> Option<&Volume> {
        self.volumes.iter().find(|volume| volume.path == path)
    }

    /// The load whose generator knows what the volume holds, and fills it.
    pub(super) fn generator_of(&self, volume: &str) -> Option<&Load> {
        self.loads
            .iter()
            .find(|load| load.volume == volume && load.verifies())
    }

    fn check(&self) -> Result<()> {
        let is_name = |name: &str| {
            let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
            !name.is_empty() && name.bytes().all(fits)
        };
        ensure!(
            is_name(&self.name),
            "name = {:?}; right would be some of a-z 0-9 -, since it names a directory",
            self.name
        );
        let duration = self.duration.duration();
        ensure!(
            duration >= Duration::from_secs(1),
            "duration = {duration:?}; right would be 1s at least"
        );
        let interval = self.interval.duration();
        ensure!(
            (Duration::from_millis(100)..=duration).contains(&interval),
            "interval = {interval:?}; right would be 100ms at least, and no longer than the duration"
        );
        let routers = self.volume_routers();
        ensure!(
            (1..=8).contains(&routers),
            "cluster.volume_routers = {routers}; right would be 1 to 8"
        );
        let own = self.cluster.volume_routers.is_some() || self.cluster.buffer.is_some();
        ensure!(
            self.cluster.attach.is_none() || !own,
            "cluster.attach names a cluster that runs; volume_routers and buffer are of one that is brought up"
        );
        ensure!(
            !self.volumes.is_empty(),
            "volumes: there is none; right would be one at least"
        );
        ensure!(
            !self.loads.is_empty(),
            "loads: there is none; right would be one at least"
        );
        let mut paths = HashSet::new();
        for volume in &self.volumes {
            ensure!(
                paths.insert(&volume.path),
                "volumes: {} is there twice",
                volume.path
            );
            let size = volume.size.bytes();
            ensure!(
                size >= 1 << 20 && size.is_multiple_of(1 << 20),
                "volume {}: size = {size} bytes; right would be whole MiB",
                volume.path
            );
            ensure!(
                volume.dtl == Dtl::None || routers > 1 || self.cluster.attach.is_some(),
                "volume {}: dtl = {:?} needs another volume-router; right would be cluster.volume_routers = 2 at least",
                volume.path,
                volume.dtl.name()
            );
        }
        self.check_loads()?;
        self.chaos.iter().try_for_each(|chaos| self.check_chaos(chaos))
    }

    fn check_loads(&self) -> Result<()> {
        let mut names = HashSet::new();
        for load in &self.loads {
            ensure!(names.insert(&load.name), "loads: {} is there twice", load.name);
            ensure!(
                self.volume(&load.volume).is_some(),
                "load {}: volume = {:?} is none of the volumes",
                load.name,
                load.volume
            );
            let others = self
                .loads
                .iter()
                .filter(|other| other.volume == load.volume && other.name != load.name);
            for other in others {
                ensure!(
                    !(load.verifies() && other.writes() || load.writes() && other.verifies()),
                    "loads {} and {} are both on {}: one writes what the other verifies; right would be a volume for each",
                    load.name,
                    other.name,
                    load.volume
                );
            }
        }
        Ok(())
    }

    fn check_chaos(&self, chaos: &Chaos) -> Result<()> {
        let (name, services) = (chaos.name(), self.services());
        ensure!(
            services.contains(&chaos.service),
            "chaos {name}: service = {:?}; right would be one of: {}",
            chaos.service,
            services.join(", ")
        );
        let at = chaos.at.duration();
        ensure!(
            at < self.duration.duration(),
            "chaos {name}: at = {at:?} is not within the load's {:?}",
            self.duration.duration()
        );
        ensure!(
            chaos.lasts.is_some() == chaos.action.lasts(),
            "chaos {name}: pause and slow say how long (for = \"2s\"), the others do not"
        );
        let is_slow = chaos.action == Action::Slow;
        ensure!(
            chaos.share.is_some() == is_slow && chaos.share.is_none_or(|share| (1..=99).contains(&share)),
            "chaos {name}: slow says share = 1 to 99, in percent, and only slow does"
        );
        let supervised = SERVICES.contains(&chaos.service.as_str());
        ensure!(
            supervised || matches!(chaos.action, Action::Restart | Action::Pause | Action::Slow),
            "chaos {name}: {} has no supervisor; right would be restart, pause or slow",
            chaos.service
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
name = "two"
duration = "10s"
[cluster]
volume_routers = 2
buffer = "512 MiB"
[[volumes]]
path = "/a"
size = "64 MiB"
dtl = "sync"
fill = true
[[volumes]]
path = "/b"
size = "64 MiB"
[[loads]]
name = "open"
volume = "/a"
client = "nbd"
per_second = 500
reads = 30
[[loads]]
name = "closed"
volume = "/b"
client = "fio"
rw = "randwrite"
depth = 8
[[chaos]]
at = "3s"
action = "slow"
service = "volume-router-2"
for = "2s"
share = 80
"#;

    fn loaded(text: &str) -> Result<Scenario> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.toml");
        std::fs::write(&path, text).unwrap();
        Scenario::load(&path)
    }

    #[test]
    fn a_good_one_is_taken() {
        let scenario = loaded(GOOD).unwrap();
        assert_eq!(scenario.services().len(), 4);
        assert_eq!(scenario.interval.duration(), Duration::from_secs(1));
        let Client::Open {
            per_second,
            reads,
            bus,
            ..
        } = scenario.loads[0].client
        else {
            panic!("{:?}", scenario.loads[0]);
        };
        assert!(per_second > 499.0 && reads == 30 && !bus);
        assert_eq!(scenario.generator_of("/a").unwrap().name, "open");
        assert!(scenario.generator_of("/b").is_none());
        assert_eq!(scenario.chaos[0].name(), "slow volume-router-2");
    }

    #[test]
    fn those_that_are_here_are_right() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
        let files: Vec<PathBuf> = std::fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        assert!(files.len() >= 3);
        for file in files {
            Scenario::load(&file).unwrap();
        }
    }

    #[test]
    fn a_bad_one_is_refused_with_key_value_and_what_would_be_right() {
        let cases = [
            (
                "per_second = 500",
                "per_second = 0",
                "load open: per_second = 0; right would be",
            ),
            (
                "reads = 30",
                "reads = 101",
                "reads = 101; right would be 0 to 100",
            ),
            ("reads = 30", "rw = \"read\"", "rw and depth are fio's"),
            ("depth = 8", "depth = 8\nreads = 3", "fio has rw and depth"),
            ("depth = 8", "", "depth = nothing; right would be 1 to 4096"),
            ("randwrite", "sideways", "rw = \"sideways\"; right would be"),
            (
                "volume_routers = 2",
                "volume_routers = 1",
                "right would be cluster.volume_routers = 2",
            ),
            (
                "volume_routers = 2",
                "attach = \"run\"",
                "cluster.attach names a cluster that runs",
            ),
            (
                "volume = \"/b\"",
                "volume = \"/c\"",
                "volume = \"/c\" is none of the volumes",
            ),
            (
                "volume = \"/b\"",
                "volume = \"/a\"",
                "one writes what the other verifies",
            ),
            ("at = \"3s\"", "at = \"13s\"", "is not within the load's 10s"),
            ("for = \"2s\"", "", "pause and slow say how long"),
            ("share = 80", "share = 100", "share = 1 to 99"),
            ("action = \"slow\"", "action = \"melt\"", "melt"),
            (
                "volume-router-2",
                "volume-router-3",
                "right would be one of: fs-router",
            ),
            (
                "size = \"64 MiB\"",
                "size = \"64 KiB\"",
                "right would be whole MiB",
            ),
            (
                "name = \"two\"",
                "name = \"../two\"",
                "since it names a directory",
            ),
            ("duration = \"10s\"", "duration = \"10\"", "duration = \"10\""),
            ("fill = true", "filled = true", "filled"),
            (
                "client = \"nbd\"",
                "client = \"nbd\"\nblock = \"5 KiB\"",
                "right would be a multiple of 4096",
            ),
        ];
        for (from, to, wanted) in cases {
            assert!(GOOD.contains(from), "{from}");
            let error = loaded(&GOOD.replacen(from, to, 1)).unwrap_err();
            let text = format!("{error:#}");
            assert!(
                text.contains(wanted) && text.contains("x.toml"),
                "{wanted:?} is not in {text}"
            );
        }
    }
}
