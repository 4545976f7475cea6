//! Setting damaged files aside: kept for whoever wants to know, out of the way of what replaces them.
//!
//! Keeps: the newest few sets of damaged files.
//! Order: files are moved before anything is built in their place.
//! Crash: what was moved is moved; the next open finds it missing and goes on.
//! Knows no format.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::{copy, files, files::told, log};
use crate::OpenError;

const PREFIX: &str = "registry.damaged-";
/// Sets that are kept: a disk that fails again and again must not fill itself with evidence.
const SETS_MAX: usize = 4;

/// Where this open sets files aside.
pub(super) struct Aside {
    dir: PathBuf,
    target: PathBuf,
}

impl Aside {
    pub(super) fn new(dir: &Path) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            dir: dir.to_owned(),
            target: dir.join(format!("{PREFIX}{:010}", now.as_secs())),
        }
    }

    /// Moves sled's directory away, if it is there. What is left of building a copy is no evidence: it goes.
    pub(super) fn take_copy(&self) -> Result<(), OpenError> {
        if copy::is_building(&self.dir) {
            return copy::remove(&self.dir);
        }
        self.take(|name| name == copy::DIR)
    }

    /// Moves the snapshot and the journals away.
    pub(super) fn take_log(&self) -> Result<(), OpenError> {
        self.take(log::is_log_file)
    }

    fn take(&self, wanted: impl Fn(&str) -> bool) -> Result<(), OpenError> {
        let names = files::names(&self.dir)?;
        for name in names.iter().filter(|name| wanted(name)) {
            files::create_dir(&self.target)?;
            let mut to = self.target.join(name);
            // Twice within a second: both are evidence.
            for again in 2.. {
                if !to.exists() {
                    break;
                }
                to = self.target.join(format!("{name}-{again}"));
            }
            files::rename(&self.dir.join(name), &to, &self.dir)?;
            tracing::warn!(set_aside = %to.display(), "damaged registry files kept");
        }
        self.drop_oldest()
    }

    fn drop_oldest(&self) -> Result<(), OpenError> {
        let mut sets: Vec<_> = files::names(&self.dir)?;
        sets.retain(|name| name.starts_with(PREFIX));
        sets.sort();
        for name in sets.iter().rev().skip(SETS_MAX) {
            let path = self.dir.join(name);
            fs::remove_dir_all(&path).map_err(told(&path, "remove"))?;
        }
        Ok(())
    }
}
