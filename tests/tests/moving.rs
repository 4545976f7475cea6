//! Planned moves under a writer that remembers every acknowledgement: no error, no lost write, a short pause.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sconce_tests::another::Another;
use sconce_tests::cluster::{Cluster, SOON};
use sconce_tests::writer::Writer;
use sconce_tests::{checked, client, edit, full, rounds, seed, wait};

const VOLUMES: [(&str, &str); 2] = [("/alone", "none"), ("/twinned", "sync")];
const NODES: [&str; 3] = ["volume-router", "vr-2", "vr-3"];
/// What a guest waits for a move at most. Beside other tests, of a debug build, it is more.
const PAUSE: Duration = Duration::from_millis(300);
const PAUSE_BESIDE_OTHERS: Duration = Duration::from_secs(20);
/// What a busy machine provokes.
const TOLD: [&str; 3] = [
    "was not moved",
    "volume is served here no more",
    // Also of the twin on a node that is stopped before the owner.
    "the twin of the write buffer is lost",
];

/// A twin that waits for the machine is not lost: what moves and where to is what is tested.
fn patient(run: &Path) -> Result<()> {
    edit::set(run, "volume-router", "dtl.timeout", "30s")
}

/// Writes while a command runs.
fn write_during(writers: &mut [Writer], cluster: &Cluster, command: &[&str]) -> Result<()> {
    thread::scope(|scope| {
        let asked = scope.spawn(|| cluster.sconce(command));
        while !asked.is_finished() {
            for writer in &mut *writers {
                let stands = writer.write_for(Duration::from_millis(20))?;
                ensure!(stands, "{command:?}: the connection broke");
            }
        }
        let answer = asked.join().ok().context("the command's thread panicked")?;
        answer.map(drop)
    })
}

#[test]
fn volumes_move_and_nodes_are_drained_under_load() -> Result<()> {
    let seed = seed();
    let mut random = fastrand::Rng::with_seed(seed);
    let mut cluster = Cluster::start_with(patient)?;
    // Of the twins that a drained node had.
    cluster.announce("is given up");
    TOLD.into_iter().for_each(|told| cluster.announce(told));
    let mut others = Vec::new();
    for name in &NODES[1..] {
        let (mut other, _) = Another::volume_router(&cluster, name)?;
        other.start(&cluster)?;
        others.push(other);
    }
    let mut writers = Vec::new();
    for (volume, mode) in VOLUMES {
        cluster.sconce(["volume", "create", volume, "--size", "32M", "--dtl", mode])?;
        writers.push(Writer::connect(&cluster.nbd_socket(), volume, random.u64(..))?);
    }
    let mut pauses = Vec::new();
    for round in 0..rounds(4, 40) {
        for at in 0..VOLUMES.len() {
            let (volume, _) = VOLUMES[at];
            let owner = cluster.show(volume)?["owner"]
                .as_str()
                .unwrap_or_default()
                .to_owned();
            let others = NODES.iter().filter(|node| **node != owner);
            let to = others.copied().nth(random.usize(0..2)).context("no other node")?;
            let writer = std::slice::from_mut(&mut writers[at]);
            let board = writer[0].board();
            board.lost();
            write_during(writer, &cluster, &["volume", "move", volume, to])?;
            pauses.push(board.longest_pause());
            let shown = cluster.show(volume)?;
            ensure!(
                shown["owner"] == to,
                "round {round}: {volume} was moved to {to}: {shown}"
            );
            writer[0]
                .check()
                .with_context(|| format!("round {round}: {volume}"))?;
        }
    }
    pauses.sort();
    eprintln!("pauses of moves: {pauses:?}");
    let median = pauses[pauses.len() / 2];
    let bound = if full() { PAUSE } else { PAUSE_BESIDE_OTHERS };
    ensure!(median < bound, "median {median:?} of {pauses:?}");

    // Whoever has the most is emptied.
    let begun = Instant::now();
    for node in NODES {
        write_during(&mut writers, &cluster, &["node", "drain", node])?;
        for (volume, mode) in VOLUMES {
            let shown = cluster.show(volume)?;
            ensure!(shown["owner"] != node, "{node} is drained: {shown}");
            ensure!(
                mode == "none" || shown["dtl_host"] != node,
                "{node} is drained: {shown}"
            );
        }
        cluster.sconce(["node", "undrain", node])?;
    }
    eprintln!("three nodes drained in {:?}", begun.elapsed());
    wait::until("the twin to be in sync", SOON, || {
        let shown = cluster.show("/twinned")?;
        Ok((shown["dtl_state"] == "in_sync" && shown["dtl_mode"] == "sync").then_some(()))
    })?;
    ensure!(
        cluster.show("/alone")?["dtl_mode"] == "none",
        "a move changes no mode"
    );
    for writer in &mut writers {
        writer.check()?;
    }
    drop(writers);
    // Everything is stored and released where it is.
    for mut other in others {
        other.stop()?;
    }
    checked::stopped_and_consistent(&cluster)?;
    cluster.finish()
}

