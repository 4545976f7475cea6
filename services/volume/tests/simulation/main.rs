//! Whole lives of a volume from seeds: random operations, crashes before any effect and in the middle of writes, power
//! losses that keep any subset of what was not synced, lost disks; after each crash every byte is compared.
//!
//! `SCONCE_SEEDS=n` runs n seeds (default 300, with `SCONCE_TEST_FULL=1` 3,000), `SCONCE_SEED=n` only that one.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a broken promise ends the test"
)]

mod disk;
mod oracle;
mod scrub;
mod snapshots;
mod world;

use world::World;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn every_life_keeps_its_promises() {
    if let Some(seed) = number("SCONCE_SEED") {
        World::new(seed).run(400);
        return;
    }
    let full = number("SCONCE_TEST_FULL") == Some(1);
    let seeds = number("SCONCE_SEEDS").unwrap_or(if full { 3000 } else { 300 });
    let (mut crashes, mut damages) = (0, 0);
    for seed in 0..seeds {
        let run = std::panic::catch_unwind(|| {
            let mut world = World::new(seed);
            world.run(400);
            (world.crashes, world.damages)
        });
        match run {
            Ok((crashed, damaged)) => (crashes, damages) = (crashes + crashed, damages + damaged),
            Err(_) => panic!("seed {seed} broke a promise; repeat it with SCONCE_SEED={seed}"),
        }
    }
    // A simulation that never crashes proves nothing.
    assert!(
        crashes as u64 > seeds * 4,
        "only {crashes} crashes in {seeds} lives"
    );
    assert!(
        damages as u64 > seeds / 50,
        "only {damages} damaged logs in {seeds} lives"
    );
}

/// Without crashes nothing is left over: the back end has what the SCO table refers to, and in the end nothing.
#[test]
fn a_life_without_crashes_leaves_no_object_too_many() {
    let (mut rewritten, mut removed, mut merged) = (0, 0, 0);
    for seed in 0..40 {
        let mut world = World::new(seed);
        world.may_crash = false;
        world.run(400);
        world.remove_everything();
        let status = world.volume.scrub_status();
        rewritten += status.rewritten;
        removed += status.removed;
        merged += world.merged;
    }
    // Otherwise nothing was shown.
    assert!(
        rewritten > 100 && removed > 100 && merged > 40,
        "{rewritten} rewritten, {merged} of them merged, {removed} removed"
    );
}
