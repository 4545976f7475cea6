//! Snapshots of several volumes at one instant: real engines, the real order of rounds, and a writer that sends each write
//! only when the one before it was acknowledged, to one volume or another. Every order in which things can happen is tried,
//! and each kind of owner or coordinator that is broken on purpose has to be found out.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a broken promise ends the test")]

mod group_world;

use group_world::{Broken, Choices, Faults, World};

/// Runs all orders of one world; gives how many there were, how many cuts came about, and the first that was wrong.
fn all_orders(pattern: &[usize], expiries: usize, broken: Broken) -> (usize, usize, Option<String>) {
    let (mut runs, mut cuts) = (0, 0);
    let mut wrong = None;
    let mut choices = Choices::first();
    loop {
        let mut world = World::new(2, pattern.to_vec(), Faults::expiries(expiries), broken);
        while world.step(&mut choices) {}
        runs += 1;
        match world.verdict() {
            Ok(true) => cuts += 1,
            Ok(false) => {}
            Err(text) => {
                wrong.get_or_insert(text);
            }
        }
        match choices.following() {
            Some(following) => choices = following,
            None => return (runs, cuts, wrong),
        }
    }
}

/// Which volume each of `writes` writes goes to: every possibility.
fn patterns(writes: usize) -> impl Iterator<Item = Vec<usize>> {
    (0..1usize << writes).map(move |bits| (0..writes).map(|at| bits >> at & 1).collect())
}

#[test]
fn in_every_order_a_cut_has_no_write_without_the_one_before_it() {
    let (mut runs, mut cuts) = (0, 0);
    for pattern in patterns(5) {
        let (tried, taken, wrong) = all_orders(&pattern, 1, Broken::Nothing);
        assert_eq!(wrong, None, "writes to {pattern:?}");
        runs += tried;
        cuts += taken;
    }
    // Otherwise nothing was shown: neither cuts nor holds that ended too early.
    assert!(
        runs > 10_000 && cuts > 1_000 && cuts < runs,
        "{cuts} cuts in {runs} runs"
    );
}

#[test]
fn owners_and_coordinators_that_are_broken_on_purpose_are_found_out() {
    for broken in [
        Broken::NothingHeld,
        Broken::ConfirmedTooLate,
        Broken::ConfirmedTooEarly,
    ] {
        let found = patterns(5).any(|pattern| all_orders(&pattern, 1, broken).2.is_some());
        assert!(found, "{broken:?} went unnoticed");
    }
}

#[test]
fn whatever_is_lost_or_late_there_is_a_right_cut_or_none() {
    let seeds = std::env::var("SCONCE_SEEDS")
        .ok()
        .and_then(|text| text.parse().ok());
    let seeds: u64 = seeds.unwrap_or(3000);
    let (mut cuts, mut none) = (0, 0);
    for seed in 0..seeds {
        let mut chance = fastrand::Rng::with_seed(seed);
        let volumes = chance.usize(2..5);
        let pattern = (0..chance.usize(4..20))
            .map(|_| chance.usize(0..volumes))
            .collect();
        let mut world = World::new(volumes, pattern, Faults::some(&mut chance), Broken::Nothing);
        let mut choices = Choices::from_seed(seed);
        while world.step(&mut choices) {}
        match world.verdict() {
            Ok(true) => cuts += 1,
            Ok(false) => none += 1,
            Err(text) => panic!("seed {seed}: {text}"),
        }
    }
    let enough = seeds / 50;
    assert!(cuts > enough && none > enough, "{cuts} cuts, {none} times none");
}
