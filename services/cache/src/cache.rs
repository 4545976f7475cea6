//! The cache's handle: looks up, takes in, and keeps away from a disk that fails.
//!
//! Keeps: the open file, the pieces that wait to be written, and until when nothing is tried after an error.
//! Order: pieces are written in the order in which they came, by one job at a time. A lookup never waits for it.
//! Crash: what waited to be written is not there afterwards.
//! Knows no meaning of a piece. Lookups and puts are called on IO threads and do not block; what blocks is a job of its own.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use sconce_runtime::{Chance, Clock};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::counters::Counters;
use crate::disk::{CacheFile, Disk};
use crate::key::Key;
use crate::layout::Geometry;
use crate::settings::CacheSettings;
use crate::store::{Place, Store, read_piece, write_piece};

/// Bytes that wait to be written; what comes beyond them is not taken. A disk that is slower than what is fetched would
/// otherwise take all memory.
pub const PENDING_BYTES_MAX: usize = 16 << 20;
/// The first wait after an error, and the longest.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);
/// How long a read of the disk is waited for: fetching is faster than a disk that hangs.
const ANSWERS_WITHIN: Duration = Duration::from_secs(2);
/// Its only file.
const FILE: &str = "pieces";

/// What a cache needs of its process.
#[derive(Debug, Clone)]
pub struct Components {
    /// Where its file is.
    pub disk: Arc<dyn Disk>,
    /// The time.
    pub clock: Clock,
}

/// An SSD cache of immutable pieces. A handle, shared by all threads of a process.
#[derive(Clone)]
pub struct Cache {
    shared: Arc<Shared>,
}

/// What a lookup means for what stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// The piece is used: it is worth more than one that is not.
    Counts,
    /// Its reader passes by, in order, and does not come again.
    Passes,
}

/// What a lookup found.
#[derive(Debug)]
pub enum Found {
    /// The piece, its CRC32C checked.
    Hit(Bytes),
    /// It is not here.
    Miss,
    /// It is in the file, but not in memory: [`Cache::read_all`] gets it.
    OnDisk(Reading),
}

/// A piece that is read from the disk.
pub struct Reading {
    shared: Arc<Shared>,
    file: Arc<dyn CacheFile>,
    key: Key,
    place: Place,
}

struct Shared {
    path: PathBuf,
    geometry: Geometry,
    seed: u64,
    components: Components,
    state: Mutex<State>,
    /// Told when nothing waits to be written, or a start is over.
    settled: Notify,
}

struct State {
    store: Phase,
    /// In the order in which they came. Those being written are still found here.
    pending: HashMap<Key, Bytes>,
    order: VecDeque<Key>,
    pending_bytes: usize,
    is_writing: bool,
    /// Nothing is written before that.
    write_after: Option<Instant>,
    /// The wait after the next error.
    retry: Duration,
    /// Whether the outage was told.
    told: bool,
    /// Cells that could not be read.
    shunned: BTreeSet<u32>,
    counters: Counters,
}

enum Phase {
    Opening,
    Open(Store),
    Off { until: Instant },
}

impl Cache {
    /// A cache for pieces of at most `piece_len` bytes. Its file is opened by a job of its own: until that is over
    /// ([`Cache::settled`]), and while the file cannot be used, every lookup is a miss. To be called within a runtime, in a
    /// simulation within its `LocalSet`, as all of it.
    #[must_use]
    pub fn open(
        settings: &CacheSettings,
        piece_len: u32,
        components: Components,
        chance: &mut Chance,
    ) -> Cache {
        let shared = Arc::new(Shared {
            path: settings.directory.join(FILE),
            geometry: Geometry::fitting(settings.size.bytes(), piece_len),
            seed: chance.u64(),
            components,
            state: Mutex::new(State {
                store: Phase::Opening,
                pending: HashMap::new(),
                order: VecDeque::new(),
                pending_bytes: 0,
                is_writing: false,
                write_after: None,
                retry: RETRY_FIRST,
                told: false,
                shunned: BTreeSet::new(),
                counters: Counters::default(),
            }),
            settled: Notify::new(),
        });
        shared.begin_opening();
        Cache { shared }
    }

