//! A back end's directory: whether it is there, whether it is the right one, and where its files lie.
//!
//! Keeps: the identity that the directory must have, and whether it had it when it was last looked at.
//! Order: identity before temporary folder before objects.
//! Crash: what an earlier start left in its temporary folder is removed when the next one attaches.
//! Knows no objects. A directory that lost its identity (unmounted) is unavailable, never begun anew.

use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use rustix::io::Errno;
use sconce_schemas::BackendId;

use super::DirectorySettings;
use super::durable_dirs::DurableDirs;
use crate::backend::BackendError;
use crate::identity::{IDENTITY_FILE, Identity};

/// Folder of temporary files, one folder in it for each service.
const TEMP: &str = ".tmp";
/// Age at which another service's temporary file belongs to nobody: no put takes that long.
const FOREIGN_TEMP_AGE: Duration = Duration::from_hours(24);
/// What an empty directory may hold: our temporary folder, and what mkfs makes.
const NOTHING: [&str; 2] = [TEMP, "lost+found"];

#[derive(Debug)]
pub(super) struct Root {
    name: String,
    path: PathBuf,
    temp: PathBuf,
    temp_seq: AtomicU64,
    is_read_only: bool,
    state: Mutex<State>,
    pub(super) dirs: DurableDirs,
}

#[derive(Debug)]
struct State {
    expected: Option<BackendId>,
    is_ready: bool,
    is_swept: bool,
}

impl Root {
    pub(super) fn new(settings: DirectorySettings) -> Self {
        Self {
            temp: settings.root.join(TEMP).join(settings.node.as_str()),
            name: settings.name,
            path: settings.root,
            temp_seq: AtomicU64::new(0),
            is_read_only: false,
            state: Mutex::new(State {
                expected: settings.expected,
                is_ready: false,
                is_swept: false,
            }),
            dirs: DurableDirs::default(),
        }
    }

