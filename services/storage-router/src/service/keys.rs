//! The keys of encrypted pools, read where the settings say, and compared with what the registry knows them by.
//!
//! Keeps: each pool's keys.
//! Order: read once, at the start; compared before anything of the pool is read or written.
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
use sconce_schemas::records::{KeyPrint, PoolRecord};

use crate::pool::Care;
use crate::settings::{KeySource, Settings};

/// Longest file of a key that is read: the digits, and space around them.
const FILE_BYTES_MAX: u64 = 256;

/// How the fragments of each pool are cared for.
#[derive(Debug, Default)]
pub(super) struct Cares {
    keys: HashMap<String, Arc<Keyring>>,
    /// Where the settings say that each key is, by pool and id.
    places: HashMap<(String, u32), String>,
    hedge_after: Duration,
}

impl Cares {
    /// Reads the keys of the settings.
    ///
    /// # Errors
    /// A key that is not where the settings say, or is none; the text names pool, id and place.
    pub(super) fn read(settings: &Settings) -> anyhow::Result<Self> {
        let mut of_pools: HashMap<String, Vec<Key>> = HashMap::new();
        let mut places = HashMap::new();
        for key in &settings.keys {
            let (pool, id) = (&key.pool, key.id);
            let place = match &key.source {
                KeySource::File(path) => format!("file {path:?}"),
                KeySource::Environment(name) => format!("environment variable {name}"),
            };
            let read = bytes_at(&key.source).and_then(|text| Ok(Key::parse(id, &text)?));
            let read = read.with_context(|| format!("key {id} of pool {pool}, {place}"))?;
            places.insert((pool.to_string(), id), place);
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
            places,
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

    /// The record with what the keys here are known by; those that it has stay.
    ///
    /// # Errors
    /// The pool is encrypted, and none of its keys is here, or one that has the id of another; the text names it.
    pub(super) fn proven(&self, record: &PoolRecord) -> Result<PoolRecord, String> {
        let mut record = record.clone();
        if !record.encrypted {
            return Ok(record);
        }
        let pool = &record.name;
        let ring = self.keys.get(pool).filter(|ring| ring.keys().next().is_some());
        let Some(ring) = ring else {
            let ids = match record.keys.as_slice() {
                [] => String::new(),
                known => format!(" with {}", told(known.iter().map(|key| key.id))),
            };
            return Err(format!(
                "it is encrypted{ids}, and no key of it is here; right would be [[keys]] in the settings, with pool = \"{pool}\", \
                 id, and file or env"
            ));
        };
        let is_known = |key: &Key| record.keys.iter().any(|known| known.id == key.id());
        if !record.keys.is_empty() && !ring.keys().any(is_known) {
            // They may be another pool's.
            return Err(format!(
                "it is encrypted with {}, and the settings have {} for it; right would be [[keys]] with one of the first too",
                told(record.keys.iter().map(|key| key.id)),
                told(ring.keys().map(Key::id))
            ));
        }
        for key in ring.keys() {
            let (id, fingerprint) = (key.id(), key.fingerprint());
            match record.keys.iter().find(|known| known.id == id) {
                None => record.keys.push(KeyPrint { id, fingerprint }),
                Some(known) if known.fingerprint == fingerprint => {}
                Some(known) => {
                    let place = self
                        .places
                        .get(&(pool.clone(), id))
                        .map_or("here", String::as_str);
                    return Err(format!(
                        "key {id}, {place}, is another key than the pool's of this id: its fingerprint is {fingerprint:016x}; right \
                         would be the one with {:016x}, which the pool's other storage-routers have",
                        known.fingerprint
                    ));
                }
            }
        }
        record.keys.sort_unstable_by_key(|key| key.id);
        Ok(record)
    }

    /// Which of the pool's keys are not here, if any is: `keys 2, 3`.
    pub(super) fn lacking(&self, record: &PoolRecord) -> Option<String> {
        let ring = self.keys.get(&record.name);
        let is_here = |id: u32| ring.is_some_and(|ring| ring.keys().any(|key| key.id() == id));
        let lacking = record.keys.iter().map(|key| key.id).filter(|id| !is_here(*id));
        let lacking: Vec<u32> = lacking.collect();
        (!lacking.is_empty()).then(|| told(lacking.into_iter()))
    }
}

fn told(ids: impl Iterator<Item = u32>) -> String {
    let ids: Vec<String> = ids.map(|id| id.to_string()).collect();
    let noun = if ids.len() == 1 { "key" } else { "keys" };
    format!("{noun} {}", ids.join(", "))
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

    use sconce_schemas::records::Protection;

    use super::*;

    fn cares(keys: &[(u32, u8)]) -> Cares {
        let parsed = keys
            .iter()
            .map(|(id, byte)| Key::parse(*id, &[*byte; 32]).unwrap());
        let ring = Arc::new(Keyring::new(parsed).unwrap());
        Cares {
            keys: [("vms".to_owned(), ring)].into(),
            places: [(("vms".to_owned(), 1), "file \"/k/1\"".to_owned())].into(),
            hedge_after: Duration::ZERO,
        }
    }

    #[test]
    fn keys_that_are_not_the_pools_are_told_and_new_ones_are_noted() {
        let backends = ["a", "b"].map(str::to_owned).into_iter();
        let pool = PoolRecord::proposed("vms".to_owned(), Protection::Replicas(2), backends, None, true);
        let proven = cares(&[(2, 7), (1, 5)]).proven(&pool).unwrap();
        assert_eq!(proven.keys.iter().map(|key| key.id).collect::<Vec<_>>(), [1, 2]);
        assert!(proven.is_like(&pool));
        assert_eq!(cares(&[(1, 5)]).proven(&proven).unwrap(), proven);
        assert_eq!(cares(&[(1, 5)]).lacking(&proven).unwrap(), "key 2");
        assert_eq!(cares(&[(1, 5), (2, 7)]).lacking(&proven), None);

        let other = cares(&[(1, 6)]).proven(&proven).unwrap_err();
        let right = format!("{:016x}", proven.keys[0].fingerprint);
        assert!(
            other.contains("key 1, file \"/k/1\"") && other.contains(&right),
            "{other}"
        );
        let foreign = cares(&[(3, 9)]).proven(&proven).unwrap_err();
        assert!(
            foreign.contains("keys 1, 2") && foreign.contains("key 3"),
            "{foreign}"
        );
        let none = Cares::default().proven(&proven).unwrap_err();
        assert!(none.contains("keys 1, 2") && none.contains("[[keys]]"), "{none}");
    }

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