    /// Looks a piece up without blocking.
    #[must_use]
    pub fn find(&self, key: &Key, is_use: Use) -> Found {
        let (file, place) = {
            let mut state = self.shared.state();
            if let Some(piece) = state.pending.get(key).cloned() {
                state.counters.hit(piece.len());
                return Found::Hit(piece);
            }
            let found = match &state.store {
                Phase::Open(store) => {
                    let place = match is_use {
                        Use::Counts => store.table.use_of(key),
                        Use::Passes => store.table.peek(key),
                    };
                    place.map(|place| (store.file.clone(), place))
                }
                Phase::Opening | Phase::Off { .. } => None,
            };
            let Some(found) = found else {
                state.counters.misses += 1;
                self.shared.try_again(&mut state);
                return Found::Miss;
            };
            found
        };
        match read_piece(&*file, self.shared.geometry, key, place, true) {
            Err(error) if is_not_in_memory(&error) => Found::OnDisk(Reading {
                shared: Arc::clone(&self.shared),
                file,
                key: *key,
                place,
            }),
            read => match self.shared.judge(&file, key, place, read) {
                Some(piece) => Found::Hit(piece),
                None => Found::Miss,
            },
        }
    }

    /// Looks a piece up, from the disk where it must be.
    pub async fn get(&self, key: &Key, is_use: Use) -> Option<Bytes> {
        match self.find(key, is_use) {
            Found::Hit(piece) => Some(piece),
            Found::Miss => None,
            Found::OnDisk(reading) => self.read_all(vec![reading]).await.pop().flatten(),
        }
    }

    /// Reads pieces from the disk, in one job; `None`: a piece is not unharmed, or the disk does not answer, and then the cache is off
    /// for a while.
    pub async fn read_all(&self, readings: Vec<Reading>) -> Vec<Option<Bytes>> {
        let count = readings.len();
        let read = sconce_runtime::blocking(move || {
            let read = readings.into_iter().map(Reading::read_here);
            read.collect::<Vec<_>>()
        });
        match tokio::time::timeout(ANSWERS_WITHIN, read).await {
            Ok(Ok(read)) => read,
            // The job panicked, or the runtime ends.
            Ok(Err(_)) => vec![None; count],
            Err(_) => {
                let error = io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!(
                        "the disk has not answered a read for {} s",
                        ANSWERS_WITHIN.as_secs()
                    ),
                );
                let mut state = self.shared.state();
                if let Phase::Open(_) = state.store {
                    self.shared.turn_off(&mut state, &error);
                }
                vec![None; count]
            }
        }
    }

    /// Whether the piece can be found, as far as memory tells; not a use.
    #[must_use]
    pub fn has(&self, key: &Key) -> bool {
        let state = self.shared.state();
        let is_written = |store: &Store| store.table.has(key);
        state.pending.contains_key(key) || matches!(&state.store, Phase::Open(store) if is_written(store))
    }

    /// Takes a piece in: it is found from now on, and written to the file soon. Does not block. One that is longer than a
    /// cell, or comes while too much waits to be written or the cache is off, is not taken and counted as skipped.
    pub fn put(&self, key: Key, piece: Bytes) {
        let mut state = self.shared.state();
        if state.pending.contains_key(&key) {
            return;
        }
        let takes = match &state.store {
            Phase::Open(store) if store.table.has(&key) => return,
            Phase::Open(_) => true,
            Phase::Opening | Phase::Off { .. } => false,
        };
        let now = self.shared.components.clock.now();
        let fits = (1..=self.shared.geometry.piece_len() as usize).contains(&piece.len())
            && state.pending_bytes + piece.len() <= PENDING_BYTES_MAX;
        if !takes || !fits || state.write_after.is_some_and(|after| now < after) {
            state.counters.skipped += 1;
            self.shared.try_again(&mut state);
            return;
        }
        state.pending_bytes += piece.len();
        state.pending.insert(key, piece);
        state.order.push_back(key);
        if !std::mem::replace(&mut state.is_writing, true) {
            let shared = Arc::clone(&self.shared);
            drop(sconce_runtime::blocking(move || shared.write_pending()));
        }
    }

    /// Waits until the file was opened, or could not be, and nothing waits to be written.
    pub async fn settled(&self) {
        loop {
            let settled = self.shared.settled.notified();
            let mut settled = std::pin::pin!(settled);
            settled.as_mut().enable();
            if self.shared.state().is_settled() {
                return;
            }
            settled.await;
        }
    }

    /// What it did.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let now = self.shared.components.clock.now();
        let state = self.shared.state();
        let geometry = self.shared.geometry;
        let (pieces, is_open) = match &state.store {
            Phase::Open(store) => (store.table.pieces(), true),
            Phase::Opening | Phase::Off { .. } => (0, false),
        };
        Counters {
            pieces,
            capacity_bytes: u64::from(geometry.cells()) * u64::from(geometry.piece_len()),
            off: !is_open || state.write_after.is_some_and(|after| now < after),
            ..state.counters
        }
    }
}