    /// A directory that is only read: whatever its identity is, and nothing is made in it.
    pub(super) fn read_only(name: String, path: PathBuf) -> Self {
        Self {
            name,
            temp: PathBuf::new(),
            path,
            temp_seq: AtomicU64::new(0),
            is_read_only: true,
            state: Mutex::new(State {
                expected: None,
                is_ready: false,
                is_swept: false,
            }),
            dirs: DurableDirs::default(),
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// A path for a new temporary file.
    pub(super) fn new_temp(&self) -> PathBuf {
        let seq = self.temp_seq.fetch_add(1, Ordering::Relaxed);
        self.temp.join(format!("{}-{seq}", std::process::id()))
    }

    /// The directory, if it is the right one as far as is known; looks at it if it was not there last time.
    pub(super) fn ready(&self) -> Result<&Path, BackendError> {
        let mut state = self.state();
        if !state.is_ready {
            self.find(&mut state)?;
        }
        Ok(&self.path)
    }

    /// The same without ever waiting: `None` unless the directory was there last time.
    pub(super) fn ready_now(&self) -> Option<&Path> {
        let state = self.state.try_lock().ok()?;
        state.is_ready.then_some(self.path.as_path())
    }

    /// Looks whether the directory is still the right one: something that should be there is not.
    pub(super) fn look_again(&self) -> Result<(), BackendError> {
        let mut state = self.state();
        state.is_ready = false;
        self.find(&mut state)
    }

    pub(super) fn expect(&self, id: BackendId) {
        let mut state = self.state();
        state.expected = Some(id);
        state.is_ready = false;
    }

    /// See [`super::DirectoryBackend::attach`].
    pub(super) fn attach(&self, fresh: BackendId) -> Result<BackendId, BackendError> {
        let mut state = self.state();
        if state.expected.is_none() {
            state.expected = Some(self.first_identity(fresh)?);
        }
        self.find(&mut state)?;
        state.expected.ok_or_else(|| self.never_attached())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each change of the state is one assignment: nothing is half done when a job panics.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The identity of a directory that nobody has registered: its own, or a fresh one where it holds nothing.
    fn first_identity(&self, fresh: BackendId) -> Result<BackendId, BackendError> {
        let failed = failed("set up", &self.path);
        if let Some(found) = Identity::read(&self.path).map_err(&failed)? {
            return Ok(found.id);
        }
        make_durable(&self.path).map_err(&failed)?;
        if let Some(foreign) = foreign_entry(&self.path).map_err(&failed)? {
            // Another service may have made it a back end since it was looked at.
            if let Some(found) = Identity::read(&self.path).map_err(&failed)? {
                return Ok(found.id);
            }
            return Err(BackendError::Denied {
                why: format!(
                    "{} holds {foreign:?} but no {IDENTITY_FILE} file, so it is not a back end's; \
                     right would be an empty directory",
                    self.path.display()
                ),
            });
        }
        self.make_temp().map_err(&failed)?;
        let identity = Identity {
            name: self.name.clone(),
            id: fresh,
        };
        identity
            .write_new(&self.path, &self.new_temp())
            .map_err(&failed)?;
        // Another service may have been first.
        let found = Identity::read(&self.path).map_err(&failed)?;
        found.map(|found| found.id).ok_or_else(|| self.lost())
    }

    fn find(&self, state: &mut State) -> Result<(), BackendError> {
        if self.is_read_only {
            // A directory without the file is a mount point without its disk.
            fs::symlink_metadata(self.path.join(IDENTITY_FILE)).map_err(|_| self.lost())?;
            state.is_ready = true;
            return Ok(());
        }
        let expected = state.expected.ok_or_else(|| self.never_attached())?;
        let found = Identity::read(&self.path).map_err(failed("identify", &self.path))?;
        let found = found.ok_or_else(|| self.lost())?;
        if found.name != self.name {
            return Err(BackendError::Denied {
                why: format!(
                    "{} is back end {:?}; right would be the directory of {:?}",
                    self.path.display(),
                    found.name,
                    self.name
                ),
            });
        }
        if found.id != expected {
            return Err(BackendError::Unavailable {
                why: format!(
                    "{} has identity {}; the registry knows {:?} as {expected} (another disk mounted?)",
                    self.path.display(),
                    found.id,
                    self.name
                ),
            });
        }
        self.prepare_temp(state).map_err(failed("prepare", &self.temp))?;
        state.is_ready = true;
        Ok(())
    }

    /// Makes the temporary folder. Only the first time in a process it is swept too: later its files may be in use.
    fn prepare_temp(&self, state: &mut State) -> io::Result<()> {
        self.make_temp()?;
        if !state.is_swept {
            sweep(&self.path.join(TEMP), &self.temp)?;
            state.is_swept = true;
        }
        Ok(())
    }

    fn make_temp(&self) -> io::Result<()> {
        make_dir(&self.path.join(TEMP))?;
        make_dir(&self.temp)
    }

    fn lost(&self) -> BackendError {
        BackendError::Unavailable {
            why: format!(
                "{} has no {IDENTITY_FILE} file any longer (not mounted?)",
                self.path.display()
            ),
        }
    }

    fn never_attached(&self) -> BackendError {
        BackendError::Unavailable {
            why: format!("{} was never attached", self.path.display()),
        }
    }
}

/// What the failure of an operation on `path` means to a caller.
pub(super) fn failed(doing: &'static str, path: &Path) -> impl Fn(io::Error) -> BackendError {
    move |error| {
        let why = format!("cannot {doing} {}: {error}", path.display());
        match error.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::NOSPC | Errno::DQUOT) => BackendError::Full,
            Some(Errno::ACCESS | Errno::PERM | Errno::ROFS) => BackendError::Denied { why },
            _ => BackendError::Unavailable { why },
        }
    }
}

/// Removes what earlier starts left: all files in `own`, and those of other services that are a day old.
fn sweep(temp: &Path, own: &Path) -> io::Result<()> {
    for folder in fs::read_dir(temp)? {
        let folder = folder?.path();
        let files = match fs::read_dir(&folder) {
            Err(error) if error.kind() == ErrorKind::NotADirectory => continue,
            files => files?,
        };
        for file in files {
            let file = file?;
            let is_old = |file: fs::Metadata| is_older(&file, FOREIGN_TEMP_AGE);
            // Of another service's file that goes at this moment there is no metadata: it is in use.
            if (folder == own || file.metadata().is_ok_and(is_old)) && remove_if_there(&file.path())? {
                tracing::info!(file = %file.path().display(), "removed the temporary file of an earlier start");
            }
        }
    }
    Ok(())
}

fn is_older(file: &fs::Metadata, age: Duration) -> bool {
    let modified = file.modified().unwrap_or(SystemTime::UNIX_EPOCH);
    SystemTime::now()
        .duration_since(modified)
        .is_ok_and(|since| since > age)
}

/// Removes a file; that somebody else has done so is no error.
pub(super) fn remove_if_there(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        done => done.map(|()| true),
    }
}

/// Makes one directory, for this service's user only; that it is there already is no error. Never makes those
/// above it: below a root that has gone nothing may be made.
pub(super) fn make_dir(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        done => done,
    }
}

/// Makes a back end's directory at its very first start, with those above it, durably.
fn make_durable(root: &Path) -> io::Result<()> {
    let root = std::path::absolute(root)?;
    let missing: Vec<&Path> = root.ancestors().take_while(|dir| !dir.exists()).collect();
    for dir in missing.into_iter().rev() {
        make_dir(dir)?;
        dir.parent().map_or(Ok(()), sync_dir)?;
    }
    Ok(())
}

/// Syncs a directory: the names in it are durable afterwards.
pub(super) fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn foreign_entry(root: &Path) -> io::Result<Option<std::ffi::OsString>> {
    for entry in fs::read_dir(root)? {
        let name = entry?.file_name();
        if !NOTHING.iter().any(|allowed| name == *allowed) {
            return Ok(Some(name));
        }
    }
    Ok(None)
}
