//! A bucket that is another one, or lost what it was, is never taken for an empty one (docs/decisions/0022).

use sconce_storage_router::backend::Identified as _;
use sconce_storage_router::s3::S3Backend;
use sconce_storage_router::{Backend as _, BackendError};
use sconce_test_s3::Faults;

use super::{DEADLINE, Site};
use crate::suite::{object, sco};

#[tokio::test]
async fn an_identity_is_made_once_and_known_again() {
    let site = Site::new();
    let first = site.backend("").attach().await.unwrap();
    assert_eq!(site.backend("").attach().await, Ok(first));
    let known = S3Backend::new("s3-1", &site.settings(""), DEADLINE, Some(first)).unwrap();
    assert_eq!(known.attach().await, Ok(first));
    known.put_new(object(1, 1, 10)).await.unwrap();
}

#[tokio::test]
async fn two_first_starts_at_once_agree() {
    let site = Site::new();
    for faults in [Faults::default(), super::passing()] {
        site.server.set(faults);
        let (a, b) = (site.backend(""), site.backend(""));
        let (a, b) = tokio::join!(a.attach(), b.attach());
        assert_eq!(a, b);
        assert!(a.is_ok(), "{a:?}");
    }
}

#[tokio::test]
async fn a_bucket_with_something_else_in_it_is_refused() {
    let site = Site::new();
    std::fs::write(site.server.path("vms/holiday.jpg"), b"x").unwrap();
    let error = site.backend("").attach().await.unwrap_err();
    assert!(matches!(error, BackendError::Denied { .. }), "{error}");
    let text = error.to_string();
    assert!(
        text.contains("holiday.jpg") && text.contains("a `folder` of its own"),
        "{text}"
    );
    site.backend("folder = \"sconce\"").attach().await.unwrap();
}

#[tokio::test]
async fn another_back_ends_bucket_is_refused() {
    let site = Site::new();
    site.attached("").await;
    let other = S3Backend::new("s3-2", &site.settings(""), DEADLINE, None).unwrap();
    let text = other.attach().await.unwrap_err().to_string();
    assert!(
        text.contains("is back end \"s3-1\"") && text.contains("\"s3-2\""),
        "{text}"
    );
}

#[tokio::test]
async fn a_bucket_that_lost_its_identity_is_absent_until_it_is_back() {
    let site = Site::new();
    let backend = site.attached("").await;
    backend.put_new(object(1, 1, 10)).await.unwrap();
    let (there, away) = (site.server.path("vms"), site.server.path("away"));
    std::fs::rename(&there, &away).unwrap();
    std::fs::create_dir(&there).unwrap();
    for _ in 0..2 {
        let read = backend.read(sco(1), 0, 10).await;
        assert!(
            matches!(&read, Err(BackendError::Unavailable { why }) if why.contains("sconce-backend")),
            "{read:?}"
        );
        let put = backend.put_new(object(2, 1, 10)).await;
        assert!(matches!(put, Err(BackendError::Unavailable { .. })), "{put:?}");
    }
    assert_eq!(
        std::fs::read_dir(&there).unwrap().count(),
        0,
        "nothing was begun anew"
    );
    std::fs::remove_dir(&there).unwrap();
    std::fs::rename(&away, &there).unwrap();
    backend.put_new(object(2, 1, 10)).await.unwrap();
    assert!(backend.read(sco(1), 0, 10).await.is_ok());
}

#[tokio::test]
async fn another_bucket_after_an_outage_is_not_written_to() {
    let site = Site::new();
    let backend = S3Backend::new(
        "s3-1",
        &site.settings(""),
        std::time::Duration::from_secs(1),
        None,
    )
    .unwrap();
    backend.attach().await.unwrap();
    site.server.set(Faults {
        slow_down: 1000,
        ..Faults::default()
    });
    assert!(backend.put_new(object(1, 1, 10)).await.is_err());
    let file = site.server.path("vms/sconce-backend");
    let other = "sconce-backend 1 s3-1 00000000000000000000000000000007\n";
    std::fs::write(&file, other).unwrap();
    site.server.set(Faults::default());
    let error = backend.put_new(object(1, 1, 10)).await.unwrap_err();
    assert!(error.to_string().contains("another bucket?"), "{error}");
    for wrong in [
        "",
        "sconce-backend 2 s3-1 00000000000000000000000000000007\n",
        &"x".repeat(10_000),
    ] {
        std::fs::write(&file, wrong).unwrap();
        let error = backend.put_new(object(1, 1, 10)).await.unwrap_err();
        assert!(
            error.to_string().contains("sconce-backend 1 <name> <id>"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn an_empty_bucket_after_one_that_was_refused_is_not_written_to() {
    let site = Site::new();
    let backend = site.attached("").await;
    let (there, away) = (site.server.path("vms"), site.server.path("away"));
    site.server.set(Faults {
        denied: true,
        ..Faults::default()
    });
    let put = backend.put_new(object(1, 1, 10)).await;
    assert!(matches!(put, Err(BackendError::Denied { .. })), "{put:?}");
    assert!(backend.space().await.is_err(), "its state is what requests meet");
    std::fs::rename(&there, &away).unwrap();
    std::fs::create_dir(&there).unwrap();
    site.server.set(Faults::default());
    let put = backend.put_new(object(1, 1, 10)).await;
    assert!(
        matches!(&put, Err(BackendError::Unavailable { why }) if why.contains("sconce-backend")),
        "{put:?}"
    );
    assert_eq!(std::fs::read_dir(&there).unwrap().count(), 0);
    std::fs::remove_dir(&there).unwrap();
    std::fs::rename(&away, &there).unwrap();
    backend.put_new(object(1, 1, 10)).await.unwrap();
}
