//! Who reads an object from its beginning to its end, and what they will ask for next.
//!
//! Keeps: of the last objects that were read, the piece that would come next, how many came in order, and how far was read ahead.
//! Order: two pieces in order are a coincidence, three a reader; each further one doubles what is read ahead.
//! Crash: nothing.
//! Knows no cache.

use std::cell::RefCell;
use std::ops::RangeInclusive;

use quick_cache::unsync::Cache;
use sconce_schemas::ObjectName;

/// Objects whose readers are known.
const KNOWN: usize = 1024;
/// Pieces in order before anything is read ahead.
const IN_ORDER: u32 = 2;
/// Pieces that are read ahead at most: a SCO of the usual size.
const AHEAD_MAX: u32 = 64;

/// The readers of objects.
pub(super) struct Streams {
    known: RefCell<Cache<ObjectName, Stream>>,
}

#[derive(Debug, Clone, Copy)]
struct Stream {
    next: u32,
    in_order: u32,
    /// The first piece that was not read ahead.
    ahead: u32,
}

impl Default for Streams {
    fn default() -> Self {
        Self {
            known: RefCell::new(Cache::new(KNOWN)),
        }
    }
}

impl Streams {
    /// A read of these pieces; gives those that are worth reading ahead.
    pub(super) fn note(&self, name: ObjectName, pieces: &RangeInclusive<u32>) -> Option<RangeInclusive<u32>> {
        let mut known = self.known.borrow_mut();
        let next = pieces.end().saturating_add(1);
        let Some(before) = known.get(&name).copied() else {
            let stream = Stream {
                next,
                in_order: 0,
                ahead: next,
            };
            known.insert(name, stream);
            return None;
        };
        let mut stream = before;
        if next == before.next {
            // More of the same piece.
            return None;
        }
        let begins = *pieces.start();
        let goes_on = begins == before.next || begins.saturating_add(1) == before.next;
        stream.next = next;
        stream.in_order = match goes_on && next > before.next {
            true => before.in_order.saturating_add(1),
            false => 0,
        };
        stream.ahead = stream.ahead.max(next);
        let window = 1_u32
            .checked_shl(stream.in_order)
            .unwrap_or(AHEAD_MAX)
            .min(AHEAD_MAX);
        let wanted = next.saturating_add(window);
        // Not piece by piece: in reads of half a window or more.
        let is_due = stream.in_order >= IN_ORDER && stream.ahead.saturating_add(window / 2) <= wanted;
        let ahead = (is_due && stream.ahead < wanted).then(|| stream.ahead..=wanted - 1);
        if ahead.is_some() {
            stream.ahead = wanted;
        } else if stream.in_order == 0 {
            stream.ahead = next;
        }
        known.insert(name, stream);
        ahead
    }
}

#[cfg(test)]
mod tests {
    use sconce_schemas::{Epoch, ScoId, VolumeId};

    use super::*;

    fn sco(id: u64) -> ObjectName {
        ObjectName::Sco {
            volume: VolumeId([1; 16]),
            id: ScoId(id),
            epoch: Epoch(1),
            version: 0,
        }
    }

    #[test]
    fn a_reader_in_order_is_read_ahead_of_and_no_piece_twice() {
        let streams = Streams::default();
        let mut ahead = Vec::new();
        let mut late = 0;
        for piece in 0..64 {
            // Guests read a part of a piece at a time.
            for _ in 0..4 {
                late += u32::from(piece > 4 && !ahead.contains(&piece));
                ahead.extend(streams.note(sco(1), &(piece..=piece)).into_iter().flatten());
            }
        }
        let mut once = ahead.clone();
        once.sort_unstable();
        once.dedup();
        assert_eq!(once.len(), ahead.len(), "a piece was read ahead twice");
        assert_eq!(late, 0, "a reader came before what was read for it");
    }

    #[test]
    fn readers_of_two_objects_do_not_disturb_each_other_and_random_ones_get_nothing() {
        let streams = Streams::default();
        let mut ahead = [0, 0];
        for piece in 0..20 {
            for object in [0, 1_u8] {
                let read = streams.note(sco(u64::from(object)), &(piece..=piece));
                ahead[usize::from(object)] += read.into_iter().flatten().count();
            }
        }
        assert!(ahead.iter().all(|pieces| *pieces > 16), "{ahead:?}");
        let mut random = fastrand_like(7);
        for _ in 0..1000 {
            let piece = random() % 64;
            let read = streams.note(sco(9), &(piece..=piece));
            assert!(
                read.is_none_or(|read| read.count() <= 4),
                "a coincidence is no reader"
            );
        }
    }

    /// Numbers without a pattern.
    fn fastrand_like(mut state: u32) -> impl FnMut() -> u32 {
        move || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state >> 16
        }
    }
}
