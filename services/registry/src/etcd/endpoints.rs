//! Where etcd is, and with which certificates it is spoken to.
//!
//! Keeps: the rules of the two settings.
//! Order: none.
//! Crash: nothing.
//! Knows no requests.

use etcd_client::{Certificate, Identity, TlsOptions};
use sconce_bus::TlsSettings;
use sconce_bus::authority::read_key;

use crate::Invalid;

/// Checks the endpoints; gives what TLS to them needs, `None` where they are `http://`.
pub(super) fn check(endpoints: &[String], tls: Option<&TlsSettings>) -> Result<Option<TlsOptions>, Invalid> {
    let (scheme, expected) = match tls {
        Some(_) => (
            "https://",
            "https://host:port, since there is a section [registry.tls]",
        ),
        None => (
            "http://",
            "http://host:port on a private network, or https:// and a section [registry.tls]",
        ),
    };
    if endpoints.is_empty() {
        return Err(Invalid::new(
            "endpoints",
            "empty",
            format!("at least one: {expected}"),
        ));
    }
    if let Some(other) = endpoints.iter().find(|endpoint| !endpoint.starts_with(scheme)) {
        return Err(Invalid::new("endpoints", format!("{other:?}"), expected));
    }
    tls.map(options).transpose()
}

/// etcd is believed by the one authority that is named, and by no other.
fn options(tls: &TlsSettings) -> Result<TlsOptions, Invalid> {
    let read = |path: &std::path::Path| {
        std::fs::read(path).map_err(|error| Invalid::new(path.display(), error, "a readable certificate"))
    };
    let key = read_key(&tls.key).map_err(|error| Invalid {
        text: error.to_string(),
    })?;
    Ok(TlsOptions::new()
        .ca_certificate(Certificate::from_pem(read(&tls.authority)?))
        .identity(Identity::from_pem(read(&tls.certificate)?, key)))
}
