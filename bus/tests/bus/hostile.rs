//! Peers that lie, flood or do not read: they harm only themselves.

use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use sconce_bus::{Caller, Hello, Limits, RequestIn, ServerEvent, bind};
use sconce_schemas::wire::Remedy;
use sconce_schemas::wire::envelope::{Header, Request};
use sconce_schemas::wire::registry::{RegistryReply, RegistryRequest};
use tokio::net::UnixStream;

use crate::common::*;
use crate::zmtp::{MORE, Raw, announce, frame, message};

const MIB: usize = 1 << 20;
const LIMITS: Limits = Limits {
    credit_bytes: 4 << 20,
    message_bytes_max: 1 << 20,
    peers_max: 64,
};

type Held = RequestIn<RegistryRequest, RegistryReply>;

/// What a test's server does with requests.
#[derive(Clone, Copy)]
enum Service {
    /// Gives their data back.
    Echo,
    /// Gives 100 KiB back, however little was asked for.
    Amplify,
    /// Keeps requests whose key is "hold".
    Hold,
}

async fn serve_as(place: &Place, service: Service) {
    let mut identity = identity();
    identity.limits = LIMITS;
    let mut server: TestServer = bind(&place.network, &place.endpoint, identity)
        .await
        .expect("bind");
    tokio::task::spawn_local(async move {
        let mut held: Vec<Held> = Vec::new();
        loop {
            match server.next().await {
                ServerEvent::Requests(requests) => requests.into_iter().for_each(|request| match service {
                    Service::Hold if request.body == get("hold") => held.push(request),
                    Service::Amplify if request.body == get("hold") => {
                        request.reply.send(entry(0), bytes(AMPLIFIED as usize, 1));
                    }
                    _ => request.reply.send(entry(0), request.data),
                }),
                ServerEvent::PeerGone(peer) => held.retain(|request| request.peer != peer),
            }
        }
    });
}

async fn raw(place: &Place) -> Raw<UnixStream> {
    Raw::greet(connected(place).await, hello()).await
}

const AMPLIFIED: u32 = 100 << 10;
const HALF: u32 = 512 << 10;

fn request(id: u64, mark: u64, data_len: usize) -> Header<RegistryRequest> {
    let requests = vec![Request {
        id,
        data_len: u32::try_from(data_len).expect("small"),
        reply_len: if data_len == 0 { AMPLIFIED } else { 0 },
        trace: 0.into(),
        body: get("hold"),
    }];
    Header::Requests { mark, requests }
}

/// An honest client is served while `attack` goes on, and after it; memory grows by less than `bound`.
async fn attacked(service: Service, bound: usize, attack: impl AsyncFnOnce(&Place)) {
    let place = ipc_place();
    serve_as(&place, service).await;
    let honest = Caller::new(&place.network, &place.endpoint, hello());
    let call = async || {
        let answer = honest
            .call(&get("a"), bytes(1000, 3), 1000, Duration::from_secs(20))
            .await;
        assert_eq!(answer, Ok((entry(0), bytes(1000, 3))));
    };
    call().await;
    let before = resident();
    let mut most = before;
    let attack = async {
        attack(&place).await;
    };
    tokio::pin!(attack);
    loop {
        tokio::select! {
            () = &mut attack => break,
            () = call() => most = most.max(resident()),
        }
    }
    call().await;
    most = most.max(resident());
    let grown = most.saturating_sub(before);
    assert!(grown < bound, "memory grew by {} KiB", grown >> 10);
}

#[test]
fn more_than_the_credit_outstanding_ends_the_connection() {
    run(attacked(Service::Hold, 40 * MIB, async |place| {
        let mut raw = raw(place).await;
        for id in 0..5 {
            let sent = raw
                .say(&message(&request(id, 0, MIB - 200), &bytes(MIB - 200, 1)))
                .await;
            if sent.is_err() {
                break;
            }
        }
        let reason = raw.hear_goodbye().await.expect("a goodbye");
        assert!(reason.contains("the credit is 4194304"), "{reason}");
    }));
}

