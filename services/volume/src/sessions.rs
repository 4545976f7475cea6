//! Sessions: which numbered operations of each client were applied.
//!
//! Keeps: for each session a window of numbers, from the first that may still come again, and how many connections
//! have it open.
//! Order: a number is new, then pending, then applied; back to new only if nothing of it is in the table of operations.
//! Crash: the table travels in manifests, its changes in the TLog; what was applied and lost is new again.
//! Knows no operations, only their numbers.

use std::collections::{HashMap, VecDeque};

use sconce_schemas::SessionId;
use sconce_schemas::manifest::{MANIFEST_BYTES_MAX, SessionState};

use crate::event::SessionSlot;

/// Sessions that a volume remembers; beyond it one is forgotten that nobody has open: first one that was closed, then
/// the one that was used least lately. The slot of an open session is never given away: two clients in one slot would
/// take each other's numbers for applied.
const SESSIONS_MAX: usize = 1024;
/// How far numbers may run ahead of the first unanswered one: above every client's limit of held operations.
const WINDOW_MAX: u64 = 65_536;
/// Places of a window that every session may have.
const WINDOW_OWN: u64 = 512;
/// Places that the windows of all sessions may have where one needs more than its own.
const WINDOWS_MAX: u64 = 1 << 19;
/// What a range of applied numbers takes in a manifest at most: an array of two, of 9 bytes each.
const RANGE_BYTES: u64 = 19;

// However the numbers lie, every other one applied in the worst case, the table fits a manifest with room for the rest.
const _: () = assert!(
    (WINDOWS_MAX + SESSIONS_MAX as u64 * WINDOW_OWN) / 2 * RANGE_BYTES < (MANIFEST_BYTES_MAX as u64 / 8) * 3
);

/// What is known of an operation's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Seen {
    /// It never came, or what it did was lost.
    New,
    /// It came and is not acknowledged yet.
    Pending,
    /// It was applied.
    Applied,
    /// It is further ahead than any client may run.
    TooFar,
    /// It is further ahead than there is room for now, with what other sessions have.
    Crowded,
}

#[derive(Debug)]
struct Session {
    id: SessionId,
    /// Number of the window's first place.
    base: u64,
    window: VecDeque<Seen>,
    /// Whether the TLog (or a manifest) says what this slot stands for.
    logged: bool,
    /// Connections that have it open.
    links: u32,
    /// Its client said that none of its numbers comes again.
    closed: bool,
    used: u64,
}

/// The session table of a volume.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    slots: Vec<Session>,
    by_id: HashMap<SessionId, SessionSlot>,
    clock: u64,
}

impl Sessions {
    /// The table that a manifest holds.
    pub(crate) fn restore(states: &[SessionState]) -> Self {
        let mut table = Self::default();
        for state in states {
            table.assign(SessionSlot(state.slot), SessionId(state.id));
            table.slide(SessionSlot(state.slot), state.below);
            // From a disk: no count is believed.
            let range = |(first, count): &(u64, u64)| *first..first.saturating_add((*count).min(WINDOW_MAX));
            let numbers = state
                .applied
                .iter()
                .copied()
                .chain(state.ranges.iter().flat_map(range));
            numbers.for_each(|number| table.applied(SessionSlot(state.slot), number));
        }
        table
    }

    /// The table for a manifest: only sessions that the log knows.
    pub(crate) fn save(&self) -> Vec<SessionState> {
        let saved = |(slot, session): (usize, &Session)| SessionState {
            slot: u16::try_from(slot).unwrap_or(u16::MAX),
            id: session.id.0,
            below: session.base,
            applied: Vec::new(),
            ranges: session.applied_ranges(),
        };
        self.slots
            .iter()
            .enumerate()
            .filter(|(_, s)| s.logged)
            .map(saved)
            .collect()
    }

