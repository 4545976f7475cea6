//! One conformance suite for all kinds of back ends: a directory, memory, an S3 bucket, and each where it goes wrong.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod s3;
mod suite;

use std::sync::Arc;
use std::time::Duration;

use sconce_storage_router::directory::{DirectoryBackend, DirectorySettings};
use sconce_storage_router::testing::{Faults, FaultyBackend, MemoryBackend};
use sconce_storage_router::{Backend as _, BackendError};

use suite::{conforms, object, sco};

fn directory(root: &std::path::Path) -> DirectoryBackend {
    DirectoryBackend::new(DirectorySettings {
        name: "disk-1".to_owned(),
        root: root.join("disk"),
        node: "sr-1".parse().unwrap(),
        expected: None,
    })
}

/// Everything that passes and can be seen by a caller; bits that flip are tested where there is a second copy.
const FAULTS: Faults = Faults {
    slow: 50,
    delay_max: Duration::from_millis(2),
    full: 100,
    absent: 100,
    flip: 0,
    lost_answer: 100,
    torn: 100,
};

#[tokio::test]
async fn a_directory_conforms() {
    let dir = tempfile::tempdir().unwrap();
    let backend = directory(dir.path());
    backend.attach().await.unwrap();
    conforms(Arc::new(backend)).await;
}

#[tokio::test]
async fn memory_conforms() {
    conforms(Arc::new(MemoryBackend::new("memory", 1 << 30))).await;
}

#[tokio::test]
async fn a_directory_that_goes_wrong_conforms_and_is_clean_after_a_restart() {
    for seed in 0..4 {
        let dir = tempfile::tempdir().unwrap();
        let backend = directory(dir.path());
        let id = backend.attach().await.unwrap();
        let temp = dir.path().join("disk/.tmp/sr-1");
        let faulty = FaultyBackend::new(Arc::new(backend), FAULTS, seed).with_torn_files_in(temp.clone());
        conforms(Arc::new(faulty)).await;
        assert!(
            std::fs::read_dir(&temp).unwrap().count() > 0,
            "torn puts leave files"
        );
        assert_eq!(directory(dir.path()).attach().await, Ok(id));
        assert_eq!(
            std::fs::read_dir(&temp).unwrap().count(),
            0,
            "the next start removes them"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn memory_that_goes_wrong_conforms() {
    for seed in 0..50 {
        let memory = Arc::new(MemoryBackend::new("memory", 1 << 30));
        conforms(Arc::new(FaultyBackend::new(memory, FAULTS, seed))).await;
    }
}

#[tokio::test]
async fn a_full_back_end_says_so_and_works_again_when_there_is_space() {
    let memory = MemoryBackend::new("memory", 100_000);
    memory.put_new(object(1, 1, 60_000)).await.unwrap();
    assert_eq!(
        memory.put_new(object(2, 1, 60_000)).await,
        Err(BackendError::Full)
    );
    memory.delete(sco(1)).await.unwrap();
    memory.put_new(object(2, 1, 60_000)).await.unwrap();
}
