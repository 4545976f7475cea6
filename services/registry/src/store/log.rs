//! The registry's own copy: a snapshot, and a journal of the commits since.
//!
//! Keeps: both files of the newest generation.
//! Order: a new generation's journal is there before its snapshot takes the old one's name; then the old journal
//! goes.
//! Crash: at any moment the snapshot has its journal beside it; a tail that was cut off is dropped at open.
//! Knows no sled.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use sconce_schemas::DecodeError;
use sconce_schemas::registry_log::{
    FileKind, JournalHead, SnapshotHead, StoredCommit, StoredEntry, VERSION, find_commit, put_frame,
    take_frame, take_head,
};
use sconce_schemas::wire::registry::Revision;

use super::files::{self, told};
use crate::OpenError;
use crate::image::Image;

const SNAPSHOT: &str = "snapshot";
const SNAPSHOT_NEW: &str = "snapshot.new";
const JOURNAL: &str = "journal.";

/// A journal below this size is not compacted: reading it at open takes milliseconds.
const LARGE_BYTES_MIN: u64 = 1 << 20;
/// How much larger than its snapshot a journal becomes: compaction then writes at most half as much again.
const LARGE_RATIO: u64 = 2;

/// The open journal.
#[derive(Debug)]
pub(super) struct Log {
    dir: PathBuf,
    generation: u64,
    journal: File,
    /// Where the next commit goes: everything before it is whole and synced.
    len: u64,
    snapshot_len: u64,
    newest_tried: u64,
    broken: bool,
}

/// What the files hold.
#[derive(Debug)]
pub(super) enum LogRead {
    /// No commit was ever stored.
    Absent,
    /// Everything up to the end of the journal, or to where a crash cut it off.
    Usable(Logged),
    /// Not everything.
    Damaged {
        /// The file's generation, as far as it is known.
        generation: u64,
        /// The newest commit that is known to have been stored.
        newest: Revision,
        /// What is wrong.
        why: String,
    },
}

/// A usable log.
#[derive(Debug)]
pub(super) struct Logged {
    pub(super) image: Image,
    pub(super) generation: u64,
    /// The entries' digest at the snapshot's revision and after each commit.
    pub(super) digests: BTreeMap<Revision, u64>,
    /// The journal's length without what a crash left of a last commit.
    len: u64,
    snapshot_len: u64,
}

impl LogRead {
    /// The highest generation that is known; 0 where there is none.
    pub(super) fn generation(&self) -> u64 {
        match self {
            LogRead::Absent => 0,
            LogRead::Usable(logged) => logged.generation,
            LogRead::Damaged { generation, .. } => *generation,
        }
    }

    pub(super) fn into_usable(self) -> Option<Logged> {
        match self {
            LogRead::Usable(logged) => Some(logged),
            LogRead::Absent | LogRead::Damaged { .. } => None,
        }
    }
}

/// The names of the log's files in `names`.
pub(super) fn is_log_file(name: &str) -> bool {
    name == SNAPSHOT || name == SNAPSHOT_NEW || name.starts_with(JOURNAL)
}

fn journal_name(generation: u64) -> String {
    format!("{JOURNAL}{generation}")
}

/// Reads both files.
///
/// # Errors
/// A file that is there cannot be read: the permissions are wrong, or the disk is.
pub(super) fn read(dir: &Path) -> Result<LogRead, OpenError> {
    let Some(snapshot) = files::read(&dir.join(SNAPSHOT))? else {
        return read_without_snapshot(dir);
    };
    let (head, image) = match decode_snapshot(&snapshot) {
        Ok(decoded) => decoded,
        Err(error) => return damaged_snapshot(dir, &error.to_string()),
    };
    let damaged = |newest, why: String| {
        Ok(LogRead::Damaged {
            generation: head.generation,
            newest,
            why,
        })
    };
    let name = journal_name(head.generation);
    let Some(journal) = files::read(&dir.join(&name))? else {
        return damaged(image.revision(), format!("{name} is gone"));
    };
    let revision = image.revision();
    let mut logged = Logged {
        digests: BTreeMap::from([(revision, image.digest())]),
        image,
        generation: head.generation,
        len: 0,
        snapshot_len: snapshot.len() as u64,
    };
    match logged.replay(&journal) {
        Ok(()) => Ok(LogRead::Usable(logged)),
        Err(why) => {
            let newest = newest_commit(&journal, head.generation).max(logged.image.revision());
            damaged(newest, format!("{name}: {why}"))
        }
    }
}

