//! The copy in sled: an entry a key, and a head that says what they are together.
//!
//! Keeps: the entries, with their revision, number and digest, so that damage that sled does not notice shows.
//! Order: each commit is one batch, applied whole and flushed.
//! Crash: as of a commit, or damaged; a copy that was being built is none.
//! Knows no journal.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use sconce_schemas::registry_log::{SnapshotHead, StoredCommit, StoredEntry, VERSION};
use sconce_schemas::wire::msgpack::{put_named, take_named};
use sled::{Batch, Db};

use super::files::{self, told};
use crate::OpenError;
use crate::image::Image;

/// sled's directory.
pub(super) const DIR: &str = "sled";
/// There while the copy is built: a copy beside it is not whole.
const BUILDING: &str = "sled.building";

/// Key of the head.
const HEAD: &[u8] = b"h";
/// First byte of an entry's key.
const ENTRY: u8 = b'e';
/// What sled may cache: the state machine has all entries in memory, sled is read at open only.
const CACHE_BYTES: u64 = 4 << 20;
/// sled's lock outlives its handle by the time that its threads take to end.
const LOCK_WAIT: Duration = Duration::from_secs(5);
const LOCK_RETRY: Duration = Duration::from_millis(10);

/// What the entries are together; the generation is not used.
pub(super) type Head = SnapshotHead;

/// The open copy.
#[derive(Debug)]
pub(super) struct Copy {
    db: Db,
}

/// What is there.
pub(super) enum CopyRead {
    /// None.
    Absent,
    /// A copy that is whole.
    Usable(Copy, Image),
    /// One that is not; why.
    Damaged(String),
}

impl CopyRead {
    pub(super) fn into_usable(self) -> Option<(Copy, Image)> {
        match self {
            CopyRead::Usable(copy, image) => Some((copy, image)),
            CopyRead::Absent | CopyRead::Damaged(_) => None,
        }
    }
}

/// Opens and checks the copy.
pub(super) fn open(dir: &Path) -> CopyRead {
    let path = dir.join(DIR);
    if dir.join(BUILDING).exists() || !path.exists() {
        return CopyRead::Absent;
    }
    let opened = guarded(|| open_db(&path)).and_then(|db| {
        let copy = Copy { db };
        let image = guarded(|| copy.read())?;
        Ok((copy, image))
    });
    match opened {
        Ok((copy, image)) => CopyRead::Usable(copy, image),
        Err(why) => CopyRead::Damaged(why),
    }
}

/// Builds the copy anew; there must be none.
pub(super) fn create(dir: &Path, image: &Image) -> Result<Copy, OpenError> {
    let (path, building) = (dir.join(DIR), dir.join(BUILDING));
    files::create(&building, &[])?;
    files::sync_dir(dir)?;
    let built = guarded(|| {
        let copy = Copy { db: open_db(&path)? };
        copy.advance(&Image::default(), image)?;
        Ok(copy)
    });
    let copy = built.map_err(|why| told(&path, "build sled in")(std::io::Error::other(why)))?;
    files::sync_dir(dir)?;
    fs::remove_file(&building).map_err(told(&building, "remove"))?;
    files::sync_dir(dir)?;
    Ok(copy)
}

/// Removes the copy and what is left of building one.
pub(super) fn remove(dir: &Path) -> Result<(), OpenError> {
    let path = dir.join(DIR);
    if path.exists() {
        fs::remove_dir_all(&path).map_err(told(&path, "remove"))?;
    }
    Ok(())
}

/// Whether what is in sled's directory is left of building a copy.
pub(super) fn is_building(dir: &Path) -> bool {
    dir.join(BUILDING).exists()
}

fn open_db(path: &Path) -> Result<Db, String> {
    let config = sled::Config::new()
        .path(path)
        .cache_capacity(CACHE_BYTES)
        // Each commit is flushed by hand; an idle registry then has no thread that wakes.
        .flush_every_ms(None);
    let give_up = Instant::now() + LOCK_WAIT;
    loop {
        match config.open() {
            Ok(db) => return Ok(db),
            Err(error) if is_locked(&error) && Instant::now() < give_up => std::thread::sleep(LOCK_RETRY),
            Err(error) => return Err(error.to_string()),
        }
    }
}

fn is_locked(error: &sled::Error) -> bool {
    matches!(error, sled::Error::Io(io) if io.to_string().contains("could not acquire lock"))
}

/// sled asserts what a damaged file can break: a panic of its is an error to us.
fn guarded<T>(act: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(act)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or(panic.downcast_ref::<&str>().copied());
        Err(format!("sled panicked: {}", text.unwrap_or("no message")))
    })
}

impl Copy {
    fn read(&self) -> Result<Image, String> {
        let head = self.db.get(HEAD).map_err(text)?;
        let head = head.ok_or("sled holds no head")?;
        let head: SnapshotHead = take_named(&mut &*head, "head in sled").map_err(text)?;
        if head.version != VERSION {
            return Err(format!(
                "sled holds version {}, this build reads {VERSION}",
                head.version
            ));
        }
        let mut entries = Vec::new();
        for stored in self.db.scan_prefix([ENTRY]) {
            let (key, value) = stored.map_err(text)?;
            let entry: StoredEntry = take_named(&mut &*value, "entry in sled").map_err(text)?;
            if key[1..] != *entry.key.as_bytes() {
                return Err(format!("sled holds {:?} under another key", entry.key));
            }
            entries.push(entry);
        }
        let image = Image::new(head.revision, entries);
        if image.head(head.generation) == head {
            return Ok(image);
        }
        Err(format!(
            "sled holds {} entries that are not those of its head",
            image.len()
        ))
    }

    /// Applies a commit and flushes it. `head` is that of the entries with it.
    pub(super) fn apply(&self, commit: &StoredCommit, head: &Head) -> Result<(), String> {
        let mut batch = Batch::default();
        for change in &commit.changes {
            match &change.value {
                Some(value) => put(
                    &mut batch,
                    &StoredEntry {
                        key: change.key.clone(),
                        value: value.clone(),
                        revision: commit.revision,
                        lease: change.lease,
                    },
                ),
                None => batch.remove(entry_key(&change.key)),
            }
        }
        self.write(batch, head)
    }

    /// Changes what `from` holds to what `to` holds, in one batch.
    pub(super) fn advance(&self, from: &Image, to: &Image) -> Result<(), String> {
        let mut batch = Batch::default();
        for entry in to.entries().filter(|entry| from.get(&entry.key) != Some(entry)) {
            put(&mut batch, entry);
        }
        for entry in from.entries().filter(|entry| to.get(&entry.key).is_none()) {
            batch.remove(entry_key(&entry.key));
        }
        self.write(batch, &to.head(0))
    }

    fn write(&self, mut batch: Batch, head: &Head) -> Result<(), String> {
        let mut bytes = Vec::new();
        put_named(&mut bytes, head);
        batch.insert(HEAD, bytes);
        guarded(|| {
            self.db.apply_batch(batch).map_err(text)?;
            self.db.flush().map_err(text)?;
            Ok(())
        })
    }
}

fn put(batch: &mut Batch, entry: &StoredEntry) {
    let mut bytes = Vec::new();
    put_named(&mut bytes, entry);
    batch.insert(entry_key(&entry.key), bytes);
}

fn entry_key(key: &str) -> Vec<u8> {
    let mut stored = Vec::with_capacity(key.len() + 1);
    stored.push(ENTRY);
    stored.extend_from_slice(key.as_bytes());
    stored
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}
