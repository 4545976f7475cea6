//! A real etcd, Debian's, started by the test on a free port of loopback.

use std::net::TcpListener;

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use sconce_bus::TlsSettings;
use sconce_registry::{OpenError, Registry};

use crate::suite::SOON;

/// An etcd; killed when dropped.
pub(crate) struct EtcdServer {
    process: Option<Child>,
    dir: tempfile::TempDir,
    client_port: u16,
    peer_port: u16,
    tls: Option<TlsSettings>,
    name: String,
    /// All members, as etcd is told of them.
    members: String,
    /// Milliseconds between two signs of life of a leader, and until a silent one is replaced.
    pace: [&'static str; 2],
}

/// The shortest that etcd takes: a lone member elects itself sooner.
const ALONE: [&str; 2] = ["20", "200"];
/// As etcd has it by itself: on a machine that is busy a leader that lives is not replaced.
const OF_THREE: [&str; 2] = ["100", "1000"];

impl EtcdServer {
    pub(crate) fn start() -> Self {
        Self::start_with(None)
    }

    /// One that shows a certificate, and asks its clients for one.
    pub(crate) fn start_secured(tls: TlsSettings) -> Self {
        Self::start_with(Some(tls))
    }

    fn start_with(tls: Option<TlsSettings>) -> Self {
        let mut server = Self::prepare("test", tls);
        server.members = server.member();
        server.start_again();
        server
    }

    /// Three members of one etcd.
    pub(crate) fn start_three() -> [Self; 3] {
        let mut servers = ["one", "two", "three"].map(|name| Self::prepare(name, None));
        let members = servers.each_ref().map(Self::member).join(",");
        for server in &mut servers {
            server.pace = OF_THREE;
            server.members.clone_from(&members);
            server.start_again();
        }
        servers
    }

    fn prepare(name: &str, tls: Option<TlsSettings>) -> Self {
        Self {
            tls,
            process: None,
            dir: tempfile::tempdir().unwrap(),
            client_port: free_port(),
            peer_port: free_port(),
            name: name.to_owned(),
            members: String::new(),
            pace: ALONE,
        }
    }

    fn member(&self) -> String {
        format!("{}=http://127.0.0.1:{}", self.name, self.peer_port)
    }

    /// Starts the process on the data that is there.
    pub(crate) fn start_again(&mut self) {
        let (client, peer) = (self.endpoint(), format!("http://127.0.0.1:{}", self.peer_port));
        let log = std::fs::File::create(self.dir.path().join("log")).unwrap();
        let mut command = Command::new("etcd");
        command
            .args(["--name", &self.name, "--data-dir"])
            .arg(self.dir.path().join("data"))
            .args([
                "--listen-client-urls",
                &client,
                "--advertise-client-urls",
                &client,
            ])
            .args([
                "--listen-peer-urls",
                &peer,
                "--initial-advertise-peer-urls",
                &peer,
            ])
            .args(["--initial-cluster", &self.members])
            .args(["--heartbeat-interval", self.pace[0]])
            .args(["--election-timeout", self.pace[1]])
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        if let Some(tls) = &self.tls {
            command.arg("--client-cert-auth");
            command.arg("--trusted-ca-file").arg(&tls.authority);
            command.arg("--cert-file").arg(&tls.certificate);
            command.arg("--key-file").arg(&tls.key);
        }
        self.process = Some(command.spawn().expect("Debian's etcd-server is installed"));
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    /// Sends a signal (`STOP`, `CONT`).
    pub(crate) fn signal(&self, signal: &str) {
        let id = self.process.as_ref().unwrap().id().to_string();
        let sent = Command::new("kill").args([format!("-{signal}"), id]).status();
        assert!(sent.unwrap().success());
    }

    pub(crate) fn endpoint(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://127.0.0.1:{}", self.client_port)
    }

    /// The registry in this etcd, as soon as it answers.
    pub(crate) async fn registry(&self) -> Registry {
        Self::registry_of(std::slice::from_ref(self)).await
    }

    /// The registry in the etcd that has these members, as soon as it answers.
    pub(crate) async fn registry_of(members: &[Self]) -> Registry {
        let endpoints: Vec<String> = members.iter().map(Self::endpoint).collect();
        let give_up = Instant::now() + SOON;
        loop {
            match Registry::etcd(&endpoints, "/sconce/", members[0].tls.as_ref()).await {
                Ok(registry) => return registry,
                Err(OpenError::Etcd { .. }) if Instant::now() < give_up => {
                    // A refused connection tells nothing to wait for.
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(error) => panic!("{error}\n{}", members[0].log()),
            }
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

impl Drop for EtcdServer {
    fn drop(&mut self) {
        self.kill();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}