/// Volumes of each volume-router, as `sconce node list` says.
fn shares(cluster: &Cluster) -> Result<Vec<(String, u64)>> {
    let listed = cluster.sconce(["node", "list", "--output", "json"])?;
    let listed: Vec<serde_json::Value> = serde_json::from_str(&listed)?;
    let share = |node: &serde_json::Value| {
        let name = node["name"].as_str().unwrap_or_default().to_owned();
        (name, node["volumes"].as_u64().unwrap_or_default())
    };
    Ok(listed.iter().map(share).collect())
}

#[test]
fn volumes_go_to_their_io_and_to_a_node_that_joins() -> Result<()> {
    const NEAR: &str = "vr-near";
    const JOINED: &str = "vr-joined";
    let quick = [
        ("every", "200ms"),
        ("stable", "1s"),
        ("settle", "1s"),
        ("window", "2s"),
        ("io_min", "64KiB"),
    ];
    let mut cluster = Cluster::start_with(|run| {
        patient(run)?;
        for (key, value) in quick {
            edit::set(run, "volume-router", &format!("placement.{key}"), value)?;
        }
        edit::set(run, "volume-router", "placement.follow_io", true)?;
        // Guests are on another machine than the first volume-router.
        edit::set(run, "volume-router", "node.host", "far")?;
        edit::set(run, "fs-router", "node.host", "near")
    })?;
    TOLD.into_iter().for_each(|told| cluster.announce(told));
    cluster.sconce(["volume", "create", "/written", "--size", "32M"])?;
    let mut writer = Writer::connect(&cluster.nbd_socket(), "/written", seed())?;
    let mut write_until = |what: &str, done: &dyn Fn() -> Result<bool>| -> Result<()> {
        let end = Instant::now() + 5 * SOON;
        while !done()? {
            ensure!(Instant::now() < end, "{what} did not come about");
            let stands = writer.write_for(Duration::from_millis(100))?;
            ensure!(stands, "the connection broke before {what}");
        }
        writer.check().with_context(|| what.to_owned())
    };
    let (mut near, _) = Another::volume_router(&cluster, NEAR)?;
    edit::set(cluster.run_dir(), NEAR, "node.host", "near")?;
    near.start(&cluster)?;
    write_until("a volume that is where its IO comes from", &|| {
        let shown = cluster.show("/written")?;
        Ok(shown["owner"] == NEAR && shown["last_move"]["why"] == "io")
    })?;

    for number in 0..8 {
        let volume = format!("/idle-{number}");
        cluster.sconce(["volume", "create", &volume, "--size", "1M", "--owner", NEAR])?;
    }
    let (mut joined, _) = Another::volume_router(&cluster, JOINED)?;
    joined.start(&cluster)?;
    write_until("an even share for everybody", &|| {
        let shares = shares(&cluster)?;
        let most = shares.iter().map(|(_, volumes)| *volumes).max();
        let least = shares.iter().map(|(_, volumes)| *volumes).min();
        Ok(shares.len() == 3 && most <= least.map(|least| least + 2))
    })?;
    let shown = cluster.show("/written")?;
    ensure!(shown["owner"] == NEAR, "it is where its IO comes from: {shown}");
    wait::until("the status to tell why the others moved", SOON, || {
        // Its exit code is about what is at risk, or about who does not answer at the moment.
        let told = client::output(cluster.command()?.arg("status"))?;
        let told = String::from_utf8_lossy(&told.stdout).into_owned();
        Ok(told.contains("its owner had more volumes").then_some(()))
    })?;
    drop(writer);
    joined.stop()?;
    near.stop()?;
    checked::stopped_and_consistent(&cluster)?;
    cluster.finish()
}
