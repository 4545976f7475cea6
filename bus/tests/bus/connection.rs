//! The life of a connection over ipc: greeting, batches, loss, credit.

use crate::common::*;
use bytes::Bytes;
use sconce_bus::{
    BindError, CallError, Caller, ClientEvent, LostReason, Protocol, RefusalCode, SendError, ServerEvent,
    bind, connect,
};
use sconce_schemas::wire::Remedy;
use sconce_schemas::wire::registry::{RegistryReply, RegistryRequest};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(20);

#[test]
fn requests_queued_together_travel_together_and_each_gets_its_own_data_back() {
    run(async {
        let place = ipc_place();
        let mut server = serve(&place).await;
        let (sender, mut receiver) = connect(&place.network, &place.endpoint, hello());
        greet(&mut server, &mut receiver).await;
        for id in 0..10u8 {
            let data = bytes(usize::from(id) * 100, id);
            sender
                .send(u64::from(id), u64::from(id) + 7, &get("k"), data, 1000)
                .expect("credit");
        }
        let ServerEvent::Requests(requests) = server.next().await else {
            panic!("expected requests");
        };
        assert_eq!(requests.len(), 10, "one message");
        for (i, request) in (0..10u8).zip(&requests) {
            assert_eq!(
                (request.trace.operation, request.reply_bytes),
                (u64::from(i) + 7, 1000)
            );
            assert_eq!(request.data, bytes(usize::from(i) * 100, i));
        }
        let answered = requests.into_iter().rev();
        answered.for_each(|request| request.reply.send(entry(1), request.data));
        let ClientEvent::Replies(replies) = receiver.next().await else {
            panic!("expected replies");
        };
        assert_eq!(replies.len(), 10, "one message");
        for reply in replies {
            let id = u8::try_from(reply.id).expect("one of ours");
            assert_eq!(reply.data, bytes(usize::from(id) * 100, id));
        }
        assert_eq!(sender.outstanding(), 0);
    });
}

#[test]
fn a_client_outlives_its_server_and_is_told() {
    run(async {
        let place = ipc_place();
        let (sender, mut receiver) = connect(&place.network, &place.endpoint, hello());
        assert!(matches!(
            sender.send(1, 0, &get("a"), Bytes::new(), 0),
            Err(SendError::Down(_))
        ));
        for round in 0..5 {
            let mut server = serve(&place).await;
            greet(&mut server, &mut receiver).await;
            sender.send(round, 0, &get("a"), Bytes::new(), 0).expect("up");
            let ServerEvent::Requests(requests) = server.next().await else {
                panic!("expected requests");
            };
            assert_eq!(
                requests.len(),
                1,
                "what was unanswered is not sent again by the bus"
            );
            drop(server);
            drop(requests);
            let event = receiver.next().await;
            assert!(
                matches!(event, ClientEvent::Down(LostReason::Closed)),
                "{event:?}"
            );
            assert_eq!(sender.outstanding(), 0);
        }
    });
}

#[test]
fn a_client_that_leaves_is_reported() {
    run(async {
        let place = ipc_place();
        let mut server = serve(&place).await;
        let (sender, mut receiver) = connect::<_, RegistryReply>(&place.network, &place.endpoint, hello());
        greet(&mut server, &mut receiver).await;
        sender.send(1, 0, &get("a"), Bytes::new(), 0).expect("up");
        let requests = server.next().await;
        let ServerEvent::Requests(requests) = requests else {
            panic!("expected a request");
        };
        let peer = requests[0].peer;
        assert_eq!(server.hello(peer), Some(hello()));
        drop((sender, receiver));
        let event = server.next().await;
        assert!(matches!(event, ServerEvent::PeerGone(gone) if gone == peer));
        assert_eq!(server.hello(peer), None);
        for request in requests {
            request.reply.send(entry(0), Bytes::new());
        }
    });
}

#[test]
fn another_protocol_is_refused_with_the_reason() {
    run(async {
        let place = ipc_place();
        tokio::task::spawn_local(echo(serve(&place).await));
        let mut other = hello();
        other.protocol = Protocol::Storage;
        let caller = Caller::<RegistryRequest, RegistryReply>::new(&place.network, &place.endpoint, other);
        let error = caller.call(&get("a"), Bytes::new(), 0, SOON).await;
        let Err(CallError::Refused(refusal)) = error else {
            panic!("expected a refusal, found {error:?}");
        };
        assert_eq!(
            (refusal.remedy, refusal.code),
            (Remedy::Reject, RefusalCode::Unsupported)
        );
        assert!(refusal.text.contains("check the endpoint"), "{refusal}");
    });
}

