//! Back ends on an S3 server that the test starts: the suite, and what only a bucket has.

mod errors;
mod identity;
mod keys;
mod whole;

use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::time::Duration;

use sconce_storage_router::backend::Identified as _;
use sconce_storage_router::s3::{S3Backend, S3Settings};
use sconce_test_s3::{ACCESS_KEY, Faults, Options, S3Server, SECRET_KEY};

use crate::suite::conforms;

const DEADLINE: Duration = Duration::from_secs(20);

/// A server with the bucket `vms`, and an access key for it in a file.
struct Site {
    server: S3Server,
    dir: tempfile::TempDir,
}

impl Site {
    fn new() -> Self {
        Self::with(Options::default())
    }

    fn with(options: Options) -> Self {
        let site = Self {
            server: S3Server::start(&["vms", "other"], options).unwrap(),
            dir: tempfile::tempdir().unwrap(),
        };
        site.write_key(ACCESS_KEY, SECRET_KEY);
        site
    }

    fn write_key(&self, id: &str, secret: &str) {
        let file = self.dir.path().join("new");
        let text = format!("[default]\naws_access_key_id = {id}\naws_secret_access_key = {secret}\n");
        std::fs::write(&file, text).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::rename(&file, self.dir.path().join("keys")).unwrap();
    }

    /// The settings that a person would type, with `more` beside what this site needs.
    fn settings(&self, more: &str) -> S3Settings {
        let mut text = format!("{more}\nendpoint = {:?}\n", self.server.endpoint());
        for (key, value) in [
            ("bucket = ", "bucket = \"vms\"".to_owned()),
            (
                "credentials = ",
                format!("credentials_file = {:?}", self.dir.path().join("keys")),
            ),
            ("multipart_above = ", "multipart_above = \"5 MiB\"".to_owned()),
        ] {
            if !more.contains(key) {
                text.push_str(&format!("{value}\n"));
            }
        }
        if let Some(certificate) = self.server.certificate() {
            let file = self.dir.path().join("ca.pem");
            std::fs::write(&file, certificate).unwrap();
            if !more.contains("ca = ") {
                text.push_str(&format!("ca = {file:?}\n"));
            }
        }
        let file = self.dir.path().join("s3.toml");
        std::fs::write(&file, text).unwrap();
        sconce_runtime::settings::load(&file).unwrap()
    }

    /// A back end that nobody has attached yet.
    fn backend(&self, more: &str) -> S3Backend {
        S3Backend::new("s3-1", &self.settings(more), DEADLINE, None).unwrap()
    }

    async fn attached(&self, more: &str) -> S3Backend {
        let backend = self.backend(more);
        backend.attach().await.unwrap();
        backend
    }
}

/// Everything that passes: answers that refuse, connections that break at every point.
fn passing() -> Faults {
    Faults {
        slow_down: 60,
        reset_request: 30,
        reset_answer: 30,
        lost_answer: 60,
        ..Faults::default()
    }
}

#[tokio::test]
async fn a_bucket_conforms() {
    let site = Site::new();
    conforms(Arc::new(site.attached("").await)).await;
    assert!(
        site.server.counts().completions > 0,
        "a large object goes in parts"
    );
}

#[tokio::test]
async fn a_folder_of_a_bucket_conforms_beside_another_in_virtual_hosted_style_over_tls() {
    let site = Site::with(Options {
        is_tls: true,
        ..Options::default()
    });
    let hosted = "style = \"virtual-hosted\"\nregion = \"eu-7\"\nfolder";
    let first = site.attached(&format!("{hosted} = \"a/b\"")).await;
    let second = site.attached(&format!("{hosted} = \"a/c\"")).await;
    conforms(Arc::new(first)).await;
    conforms(Arc::new(second)).await;
    assert!(site.server.path("vms/a/b/sconce-backend").exists());
}

#[tokio::test]
async fn a_bucket_that_goes_wrong_conforms() {
    for seed in 0..4 {
        let site = Site::with(Options {
            seed,
            ..Options::default()
        });
        let backend = site.attached("").await;
        site.server.set(passing());
        conforms(Arc::new(backend)).await;
        assert!(site.server.counts().faults > 10, "{:?}", site.server.counts());
    }
}

#[tokio::test]
async fn a_server_without_conditional_puts_conforms() {
    for faults in [
        Faults {
            overwrites: true,
            ..Faults::default()
        },
        Faults {
            no_conditions: true,
            ..Faults::default()
        },
        Faults {
            overwrites: true,
            ..passing()
        },
    ] {
        let site = Site::new();
        site.server.set(Faults {
            overwrites: faults.overwrites,
            no_conditions: faults.no_conditions,
            ..Faults::default()
        });
        let backend = site.attached("").await;
        site.server.set(faults);
        conforms(Arc::new(backend)).await;
    }
}
