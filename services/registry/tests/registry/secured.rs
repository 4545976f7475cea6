//! etcd behind mutual TLS.

use sconce_bus::TlsSettings;
use sconce_bus::authority::{AUTHORITY_CERTIFICATE, Authority, Validity};
use sconce_registry::{Change, OpenError, Registry};

use crate::etcd_server::EtcdServer;

/// A pool's authority, in a directory of its own.
struct Pool {
    dir: tempfile::TempDir,
    authority: Authority,
}

impl Pool {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::create("test", &dir.path().join("pool")).unwrap();
        Self { dir, authority }
    }

    /// A node's certificate, for itself and for loopback.
    fn certificate(&self, node: &str) -> TlsSettings {
        let hosts = ["127.0.0.1".to_owned()];
        let issued = self
            .authority
            .issue(&node.parse().unwrap(), &hosts, Validity::days(1))
            .unwrap();
        let (certificate, key) = issued.write(self.dir.path()).unwrap();
        TlsSettings {
            authority: self.dir.path().join("pool").join(AUTHORITY_CERTIFICATE),
            certificate,
            key,
        }
    }
}

#[tokio::test]
async fn etcd_and_its_clients_know_each_other_by_the_pools_authority() {
    let (pool, strangers) = (Pool::new(), Pool::new());
    let server = EtcdServer::start_secured(pool.certificate("etcd"));
    let registry = server.registry().await;
    let revision = registry
        .commit(vec![Change::put("key", None, vec![7])])
        .await
        .unwrap();
    let entry = registry.get("key").await.unwrap().unwrap();
    assert_eq!((entry.value, entry.revision), (vec![7], revision));

    let endpoints = [server.endpoint()];
    let refused = async |tls: &TlsSettings| match Registry::etcd(&endpoints, "/sconce/", Some(tls)).await {
        Ok(_) => panic!("a stranger was let in"),
        Err(OpenError::Etcd { .. }) => {}
        Err(other) => panic!("{other}"),
    };
    let own = pool.certificate("fs-router-1");
    // Who asks with a certificate of another authority; who asks an etcd that has one.
    refused(&TlsSettings {
        authority: own.authority.clone(),
        ..strangers.certificate("fs-router-1")
    })
    .await;
    refused(&TlsSettings {
        authority: strangers.certificate("fs-router-1").authority,
        ..own
    })
    .await;
}

#[tokio::test]
async fn settings_of_tls_that_cannot_be_used_name_the_file() {
    let pool = Pool::new();
    let mut tls = pool.certificate("fs-router-1");
    let open = async |endpoint: &str, tls: &TlsSettings| {
        let opened = Registry::etcd(&[endpoint.to_owned()], "/sconce/", Some(tls)).await;
        opened.map(drop).unwrap_err().to_string()
    };
    let plain = open("http://127.0.0.1:1", &tls).await;
    assert!(
        plain.contains("http://127.0.0.1:1") && plain.contains("https://"),
        "{plain}"
    );
    tls.certificate = "/nowhere/a.crt".into();
    let missing = open("https://127.0.0.1:1", &tls).await;
    assert!(missing.contains("/nowhere/a.crt"), "{missing}");
}
