//! The pool of SCO files: which are free, which hold what, and who waits for one.
//!
//! Keeps: every file of the buffer with its size class, the caches in the order in which they may go, the waiters.
//! Order: a file goes to another SCO only when its last reader let go of it and it is erased; caches go first in, first
//! out.
//! Crash: a file tells by its header what it holds; a free one has zeros there.
//! Knows no content.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};

use sconce_schemas::sco::ScoHeader;
use sconce_schemas::{ByteLen, Epoch, ScoId, VolumeId};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::disk::Disk;
use super::file::{BufferFile, ScoFile, Tenure};
use super::unknown::Unknown;

/// Who has SCOs in the write buffer: the device asks it for what it may take away. Called from the device's own
/// thread; an implementation passes it on and returns at once.
pub trait Tenant: Send + Sync {
    /// Give up this cached SCO: let go of its file with [`super::Device::retire`].
    fn evict(&self, sco: ScoId, epoch: Epoch);
    /// There is a free file: ask again.
    fn file_ready(&self);
    /// Others wait for room and nothing can be taken away: store what is not stored.
    fn pressed(&self);
}

/// A SCO that the device's start found in a file.
#[derive(Debug, Clone)]
pub struct FoundSco {
    /// What the file says of itself.
    pub header: ScoHeader,
    /// The file.
    pub file: Arc<ScoFile>,
}

/// What nobody has claimed of a volume, as it was once seen.
#[derive(Debug, Clone, Copy)]
pub struct Unclaimed {
    volume: VolumeId,
    last: u64,
}

/// How full the write buffer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// What it may take.
    pub size: ByteLen,
    /// What its files take.
    pub allocated: ByteLen,
    /// Files whose SCOs may be nowhere else.
    pub unstored: ByteLen,
    /// Files that are caches.
    pub cached: ByteLen,
    /// Volumes that wait for a file.
    pub waiting: usize,
}

#[derive(Debug)]
pub(super) struct Shared {
    /// Where the SCO files are.
    pub(super) dir: PathBuf,
    pub(super) disk: Arc<dyn Disk>,
    pub(super) size: u64,
    /// Bytes of files whose SCOs may be nowhere else; beside the lock because every acknowledgement looks at it.
    pub(super) held: AtomicU64,
    state: Mutex<State>,
    pub(super) work: Condvar,
    /// The same for a device whose thread is simulated.
    pub(super) work_here: Notify,
    /// Files whose headers do not tell what they hold. A lock of its own: they are read under it.
    pub(super) unknown: Mutex<Vec<Unknown>>,
}

/// Files of one length.
#[derive(Debug, Default)]
pub(super) struct Class {
    pub(super) free: Vec<Arc<BufferFile>>,
    pub(super) waiters: VecDeque<VolumeId>,
    /// A volume asked for this length since the start: some are kept free.
    pub(super) in_use: bool,
}

pub(super) struct Cached {
    volume: VolumeId,
    sco: ScoId,
    epoch: Epoch,
    length: u64,
    /// Weak: a volume may give a cache up by itself.
    file: Weak<ScoFile>,
}

/// SCOs of a volume that nobody has claimed.
#[derive(Default)]
struct Left {
    scos: Vec<FoundSco>,
    /// Which addition to `unclaimed` was the last one of this volume.
    last: u64,
}

pub(super) struct State {
    pub(super) classes: BTreeMap<u64, Class>,
    pub(super) allocated: u64,
    cached: VecDeque<Cached>,
    cached_bytes: u64,
    /// Bytes of files that volumes were asked to give up.
    pub(super) evicting: u64,
    /// Files that nobody needs and that are not erased yet: the device's thread does that.
    pub(super) given_back: VecDeque<GivenBack>,
    tenants: HashMap<VolumeId, Arc<dyn Tenant>>,
    /// What the start found and no volume has asked for. It may be the only copy of acknowledged writes, so nothing
    /// but its volume, or what the registry says of it, takes it away.
    unclaimed: BTreeMap<VolumeId, Left>,
    /// Counts what came to `unclaimed`.
    lefts: u64,
    pub(super) next_number: u64,
    /// The disk would not give more space: not before this moment again.
    pub(super) no_space_until: Option<Instant>,
    /// The tenants were told of this shortage.
    pub(super) pressed: bool,
    pub(super) closing: bool,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State")
            .field("classes", &self.classes)
            .field("allocated", &self.allocated)
            .finish_non_exhaustive()
    }
}