impl Reading {
    /// The piece, if it is unharmed. Blocks.
    fn read_here(self) -> Option<Bytes> {
        let read = read_piece(&*self.file, self.shared.geometry, &self.key, self.place, false);
        self.shared.judge(&self.file, &self.key, self.place, read)
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing is called under the lock that panics half way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a read of a place gave. Its cell may have been given to another piece in the meantime, or its file up.
    fn judge(
        self: &Arc<Self>,
        file: &Arc<dyn CacheFile>,
        key: &Key,
        place: Place,
        read: io::Result<Option<Vec<u8>>>,
    ) -> Option<Bytes> {
        let mut state = self.state();
        let is_open = state.is_of(file);
        let table = match &mut state.store {
            Phase::Open(store) if is_open && store.table.is_at(key, place) => Some(&mut store.table),
            _ => None,
        };
        match (read, table) {
            (Ok(Some(piece)), Some(_)) => {
                state.counters.hit(piece.len());
                if state.write_after.is_none() {
                    self.is_well(&mut state);
                }
                return Some(Bytes::from(piece));
            }
            (Ok(None), Some(table)) => {
                table.drop_piece(key, place);
                state.counters.damaged += 1;
            }
            (Err(error), Some(_)) => {
                state.shunned.insert(place.cell);
                self.turn_off(&mut state, &error);
            }
            (_, None) => {}
        }
        state.counters.misses += 1;
        None
    }

    /// After an error: nothing is tried for a while.
    fn turn_off(&self, state: &mut State, error: &io::Error) {
        state.counters.errors += 1;
        let until = self.after_error(state, error);
        state.leave(Phase::Off { until });
    }

    /// A cell that cannot be written is not used again. Where there was only no room for it what is there stays in use.
    fn not_written(&self, state: &mut State, next: &Next, error: &io::Error) {
        if !state.is_of(&next.file) {
            return;
        }
        let Phase::Open(store) = &mut state.store else {
            return;
        };
        if let io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded = error.kind() {
            store.table.give_back(next.cell);
            state.counters.errors += 1;
            state.write_after = Some(self.after_error(state, error));
        } else {
            state.shunned.insert(next.cell);
            self.turn_off(state, error);
        }
    }

    /// When to try again.
    fn after_error(&self, state: &mut State, error: &io::Error) -> Instant {
        let wait = state.retry;
        state.retry = (wait * 2).min(RETRY_MAX);
        if !std::mem::replace(&mut state.told, true) {
            let path = self.path.display();
            let what = "the cache is off; it is tried again by itself, and what it would give is fetched";
            match error.kind() {
                // The process before this one is not gone yet, as when it hands over.
                io::ErrorKind::ResourceBusy => tracing::info!(%path, %error, "{what}"),
                _ => tracing::warn!(%path, %error, "{what}"),
            }
        }
        self.components.clock.now() + wait
    }

    /// The time after an error may be over.
    fn try_again(self: &Arc<Self>, state: &mut State) {
        if let Phase::Off { until } = state.store
            && self.components.clock.now() >= until
        {
            state.store = Phase::Opening;
            self.begin_opening();
        }
    }

    fn begin_opening(self: &Arc<Self>) {
        let shared = Arc::clone(self);
        drop(sconce_runtime::blocking(move || shared.open_file()));
    }

    /// Blocks.
    fn open_file(&self) {
        let shunned = self.state().shunned.clone();
        let opened = Store::open(
            &*self.components.disk,
            &self.path,
            self.geometry,
            self.seed,
            &shunned,
        );
        let mut state = self.state();
        match opened {
            Ok(store) => {
                let path = self.path.display();
                tracing::info!(%path, pieces = store.table.pieces(), "the cache is open");
                state.store = Phase::Open(store);
            }
            Err(error) => self.turn_off(&mut state, &error),
        }
        self.settled.notify_waiters();
    }

    /// Writes what waits. Blocks.
    fn write_pending(self: &Arc<Self>) {
        self.leave_deleted_file();
        loop {
            let mut state = self.state();
            let Some(next) = state.next_to_write() else {
                state.forget_pending();
                state.is_writing = false;
                self.settled.notify_waiters();
                return;
            };
            drop(state);
            let written = write_piece(
                &*next.file,
                self.geometry,
                next.cell,
                next.sequence,
                &next.key,
                &next.piece,
            );
            let mut state = self.state();
            state.written(&next);
            match written {
                Ok(place) => {
                    state.publish(&next, place);
                    self.is_well(&mut state);
                }
                Err(error) => {
                    self.not_written(&mut state, &next, &error);
                    state.forget_pending();
                }
            }
        }
    }

    /// A file that was deleted would be gone at the next start: another is made, or the one that has its name is taken.
    fn leave_deleted_file(self: &Arc<Self>) {
        let file = match &self.state().store {
            Phase::Open(store) => store.file.clone(),
            Phase::Opening | Phase::Off { .. } => return,
        };
        // Where that cannot be told, a write tells more.
        if file.is_named().unwrap_or(true) {
            return;
        }
        let path = self.path.display();
        tracing::info!(%path, "the cache's file was deleted: another is begun");
        let mut state = self.state();
        if !state.is_of(&file) {
            return;
        }
        state.leave(Phase::Opening);
        state.forget_pending();
        drop(state);
        self.open_file();
    }

    fn is_well(&self, state: &mut State) {
        state.retry = RETRY_FIRST;
        state.write_after = None;
        if std::mem::take(&mut state.told) {
            let path = self.path.display();
            tracing::info!(%path, "the cache is on again");
        }
    }
}

/// A piece to write, and where.
struct Next {
    file: Arc<dyn CacheFile>,
    cell: u32,
    sequence: u64,
    key: Key,
    piece: Bytes,
}

impl State {
    fn is_settled(&self) -> bool {
        !matches!(self.store, Phase::Opening) && !self.is_writing
    }

