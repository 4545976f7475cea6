//! Where the access key comes from.

use std::time::Duration;

use sconce_storage_router::backend::Identified as _;
use sconce_storage_router::s3::S3Backend;
use sconce_storage_router::{Backend as _, BackendError};
use sconce_test_s3::{ACCESS_KEY, SECRET_KEY};

use super::Site;
use crate::suite::object;

#[tokio::test]
async fn a_machines_role_gives_the_key() {
    let site = Site::new();
    let role =
        |endpoint: &str| format!("credentials = \"instance-profile\"\nmetadata_endpoint = {endpoint:?}\n");
    let backend = site.attached(&role(&site.server.endpoint())).await;
    let before = site.server.counts().requests;
    for id in 0..5 {
        backend.put_new(object(id, 1, 10)).await.unwrap();
    }
    assert_eq!(
        site.server.counts().requests - before,
        5,
        "the key is fetched once"
    );
    let settings = site.settings(&role("http://127.0.0.1:1"));
    let nowhere = S3Backend::new("s3-1", &settings, Duration::from_secs(1), None).unwrap();
    let text = nowhere.attach().await.unwrap_err().to_string();
    assert!(
        text.contains("127.0.0.1/latest/api/token (for credentials)"),
        "{text}"
    );
}

#[tokio::test]
async fn a_new_key_in_the_file_is_taken_without_a_restart() {
    let site = Site::new();
    let backend = site.attached("").await;
    site.write_key(ACCESS_KEY, "revoked");
    let denied = backend.put_new(object(1, 1, 10)).await;
    assert!(matches!(denied, Err(BackendError::Denied { .. })), "{denied:?}");
    site.write_key(ACCESS_KEY, SECRET_KEY);
    backend.put_new(object(1, 1, 10)).await.unwrap();
}

#[tokio::test]
async fn a_file_that_is_not_there_is_named() {
    let site = Site::new();
    let settings = site.settings("credentials = \"file\"\ncredentials_file = \"/nowhere/keys\"");
    let backend = S3Backend::new("s3-1", &settings, Duration::from_secs(1), None).unwrap();
    let error = backend.attach().await.unwrap_err();
    assert!(matches!(error, BackendError::Denied { .. }), "{error}");
    assert!(
        error.to_string().contains("credentials_file = \"/nowhere/keys\""),
        "{error}"
    );
}
