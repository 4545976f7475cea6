//! The device's own thread: it keeps a few files free, so that a volume that opens a SCO never waits for the file
//! system.
//!
//! Keeps: nothing beside the pool's state.
//! Order: room comes from the budget first, then from free files of other lengths, then from the oldest caches, and
//! from nothing else: what no volume has asked for since the start may be the only copy, so writes wait instead.
//! Crash: a new file is there after a loss of power, name and all, before it holds a SCO; one that was being made has a wrong length or no header: the next start removes or frees it. One that was
//! given back and not erased is found again, and its volume gives it back again.
//! Knows no volumes but as tenants.

use std::fs::{self, OpenOptions};
use std::io;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use sconce_runtime::crash::{Point, hit};
use tokio::time::{Instant, timeout_at};

use super::file::BufferFile;
use super::pool::{Eviction, GivenBack, Shared, State, Tenant};

/// Files of a length in use that are kept free: one to be opened now, one while the next is being made.
const SPARES: usize = 2;
/// How long the disk is left alone after it had no space.
const NO_SPACE_PAUSE: Duration = Duration::from_secs(5);

/// What is to be done next.
enum Chore {
    Wake(Arc<dyn Tenant>),
    Erase(GivenBack),
    Create { number: u64, length: u64 },
    Remove(Arc<BufferFile>),
    Evict(Eviction),
    Press(Vec<Arc<dyn Tenant>>),
    Wait(Option<Instant>),
    End,
}

/// Runs until the device is dropped.
pub(super) fn run(shared: &Shared) {
    loop {
        match next(shared) {
            Chore::End => return,
            chore => chore.carry_out(shared),
        }
    }
}

/// The same as a task, where the device's thread is simulated.
pub(super) async fn run_here(shared: Arc<Shared>) {
    loop {
        // Under the lock no longer than the choice takes.
        let chore = choose(&mut shared.state(), shared.size, Instant::now());
        match chore {
            Chore::End => return,
            Chore::Wait(None) => shared.work_here.notified().await,
            // Over or rung: it is looked again.
            Chore::Wait(Some(until)) => drop(timeout_at(until, shared.work_here.notified()).await),
            chore => {
                let shared = Arc::clone(&shared);
                // One that panicked has said so.
                let _ = sconce_runtime::blocking(move || chore.carry_out(&shared)).await;
            }
        }
    }
}

impl Chore {
    fn carry_out(self, shared: &Shared) {
        match self {
            Chore::Wake(tenant) => tenant.file_ready(),
            Chore::Erase(given_back) => erase(shared, &given_back),
            Chore::Create { number, length } => create(shared, number, length),
            Chore::Remove(file) => remove(shared, &file),
            Chore::Evict(eviction) => evict(shared, &eviction),
            Chore::Press(tenants) => tenants.iter().for_each(|tenant| tenant.pressed()),
            Chore::Wait(_) | Chore::End => {}
        }
    }
}

