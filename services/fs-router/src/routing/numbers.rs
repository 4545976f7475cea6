//! The numbers of a session's changes, and the watermark below which the owner may forget them.
//!
//! Keeps: which numbers may still be sent (again).
//! Order: numbers count up from 1 in the order of first sends; the watermark never falls, and never passes a
//! number that may still be sent.
//! Crash: a new process is a new session.
//! Knows no operations.

use std::collections::VecDeque;

/// The numbers of one session.
#[derive(Debug)]
pub(super) struct Numbers {
    /// The first number of `open`: the watermark.
    first: u64,
    /// From `first` on: whether the number may still be sent. The front, where there is one, is true.
    open: VecDeque<bool>,
}

/// Most numbers between the watermark and the newest: bounds what the owner has to remember when one operation
/// takes long while others go on.
const WINDOW_MAX: usize = 1 << 16;

impl Numbers {
    pub(super) fn new() -> Self {
        Self {
            first: 1,
            open: VecDeque::new(),
        }
    }

    /// The number that [`Numbers::take`] gives next; `None` while the window is full.
    pub(super) fn next(&self) -> Option<u64> {
        (self.open.len() < WINDOW_MAX).then_some(self.newest() + 1)
    }

    /// The last number that was given; 0: none was.
    pub(super) fn newest(&self) -> u64 {
        self.first + self.open.len() as u64 - 1
    }

    /// Gives the next number to a change.
    pub(super) fn take(&mut self) {
        self.open.push_back(true);
    }

    /// The number will not be sent again.
    pub(super) fn close(&mut self, number: u64) {
        let index = number.checked_sub(self.first).map(usize::try_from);
        if let Some(Ok(index)) = index
            && let Some(open) = self.open.get_mut(index)
        {
            *open = false;
        }
        self.advance();
    }

    /// No number below this one will be sent again.
    pub(super) fn below(&self) -> u64 {
        self.first
    }

    fn advance(&mut self) {
        while self.open.front() == Some(&false) {
            self.open.pop_front();
            self.first += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        /// Against a set: the watermark is the smallest number that may still be sent, or the next one.
        #[test]
        fn the_watermark_is_the_smallest_open_number(steps in proptest::collection::vec(any::<(u8, u16)>(), 0..300)) {
            let (mut numbers, mut open, mut newest) = (Numbers::new(), BTreeSet::new(), 0);
            for (kind, which) in steps {
                match kind % 4 {
                    0 | 1 => {
                        let number = numbers.next().unwrap();
                        prop_assert_eq!(number, newest + 1);
                        numbers.take();
                        newest = number;
                        open.insert(number);
                    }
                    2 => {
                        let picked = open.iter().nth(usize::from(which) % open.len().max(1)).copied();
                        if let Some(number) = picked {
                            open.remove(&number);
                            numbers.close(number);
                        }
                    }
                    // Closing what is closed, or was never given out, changes nothing.
                    _ => if !open.contains(&u64::from(which)) {
                        numbers.close(u64::from(which));
                    },
                }
                prop_assert_eq!(numbers.newest(), newest);
                prop_assert_eq!(numbers.below(), open.first().copied().unwrap_or(newest + 1));
            }
        }
    }

    #[test]
    fn a_full_window_gives_no_number_until_its_first_is_closed() {
        let mut numbers = Numbers::new();
        for number in 1..=WINDOW_MAX as u64 {
            numbers.take();
            if number > 1 {
                numbers.close(number);
            }
        }
        assert_eq!(numbers.next(), None);
        numbers.close(1);
        assert_eq!(numbers.below(), WINDOW_MAX as u64 + 1);
        assert!(numbers.next().is_some());
    }
}