/// A snapshot is written at the first start, before any commit; a journal beside none has commits only if the
/// snapshot was lost.
fn read_without_snapshot(dir: &Path) -> Result<LogRead, OpenError> {
    match damaged_snapshot(dir, "the snapshot is gone")? {
        LogRead::Damaged {
            newest: Revision::ABSENT,
            ..
        } => Ok(LogRead::Absent),
        damaged => Ok(damaged),
    }
}

fn damaged_snapshot(dir: &Path, why: &str) -> Result<LogRead, OpenError> {
    let (mut generation, mut newest) = (0, Revision::ABSENT);
    for name in files::names(dir)? {
        let Some(number) = name.strip_prefix(JOURNAL).and_then(|number| number.parse().ok()) else {
            continue;
        };
        let journal = files::read(&dir.join(&name))?.unwrap_or_default();
        generation = generation.max(number);
        newest = newest.max(newest_commit(&journal, number));
    }
    Ok(LogRead::Damaged {
        generation,
        newest,
        why: why.to_owned(),
    })
}

/// The highest revision of a whole commit anywhere in a journal.
fn newest_commit(journal: &[u8], generation: u64) -> Revision {
    let mut newest = Revision::ABSENT;
    let mut rest = journal;
    while !rest.is_empty() {
        if let Ok(commit) = take_frame::<StoredCommit>(&mut rest, FileKind::Journal, generation) {
            newest = newest.max(commit.revision);
        } else {
            match find_commit(rest, generation) {
                Some((at, _)) => rest = &rest[at..],
                None => break,
            }
        }
    }
    newest
}

fn decode_snapshot(mut file: &[u8]) -> Result<(SnapshotHead, Image), DecodeError> {
    let head: SnapshotHead = take_head(&mut file)?;
    let mut entries = Vec::new();
    while !file.is_empty() {
        let entry: StoredEntry = take_frame(&mut file, FileKind::Snapshot, head.generation)?;
        entries.push(entry);
    }
    let image = Image::new(head.revision, entries);
    if (image.len(), image.digest()) == (usize::try_from(head.entries).unwrap_or(usize::MAX), head.digest) {
        return Ok((head, image));
    }
    Err(DecodeError::Value {
        what: "registry snapshot",
        found: format!("{} entries", image.len()),
        expected: "the entries that its head announces",
    })
}

fn encode_snapshot(generation: u64, image: &Image) -> Result<Vec<u8>, DecodeError> {
    let mut file = Vec::new();
    put_frame(&mut file, FileKind::Snapshot, generation, &image.head(generation))?;
    for entry in image.entries() {
        put_frame(&mut file, FileKind::Snapshot, generation, entry)?;
    }
    Ok(file)
}

#[cfg(test)]
impl Logged {
    /// What a test says was read.
    pub(super) fn of(image: Image, digests: BTreeMap<Revision, u64>) -> Self {
        Self {
            image,
            generation: 1,
            digests,
            len: 0,
            snapshot_len: 0,
        }
    }
}

impl Logged {
    /// Applies a journal. A last commit that is not whole, with nothing whole behind it, is what a crash leaves.
    fn replay(&mut self, journal: &[u8]) -> Result<(), String> {
        let mut rest = journal;
        let head: JournalHead = take_head(&mut rest).map_err(|error| error.to_string())?;
        if head.generation != self.generation || head.base != self.image.revision() {
            return Err(format!(
                "it starts at revision {}, its snapshot ends at another",
                head.base
            ));
        }
        while !rest.is_empty() {
            let error = match take_frame::<StoredCommit>(&mut rest, FileKind::Journal, self.generation) {
                Ok(commit) if commit.revision.0 == self.image.revision().0 + 1 => {
                    self.image.apply(&commit);
                    self.digests.insert(commit.revision, self.image.digest());
                    continue;
                }
                Ok(commit) => {
                    return Err(format!(
                        "revision {} follows {}",
                        commit.revision,
                        self.image.revision()
                    ));
                }
                Err(error) => error,
            };
            if find_commit(rest, self.generation).is_some() {
                return Err(format!("after revision {}: {error}", self.image.revision()));
            }
            tracing::info!(
                bytes = rest.len(),
                "the journal's last commit was cut off and not acknowledged: dropped"
            );
            break;
        }
        self.len = (journal.len() - rest.len()) as u64;
        Ok(())
    }
}

