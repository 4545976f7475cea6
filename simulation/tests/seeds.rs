//! Seeds: they repeat, they are clean, and where a rule is left out some of them tell.
//!
//! More of them: `make simulate SEEDS=10000`.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test: what goes wrong fails it"
)]

use std::path::Path;

use sconce_runtime::simulated::Planted;
use sconce_simulation::{Fault, Plan, Report, run};
use tempfile::TempDir;

/// Seeds of a bounded run; a full one has so many times more.
const SEEDS: u64 = 3;
const FULL_TIMES: u64 = 50;
/// One of so many seeds tells what is planted.
const SEEDS_MAX: u64 = 60;

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
    let differs = first
        .trace
        .lines()
        .zip(again.trace.lines())
        .find(|(one, other)| one != other);
    assert_eq!(differs, None);
    assert_eq!(first, again);
    assert!(first.operations > 100 && !first.faults.is_empty(), "{first:?}");
}

#[test]
fn guests_see_one_disk_whatever_happens() {
    let times = if std::env::var_os("SCONCE_TEST_FULL").is_some() {
        FULL_TIMES
    } else {
        1
    };
    let mut operations = 0;
    for seed in 1..=SEEDS * times {
        let report = lived(&Plan::of(seed));
        assert_eq!(
            report.failures,
            Vec::<String>::new(),
            "seed {seed}, faults {:?}",
            report.faults
        );
        operations += report.operations;
    }
    assert!(operations > 200 * SEEDS * times, "{operations} operations");
}

fn planted(rules: &[Planted], storm: &[Fault], reads: bool, seed: u64) -> Plan {
    Plan {
        planted: rules.to_vec(),
        faults: storm.to_vec(),
        reads,
        ..Plan::of(seed)
    }
}

/// Some seed tells that these rules are left out, `first` where nothing changed since; gives it.
fn found(rules: &[Planted], storm: &[Fault], reads: bool, first: u64) -> u64 {
    let tells = |seed: &u64| !lived(&planted(rules, storm, reads, *seed)).failures.is_empty();
    let found = (first..first + SEEDS_MAX).find(tells);
    found.unwrap_or_else(|| panic!("{rules:?} is not found by {SEEDS_MAX} seeds from {first} on"))
}

#[test]
fn an_acknowledgement_before_the_twin_has_it_is_found() {
    found(&[Planted::AckBeforeTwin], &[Fault::OwnerLost], true, 1);
}

#[test]
fn a_stale_read_after_fencing_is_found() {
    found(&[Planted::NoLease], &[Fault::OwnerFenced], true, 1);
}

#[test]
fn a_resend_with_a_new_number_is_found() {
    found(&[Planted::ResendAnew], &[Fault::Weather], true, 35);
}

/// Only an owner that does not know that its lease is over still asks the twin: without the lease the seal is what holds, for
/// whoever does not read.
#[test]
fn a_takeover_without_a_seal_is_found_and_the_seal_holds_without_the_lease() {
    let storm = [Fault::RegistryCut];
    let seed = found(&[Planted::NoLease, Planted::NoSeal], &storm, false, 1);
    let sealed = lived(&planted(&[Planted::NoLease], &storm, false, seed));
    assert_eq!(sealed.failures, Vec::<String>::new());
}
