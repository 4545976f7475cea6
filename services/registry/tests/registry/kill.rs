//! `kill -9` of the process that hosts a registry, while it is written to: every acknowledged commit is there
//! afterwards, and none is half there.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use sconce_bus::bind;
use sconce_registry::{Change, CommitError, Registry, Revision, host};
use sconce_runtime::crash::{CRASH_ENV, Point};
use sconce_runtime::{Chance, Stop};
use tokio::time::Instant;

use crate::bus_host::{bus, connect, identity, private_dir};
use crate::etcd_server::EtcdServer;
use crate::suite::SOON;

/// Tells this test program, started again as a child, what it is.
const DIR_ENV: &str = "SCONCE_TEST_REGISTRY_DIR";
const WRITERS: usize = 3;

/// How often a test kills: `SCONCE_KILL_ROUNDS` for more than the few of an ordinary run.
fn rounds(ordinary: u64) -> u64 {
    let asked = std::env::var("SCONCE_KILL_ROUNDS").ok();
    asked.map_or(ordinary, |rounds| {
        rounds.parse().expect("SCONCE_KILL_ROUNDS is a number")
    })
}

fn pair(writer: usize, n: u64) -> Vec<Change> {
    let number = n.to_string().into_bytes();
    let mut changes = vec![
        Change::put(format!("pair/{writer}/a"), None, number.clone()),
        Change::put(
            format!("log/{writer}/{n:08}"),
            Some(Revision::ABSENT),
            vec![0; 200],
        ),
        Change::put(format!("pair/{writer}/b"), None, number),
    ];
    if let Some(old) = n.checked_sub(20) {
        changes.push(Change::delete(format!("log/{writer}/{old:08}"), None));
    }
    changes
}

async fn number(registry: &Registry, key: &str) -> u64 {
    let entry = registry.get(key).await.unwrap();
    entry.map_or(0, |entry| {
        String::from_utf8(entry.value).unwrap().parse().unwrap()
    })
}

/// What a writer finds: its last commit, of which everything has to be there.
async fn whole(registry: &Registry, writer: usize) -> u64 {
    let a = number(registry, &format!("pair/{writer}/a")).await;
    let b = number(registry, &format!("pair/{writer}/b")).await;
    assert_eq!(a, b, "writer {writer}: a commit is half there");
    let log = registry.list(&format!("log/{writer}/"), None, 100).await.unwrap();
    let found: Vec<String> = log.into_iter().map(|entry| entry.key).collect();
    let wanted: Vec<String> = (1..=a).map(|n| format!("log/{writer}/{n:08}")).collect();
    let kept = wanted.len().saturating_sub(20);
    assert_eq!(found, wanted[kept..], "writer {writer}");
    a
}

/// A child that runs one of the tests below as its main program; killed when dropped.
struct Role {
    process: Child,
}

impl Role {
    fn start(test: &str, dir: &Path, crash_at: Option<&str>) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", test, "--nocapture", "--test-threads=1"]);
        command
            .env(DIR_ENV, dir)
            .env_remove(CRASH_ENV)
            .stdout(Stdio::piped());
        if let Some(point) = crash_at {
            command.env(CRASH_ENV, point).stderr(Stdio::null());
        }
        Self {
            process: command.spawn().unwrap(),
        }
    }

    fn lines(&mut self) -> BufReader<ChildStdout> {
        BufReader::new(self.process.stdout.take().unwrap())
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

fn role_dir() -> Option<std::path::PathBuf> {
    std::env::var_os(DIR_ENV).map(Into::into)
}

/// Not a test of its own: writes until it is killed, telling each acknowledgement, when started by the others.
#[tokio::test]
async fn write_until_killed() {
    let Some(dir) = role_dir() else { return };
    let registry = Registry::sled(&dir).unwrap();
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let registry = registry.clone();
        writers.spawn(async move {
            for n in whole(&registry, writer).await + 1.. {
                let revision = registry.commit(pair(writer, n)).await.unwrap();
                println!("\nack {writer} {n} {revision}");
            }
        });
    }
    writers.join_all().await;
}

/// The last acknowledgement of each writer, up to the child's end; kills it `after` the first.
fn acknowledged(mut role: Role, after: Duration) -> [u64; WRITERS] {
    let mut last = [0; WRITERS];
    let lines = role.lines();
    let mut killer = None;
    for line in lines.lines() {
        let Ok(line) = line else { break };
        let Some(ack) = line.strip_prefix("ack ") else {
            continue;
        };
        let fields: Vec<u64> = ack.split(' ').filter_map(|field| field.parse().ok()).collect();
        // The kill may cut a line short.
        if let [writer, n, _revision] = fields[..] {
            let writer = usize::try_from(writer).unwrap();
            last[writer] = n;
        }
        killer.get_or_insert_with(|| {
            let pid = role.process.id().to_string();
            std::thread::spawn(move || {
                std::thread::sleep(after);
                Command::new("kill").args(["-KILL", &pid]).status().unwrap();
            })
        });
    }
    if let Some(killer) = killer {
        killer.join().unwrap();
    }
    last
}

