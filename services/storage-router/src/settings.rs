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
use sconce_runtime::MetricsSettings;
use sconce_runtime::settings::{ByteSize, Interval, NodeSettings};
use sconce_schemas::NodeName;
use sconce_schemas::records::{Compression, PoolRecord, Protection};
use sconce_tracing::{LogSettings, TelemetrySettings};
use serde::Deserialize;

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
    /// Section `[metrics]`: where its metrics are read, if they are.
    pub metrics: Option<MetricsSettings>,
    /// `[[backends]]`: those that this service finds without the registry.
    pub backends: Vec<BackendSettings>,
    /// `[[pools]]`: made at the first start; later the registry's record counts.
    pub pools: Vec<PoolSettings>,
    /// `[[keys]]`: where the keys of encrypted pools are.
    pub keys: Vec<KeySettings>,
    /// Section `[limits]`.
    pub limits: LimitSettings,
    /// Section `[deep_scrub]`: how often all that is stored is read, and how fast.
    pub deep_scrub: DeepScrubSettings,
    /// Section `[moves]`: how fast objects move when a pool's back ends change.
    pub moves: MoveSettings,
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
    metrics: Option<MetricsSettings>,
    #[serde(default)]
    backends: Vec<BackendSettings>,
    #[serde(default)]
    pools: Vec<PoolSettings>,
    #[serde(default)]
    keys: Vec<KeySettings>,
    #[serde(default)]
    limits: LimitSettings,
    #[serde(default)]
    deep_scrub: DeepScrubSettings,
    #[serde(default)]
    moves: MoveSettings,
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
    pub(crate) fn place(&self) -> String {
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
#[serde(try_from = "TypedPool")]
pub struct PoolSettings {
    /// Its name: as a back end's.
    pub name: NodeName,
    /// `protect = "replica:N"`: copies of each object, each on a back end of its own; or `"ec:K+M"`: fragments, of which
    /// any K are enough.
    pub protection: Protection,
    /// `compress = "lz4"` or `"zstd"`: where it wins a tenth.
    pub compression: Option<Compression>,
    /// `encrypt = true`: with the newest of the pool's `[[keys]]`.
    pub encrypted: bool,
    /// Names of its back ends.
    pub backends: Vec<NodeName>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TypedPool {
    name: NodeName,
    protect: String,
    compress: Option<String>,
    #[serde(default)]
    encrypt: bool,
    backends: Vec<NodeName>,
}

impl TryFrom<TypedPool> for PoolSettings {
    type Error = String;

    fn try_from(typed: TypedPool) -> Result<Self, String> {
        let TypedPool {
            name,
            protect,
            compress,
            encrypt,
            backends,
        } = typed;
        let of = |key: &str, error: sconce_schemas::DecodeError| format!("pool {name}: {key}: {error}");
        let compression = match compress.as_deref() {
            None | Some("off") => None,
            Some(text) => Some(text.parse().map_err(|error| of("compress", error))?),
        };
        Ok(Self {
            protection: protect.parse().map_err(|error| of("protect", error))?,
            compression,
            encrypted: encrypt,
            backends,
            name,
        })
    }
}

/// Where a key of an encrypted pool is: in a file or in the environment, never here.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "TypedKey")]
pub struct KeySettings {
    /// The pool's name.
    pub pool: NodeName,
    /// Its id, 1 or more. What is written is encrypted with the key of the highest id that writes.
    pub id: u32,
    /// Where its 32 bytes are.
    pub source: KeySource,
    /// `writes = false`: it only reads, so that all storage-routers can have it before one of them writes with it.
    pub writes: bool,
}

/// Where the 32 bytes of a key are, or their 64 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeySource {
    /// `file`: in a file that nobody else may read.
    File(PathBuf),
    /// `env`: in an environment variable, as digits.
    Environment(String),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TypedKey {
    pool: NodeName,
    id: u32,
    file: Option<PathBuf>,
    env: Option<String>,
    writes: Option<bool>,
}

impl TryFrom<TypedKey> for KeySettings {
    type Error = String;

    fn try_from(typed: TypedKey) -> Result<Self, String> {
        let TypedKey {
            pool,
            id,
            file,
            env,
            writes,
        } = typed;
        if id == 0 {
            return Err(format!("key 0 of pool {pool}; right would be an id of 1 or more"));
        }
        let source = match (file, env) {
            (Some(file), None) => KeySource::File(file),
            (None, Some(env)) => KeySource::Environment(env),
            _ => {
                return Err(format!(
                    "key {id} of pool {pool} has both file and env, or neither; right would be one of them"
                ));
            }
        };
        Ok(Self {
            pool,
            id,
            source,
            writes: writes.unwrap_or(true),
        })
    }
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
    /// How long a read of a fragment may take before others are asked too, in pools that keep fragments.
    pub hedge_after: Interval,
}

impl Default for LimitSettings {
    fn default() -> Self {
        Self {
            requests: 1024,
            bytes: ByteSize::new(512 << 20),
            backend_deadline: Interval::new(Duration::from_secs(30)),
            // A disk's seek and a bucket's answer are faster; a guest hardly notices it.
            hedge_after: Interval::new(Duration::from_millis(100)),
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
        let backends = self.backends.iter().map(NodeName::to_string);
        PoolRecord::proposed(
            self.name.to_string(),
            self.protection,
            backends,
            self.compression,
            self.encrypted,
        )
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
            metrics,
            backends,
            pools,
            keys,
            limits,
            deep_scrub,
            moves,
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
        if let Some((pool, id)) = first_twice(keys.iter().map(|key| (&key.pool, key.id))) {
            return Err(format!(
                "keys: key {id} of pool {pool} is there twice; each key of a pool has an id of its own"
            ));
        }
        let has_key = |pool: &PoolSettings| keys.iter().any(|key| key.pool == pool.name && key.writes);
        if let Some(pool) = pools.iter().find(|pool| pool.encrypted && !has_key(pool)) {
            return Err(format!(
                "pool {0}: encrypt = true, but no [[keys]] has pool = \"{0}\"; right would be one with id, and file or env",
                pool.name
            ));
        }
        check_limits(&limits)?;
        deep_scrub.check()?;
        check_rate("moves", moves.bytes_per_second)?;
        Ok(Self {
            node,
            registry,
            tls,
            log,
            telemetry,
            metrics,
            backends,
            pools,
            keys,
            limits,
            deep_scrub,
            moves,
            cache,
        })
    }
}

/// How often all that is stored is read and checked, and how fast.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DeepScrubSettings {
    /// From the begin of a round to the begin of the next.
    pub period: Interval,
    /// Bytes that are read in a second at the most, on all back ends of a pool together.
    pub bytes_per_second: ByteSize,
}

impl Default for DeepScrubSettings {
    /// 80 TB in a month, at a fifth of what one hard disk gives.
    fn default() -> Self {
        Self {
            period: Interval::new(Duration::from_secs(30 * 24 * 3600)),
            bytes_per_second: ByteSize::new(32 << 20),
        }
    }
}

impl DeepScrubSettings {
    fn check(&self) -> Result<(), String> {
        if self.period.duration() < Duration::from_secs(60) {
            let period = &self.period;
            return Err(format!(
                "deep_scrub: period = \"{period}\"; right would be 1min or more"
            ));
        }
        check_rate("deep_scrub", self.bytes_per_second)
    }
}

/// How fast objects move to where a pool's placement map wants them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MoveSettings {
    /// Bytes that are written in a second at the most, on all back ends of a pool together.
    pub bytes_per_second: ByteSize,
}

impl Default for MoveSettings {
    /// 160 TB in a month, at less than half of what one hard disk takes.
    fn default() -> Self {
        Self {
            bytes_per_second: ByteSize::new(64 << 20),
        }
    }
}

fn check_rate(section: &str, rate: ByteSize) -> Result<(), String> {
    match rate.bytes() {
        ..0x10_0000 => Err(format!(
            "{section}: bytes_per_second = \"{rate}\"; right would be 1 MiB or more"
        )),
        _ => Ok(()),
    }
}

fn check_backends(backends: &[BackendSettings]) -> Result<(), String> {
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
    let width = pool.protection.width();
    if width > pool.backends.len() {
        return Err(format!(
            "pool {name}: protect = \"{}\" takes {width} back ends, and backends has {}; each copy or fragment is on a \
             back end of its own",
            pool.protection,
            pool.backends.len()
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
    if limits.hedge_after.duration() < Duration::from_millis(1) {
        return Err(format!(
            "limits: hedge_after = \"{}\"; right would be 1ms or more",
            limits.hedge_after
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
