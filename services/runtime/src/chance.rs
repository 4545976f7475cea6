//! Random numbers: from the operating system, or from a seed that repeats a run.
//!
//! Keeps: the state of one source.
//! Order: two sources of the same seed give the same numbers in the same order.
//! Crash: nothing; two processes never share a source.
//! Knows no cryptography: ids and jitter only, no keys.

use std::hash::{BuildHasher as _, RandomState};

/// A source of random numbers: a component that is passed in, so that a seed decides a whole run.
#[derive(Debug)]
pub struct Chance {
    source: Source,
}

#[derive(Debug)]
enum Source {
    Seeded(fastrand::Rng),
    /// A keyed hash (SipHash, 128 random bits from the operating system) of a counter: unlike one 64-bit seed
    /// this makes 128-bit ids that are unique among all processes of a pool.
    Os {
        keyed: RandomState,
        counter: u64,
    },
}

impl Chance {
    /// The numbers that belong to `seed`.
    #[must_use]
    pub fn seeded(seed: u64) -> Self {
        Self {
            source: Source::Seeded(fastrand::Rng::with_seed(seed)),
        }
    }

    /// Numbers that nobody can repeat; on a thread of a simulation, numbers of its seed.
    #[must_use]
    pub fn from_os() -> Self {
        crate::simulated::chance().unwrap_or_else(Self::of_the_system)
    }

    fn of_the_system() -> Self {
        Self {
            source: Source::Os {
                keyed: RandomState::new(),
                counter: 0,
            },
        }
    }

    /// Any number.
    pub fn u64(&mut self) -> u64 {
        match &mut self.source {
            Source::Seeded(rng) => rng.u64(..),
            Source::Os { keyed, counter } => {
                *counter = counter.wrapping_add(1);
                keyed.hash_one((*counter, std::process::id()))
            }
        }
    }

    /// 128 random bits, for ids that must never meet.
    pub fn u128(&mut self) -> u128 {
        (u128::from(self.u64()) << 64) | u128::from(self.u64())
    }

    /// A number from 0 up to but not including `bound`; 0 where `bound` is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        // The high half of the product is even up to one part in 2^64 / bound.
        let wide = u128::from(self.u64()) * u128::from(bound);
        u64::try_from(wide >> 64).unwrap_or(0)
    }

    /// True `times` times in `of`.
    pub fn one_of(&mut self, times: u64, of: u64) -> bool {
        self.below(of) < times
    }

    /// Fills a buffer.
    pub fn fill(&mut self, buffer: &mut [u8]) {
        for chunk in buffer.chunks_mut(8) {
            chunk.copy_from_slice(&self.u64().to_le_bytes()[..chunk.len()]);
        }
    }

    /// A source of its own for a part, so that the numbers that one part draws do not depend on another's.
    #[must_use]
    pub fn fork(&mut self) -> Chance {
        match &self.source {
            Source::Seeded(_) => Chance::seeded(self.u64()),
            Source::Os { .. } => Chance::from_os(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_and_another_differs() {
        let draw = |seed| {
            let mut chance = Chance::seeded(seed);
            let mut fork = chance.fork();
            let mut bytes = [0; 13];
            chance.fill(&mut bytes);
            (chance.u128(), chance.below(1000), fork.u64(), bytes)
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
    }

    #[test]
    fn numbers_of_the_os_do_not_repeat() {
        let (mut one, mut two) = (Chance::from_os(), Chance::from_os());
        let drawn: std::collections::HashSet<u128> =
            (0..1000).flat_map(|_| [one.u128(), two.u128()]).collect();
        assert_eq!(drawn.len(), 2000);
    }

    #[test]
    fn bounds_hold_and_every_number_below_one_comes() {
        let mut chance = Chance::seeded(1);
        assert_eq!(chance.below(0), 0);
        assert_eq!(chance.below(1), 0);
        let mut seen = [0_u32; 6];
        for _ in 0..6000 {
            let drawn = usize::try_from(chance.below(6)).unwrap();
            seen[drawn] += 1;
        }
        assert!(seen.iter().all(|times| (800..1200).contains(times)), "{seen:?}");
    }
}
