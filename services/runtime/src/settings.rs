//! Settings: parsed once, from what a person typed into what the program may rely on.
//!
//! Keeps: how a settings file is read, and the types that its values have in common.
//! Order: none.
//! Crash: nothing; settings are only read.
//! Knows no service's section.

mod quantity;

use std::io;
use std::path::{Path, PathBuf};

use sconce_schemas::NodeName;
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
