//! Peers of other versions: a minor one apart works, in both directions; a major one apart is told so, by name.

use bytes::Bytes;
use sconce_bus::{
    Body, CallError, Caller, ClientEvent, Endpoint, Hello, Limits, Protocol, Role, Version, connect,
};
use sconce_schemas::NodeName;
use sconce_schemas::wire::envelope::{Foreign, Header, Reply};
use sconce_schemas::wire::msgpack::{put_array, put_named, put_str, put_uint};
use sconce_schemas::wire::registry::{RegistryReply, RegistryRequest};
use sconce_schemas::wire::{Refusal, RefusalCode, Remedy, Welcome};
use serde::Serialize;
use tokio::net::{UnixListener, UnixStream};

use crate::common::*;
use crate::zmtp::{Raw, frame};

const CURRENT: Version = Version::CURRENT;
const OLDER: Version = Version {
    minor: CURRENT.minor - 1,
    ..CURRENT
};
const NEWER: Version = Version {
    minor: CURRENT.minor + 1,
    ..CURRENT
};
/// Of the headers that a newer version may have: more than any that this one knows.
const UNKNOWN: u64 = 77;

/// A greeting or welcome with what a later version may add.
#[derive(Serialize)]
struct Greets<T> {
    #[serde(flatten)]
    known: T,
    region: &'static str,
    compressions: Vec<&'static str>,
}

fn greets<T>(known: T) -> Greets<T> {
    Greets {
        known,
        region: "north",
        compressions: vec!["zstd", "lz4"],
    }
}

