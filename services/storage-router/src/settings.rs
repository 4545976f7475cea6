//! The settings of a storage-router.
//!
//! Keeps: which back ends and pools there are, and how much may be under way.
//! Order: none.
//! Crash: nothing; settings are only read.
//! Knows no registry content: a pool that is there already is not changed by settings.

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::Duration;

use sconce_bus::TlsSettings;
use sconce_cache::CacheSettings;
use sconce_registry::RegistrySettings;
use sconce_runtime::settings::{ByteSize, Interval, NodeSettings};
use sconce_schemas::NodeName;
use sconce_schemas::records::{PlacementEntry, PoolRecord, Protection};
use sconce_tracing::{LogSettings, TelemetrySettings};
use serde::Deserialize;

use crate::pool::{FIRST_PLACEMENT, REPLICAS_MAX};
use crate::s3::S3Settings;

/// The settings file, checked.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "Typed")]
pub struct Settings {
    /// Section `[node]`.
    pub node: NodeSettings,
    /// Section `[registry]`.
    pub registry: RegistrySettings,
    /// Section `[tls]`: this node's certificate, where services are on other hosts.
    pub tls: Option<TlsSettings>,
    /// Section `[log]`.
    pub log: LogSettings,
    /// Section `[telemetry]`.
    pub telemetry: TelemetrySettings,
    /// `[[backends]]`: at least one.
    pub backends: Vec<BackendSettings>,
    /// `[[pools]]`: made at the first start; later the registry's record counts.
    pub pools: Vec<PoolSettings>,
    /// Section `[limits]`.
    pub limits: LimitSettings,
    /// Section `[cache]`: the SSD cache of objects that were read, if it is wanted.
    pub cache: Option<CacheSettings>,
}

/// What a person typed, before the sections are checked against each other.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Typed {
    node: NodeSettings,
    registry: RegistrySettings,
    tls: Option<TlsSettings>,
    #[serde(default)]
    log: LogSettings,
    #[serde(default)]
    telemetry: TelemetrySettings,
    #[serde(default)]
    backends: Vec<BackendSettings>,
    #[serde(default)]
    pools: Vec<PoolSettings>,
    #[serde(default)]
    limits: LimitSettings,
    cache: Option<CacheSettings>,
}

/// A back end.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "TypedBackend")]
pub struct BackendSettings {
    /// Its name in the whole pool: 1 to 63 of `a-z 0-9 - .`.
    pub name: NodeName,
    /// Where its objects are.
    pub store: StoreSettings,
}

/// Where a back end's objects are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreSettings {
    /// `dir`: a directory, empty or missing at its first start.
    Directory(PathBuf),
    /// `s3`: a bucket, or a folder in one, empty at its first start.
    S3(Box<S3Settings>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TypedBackend {
    name: NodeName,
    dir: Option<PathBuf>,
    s3: Option<Box<S3Settings>>,
}

impl TryFrom<TypedBackend> for BackendSettings {
    type Error = String;

    fn try_from(TypedBackend { name, dir, s3 }: TypedBackend) -> Result<Self, String> {
        let store = match (dir, s3) {
            (Some(dir), None) => StoreSettings::Directory(dir),
            (None, Some(s3)) => StoreSettings::S3(s3),
            (None, None) => {
                return Err(format!(
                    "back end {name} has neither dir nor s3; right would be one of them"
                ));
            }
            (Some(_), Some(_)) => {
                return Err(format!(
                    "back end {name} has dir and s3; right would be one of them"
                ));
            }
        };
        Ok(Self { name, store })
    }
}

impl StoreSettings {
    /// What two back ends must not have in common.
    fn place(&self) -> String {
        match self {
            Self::Directory(dir) => format!("dir = {dir:?}"),
            Self::S3(s3) => format!(
                "s3 bucket {:?}, folder {:?} at {}",
                s3.bucket, s3.folder, s3.endpoint
            ),
        }
    }
}

/// A pool.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolSettings {
    /// Its name: as a back end's.
    pub name: NodeName,
    /// Copies of each object, each on a back end of its own.
    pub replicas: u8,
    /// Names of its back ends.
    pub backends: Vec<NodeName>,
}

/// How much may be under way at once. As many bytes again may wait; what is beyond that is refused for now. A back end
/// has its share of both, so that one that hangs leaves the rest to the others.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitSettings {
    /// Requests.
    pub requests: usize,
    /// Bytes of objects that they bring or ask for. At least the largest object.
    pub bytes: ByteSize,
    /// How long a back end may take for one request before it counts as absent.
    pub backend_deadline: Interval,
}

impl Default for LimitSettings {
    fn default() -> Self {
        Self {
            requests: 1024,
            bytes: ByteSize::new(512 << 20),
            backend_deadline: Interval::new(Duration::from_secs(30)),
        }
    }
}

