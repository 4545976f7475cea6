//! What the bus's tests share: a thread's runtime, a server that echoes, greetings.

use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use sconce_bus::{
    ClientEvent, Endpoint, Hello, Identity, Limits, Network, Protocol, Receiver, Role, Server, ServerEvent,
    Version, ZeromqSettings, bind,
};
use sconce_schemas::wire::registry::{RegistryReply, RegistryRequest, Revision};
use tokio::net::UnixStream;

pub(crate) type TestServer = Server<RegistryRequest, RegistryReply>;

/// No test takes longer; one that does waits for something that never comes.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// Runs a test on a current-thread runtime, within a deadline.
pub(crate) fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("runtime");
    let set = tokio::task::LocalSet::new();
    set.block_on(&runtime, async {
        tokio::time::timeout(DEADLINE, test)
            .await
            .expect("the test ends in time")
    })
}

pub(crate) struct Place {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) network: Network,
    pub(crate) endpoint: Endpoint,
}

/// Runs a test under tokio's paused clock: time passes only when nothing else can happen.
pub(crate) fn simulate<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .expect("runtime");
    tokio::task::LocalSet::new().block_on(&runtime, test)
}

/// A private directory with an ipc endpoint in it.
pub(crate) fn ipc_place() -> Place {
    let dir = tempfile::tempdir().expect("a directory");
    let endpoint = Endpoint::ipc(&dir.path().join("bus").join("test.sock")).expect("endpoint");
    let network = Network::zeromq(ZeromqSettings {
        run_dir: dir.path().to_owned(),
    });
    Place {
        dir,
        network,
        endpoint,
    }
}

/// Where the socket of [`ipc_place`] is.
pub(crate) fn socket(place: &Place) -> PathBuf {
    place.dir.path().join("bus").join("test.sock")
}

/// A connection on which nothing is said yet.
pub(crate) async fn connected(place: &Place) -> UnixStream {
    UnixStream::connect(socket(place)).await.expect("connected")
}

pub(crate) fn hello() -> Hello {
    Hello {
        version: Version::CURRENT,
        protocol: Protocol::Registry,
        role: Role::Client,
        node: "tester".parse().expect("a name"),
    }
}

pub(crate) fn identity() -> Identity {
    Identity {
        node: "server".parse().expect("a name"),
        role: Role::StorageRouter,
        protocol: Protocol::Registry,
        limits: Limits::of(Protocol::Registry),
    }
}

pub(crate) async fn serve(place: &Place) -> TestServer {
    bind(&place.network, &place.endpoint, identity())
        .await
        .expect("bind")
}

pub(crate) fn get(key: &str) -> RegistryRequest {
    RegistryRequest::Get { key: key.to_owned() }
}

/// What [`echo`] answers to [`get`].
pub(crate) fn entry(revision: usize) -> RegistryReply {
    RegistryReply::Entry {
        entry: None,
        revision: Revision(revision as u64),
    }
}

/// Answers each request with its data, and the length of its key as revision; for ever.
pub(crate) async fn echo(mut server: TestServer) {
    loop {
        if let ServerEvent::Requests(requests) = server.next().await {
            for request in requests {
                let RegistryRequest::Get { key } = &request.body else {
                    continue;
                };
                request.reply.send(entry(key.len()), request.data);
            }
        }
    }
}

pub(crate) async fn up(receiver: &mut Receiver<RegistryReply>) {
    let event = receiver.next().await;
    assert!(
        matches!(event, ClientEvent::Up(_)),
        "expected Up, found {event:?}"
    );
}

/// Waits for `Up` while the server takes greetings.
pub(crate) async fn greet(server: &mut TestServer, receiver: &mut Receiver<RegistryReply>) {
    tokio::select! {
        () = up(receiver) => {}
        _ = server.next() => panic!("nothing was sent, no client is gone"),
    }
}

pub(crate) fn bytes(len: usize, fill: u8) -> Bytes {
    Bytes::from(vec![fill; len])
}

/// Memory of this process now, in bytes.
pub(crate) fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("statm");
    let pages: usize = statm
        .split(' ')
        .nth(1)
        .and_then(|n| n.parse().ok())
        .expect("pages");
    pages * 4096
}
