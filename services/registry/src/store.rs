//! The embedded registry's store: a snapshot and a journal of our own, and sled beside them.
//!
//! Keeps: every commit twice. sled calls itself beta and has open reports of corruption after an abrupt stop, so
//! it is never the only copy, and neither is what we wrote.
//! Order: a commit is in the journal and synced, then visible, then in sled and flushed, then answered.
//! Crash: at the next open the two are compared; what is damaged or lacks something is set aside, told at WARN
//! and rebuilt from the other, without an operator.
//! Knows no leases' ends and no watches.
//!
//! ```text
//! <dir>/lock                              held by the one process that hosts this registry
//! <dir>/snapshot, <dir>/journal.<n>       schemas::registry_log
//! <dir>/sled/                             sled 0.34
//! <dir>/registry.damaged-<unix seconds>/  what was set aside, the newest few
//! ```

mod aside;
mod copy;
mod files;
mod log;
mod verdict;

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sconce_runtime::crash::{self, Point};
use sconce_schemas::registry_log::StoredCommit;

use crate::OpenError;
use crate::image::Image;
use aside::Aside;
use copy::{Copy, CopyRead};
use log::{Log, LogRead};
use verdict::{Verdict, judge};

/// How long a process that is just ending may hold the lock.
const LOCK_WAIT: Duration = Duration::from_secs(2);
const LOCK_RETRY: Duration = Duration::from_millis(10);

/// The open store of a registry directory.
pub(crate) struct Store {
    dir: PathBuf,
    log: Log,
    /// `None` after sled failed: its copy is set aside and rebuilt.
    copy: Option<Copy>,
    /// Held as long as the store is open.
    _lock: File,
}

/// Why a commit is not in the store.
#[derive(Debug)]
pub(crate) enum StoreError {
    /// Nothing was changed.
    Unchanged(String),
    /// The journal failed while it was written: the commit may come back after a crash.
    Unknown(String),
}

impl Store {
    /// Opens the directory, made if it is not there, and gives what it holds.
    pub(crate) fn open(dir: &Path) -> Result<(Store, Image), OpenError> {
        files::create_dir(dir)?;
        let lock = lock(dir)?;
        let log_read = log::read(dir)?;
        let copy_read = copy::open(dir);
        let copied = match &copy_read {
            CopyRead::Absent => Ok(None),
            CopyRead::Usable(_, image) => Ok(Some(image)),
            CopyRead::Damaged(why) => Err(why.as_str()),
        };
        let verdict = judge(&log_read, copied).map_err(|detail| OpenError::BothDamaged {
            dir: dir.to_owned(),
            detail,
        })?;
        let opening = Opening {
            dir,
            aside: Aside::new(dir),
        };
        let (log, copy, image) = opening.settle(verdict, log_read, copy_read)?;
        let store = Store {
            dir: dir.to_owned(),
            log,
            copy,
            _lock: lock,
        };
        Ok((store, image))
    }

    /// Makes a commit durable. `before` gives the entries as they are before it.
    pub(crate) fn append(
        &mut self,
        commit: &StoredCommit,
        before: impl FnOnce() -> Image,
    ) -> Result<(), StoreError> {
        if self.log.is_broken() {
            // A journal that failed once is not written again: what it holds at its end is not known.
            let rewritten = self.log.rewrite(&before());
            rewritten.map_err(|error| StoreError::Unchanged(error.to_string()))?;
            tracing::info!(dir = %self.dir.display(), "registry journal works again");
        }
        let appended = self.log.append(commit);
        appended.map_err(|error| StoreError::Unknown(error.to_string()))?;
        crash::hit(Point::AfterJournal);
        Ok(())
    }

    /// Brings sled up to a commit that is durable, and the journal back to a small size; `after` gives the
    /// entries with the commit. What fails here is told and made good: the commit stands.
    pub(crate) fn follow(&mut self, commit: &StoredCommit, after: impl Fn() -> Image, head: &copy::Head) {
        if let Some(copy) = &self.copy
            && let Err(why) = copy.apply(commit, head)
        {
            tracing::warn!(dir = %self.dir.display(), why, "sled failed: setting it aside and rebuilding it");
            self.copy = None;
            self.rebuild_copy(&after());
        }
        crash::hit(Point::AfterApply);
        if self.log.is_large() {
            let image = after();
            if let Err(error) = self.log.rewrite(&image) {
                tracing::warn!(%error, "registry journal not compacted: tried again before the next commit");
            }
            if self.copy.is_none() {
                self.rebuild_copy(&image);
            }
        }
    }

    fn rebuild_copy(&mut self, image: &Image) {
        let opening = Opening {
            dir: &self.dir,
            aside: Aside::new(&self.dir),
        };
        match opening.rebuild(image) {
            Ok(copy) => self.copy = Some(copy),
            Err(error) => {
                tracing::warn!(%error, "sled not rebuilt: tried again when the journal is compacted");
            }
        }
    }
}

/// What is done with the two copies at open.
struct Opening<'a> {
    dir: &'a Path,
    aside: Aside,
}

