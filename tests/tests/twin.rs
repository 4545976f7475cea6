//! The distributed transaction log: machines are lost, disk and all, under a writer that remembers every acknowledgement.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sconce_tests::another::Another;
use sconce_tests::cluster::{Cluster, SOON, Service};
use sconce_tests::writer::Writer;
use sconce_tests::{checked, edit, full, rounds, seed, wait};

const VOLUME: &str = "/stamped";
const LEASE: &str = "2s";
/// From the loss of an owner to the first answer of the next, beyond the lease.
const FIRST_ANSWER: Duration = Duration::from_secs(3);

/// Three volume-routers, each with a write buffer of its own; the first is the cluster's.
struct Machines {
    cluster: Cluster,
    /// With their buffers.
    others: Vec<(&'static str, Another, PathBuf)>,
}

impl Machines {
    fn start() -> Result<Self> {
        let mut cluster = Cluster::start_with(|run| edit::set(run, "volume-router", "volumes.lease", LEASE))?;
        for told in [
            // What is said of a machine that is lost.
            "the twin of the write buffer is lost",
            "cannot be reached",
            "may have acknowledged writes that are only in the write buffer",
        ] {
            cluster.announce(told);
        }
        let mut others = Vec::new();
        for name in ["vr-2", "vr-3"] {
            let (mut other, buffer) = Another::volume_router(&cluster, name)?;
            other.start(&cluster)?;
            others.push((name, other, buffer));
        }
        Ok(Self { cluster, others })
    }

    fn owner(&self) -> Result<String> {
        let shown = self.cluster.show(VOLUME)?;
        Ok(shown["owner"].as_str().context("no owner is shown")?.to_owned())
    }

    fn is_in_sync(&self) -> Result<Option<()>> {
        let shown = self.cluster.show(VOLUME)?;
        Ok((shown["dtl_state"] == "in_sync").then_some(()))
    }

    fn wait_in_sync(&self) -> Result<()> {
        wait::until("the twin to be in sync", SOON, || self.is_in_sync()).map(drop)
    }

    /// The process dies, and its disk is gone.
    fn lose(&mut self, name: &str) -> Result<()> {
        let buffer = match self.others.iter_mut().find(|(other, ..)| *other == name) {
            Some((_, other, buffer)) => {
                other.kill()?;
                buffer.clone()
            }
            None => {
                self.cluster.kill_for_good(Service::VolumeRouter)?;
                self.cluster.path("buffer")
            }
        };
        fs::remove_dir_all(buffer).with_context(|| format!("removing the write buffer of {name}"))
    }

    /// The machine comes back with an empty disk.
    fn replace(&mut self, name: &str) -> Result<()> {
        match self.others.iter_mut().find(|(other, ..)| *other == name) {
            Some((_, other, _)) => other.start(&self.cluster),
            None => self.cluster.start_service(Service::VolumeRouter),
        }
    }
}

#[test]
fn no_acknowledged_write_is_lost_with_the_machine_of_its_owner() -> Result<()> {
    let seed = seed();
    let mut random = fastrand::Rng::with_seed(seed);
    let mut machines = Machines::start()?;
    machines
        .cluster
        .sconce(["volume", "create", VOLUME, "--size", "32M", "--dtl", "sync"])?;
    let mut writer = Writer::connect(&machines.cluster.nbd_socket(), VOLUME, seed)?;
    let mut answers = Vec::new();
    for round in 0..rounds(4, 50) {
        let told = || format!("round {round}");
        machines.wait_in_sync().with_context(told)?;
        // On a busy machine a twin may be late and be given up: then it is not yet its turn.
        loop {
            let stands = writer.write_for(Duration::from_millis(random.u64(20..700)))?;
            ensure!(
                stands,
                "{}: the connection broke before anything was lost",
                told()
            );
            if machines.is_in_sync()?.is_some() {
                break;
            }
        }
        let owner = machines.owner()?;
        let lost = Instant::now();
        machines.lose(&owner)?;
        let answered = writer.first_answer(lost).with_context(told)?;
        answers.push(answered);
        let next = machines.owner()?;
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
    ensure!(
        median < bound + Duration::from_secs(2),
        "median {median:?} of {answers:?}"
    );
    drop(machines.others);
    checked::stopped_and_consistent(&machines.cluster)?;
    machines.cluster.finish()
}