/// Waits for something to do.
fn next(shared: &Shared) -> Chore {
    let mut state = shared.state();
    loop {
        let chore = choose(&mut state, shared.size, Instant::now());
        match chore {
            Chore::Wait(None) => state = shared.work.wait(state).unwrap_or_else(PoisonError::into_inner),
            Chore::Wait(Some(until)) => {
                let pause = until.saturating_duration_since(Instant::now());
                let waited = shared.work.wait_timeout(state, pause);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
            chore => return chore,
        }
    }
}

fn choose(state: &mut State, size: u64, now: Instant) -> Chore {
    if !state.closing
        && let Some(tenant) = waiter_with_a_file(state)
    {
        return Chore::Wake(tenant);
    }
    if let Some(given_back) = state.given_back.pop_front() {
        return Chore::Erase(given_back);
    }
    if state.closing {
        return Chore::End;
    }
    if state.allocated > size
        && let Some(file) = surplus(state, None)
    {
        return Chore::Remove(file);
    }
    let Some((length, urgent)) = shortage(state) else {
        return Chore::Wait(None);
    };
    let may_create = state.no_space_until.is_none_or(|until| now >= until);
    if state.allocated + length <= size && may_create {
        let number = state.next_number;
        state.next_number += 1;
        state.allocated += length;
        return Chore::Create { number, length };
    }
    if let Some(file) = surplus(state, Some(length)) {
        return Chore::Remove(file);
    }
    if state.evicting < length
        && let Some(eviction) = state.evict_oldest()
    {
        return Chore::Evict(eviction);
    }
    if urgent && state.evicting == 0 && !state.pressed {
        state.pressed = true;
        return Chore::Press(state.all_tenants());
    }
    // With room in the budget it was the disk that had none: it may have some later.
    Chore::Wait(
        state
            .no_space_until
            .filter(|_| urgent && state.allocated + length <= size),
    )
}

fn waiter_with_a_file(state: &mut State) -> Option<Arc<dyn Tenant>> {
    loop {
        let class = state
            .classes
            .values_mut()
            .find(|class| !class.free.is_empty() && !class.waiters.is_empty())?;
        let volume = class.waiters.pop_front()?;
        if let Some(tenant) = state.tenant(volume) {
            return Some(tenant);
        }
    }
}

/// A length of which files are missing, those that somebody waits for first.
fn shortage(state: &State) -> Option<(u64, bool)> {
    let waited_for = state.classes.iter().find(|(_, class)| !class.waiters.is_empty());
    let short = || {
        state
            .classes
            .iter()
            .find(|(_, class)| class.in_use && class.free.len() < SPARES)
    };
    waited_for
        .map(|(length, _)| (*length, true))
        .or_else(|| short().map(|(length, _)| (*length, false)))
}

/// A free file that is more than a spare, of another length than `but`.
fn surplus(state: &mut State, but: Option<u64>) -> Option<Arc<BufferFile>> {
    let class = state.classes.iter_mut().find(|(length, class)| {
        let spares = if class.in_use { SPARES } else { 0 };
        Some(**length) != but && class.free.len() > spares
    });
    class.and_then(|(_, class)| class.free.pop())
}

fn create(shared: &Shared, number: u64, length: u64) {
    let made = make(shared, number, length);
    let mut state = shared.state();
    match made {
        Ok(file) => {
            state.no_space_until = None;
            state.classes.entry(length).or_default().free.push(Arc::new(file));
        }
        Err(error) => {
            if state.no_space_until.is_none() {
                tracing::warn!(
                    dir = %shared.dir.display(),
                    %error,
                    "the write buffer cannot grow to the size that the settings give it: going on with what it has"
                );
            }
            state.allocated -= length;
            state.no_space_until = Some(Instant::now() + NO_SPACE_PAUSE);
        }
    }
}

fn make(shared: &Shared, number: u64, length: u64) -> io::Result<BufferFile> {
    let path = shared.dir.join(name(number));
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)?;
    let kept = |()| shared.disk.keep(&file, &shared.dir);
    if let Err(error) = shared.disk.allocate(&file, length).and_then(kept) {
        // What is left of it would take space that nobody counts.
        let _ = fs::remove_file(&path);
        return Err(error);
    }
    Ok(BufferFile::new(number, file, length, true))
}

/// A file's fixed name.
pub(super) fn name(number: u64) -> String {
    format!("{number:08}")
}

fn remove(shared: &Shared, file: &BufferFile) {
    if let Err(error) = fs::remove_file(shared.dir.join(name(file.number))) {
        tracing::warn!(file = file.number, %error, "a file of the write buffer could not be removed");
    }
    shared.state().allocated -= file.length;
}

fn evict(shared: &Shared, eviction: &Eviction) {
    match &eviction.tenant {
        Some(tenant) => tenant.evict(eviction.sco, eviction.epoch),
        None => shared.evict_unclaimed(eviction),
    }
}

/// Zeros where header and TLog were: the file is free.
fn erase(shared: &Shared, given_back: &GivenBack) {
    let GivenBack { file, areas, evicted } = given_back;
    match file.erase(&*shared.disk, *areas) {
        Ok(()) => {}
        // Its old header then stands until the next SCO's: after a restart it counts as found, and its volume takes it
        // for a cache or gives it back again.
        Err(error) => tracing::debug!(file = file.number, %error, "a free file could not be erased"),
    }
    shared.freed(file);
    if *evicted {
        hit(Point::AfterRecycle);
    }
}
