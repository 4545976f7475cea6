//! Between hosts: who has no certificate of the pool's authority gets nowhere, who has one gets no further than flow
//! control allows.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use sconce_bus::authority::{Authority, Validity};
use sconce_bus::{
    CallError, Caller, ClientEvent, Endpoint, Hello, Network, SendError, TlsSettings, ZeromqSettings, bind,
    connect,
};
use sconce_schemas::wire::envelope::{Header, Request};
use sconce_schemas::wire::registry::{RegistryReply, RegistryRequest};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::common::*;
use crate::versions::greeting_of_a_stranger;
use crate::zmtp::{MORE, Raw, announce, frame, greeting, message, ready};

const MIB: usize = 1 << 20;
const SOON: Duration = Duration::from_secs(20);
/// Longer than a dial that could succeed takes.
const IN_VAIN: Duration = Duration::from_millis(400);

/// A pool on this host: an authority, and nodes with certificates of it.
struct Pool {
    dir: tempfile::TempDir,
    authority: Authority,
}

impl Pool {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let authority = Authority::create("lab", &dir.path().join("authority")).expect("made");
        Self { dir, authority }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn issue(&self, node: &str, validity: Validity) -> TlsSettings {
        let node = node.parse().expect("a name");
        let issued = self.authority.issue(&node, &[], validity).expect("issued");
        let (certificate, key) = issued.write(&self.path("nodes")).expect("written");
        TlsSettings {
            authority: self.path("authority/authority.crt"),
            certificate,
            key,
        }
    }

    fn network(&self, tls: TlsSettings) -> Network {
        let run_dir = self.path("run");
        Network::zeromq_and_tls(ZeromqSettings { run_dir }, tls)
    }

    /// A server that echoes; where it is reached.
    async fn serve(&self) -> Endpoint {
        let network = self.network(self.issue("server", Validity::days(30)));
        let endpoint: Endpoint = "tls://127.0.0.1:0/server".parse().expect("an endpoint");
        let server: TestServer = bind(&network, &endpoint, identity()).await.expect("bound");
        let endpoint = server.endpoint().clone();
        tokio::task::spawn_local(echo(server));
        endpoint
    }

    fn client(&self) -> Network {
        self.network(self.issue("client", Validity::days(30)))
    }
}

/// A greeting of a node that has a certificate.
fn hello_of(node: &str) -> Hello {
    Hello {
        node: node.parse().expect("a name"),
        ..hello()
    }
}

async fn call(network: &Network, endpoint: &Endpoint, deadline: Duration) -> Result<Bytes, CallError> {
    let caller: Caller<_, RegistryReply> = Caller::new(network, endpoint, hello_of("client"));
    let answer = caller.call(&get("a"), bytes(100_000, 4), 100_000, deadline).await;
    answer.map(|(_, data)| data)
}

fn port(endpoint: &Endpoint) -> u16 {
    let text = endpoint.to_string();
    let port = text.split([':', '/']).nth(4).expect("a port");
    port.parse().expect("a number")
}

async fn tcp(endpoint: &Endpoint) -> TcpStream {
    TcpStream::connect(("127.0.0.1", port(endpoint)))
        .await
        .expect("connected")
}

/// A TLS stream with the certificate of a node, or none, and nothing of the bus on it.
async fn stream(endpoint: &Endpoint, tls: &TlsSettings, with_certificate: bool) -> TlsStream<TcpStream> {
    let mut roots = rustls::RootCertStore::empty();
    let read = |path: &Path| CertificateDer::from_pem_file(path).expect("a certificate");
    roots.add(read(&tls.authority)).expect("added");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_root_certificates(roots);
    let config = if with_certificate {
        let key = PrivateKeyDer::from_pem_file(&tls.key).expect("a key");
        config
            .with_client_auth_cert(vec![read(&tls.certificate)], key)
            .expect("they fit")
    } else {
        config.with_no_client_auth()
    };
    let name = ServerName::try_from("server").expect("a name");
    let connector = TlsConnector::from(Arc::new(config));
    connector
        .connect(name, tcp(endpoint).await)
        .await
        .expect("the client is content")
}

#[test]
fn nodes_with_certificates_of_the_pool_talk() {
    run(async {
        let pool = Pool::new();
        let endpoint = pool.serve().await;
        let data = call(&pool.client(), &endpoint, SOON).await;
        assert_eq!(data, Ok(bytes(100_000, 4)));

        // Large messages and many of them; the connection is one, over TLS.
        let network = pool.client();
        let (sender, mut receiver) = connect::<_, RegistryReply>(&network, &endpoint, hello_of("client"));
        up(&mut receiver).await;
        let mut sent = 0;
        let mut answered = 0;
        while answered < 100 {
            while sent < 100 {
                match sender.send(sent, 0, &get("a"), bytes(MIB, 9), 1 << 20) {
                    Ok(()) => sent += 1,
                    Err(SendError::NoCredit(_)) => break,
                    Err(error) => panic!("{error}"),
                }
            }
            match receiver.next().await {
                ClientEvent::Replies(replies) => {
                    assert!(replies.iter().all(|reply| reply.data == bytes(MIB, 9)));
                    answered += replies.len();
                }
                ClientEvent::Room => {}
                other => panic!("{other:?}"),
            }
        }
        let left = std::fs::read_dir(pool.path("run/tls")).expect("listed");
        let names: Vec<_> = left.map(|entry| entry.expect("an entry").file_name()).collect();
        let to = names
            .iter()
            .filter(|name| name.to_string_lossy().starts_with("to-"))
            .count();
        assert_eq!(to, 1, "only the open connection has a private socket: {names:?}");
    });
}

