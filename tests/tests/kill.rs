//! Proof 4: any service dies at any moment, under a writer that remembers every acknowledgement.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sconce_tests::cluster::{Cluster, Service};
use sconce_tests::writer::Writer;
use sconce_tests::{checked, full, rounds, seed};

const VOLUME: &str = "/stamped";

/// What dies together.
const VICTIMS: [&[Service]; 6] = [
    &[Service::VolumeRouter],
    &[Service::FsRouter],
    &[Service::StorageRouter],
    &[Service::VolumeRouter, Service::FsRouter],
    &[Service::VolumeRouter, Service::StorageRouter],
    &Service::ALL,
];

/// From the kill to the first answer to a write that was sent after it, as the median over the rounds.
const FIRST_ANSWER_MEDIAN: Duration = Duration::from_secs(1);
/// Beside other tests.
const FIRST_ANSWER_MEDIAN_SHORT: Duration = Duration::from_secs(10);

#[test]
fn no_acknowledged_write_is_lost_by_kill_9_of_any_service() -> Result<()> {
    let seed = seed();
    let mut random = fastrand::Rng::with_seed(seed);
    let mut cluster = Cluster::start()?;
    // What the volume-router says while the storage-router, which hosts the registry, is away.
    for told in ["storing does not work now", "cannot announce this node"] {
        cluster.announce(told);
    }
    cluster.create(VOLUME, "32M")?;
    let mut writer = Writer::connect(&cluster.nbd_socket(), VOLUME, seed)?;
    let mut answers = Vec::new();
    for round in 0..rounds(12, 100) {
        let victims = VICTIMS[usize::try_from(round)? % VICTIMS.len()];
        let told = || format!("round {round}, killed {victims:?}");
        ensure!(
            writer.write_for(Duration::from_millis(random.u64(20..700)))?,
            "{}: the connection broke before anything was killed",
            told()
        );
        let mut before = Vec::new();
        let killed = Instant::now();
        for victim in victims {
            before.push((*victim, cluster.kill(*victim)?));
        }
        let client_keeps_its_connection = !victims.contains(&Service::FsRouter);
        if client_keeps_its_connection {
            ensure!(
                writer.write_for(Duration::from_millis(50))?,
                "{}: the client lost its connection, and the fs-router lives",
                told()
            );
        }
        answers.push(writer.first_answer(killed).with_context(told)?);
        for (victim, pid) in before {
            cluster.restarted(victim, pid)?;
        }
        writer.check().with_context(told)?;
    }
    answers.sort();
    let median = answers[answers.len() / 2];
    eprintln!(
        "{} writes; from kill to first answer: median {median:?}, most {:?}",
        writer.written(),
        answers.last()
    );
    let bound = if full() {
        FIRST_ANSWER_MEDIAN
    } else {
        FIRST_ANSWER_MEDIAN_SHORT
    };
    ensure!(
        median < bound,
        "from kill to first answer: median {median:?}, all {answers:?}"
    );

    // All of it is consistent, down to the last cluster; and what was kept in one life of the cluster is there in the next.
    checked::stopped_and_consistent(&cluster)?;
    cluster.script(&["up"])?;
    writer.reconnect()?;
    cluster.finish()
}
