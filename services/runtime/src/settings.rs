//! Settings: parsed once, from what a person typed into what the program may rely on.
//!
//! Keeps: how a settings file is read, and the types that its values have in common.
//! Order: none.
//! Crash: nothing; settings are only read.
//! Knows no service's section.

mod quantity;

use std::io;
use std::path::{Path, PathBuf};

use sconce_schemas::records::Place;
use sconce_schemas::{NodeName, PlaceName};
use serde::Deserialize;
use serde::de::DeserializeOwned;

pub use quantity::{ByteSize, Interval, QuantityError};

/// The section `[node]` that every service's settings have.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeSettings {
    /// The service's name in the pool.
    pub name: NodeName,
    /// Where its pid file and sockets are.
    pub run_dir: PathBuf,
    /// Where it listens, one endpoint a thread.
    #[serde(default)]
    pub endpoints: Vec<String>,
    /// The machine that it runs on; the system's name where nothing is said.
    pub host: Option<PlaceName>,
    /// What is lost at one time with it; its machine where nothing is said.
    pub failure_domain: Option<PlaceName>,
}

/// Where the system says what it is called.
const HOST_NAME: &str = "/proc/sys/kernel/hostname";

impl NodeSettings {
    /// Where the service is, as it is announced. Without settings, and on a system whose name is none for a machine, it is alone on a machine
    /// that is called as it is.
    #[must_use]
    pub fn place(&self) -> Place {
        let of_system = || std::fs::read_to_string(HOST_NAME).ok()?.trim().parse().ok();
        let host = self.host.clone().or_else(of_system);
        let host = host.unwrap_or_else(|| PlaceName::from(&self.name));
        Place {
            failure_domain: self.failure_domain.clone().unwrap_or_else(|| host.clone()),
            host,
        }
    }
}

/// Why a settings file could not be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// It cannot be read.
    #[error("settings file {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// What it says is not what the program takes. The text shows line, key and value, and what would be right.
    #[error("settings file {}: {detail}", path.display())]
    Wrong {
        /// The file.
        path: PathBuf,
        /// The place in the file and what is wrong there.
        detail: String,
    },
}

/// Reads the TOML file at `path`. `T` should deny unknown fields, so that a misspelt key is told.
///
/// # Errors
/// The file cannot be read, is not TOML, or a value is not what `T` takes.
pub fn load<T: DeserializeOwned>(path: &Path) -> Result<T, SettingsError> {
    let text = std::fs::read_to_string(path).map_err(|source| SettingsError::Read {
        path: path.to_owned(),
        source,
    })?;
    toml::from_str(&text).map_err(|error| SettingsError::Wrong {
        path: path.to_owned(),
        detail: error.to_string().trim_end().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Example {
        node: NodeSettings,
        buffer: BufferSection,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct BufferSection {
        size: ByteSize,
        keep: Interval,
    }

    const GOOD: &str = "[node]\nname = \"vr-1\"\nrun_dir = \"./run\"\nendpoints = [\"ipc:///run/a.sock\"]\n\
                        [buffer]\nsize = \"8 GiB\"\nkeep = \"30s\"\n";

    fn load_text(text: &str) -> Result<Example, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("example.toml");
        std::fs::write(&path, text).unwrap();
        load(&path).map_err(|error| {
            assert!(error.to_string().contains("example.toml"));
            error.to_string()
        })
    }

    #[test]
    fn a_good_file_is_taken() {
        let example = load_text(GOOD).unwrap();
        assert_eq!(example.node.name.as_str(), "vr-1");
        assert_eq!(example.buffer.size.bytes(), 8 << 30);
        assert_eq!(example.buffer.keep.duration(), std::time::Duration::from_secs(30));
    }

    #[test]
    fn a_service_is_on_its_machine_and_in_a_failure_domain_of_its_own_where_nothing_else_is_said() {
        let place = |text: &str| {
            let node = GOOD.replace("[buffer]", &format!("{text}[buffer]"));
            let Place { host, failure_domain } = load_text(&node).unwrap().node.place();
            (host.to_string(), failure_domain.to_string())
        };
        let (host, domain) = place("");
        assert!(!host.is_empty());
        assert_eq!(domain, host);
        let at = |host: &str, domain: &str| (host.to_owned(), domain.to_owned());
        assert_eq!(place("host = \"hv-1\"\n"), at("hv-1", "hv-1"));
        assert_eq!(place("failure_domain = \"Rack_1\"\n"), at(&host, "Rack_1"));
        assert_eq!(
            place("failure_domain = \"rack-1\"\nhost = \"hv-1\"\n"),
            at("hv-1", "rack-1")
        );
    }

    #[test]
    fn an_error_names_key_value_and_what_is_right() {
        let cases = [
            (
                GOOD.replace("8 GiB", "8 gigs"),
                vec!["size = \"8 gigs\"", "line 6", "256 MiB"],
            ),
            (
                GOOD.replace("vr-1", "VR_1"),
                vec!["name = \"VR_1\"", "line 2", "a-z"],
            ),
            (
                GOOD.replace("[buffer]", "failure_domain = \"rack 1\"\n[buffer]"),
                vec!["failure_domain = \"rack 1\"", "line 5", "1 to 64 of a-z"],
            ),
            (
                GOOD.replace("keep", "kept"),
                vec!["kept", "line 7", "`size` or `keep`"],
            ),
            (GOOD.replace("keep = \"30s\"\n", ""), vec!["missing field `keep`"]),
            (GOOD.replace("[buffer]", "[buffer"), vec!["line 5"]),
            (GOOD.replace("\"30s\"", "30"), vec!["keep = 30", "250ms"]),
        ];
        for (text, wanted) in cases {
            let error = load_text(&text).unwrap_err();
            for part in wanted {
                assert!(error.contains(part), "{part:?} is not in {error}");
            }
        }
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let error = load::<Example>(Path::new("/nowhere/x.toml")).unwrap_err();
        assert!(error.to_string().contains("/nowhere/x.toml"), "{error}");
    }
}
