//! Hit rates of working sets of half, one and two times the cache, uniform and by Zipf's law, against the best that anyone who knew
//! the future could do (Belady), and against the best that nobody who does not can exceed.

#![expect(clippy::unwrap_used, reason = "a test: what goes wrong fails it")]

use std::collections::{BTreeSet, HashMap, VecDeque};

use sconce_cache::{Key, Policy};

const CAPACITY: usize = 2000;
const ACCESSES: usize = 60_000;
/// As in studies of block traces.
const ZIPF_EXPONENT: f64 = 0.9;

fn key(number: u32) -> Key {
    let mut key = [0; sconce_cache::KEY_LEN];
    key[..4].copy_from_slice(&number.to_le_bytes());
    Key(key)
}

/// Draws numbers below `weights.len()`, each as often as its weight says.
struct Draw {
    sums: Vec<f64>,
}

impl Draw {
    fn new(pieces: usize, exponent: f64) -> Self {
        let mut sum = 0.0;
        let sums = (1..=pieces)
            .map(|rank| {
                #[expect(clippy::cast_precision_loss, reason = "a rank of some thousands")]
                let weight = (rank as f64).powf(-exponent);
                sum += weight;
                sum
            })
            .collect();
        Self { sums }
    }

    fn trace(&self, accesses: usize, random: &mut fastrand::Rng) -> Vec<u32> {
        let total = self.sums.last().copied().unwrap_or(0.0);
        (0..accesses)
            .map(|_| {
                let drawn = random.f64() * total;
                let rank = self.sums.partition_point(|sum| *sum < drawn);
                u32::try_from(rank.min(self.sums.len() - 1)).unwrap()
            })
            .collect()
    }

    /// The part of accesses to the pieces that are accessed most.
    fn of_the_first(&self, pieces: usize) -> f64 {
        self.sums[pieces.min(self.sums.len()) - 1] / self.sums[self.sums.len() - 1]
    }
}

/// Hits of a trace's second half.
fn policy(trace: &[u32]) -> f64 {
    let mut policy = Policy::new(CAPACITY, 1);
    rate(trace, |number| {
        let key = key(number);
        let hit = policy.use_of(&key).is_some();
        if !hit {
            policy.insert(&key, number, &mut |_| {});
        }
        hit
    })
}

fn fifo(trace: &[u32]) -> f64 {
    let mut there = BTreeSet::new();
    let mut order = VecDeque::new();
    rate(trace, |number| {
        let hit = !there.insert(number);
        if !hit {
            order.push_back(number);
            if order.len() > CAPACITY {
                order.pop_front().map(|oldest| there.remove(&oldest));
            }
        }
        hit
    })
}

fn lru(trace: &[u32]) -> f64 {
    let mut last = HashMap::new();
    let mut order = BTreeSet::new();
    let mut now = 0_u64;
    rate(trace, |number| {
        now += 1;
        let before = last.insert(number, now);
        if let Some(before) = before {
            order.remove(&(before, number));
        }
        order.insert((now, number));
        if order.len() > CAPACITY
            && let Some((_, oldest)) = order.pop_first()
        {
            last.remove(&oldest);
        }
        before.is_some()
    })
}

/// Evicts what is used again last; takes nothing in that is used again later than all that is there.
fn belady(trace: &[u32]) -> f64 {
    let mut next = vec![usize::MAX; trace.len()];
    let mut seen = HashMap::new();
    for (at, number) in trace.iter().enumerate().rev() {
        if let Some(later) = seen.insert(number, at) {
            next[at] = later;
        }
    }
    let mut there = BTreeSet::new();
    let mut at = 0;
    rate(trace, |number| {
        let hit = there.remove(&(at, number));
        there.insert((next[at], number));
        if there.len() > CAPACITY {
            there.pop_last();
        }
        at += 1;
        hit
    })
}

