//! The distributed transaction log: machines are lost, disk and all, under a writer that remembers every acknowledgement.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sconce_tests::machines::Machines;
use sconce_tests::writer::Writer;
use sconce_tests::{full, rounds, seed};

const VOLUME: &str = "/stamped";
/// From the loss of an owner to the first answer of the next, beyond the lease.
const FIRST_ANSWER: Duration = Duration::from_secs(3);

/// The shortest that a registry grants; beside other tests one that a volume-router renews in time although it waits for the machine.
fn lease() -> Duration {
    Duration::from_secs(if full() { 2 } else { 10 })
}

#[test]
fn no_acknowledged_write_is_lost_with_the_machine_of_its_owner() -> Result<()> {
    let seed = seed();
    let mut random = fastrand::Rng::with_seed(seed);
    let mut machines = Machines::start(lease())?;
    machines
        .cluster
        .sconce(["volume", "create", VOLUME, "--size", "32M", "--dtl", "sync"])?;
    let mut writer = Writer::connect(&machines.cluster.nbd_socket(), VOLUME, seed)?;
    let mut answers = Vec::new();
    for round in 0..rounds(4, 50) {
        let told = || format!("round {round}");
        machines.wait_in_sync(VOLUME).with_context(told)?;
        // On a busy machine a twin may be late and be given up: then it is not yet its turn.
        let (owner, lost) = loop {
            let stands = writer.write_for(Duration::from_millis(random.u64(20..700)))?;
            ensure!(
                stands,
                "{}: the connection broke before anything was lost",
                told()
            );
            if machines.is_in_sync(VOLUME)?.is_none() {
                continue;
            }
            let owner = machines.owner(VOLUME)?;
            let lost = Instant::now();
            if machines.lose(&owner, VOLUME).with_context(told)? {
                break (owner, lost);
            }
        };
        let answered = writer.first_answer(lost).with_context(told)?;
        answers.push(answered);
        let next = machines.owner(VOLUME)?;
        ensure!(next != owner, "{}: {owner} is lost and owns {VOLUME}", told());
        // Alone meanwhile, or with the third.
        let stands = writer.write_for(Duration::from_millis(random.u64(20..300)))?;
        ensure!(stands, "{}: the connection broke after {owner} was lost", told());
        writer.check().with_context(told)?;
        machines.replace(&owner)?;
    }
    answers.sort();
    let median = answers[answers.len() / 2];
    eprintln!(
        "{} writes; from the loss to the first answer: {answers:?}",
        writer.written()
    );
    let bound = match full() {
        true => FIRST_ANSWER,
        // Beside other tests.
        false => 4 * FIRST_ANSWER,
    };
    ensure!(median < bound + lease(), "median {median:?} of {answers:?}");
    machines.finish()
}
