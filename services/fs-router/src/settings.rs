//! The settings of an fs-router.
//!
//! Keeps: what a person may type, and the defaults of what need not be typed.
//! Order: none.
//! Crash: nothing.
//! Knows no service at work.

use sconce_bus::TlsSettings;
use sconce_cache::CacheSettings;
use sconce_registry::RegistrySettings;
use sconce_runtime::MetricsSettings;
use sconce_runtime::settings::NodeSettings;
use sconce_tracing::{LogSettings, TelemetrySettings};
use serde::Deserialize;

use crate::fuse::FuseSettings;
use crate::nameless::NamelessSettings;
use crate::nbd::NbdSettings;

/// A settings file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Who this is.
    pub node: NodeSettings,
    /// Where the registry is.
    pub registry: RegistrySettings,
    /// How it logs.
    #[serde(default)]
    pub log: LogSettings,
    /// What it tells a collector.
    #[serde(default)]
    pub telemetry: TelemetrySettings,
    /// Where its metrics are read, if they are.
    pub metrics: Option<MetricsSettings>,
    /// Its certificate, where peers are on other hosts.
    pub tls: Option<TlsSettings>,
    /// The routing core's threads.
    #[serde(default)]
    pub routing: RoutingSettings,
    /// The SSD cache of clusters that were read from storage-routers, if it is wanted.
    pub cache: Option<CacheSettings>,
    /// The NBD front end, if it is wanted.
    pub nbd: Option<NbdSettings>,
    /// The FUSE front end, if it is wanted.
    pub fuse: Option<FuseSettings>,
    /// Files that were removed while they were open at an fs-router that is gone.
    #[serde(default)]
    pub nameless: NamelessSettings,
}

/// The section `[routing]`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RoutingSettings {
    /// IO threads; left out: half as many as the machine has cores, and at least one.
    pub threads: Option<usize>,
}

impl RoutingSettings {
    /// IO threads to start.
    #[must_use]
    pub fn thread_count(&self) -> usize {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        self.threads.unwrap_or(cores / 2).clamp(1, 64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "[node]\nname = \"fs-1\"\nrun_dir = \"/run/s\"\n\
        [registry]\nhome = \"remote\"\nendpoint = \"ipc:///run/s/bus/registry.sock\"\n\
        [nbd]\nsocket = \"/run/s/nbd.sock\"\ntcp = \"127.0.0.1:10809\"\n\
        [fuse]\nmount = \"/run/s/mnt\"\n[routing]\nthreads = 3\n\
        [metrics]\nlisten = \"127.0.0.1:9801\"\n\
        [cache]\ndirectory = \"/ssd/c\"\nsize = \"4 GiB\"\n";

    fn load(text: &str) -> Result<Settings, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fs-router.toml");
        std::fs::write(&path, text).unwrap();
        sconce_runtime::settings::load(&path).map_err(|error| error.to_string())
    }

    #[test]
    fn a_good_file_is_taken() {
        let settings = load(GOOD).unwrap();
        let nbd = settings.nbd.unwrap();
        assert_eq!(nbd.tcp.unwrap().port(), 10809);
        assert_eq!(nbd.clients_max, 256);
        assert_eq!(nbd.memory.bytes(), 1 << 30);
        assert_eq!(settings.routing.thread_count(), 3);
        assert_eq!(settings.metrics.unwrap().listen.port(), 9801);
        assert_eq!(settings.cache.unwrap().size.bytes(), 4 << 30);
        assert_eq!(settings.nameless.adopt_after.duration().as_secs(), 600);
        assert!(RoutingSettings::default().thread_count() >= 1);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (good, wrong, wanted) in [
            ("127.0.0.1:10809", "localhost", "tcp = \"localhost\""),
            (
                "127.0.0.1:9801",
                ":9801",
                "right would be an IP address and a port",
            ),
            ("threads = 3", "threads = -3", "threads = -3"),
            ("[nbd]", "[ndb]", "ndb"),
            ("4 GiB", "4 KiB", "right would be 1 MiB or more"),
            ("socket", "sockets", "sockets"),
        ] {
            let error = load(&GOOD.replace(good, wrong)).unwrap_err();
            assert!(error.contains(wanted), "{wanted:?} is not in {error}");
        }
    }
}
