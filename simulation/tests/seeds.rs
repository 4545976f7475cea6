//! Seeds: they repeat, they are clean, and where a rule is left out some of them tell.
//!
//! More of them: `make simulate SEEDS=10000`.

use std::path::Path;

use sconce_runtime::simulated::Planted;
use sconce_simulation::{Plan, Report, run};
use tempfile::TempDir;

/// Seeds of a bounded run; a full one has so many times more.
const SEEDS: u64 = 4;
const FULL_TIMES: u64 = 50;

fn in_memory() -> TempDir {
    let shm = Path::new("/dev/shm");
    match shm.is_dir() {
        true => tempfile::tempdir_in(shm).unwrap(),
        false => tempfile::tempdir().unwrap(),
    }
}

fn lived(plan: &Plan) -> Report {
    run(plan, in_memory().path()).unwrap()
}

#[test]
fn a_seed_repeats_byte_for_byte() {
    let detailed = |seed| Plan {
        is_detailed: true,
        ..Plan::of(seed)
    };
    let (first, again) = (lived(&detailed(3)), lived(&detailed(3)));
    let differs = first.trace.lines().zip(again.trace.lines()).find(|(one, other)| one != other);
    assert_eq!(differs, None);
    assert_eq!(first, again);
    assert!(first.operations > 100 && !first.faults.is_empty(), "{first:?}");
    assert_ne!(first.trace, lived(&detailed(4)).trace);
}

#[test]
fn guests_see_one_disk_whatever_happens() {
    let times = if std::env::var_os("SCONCE_TEST_FULL").is_some() { FULL_TIMES } else { 1 };
    let mut operations = 0;
    for seed in 1..=SEEDS * times {
        let report = lived(&Plan::of(seed));
        assert_eq!(report.failures, Vec::<String>::new(), "seed {seed}, faults {:?}", report.faults);
        operations += report.operations;
    }
    assert!(operations > 200 * SEEDS * times, "{operations} operations");
}

/// The first of these seeds that tells of what is planted.
fn tells(planted: &[Planted], reads: bool, mut seeds: impl Iterator<Item = u64>) -> Option<(u64, String)> {
    seeds.find_map(|seed| {
        let plan = Plan {
            planted: planted.to_vec(),
            reads,
            ..Plan::of(seed)
        };
        let wrong = lived(&plan).failures.into_iter().find(|failure| failure.contains("not linearizable"))?;
        Some((seed, wrong))
    })
}