    /// The slot of a session, old or new; `None`: all are open.
    pub(crate) fn open(&mut self, id: SessionId) -> Option<SessionSlot> {
        let slot = match self.by_id.get(&id) {
            Some(slot) => *slot,
            None => self.insert(id)?,
        };
        let used = self.tick();
        let session = self.slots.get_mut(usize::from(slot.0))?;
        (session.links, session.closed, session.used) = (session.links.saturating_add(1), false, used);
        Some(slot)
    }

    /// A connection that had the session open is gone, the client perhaps not.
    pub(crate) fn client_gone(&mut self, slot: SessionSlot) {
        if let Some(session) = self.slots.get_mut(usize::from(slot.0)) {
            session.links = session.links.saturating_sub(1);
        }
    }

    /// The client of a connection says that the session sends nothing again.
    pub(crate) fn close(&mut self, slot: SessionSlot) {
        self.client_gone(slot);
        if let Some(session) = self.slots.get_mut(usize::from(slot.0)) {
            session.closed = true;
            if session.links == 0 {
                // Manifests need not have it; if it is opened again after all, the log says so anew.
                session.logged = false;
            }
        }
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    fn insert(&mut self, id: SessionId) -> Option<SessionSlot> {
        let slot = if self.slots.len() < SESSIONS_MAX {
            self.slots.len()
        } else {
            let idle = self.slots.iter().enumerate().filter(|(_, s)| s.links == 0);
            idle.min_by_key(|(_, s)| (!s.closed, s.used))?.0
        };
        let slot = SessionSlot(u16::try_from(slot).ok()?);
        self.assign(slot, id);
        if let Some(session) = self.slots.get_mut(usize::from(slot.0)) {
            session.logged = false;
        }
        Some(slot)
    }

    /// Recovery: the log says what the slot stands for from here on.
    pub(crate) fn assign(&mut self, slot: SessionSlot, id: SessionId) {
        let at = usize::from(slot.0);
        let session = || Session {
            id: SessionId(0),
            base: 0,
            window: VecDeque::new(),
            logged: true,
            links: 0,
            closed: false,
            used: 0,
        };
        while self.slots.len() <= at {
            self.slots.push(session());
        }
        self.by_id.remove(&self.slots[at].id);
        self.slots[at] = Session {
            id,
            used: self.clock,
            ..session()
        };
        self.by_id.insert(id, slot);
    }

    /// The session's id, if the log does not know yet what the slot stands for; from now on it does.
    pub(crate) fn take_unlogged(&mut self, slot: SessionSlot) -> Option<SessionId> {
        let session = self.slots.get_mut(usize::from(slot.0))?;
        (!std::mem::replace(&mut session.logged, true)).then_some(session.id)
    }

    /// An operation comes in: what is known of its number. A new one is pending from now on. `below` is the client's
    /// word that it sends no number below that again.
    pub(crate) fn begin(&mut self, slot: SessionSlot, number: u64, below: u64) -> Seen {
        self.slide(slot, below.min(number));
        let (used, places) = (self.tick(), self.places_of_all(slot, number));
        let Some(session) = self.slots.get_mut(usize::from(slot.0)) else {
            return Seen::TooFar;
        };
        session.used = used;
        let Some(at) = number.checked_sub(session.base) else {
            return Seen::Applied;
        };
        if at >= WINDOW_MAX {
            return Seen::TooFar;
        }
        if places > WINDOWS_MAX {
            return Seen::Crowded;
        }
        let place = session.place(at);
        std::mem::replace(
            place,
            if *place == Seen::New {
                Seen::Pending
            } else {
                *place
            },
        )
    }

    /// The operation was applied (and will be acknowledged once it is held). In recovery numbers may be far apart:
    /// the window slides.
    pub(crate) fn applied(&mut self, slot: SessionSlot, number: u64) {
        self.slide(slot, number.saturating_add(1).saturating_sub(WINDOW_MAX));
        let used = self.tick();
        let Some(session) = self.slots.get_mut(usize::from(slot.0)) else {
            return;
        };
        session.used = used;
        if let Some(at) = number.checked_sub(session.base) {
            *session.place(at) = Seen::Applied;
        }
    }

    /// The operation was refused: if it comes again it is new.
    pub(crate) fn refused(&mut self, slot: SessionSlot, number: u64) {
        let Some(session) = self.slots.get_mut(usize::from(slot.0)) else {
            return;
        };
        if let Some(at) = number.checked_sub(session.base)
            && let Some(place) = usize::try_from(at).ok().and_then(|at| session.window.get_mut(at))
        {
            *place = Seen::New;
        }
    }

    /// How many places the windows would have with one for this number; 0 if the session has it already, or may have it
    /// in any case.
    fn places_of_all(&self, slot: SessionSlot, number: u64) -> u64 {
        let grown = self.slots.get(usize::from(slot.0)).map_or(0, |session| {
            let places = number.saturating_sub(session.base).saturating_add(1);
            if places <= WINDOW_OWN {
                return 0;
            }
            places.saturating_sub(session.window.len() as u64)
        });
        if grown == 0 {
            return 0;
        }
        let all: u64 = self.slots.iter().map(|session| session.window.len() as u64).sum();
        all.saturating_add(grown)
    }

    fn slide(&mut self, slot: SessionSlot, below: u64) {
        let Some(session) = self.slots.get_mut(usize::from(slot.0)) else {
            return;
        };
        while session.base < below {
            if session.window.pop_front().is_none() {
                session.base = below;
                return;
            }
            session.base += 1;
        }
    }
}

impl Session {
    /// The applied numbers of the window: the first of each run, and how many it has.
    fn applied_ranges(&self) -> Vec<(u64, u64)> {
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        let numbers = (self.base..).zip(&self.window);
        for (number, _) in numbers.filter(|(_, seen)| **seen == Seen::Applied) {
            match ranges.last_mut() {
                Some((first, count)) if *first + *count == number => *count += 1,
                _ => ranges.push((number, 1)),
            }
        }
        ranges
    }

