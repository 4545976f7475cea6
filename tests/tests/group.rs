//! Snapshots of several volumes at one instant, with real processes: a writer that writes to one volume only after the other
//! has acknowledged, and what is refused.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use anyhow::{Context, Result, ensure};
use sconce_tests::cluster::{Cluster, SOON};
use sconce_tests::nbd::{Ask, Nbd};
use sconce_tests::{client, rounds, wait};

const CLUSTER: u32 = 4096;
const VOLUMES: [&str; 2] = ["/vm1/data.raw", "/vm1/log.raw"];

/// Writes 1, 2, 3, … in turns to the volumes, each once the one before it was acknowledged, until told to stop.
fn write_in_turns(cluster: &Cluster, stop: &AtomicBool, written: &AtomicU64) -> Result<()> {
    let connect = |volume: &&str| Nbd::connect(&cluster.nbd_socket(), volume, SOON);
    let mut volumes = VOLUMES.iter().map(connect).collect::<Result<Vec<_>, _>>()?;
    for number in 1u64.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let at = usize::try_from(number % 2)?;
        let data = number.to_le_bytes().repeat(CLUSTER as usize / 8);
        volumes[at].ask(Ask::Write, 0, CLUSTER, &data)?;
        written.store(number, Ordering::Relaxed);
    }
    Ok(())
}

/// The last number that a volume or snapshot has.
fn number_of(cluster: &Cluster, export: &str) -> Result<u64> {
    let mut nbd = Nbd::connect(&cluster.nbd_socket(), export, SOON)?;
    let bytes = nbd.ask(Ask::Read, 0, CLUSTER, &[])?;
    let first = bytes.first_chunk::<8>().context("eight bytes of a cluster")?;
    Ok(u64::from_le_bytes(*first))
}

fn json(text: &str) -> Result<serde_json::Value> {
    serde_json::from_str(text).with_context(|| format!("no JSON: {text:?}"))
}

/// What the command says when it does not do what it was told.
fn refused(cluster: &Cluster, arguments: &[&str]) -> Result<String> {
    client::refused(cluster.command()?.args(arguments))
}

#[test]
fn a_cut_through_two_volumes_has_no_write_without_the_one_before_it() -> Result<()> {
    let cluster = Cluster::start()?;
    for volume in VOLUMES {
        cluster.create(volume, "16M")?;
    }
    let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    thread::scope(|scope| -> Result<()> {
        let writer = scope.spawn(|| write_in_turns(&cluster, &stop, &written));
        let cuts = (|| -> Result<()> {
            for round in 0..rounds(6, 60) {
                let before = written.load(Ordering::Relaxed);
                wait::until("the writer to write", SOON, || {
                    Ok((written.load(Ordering::Relaxed) > before).then_some(()))
                })?;
                cut(&cluster, round)?;
            }
            Ok(())
        })();
        stop.store(true, Ordering::Relaxed);
        let wrote = writer
            .join()
            .map_err(|_| anyhow::anyhow!("the writer panicked"))?;
        cuts.and(wrote)
    })?;
    refusals(&cluster)?;
    cluster.finish()
}

fn cut(cluster: &Cluster, round: u32) -> Result<()> {
    let name = format!("cut-{round}");
    let snapshot = format!("/vm1/*.raw@{name}");
    // On a machine that is busy a volume may be too slow, which is said; then there is none.
    let (taken, _) = wait::until("a snapshot of both", SOON, || {
        let mut create = cluster.command()?;
        create.args(["snapshot", "create", "--group", &snapshot]);
        let output = client::output(create.args(["--metadata", "why=a test", "--output", "json"]))?;
        let told = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success() || told.contains("no snapshot was taken"),
            "{told}"
        );
        Ok(output.status.success().then_some(output.stdout))
    })?;
    let taken = json(&String::from_utf8_lossy(&taken))?;
    let snapshots = taken["snapshots"].as_array().context("snapshots")?;
    ensure!(snapshots.len() == 2, "{taken}");
    for snapshot in snapshots {
        let metadata = &snapshot["metadata"];
        ensure!(metadata["group"] == taken["group"], "{taken}");
        ensure!(
            metadata["group-volumes"] == "2" && metadata["why"] == "a test",
            "{taken}"
        );
    }
    let [data, log] = VOLUMES.map(|volume| number_of(cluster, &format!("{volume}@{name}")));
    let (data, log) = (data?, log?);
    // Even numbers are in the first, odd ones in the second.
    ensure!(
        data.abs_diff(log) == 1,
        "round {round}: the cut has {data} and {log}: a write without the one before it"
    );
    Ok(())
}

fn refusals(cluster: &Cluster) -> Result<()> {
    let told = refused(cluster, &["snapshot", "create", "--group", "/vm1/*.raw@cut-0"])?;
    ensure!(told.contains("/vm1/data.raw@cut-0 exists already"), "{told}");
    let told = refused(cluster, &["snapshot", "create", "--group", "/vm2/*@x"])?;
    ensure!(told.contains("/vm2"), "{told}");
    let told = refused(cluster, &["snapshot", "create", "--group", "/vm1/*.iso@x"])?;
    ensure!(told.contains("no volume matches /vm1/*.iso"), "{told}");
    let told = refused(
        cluster,
        &[
            "snapshot",
            "create",
            "--group",
            "/vm1/data.raw@a",
            "/vm1/log.raw@b",
        ],
    )?;
    ensure!(told.contains("one name"), "{told}");
    let told = refused(
        cluster,
        &["snapshot", "create", "/vm1/data.raw@a", "/vm1/log.raw@a"],
    )?;
    ensure!(told.contains("--group"), "{told}");

    // A group whose member has a clone stays whole.
    cluster.sconce(["clone", "/vm1/log.raw@cut-0", "/vm2/log.raw"])?;
    let told = refused(cluster, &["snapshot", "delete", "--group", "/vm1/*.raw@cut-0"])?;
    ensure!(told.contains("/vm2/log.raw"), "{told}");
    for volume in VOLUMES {
        cluster.sconce(["snapshot", "show", &format!("{volume}@cut-0")])?;
    }
    cluster.sconce(["volume", "delete", "/vm2/log.raw"])?;
    let told = cluster.sconce(["snapshot", "delete", "--group", "/vm1/*.raw@cut-0"])?;
    ensure!(told.contains("/vm1/data.raw@cut-0 deleted"), "{told}");
    for volume in VOLUMES {
        refused(cluster, &["snapshot", "show", &format!("{volume}@cut-0")])?;
    }
    Ok(())
}
