//! What a person is told: which request, which bucket, where, and what would be right.

use std::net::TcpListener;
use std::time::Duration;

use futures_util::future::join_all;
use sconce_storage_router::backend::Identified as _;
use sconce_storage_router::s3::S3Backend;
use sconce_storage_router::{Backend as _, BackendError};
use sconce_test_s3::{ACCESS_KEY, Faults, Options, SECRET_KEY};

use super::{DEADLINE, Site};
use crate::suite::{object, sco};

/// The error of a first start, as `denied` or not, with these parts in its text.
async fn first_start_fails(site: &Site, more: &str, is_denied: bool, parts: &[&str]) {
    let error = site.backend(more).attach().await.unwrap_err();
    let text = error.to_string();
    assert_eq!(matches!(error, BackendError::Denied { .. }), is_denied, "{text}");
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    assert!(!text.contains(SECRET_KEY), "{text}");
}

#[tokio::test]
async fn what_a_person_has_to_change_is_named() {
    let site = Site::new();
    let endpoint = site.server.endpoint();
    first_start_fails(
        &site,
        "bucket = \"nowhere\"",
        true,
        &[
            "NoSuchBucket",
            "\"nowhere\"",
            &endpoint,
            "right would be a `bucket`",
        ],
    )
    .await;
    site.write_key(ACCESS_KEY, "another-secret");
    first_start_fails(
        &site,
        "",
        true,
        &[
            "SignatureDoesNotMatch",
            "sconce-backend",
            "\"vms\"",
            &endpoint,
            "secret key that belongs to",
            ACCESS_KEY,
        ],
    )
    .await;
    site.write_key("AKIDUNKNOWN", SECRET_KEY);
    first_start_fails(
        &site,
        "",
        true,
        &["access key that this server knows, not \"AKIDUNKNOWN\""],
    )
    .await;
    site.write_key(ACCESS_KEY, SECRET_KEY);
    for (faults, parts) in [
        (
            Faults {
                denied: true,
                ..Faults::default()
            },
            ["AccessDenied", "a policy that lets access key"],
        ),
        (
            Faults {
                elsewhere: true,
                ..Faults::default()
            },
            [
                "PermanentRedirect",
                "right would be region = \"eu-9\", not \"us-east-1\"",
            ],
        ),
    ] {
        site.server.set(faults);
        first_start_fails(&site, "", true, &parts).await;
    }
}

#[tokio::test]
async fn clocks_that_differ_are_named() {
    let site = Site::with(Options {
        is_skewed: true,
        ..Options::default()
    });
    first_start_fails(&site, "", true, &["RequestTimeTooSkewed", "clock", "NTP"]).await;
}

#[tokio::test]
async fn a_certificate_that_is_not_trusted_and_a_server_that_is_not_there_are_named() {
    let site = Site::with(Options {
        is_tls: true,
        ..Options::default()
    });
    let other = certificate_of_another(&site);
    let settings = site.settings(&format!("ca = {other:?}"));
    let short = Duration::from_secs(1);
    let backend = S3Backend::new("s3-1", &settings, short, None).unwrap();
    let text = backend.attach().await.unwrap_err().to_string();
    assert!(
        text.contains("invalid peer certificate") && text.contains("right would be a `ca`"),
        "{text}"
    );
    // A port that was free a moment ago.
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let mut settings = site.settings("");
    settings.endpoint = format!("http://127.0.0.1:{port}");
    let backend = S3Backend::new("s3-1", &settings, short, None).unwrap();
    let text = backend.attach().await.unwrap_err().to_string();
    for part in [&format!("127.0.0.1:{port}"), "refused", "\"vms\"", "sent"] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
}

/// A certificate of somebody else.
fn certificate_of_another(site: &Site) -> std::path::PathBuf {
    let other = Site::with(Options {
        is_tls: true,
        ..Options::default()
    });
    let file = site.dir.path().join("other.pem");
    std::fs::write(&file, other.server.certificate().unwrap()).unwrap();
    file
}