#[tokio::test]
async fn kill_of_a_writing_process_loses_no_acknowledged_commit() {
    let dir = tempfile::tempdir().unwrap();
    let mut chance = Chance::seeded(1);
    let mut least = [0; WRITERS];
    for round in 0..rounds(12) {
        let role = Role::start("kill::write_until_killed", dir.path(), None);
        let after = Duration::from_millis(1 + chance.below(120));
        let acked = acknowledged(role, after);
        let registry = Registry::sled(dir.path()).unwrap();
        for writer in 0..WRITERS {
            let found = whole(&registry, writer).await;
            let acked = acked[writer].max(least[writer]);
            // One more may have been under way.
            assert!(
                found == acked || found == acked + 1,
                "round {round}, writer {writer}: acknowledged {acked}, found {found}"
            );
            least[writer] = found;
        }
    }
    assert!(least.iter().all(|n| *n > 0), "every writer wrote: {least:?}");
}

#[tokio::test]
async fn at_each_crash_point_the_commit_is_there() {
    for point in [Point::AfterJournal, Point::AfterApply] {
        for nth in [1, 2, 17] {
            let dir = tempfile::tempdir().unwrap();
            let armed = format!("{}:{nth}", point.name());
            let mut role = Role::start("kill::write_until_killed", dir.path(), Some(&armed));
            let acks = role
                .lines()
                .lines()
                .filter(|line| line.as_ref().is_ok_and(|line| line.starts_with("ack ")));
            let acks = acks.count() as u64;
            let registry = Registry::sled(dir.path()).unwrap();
            assert_eq!(acks, nth - 1, "{armed}: the {nth}th commit was not acknowledged");
            assert_eq!(
                registry.revision().await.unwrap(),
                Revision(nth),
                "{armed}: and is there"
            );
            for writer in 0..WRITERS {
                whole(&registry, writer).await;
            }
        }
    }
}

/// Not a test of its own: hosts the registry in a directory until it is killed, when started by the others.
#[tokio::test]
async fn host_until_killed() {
    let Some(dir) = role_dir() else { return };
    let registry = Registry::sled(&dir.join("registry")).unwrap();
    let (network, endpoint) = bus(&dir);
    let local = tokio::task::LocalSet::new();
    local
        .run_until(async {
            let server = bind(&network, &endpoint, identity()).await.unwrap();
            host(registry, server, Stop::new()).await;
        })
        .await;
}

/// Writes through a handle while `again` kills and restarts what is behind it.
async fn write_through_kills(registry: &Registry, kills: u64, mut again: impl AsyncFnMut()) {
    let writing = registry.clone();
    let stop = Stop::new();
    let stopped = stop.clone();
    let writer = tokio::spawn(async move {
        let (mut acked, mut unknown) = (0, 0_u64);
        while !stopped.is_requested() {
            let next = acked + 1;
            match writing.commit(pair(0, next)).await {
                Ok(_) => acked = next,
                Err(CommitError::Unknown { .. } | CommitError::Unavailable { .. }) => {
                    unknown += 1;
                    let found = settled(&writing).await;
                    assert!(
                        found == acked || found == next,
                        "acknowledged {acked}, found {found}"
                    );
                    acked = found;
                }
                // The commit whose answer was lost happened after it was looked for.
                Err(CommitError::Conflict { .. }) => acked = settled(&writing).await,
                Err(error) => panic!("{error}"),
            }
        }
        (acked, unknown)
    });
    let mut chance = Chance::seeded(2);
    for _ in 0..kills {
        progress(registry).await;
        tokio::time::sleep(Duration::from_millis(chance.below(60))).await;
        again().await;
    }
    progress(registry).await;
    stop.request();
    let (acked, unknown) = writer.await.unwrap();
    let found = settled(registry).await;
    assert!(
        found == acked || unknown > 0 && found == acked + 1,
        "{acked} {found}"
    );
    let whole = whole(registry, 0).await;
    assert_eq!(whole, found);
}

/// What is there, as soon as the registry answers.
async fn settled(registry: &Registry) -> u64 {
    let give_up = Instant::now() + SOON;
    loop {
        match registry.get("pair/0/a").await {
            Ok(entry) => {
                return entry.map_or(0, |entry| {
                    String::from_utf8(entry.value).unwrap().parse().unwrap()
                });
            }
            Err(error) => assert!(Instant::now() < give_up, "{error}"),
        }
    }
}

/// Waits until the writer gets on.
async fn progress(registry: &Registry) {
    let (start, give_up) = (settled(registry).await, Instant::now() + SOON);
    while settled(registry).await < start + 3 {
        assert!(Instant::now() < give_up, "no progress from {start}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn kill_of_the_host_behind_the_bus_loses_no_acknowledged_commit() {
    let dir = private_dir();
    let mut role = Some(Role::start("kill::host_until_killed", dir.path(), None));
    let registry = connect(dir.path(), "writer");
    write_through_kills(&registry, rounds(6), async || {
        drop(role.take());
        role = Some(Role::start("kill::host_until_killed", dir.path(), None));
    })
    .await;
}

#[tokio::test]
async fn kill_of_etcd_loses_no_acknowledged_commit() {
    let mut server = EtcdServer::start();
    let registry = server.registry().await;
    write_through_kills(&registry, rounds(3), async || {
        server.kill();
        server.start_again();
    })
    .await;
}
