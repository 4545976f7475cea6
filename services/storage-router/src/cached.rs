//! The cache of objects in front of the pools: pieces of objects that were read before, and what sequential readers will ask for next.
//!
//! Keeps: pieces of [`PIECE`] bytes on an SSD; how far each of the last readers has come.
//! Order: what is read is asked of the cache first, then of the pool, once for all that ask for it at that time.
//! Crash: that of the cache.
//! Knows no back ends. An object is never overwritten, so nothing here is ever stale; what a scrub leaves out of an object nobody reads.

mod streams;

use std::ops::RangeInclusive;
use std::rc::Rc;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use sconce_cache::{Cache, Flight, Flights, Joined, KEY_LEN, Key, Turn, Use};
use sconce_schemas::ObjectName;
use sconce_schemas::wire::{Refusal, Remedy};
use tokio::sync::Semaphore;

use crate::pool::Pool;

pub use streams::{Reader, Streams};

/// Bytes of a piece: of what a request costs on a back end this part is small, and of a cold disk's random reads not too much is
/// read in vain.
pub const PIECE: u32 = 64 << 10;
/// Longer reads go by: guests' are at most as long.
pub const CACHED_MAX: u64 = 512 << 10;
/// Reads ahead at once.
const AHEAD_AT_ONCE: usize = 4;
/// Pieces that one of them fetches at a time.
const AHEAD_PART: u32 = 16;

/// The cache of a storage-router.
pub struct ObjectCache {
    cache: Cache,
    flights: Flights<Refusal>,
    streams: Streams,
    ahead: Arc<Semaphore>,
}

impl ObjectCache {
    /// With a cache for pieces of [`PIECE`] bytes.
    #[must_use]
    pub fn new(cache: Cache) -> Self {
        Self {
            cache,
            flights: Flights::default(),
            streams: Streams::default(),
            ahead: Arc::new(Semaphore::new(AHEAD_AT_ONCE)),
        }
    }

    /// The cache.
    #[must_use]
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// As [`Pool::get`]. To be called within a `LocalSet`: what is read ahead is read beside it.
    ///
    /// # Errors
    /// As [`Pool::get`].
    pub async fn get(
        self: &Rc<Self>,
        pool: &Arc<Pool>,
        name: ObjectName,
        offset: u64,
        length: u64,
    ) -> Result<Bytes, Refusal> {
        let Some(pieces) = pieces_of(name, offset, length) else {
            return pool.get(name, offset, length).await;
        };
        let reader = self.streams.note(name, &pieces);
        if let Some(ahead) = reader.ahead
            && let Ok(turn) = Arc::clone(&self.ahead).try_acquire_owned()
        {
            let (cache, pool) = (Rc::clone(self), Arc::clone(pool));
            tokio::task::spawn_local(async move {
                cache.read_ahead(&pool, name, ahead).await;
                drop(turn);
            });
        }
        let skipped = offset - u64::from(*pieces.start()) * u64::from(PIECE);
        let is_use = if reader.is_in_order {
            Use::Passes
        } else {
            Use::Counts
        };
        let all = match self.pieces(pool, name, pieces, is_use).await {
            Ok(pieces) => join(pieces),
            // What is damaged may be beside what was asked for, in the same piece, or asked for by another reader.
            Err(refusal) if refusal.remedy == Remedy::Damaged => {
                return pool.get(name, offset, length).await;
            }
            Err(refusal) => return Err(refusal),
        };
        let at = |position: u64| usize::try_from(position).unwrap_or(usize::MAX).min(all.len());
        Ok(all.slice(at(skipped)..at(skipped + length)))
    }

    /// Fetches what is not there yet, a part at a time: whoever comes for a piece meanwhile waits for its part alone.
    async fn read_ahead(&self, pool: &Arc<Pool>, name: ObjectName, pieces: RangeInclusive<u32>) {
        let mut wanted = pieces
            .filter(|piece| !self.cache.has(&key(name, *piece)))
            .peekable();
        while let Some(first) = wanted.next() {
            let mut last = first;
            while last - first + 1 < AHEAD_PART
                && let Some(next) = wanted.next_if_eq(&(last + 1))
            {
                last = next;
            }
            // What fails here fails again for whoever asks for it.
            let _ = self.pieces(pool, name, first..=last, Use::Passes).await;
        }
    }