#[expect(clippy::cast_precision_loss, reason = "counts of some hundred thousands")]
fn rate(trace: &[u32], mut access: impl FnMut(u32) -> bool) -> f64 {
    let half = trace.len() / 2;
    let mut hits = 0;
    for (at, number) in trace.iter().enumerate() {
        if access(*number) && at >= half {
            hits += 1;
        }
    }
    f64::from(hits) / (trace.len() - half) as f64
}

#[test]
fn hit_rates_are_near_the_best_that_can_be() {
    println!("| working set | accesses | this | LRU | FIFO | best online | best offline |");
    println!("|---:|---|---:|---:|---:|---:|---:|");
    for (name, exponent) in [("uniform", 0.0), ("zipf 0.9", ZIPF_EXPONENT)] {
        for (set, pieces) in [("0.5", CAPACITY / 2), ("1", CAPACITY), ("2", CAPACITY * 2)] {
            let draw = Draw::new(pieces, exponent);
            let trace = draw.trace(ACCESSES, &mut fastrand::Rng::with_seed(1));
            // Who knows how often each is accessed, and nothing else: accesses are independent, so no more can be known.
            let online = draw.of_the_first(CAPACITY);
            let (ours, offline) = (policy(&trace), belady(&trace));
            println!(
                "| {set} | {name} | {ours:.3} | {:.3} | {:.3} | {online:.3} | {offline:.3} |",
                lru(&trace),
                fifo(&trace)
            );
            assert!(
                ours <= offline + 1e-9,
                "{name} {set}: {ours} is more than can be ({offline})"
            );
            assert!(ours >= 0.95 * online, "{name} {set}: {ours} of {online}");
            // Of independent uniform accesses nobody can tell which piece is next: the best online is this far from the best offline.
            let of_offline = if exponent == 0.0 { 0.6 } else { 0.85 };
            assert!(ours >= of_offline * offline, "{name} {set}: {ours} of {offline}");
        }
    }
}

#[test]
fn a_scan_of_ten_times_the_cache_does_not_push_out_what_is_used() {
    let draw = Draw::new(CAPACITY, ZIPF_EXPONENT);
    let mut random = fastrand::Rng::with_seed(2);
    let mut policy = Policy::new(CAPACITY, 1);
    let mut access = |number: u32| {
        let key = key(number);
        let hit = policy.use_of(&key).is_some();
        if !hit {
            policy.insert(&key, number, &mut |_| {});
        }
        hit
    };
    let hits = |accesses: usize, random: &mut fastrand::Rng, access: &mut dyn FnMut(u32) -> bool| {
        draw.trace(accesses, random)
            .into_iter()
            .filter(|number| access(*number))
            .count()
    };
    hits(100_000, &mut random, &mut access);
    let before = hits(10_000, &mut random, &mut access);
    for number in 0..u32::try_from(CAPACITY * 10).unwrap() {
        access(1_000_000 + number);
    }
    let after = hits(10_000, &mut random, &mut access);
    assert!(
        after * 100 >= before * 90,
        "{after} hits of 10,000 after a scan, {before} before"
    );
}

#[test]
fn a_working_set_that_moves_is_followed() {
    let mut policy = Policy::new(CAPACITY, 1);
    // What the cache was filled with first is never used again.
    for number in 0..u32::try_from(CAPACITY * 2).unwrap() {
        policy.insert(&key(1_000_000 + number), number, &mut |_| {});
    }
    // More than what newcomers have as their room, again and again in the same order: that it left soon before is all that tells.
    let mut hits = 0;
    for number in (0..u32::try_from(CAPACITY / 4).unwrap())
        .cycle()
        .take(20 * CAPACITY)
    {
        let key = key(number);
        match policy.use_of(&key) {
            Some(_) => hits += 1,
            None => policy.insert(&key, number, &mut |_| {}),
        }
    }
    assert!(hits > 15 * CAPACITY, "{hits} hits of {}", 20 * CAPACITY);
}