#[tokio::test]
async fn a_server_that_hangs_is_given_up_in_time_with_the_request_named() {
    let site = Site::new();
    let settings = site.settings("request_timeout = \"100ms\"");
    let backend = S3Backend::new("s3-1", &settings, Duration::from_secs(1), None).unwrap();
    // What a busy machine answers after more than 100 ms is asked for again.
    in_the_end(async || backend.attach().await).await;
    site.server.set(Faults {
        hangs: true,
        ..Faults::default()
    });
    let error = backend.put_new(object(1, 1, 100)).await.unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, BackendError::Unavailable { .. }), "{text}");
    for part in [
        "PUT",
        &sco(1).to_string(),
        "\"vms\"",
        &site.server.endpoint(),
        "no answer within",
    ] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    // Whoever waited for the same look at the bucket hears the same, and not after it: each try of it takes 100 ms of its second. Looks of
    // their own would be eight.
    let before = site.server.counts().requests;
    for put in join_all((2..10).map(|id| backend.put_new(object(id, 1, 100)))).await {
        let text = put.unwrap_err().to_string();
        assert!(
            text.contains("sconce-backend") && text.contains("no answer within 100 ms"),
            "{text}"
        );
    }
    let sent = site.server.counts().requests - before;
    assert!((1..=10).contains(&sent), "{sent} requests");
    site.server.set(Faults::default());
    in_the_end(async || match backend.put_new(object(1, 1, 100)).await {
        // An earlier try was late with its answer only.
        Err(BackendError::Exists) => Ok(()),
        done => done.map(drop),
    })
    .await;
}

/// Asks until the answer comes in time.
async fn in_the_end<T>(mut ask: impl AsyncFnMut() -> Result<T, BackendError>) -> T {
    loop {
        match ask().await {
            Err(BackendError::Unavailable { .. }) => {}
            done => return done.unwrap(),
        }
    }
}

#[tokio::test]
async fn a_full_server_is_full_and_works_again() {
    let site = Site::new();
    let backend = site.attached("").await;
    site.server.set(Faults {
        full: true,
        ..Faults::default()
    });
    assert_eq!(backend.put_new(object(1, 1, 100)).await, Err(BackendError::Full));
    site.server.set(Faults::default());
    backend.put_new(object(1, 1, 100)).await.unwrap();
}

#[tokio::test]
async fn an_overloaded_server_is_not_asked_twice_for_everything() {
    let site = Site::new();
    let backend = site.attached("").await;
    site.server.set(Faults {
        slow_down: 1000,
        ..Faults::default()
    });
    let before = site.server.counts().requests;
    let asks = (0..200).map(|id| backend.delete(sco(id)));
    for answer in join_all(asks).await {
        assert!(matches!(answer, Err(BackendError::Unavailable { .. })));
    }
    let sent = site.server.counts().requests - before;
    // Those that come after the first fault wait for one look at the bucket.
    assert!((100..=301).contains(&sent), "{sent} requests for 200");
}

#[tokio::test]
async fn a_secret_is_in_no_log_and_no_debug_text() {
    let logs = Logs::default();
    let writer = logs.clone();
    // For the whole process: the back end has a thread of its own.
    tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::TRACE)
        .with_writer(move || writer.clone())
        .init();
    let site = Site::new();
    let settings = site.settings("");
    let backend = S3Backend::new("s3-1", &settings, DEADLINE, None).unwrap();
    backend.attach().await.unwrap();
    site.server.set(Faults {
        slow_down: 300,
        ..Faults::default()
    });
    for id in 0..10 {
        backend.put_new(object(id, 1, 100)).await.unwrap();
    }
    site.server.set(Faults {
        denied: true,
        ..Faults::default()
    });
    let error = backend.put_new(object(99, 1, 100)).await.unwrap_err();
    let logged = String::from_utf8_lossy(&logs.0.lock().unwrap()).into_owned();
    // The server is in this process as well, and knows the secret; it logs under its own names.
    let ours: Vec<&str> = logged.lines().filter(|line| !line.contains("s3s")).collect();
    assert!(ours.len() > 10, "nothing was logged");
    for text in [
        ours.join("\n"),
        format!("{backend:?}{settings:?}"),
        format!("{error:?}{error}"),
    ] {
        assert!(!text.contains(SECRET_KEY), "{text}");
    }
}

#[derive(Clone, Default)]
struct Logs(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);

impl std::io::Write for Logs {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
