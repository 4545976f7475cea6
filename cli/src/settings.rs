//! Keeps: what a client knows of a cluster (`sconce.toml`), and where that file is looked for.
//! Order: `--cluster`, then `SCONCE_CLUSTER`, then `run/sconce.toml` here or above, then beside the executable.
//! Crash: nothing; settings are only read.
//! Knows no cluster: whether anybody answers is found out later.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use sconce_bus::TlsSettings;
use sconce_registry::RegistrySettings;
use sconce_schemas::NodeName;
use serde::Deserialize;

/// Names the client settings where no option does.
pub const VARIABLE: &str = "SCONCE_CLUSTER";
/// Where `make up` leaves the client settings, from the checkout.
const IN_CHECKOUT: &str = "run/sconce.toml";

/// Client settings: what `make up` writes to `run/sconce.toml`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The cluster's run directory on this machine.
    pub run_dir: PathBuf,
    /// How the registry is reached.
    pub registry: RegistrySettings,
    /// The NBD front end's unix socket.
    #[serde(default)]
    pub nbd_socket: Option<PathBuf>,
    /// Where the FUSE front end is mounted.
    #[serde(default)]
    pub mount: Option<PathBuf>,
    /// Who this client is: the node that its certificate names. Default: a name of this process.
    #[serde(default)]
    pub node: Option<NodeName>,
    /// This client's certificate (`sconce pool init`), where services are on other hosts.
    #[serde(default)]
    pub tls: Option<TlsSettings>,
}

impl Settings {
    /// The settings that a file holds.
    ///
    /// # Errors
    /// The file cannot be read, or a value is wrong; the text names file, key and value.
    pub fn load(file: &Path) -> Result<Settings> {
        Ok(sconce_runtime::settings::load(file)?)
    }

    /// The URI of a volume for NBD clients.
    #[must_use]
    pub fn nbd_uri(&self, path: &str) -> Option<String> {
        let socket = self.nbd_socket.as_ref()?;
        Some(format!(
            "nbd+unix:///{}?socket={}",
            escaped(path),
            escaped(&socket.display().to_string())
        ))
    }

    /// The path of a volume in the FUSE mount.
    #[must_use]
    pub fn mount_path(&self, path: &str) -> Option<PathBuf> {
        Some(self.mount.as_ref()?.join(path.trim_start_matches('/')))
    }
}

/// Percent-encodes what cannot stand in a URI's path or query.
fn escaped(text: &str) -> String {
    let escape = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
            char::from(byte).to_string()
        }
        byte => format!("%{byte:02X}"),
    };
    text.bytes().map(escape).collect()
}

/// Finds the client settings of the cluster that is meant.
///
/// # Errors
/// None of the places has them; the text says how to start a cluster.
pub fn find(option: Option<&Path>) -> Result<PathBuf> {
    let variable = std::env::var_os(VARIABLE).map(PathBuf::from);
    let here = std::env::current_dir().context("the current directory cannot be found")?;
    let executable = std::env::current_exe().ok();
    find_from(option, variable.as_deref(), &here, executable.as_deref())
}

fn find_from(
    option: Option<&Path>,
    variable: Option<&Path>,
    here: &Path,
    executable: Option<&Path>,
) -> Result<PathBuf> {
    if let Some(file) = option {
        return named(file, "--cluster");
    }
    if let Some(file) = variable {
        return named(file, VARIABLE);
    }
    let above_executable = executable.and_then(|file| file.ancestors().nth(3));
    let found = here
        .ancestors()
        .chain(above_executable)
        .map(|directory| directory.join(IN_CHECKOUT))
        .find(|file| file.is_file());
    found.with_context(|| {
        format!(
            "no cluster was found: {} has no {IN_CHECKOUT}, nor has any directory above it\n\
             start one with `make up`, or name its settings: --cluster FILE or {VARIABLE}=FILE",
            here.display()
        )
    })
}

fn named(file: &Path, by: &str) -> Result<PathBuf> {
    if file.is_file() {
        return Ok(file.to_owned());
    }
    bail!(
        "{by} names {}, which is no file; `make up` writes {IN_CHECKOUT}",
        file.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(file: &Path) -> PathBuf {
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, "").unwrap();
        file.to_owned()
    }

    #[test]
    fn the_places_are_searched_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let checkout = dir.path().join("checkout");
        let executable = checkout.join("target/release/sconce");
        let deep = dir.path().join("work/a/b");
        std::fs::create_dir_all(&deep).unwrap();
        let find = |option: Option<&Path>, variable: Option<&Path>| {
            find_from(option, variable, &deep, Some(&executable))
        };
        let error = find(None, None).unwrap_err().to_string();
        assert!(
            error.contains("make up") && error.contains("--cluster"),
            "{error}"
        );
        let of_build = write(&checkout.join("run/sconce.toml"));
        assert_eq!(find(None, None).unwrap(), of_build);
        let above = write(&dir.path().join("work/run/sconce.toml"));
        assert_eq!(find(None, None).unwrap(), above);
        let variable = write(&dir.path().join("v.toml"));
        assert_eq!(find(None, Some(&variable)).unwrap(), variable);
        let option = write(&dir.path().join("o.toml"));
        assert_eq!(find(Some(&option), Some(&variable)).unwrap(), option);
        let missing = dir.path().join("none.toml");
        let error = find(Some(&missing), None).unwrap_err().to_string();
        assert!(error.contains("none.toml"), "{error}");
    }

    #[test]
    fn volumes_are_reached_by_uri_and_by_path() {
        let settings: Settings = toml::from_str(
            "run_dir = '/r'\nnbd_socket = '/r/n bd.sock'\nmount = '/r/mnt'\n\
             [registry]\nhome = 'remote'\nendpoint = 'ipc:///r/bus/registry.sock'\n",
        )
        .unwrap();
        let uri = settings.nbd_uri("/vm 1/disk.raw").unwrap();
        assert_eq!(uri, "nbd+unix:////vm%201/disk.raw?socket=/r/n%20bd.sock");
        assert_eq!(
            settings.mount_path("/vm 1/disk.raw").unwrap(),
            Path::new("/r/mnt/vm 1/disk.raw")
        );
    }
}