    fn next_to_write(&mut self) -> Option<Next> {
        let Phase::Open(store) = &mut self.store else {
            return None;
        };
        let key = *self.order.front()?;
        let piece = self.pending.get(&key)?.clone();
        let (cell, sequence) = store.table.take_cell()?;
        Some(Next {
            file: store.file.clone(),
            cell,
            sequence,
            key,
            piece,
        })
    }

    fn written(&mut self, next: &Next) {
        if self.order.front() == Some(&next.key) {
            self.order.pop_front();
            self.pending.remove(&next.key);
            self.pending_bytes -= next.piece.len();
        }
    }

    /// Whether this is the open file. Where it is another, the one before was given up: its cells were its own.
    fn is_of(&self, file: &Arc<dyn CacheFile>) -> bool {
        matches!(&self.store, Phase::Open(store) if Arc::ptr_eq(&store.file, file))
    }

    /// Goes over to a phase without an open file. What is known of one with many pieces takes a while to be given back, and everybody
    /// waits for the lock meanwhile.
    fn leave(&mut self, phase: Phase) {
        if let Phase::Open(store) = std::mem::replace(&mut self.store, phase) {
            drop(sconce_runtime::blocking(move || drop(store)));
        }
    }

    fn publish(&mut self, next: &Next, place: Place) {
        if !self.is_of(&next.file) {
            return;
        }
        let Phase::Open(store) = &mut self.store else {
            return;
        };
        let evicted = store.table.publish(&next.key, place);
        self.counters.evicted += evicted;
        self.counters.admitted += 1;
        self.counters.admitted_bytes += u64::from(place.length);
    }

    fn forget_pending(&mut self) {
        self.counters.skipped += self.pending.len() as u64;
        self.pending.clear();
        self.order.clear();
        self.pending_bytes = 0;
    }
}

impl Counters {
    fn hit(&mut self, bytes: usize) {
        self.hits += 1;
        self.hit_bytes += bytes as u64;
    }
}

/// Not in memory, or a file system that does not say: both are answered by a read that may block.
fn is_not_in_memory(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Unsupported | io::ErrorKind::Interrupted
    ) || error.raw_os_error() == Some(rustix::io::Errno::OPNOTSUPP.raw_os_error())
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let counters = self.counters();
        f.debug_struct("Cache")
            .field("path", &self.shared.path)
            .field("counters", &counters)
            .finish()
    }
}

impl std::fmt::Debug for Reading {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reading")
            .field("key", &self.key)
            .field("place", &self.place)
            .finish_non_exhaustive()
    }
}