#[test]
fn a_client_connects_again_when_its_server_comes_back() {
    run(async {
        let pool = Pool::new();
        let network = pool.network(pool.issue("server", Validity::days(30)));
        let any: Endpoint = "tls://127.0.0.1:0/server".parse().expect("an endpoint");
        let mut server: TestServer = bind(&network, &any, identity()).await.expect("bound");
        let endpoint = server.endpoint().clone();
        let (_sender, mut receiver) =
            connect::<RegistryRequest, RegistryReply>(&pool.client(), &endpoint, hello_of("client"));
        greet(&mut server, &mut receiver).await;
        drop(server);
        let event = receiver.next().await;
        assert!(matches!(event, ClientEvent::Down(_)), "{event:?}");
        let mut server: TestServer = bind(&network, &endpoint, identity()).await.expect("bound again");
        greet(&mut server, &mut receiver).await;
    });
}

#[test]
fn who_the_pool_does_not_know_is_not_let_in() {
    run(async {
        let pool = Pool::new();
        let endpoint = pool.serve().await;

        let stranger = Pool::new();
        let mut other_ca = stranger.issue("client", Validity::days(30));
        // It believes the server, but the server does not believe it.
        other_ca.authority = pool.path("authority/authority.crt");
        let expired = Validity {
            from: SystemTime::now() - Duration::from_secs(10 * 24 * 3600),
            days: 9,
        };
        let later = Validity {
            from: SystemTime::now() + Duration::from_secs(24 * 3600),
            days: 9,
        };
        for tls in [other_ca, pool.issue("late", expired), pool.issue("early", later)] {
            let answer = call(&pool.network(tls), &endpoint, IN_VAIN).await;
            assert_eq!(answer, Err(CallError::Deadline));
        }

        let mut without = stream(&endpoint, &pool.issue("client", Validity::days(1)), false).await;
        let mut buffer = [0; 10];
        let heard = async {
            let _ = without.write_all(&greeting()).await;
            without.read(&mut buffer).await
        };
        assert!(heard.await.is_err(), "an alert, not a greeting");

        let answer = call(&pool.client(), &endpoint, SOON).await;
        assert!(answer.is_ok(), "{answer:?}");
    });
}

#[test]
fn a_server_that_is_not_who_it_should_be_is_not_believed() {
    run(async {
        let pool = Pool::new();
        let endpoint = pool.serve().await;
        let other: Endpoint = endpoint
            .to_string()
            .replace("/server", "/node-b")
            .parse()
            .expect("an endpoint");
        assert_eq!(
            call(&pool.client(), &other, IN_VAIN).await,
            Err(CallError::Deadline)
        );

        let stranger = Pool::new();
        assert_eq!(
            call(&stranger.client(), &endpoint, IN_VAIN).await,
            Err(CallError::Deadline)
        );
    });
}

#[test]
fn a_server_does_not_start_with_certificates_that_cannot_work() {
    run(async {
        let pool = Pool::new();
        let endpoint: Endpoint = "tls://127.0.0.1:0/server".parse().expect("an endpoint");
        let error = async |tls: TlsSettings| {
            let network = pool.network(tls);
            let bound = bind::<RegistryRequest, RegistryReply>(&network, &endpoint, identity()).await;
            bound.err().expect("refused").to_string()
        };
        let wrong_name = error(pool.issue("node-b", Validity::days(1))).await;
        assert!(
            wrong_name.contains("node-b.crt") && wrong_name.contains("do not hold server"),
            "{wrong_name}"
        );

        let mut missing = pool.issue("server", Validity::days(1));
        missing.certificate = pool.path("nowhere.crt");
        let missing = error(missing).await;
        assert!(missing.contains("nowhere.crt"), "{missing}");

        let mut other_key = pool.issue("server", Validity::days(1));
        other_key.key = pool.issue("node-b", Validity::days(1)).key;
        let other_key = error(other_key).await;
        assert!(other_key.contains("fits its key"), "{other_key}");

        let run_dir = pool.path("run");
        let no_tls = Network::zeromq(ZeromqSettings { run_dir });
        let refused = bind::<RegistryRequest, RegistryReply>(&no_tls, &endpoint, identity()).await;
        let refused = refused.err().expect("refused").to_string();
        assert!(refused.contains("certificates in its settings"), "{refused}");
    });
}

