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
pub struct Streams {
    known: RefCell<Cache<ObjectName, Stream>>,
}

#[derive(Debug, Clone, Copy)]
struct Stream {
    next: u32,
    in_order: u32,
    /// The first piece that was not read ahead.
    ahead: u32,
}

/// What is known of who reads an object.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Reader {
    /// It reads one piece after the other.
    pub is_in_order: bool,
    /// The pieces that are worth reading ahead.
    pub ahead: Option<RangeInclusive<u32>>,
}

impl Default for Streams {
    fn default() -> Self {
        Self {
            known: RefCell::new(Cache::new(KNOWN)),
        }
    }
}

impl Streams {
    /// A read of these pieces.
    #[must_use]
    pub fn note(&self, name: ObjectName, pieces: &RangeInclusive<u32>) -> Reader {
        let mut known = self.known.borrow_mut();
        let next = pieces.end().saturating_add(1);
        let Some(before) = known.get(&name).copied() else {
            let stream = Stream {
                next,
                in_order: 0,
                ahead: next,
            };
            known.insert(name, stream);
            return Reader::default();
        };
        let mut stream = before;
        if next == before.next {
            // More of the same piece.
            return Reader {
                is_in_order: before.in_order >= IN_ORDER,
                ahead: None,
            };
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
        Reader {
            is_in_order: stream.in_order >= IN_ORDER,
            ahead,
        }
    }
}