#[test]
fn a_request_that_is_dropped_is_answered_with_retry_and_counted() {
    run(async {
        let place = ipc_place();
        let mut server = serve(&place).await;
        let caller = Caller::new(&place.network, &place.endpoint, hello());
        let serve = async {
            loop {
                if let ServerEvent::Requests(requests) = server.next().await {
                    drop(requests);
                    assert_eq!(server.dropped_requests(), 1);
                }
            }
        };
        let request = get("a");
        let answer = tokio::select! {
            answer = caller.call(&request, Bytes::new(), 0, SOON) => answer,
            () = serve => unreachable!(),
        };
        let Ok((RegistryReply::Refused { refusal }, _)) = answer else {
            panic!("expected a refusal, found {answer:?}");
        };
        assert_eq!(refusal.remedy, Remedy::Retry);
    });
}

#[test]
fn a_client_never_exceeds_its_credit_and_is_told_when_there_is_room() {
    run(async {
        let place = ipc_place();
        let mut identity = identity();
        identity.limits.credit_bytes = 100_000;
        identity.limits.message_bytes_max = 60_000;
        let server = bind(&place.network, &place.endpoint, identity)
            .await
            .expect("bind");
        tokio::task::spawn_local(echo(server));
        let (sender, mut receiver) = connect(&place.network, &place.endpoint, hello());
        up(&mut receiver).await;
        let mut answered = 0;
        let mut rooms = 0;
        let mut next = 0;
        while answered < 1000 {
            while next < 1000 {
                match sender.send(next, 0, &get("k"), bytes(10_000, 1), 10_000) {
                    Ok(()) => next += 1,
                    Err(SendError::NoCredit(data)) => {
                        assert_eq!(data.len(), 10_000, "the data comes back");
                        break;
                    }
                    Err(other) => panic!("{other}"),
                }
            }
            assert!(sender.outstanding() <= 5, "{} outstanding", sender.outstanding());
            match receiver.next().await {
                ClientEvent::Replies(replies) => answered += replies.len(),
                ClientEvent::Room => rooms += 1,
                other => panic!("{other:?}"),
            }
        }
        assert!(rooms > 0);
        let too_large = sender.send(1, 0, &get("k"), bytes(60_000, 1), 0);
        assert!(matches!(
            too_large,
            Err(SendError::TooLarge { limit: 60_000, .. })
        ));
        let too_much = sender.send(1, 0, &get("k"), Bytes::new(), 100_000);
        assert!(matches!(
            too_much,
            Err(SendError::TooLarge { limit: 100_000, .. })
        ));
    });
}

#[test]
fn a_caller_waits_for_its_server_and_keeps_its_deadline() {
    run(async {
        let place = ipc_place();
        let caller = Caller::new(&place.network, &place.endpoint, hello());
        let none = caller
            .call(&get("a"), Bytes::new(), 0, Duration::from_millis(50))
            .await;
        assert_eq!(none, Err(CallError::Deadline));
        let other = caller.clone();
        let waits =
            tokio::task::spawn_local(async move { other.call(&get("abcd"), bytes(5, 9), 5, SOON).await });
        let mut server = serve(&place).await;
        let ServerEvent::Requests(mut requests) = server.next().await else {
            panic!("expected a request");
        };
        let request = requests.pop().expect("one");
        request.reply.send(entry(4), request.data);
        tokio::task::spawn_local(async move {
            let ServerEvent::Requests(_unanswered) = server.next().await else {
                panic!("expected a request");
            };
            drop(server);
        });
        assert_eq!(waits.await.expect("joined"), Ok((entry(4), bytes(5, 9))));
        let lost = caller.call(&get("a"), Bytes::new(), 0, SOON).await;
        assert_eq!(lost, Err(CallError::Lost));
    });
}

#[test]
fn a_socket_in_a_directory_that_others_enter_is_not_bound() {
    run(async {
        let place = ipc_place();
        let dir = place.dir.path().join("bus");
        std::fs::create_dir(&dir).expect("made");
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o755)).expect("set");
        let error = bind::<RegistryRequest, RegistryReply>(&place.network, &place.endpoint, identity())
            .await
            .err()
            .expect("refused");
        assert!(matches!(error, BindError::Directory { .. }));
        assert!(error.to_string().contains("has mode 0755"), "{error}");
    });
}

#[test]
fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    run(async {
        let place = ipc_place();
        let first = serve(&place).await;
        let error = bind::<RegistryRequest, RegistryReply>(&place.network, &place.endpoint, identity())
            .await
            .err()
            .expect("refused");
        assert!(matches!(error, BindError::InUse { .. }), "{error}");
        drop(first);

        // What a killed process leaves.
        let path = place.dir.path().join("bus/test.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).expect("bound"));
        assert!(path.exists());
        let second = serve(&place).await;
        let mode = std::fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        drop(second);
        assert!(!path.exists(), "a server that stops takes its socket away");

        std::fs::write(&path, "a file").expect("written");
        let error = bind::<RegistryRequest, RegistryReply>(&place.network, &place.endpoint, identity())
            .await
            .err()
            .expect("refused");
        assert!(error.to_string().contains("not a socket"), "{error}");
    });
}
