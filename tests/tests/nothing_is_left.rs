//! Proof: after everything is deleted the back ends hold nothing, whoever died meanwhile.

use std::fs;
use std::io::Write as _;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use sconce_registry::Registry;
use sconce_tests::another::Another;
use sconce_tests::cluster::{Cluster, SOON, Service};
use sconce_tests::nbd::{Ask, Nbd};
use sconce_tests::{checked, client, edit, rounds, seed, wait};
use serde_json::Value;

const SECOND: &str = "second";
const VOLUME_BYTES: u64 = 8 << 20;
/// Two looks, a lease's end and a grace; and a machine that is busy.
const ERASED_WITHIN: Duration = Duration::from_secs(600);

/// What a person would have to look at, and is provoked here: services are away for a while.
const PROVOKED: [&str; 3] = [
    "crash point reached",
    "does not work now: trying again until it does",
    "cannot be served now: trying again until it can",
];

fn start() -> Result<(Cluster, Another)> {
    let mut cluster = Cluster::start_with(|run| {
        for (key, value) in [
            ("erase.grace", "1s"),
            ("erase.adopt_after", "1s"),
            ("scrub.grace", "200ms"),
            ("volumes.checkpoint_idle", "100ms"),
            ("volumes.lease", "3s"),
        ] {
            edit::set(run, "volume-router", key, value)?;
        }
        Ok(())
    })?;
    for told in PROVOKED {
        cluster.announce(told);
    }
    let (second, _) = Another::volume_router(&cluster, SECOND)?;
    Ok((cluster, second))
}

fn json(cluster: &Cluster, arguments: &[&str]) -> Result<Value> {
    let text = cluster.sconce(arguments.iter().chain(&["--output", "json"]))?;
    serde_json::from_str(&text).with_context(|| format!("{arguments:?} printed {text:?}"))
}

/// Not while the command finds fault with something: whoever asks looks again.
fn runs(cluster: &Cluster, name: &str) -> Result<bool> {
    let output = client::output(
        cluster
            .command()?
            .args(["status", "--services", "--output", "json"]),
    )?;
    let status: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let nodes = status["nodes"].as_array().into_iter().flatten();
    Ok(nodes
        .into_iter()
        .any(|node| node["name"] == name && node["state"] != "does not answer"))
}

/// What `sconce status` says that is on its way out; `None` while something does not answer.
fn deletions(cluster: &Cluster) -> Result<Option<Vec<Value>>> {
    let output = client::output(cluster.command()?.args(["status", "--output", "json"]))?;
    let status: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    Ok(status["deletions"].as_array().cloned())
}

fn volumes(cluster: &Cluster) -> Result<Vec<String>> {
    let listed = json(cluster, &["volume", "list"])?;
    let volumes = listed.as_array().into_iter().flatten();
    Ok(volumes
        .filter_map(|volume| volume["path"].as_str().map(str::to_owned))
        .collect())
}

fn snapshots(cluster: &Cluster, volume: &str) -> Result<Vec<String>> {
    let listed = json(cluster, &["snapshot", "list", volume])?;
    let snapshots = listed.as_array().into_iter().flatten();
    Ok(snapshots
        .filter_map(|snapshot| snapshot["path"].as_str().map(str::to_owned))
        .collect())
}

fn write(cluster: &Cluster, volume: &str, random: &mut fastrand::Rng) -> Result<()> {
    let mut nbd = Nbd::connect(&cluster.nbd_socket(), volume, SOON)
        .with_context(|| format!("connecting to {volume}"))?;
    for _ in 0..random.u32(1..40) {
        let length = 4096 * random.u32(1..=32);
        let offset = 4096 * random.u64(0..=(VOLUME_BYTES - u64::from(length)) / 4096);
        if random.u8(..) < 30 {
            nbd.ask(Ask::Trim, offset, length, &[])?;
        } else {
            let data: Vec<u8> = (0..length).map(|_| random.u8(..)).collect();
            nbd.ask(Ask::Write, offset, length, &data)?;
        }
    }
    Ok(())
}

