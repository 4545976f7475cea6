//! The section `[registry]` of every service's settings: where the registry's home is.
//!
//! Keeps: what a person may type there.
//! Order: none.
//! Crash: nothing.
//! Knows no home's inside.

use std::path::PathBuf;

use sconce_bus::{Endpoint, Hello, Network, TlsSettings};
use serde::Deserialize;

use crate::{Invalid, OpenError, Registry};

/// Where the registry's home is.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "home", rename_all = "lowercase", deny_unknown_fields)]
pub enum RegistrySettings {
    /// In a directory of this machine, hosted by this process for others.
    Sled {
        /// The directory.
        dir: PathBuf,
        /// Where this process serves it: an endpoint of the bus.
        listen: String,
    },
    /// In etcd.
    Etcd {
        /// Its members: `http://host:port`, or `https://host:port` with `tls`.
        endpoints: Vec<String>,
        /// The authority that etcd's certificate is from, and what this service shows to etcd.
        #[serde(default)]
        tls: Option<TlsSettings>,
        /// The prefix of all keys.
        #[serde(default = "default_prefix")]
        prefix: String,
    },
    /// Hosted by another process.
    Remote {
        /// Where that process serves it: an endpoint of the bus.
        endpoint: String,
    },
}

fn default_prefix() -> String {
    "/sconce/".to_owned()
}

impl Registry {
    /// Opens the registry that the settings name. A process with [`RegistrySettings::Sled`] then serves it with
    /// [`host`](crate::host()) at `listen`.
    ///
    /// # Errors
    /// A setting is wrong; the directory cannot be used; etcd does not answer. A remote registry that is not there
    /// yet is no error: requests wait for it.
    pub async fn open(
        settings: &RegistrySettings,
        network: &Network,
        hello: Hello,
    ) -> Result<Self, OpenError> {
        match settings {
            RegistrySettings::Sled { dir, .. } => {
                let dir = dir.clone();
                let opened = tokio::task::spawn_blocking(move || Registry::sled(&dir)).await;
                opened.map_err(|error| OpenError::Thread(std::io::Error::other(error)))?
            }
            RegistrySettings::Etcd {
                endpoints,
                tls,
                prefix,
            } => Registry::etcd(endpoints, prefix, tls.as_ref()).await,
            RegistrySettings::Remote { endpoint } => {
                let parsed: Endpoint = endpoint.parse().map_err(|error| Invalid {
                    text: format!("endpoint {endpoint:?}: {error}"),
                })?;
                Registry::remote(network, &parsed, hello)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    struct Settings {
        registry: RegistrySettings,
    }

    fn parse(text: &str) -> Result<RegistrySettings, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.toml");
        std::fs::write(&path, format!("[registry]\n{text}")).unwrap();
        let settings: Result<Settings, _> = sconce_runtime::settings::load(&path);
        settings
            .map(|settings| settings.registry)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn each_home_is_taken() {
        let sled = parse("home = \"sled\"\ndir = \"run/registry\"\nlisten = \"ipc:///run/r.sock\"");
        assert!(matches!(sled, Ok(RegistrySettings::Sled { .. })));
        let Ok(RegistrySettings::Etcd { prefix, .. }) =
            parse("home = \"etcd\"\nendpoints = [\"http://e1:2379\"]")
        else {
            panic!("etcd");
        };
        assert_eq!(prefix, "/sconce/");
        let remote = parse("home = \"remote\"\nendpoint = \"ipc:///run/r.sock\"");
        assert!(matches!(remote, Ok(RegistrySettings::Remote { .. })));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, wanted) in [
            (
                "home = \"zookeeper\"",
                vec!["zookeeper", "`sled`, `etcd`, `remote`"],
            ),
            ("dir = \"x\"", vec!["home"]),
            ("home = \"sled\"\ndir = \"x\"", vec!["listen"]),
            (
                "home = \"remote\"\nendpoint = \"e\"\nprefix = \"p\"",
                vec!["prefix", "endpoint"],
            ),
        ] {
            let error = parse(text).unwrap_err();
            for part in wanted {
                assert!(error.contains(part), "{part:?} is not in {error}");
            }
        }
    }
}
