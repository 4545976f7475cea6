//! Settings: what a person typed, parsed once into what the service may rely on.
//!
//! Keeps: the settings file's sections and their defaults.
//! Order: a value is checked before anything is opened or started.
//! Crash: nothing.
//! Knows no component.

mod dtl;
mod erase;
mod placement;
mod scrub;

use std::fmt::Display;
use std::path::PathBuf;
use std::time::Duration;

use sconce_bus::{Endpoint, TlsSettings};
use sconce_registry::RegistrySettings;
use sconce_runtime::MetricsSettings;
use sconce_runtime::settings::{ByteSize, Interval, NodeSettings};
use sconce_schemas::ScoSize;
use sconce_tracing::{LogSettings, TelemetrySettings};
use sconce_volume::CheckpointPolicy;
use serde::Deserialize;

pub use dtl::DtlSettings;
pub use erase::EraseSettings;
pub use placement::PlacementSettings;
pub(crate) use scrub::{ScrubHelp, ScrubSettings, SweepSettings};

/// The volume-router's settings file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Who it is and where it listens: one endpoint, and so one thread, a shard.
    pub node: NodeSettings,
    /// Where the registry is.
    pub registry: RegistrySettings,
    /// This node's certificate, where services are on other hosts.
    pub tls: Option<TlsSettings>,
    /// How it logs.
    #[serde(default)]
    pub log: LogSettings,
    /// What it tells a collector.
    #[serde(default)]
    pub telemetry: TelemetrySettings,
    /// Where its metrics are read, if they are.
    pub metrics: Option<MetricsSettings>,
    /// The write buffer.
    pub buffer: BufferSettings,
    /// The volumes that it owns.
    #[serde(default)]
    pub volumes: VolumesSettings,
    /// What it stores on the back ends, and how much of it at a time.
    #[serde(default)]
    pub uploads: UploadSettings,
    /// Giving back the space of what nothing refers to.
    #[serde(default)]
    pub scrub: ScrubSettings,
    /// Deleted volumes.
    #[serde(default)]
    pub erase: EraseSettings,
    /// Looking for objects that were left behind.
    #[serde(default)]
    pub sweep: SweepSettings,
    /// Twins of write buffers on other volume-routers.
    #[serde(default)]
    pub dtl: DtlSettings,
    /// Volumes that are moved by themselves.
    #[serde(default)]
    pub placement: PlacementSettings,
    /// What it takes in.
    #[serde(default)]
    pub limits: LimitSettings,
}

/// `[buffer]`: the write buffer.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BufferSettings {
    /// Its directory, on an SSD.
    pub dir: PathBuf,
    /// What all its SCO files together may take.
    pub size: ByteSize,
    /// What the local copies of checkpoints may take beside them; an eighth of `size` where nothing is said.
    pub checkpoints: Option<ByteSize>,
}

/// `[volumes]`: the volumes that the node owns.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VolumesSettings {
    /// Memory that the resident map of one volume may take.
    pub map_memory: ByteSize,
    /// TLog entries after which a checkpoint is due: bounds the replay of a restart.
    pub checkpoint_entries: u64,
    /// A volume without changes for this long is stored.
    pub checkpoint_idle: Interval,
    /// The oldest change that is not stored gets at most about this old.
    pub checkpoint_age: Interval,
    /// How long the node's lease lives without being renewed.
    pub lease: Interval,
    /// How long an orderly stop may take to store what is only in the write buffer.
    pub stop_within: Interval,
    /// How long acknowledgements are held at most while a snapshot of several volumes is taken.
    pub group_hold: Interval,
}

impl Default for VolumesSettings {
    fn default() -> Self {
        let policy = CheckpointPolicy::default();
        Self {
            map_memory: ByteSize::new(256 << 20),
            checkpoint_entries: policy.entries_max,
            checkpoint_idle: Interval::new(Duration::from_micros(policy.idle_us)),
            checkpoint_age: Interval::new(Duration::from_micros(policy.age_us)),
            lease: Interval::new(Duration::from_secs(10)),
            stop_within: Interval::new(Duration::from_secs(10)),
            group_hold: Interval::new(Duration::from_secs(2)),
        }
    }
}

/// `[uploads]`: what is on its way to the back ends at a time.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UploadSettings {
    /// Requests under way to one storage pool.
    pub parallel: usize,
    /// Bytes under way to one storage pool, which is also the memory that its uploads take.
    pub bytes: ByteSize,
}

impl Default for UploadSettings {
    fn default() -> Self {
        Self {
            parallel: 4,
            bytes: ByteSize::new(128 << 20),
        }
    }
}

/// `[limits]`: threads, and operations that are under way at a time on each; more are told to come again.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitSettings {
    /// Threads that serve volumes, where `node.endpoints` lists no endpoint for each; half the cores where nothing
    /// is said.
    pub threads: Option<usize>,
    /// Operations.
    pub operations: usize,
    /// Their data, sent and expected.
    pub operation_bytes: ByteSize,
}

impl Default for LimitSettings {
    fn default() -> Self {
        Self {
            threads: None,
            operations: 65_536,
            operation_bytes: ByteSize::new(1 << 30),
        }
    }
}