#[test]
fn plain_tcp_is_cut_without_an_answer_of_the_bus() {
    run(async {
        let pool = Pool::new();
        let endpoint = pool.serve().await;
        for garbage in [
            greeting(),
            b"GET / HTTP/1.0\r\n\r\n".to_vec(),
            bytes(100_000, 0x16).to_vec(),
        ] {
            let mut plain = tcp(&endpoint).await;
            let _ = plain.write_all(&garbage).await;
            let mut heard = Vec::new();
            let _ = plain.read_to_end(&mut heard).await;
            assert!(heard.len() < 16, "at most an alert: {heard:?}");
        }
        // Strangers who say nothing do not keep others out.
        let mut silent = Vec::new();
        for _ in 0..100 {
            silent.push(tcp(&endpoint).await);
        }
        assert!(call(&pool.client(), &endpoint, SOON).await.is_ok());
    });
}

#[test]
fn a_hostile_node_of_the_pool_takes_no_memory_and_ends_nothing_but_its_connection() {
    run(async {
        let pool = Pool::new();
        let endpoint = pool.serve().await;
        let tls = pool.issue("hostile", Validity::days(1));
        let client = pool.client();
        assert!(call(&client, &endpoint, SOON).await.is_ok());
        let before = resident();

        // Before the handshake, at it, and after the greeting; each is cut.
        let hello = message(&Header::Hello(hello_of("hostile")), &[]);
        let greeted = [greeting(), ready(&[]), hello].concat();
        let with_identity = [greeting(), ready(&[("Identity", b"somebody")])].concat();
        let parts = [frame(MORE, b"a"), frame(MORE, b"b"), frame(MORE, b"c")].concat();
        for attack in [
            bytes(1000, 0).to_vec(),
            with_identity,
            [greeting(), announce(4, 1 << 44)].concat(),
            [greeting(), ready(&[]), announce(0, 1 << 44)].concat(),
            [greeting(), ready(&[]), announce(0, 1 << 20)].concat(),
            [&greeted[..], &announce(0, 1 << 44)].concat(),
            [&greeted[..], &announce(0, u64::MAX)].concat(),
            [&greeted[..], &announce(MORE, 5 << 20)].concat(),
            [&greeted[..], &parts].concat(),
            [
                greeting(),
                ready(&[]),
                message(&Header::Hello(hello_of("client")), &[]),
            ]
            .concat(),
            [greeting(), ready(&[]), message(&Header::Ping(0), &[])].concat(),
        ] {
            let mut stream = stream(&endpoint, &tls, true).await;
            let _ = stream.write_all(&attack).await;
            let mut heard = Vec::new();
            let ended = stream.read_to_end(&mut heard).await;
            assert!(
                heard.len() < 4096,
                "the connection ends: {ended:?}, {} bytes heard",
                heard.len()
            );
        }

        // Unfinished messages of one node share a budget: 32 MiB here, whatever the number of connections.
        let almost = bytes((4 << 20) - 1, 1);
        let mut unfinished = Vec::new();
        for _ in 0..40 {
            let mut stream = stream(&endpoint, &tls, true).await;
            let _ = stream.write_all(&greeted).await;
            let _ = stream.write_all(&announce(0, 4 << 20)).await;
            let most = stream.write_all(&almost);
            let _ = tokio::time::timeout(Duration::from_millis(50), most).await;
            unfinished.push(stream);
        }
        let grown = resident().saturating_sub(before);
        assert!(grown < 100 * MIB, "memory grew by {} KiB", grown >> 10);
        assert!(
            call(&client, &endpoint, SOON).await.is_ok(),
            "others are served meanwhile"
        );
        drop(unfinished);

        // What the bus itself refuses is refused here as well.
        let mut raw = Raw::greet(stream(&endpoint, &tls, true).await, hello_of("hostile")).await;
        let request = Request {
            id: 1,
            data_len: 0,
            reply_len: u32::MAX,
            trace: 0.into(),
            body: get("a"),
        };
        let requests = Header::Requests {
            mark: 0,
            requests: vec![request],
        };
        raw.say(&message(&requests, &[])).await.expect("written");
        let reason = raw.hear_goodbye().await.expect("a goodbye");
        assert!(reason.contains("the credit is"), "{reason}");
        assert!(call(&client, &endpoint, SOON).await.is_ok());
    });
}

#[test]
fn a_node_of_another_major_version_is_told_so_between_hosts() {
    run(async {
        let pool = Pool::new();
        let endpoint = pool.serve().await;
        let tls = pool.issue("vr-9", Validity::days(1));
        let mut raw = Raw::shake_hands(stream(&endpoint, &tls, true).await).await;
        raw.say(&greeting_of_a_stranger("vr-9", 2))
            .await
            .expect("written");
        let reason = raw.hear_goodbye().await.expect("a goodbye");
        assert!(
            reason.contains("vr-9 speaks protocol 2.3") && reason.contains("upgrade server"),
            "{reason}"
        );
        // Nobody speaks for another node, in whatever version.
        let mut raw = Raw::shake_hands(stream(&endpoint, &tls, true).await).await;
        let _ = raw.say(&greeting_of_a_stranger("vr-8", 2)).await;
        assert_eq!(raw.hear_goodbye().await, None);
    });
}
