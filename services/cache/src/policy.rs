//! What stays when there is no room for all: Clock-PRO as the crate `quick_cache` has it, close to S3-FIFO.
//!
//! Keeps: prints of pieces, each with what belongs to it, and the prints of some that left.
//! Order: what is used again soon after it came, or comes again soon after it left, stays longer than what came once.
//! Crash: all of it is in memory.
//! Knows no files. It draws nothing and reads no clock: the same calls keep the same pieces.

use std::hash::BuildHasherDefault;

use quick_cache::unsync::Cache;
use quick_cache::{Lifecycle, OptionsBuilder, UnitWeighter};

use crate::key::{Key, Print, PrintHasher};

/// Part of the room for what has proved itself; the rest is for newcomers, as in S3-FIFO.
const HOT: f64 = 0.9;
/// Prints of pieces that left, for each piece that is here. Each takes as much memory as one that is here, so not more of them.
const GHOSTS: f64 = 0.3;

/// At most so many pieces, and which they are.
pub struct Policy<V> {
    cache: Cache<Print, V, UnitWeighter, BuildHasherDefault<PrintHasher>, Evictions>,
    seed: u64,
}

impl<V: Clone + PartialEq> Policy<V> {
    /// Room for `capacity` pieces, at least one.
    #[must_use]
    pub fn new(capacity: usize, seed: u64) -> Self {
        let capacity = capacity.max(1);
        let mut options = OptionsBuilder::new();
        options
            .estimated_items_capacity(capacity)
            .weight_capacity(capacity as u64)
            .hot_allocation(HOT)
            .ghost_allocation(GHOSTS);
        let mut cache = match options.build() {
            Ok(options) => Cache::with_options(options, UnitWeighter, BuildHasherDefault::new(), Evictions),
            // Only without the two numbers above: the same without the allocations.
            Err(_) => Cache::with(
                capacity,
                capacity as u64,
                UnitWeighter,
                BuildHasherDefault::new(),
                Evictions,
            ),
        };
        // All at once: to grow later would look at every piece again, while nobody can look anything up.
        cache.reserve(capacity);
        Self { cache, seed }
    }

    /// What belongs to a piece that is used now.
    pub fn use_of(&self, key: &Key) -> Option<V> {
        self.cache.get(&self.print(key)).cloned()
    }

    /// What belongs to a piece; not a use.
    #[must_use]
    pub fn peek(&self, key: &Key) -> Option<V> {
        self.cache.peek(&self.print(key)).cloned()
    }

    /// Takes a piece in. `left` is told what belonged to those that made room, which can be the piece itself.
    pub fn insert(&mut self, key: &Key, value: V, left: &mut impl FnMut(V)) {
        let print = self.print(key);
        // Replacing is not evicting for the crate: what belonged to it would be forgotten. Only what is here: `remove` would forget
        // those too that left, and with them that this one came before.
        if let Some((_, before)) = self.cache.remove_if(&print, |_| true) {
            left(before);
        }
        let mut evicted = Evicted(Vec::new());
        self.cache.insert_with_lifecycle(print, value, &mut evicted);
        evicted.0.into_iter().for_each(left);
    }

    /// Forgets a piece to which still the same belongs; gives whether that was so.
    pub fn remove(&mut self, key: &Key, value: &V) -> bool {
        self.cache
            .remove_if(&self.print(key), |there| there == value)
            .is_some()
    }

    /// Pieces that are here.
    #[must_use]
    pub fn len(&self) -> usize {
        self.cache.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.cache.is_empty()
    }

    fn print(&self, key: &Key) -> Print {
        Print::of(key, self.seed)
    }
}

/// Collects what was evicted.
#[derive(Debug, Clone, Copy)]
struct Evictions;

/// What one insertion evicted.
struct Evicted<V>(Vec<V>);

impl<V> Default for Evicted<V> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<V> Lifecycle<Print, V> for Evictions {
    type RequestState = Evicted<V>;

    fn on_evict(&self, state: &mut Evicted<V>, _: Print, value: V) {
        state.0.push(value);
    }
}