impl Log {
    /// Goes on with what was read.
    pub(super) fn resume(dir: &Path, logged: &Logged) -> Result<Log, OpenError> {
        let path = dir.join(journal_name(logged.generation));
        let journal = File::options()
            .write(true)
            .open(&path)
            .map_err(told(&path, "open"))?;
        journal.set_len(logged.len).map_err(told(&path, "truncate"))?;
        journal.sync_all().map_err(told(&path, "sync"))?;
        let log = Log {
            dir: dir.to_owned(),
            generation: logged.generation,
            journal,
            len: logged.len,
            snapshot_len: logged.snapshot_len,
            newest_tried: logged.generation,
            broken: false,
        };
        log.remove_others();
        Ok(log)
    }

    /// A new generation that starts with `image`.
    pub(super) fn create(dir: &Path, generation: u64, image: &Image) -> Result<Log, OpenError> {
        let refused = |error: DecodeError| told(dir, "encode the snapshot in")(io::Error::other(error));
        let snapshot = encode_snapshot(generation, image).map_err(refused)?;
        let head = JournalHead {
            version: VERSION,
            generation,
            base: image.revision(),
        };
        let mut journal = Vec::new();
        put_frame(&mut journal, FileKind::Journal, generation, &head).map_err(refused)?;
        let file = files::create(&dir.join(journal_name(generation)), &journal)?;
        files::create(&dir.join(SNAPSHOT_NEW), &snapshot)?;
        files::sync_dir(dir)?;
        files::rename(&dir.join(SNAPSHOT_NEW), &dir.join(SNAPSHOT), dir)?;
        let log = Log {
            dir: dir.to_owned(),
            generation,
            journal: file,
            len: journal.len() as u64,
            snapshot_len: snapshot.len() as u64,
            newest_tried: generation,
            broken: false,
        };
        log.remove_others();
        Ok(log)
    }

    /// Goes over to the next generation, which holds `image` and no commits. After an error the log is broken: which
    /// generation a restart would find is not known, so nothing is appended to the old one any more.
    pub(super) fn rewrite(&mut self, image: &Image) -> Result<(), OpenError> {
        self.broken = true;
        // A number is used once: what a failed try left behind is never written over.
        self.newest_tried += 1;
        *self = Log::create(&self.dir, self.newest_tried, image)?;
        Ok(())
    }

    /// Removes what other generations left. What cannot be removed is in nobody's way: its frames do not validate.
    fn remove_others(&self) {
        let keep = [SNAPSHOT.to_owned(), journal_name(self.generation)];
        for name in files::names(&self.dir).unwrap_or_default() {
            if is_log_file(&name) && !keep.contains(&name) {
                let path = self.dir.join(name);
                if let Err(error) = std::fs::remove_file(&path) {
                    tracing::warn!(path = %path.display(), %error, "old registry file not removed");
                }
            }
        }
    }

    /// Appends a commit and syncs it. After an error the journal is broken: what it ends with is not known.
    pub(super) fn append(&mut self, commit: &StoredCommit) -> Result<(), OpenError> {
        let path = self.dir.join(journal_name(self.generation));
        let mut frame = Vec::new();
        put_frame(&mut frame, FileKind::Journal, self.generation, commit)
            .map_err(|error| told(&path, "encode a commit for")(io::Error::other(error)))?;
        let written = self.journal.write_all_at(&frame, self.len);
        if let Err(error) = written.and_then(|()| self.journal.sync_data()) {
            self.broken = true;
            return Err(told(&path, "append to")(error));
        }
        self.len += frame.len() as u64;
        Ok(())
    }

    /// Makes the next append fail, as a full disk does.
    #[cfg(test)]
    pub(super) fn break_journal(&mut self) {
        let path = self.dir.join(journal_name(self.generation));
        if let Ok(read_only) = File::open(path) {
            self.journal = read_only;
        }
    }

    /// Whether an append or a change of generation failed.
    pub(super) fn is_broken(&self) -> bool {
        self.broken
    }

    /// Whether a new snapshot is due.
    pub(super) fn is_large(&self) -> bool {
        self.len > LARGE_BYTES_MIN.max(self.snapshot_len * LARGE_RATIO)
    }
}