impl Opening<'_> {
    fn settle(
        &self,
        verdict: Verdict,
        log_read: LogRead,
        copy_read: CopyRead,
    ) -> Result<(Log, Option<Copy>, Image), OpenError> {
        let dir = self.dir.display();
        let generation = log_read.generation();
        let (logged, copied) = (log_read.into_usable(), copy_read.into_usable());
        match (verdict, logged, copied) {
            (Verdict::Agree, Some(logged), Some((copy, _))) => {
                let log = Log::resume(self.dir, &logged)?;
                Ok((log, Some(copy), logged.image))
            }
            (Verdict::CopyBehind { commits }, Some(logged), Some((copy, copied))) => {
                tracing::info!(%dir, commits, "sled lacks what was in the journal at a crash: brought up to date");
                let log = Log::resume(self.dir, &logged)?;
                let copy = match copy.advance(&copied, &logged.image) {
                    Ok(()) => Some(copy),
                    Err(why) => {
                        tracing::warn!(%dir, why, "sled failed: setting it aside and rebuilding it");
                        drop(copy);
                        Some(self.rebuild(&logged.image)?)
                    }
                };
                Ok((log, copy, logged.image))
            }
            (Verdict::RebuildCopy { why }, Some(logged), copied) => {
                drop(copied);
                tracing::warn!(%dir, why, "rebuilding sled from the registry's snapshot and journal");
                let log = Log::resume(self.dir, &logged)?;
                let copy = self.rebuild(&logged.image)?;
                Ok((log, Some(copy), logged.image))
            }
            (Verdict::RewriteLog { why }, _, Some((copy, image))) => {
                tracing::warn!(%dir, why, "rebuilding the registry's snapshot and journal from sled");
                self.aside.take_log()?;
                let log = Log::create(self.dir, generation + 1, &image)?;
                Ok((log, Some(copy), image))
            }
            (_, _, copied) => {
                // Fresh. A sled that is there and empty is a first start that was cut off.
                drop(copied);
                let image = Image::default();
                let log = Log::create(self.dir, generation + 1, &image)?;
                copy::remove(self.dir)?;
                let copy = self.rebuild(&image)?;
                Ok((log, Some(copy), image))
            }
        }
    }

    fn rebuild(&self, image: &Image) -> Result<Copy, OpenError> {
        self.aside.take_copy()?;
        copy::create(self.dir, image)
    }
}

fn lock(dir: &Path) -> Result<File, OpenError> {
    let path = dir.join("lock");
    let opened = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path);
    let file = opened.map_err(files::told(&path, "open"))?;
    let give_up = Instant::now() + LOCK_WAIT;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if Instant::now() < give_up => std::thread::sleep(LOCK_RETRY),
            Err(TryLockError::WouldBlock) => return Err(OpenError::InUse { dir: dir.to_owned() }),
            Err(TryLockError::Error(error)) => return Err(files::told(&path, "lock")(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use sconce_schemas::registry_log::StoredChange;
    use sconce_schemas::wire::registry::Revision;

    use super::*;

    fn commit(revision: u64) -> StoredCommit {
        let change = StoredChange {
            key: format!("k{revision}"),
            value: Some(vec![1; 10]),
            lease: None,
        };
        StoredCommit {
            revision: Revision(revision),
            changes: vec![change],
        }
    }

    /// What the embedded home does with a commit.
    fn store(store: &mut Store, image: &mut Image, revision: u64) -> Result<(), StoreError> {
        let commit = commit(revision);
        store.append(&commit, || image.clone())?;
        image.apply(&commit);
        store.follow(&commit, || image.clone(), &image.head(0));
        Ok(())
    }

    #[test]
    fn a_journal_that_failed_is_written_anew_before_the_next_commit() {
        let dir = tempfile::tempdir().unwrap();
        let (mut open, mut image) = Store::open(dir.path()).unwrap();
        store(&mut open, &mut image, 1).unwrap();
        open.log.break_journal();
        let failed = store(&mut open, &mut image, 2);
        assert!(matches!(failed, Err(StoreError::Unknown(text)) if text.contains("journal.1")));
        std::fs::create_dir(dir.path().join("journal.2")).unwrap();
        let refused = store(&mut open, &mut image, 2);
        assert!(matches!(refused, Err(StoreError::Unchanged(text)) if text.contains("journal.2")));
        store(&mut open, &mut image, 2).unwrap();
        store(&mut open, &mut image, 3).unwrap();
        drop(open);
        let (_open, found) = Store::open(dir.path()).unwrap();
        assert_eq!(found, image);
    }

    #[test]
    fn a_sled_that_fails_while_it_is_used_is_rebuilt() {
        let dir = tempfile::tempdir().unwrap();
        let (mut open, mut image) = Store::open(dir.path()).unwrap();
        store(&mut open, &mut image, 1).unwrap();
        open.copy = None;
        store(&mut open, &mut image, 2).unwrap();
        open.rebuild_copy(&image);
        assert!(open.copy.is_some());
        store(&mut open, &mut image, 3).unwrap();
        drop(open);
        for name in files::names(dir.path())
            .unwrap()
            .iter()
            .filter(|name| log::is_log_file(name))
        {
            std::fs::remove_file(dir.path().join(name)).unwrap();
        }
        let (_open, found) = Store::open(dir.path()).unwrap();
        assert_eq!(found, image, "sled alone has everything");
    }
}