/// Volumes of both owners with all that volumes can have.
fn make(cluster: &Cluster, random: &mut fastrand::Rng) -> Result<()> {
    for number in 0..4 {
        let (path, owner) = (
            format!("/v{number}"),
            [Service::VolumeRouter.name(), SECOND][number % 2],
        );
        let history = if random.bool() { "1h" } else { "off" };
        cluster.sconce([
            "volume",
            "create",
            &path,
            "--size",
            "8M",
            "--sco-size",
            "256K",
            "--owner",
            owner,
            "--history",
            history,
        ])?;
        write(cluster, &path, random)?;
    }
    for number in 0..30 {
        let all = volumes(cluster)?;
        let volume = random.choice(&all).context("there are volumes")?.clone();
        let kept = snapshots(cluster, &volume)?;
        let snapshot = random.choice(&kept).cloned();
        match (random.u8(0..8), snapshot) {
            (0, Some(snapshot)) => {
                cluster.sconce(["clone", &snapshot, &format!("/c{number}")])?;
            }
            (1, Some(snapshot)) => {
                cluster.sconce(["snapshot", "rollback", &snapshot])?;
            }
            (2, Some(snapshot)) => drop(allowed(cluster, &["snapshot", "delete", &snapshot])?),
            (3, _) => drop(allowed(cluster, &["volume", "flatten", &volume])?),
            (4 | 5, _) => {
                cluster.sconce(["snapshot", "create", &format!("{volume}@{number}")])?;
            }
            _ => write(cluster, &volume, random)?,
        }
    }
    Ok(())
}

/// Whether it was done; `false`: refused, because something is a clone, or is none.
fn allowed(cluster: &Cluster, arguments: &[&str]) -> Result<bool> {
    let output = client::output(cluster.command()?.args(arguments))?;
    let told = String::from_utf8_lossy(&output.stderr);
    match output.status.success() {
        true => Ok(true),
        false if told.contains("clone") => Ok(false),
        false => bail!("{arguments:?}: {told}"),
    }
}

/// Deletes snapshots and volumes in random order; some only, if `until` says so.
fn delete(cluster: &Cluster, random: &mut fastrand::Rng, until: usize, with_snapshots: bool) -> Result<()> {
    loop {
        let all = volumes(cluster)?;
        if all.len() <= until {
            return Ok(());
        }
        let volume = random.choice(&all).context("there are volumes")?;
        if with_snapshots && random.bool() {
            let kept = snapshots(cluster, volume)?;
            if let Some(snapshot) = random.choice(&kept) {
                allowed(cluster, &["snapshot", "delete", snapshot])?;
                continue;
            }
        }
        allowed(cluster, &["volume", "delete", volume])?;
    }
}

/// Files of objects on the back end.
fn objects(cluster: &Cluster) -> Result<Vec<String>> {
    let files = cluster.files_in("backend/local")?;
    let names = files.iter().map(|file| file.display().to_string());
    Ok(names
        .filter(|name| name.contains("/sco/") || name.contains("/map/") || name.contains("/manifest/"))
        .collect())
}

/// The registry's keys but those of what is there without any volume: services, pools and how far they were read, back ends, the root directory.
fn keys(cluster: &Cluster) -> Result<Vec<String>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let registry = Registry::sled(&cluster.path("registry"))?;
    let entries = runtime.block_on(registry.list("", None, usize::MAX))?;
    let root = format!("inode/{:016x}", 1);
    let of_volumes = |key: &String| {
        !["node/", "pool/", "backend/", "deep-scrub"]
            .iter()
            .any(|prefix| key.starts_with(prefix))
            && *key != root
    };
    Ok(entries
        .into_iter()
        .map(|entry| entry.key)
        .filter(of_volumes)
        .collect())
}

