//! What is refused, and how it is said: directories, endpoints, and requests of a peer that does not keep to limits.

use bytes::Bytes;
use sconce_bus::{Caller, Hello, Limits, Network, Protocol, RefusalCode, Role, Version, bind};
use sconce_bus::{Endpoint, Identity, InProcess};
use sconce_registry::{Change, LeaseId, OpenError, Registry, Revision, host};
use sconce_runtime::Stop;
use sconce_schemas::wire::registry::{RegistryReply, RegistryRequest};
use tokio::task::LocalSet;

use crate::suite::SOON;

#[test]
fn a_directory_that_cannot_be_used_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a-file");
    std::fs::write(&file, b"").unwrap();
    for path in [file.clone(), file.join("below")] {
        let error = Registry::sled(&path).unwrap_err();
        assert!(matches!(error, OpenError::Io { .. }), "{error}");
        assert!(error.to_string().contains(&path.display().to_string()), "{error}");
    }
}

#[test]
fn a_directory_in_use_is_told_and_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let _first = Registry::sled(dir.path()).unwrap();
    let error = Registry::sled(dir.path()).unwrap_err();
    assert!(matches!(error, OpenError::InUse { .. }), "{error}");
    let text = error.to_string();
    assert!(
        text.contains(&dir.path().display().to_string()) && text.contains("remote"),
        "{text}"
    );
}

#[tokio::test]
async fn an_etcd_that_does_not_answer_is_named() {
    // Port 1 (tcpmux) is nobody's.
    let endpoints = ["http://127.0.0.1:1".to_owned(), "http://127.0.0.1:2".to_owned()];
    let error = Registry::etcd(&endpoints, "/sconce/", None)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("http://127.0.0.1:1, http://127.0.0.1:2"),
        "{error}"
    );
    let error = Registry::etcd(&[], "/sconce/", None)
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("endpoints is empty"), "{error}");
    let https = ["https://127.0.0.1:1".to_owned()];
    let error = Registry::etcd(&https, "/sconce/", None)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("https://127.0.0.1:1") && error.contains("[registry.tls]"),
        "{error}"
    );
    let error = Registry::etcd(&endpoints, "sconce", None)
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("\"sconce\""), "{error}");
}

type Raw = Caller<RegistryRequest, RegistryReply>;

async fn asked(caller: &Raw, request: &RegistryRequest) -> RegistryReply {
    caller.call(request, Bytes::new(), 0, SOON).await.unwrap().0
}

/// Hosts a registry in memory on an in-process bus, and talks to it without the handle's checks.
async fn with_raw_peer(test: impl AsyncFnOnce(Raw)) {
    let network = Network::in_process(InProcess::new(1));
    let endpoint = Endpoint::in_process("registry");
    let identity = Identity {
        node: "host".parse().unwrap(),
        role: Role::StorageRouter,
        protocol: Protocol::Registry,
        limits: Limits::of(Protocol::Registry),
    };
    let hello = Hello {
        version: Version::CURRENT,
        protocol: Protocol::Registry,
        role: Role::Client,
        node: "peer".parse().unwrap(),
    };
    let stop = Stop::new();
    LocalSet::new()
        .run_until(async {
            let server = bind(&network, &endpoint, identity).await.unwrap();
            let hosting = tokio::task::spawn_local(host(Registry::memory(), server, stop.clone()));
            test(Raw::new(&network, &endpoint, hello)).await;
            stop.request();
            tokio::time::timeout(SOON, hosting)
                .await
                .expect("stops in order")
                .unwrap();
        })
        .await;
}

#[tokio::test]
async fn requests_beyond_the_limits_are_refused_by_the_host() {
    with_raw_peer(async |caller| {
        let long = "k".repeat(600);
        let lease = LeaseId(77);
        let many = (0..200)
            .map(|n| Change::put(n.to_string(), None, vec![]))
            .collect();
        let cases = [
            (
                RegistryRequest::Get { key: long.clone() },
                RefusalCode::Invalid,
                "600 bytes",
            ),
            (
                RegistryRequest::Get { key: String::new() },
                RefusalCode::Invalid,
                "0 bytes",
            ),
            (
                RegistryRequest::List {
                    prefix: long.clone(),
                    after: None,
                    limit: 5,
                },
                RefusalCode::Invalid,
                "600 bytes",
            ),
            (
                RegistryRequest::List {
                    prefix: String::new(),
                    after: None,
                    limit: 0,
                },
                RefusalCode::Invalid,
                "limit",
            ),
            (
                RegistryRequest::Commit { changes: many },
                RefusalCode::Invalid,
                "200 changes",
            ),
            (
                RegistryRequest::Watch {
                    prefix: long,
                    after: Revision(0),
                    wait_ms: u32::MAX,
                },
                RefusalCode::Invalid,
                "600 bytes",
            ),
            (
                RegistryRequest::LeaseGrant { ttl_ms: u32::MAX },
                RefusalCode::Invalid,
                "4294967295 ms",
            ),
            (
                RegistryRequest::LeaseKeepAlive { lease },
                RefusalCode::NotFound,
                "000000000000004d",
            ),
            (
                RegistryRequest::Commit {
                    changes: vec![Change::put("k", None, vec![]).under(lease)],
                },
                RefusalCode::NotFound,
                "000000000000004d",
            ),
        ];
        for (request, code, text) in cases {
            let RegistryReply::Refused { refusal } = asked(&caller, &request).await else {
                panic!("{request:?} was not refused");
            };
            assert_eq!(refusal.code, code, "{refusal}");
            assert!(refusal.text.contains(text), "{refusal}");
        }
        let everything = RegistryRequest::List {
            prefix: String::new(),
            after: None,
            limit: u32::MAX,
        };
        let RegistryReply::Entries { entries, more, .. } = asked(&caller, &everything).await else {
            panic!("a listing");
        };
        assert!(entries.is_empty() && !more, "nothing was written");
    })
    .await;
}

#[tokio::test]
async fn a_peer_with_too_many_watches_is_told() {
    with_raw_peer(async |caller| {
        let watch = RegistryRequest::Watch {
            prefix: "w/".to_owned(),
            after: Revision(0),
            wait_ms: 30_000,
        };
        let mut watches = tokio::task::JoinSet::new();
        for _ in 0..1100 {
            let (caller, watch) = (caller.clone(), watch.clone());
            watches.spawn_local(async move { asked(&caller, &watch).await });
        }
        let Some(Ok(RegistryReply::Refused { refusal })) = watches.join_next().await else {
            panic!("the first answers are refusals: all others wait");
        };
        assert_eq!(refusal.code, RefusalCode::Unavailable);
        assert!(refusal.text.contains("1024"), "{refusal}");
        drop(watches);
    })
    .await;
}