impl Settings {
    /// Where the service listens.
    #[must_use]
    pub fn endpoint(&self) -> &str {
        // Checked when the settings were read: there is exactly one.
        self.node.endpoints.first().map_or("", String::as_str)
    }
}

impl PoolSettings {
    /// The record that these settings make: all back ends with the same weight.
    #[must_use]
    pub fn record(&self) -> PoolRecord {
        let entry = |backend: &NodeName| PlacementEntry {
            backend: backend.to_string(),
            weight: 1,
        };
        PoolRecord {
            name: self.name.to_string(),
            protection: Protection::Replicas(self.replicas),
            backends: self.backends.iter().map(entry).collect(),
            placement_version: FIRST_PLACEMENT,
        }
    }
}

impl TryFrom<Typed> for Settings {
    type Error = String;

    fn try_from(typed: Typed) -> Result<Self, String> {
        let Typed {
            node,
            registry,
            tls,
            log,
            telemetry,
            backends,
            pools,
            limits,
            cache,
        } = typed;
        if node.endpoints.len() != 1 {
            return Err(format!(
                "node.endpoints has {} endpoints; a storage-router listens at one",
                node.endpoints.len()
            ));
        }
        check_backends(&backends)?;
        pools.iter().try_for_each(|pool| check_pool(pool, &backends))?;
        if let Some(twice) = first_twice(pools.iter().map(|pool| &pool.name)) {
            return Err(format!(
                "pools: {twice} is there twice; each pool has a name of its own"
            ));
        }
        check_limits(&limits)?;
        Ok(Self {
            node,
            registry,
            tls,
            log,
            telemetry,
            backends,
            pools,
            limits,
            cache,
        })
    }
}

fn check_backends(backends: &[BackendSettings]) -> Result<(), String> {
    if backends.is_empty() {
        return Err(
            "backends: there is none; at least one [[backends]] with name and dir, or s3, is needed"
                .to_owned(),
        );
    }
    if let Some(twice) = first_twice(backends.iter().map(|backend| &backend.name)) {
        return Err(format!(
            "backends: {twice} is there twice; each back end has a name of its own"
        ));
    }
    let places: Vec<String> = backends.iter().map(|backend| backend.store.place()).collect();
    match first_twice(places.iter()) {
        Some(twice) => Err(format!(
            "backends: {twice} is there twice; each back end has a place of its own"
        )),
        None => Ok(()),
    }
}

fn check_pool(pool: &PoolSettings, backends: &[BackendSettings]) -> Result<(), String> {
    let name = &pool.name;
    let is_known = |wanted: &&NodeName| backends.iter().any(|backend| backend.name == **wanted);
    if let Some(unknown) = pool.backends.iter().find(|wanted| !is_known(wanted)) {
        return Err(format!(
            "pool {name}: backends has {unknown}, which no [[backends]] has as its name"
        ));
    }
    if let Some(twice) = first_twice(pool.backends.iter()) {
        return Err(format!("pool {name}: backends has {twice} twice"));
    }
    let most = usize::from(REPLICAS_MAX).min(pool.backends.len());
    if !(1..=most).contains(&usize::from(pool.replicas)) {
        return Err(format!(
            "pool {name}: replicas = {}; right would be 1 to {most} (each copy on a back end of its own, \
             {REPLICAS_MAX} at most)",
            pool.replicas
        ));
    }
    Ok(())
}

fn check_limits(limits: &LimitSettings) -> Result<(), String> {
    /// Tokio's semaphores count up to an eighth of a usize; more than this makes no sense either.
    const BYTES_MAX: u64 = 1 << 40;
    let bytes = limits.bytes.bytes();
    if !(1..=1_000_000).contains(&limits.requests) {
        return Err(format!(
            "limits: requests = {}; right would be 1 to 1000000",
            limits.requests
        ));
    }
    if !(sconce_schemas::wire::storage::OBJECT_BYTES_MAX..=BYTES_MAX).contains(&bytes) {
        return Err(format!(
            "limits: bytes = \"{}\"; right would be 96 MiB to 1 TiB",
            limits.bytes
        ));
    }
    if limits.backend_deadline.duration() < Duration::from_secs(1) {
        return Err(format!(
            "limits: backend_deadline = \"{}\"; right would be 1s or more",
            limits.backend_deadline
        ));
    }
    Ok(())
}

fn first_twice<T: Copy + Eq + std::hash::Hash>(mut items: impl Iterator<Item = T>) -> Option<T> {
    let mut seen = HashSet::new();
    items.find(|item| !seen.insert(*item))
}

#[cfg(test)]
mod tests;