#[test]
fn after_everything_is_deleted_nothing_is_left_although_owners_die_meanwhile() -> Result<()> {
    let mut random = fastrand::Rng::with_seed(seed());
    let (cluster, mut second) = start()?;
    for round in 0..rounds(2, 20) {
        let told = || format!("round {round}");
        second.start(&cluster)?;
        wait::until("the second volume-router", SOON, || {
            Ok(runs(&cluster, SECOND)?.then_some(()))
        })?;
        make(&cluster, &mut random).with_context(told)?;

        // What is there is what the volumes account for.
        second.stop()?;
        checked::stopped_and_consistent(&cluster).with_context(told)?;
        ensure!(!objects(&cluster)?.is_empty(), "{}: nothing was stored", told());
        cluster.script(&["up"])?;
        // In every other round it ends by itself, with some objects of a volume gone and others not.
        let ends = round % 2 == 0;
        let crash = format!("during-erasure:{}", random.u8(1..20));
        let armed = [("SCONCE_CRASH_AT", crash.as_str())];
        second.start_with(&cluster, if ends { &armed } else { &[] })?;
        wait::until("the second volume-router", SOON, || {
            Ok(runs(&cluster, SECOND)?.then_some(()))
        })?;

        // One owner dies for good, another dies and comes back, both while they erase.
        let left = random.usize(1..=3);
        delete(&cluster, &mut random, left, !ends).with_context(told)?;
        second.kill()?;
        delete(&cluster, &mut random, 0, false).with_context(told)?;
        let pid = cluster.kill(Service::VolumeRouter)?;
        cluster.restarted(Service::VolumeRouter, pid)?;
        let erased = || {
            let waits_for_buffers = |deletions: &Vec<Value>| {
                let states = deletions
                    .iter()
                    .map(|deletion| deletion["state"].as_str().unwrap_or_default());
                states.into_iter().all(|state| state.starts_with("erased at"))
            };
            Ok(deletions(&cluster)?.filter(waits_for_buffers))
        };
        let (notes, took) = wait::until("all to be erased", ERASED_WITHIN, erased).with_context(told)?;
        eprintln!(
            "{}: erased after {took:?}, {} notes for the one that is away",
            told(),
            notes.len()
        );
        let found = objects(&cluster)?;
        ensure!(found.is_empty(), "{}: {found:#?}", told());

        // It comes back, and what its write buffer holds is worth nothing.
        second.start(&cluster)?;
        let settled = || Ok(deletions(&cluster)?.filter(Vec::is_empty));
        wait::until("what is away to be settled", SOON, settled).with_context(told)?;
        second.stop()?;
        cluster.script(&["down"])?;
        let left = keys(&cluster)?;
        ensure!(left.is_empty(), "{}: {left:#?}", told());
        cluster.script(&["up"])?;
    }
    cluster.finish()
}

#[test]
fn a_file_that_a_lost_fs_router_had_open_without_a_name_is_removed_by_another() -> Result<()> {
    let mut cluster = Cluster::start_with(|run| {
        edit::set(run, "volume-router", "erase.grace", "1s")?;
        edit::set(run, "fs-router", "nameless.adopt_after", "1s")
    })?;
    for told in PROVOKED {
        cluster.announce(told);
    }
    let path = cluster.mounted("/open.txt");
    let mut file = fs::File::create(&path)?;
    file.write_all(&[7; 1 << 20])?;
    file.sync_all()?;
    fs::remove_file(&path)?;
    let held = deletions(&cluster)?.unwrap_or_default();
    ensure!(held.len() == 1 && held[0]["node"] == "fs-router", "{held:?}");
    let mut other = Another::prepare(&cluster, Service::FsRouter, "fs-2", |settings| {
        settings.remove("fuse");
        settings.remove("nbd");
    })?;
    other.start(&cluster)?;
    cluster.kill_for_good(Service::FsRouter)?;
    drop(file);
    let settled = || Ok(deletions(&cluster)?.filter(Vec::is_empty));
    wait::until("the file to go", ERASED_WITHIN, settled)?;
    ensure!(volumes(&cluster)?.is_empty());
    ensure!(objects(&cluster)?.is_empty());
    other.stop()?;
    cluster.start_service(Service::FsRouter)?;
    cluster.ready()?;
    cluster.finish()
}
