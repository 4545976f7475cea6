//! What a person is told while an owner is lost: the stream of events, and the status before and after.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use sconce_tests::another::Another;
use sconce_tests::cluster::{Cluster, SOON, Service};
use sconce_tests::writer::Writer;
use sconce_tests::{client, edit, full, seed, wait};
use serde_json::Value;

const VOLUME: &str = "/stamped";
const FIRST: &str = "volume-router";
const SECOND: &str = "vr-2";

/// `sconce events --follow`, from its start on.
struct Follower {
    child: Child,
    file: PathBuf,
}

impl Follower {
    fn start(cluster: &Cluster) -> Result<Self> {
        let file = cluster.path("events.jsonl");
        // Whatever becomes of the test, nothing stays.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL"])
            .arg(Cluster::binaries()?.join("sconce"))
            .arg("--cluster")
            .arg(cluster.path("sconce.toml"))
            .args(["events", "--follow", "--output", "json"])
            .stdin(Stdio::null())
            .stdout(fs::File::create(&file)?)
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Self { child, file })
    }

    fn told(&self) -> Result<Vec<Value>> {
        let text = fs::read_to_string(&self.file)?;
        // The last line may be on its way.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        lines(whole)
    }

    /// Waits until an event of this kind was told by this node; where several see the same, by any.
    fn wait_for(&self, kind: &str, node: Option<&str>) -> Result<()> {
        let is_it = |event: &Value| event["kind"] == kind && node.is_none_or(|node| event["node"] == node);
        let told = wait::until(&format!("{kind} of {node:?}"), SOON, || {
            Ok(self.told()?.iter().any(is_it).then_some(()))
        });
        told.map(drop)
            .with_context(|| format!("told was: {:#?}", self.told().unwrap_or_default()))
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        // One that ended by itself cannot be killed any more.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn lines(text: &str) -> Result<Vec<Value>> {
    let line = |line: &str| serde_json::from_str(line).with_context(|| format!("no JSON: {line:?}"));
    text.lines().map(line).collect()
}

/// Whatever its exit code: it says that something is at risk.
fn status(cluster: &Cluster) -> Result<Value> {
    let output = client::output(cluster.command()?.args(["status", "--output", "json"]))?;
    let said = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&said).with_context(|| format!("sconce status printed {said:?}"))
}

/// Looks at the status until it is right: a service that is slow is not in it. Gives it; where it never is, the error has the last one.
fn status_is(cluster: &Cluster, what: &str, is_right: impl Fn(&Value) -> bool) -> Result<Value> {
    let mut last = Value::Null;
    let found = wait::until(what, SOON, || {
        last = status(cluster)?;
        Ok(is_right(&last).then(|| last.clone()))
    });
    Ok(found.with_context(|| format!("the status is {last}"))?.0)
}

fn volume(status: &Value) -> Value {
    let volumes = status["volumes"].as_array().into_iter().flatten();
    let mut found = volumes.filter(|volume| volume["path"] == VOLUME);
    found.next().cloned().unwrap_or_default()
}

/// Kinds of the volume's events, with who tells them, as far as they are among `kinds`.
fn story(told: &[Value], kinds: &[&str]) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    told.iter()
        .filter(|event| event["volume"] == VOLUME)
        .map(|event| (text(&event["kind"]), text(&event["node"])))
        .filter(|(kind, _)| kinds.contains(&kind.as_str()))
        .collect()
}

/// Each event is a line of its service's log: neither says what the other does not.
fn stream_is_log(cluster: &Cluster, told: &[Value], node: &str) -> Result<()> {
    let log = fs::read_to_string(cluster.path(&format!("{node}.log")))?;
    let of_node = told
        .iter()
        .filter(|event| event["node"] == node && !event["seq"].is_null());
    let mut count = 0;
    for event in of_node {
        let (seq, kind) = (&event["seq"], event["kind"].as_str().unwrap_or_default());
        let text = event["text"].as_str().context("an event without a text")?;
        let said = text.strip_prefix(&format!("volume {VOLUME}: ")).unwrap_or(text);
        let is_it =
            |line: &&str| line.contains(said) && line.contains(&format!("seq={seq}")) && line.contains(kind);
        if log.lines().find(is_it).is_none() {
            bail!("{event} is no line in the log of {node}");
        }
        count += 1;
    }
    ensure!(count > 0, "{node} told nothing");
    Ok(())
}