impl State {
    fn leave(&mut self, volume: VolumeId, found: impl IntoIterator<Item = FoundSco>) {
        self.lefts += 1;
        let left = self.unclaimed.entry(volume).or_default();
        left.scos.extend(found);
        left.last = self.lefts;
    }
}

impl Shared {
    /// What is held, in thousandths of the size.
    pub(super) fn fullness(&self) -> u64 {
        self.held.load(Ordering::Relaxed).saturating_mul(1000) / self.size.max(1)
    }

    pub(super) fn new(dir: PathBuf, disk: Arc<dyn Disk>, size: u64) -> Self {
        let state = State {
            classes: BTreeMap::new(),
            allocated: 0,
            cached: VecDeque::new(),
            cached_bytes: 0,
            evicting: 0,
            given_back: VecDeque::new(),
            tenants: HashMap::new(),
            unclaimed: BTreeMap::new(),
            lefts: 0,
            next_number: 0,
            no_space_until: None,
            pressed: false,
            closing: false,
        };
        Self {
            dir,
            disk,
            size,
            held: AtomicU64::new(0),
            state: Mutex::new(state),
            work: Condvar::new(),
            work_here: Notify::new(),
            unknown: Mutex::default(),
        }
    }

    /// There is something to do for the device's thread.
    pub(super) fn ring(&self) {
        self.work.notify_one();
        self.work_here.notify_one();
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        // A panic under the lock leaves counts at worst a file off; the other volumes go on.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a file that was in the buffer before into the accounts.
    pub(super) fn found(self: &Arc<Self>, file: BufferFile, header: Option<ScoHeader>) {
        let mut state = self.state();
        state.allocated += file.length;
        state.next_number = state.next_number.max(file.number + 1);
        let (length, file) = (file.length, Arc::new(file));
        match header {
            Some(header) => {
                self.held.fetch_add(length, Ordering::Relaxed);
                let sco = ScoFile::new(file, header.size, &self.disk, Arc::downgrade(self));
                let found = FoundSco {
                    header,
                    file: Arc::new(sco),
                };
                state.leave(header.volume, [found]);
            }
            None => state.classes.entry(length).or_default().free.push(file),
        }
    }

    /// A file whose header does not tell what it holds: it takes room, and is used for nothing.
    pub(super) fn keep_unknown(&self, unknown: Unknown) {
        let mut state = self.state();
        state.allocated += unknown.file.length;
        state.next_number = state.next_number.max(unknown.file.number + 1);
        drop(state);
        self.unknown
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(unknown);
    }

    /// Such a file has its header again.
    pub(super) fn known(self: &Arc<Self>, file: BufferFile, header: ScoHeader) {
        self.state().allocated -= file.length;
        self.found(file, Some(header));
    }

    pub(super) fn claim(&self, volume: VolumeId) -> Vec<FoundSco> {
        let left = self.state().unclaimed.remove(&volume);
        left.map_or_else(Vec::new, |left| left.scos)
    }

    pub(super) fn unclaimed(&self) -> Vec<VolumeId> {
        self.state().unclaimed.keys().copied().collect()
    }

    pub(super) fn disclaim(&self, volume: VolumeId, found: Vec<FoundSco>) {
        if !found.is_empty() {
            self.state().leave(volume, found);
        }
    }

    pub(super) fn unclaimed_of(&self, volume: VolumeId) -> Option<Unclaimed> {
        let state = self.state();
        let last = state.unclaimed.get(&volume)?.last;
        Some(Unclaimed { volume, last })
    }

    pub(super) fn give_up(&self, seen: Unclaimed, is_over: impl FnOnce(Epoch) -> bool) -> usize {
        let Unclaimed { volume, last } = seen;
        let mut state = self.state();
        let left = state.unclaimed.get(&volume).filter(|left| left.last == last);
        let newest = left.and_then(|left| left.scos.iter().map(|found| found.header.epoch).max());
        let over = newest.is_some_and(is_over);
        let left = over.then(|| state.unclaimed.remove(&volume)).flatten();
        drop(state);
        let found = left.unwrap_or_default().scos;
        found.iter().for_each(|found| self.retire(&found.file));
        found.len()
    }

    pub(super) fn join(&self, volume: VolumeId, tenant: Arc<dyn Tenant>) {
        self.state().tenants.insert(volume, tenant);
    }

    pub(super) fn leave(&self, volume: VolumeId) {
        let mut state = self.state();
        state.tenants.remove(&volume);
        for class in state.classes.values_mut() {
            class.waiters.retain(|waiter| *waiter != volume);
        }
    }

    /// A free file for a SCO of `volume`; `None` puts the volume among the waiters.
    pub(super) fn take(&self, volume: VolumeId, length: u64) -> Option<Arc<BufferFile>> {
        let mut state = self.state();
        let class = state.classes.entry(length).or_default();
        class.in_use = true;
        let file = class.free.pop();
        match &file {
            Some(_) => {
                class.waiters.retain(|waiter| *waiter != volume);
                self.held.fetch_add(length, Ordering::Relaxed);
            }
            None if !class.waiters.contains(&volume) => class.waiters.push_back(volume),
            None => {}
        }
        drop(state);
        self.ring();
        file
    }

    pub(super) fn evictable(&self, volume: VolumeId, sco: ScoId, epoch: Epoch, file: &Arc<ScoFile>) {
        let mut state = self.state();
        self.cache(&mut state, volume, sco, epoch, file);
        drop(state);
        self.ring();
    }

    fn cache(&self, state: &mut State, volume: VolumeId, sco: ScoId, epoch: Epoch, file: &Arc<ScoFile>) {
        let length = file.length();
        match file.tenure() {
            Tenure::Held => drop(self.held.fetch_sub(length, Ordering::Relaxed)),
            // Whoever was asked to give it up is no more, and its volume was begun again.
            Tenure::Evicting => state.evicting = state.evicting.saturating_sub(length),
            Tenure::Cached | Tenure::Retired | Tenure::RetiredEvicted => return,
        }
        file.set_tenure(Tenure::Cached);
        state.cached_bytes += length;
        state.pressed = false;
        state.cached.push_back(Cached {
            volume,
            sco,
            epoch,
            length,
            file: Arc::downgrade(file),
        });
    }

    pub(super) fn retire(&self, file: &ScoFile) {
        let mut state = self.state();
        match file.tenure() {
            Tenure::Held => {
                self.held.fetch_sub(file.length(), Ordering::Relaxed);
                file.set_tenure(Tenure::Retired);
            }
            Tenure::Cached => {
                state.cached_bytes -= file.length();
                file.set_tenure(Tenure::Retired);
            }
            Tenure::Evicting => file.set_tenure(Tenure::RetiredEvicted),
            Tenure::Retired | Tenure::RetiredEvicted => {}
        }
    }

    /// The last reader of a retired file let go of it; its first `areas` bytes are to be erased.
    pub(super) fn give_back(&self, file: &Arc<BufferFile>, areas: usize, evicted: bool) {
        let mut state = self.state();
        if evicted {
            state.evicting = state.evicting.saturating_sub(file.length);
        }
        state.given_back.push_back(GivenBack {
            file: Arc::clone(file),
            areas,
            evicted,
        });
        drop(state);
        self.ring();
    }

    /// The file is erased: whoever waits may have it.
    pub(super) fn freed(&self, file: &Arc<BufferFile>) {
        let mut state = self.state();
        state.pressed = false;
        let class = state.classes.entry(file.length).or_default();
        class.free.push(Arc::clone(file));
    }

    /// Takes a cache away whose volume is not served: nobody else would give it back.
    pub(super) fn evict_unclaimed(&self, eviction: &Eviction) {
        let file = &eviction.file;
        let mut state = self.state();
        let mut taken = None;
        for Left { scos, .. } in state.unclaimed.values_mut() {
            let at = scos.iter().position(|found| Arc::ptr_eq(&found.file, file));
            taken = taken.or(at.map(|at| scos.swap_remove(at)));
        }
        state.unclaimed.retain(|_, left| !left.scos.is_empty());
        if taken.is_some() {
            file.set_tenure(Tenure::RetiredEvicted);
        } else {
            // It was claimed in the meantime: its volume is asked the next time.
            self.cache(&mut state, eviction.volume, eviction.sco, eviction.epoch, file);
        }
        // The last one that goes needs the lock.
        drop(state);
    }

    /// Likewise, where its volume was asked and does not have it.
    pub(super) fn evict_left(&self, volume: VolumeId, sco: ScoId, epoch: Epoch) {
        let mut state = self.state();
        let Some(left) = state.unclaimed.get_mut(&volume) else {
            return;
        };
        let asked = |found: &mut FoundSco| {
            (found.header.id, found.header.epoch) == (sco, epoch) && found.file.tenure() == Tenure::Evicting
        };
        let taken: Vec<FoundSco> = left.scos.extract_if(.., asked).collect();
        state.unclaimed.retain(|_, left| !left.scos.is_empty());
        for found in &taken {
            found.file.set_tenure(Tenure::RetiredEvicted);
        }
        // The last one that goes needs the lock.
        drop(state);
    }

    pub(super) fn usage(&self) -> Usage {
        let state = self.state();
        Usage {
            size: ByteLen(self.size),
            allocated: ByteLen(state.allocated),
            unstored: ByteLen(self.held.load(Ordering::Relaxed)),
            cached: ByteLen(state.cached_bytes),
            waiting: state.classes.values().map(|class| class.waiters.len()).sum(),
        }
    }
}

impl State {
    /// The oldest cache, for its volume to give up.
    pub(super) fn evict_oldest(&mut self) -> Option<Eviction> {
        while let Some(oldest) = self.cached.pop_front() {
            let Some(file) = oldest.file.upgrade() else {
                continue;
            };
            if file.tenure() != Tenure::Cached {
                continue;
            }
            self.cached_bytes -= oldest.length;
            file.set_tenure(Tenure::Evicting);
            self.evicting += oldest.length;
            let tenant = self.tenants.get(&oldest.volume).cloned();
            return Some(Eviction {
                tenant,
                volume: oldest.volume,
                sco: oldest.sco,
                epoch: oldest.epoch,
                file,
            });
        }
        None
    }

    pub(super) fn tenant(&self, volume: VolumeId) -> Option<Arc<dyn Tenant>> {
        self.tenants.get(&volume).cloned()
    }

    pub(super) fn all_tenants(&self) -> Vec<Arc<dyn Tenant>> {
        self.tenants.values().cloned().collect()
    }
}

/// A file that holds nothing that anybody needs.
pub(super) struct GivenBack {
    pub(super) file: Arc<BufferFile>,
    /// Bytes of its header and TLog areas.
    pub(super) areas: usize,
    /// The device asked for it.
    pub(super) evicted: bool,
}

/// A cache on its way out.
pub(super) struct Eviction {
    pub(super) tenant: Option<Arc<dyn Tenant>>,
    volume: VolumeId,
    pub(super) sco: ScoId,
    pub(super) epoch: Epoch,
    pub(super) file: Arc<ScoFile>,
}