/// Bodies that a later version may have: with a field more, and of another kind.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Asks {
    Get { key: &'static str, freshness_ms: u64 },
    CompactBelow { revision: u64 },
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Tells {
    Entry {
        entry: Option<()>,
        revision: u64,
        cached: bool,
    },
    CompactedBelow {
        revision: u64,
    },
}

/// A frame with a header whose first part is `kind`, then `fields`, and one field more than this version has.
fn header(kind: u64, fields: usize, put: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut header = Vec::new();
    put_array(&mut header, fields + 2);
    put_uint(&mut header, kind);
    put(&mut header);
    put_str(&mut header, "of tomorrow");
    frame(0, &header)
}

fn greeting<T: Serialize>(kind: u64, greeting: &T) -> Vec<u8> {
    header(kind, 1, |out| put_named(out, greeting))
}

/// A batch of one entry that begins with `numbers`, has `body`, where it is a request's no cause, and a field more.
fn batch(kind: u64, numbers: &[u64], body: &impl Serialize, has_cause: bool) -> Vec<u8> {
    header(kind, 2, |out| {
        put_uint(out, 0);
        put_array(out, 1);
        put_array(out, numbers.len() + 2 + usize::from(has_cause));
        numbers.iter().for_each(|number| put_uint(out, *number));
        put_named(out, body);
        if has_cause {
            put_array(out, 0);
        }
        put_str(out, "of tomorrow");
    })
}

fn asks(id: u64, body: &Asks) -> Vec<u8> {
    batch(2, &[id, 0, 0, 0], body, true)
}

fn tells(id: u64, body: &Tells) -> Vec<u8> {
    batch(3, &[id, 0], body, false)
}

/// An optional header that this version does not know.
fn unknown() -> Vec<u8> {
    header(UNKNOWN, 1, |out| put_named(out, &["a", "list"]))
}

async fn hear<R: Body>(raw: &mut Raw<UnixStream>) -> Header<R> {
    raw.hear().await.expect("the connection lives on")
}

async fn answer(raw: &mut Raw<UnixStream>) -> Reply<RegistryReply> {
    match hear(raw).await {
        Header::Replies { mut replies, .. } => replies.pop().expect("one"),
        other => panic!("expected a reply, found {other:?}"),
    }
}

fn hello_in(version: Version) -> Hello {
    Hello { version, ..hello() }
}

fn welcome_in(version: Version) -> Welcome {
    let Limits {
        credit_bytes,
        message_bytes_max,
        ..
    } = Limits::of(Protocol::Registry);
    Welcome {
        version,
        role: Role::StorageRouter,
        node: "server".parse().expect("a name"),
        credit_bytes,
        message_bytes_max,
    }
}

/// A server that is told each word, and a client of this version that connects to it.
async fn served_by_hand(place: &Place, greeting: Vec<u8>) -> (Raw<UnixStream>, Hello) {
    let listener = listener(place);
    // First it looks whether anybody listens.
    listener.accept().await.expect("a client that looks");
    let (stream, _) = listener.accept().await.expect("a client");
    let mut raw = Raw::shake_hands(stream).await;
    let Header::Hello(hello) = hear::<RegistryRequest>(&mut raw).await else {
        panic!("expected a greeting");
    };
    raw.say(&greeting).await.expect("written");
    (raw, hello)
}

fn listener(place: &Place) -> UnixListener {
    let socket = socket(place);
    let dir = socket.parent().expect("a directory");
    std::fs::create_dir_all(dir).expect("made");
    UnixListener::bind(socket).expect("bound")
}

/// The ids of the next requests that come to a server by hand.
async fn asked(raw: &mut Raw<UnixStream>) -> u64 {
    loop {
        match hear::<RegistryRequest>(raw).await {
            Header::Requests { requests, .. } => return requests[0].id,
            Header::Ping(_) => {}
            other => panic!("expected a request, found {other:?}"),
        }
    }
}

fn caller(place: &Place) -> Caller<RegistryRequest, RegistryReply> {
    Caller::new(&place.network, &place.endpoint, hello())
}

async fn call(caller: &Caller<RegistryRequest, RegistryReply>) -> Result<RegistryReply, CallError> {
    let answer = caller.call(&get("abc"), Bytes::new(), 0, DEADLINE).await;
    answer.map(|(reply, _)| reply)
}

#[test]
fn a_newer_minor_client_is_served_what_both_know() {
    run(async {
        let place = ipc_place();
        tokio::task::spawn_local(echo(serve(&place).await));
        let mut raw = Raw::shake_hands(connected(&place).await).await;
        let say = [greeting(0, &greets(hello_in(NEWER))), unknown()].concat();
        raw.say(&say).await.expect("written");
        let Header::Welcome(welcome) = hear::<RegistryReply>(&mut raw).await else {
            panic!("expected a welcome");
        };
        assert_eq!(welcome.version, CURRENT);

        let compact = Asks::CompactBelow { revision: 9 };
        raw.say(&asks(5, &compact)).await.expect("written");
        let refused = answer(&mut raw).await;
        let RegistryReply::Refused { refusal } = refused.body else {
            panic!("expected a refusal, found {refused:?}");
        };
        assert_eq!(
            (refused.id, refusal.remedy, refusal.code),
            (5, Remedy::Reject, RefusalCode::Unsupported)
        );
        assert!(refusal.text.contains(&format!("protocol {CURRENT}")), "{refusal}");

        let get = Asks::Get {
            key: "abc",
            freshness_ms: 10,
        };
        raw.say(&[unknown(), asks(6, &get)].concat())
            .await
            .expect("written");
        let reply = answer(&mut raw).await;
        assert_eq!((reply.id, reply.body), (6, entry(3)));
    });
}

#[test]
fn a_newer_minor_server_serves_what_both_know() {
    run(async {
        let place = ipc_place();
        let serve = async {
            let (mut raw, hello) = served_by_hand(&place, greeting(1, &greets(welcome_in(NEWER)))).await;
            assert_eq!(hello.version, CURRENT);
            let id = asked(&mut raw).await;
            let compacted = Tells::CompactedBelow { revision: 9 };
            raw.say(&[unknown(), tells(id, &compacted)].concat())
                .await
                .expect("written");
            let id = asked(&mut raw).await;
            let entry = Tells::Entry {
                entry: None,
                revision: 3,
                cached: true,
            };
            raw.say(&[tells(id, &entry), unknown()].concat())
                .await
                .expect("written");
        };
        let caller = caller(&place);
        let ask = async {
            let unreadable = call(&caller).await;
            let Ok(RegistryReply::Refused { refusal }) = unreadable else {
                panic!("expected a refusal, found {unreadable:?}");
            };
            assert_eq!(refusal.code, RefusalCode::Unsupported);
            assert!(refusal.text.contains(&format!("protocol {CURRENT}")), "{refusal}");
            assert_eq!(call(&caller).await, Ok(entry(3)), "the connection lives on");
        };
        tokio::join!(serve, ask);
    });
}

#[test]
fn an_older_minor_client_is_served() {
    run(async {
        let place = ipc_place();
        tokio::task::spawn_local(echo(serve(&place).await));
        let older = hello_in(OLDER);
        let caller = Caller::<RegistryRequest, RegistryReply>::new(&place.network, &place.endpoint, older);
        assert_eq!(call(&caller).await, Ok(entry(3)));
    });
}

#[test]
fn an_older_minor_server_serves() {
    run(async {
        let place = ipc_place();
        let serve = async {
            let welcome = Header::<RegistryReply>::Welcome(welcome_in(OLDER));
            let (mut raw, _) = served_by_hand(&place, encoded(&welcome)).await;
            let id = asked(&mut raw).await;
            let reply = Reply {
                id,
                data_len: 0,
                body: entry(3),
            };
            let replies = Header::Replies {
                mark: 0,
                replies: vec![reply],
            };
            raw.say(&encoded(&replies)).await.expect("written");
        };
        let caller = caller(&place);
        let (answer, ()) = tokio::join!(call(&caller), serve);
        assert_eq!(answer, Ok(entry(3)));
    });
}

fn encoded(header: &Header<RegistryReply>) -> Vec<u8> {
    let mut encoded = Vec::new();
    header.encode(&mut encoded);
    frame(0, &encoded)
}

/// Only who is newer may say what is not known here.
#[test]
fn what_no_version_has_ends_the_connection_of_one_that_is_not_newer() {
    run(async {
        let place = ipc_place();
        tokio::task::spawn_local(echo(serve(&place).await));
        for version in [OLDER, CURRENT] {
            let mut raw = Raw::greet(connected(&place).await, hello_in(version)).await;
            raw.say(&unknown()).await.expect("written");
            let reason = raw.hear_goodbye().await.expect("a goodbye");
            let expected = format!("kind {UNKNOWN}, which protocol {version} does not have");
            assert!(reason.contains(&expected), "{reason}");
        }
    });
}

/// A greeting or welcome of another major version: nothing but its version and its node is as it is here.
#[derive(Serialize)]
struct Stranger {
    node: NodeName,
    version: Version,
    role: u8,
    protocols: [&'static str; 2],
}

pub(crate) fn greeting_of_a_stranger(node: &str, major: u16) -> Vec<u8> {
    greeting(0, &stranger(node, major))
}

fn stranger(node: &str, major: u16) -> Stranger {
    Stranger {
        node: node.parse().expect("a name"),
        version: Version { major, minor: 3 },
        role: 9,
        protocols: ["volume", "blocks"],
    }
}

fn is_told(refusal: &Refusal, node: &str, major: u16, upgrade: &str) {
    assert_eq!(
        (refusal.remedy, refusal.code),
        (Remedy::Reject, RefusalCode::Unsupported)
    );
    for part in [
        format!("{node} speaks protocol {major}.3"),
        format!("speaks {CURRENT}"),
        format!("upgrade {upgrade}"),
    ] {
        assert!(refusal.text.contains(&part), "{part:?} is not in {refusal}");
    }
}

#[test]
fn a_client_of_another_major_version_is_told_which_of_the_two_to_upgrade() {
    run(async {
        let place = ipc_place();
        tokio::task::spawn_local(echo(serve(&place).await));
        for (major, upgrade) in [(CURRENT.major + 1, "server"), (CURRENT.major - 1, "vr-9")] {
            let mut raw = Raw::shake_hands(connected(&place).await).await;
            raw.say(&greeting_of_a_stranger("vr-9", major))
                .await
                .expect("written");
            let Header::Goodbye(refusal) = hear::<RegistryReply>(&mut raw).await else {
                panic!("expected a goodbye");
            };
            is_told(&refusal, "vr-9", major, upgrade);
            assert!(refusal.text.contains("server speaks"), "{refusal}");
            assert!(raw.hear::<RegistryReply>().await.is_none(), "the connection ends");
        }
        assert_eq!(call(&caller(&place)).await, Ok(entry(3)), "others are served");
    });
}

#[test]
fn a_server_of_another_major_version_is_named_whoever_notices() {
    run(async {
        for (major, upgrade) in [(CURRENT.major + 1, "tester"), (CURRENT.major - 1, "vr-9")] {
            // It would take this client; the client does not take it.
            let place = ipc_place();
            let welcome = greeting(1, &stranger("vr-9", major));
            let refusal = refused(&place, &place.endpoint, welcome).await;
            is_told(&refusal, "vr-9", major, upgrade);
            assert!(refusal.text.contains("tester speaks"), "{refusal}");
        }
        // It refuses; its own words arrive.
        let place = ipc_place();
        let theirs = Refusal::reject(
            RefusalCode::Unsupported,
            "tester speaks protocol 1.2, vr-9 speaks 2.3",
        );
        let goodbye = encoded(&Header::Goodbye(theirs.clone()));
        assert_eq!(refused(&place, &place.endpoint, goodbye).await, theirs);
    });
}

/// What a client of this version is told when the server answers its greeting so.
async fn refused(place: &Place, endpoint: &Endpoint, answer: Vec<u8>) -> Refusal {
    let (_sender, mut receiver) =
        connect::<RegistryRequest, RegistryReply>(&place.network, endpoint, hello());
    let (_raw, event) = tokio::join!(served_by_hand(place, answer), receiver.next());
    match event {
        ClientEvent::Refused(refusal) => refusal,
        other => panic!("expected a refusal, found {other:?}"),
    }
}

#[test]
fn a_foreign_greeting_is_what_every_version_writes() {
    let foreign = Foreign {
        version: Version { major: 2, minor: 0 },
        node: "vr-9".parse().expect("a name"),
    };
    let header = Header::<RegistryReply>::Foreign(foreign);
    let mut bytes = Vec::new();
    header.encode(&mut bytes);
    assert_eq!(Header::decode(&bytes, 0), Ok(header));
}