#[test]
fn the_loss_of_an_owner_is_told_in_order_and_what_is_at_risk_before() -> Result<()> {
    let seed = seed();
    // The story is told to the letter below: beside other tests neither a lease nor a twin is lost because it waits for the machine.
    let lease = if full() { "2s" } else { "10s" };
    let mut cluster = Cluster::start_with(|run| {
        edit::set(run, "volume-router", "volumes.lease", lease)?;
        edit::set(run, "volume-router", "dtl.timeout", "30s")
    })?;
    for told in [
        "the twin of the write buffer is lost",
        "cannot be reached",
        "volume is served here no more",
        "does not work now: trying again",
    ] {
        cluster.announce(told);
    }
    let follower = Follower::start(&cluster)?;
    cluster.sconce(["volume", "create", VOLUME, "--size", "32M", "--dtl", "sync"])?;
    let mut writer = Writer::connect(&cluster.nbd_socket(), VOLUME, seed)?;

    // Alone: what was acknowledged is in one write buffer.
    wait::until("status to tell what is at risk", SOON, || {
        ensure!(
            writer.write_for(Duration::from_millis(20))?,
            "the connection broke"
        );
        let status = status(&cluster)?;
        let volume = volume(&status);
        let risk = &status["risks"][0];
        let is_told = volume["dtl_state"] == "degraded"
            && volume["state"] == "serving"
            && status["healthy"] == false
            && risk["node"] == FIRST
            && risk["paths"][0] == VOLUME
            && risk["bytes"].as_u64() > Some(0)
            && volume["at_risk_bytes"].as_u64() > Some(0);
        Ok(is_told.then_some(()))
    })?;
    follower.wait_for("twin_not_found", Some(FIRST))?;
    let alone = status_is(&cluster, "status to tell why there is no twin", |status| {
        let alone = volume(status);
        let trouble = alone["dtl_trouble"].as_str().unwrap_or_default();
        trouble.contains("no other volume-router runs")
            && !alone["owned_since"].is_null()
            && !alone["dtl_since"].is_null()
    })?;
    let alone = volume(&alone);

    // In two: nothing is at risk.
    let (mut second, _) = Another::volume_router(&cluster, SECOND)?;
    second.start(&cluster)?;
    follower.wait_for("in_sync", Some(FIRST))?;
    ensure!(
        writer.write_for(Duration::from_millis(50))?,
        "the connection broke"
    );
    status_is(&cluster, "status to tell that nothing is at risk", |safe| {
        safe["risks"] == Value::Array(Vec::new())
            && safe["healthy"] == true
            && volume(safe)["dtl_host"] == SECOND
            && volume(safe)["at_risk_bytes"] == 0
    })?;

    // The owner is lost for good.
    let lost = Instant::now();
    cluster.kill_for_good(Service::VolumeRouter)?;
    writer.first_answer(lost)?;
    follower.wait_for("owned", Some(SECOND))?;
    follower.wait_for("node_left", None)?;
    let after = status_is(&cluster, "status to tell of the next owner", |status| {
        let after = volume(status);
        after["owner"] == SECOND && after["dtl_state"] == "degraded"
    })?;
    let after = volume(&after);
    ensure!(after["epoch"].as_u64() > alone["epoch"].as_u64(), "{after}");

    // It is replaced: there is a twin again.
    cluster.start_service(Service::VolumeRouter)?;
    follower.wait_for("in_sync", Some(SECOND))?;
    writer.check()?;

    let told = follower.told()?;
    let kinds = ["owned", "degraded", "in_sync"];
    let expected = [
        ("owned", FIRST),
        ("degraded", FIRST),
        ("in_sync", FIRST),
        ("owned", SECOND),
        ("degraded", SECOND),
        ("in_sync", SECOND),
    ];
    let story = story(&told, &kinds);
    let seen: Vec<(&str, &str)> = story
        .iter()
        .map(|(kind, node)| (kind.as_str(), node.as_str()))
        .collect();
    ensure!(seen == expected, "{seen:#?}\n{told:#?}");
    let taken = told
        .iter()
        .find(|event| event["kind"] == "owned" && event["node"] == SECOND);
    let taken = taken.context("no takeover is told")?;
    ensure!(
        taken["details"]["from"] == FIRST && taken["details"]["why"] == "twin_host",
        "{taken}"
    );
    ensure!(taken["volume_id"] == after["id"], "{taken}");
    let is_left = |event: &&Value| event["kind"] == "node_left" && event["details"]["name"] == FIRST;
    ensure!(
        told.iter().filter(is_left).count() == 1,
        "the loss is told once: {told:#?}"
    );
    let is_gap = |event: &&Value| event["kind"] == "gap" && event["node"] == FIRST;
    ensure!(
        told.iter().any(|event| is_gap(&event)),
        "what the lost owner knew is not told as a gap: {told:#?}"
    );
    stream_is_log(&cluster, &told, SECOND)?;
    stream_is_log(&cluster, &told, FIRST)?;

    // Whoever asks now hears of the volume what the services that run know.
    let now = lines(&cluster.sconce(["events", "--volume", VOLUME, "--output", "json"])?)?;
    let of_volume = now.iter().filter(|event| event["kind"] != "gap");
    ensure!(of_volume.clone().count() > 0, "{now:#?}");
    ensure!(
        of_volume.clone().all(|event| event["volume"] == VOLUME),
        "{now:#?}"
    );
    let table = cluster.sconce(["events", "--since", "1h"])?;
    ensure!(table.contains("taken over from volume-router"), "{table}");
    second.stop()?;
    drop(follower);
    cluster.finish()
}
