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

mod changes;
mod disk;
mod family;
mod history;
mod oracle;
mod scrub;
mod snapshots;
mod sweep;
mod world;

use std::collections::BTreeMap;

use sconce_schemas::object::ObjectKind;

use family::Family;
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
    let (mut crashes, mut damages, mut moments, mut compared, mut late) = (0, 0, 0, 0, 0);
    let (mut takeovers, mut degraded) = (0, 0);
    let mut swept = BTreeMap::<ObjectKind, u64>::new();
    for seed in 0..seeds {
        let run = std::panic::catch_unwind(|| {
            let mut world = World::new(seed);
            world.run(400);
            (
                world.crashes,
                world.damages,
                world.moments.had,
                world.comparisons.answered,
                world.came_late,
                world.swept,
                (world.twins.takeovers, world.twins.degraded),
            )
        });
        match run {
            Ok((crashed, damaged, had, answered, came_late, gone, (taken_over, lost))) => {
                late += came_late;
                (takeovers, degraded) = (takeovers + taken_over, degraded + lost);
                gone.into_iter()
                    .for_each(|(kind, count)| *swept.entry(kind).or_default() += count);
                (crashes, damages) = (crashes + crashed, damages + damaged);
                (moments, compared) = (moments + had, compared + answered);
            }
            Err(_) => panic!("seed {seed} broke a promise; repeat it with SCONCE_SEED={seed}"),
        }
    }
    assert!(
        compared as u64 > seeds,
        "only {compared} comparisons in {seeds} lives"
    );
    // A simulation that never crashes proves nothing.
    assert!(
        crashes as u64 > seeds * 4,
        "only {crashes} crashes in {seeds} lives"
    );
    assert!(
        damages as u64 > seeds / 50,
        "only {damages} damaged logs in {seeds} lives"
    );
    assert!(
        late as u64 > seeds / 20,
        "only {late} bundles came late in {seeds} lives"
    );
    assert!(
        swept.len() == 3 && swept.values().all(|count| *count > seeds),
        "only {swept:?} were swept in {seeds} lives"
    );
    assert!(
        takeovers as u64 > seeds / 10 && degraded as u64 > seeds / 2,
        "only {takeovers} takeovers by twins, {degraded} twins lost in {seeds} lives"
    );
    assert!(
        moments as u64 > seeds,
        "only {moments} moments were had in {seeds} lives"
    );
}

/// Volumes that are clones of each other's snapshots, on one back end: each keeps its own promises, whatever the others do.
#[test]
fn every_family_keeps_its_promises() {
    if let Some(seed) = number("SCONCE_SEED") {
        Family::new(seed).run(500);
        return;
    }
    let full = number("SCONCE_TEST_FULL") == Some(1);
    let seeds = number("SCONCE_SEEDS").unwrap_or(if full { 3000 } else { 300 }) / 3;
    let (mut clones, mut deep) = (0, 0);
    for seed in 0..seeds {
        let run = std::panic::catch_unwind(|| {
            let mut family = Family::new(seed);
            family.run(500);
            (family.clones, family.deep)
        });
        match run {
            Ok((cloned, of_clones)) => (clones, deep) = (clones + cloned, deep + of_clones),
            Err(_) => panic!("family {seed} broke a promise; repeat it with SCONCE_SEED={seed}"),
        }
    }
    // Otherwise nothing was shown.
    assert!(
        clones as u64 > seeds && deep as u64 > seeds / 20,
        "{clones} clones, {deep} of clones, in {seeds} families"
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
