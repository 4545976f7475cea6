//! The metadata service of a cloud's machine, as far as it hands out an access key to whoever has a session token.
//!
//! Keeps: nothing.
//! Order: token, role, key.
//! Crash: nothing.
//! Knows one role.

use hyper::{Method, Request, StatusCode};

/// The access key of the machine's role.
pub(crate) const ACCESS_KEY: &str = "AKIDOFTHEROLE";
pub(crate) const SECRET_KEY: &str = "sEcReTkEy/oF+tHe/RoLe";

const TOKEN: &str = "a-session";
const KEYS: &str = "/latest/meta-data/iam/security-credentials/";

/// The answer to a request that is for the metadata service.
pub(crate) fn answer<T>(request: &Request<T>) -> Option<(StatusCode, String)> {
    let path = request.uri().path();
    let path = path.strip_prefix("/latest/").map(|_| path)?;
    if request.method() == Method::PUT && path == "/latest/api/token" {
        return Some((StatusCode::OK, TOKEN.to_owned()));
    }
    let has_token = request
        .headers()
        .get("x-aws-ec2-metadata-token")
        .is_some_and(|token| token == TOKEN);
    Some(match path.strip_prefix(KEYS) {
        _ if !has_token => (StatusCode::UNAUTHORIZED, String::new()),
        Some("") => (StatusCode::OK, "the-role".to_owned()),
        Some("the-role") => (StatusCode::OK, key()),
        _ => (StatusCode::NOT_FOUND, String::new()),
    })
}

fn key() -> String {
    format!(
        "{{\"Code\":\"Success\",\"Type\":\"AWS-HMAC\",\"LastUpdated\":\"2026-01-01T00:00:00Z\",\
         \"AccessKeyId\":\"{ACCESS_KEY}\",\"SecretAccessKey\":\"{SECRET_KEY}\",\"Token\":\"a-token\",\
         \"Expiration\":\"2099-01-01T00:00:00Z\"}}"
    )
}