    /// The window's place at `at` < [`WINDOW_MAX`], made if need be.
    fn place(&mut self, at: u64) -> &mut Seen {
        let at = usize::try_from(at).unwrap_or(0);
        if self.window.len() <= at {
            self.window.resize(at + 1, Seen::New);
        }
        &mut self.window[at]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> (Sessions, Vec<SessionSlot>) {
        let mut sessions = Sessions::default();
        let open = |id| sessions.open(SessionId(id)).unwrap();
        let slots = (1..=SESSIONS_MAX as u64).map(open).collect();
        (sessions, slots)
    }

    #[test]
    fn an_open_session_never_loses_its_slot() {
        let (mut sessions, slots) = full();
        assert_eq!(sessions.begin(slots[0], 1, 1), Seen::New);
        sessions.applied(slots[0], 1);
        assert_eq!(sessions.open(SessionId(5000)), None);
        assert_eq!(sessions.begin(slots[0], 1, 1), Seen::Applied);
        // Known ones come back, however many there are.
        assert_eq!(sessions.open(SessionId(7)), Some(slots[6]));
    }

    #[test]
    fn a_closed_session_goes_before_one_whose_client_may_come_back() {
        let (mut sessions, slots) = full();
        sessions.client_gone(slots[3]);
        sessions.close(slots[9]);
        assert_eq!(sessions.open(SessionId(5000)), Some(slots[9]));
        assert_eq!(sessions.open(SessionId(5001)), Some(slots[3]));
        assert_eq!(sessions.open(SessionId(5002)), None);
    }

    #[test]
    fn of_disconnected_sessions_the_least_lately_used_goes_first() {
        let (mut sessions, slots) = full();
        sessions.begin(slots[3], 1, 1);
        for slot in [3, 5, 4] {
            sessions.client_gone(slots[slot]);
        }
        assert_eq!(sessions.open(SessionId(5000)), Some(slots[4]));
        assert_eq!(sessions.open(SessionId(5001)), Some(slots[5]));
        // The new one begins with nothing applied.
        assert_eq!(sessions.begin(slots[5], 1, 1), Seen::New);
        assert_eq!(sessions.open(SessionId(5002)), Some(slots[3]));
    }

    fn numbers(sessions: &mut Sessions, slot: SessionSlot) -> Vec<Seen> {
        (40..50).map(|number| sessions.begin(slot, number, 40)).collect()
    }

    #[test]
    fn a_manifest_brings_back_which_numbers_were_applied() {
        let mut sessions = Sessions::default();
        let slot = sessions.open(SessionId(9)).unwrap();
        sessions.take_unlogged(slot);
        for number in [40, 43, 44, 45, 48] {
            sessions.begin(slot, number, 40);
            sessions.applied(slot, number);
        }
        let saved = sessions.save();
        assert_eq!(saved[0].ranges, [(40, 1), (43, 3), (48, 1)]);
        let seen = numbers(&mut Sessions::restore(&saved), slot);
        let applied = [true, false, false, true, true, true, false, false, true, false];
        let expected = applied.map(|applied| if applied { Seen::Applied } else { Seen::New });
        assert_eq!(seen, expected);
        // As earlier versions stored it.
        let earlier = SessionState {
            applied: vec![40, 43, 44, 45, 48],
            ranges: Vec::new(),
            ..saved[0].clone()
        };
        assert_eq!(numbers(&mut Sessions::restore(&[earlier]), slot), expected);
        // Damage that the CRC does not see: whatever it says, it ends.
        let absurd = SessionState {
            ranges: vec![(0, u64::MAX), (u64::MAX, u64::MAX)],
            ..saved[0].clone()
        };
        Sessions::restore(&[absurd]);
    }

    #[test]
    fn a_closed_session_is_in_no_manifest_until_it_is_used_again() {
        let mut sessions = Sessions::default();
        let slot = sessions.open(SessionId(9)).unwrap();
        assert_eq!(sessions.take_unlogged(slot), Some(SessionId(9)));
        assert_eq!(sessions.save().len(), 1);
        sessions.close(slot);
        assert!(sessions.save().is_empty());
        assert_eq!(sessions.open(SessionId(9)), Some(slot));
        assert_eq!(
            sessions.take_unlogged(slot),
            Some(SessionId(9)),
            "the log says it anew"
        );
    }

    #[test]
    fn windows_that_run_far_ahead_wait_while_all_together_take_too_much() {
        let (mut sessions, slots) = full();
        let (greedy, modest) = slots.split_at(20);
        let far = |sessions: &mut Sessions, slot: &SessionSlot| sessions.begin(*slot, WINDOW_MAX - 1, 0);
        let seen: Vec<Seen> = greedy.iter().map(|slot| far(&mut sessions, slot)).collect();
        assert_eq!(seen.iter().filter(|seen| **seen == Seen::New).count(), 8);
        assert_eq!(seen.iter().filter(|seen| **seen == Seen::Crowded).count(), 12);
        // Nobody else suffers.
        for slot in modest {
            assert_eq!(sessions.begin(*slot, WINDOW_OWN - 1, 0), Seen::New);
        }
        // What the greedy ones have is answered: there is room again.
        for slot in &greedy[..2] {
            assert_eq!(sessions.begin(*slot, WINDOW_MAX, WINDOW_MAX), Seen::New);
        }
        for slot in modest {
            assert_eq!(sessions.begin(*slot, WINDOW_OWN, WINDOW_OWN), Seen::New);
        }
        assert_eq!(far(&mut sessions, &greedy[19]), Seen::New);
    }

    #[test]
    fn a_session_is_open_as_long_as_one_connection_has_it_open() {
        let (mut sessions, slots) = full();
        // The client came back before the loss of its first connection was noticed.
        assert_eq!(sessions.open(SessionId(1)), Some(slots[0]));
        sessions.client_gone(slots[0]);
        assert_eq!(sessions.open(SessionId(5000)), None);
        sessions.client_gone(slots[0]);
        assert_eq!(sessions.open(SessionId(5000)), Some(slots[0]));
    }
}
