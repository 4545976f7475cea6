//! Whether one cluster's history can be told as if each operation happened at one moment between its question and its answer.
//!
//! Keeps: nothing between histories.
//! Order: the search takes the earliest question first and goes back where an answer would come before its operation.
//! Crash: nothing.
//! Knows no volumes. It is Wing and Gong's search with Lowe's memory of what was tried, as porcupine does it.

use std::collections::HashSet;

/// What a cluster holds: zeros are 0, each write brings a number of its own.
pub type Value = u64;

/// What an operation did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// It left this there.
    Write(Value),
    /// It found this.
    Read(Value),
}

/// An operation, with when it was asked for and when it was answered, on any clock that counts events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operation {
    /// What it did.
    pub what: What,
    /// When it was asked for.
    pub asked: u64,
    /// When it was answered. `None`: it may have happened at any time since, or never.
    pub answered: Option<u64>,
}

/// Whether there is an order of the operations, each between its question and its answer, in which every read finds what
/// was written last; at first there are zeros. A read that was not answered says nothing and is left out by the caller.
#[must_use]
pub fn is_linearizable(history: &[Operation]) -> bool {
    let found: HashSet<Value> = history
        .iter()
        .filter_map(|operation| operation.what.found())
        .collect();
    // What nobody saw of a write without an answer need not have happened.
    let counts = |operation: &&Operation| match (operation.what, operation.answered) {
        (What::Write(value), None) => found.contains(&value),
        (What::Read(_), None) => false,
        (_, Some(_)) => true,
    };
    Search::of(history.iter().filter(counts).copied().collect()).succeeds()
}

impl What {
    fn found(self) -> Option<Value> {
        match self {
            What::Read(value) => Some(value),
            What::Write(_) => None,
        }
    }
}

/// A question or an answer in the list of what happened, which is linked so that an operation can be taken out and put back.
#[derive(Clone, Copy)]
struct Entry {
    operation: usize,
    is_answer: bool,
    previous: usize,
    next: usize,
}

const HEAD: usize = 0;

struct Search {
    operations: Vec<Operation>,
    /// The head of the ring first; then by time.
    entries: Vec<Entry>,
    /// Where an operation's answer is.
    answers: Vec<usize>,
}

impl Search {
    fn of(operations: Vec<Operation>) -> Self {
        let asked = operations
            .iter()
            .enumerate()
            .map(|(at, operation)| (operation.asked, at, false));
        // What has no answer is over after all that has one.
        let answered = operations
            .iter()
            .enumerate()
            .map(|(at, operation)| (operation.answered.unwrap_or(u64::MAX), at, true));
        let mut times: Vec<(u64, usize, bool)> = asked.chain(answered).collect();
        times.sort_unstable_by_key(|(time, at, is_answer)| (*time, *is_answer, *at));
        let length = times.len() + 1;
        let linked = |(place, (_, operation, is_answer)): (usize, (u64, usize, bool))| Entry {
            operation,
            is_answer,
            previous: place,
            next: (place + 2) % length,
        };
        let head = Entry {
            operation: usize::MAX,
            is_answer: false,
            previous: length - 1,
            next: 1 % length,
        };
        let entries: Vec<Entry> = std::iter::once(head)
            .chain(times.into_iter().enumerate().map(linked))
            .collect();
        let mut answers = vec![0; operations.len()];
        for (place, entry) in entries
            .iter()
            .enumerate()
            .skip(1)
            .filter(|(_, entry)| entry.is_answer)
        {
            answers[entry.operation] = place;
        }
        Self {
            operations,
            entries,
            answers,
        }
    }

    fn succeeds(mut self) -> bool {
        let mut taken = Taken(vec![0; self.operations.len().div_ceil(64)]);
        let mut tried: HashSet<(Taken, Value)> = HashSet::new();
        let mut steps: Vec<(usize, Value)> = Vec::new();
        let mut holds: Value = 0;
        let mut at = self.entries[HEAD].next;
        while self.entries[HEAD].next != HEAD {
            let entry = self.entries[at];
            // The end of the ring is only reached behind an answer, and there the search goes back.
            if !entry.is_answer && at != HEAD {
                let after = match self.operations[entry.operation].what {
                    What::Write(value) => Some(value),
                    What::Read(value) => (value == holds).then_some(holds),
                };
                if let Some(after) = after {
                    taken.flip(entry.operation);
                    if tried.insert((taken.clone(), after)) {
                        steps.push((at, holds));
                        holds = after;
                        self.take_out(at);
                        at = self.entries[HEAD].next;
                        continue;
                    }
                    taken.flip(entry.operation);
                }
                at = entry.next;
                continue;
            }
            let Some((back, held)) = steps.pop() else {
                return false;
            };
            holds = held;
            taken.flip(self.entries[back].operation);
            self.put_back(back);
            at = self.entries[back].next;
        }
        true
    }

    fn take_out(&mut self, question: usize) {
        for place in [question, self.answers[self.entries[question].operation]] {
            let Entry { previous, next, .. } = self.entries[place];
            self.entries[previous].next = next;
            self.entries[next].previous = previous;
        }
    }