#[test]
fn many_small_requests_are_bounded_as_well() {
    run(attacked(Service::Hold, 200 * MIB, async |place| {
        let mut raw = raw(place).await;
        let mut id = 0;
        loop {
            let requests = (0..1000).map(|_| {
                id += 1;
                Request {
                    id,
                    data_len: 0,
                    reply_len: 0,
                    trace: 0.into(),
                    body: get("hold"),
                }
            });
            let requests = requests.collect();
            if raw
                .say(&message(&Header::Requests { mark: 0, requests }, &[]))
                .await
                .is_err()
            {
                break;
            }
            assert!(id < 200_000, "still taken");
        }
    }));
}

#[test]
fn who_never_reads_is_dropped_with_what_was_for_it() {
    run(attacked(Service::Amplify, 60 * MIB, async |place| {
        let mut raw = raw(place).await;
        for id in 0..10_000 {
            if raw.say(&message(&request(id, 0, 0), &[])).await.is_err() {
                break;
            }
            tokio::task::yield_now().await;
        }
        let reason = raw.hear_goodbye().await;
        // What was queued before the goodbye may be more than the connection had room for.
        if let Some(reason) = reason {
            assert!(reason.contains("bytes are outstanding"), "{reason}");
        }
    }));
}

#[test]
fn who_pretends_to_read_is_found_out() {
    run(attacked(Service::Amplify, 60 * MIB, async |place| {
        let mut raw = raw(place).await;
        for id in 0..10_000u64 {
            // The first marks of a ledger, guessed.
            let mark = (id + 1) << 32;
            if raw.say(&message(&request(id, mark, 0), &[])).await.is_err() {
                break;
            }
            tokio::task::yield_now().await;
        }
        let reason = raw.hear_goodbye().await.expect("a goodbye");
        assert!(reason.contains("was never given out"), "{reason}");
    }));
}

#[test]
fn who_asks_for_much_and_announces_little_is_refused() {
    run(async {
        let place = ipc_place();
        serve_as(&place, Service::Amplify).await;
        let caller: Caller<_, RegistryReply> = Caller::new(&place.network, &place.endpoint, hello());
        let soon = Duration::from_secs(20);
        let clusters = AMPLIFIED - 8192;
        let answer = caller.call(&get("hold"), Bytes::new(), clusters, soon).await;
        assert_eq!(answer, Ok((entry(0), bytes(AMPLIFIED as usize, 1))));
        let answer = caller.call(&get("hold"), Bytes::new(), clusters - 1, soon).await;
        let Ok((RegistryReply::Refused { refusal }, data)) = answer else {
            panic!("expected a refusal, found {answer:?}");
        };
        assert!(
            refusal.text.contains("the request announced 94207") && data.is_empty(),
            "{refusal}"
        );
    });
}

#[test]
fn many_connections_of_one_node_have_no_more_than_a_few() {
    // Each keeps to its credit of 4 MiB; together they would make the server keep 60 MiB.
    run(attacked(Service::Hold, 50 * MIB, async |place| {
        let mut connections = Vec::new();
        let mut refused = 0;
        for _ in 0..20 {
            let mut raw = Raw::greet(connected(place).await, another_node()).await;
            for id in 0..3 {
                raw.say_in_the_end(&message(&request(id, 0, MIB - 200), &bytes(MIB - 200, 1)))
                    .await
                    .expect("taken in, or refused with an answer");
            }
            // What is taken in is not answered; of what is refused, this is.
            raw.say_in_the_end(&message(&request(3, 0, 0), &[]))
                .await
                .expect("written");
            connections.push(raw);
        }
        for mut raw in connections.drain(10..) {
            match raw.hear::<RegistryReply>().await {
                Some(Header::Replies { replies, .. }) => {
                    refused += replies.len();
                    let RegistryReply::Refused { refusal } = &replies[0].body else {
                        panic!("{:?}", replies[0].body);
                    };
                    assert_eq!(refusal.remedy, Remedy::Retry);
                }
                other => panic!("{other:?}"),
            }
        }
        assert!(refused >= 10);
    }));
}

#[test]
fn a_node_that_let_go_of_its_connections_is_served_again() {
    run(async {
        let place = ipc_place();
        serve_as(&place, Service::Hold).await;
        let mut connections = Vec::new();
        for _ in 0..3 {
            let mut raw = Raw::greet(connected(&place).await, another_node()).await;
            for id in 0..3 {
                raw.say_in_the_end(&message(&request(id, 0, MIB - 200), &bytes(MIB - 200, 1)))
                    .await
                    .expect("written");
            }
            connections.push(raw);
        }
        let caller = Caller::new(&place.network, &place.endpoint, another_node());
        let call = async || {
            let soon = Duration::from_secs(20);
            caller.call(&get("a"), bytes(HALF as usize, 3), HALF, soon).await
        };
        while let Ok((RegistryReply::Entry { .. }, _)) = call().await {}
        drop(connections);
        while !matches!(call().await, Ok((RegistryReply::Entry { .. }, _))) {}
    });
}

