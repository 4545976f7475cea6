//! The keys of encrypted pools, read where the settings say.
//!
//! Keeps: each pool's keys.
//! Order: read once, at the start.
//! Crash: nothing; keys are never written anywhere.
//! Knows no pools: a key of a pool that is not there yet is kept for it. What is said of a key never shows it.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use sconce_fragments::{Key, Keyring};

use crate::pool::Care;
use crate::settings::{KeySource, Settings};

/// Longest file of a key that is read: the digits, and space around them.
const FILE_BYTES_MAX: u64 = 256;

/// How the fragments of each pool are cared for.
#[derive(Debug, Default)]
pub(super) struct Cares {
    keys: HashMap<String, Arc<Keyring>>,
    hedge_after: Duration,
}

impl Cares {
    /// Reads the keys of the settings.
    ///
    /// # Errors
    /// A key that is not where the settings say, or is none; the text names pool, id and place.
    pub(super) fn read(settings: &Settings) -> anyhow::Result<Self> {
        let mut of_pools: HashMap<String, Vec<Key>> = HashMap::new();
        for key in &settings.keys {
            let (pool, id) = (&key.pool, key.id);
            let read = bytes_at(&key.source).and_then(|text| Ok(Key::parse(id, &text)?));
            let read = read.with_context(|| match &key.source {
                KeySource::File(path) => format!("key {id} of pool {pool}, file {path:?}"),
                KeySource::Environment(name) => {
                    format!("key {id} of pool {pool}, environment variable {name}")
                }
            })?;
            let read = if key.writes { read } else { read.read_only() };
            of_pools.entry(pool.to_string()).or_default().push(read);
        }
        let mut keys = HashMap::new();
        for (pool, of_pool) in of_pools {
            let ring = Keyring::new(of_pool).with_context(|| format!("keys of pool {pool}"))?;
            keys.insert(pool, Arc::new(ring));
        }
        Ok(Self {
            keys,
            hedge_after: settings.limits.hedge_after.duration(),
        })
    }

    /// How the fragments of this pool are cared for.
    pub(super) fn of(&self, pool: &str) -> Care {
        Care {
            keys: self.keys.get(pool).cloned().unwrap_or_default(),
            hedge_after: self.hedge_after,
        }
    }
}

fn bytes_at(source: &KeySource) -> anyhow::Result<Vec<u8>> {
    match source {
        KeySource::File(path) => bytes_of(path),
        KeySource::Environment(name) => match std::env::var(name) {
            // 32 characters would pass as 32 bytes, and be a passphrase.
            Ok(text) if text.trim().len() != 64 => {
                bail!(
                    "it has {} characters; right would be 64 hexadecimal digits",
                    text.trim().len()
                )
            }
            Ok(text) => Ok(text.trim().as_bytes().to_vec()),
            Err(std::env::VarError::NotPresent) => {
                bail!("it is not set; right would be 64 hexadecimal digits")
            }
            Err(std::env::VarError::NotUnicode(_)) => {
                bail!("it is not text; right would be 64 hexadecimal digits")
            }
        },
    }
}

fn bytes_of(path: &Path) -> anyhow::Result<Vec<u8>> {
    let file = File::open(path)?;
    let mode = file.metadata()?.mode() & 0o7777;
    if mode & 0o077 != 0 {
        bail!("its mode is {mode:04o}, so others may read it; right would be 0600");
    }
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_key_file_that_others_may_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("main-1.key");
        std::fs::write(&path, "0f".repeat(32)).unwrap();
        for (mode, is_right) in [(0o644, false), (0o640, false), (0o600, true), (0o400, true)] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            let read = bytes_at(&KeySource::File(path.clone()));
            assert_eq!(read.is_ok(), is_right, "{mode:o}");
            if let Err(error) = read {
                assert!(error.to_string().contains(&format!("{mode:04o}")), "{error}");
            }
        }
        let missing = bytes_at(&KeySource::Environment("SCONCE_NO_SUCH_KEY".to_owned()));
        assert!(missing.unwrap_err().to_string().contains("64 hexadecimal digits"));
    }
}