    /// In the opposite order.
    fn put_back(&mut self, question: usize) {
        for place in [self.answers[self.entries[question].operation], question] {
            let Entry { previous, next, .. } = self.entries[place];
            self.entries[previous].next = place;
            self.entries[next].previous = place;
        }
    }
}

/// Which operations have happened.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Taken(Vec<u64>);

impl Taken {
    fn flip(&mut self, operation: usize) {
        self.0[operation / 64] ^= 1 << (operation % 64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(value: Value, asked: u64, answered: impl Into<Option<u64>>) -> Operation {
        Operation {
            what: What::Write(value),
            asked,
            answered: answered.into(),
        }
    }

    fn read(value: Value, asked: u64, answered: u64) -> Operation {
        Operation {
            what: What::Read(value),
            asked,
            answered: Some(answered),
        }
    }

    #[test]
    fn what_happens_one_after_the_other_is() {
        assert!(is_linearizable(&[]));
        assert!(is_linearizable(&[
            read(0, 1, 2),
            write(7, 3, 4),
            read(7, 5, 6),
            write(0, 7, 8),
            read(0, 9, 10)
        ]));
    }

    #[test]
    fn operations_at_the_same_time_may_happen_in_any_order() {
        let both = [write(1, 1, 10), write(2, 2, 9)];
        for last in [1, 2] {
            assert!(is_linearizable(&[both[0], both[1], read(last, 11, 12)]));
        }
        assert!(is_linearizable(&[both[0], both[1], read(1, 3, 4), read(2, 5, 6)]));
    }

    #[test]
    fn a_lost_a_stale_and_an_invented_value_are_found() {
        assert!(!is_linearizable(&[write(1, 1, 2), read(0, 3, 4)]), "lost");
        assert!(
            !is_linearizable(&[write(1, 1, 2), write(2, 3, 4), read(1, 5, 6)]),
            "stale"
        );
        assert!(!is_linearizable(&[write(1, 1, 2), read(9, 3, 4)]), "invented");
        assert!(
            !is_linearizable(&[read(1, 1, 2), write(1, 3, 4)]),
            "before it was written"
        );
    }

    #[test]
    fn a_value_that_was_seen_does_not_go_and_come() {
        let both = [write(1, 1, 20), write(2, 2, 19)];
        let seen = [read(1, 3, 4), read(2, 5, 6), read(1, 7, 8)];
        assert!(!is_linearizable(&[&both[..], &seen[..]].concat()));
        // A write that was done twice.
        assert!(!is_linearizable(&[
            write(1, 1, 2),
            write(2, 3, 4),
            read(2, 5, 6),
            read(1, 7, 8)
        ]));
    }

    #[test]
    fn what_was_not_answered_may_happen_late_or_never_but_once() {
        let lost = write(1, 1, None);
        assert!(is_linearizable(&[lost, read(0, 2, 3)]), "never");
        assert!(
            is_linearizable(&[lost, write(2, 2, 3), read(2, 4, 5), read(1, 6, 7), read(1, 8, 9)]),
            "late"
        );
        assert!(
            !is_linearizable(&[lost, read(1, 2, 3), read(0, 4, 5)]),
            "not undone"
        );
        assert!(
            !is_linearizable(&[lost, write(2, 2, 3), read(1, 4, 5), read(2, 6, 7), read(1, 8, 9)]),
            "not twice"
        );
        let discard = write(0, 4, None);
        assert!(is_linearizable(&[
            write(1, 1, 2),
            discard,
            read(1, 5, 6),
            read(0, 7, 8)
        ]));
    }

    /// The search against every order there is.
    #[test]
    fn it_says_what_all_orders_say() {
        let mut chance = sconce_runtime::Chance::seeded(1);
        let (mut good, mut bad) = (0, 0);
        for _ in 0..3000 {
            let history: Vec<Operation> = (0..6)
                .map(|_| {
                    let (asked, value) = (chance.below(20), chance.below(3));
                    let what = match chance.one_of(1, 2) {
                        true => What::Write(value),
                        false => What::Read(value),
                    };
                    let lost = chance.one_of(1, 5) && matches!(what, What::Write(_));
                    let answered = (!lost).then(|| asked + 1 + chance.below(10));
                    Operation {
                        what,
                        asked,
                        answered,
                    }
                })
                .collect();
            let expected = some_order(&history, 0, 0);
            assert_eq!(is_linearizable(&history), expected, "{history:?}");
            match expected {
                true => good += 1,
                false => bad += 1,
            }
        }
        assert!(good > 300 && bad > 300, "{good} good and {bad} bad histories");
    }

    fn some_order(history: &[Operation], taken: u32, holds: Value) -> bool {
        let left = || (0..history.len()).filter(|at| taken & (1 << at) == 0);
        if left().all(|at| history[at].answered.is_none()) {
            return true;
        }
        left().any(|at| {
            let operation = history[at];
            let is_next = left().all(|other| {
                history[other]
                    .answered
                    .is_none_or(|answered| answered >= operation.asked)
            });
            let after = match operation.what {
                What::Write(value) => Some(value),
                What::Read(value) => (value == holds).then_some(holds),
            };
            is_next && after.is_some_and(|after| some_order(history, taken | (1 << at), after))
        })
    }
}
