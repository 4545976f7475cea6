//! The routing core in a seeded world: whatever is lost, delayed, duplicated or moved, each operation ends once and
//! is applied once, an owner can rely on the numbers, and a session on a snapshot never reads another.

mod core_world;

use core_world::{Rough, World};

fn run(seed: u64, rough: Rough, steps: usize) -> World {
    let mut world = World::new(seed, rough);
    for _ in 0..steps {
        if world.chance.one_of(1, 3) {
            world.submit();
        }
        world.step();
        world.check_content();
    }
    world.calm();
    let mut left = 200_000;
    while world.outstanding() > 0 || world.core.held_requests() > 0 {
        world.step();
        left -= 1;
        assert!(left > 0, "seed {seed}: {} operations hang", world.outstanding());
    }
    world.check_content();
    world.check_cache();
    assert!(
        !world.is_haunted(),
        "seed {seed}: every abandoned operation is settled"
    );
    world
}

fn seeds(variable: &str, default: u64) -> std::ops::Range<u64> {
    let count = std::env::var(variable).ok().and_then(|text| text.parse().ok());
    0..count.unwrap_or(default)
}

#[test]
fn in_a_rough_world_each_operation_ends_once_and_is_applied_once() {
    let (mut completed, mut resends, mut gone) = (0, 0, 0);
    for seed in seeds("SCONCE_ROUTING_SEEDS", 60) {
        let world = run(seed, Rough::VERY, 1500);
        completed += world.completed;
        resends += world.resends;
        gone += world.ended_gone;
    }
    // The world was rough indeed.
    assert!(
        completed > 5_000 && resends > 500 && gone > 100,
        "{completed} completed, {resends} sent again, {gone} of snapshots that were gone"
    );
}

#[test]
fn in_a_quiet_world_nothing_is_sent_twice() {
    for seed in seeds("SCONCE_ROUTING_SEEDS", 20) {
        let world = run(seed, Rough::NOT, 1500);
        assert_eq!(world.resends, 0, "seed {seed}");
    }
}

#[test]
fn with_a_cache_each_operation_ends_and_no_fetch_that_others_wait_for_is_forgotten() {
    let (mut hits, mut fetched, mut waited) = (0, 0, 0);
    for seed in seeds("SCONCE_ROUTING_SEEDS", 30) {
        let world = run(seed, Rough::VERY.with_cache(800), 1500);
        hits += world.cache_hits();
        fetched += world.cache_kept();
        waited += world.cache_waits();
    }
    assert!(
        hits > 300 && fetched > 300 && waited > 10,
        "{hits} found, {fetched} fetched and kept, {waited} that waited for another's fetch"
    );
}
