//! Clones on their way to independence, from seeds: guests write, discard, snapshot, remove, go back and ask for moments of their history all the while, the
//! process is killed at any moment, and once the registry hears that the clone is independent, everything of its parent is
//! taken away. Every byte of the clone and of its snapshots is compared with a model, before and after.
//!
//! `SCONCE_SEEDS=n` runs n seeds (default 150), `SCONCE_SEED=n` only that one.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a broken promise ends the test")]

mod clone;
mod closure;
mod host;
mod store;

use clone::{Clone, Tally};

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn a_clone_becomes_independent_whatever_happens_and_its_parent_can_go() {
    if let Some(seed) = number("SCONCE_SEED") {
        Clone::new(seed).live();
        return;
    }
    let mut sum = Tally::default();
    let seeds = number("SCONCE_SEEDS").unwrap_or(150);
    for seed in 0..seeds {
        let run = std::panic::catch_unwind(|| Clone::new(seed).live());
        let Ok(tally) = run else {
            panic!("seed {seed} broke a promise; repeat it with SCONCE_SEED={seed}");
        };
        sum.add(&tally);
    }
    // Otherwise little was shown.
    let Tally {
        copied,
        crashes,
        raced,
        failed,
        rollbacks,
        moments,
        moments_meanwhile,
    } = sum;
    assert!(
        copied > 10 * seeds
            && crashes > seeds
            && raced > seeds
            && failed > seeds / 10
            && rollbacks > seeds / 10
            && moments > seeds
            && moments_meanwhile > seeds / 4,
        "{sum:?} in {seeds} lives"
    );
}