fn another_node() -> Hello {
    Hello {
        node: "another".parse().expect("a name"),
        ..hello()
    }
}

#[test]
fn pings_without_end_are_bounded() {
    run(attacked(Service::Echo, 60 * MIB, async |place| {
        let mut raw = raw(place).await;
        let pings = message(&Header::Ping(0), &[]).repeat(1000);
        while raw.say(&pings).await.is_ok() {
            tokio::task::yield_now().await;
        }
    }));
}

#[test]
fn what_breaks_the_protocol_is_told_so() {
    run(attacked(Service::Echo, 40 * MIB, async |place| {
        let mut ungreeted = Raw::shake_hands(connected(place).await).await;
        ungreeted
            .say(&message(&request(1, 0, 0), &[]))
            .await
            .expect("written");
        let reason = ungreeted.hear_goodbye().await.expect("a goodbye");
        assert!(reason.contains("starts with a greeting"), "{reason}");

        let many = [frame(MORE, b"a"), frame(MORE, b"b"), frame(0, b"c")].concat();
        let two_greetings = message(&Header::Hello(hello()), &[]);
        let lie = message(&request(1, 0, 1000), &bytes(999, 0));
        let oversized = message(&request(1, 0, MIB), &bytes(MIB, 0));
        let welcome = frame(0, &[0x92, 1, 0x80]);
        for (sent, expected) in [
            (many, "3 parts"),
            (two_greetings, "greeting, once"),
            (lie, "999 bytes long"),
            (oversized, "at most 1048576 are taken"),
            (frame(0, b"garbage"), "header"),
            (frame(0, b""), "header"),
            (welcome, "welcome"),
        ] {
            let mut raw = raw(place).await;
            raw.say(&sent).await.expect("written");
            let reason = raw.hear_goodbye().await.expect("a goodbye");
            assert!(reason.contains(expected), "{reason}");
        }
    }));
}

#[test]
fn a_frame_that_never_ends_harms_nobody_else() {
    run(attacked(Service::Echo, 40 * MIB, async |place| {
        for _ in 0..20 {
            let mut raw = raw(place).await;
            // Long, but not so long that the ZeroMQ crate gives up the process: only who has the user's rights gets
            // here; the TLS bridge stops it before.
            raw.say(&announce(0, 64 << 20)).await.expect("written");
            raw.say(&bytes(10_000, 0)).await.expect("written");
        }
    }));
}

#[test]
fn one_client_too_many_is_told_to_try_again_until_another_leaves() {
    run(async {
        let place = ipc_place();
        serve_as(&place, Service::Echo).await;
        let mut peers = Vec::new();
        for _ in 0..LIMITS.peers_max {
            peers.push(raw(&place).await);
        }
        let caller = Caller::new(&place.network, &place.endpoint, hello());
        let soon = Duration::from_millis(300);
        let none = caller.call(&get("a"), Bytes::new(), 0, soon).await;
        assert!(none.is_err(), "{none:?}");
        peers.pop();
        let answer = caller
            .call(&get("a"), Bytes::new(), 0, Duration::from_secs(20))
            .await;
        assert_eq!(answer, Ok((entry(0), Bytes::new())));
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn arbitrary_frames_end_at_most_their_own_connection(
        frames in proptest::collection::vec((any::<bool>(), proptest::collection::vec(any::<u8>(), 0..300)), 1..20)
    ) {
        run(async {
            let place = ipc_place();
            serve_as(&place, Service::Echo).await;
            let mut raw = raw(&place).await;
            for (more, body) in &frames {
                if raw.say(&frame(u8::from(*more), body)).await.is_err() {
                    break;
                }
            }
            let _ = raw.say(&frame(0, b"end")).await;
            let caller = Caller::new(&place.network, &place.endpoint, hello());
            let answer = caller.call(&get("a"), Bytes::new(), 0, Duration::from_secs(20)).await;
            assert_eq!(answer, Ok((entry(0), Bytes::new())));
        });
    }
}
