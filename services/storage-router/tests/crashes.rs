//! A process that is killed while it puts: every object is whole or absent, and the answered ones are there.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sconce_runtime::Chance;
use sconce_runtime::crash::CRASH_ENV;
use sconce_schemas::object::ObjectKind;
use sconce_schemas::stored_object::SealedObject;
use sconce_schemas::{Epoch, ObjectName, ScoId, VolumeId};
use sconce_storage_router::checked::Checked;
use sconce_storage_router::directory::{DirectoryBackend, DirectorySettings};
use sconce_storage_router::workers::Workers;

/// Set for the child only: the directory that it puts into.
const CHILD_ENV: &str = "SCONCE_TEST_CHILD_DIR";
const OBJECT_BYTES: usize = 300_000;
const PUTS_AT_ONCE: u64 = 4;

fn name(id: u64) -> ObjectName {
    ObjectName::Sco {
        // Ever new volumes, so that folders are made under fire too.
        volume: VolumeId::from_u128(u128::from(id / 7)),
        id: ScoId(id),
        epoch: Epoch(1),
        version: 0,
    }
}

fn content(id: u64) -> Bytes {
    let mut bytes = vec![0; OBJECT_BYTES];
    Chance::seeded(id).fill(&mut bytes);
    bytes.into()
}

async fn open(root: PathBuf) -> Checked {
    let backend = DirectoryBackend::new(DirectorySettings {
        name: "disk".to_owned(),
        root,
        node: "sr-1".parse().unwrap(),
        expected: None,
    });
    backend.attach().await.unwrap();
    Checked::new(
        Arc::new(backend),
        Workers::bounded(2, 1 << 30),
        Duration::from_secs(30),
    )
}

/// The child: puts objects for ever and says which are done. Does nothing when run as a test.
#[tokio::test]
async fn child() {
    let Ok(root) = std::env::var(CHILD_ENV) else {
        return;
    };
    let disk = open(root.into()).await;
    let putters = (0..PUTS_AT_ONCE).map(|first| {
        let disk = &disk;
        async move {
            for id in (first..).step_by(usize::try_from(PUTS_AT_ONCE).unwrap()) {
                disk.put(&SealedObject::seal(name(id), content(id)).unwrap())
                    .await
                    .unwrap();
                let mut out = std::io::stdout().lock();
                writeln!(out, "\ndone {id}").and_then(|()| out.flush()).unwrap();
            }
        }
    });
    futures_util::future::join_all(putters).await;
}

/// Runs the child until it has done `puts` puts and a little more, or until it ends itself; gives those it answered.
fn run_child(root: &Path, crash_at: Option<&str>, puts: usize, spin: u64) -> Vec<u64> {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "child", "--nocapture", "--test-threads=1"]);
    command
        .env(CHILD_ENV, root)
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    if let Some(point) = crash_at {
        command.env(CRASH_ENV, point);
    }
    let mut child = command.spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut answered = Vec::new();
    for line in lines.map_while(Result::ok) {
        answered.extend(line.strip_prefix("done ").map(|id| id.parse::<u64>().unwrap()));
        if answered.len() == puts {
            // Not always right after an answer.
            (0..spin).for_each(|_| std::hint::spin_loop());
            child.kill().unwrap();
        }
    }
    child.wait().unwrap();
    answered
}

async fn check(root: &Path, answered: &[u64]) {
    let temp = root.join(".tmp/sr-1");
    let disk = open(root.to_owned()).await;
    assert_eq!(
        std::fs::read_dir(temp).unwrap().count(),
        0,
        "the start removes temporary files"
    );
    for volume in disk.list_volumes(None, 1000).await.unwrap() {
        for name in disk.list(volume, ObjectKind::Sco, None, 1000).await.unwrap() {
            let ObjectName::Sco { id, .. } = name else {
                unreachable!()
            };
            assert_eq!(
                disk.get(name, 0, u64::MAX).await.unwrap(),
                content(id.0),
                "whole or absent: {name}"
            );
        }
    }
    for id in answered {
        disk.get(name(*id), 0, 1)
            .await
            .expect("what was answered is there");
    }
    // What the child left half done is done when it is sent again.
    let next = answered.iter().max().map_or(0, |id| id + PUTS_AT_ONCE);
    for id in 0..=next {
        disk.put(&SealedObject::seal(name(id), content(id)).unwrap())
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn kill_9_leaves_objects_whole_or_absent() {
    let mut chance = Chance::seeded(9);
    for round in 0..12 {
        let dir = tempfile::tempdir().unwrap();
        let puts = 1 + usize::try_from(chance.below(25)).unwrap();
        let answered = run_child(dir.path(), None, puts, chance.below(3_000_000));
        assert!(answered.len() >= puts, "round {round}");
        check(dir.path(), &answered).await;
    }
}

#[tokio::test]
async fn an_abort_at_each_crash_point_leaves_objects_whole_or_absent() {
    for point in ["after-temp-written", "after-rename"] {
        for pass in [1, 2, 9] {
            let dir = tempfile::tempdir().unwrap();
            let answered = run_child(dir.path(), Some(&format!("{point}:{pass}")), usize::MAX, 0);
            assert!(answered.len() < pass, "it ended at the point");
            check(dir.path(), &answered).await;
        }
    }
}
