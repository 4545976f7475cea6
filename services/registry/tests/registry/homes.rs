//! The homes that the suite runs against.

use std::path::Path;

use sconce_registry::{Change, Registry};
use sconce_tracing::Witness;

use crate::bus_host::BusHost;
use crate::etcd_server::EtcdServer;

use crate::suite::{self, Subject};

/// The suite's cases, each a test of its own, against one home.
macro_rules! conformance {
    ($home:ident, $start:expr, $($case:ident)+) => {
        mod $home {
            use super::*;
            $(
                #[tokio::test]
                async fn $case() {
                    suite::$case(&$start).await;
                }
            )+
        }
    };
    ($home:ident, $start:expr) => {
        conformance! { $home, $start,
            compare_and_swap all_changes_or_none a_commit_that_changes_nothing listing_in_pages
            listing_large_values a_watch_loses_and_reorders_nothing a_watch_waits_and_wakes
            a_watch_that_is_too_far_behind_is_told leases_end_with_their_keys
            leases_are_kept_alive_and_revoked concurrent_increments_lose_nothing
            random_commits_do_as_a_model_says records_by_type limits
        }
    };
}

conformance!(memory, Embedded::in_memory());
conformance!(sled, Embedded::in_directory());
conformance!(etcd, Etcd::start().await);
conformance!(remote, Remote::start().await);

struct Embedded {
    registry: Registry,
    dir: Option<tempfile::TempDir>,
    /// Fails the test for a warning that nobody asked for.
    _witness: Witness,
}

impl Embedded {
    fn in_memory() -> Self {
        Self {
            registry: Registry::memory(),
            dir: None,
            _witness: Witness::of_this_thread(),
        }
    }

    fn in_directory() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self {
            registry: Registry::sled(dir.path()).unwrap(),
            dir: Some(dir),
            _witness: Witness::of_this_thread(),
        }
    }
}

impl Subject for Embedded {
    fn registry(&self) -> Registry {
        self.registry.clone()
    }

    async fn forget_events(&self) {
        fill_history(&self.registry).await;
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        if let Some(dir) = &self.dir {
            assert_nothing_set_aside(dir.path());
        }
    }
}

/// More bytes of events than an embedded registry keeps.
async fn fill_history(registry: &Registry) {
    for _ in 0..10 {
        let large = Change::put("filler", None, vec![0; 1 << 20]);
        registry.commit(vec![large]).await.unwrap();
    }
}

/// A registry that nobody damaged has set nothing aside.
fn assert_nothing_set_aside(dir: &Path) {
    let names: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    let aside = names
        .iter()
        .find(|name| name.to_string_lossy().contains("damaged"));
    assert!(aside.is_none() || std::thread::panicking(), "{names:?}");
}

struct Etcd {
    server: EtcdServer,
    registry: Registry,
}

impl Etcd {
    async fn start() -> Self {
        let server = EtcdServer::start();
        let registry = server.registry().await;
        Self { server, registry }
    }
}

impl Subject for Etcd {
    fn registry(&self) -> Registry {
        self.registry.clone()
    }

    async fn forget_events(&self) {
        let newest = self.registry.revision().await.unwrap();
        let mut client = etcd_client::Client::connect([self.server.endpoint()], None)
            .await
            .unwrap();
        client
            .compact(i64::try_from(newest.0).unwrap(), None)
            .await
            .unwrap();
    }
}

/// An embedded registry that a thread of this process hosts, reached over a real bus.
struct Remote {
    // Before the host, so that its connection goes first.
    registry: Registry,
    hosted: Embedded,
    _host: BusHost,
}

impl Remote {
    async fn start() -> Self {
        let hosted = Embedded::in_directory();
        let host = BusHost::start(hosted.registry()).await;
        Self {
            registry: host.connect("remote"),
            hosted,
            _host: host,
        }
    }
}

impl Subject for Remote {
    fn registry(&self) -> Registry {
        self.registry.clone()
    }

    async fn forget_events(&self) {
        fill_history(&self.hosted.registry).await;
    }
}