    /// Pieces of an object; those behind its end are empty, and the last one may be short.
    async fn pieces(
        &self,
        pool: &Arc<Pool>,
        name: ObjectName,
        pieces: RangeInclusive<u32>,
        is_use: Use,
    ) -> Result<Vec<Bytes>, Refusal> {
        let first = *pieces.start();
        let mut found = Vec::new();
        let (mut led, mut awaited) = (Vec::new(), Vec::new());
        for (at, piece) in pieces.enumerate() {
            let key = key(name, piece);
            let mut here = self.cache.get(&key, is_use).await;
            if here.is_none() {
                match self.flights.join(&self.cache, key) {
                    Joined::Over(data) => here = Some(data),
                    Joined::Leads(flight) => led.push((at, key, flight)),
                    Joined::Follows(follower) => awaited.push((at, key, follower)),
                }
            }
            found.push(here.unwrap_or_default());
        }
        // Before anything is waited for: who leads and waits could wait for who waits for it.
        while !led.is_empty() {
            let follows = |pair: &[(usize, Key, Flight<Refusal>)]| pair[0].0 + 1 == pair[1].0;
            let run = 1 + led.windows(2).take_while(|pair| follows(pair)).count();
            let run: Vec<_> = led.drain(..run).collect();
            self.fetch(pool, name, first, run, &mut found).await?;
        }
        for (at, key, follower) in awaited {
            match follower.await {
                Turn::Landed(fetched) => found[at] = fetched?,
                Turn::Leads(flight) => {
                    self.fetch(pool, name, first, vec![(at, key, flight)], &mut found)
                        .await?;
                }
            }
        }
        Ok(found)
    }

    /// Fetches pieces that follow one another, in one read.
    async fn fetch(
        &self,
        pool: &Arc<Pool>,
        name: ObjectName,
        first: u32,
        run: Vec<(usize, Key, Flight<Refusal>)>,
        found: &mut [Bytes],
    ) -> Result<(), Refusal> {
        let Some((at, ..)) = run.first() else {
            return Ok(());
        };
        let offset = (u64::from(first) + *at as u64) * u64::from(PIECE);
        let length = run.len() as u64 * u64::from(PIECE);
        let fetched = pool.get(name, offset, length).await;
        for (index, (at, key, flight)) in run.into_iter().enumerate() {
            let cut = |data: &Bytes| {
                let start = data.len().min(index * PIECE as usize);
                let end = data.len().min(start + PIECE as usize);
                data.slice(start..end)
            };
            let piece = fetched.as_ref().map(cut).map_err(Clone::clone);
            if let Ok(piece) = &piece {
                found[at] = piece.clone();
                if !piece.is_empty() {
                    self.cache.put(key, piece.clone());
                }
            }
            flight.land(&piece);
        }
        fetched.map(drop)
    }
}

/// The pieces that a read touches; `None` where it goes by the cache.
fn pieces_of(name: ObjectName, offset: u64, length: u64) -> Option<RangeInclusive<u32>> {
    let is_cached = match name {
        ObjectName::Sco { .. } | ObjectName::Map { .. } => (1..=CACHED_MAX).contains(&length),
        // Read once, when their volume is recovered.
        ObjectName::Manifest { .. } => false,
    };
    let last = offset.checked_add(length)?.checked_sub(1)?;
    let piece = |position: u64| u32::try_from(position / u64::from(PIECE)).ok();
    is_cached.then_some(piece(offset)?..=piece(last)?)
}

fn key(name: ObjectName, piece: u32) -> Key {
    let (volume, kind, id, epoch, version) = match name {
        ObjectName::Sco {
            volume,
            id,
            epoch,
            version,
        } => (volume, 0_u8, id.0, epoch, version),
        ObjectName::Map { volume, id, epoch } => (volume, 1, id.0, epoch, 0),
        ObjectName::Manifest { volume, seq, epoch } => (volume, 2, seq.0, epoch, 0),
    };
    let mut key = [0; KEY_LEN];
    key[..16].copy_from_slice(&volume.0);
    key[16..24].copy_from_slice(&id.to_le_bytes());
    key[24..32].copy_from_slice(&epoch.0.to_le_bytes());
    key[32..34].copy_from_slice(&version.to_le_bytes());
    key[34] = kind;
    key[36..].copy_from_slice(&piece.to_le_bytes());
    Key(key)
}

/// The pieces one behind the other, up to the first that is not whole: what is behind it is not where it belongs.
fn join(mut pieces: Vec<Bytes>) -> Bytes {
    let is_short = |piece: &Bytes| piece.len() < PIECE as usize;
    if let Some(last) = pieces.iter().position(is_short) {
        pieces.truncate(last + 1);
    }
    match <[Bytes; 1]>::try_from(pieces) {
        Ok([one]) => one,
        Err(pieces) => {
            let mut all = BytesMut::with_capacity(pieces.iter().map(Bytes::len).sum());
            pieces.iter().for_each(|piece| all.extend_from_slice(piece));
            all.freeze()
        }
    }
}