/// A setting that is well-formed and cannot work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("setting {key} is {found}; it has to be {expected}")]
pub struct SettingError {
    /// The key.
    pub key: &'static str,
    /// Its value.
    pub found: String,
    /// What would be right.
    pub expected: String,
}

fn check(key: &'static str, right: bool, found: impl Display, expected: &str) -> Result<(), SettingError> {
    if right {
        return Ok(());
    }
    Err(SettingError {
        key,
        found: found.to_string(),
        expected: expected.to_owned(),
    })
}

/// The smallest buffer that works: some default SCOs, or one of the largest.
const BUFFER_MIN: u64 = 32 << 20;

impl Settings {
    /// Checks what the file's form does not say, and gives the endpoints, one a shard.
    ///
    /// # Errors
    /// The first setting that cannot work.
    pub fn check(&self) -> Result<Vec<Endpoint>, SettingError> {
        let endpoints = self.endpoints()?;
        let buffer = self.buffer.size;
        check(
            "buffer.size",
            buffer.bytes() >= BUFFER_MIN,
            buffer,
            "at least 32 MiB, so that some SCOs of 4 MiB fit",
        )?;
        let largest = largest_object();
        let uploads = &self.uploads;
        check(
            "uploads.parallel",
            (1..=64).contains(&uploads.parallel),
            uploads.parallel,
            "within 1 to 64",
        )?;
        check(
            "uploads.bytes",
            (largest..=4 << 30).contains(&uploads.bytes.bytes()),
            uploads.bytes,
            "within 96 MiB (the largest object) and 4 GiB",
        )?;
        let volumes = &self.volumes;
        check(
            "volumes.map_memory",
            volumes.map_memory.bytes() >= 1 << 20,
            volumes.map_memory,
            "at least 1 MiB",
        )?;
        check(
            "volumes.checkpoint_entries",
            volumes.checkpoint_entries >= 1000,
            volumes.checkpoint_entries,
            "at least 1000",
        )?;
        let lease = volumes.lease.duration();
        check(
            "volumes.lease",
            (Duration::from_secs(1)..=Duration::from_secs(300)).contains(&lease),
            volumes.lease,
            "within 1s to 5min",
        )?;
        check(
            "volumes.group_hold",
            (Duration::from_millis(10)..=Duration::from_secs(10)).contains(&volumes.group_hold.duration()),
            volumes.group_hold,
            "within 10ms to 10s",
        )?;
        self.scrub.check()?;
        self.erase.check()?;
        self.dtl.check()?;
        self.placement.check()?;
        let limits = &self.limits;
        check(
            "limits.operations",
            (64..=1 << 20).contains(&limits.operations),
            limits.operations,
            "within 64 to 1048576",
        )?;
        check(
            "limits.operation_bytes",
            limits.operation_bytes.bytes() >= 64 << 20,
            limits.operation_bytes,
            "at least 64 MiB, so that the largest request fits",
        )?;
        Ok(endpoints)
    }

    /// The endpoints that are listed, or one for each thread in the run directory.
    fn endpoints(&self) -> Result<Vec<Endpoint>, SettingError> {
        const KEY: &str = "node.endpoints";
        let listed = &self.node.endpoints;
        let threads = self.limits.threads.unwrap_or_else(half_the_cores);
        check(
            "limits.threads",
            (1..=256).contains(&threads) && (listed.is_empty() || self.limits.threads.is_none()),
            threads,
            "within 1 to 256, and left out where node.endpoints lists an endpoint for each thread",
        )?;
        let bus = self.node.run_dir.join("bus");
        let in_run_dir = |at| format!("ipc://{}/{}-{at}.sock", bus.display(), self.node.name);
        let chosen = match listed.is_empty() {
            true => (0..threads).map(in_run_dir).collect(),
            false => listed.clone(),
        };
        let parsed = chosen.iter().map(|text| {
            text.parse().map_err(|error| SettingError {
                key: KEY,
                found: format!("{text:?} ({error})"),
                expected: "a list of endpoints: ipc:///path or tls://host:port/name".to_owned(),
            })
        });
        parsed.collect()
    }

    /// When checkpoints are due.
    pub(crate) fn checkpoint_policy(&self) -> CheckpointPolicy {
        CheckpointPolicy {
            entries_max: self.volumes.checkpoint_entries,
            idle_us: micros(self.volumes.checkpoint_idle),
            age_us: micros(self.volumes.checkpoint_age),
            ..CheckpointPolicy::default()
        }
    }

    /// Bytes that the local copies of checkpoints may take.
    pub(crate) fn checkpoint_bytes(&self) -> u64 {
        let share = self.buffer.size.bytes() / 8;
        self.buffer.checkpoints.map_or(share, ByteSize::bytes)
    }
}

fn micros(interval: Interval) -> u64 {
    u64::try_from(interval.duration().as_micros()).unwrap_or(u64::MAX)
}

fn half_the_cores() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    (cores / 2).max(1)
}

/// The largest object that is ever put: the room that uploads need at least.
fn largest_object() -> u64 {
    sconce_schemas::wire::storage::OBJECT_BYTES_MAX
}

// A SCO of the default size fits the smallest buffer several times.
const _: () = assert!(ScoSize::TLOG_BYTES_PER_SLOT * 1024 + (4 << 20) < BUFFER_MIN / 4);
