//! Block status in several contexts: one question of a client, one operation for each context, one reply.
//!
//! Keeps: what the contexts of a question have answered so far.
//! Order: the chunks of a reply follow each other, those of the context that answered first in front.
//! Crash: nothing.
//! Knows no socket.

use sconce_schemas::wire::volume::{ChangeKind, ChangedExtent, ExtentKind, ExtentStatus};
use slab::Slab;

use super::outbox::Outbox;
use super::protocol::ErrorCode;
use super::protocol::reply::{self, STATE_DIRTY, STATE_HOLE, STATE_ZERO};
use super::replies::put_error;

/// Lengths with their state bits.
type States = Vec<(u32, u32)>;

/// The questions of a connection that are under way.
#[derive(Default)]
pub(super) struct Statuses {
    waiting: Slab<Waiting>,
}

struct Waiting {
    cookie: u64,
    /// Contexts that have not answered.
    left: usize,
    chunks: Vec<(u32, States)>,
    refused: Option<(ErrorCode, String)>,
}

impl Statuses {
    /// A question to this many contexts.
    pub(super) fn begin(&mut self, cookie: u64, contexts: usize) -> usize {
        self.waiting.insert(Waiting {
            cookie,
            left: contexts,
            chunks: Vec::with_capacity(contexts),
            refused: None,
        })
    }

    /// What the context `id` answered; with the last of them the reply is whole.
    pub(super) fn answered(
        &mut self,
        out: &mut Outbox,
        question: usize,
        id: u32,
        answer: Result<States, (ErrorCode, String)>,
    ) {
        let Some(waiting) = self.waiting.get_mut(question) else {
            return;
        };
        match answer {
            Ok(states) => waiting.chunks.push((id, states)),
            Err(refused) => waiting.refused = Some(refused),
        }
        waiting.left -= 1;
        if waiting.left > 0 {
            return;
        }
        let Waiting {
            cookie,
            chunks,
            refused,
            ..
        } = self.waiting.remove(question);
        if let Some((code, text)) = refused {
            return put_error(out, true, cookie, code, &text);
        }
        let last = chunks.len().saturating_sub(1);
        for (at, (id, states)) in chunks.iter().enumerate() {
            out.header(|out| reply::put_block_status(out, cookie, at == last, *id, states));
        }
    }
}

/// `base:allocation`: what is data, zeros and holes.
pub(super) fn allocation(extents: &[ExtentStatus], length: u32, one: bool) -> States {
    let states = extents.iter().map(|extent| {
        let state = match extent.kind {
            ExtentKind::Data => 0,
            ExtentKind::Zeros => STATE_ZERO,
            ExtentKind::Hole => STATE_HOLE | STATE_ZERO,
        };
        (extent.length, state)
    });
    within(states, length, one)
}

/// `qemu:dirty-bitmap:…`: what differs.
pub(super) fn dirty(extents: &[ChangedExtent], length: u32, one: bool) -> States {
    let states = extents.iter().map(|extent| {
        let is_dirty = extent.kind != ChangeKind::Same;
        (extent.length, if is_dirty { STATE_DIRTY } else { 0 })
    });
    within(states, length, one)
}

/// What lies within the first `length` bytes, neighbours of one state as one; only the first if `one` is asked for.
fn within(states: impl Iterator<Item = (u64, u32)>, length: u32, one: bool) -> States {
    let mut found: States = Vec::new();
    let mut left = length;
    for (length, state) in states {
        let length = u32::try_from(length).unwrap_or(u32::MAX).min(left);
        match found.last_mut() {
            _ if length == 0 => {}
            Some((before, same)) if *same == state => *before += length,
            Some(_) if one => break,
            _ => found.push((length, state)),
        }
        left -= length;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_of_one_state_are_one_extent_and_nothing_reaches_beyond_the_request() {
        use ExtentKind::{Data, Hole, Zeros};
        let extents = [(4096, Data), (4096, Data), (4096, Zeros), (u64::MAX / 2, Hole)];
        let extents = extents.map(|(length, kind)| ExtentStatus { length, kind });
        assert_eq!(
            allocation(&extents, 20_000, false),
            vec![(8192, 0), (4096, 2), (20_000 - 12_288, 3)]
        );
        assert_eq!(allocation(&extents, 20_000, true), vec![(8192, 0)]);
        assert_eq!(allocation(&extents, 5000, false), vec![(5000, 0)]);
        assert_eq!(allocation(&[], 5000, false), vec![]);
    }

    #[test]
    fn whatever_it_is_now_what_differs_is_dirty() {
        use ChangeKind::{Data, Hole, Same, Zeros};
        let extents = [
            (4096, Same),
            (512, Data),
            (512, Zeros),
            (512, Hole),
            (1 << 40, Same),
        ];
        let extents = extents.map(|(length, kind)| ChangedExtent { length, kind });
        assert_eq!(
            dirty(&extents, 8192, false),
            vec![(4096, 0), (1536, 1), (8192 - 5632, 0)]
        );
        assert_eq!(dirty(&extents, 8192, true), vec![(4096, 0)]);
    }

    #[test]
    fn a_question_is_answered_once_when_all_contexts_have() {
        let mut statuses = Statuses::default();
        let mut out = Outbox::default();
        let question = statuses.begin(7, 2);
        statuses.answered(&mut out, question, 1, Ok(vec![(4096, 0)]));
        assert!(out.is_empty());
        statuses.answered(&mut out, question, 2, Ok(vec![(4096, 1)]));
        // Two chunks of 20 bytes of header, a context id and one extent.
        assert_eq!(out.len(), 2 * (20 + 4 + 8));
        let question = statuses.begin(8, 2);
        let mut out = Outbox::default();
        statuses.answered(&mut out, question, 2, Err((ErrorCode::Io, "gone".to_owned())));
        assert!(out.is_empty());
        statuses.answered(&mut out, question, 1, Ok(vec![(4096, 0)]));
        assert_eq!(out.len(), 20 + 6 + 4, "an error, and nothing else");
        assert!(statuses.waiting.is_empty());
    }
}
