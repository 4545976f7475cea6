//! An S3 server for tests, on loopback: `s3s-fs`, which checks signatures and conditions, behind a proxy that goes
//! wrong on purpose.
//!
//! Keeps: buckets as directories and keys as files, in a temporary directory; what was asked.
//! Order: faults begin with the first request after they are set.
//! Crash: everything is gone with it.
//! Knows no Sconce.

mod faults;
mod metadata;
mod proxy;

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::{fs, io};

use s3s::auth::SimpleAuth;
use s3s::config::{S3Config, StaticConfigProvider};
use s3s::host::{S3Host, VirtualHost};
use s3s::service::{S3Service, S3ServiceBuilder};
use tempfile::TempDir;
use tokio::sync::oneshot;

use faults::State;
pub use faults::{Counts, Faults};

/// The access key that the server knows.
pub const ACCESS_KEY: &str = "AKIDSCONCETEST";
/// Its secret: a text that a test can look for where it must not be.
pub const SECRET_KEY: &str = "sEcReTkEy/oF+tHe/TeSt";

/// How a server is set up.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// It speaks TLS, with a certificate of its own: see [`S3Server::certificate`].
    pub is_tls: bool,
    /// It takes every request for one of another time.
    pub is_skewed: bool,
    /// Decides which requests go wrong.
    pub seed: u64,
}

/// A running server; it ends when this is dropped.
#[derive(Debug)]
pub struct S3Server {
    dir: TempDir,
    address: SocketAddr,
    certificate: Option<String>,
    state: Arc<State>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl S3Server {
    /// A server with these buckets.
    ///
    /// # Errors
    /// The system has no port, no thread or no temporary directory for it.
    pub fn start(buckets: &[&str], options: Options) -> io::Result<Self> {
        let dir = tempfile::Builder::new().prefix("sconce-s3-").tempdir()?;
        for bucket in buckets {
            fs::create_dir(dir.path().join(bucket))?;
        }
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let state = Arc::new(State::new(dir.path().to_owned(), options.seed));
        let service = service(&dir, options)?;
        let (certificate, tls) = match options.is_tls {
            true => proxy::tls(buckets).map(|(certificate, acceptor)| (Some(certificate), Some(acceptor)))?,
            false => (None, None),
        };
        let (stop, stopped) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let shared = Arc::clone(&state);
        let thread = std::thread::Builder::new()
            .name("s3-server".to_owned())
            .spawn(move || {
                runtime.block_on(async {
                    tokio::select! {
                        _ = stopped => {}
                        _ = proxy::serve(listener, tls, service, shared) => {}
                    }
                });
            })?;
        Ok(Self {
            dir,
            address,
            certificate,
            state,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Its endpoint, for path style and virtual-hosted style alike: names below `localhost` are this machine.
    #[must_use]
    pub fn endpoint(&self) -> String {
        let scheme = if self.certificate.is_some() {
            "https"
        } else {
            "http"
        };
        format!("{scheme}://localhost:{}", self.address.port())
    }

    /// The certificate that it shows, as PEM, where it speaks TLS.
    #[must_use]
    pub fn certificate(&self) -> Option<&str> {
        self.certificate.as_deref()
    }

    /// Goes wrong like this from now on.
    pub fn set(&self, faults: Faults) {
        self.state.set(faults);
    }

    /// What was asked since the start.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.state.counts()
    }

    /// The file of a key, or the directory of a bucket.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // A server that panicked has failed its test already.
            let _ = thread.join();
        }
    }
}

fn service(dir: &TempDir, options: Options) -> io::Result<S3Service> {
    let files =
        s3s_fs::FileSystem::new(dir.path()).map_err(|error| io::Error::other(format!("{error:?}")))?;
    let mut builder = S3ServiceBuilder::new(files);
    let mut auth = SimpleAuth::new();
    auth.register(ACCESS_KEY.to_owned(), SECRET_KEY.into());
    auth.register(metadata::ACCESS_KEY.to_owned(), metadata::SECRET_KEY.into());
    builder.set_auth(auth);
    builder.set_host(Hosts);
    if options.is_skewed {
        let mut config = S3Config::default();
        // A signature has whole seconds: it is always a little older.
        config.presigned_url_max_skew_time_secs = 0;
        builder.set_config(Arc::new(StaticConfigProvider::new(Arc::new(config))));
    }
    Ok(builder.build())
}

/// `bucket.localhost:port` has the bucket in its name, and any other host has it in the path.
struct Hosts;

impl S3Host for Hosts {
    fn parse_host_header<'a>(&'a self, host: &'a str) -> s3s::S3Result<VirtualHost<'a>> {
        Ok(match host.split_once(".localhost") {
            Some((bucket, _)) => VirtualHost::new("localhost").with_bucket(bucket),
            None => VirtualHost::new(host),
        })
    }
}
