//! Where a service listens.
//!
//! Keeps: the closed list of ways to reach a service; there is no plain TCP in it.
//! Order: none. Crash: nothing; an endpoint is a value.
//! Knows no sockets.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use sconce_schemas::NodeName;
use serde::{Deserialize, Serialize};

/// Longest path of a unix socket: the kernel's `sun_path` holds 108 bytes with its closing zero. Some are left for
/// the suffix under which a socket is bound before it takes its name.
const SOCKET_PATH_MAX: usize = 90;

/// Where a service listens: `ipc:///run/sconce/volume.sock`, `tls://10.0.0.7:7300/node-a` or `inproc://volume`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Endpoint(Place);

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Place {
    /// A unix socket on this machine.
    Ipc(PathBuf),
    /// Mutual TLS; `node` is the name that the server's certificate has to carry.
    Tls { host: String, port: u16, node: NodeName },
    /// A name on the in-process network.
    InProcess(String),
}

impl Endpoint {
    /// A unix socket on this machine.
    ///
    /// # Errors
    /// The path is not absolute, not UTF-8 or longer than a socket's path may be.
    pub fn ipc(path: &Path) -> Result<Self, EndpointError> {
        let text = path.to_str().ok_or_else(|| EndpointError {
            text: path.display().to_string(),
            expected: "a path that is UTF-8",
        })?;
        format!("ipc://{text}").parse()
    }

    /// A name on the in-process network.
    #[must_use]
    pub fn in_process(name: &str) -> Self {
        Self(Place::InProcess(name.to_owned()))
    }

    /// The endpoint with the port that it was given, where it said 0: any.
    pub(crate) fn with_port(mut self, given: Option<u16>) -> Self {
        if let (Place::Tls { port, .. }, Some(given)) = (&mut self.0, given) {
            *port = given;
        }
        self
    }

    pub(crate) fn place(&self) -> &Place {
        &self.0
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Place::Ipc(path) => write!(f, "ipc://{}", path.display()),
            Place::Tls { host, port, node } if host.contains(':') => {
                write!(f, "tls://[{host}]:{port}/{node}")
            }
            Place::Tls { host, port, node } => write!(f, "tls://{host}:{port}/{node}"),
            Place::InProcess(name) => write!(f, "inproc://{name}"),
        }
    }
}

/// Text that is no endpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not an endpoint: expected {expected}")]
pub struct EndpointError {
    text: String,
    expected: &'static str,
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let wrong = |expected| EndpointError {
            text: text.to_owned(),
            expected,
        };
        let (scheme, rest) = text
            .split_once("://")
            .ok_or_else(|| wrong("ipc:///PATH, tls://HOST:PORT/NODE or inproc://NAME"))?;
        match scheme {
            "ipc" => parse_ipc(rest).map_err(wrong),
            "tls" => parse_tls(rest).map_err(wrong),
            "inproc" if !rest.is_empty() => Ok(Self(Place::InProcess(rest.to_owned()))),
            "inproc" => Err(wrong("inproc://NAME with a name")),
            "tcp" => Err(wrong("tls://HOST:PORT/NODE: plain TCP does not exist")),
            _ => Err(wrong("ipc:///PATH, tls://HOST:PORT/NODE or inproc://NAME")),
        }
    }
}

fn parse_ipc(path: &str) -> Result<Endpoint, &'static str> {
    if !path.starts_with('/') || path.ends_with('/') {
        return Err("ipc:// followed by the absolute path of a socket");
    }
    if path.len() > SOCKET_PATH_MAX {
        return Err("a socket path of at most 90 bytes");
    }
    if path.contains('\0') {
        return Err("a path without a zero byte");
    }
    Ok(Endpoint(Place::Ipc(PathBuf::from(path))))
}

fn parse_tls(rest: &str) -> Result<Endpoint, &'static str> {
    const EXPECTED: &str = "tls://HOST:PORT/NODE, NODE being the name in the server's certificate";
    let (address, node) = rest.split_once('/').ok_or(EXPECTED)?;
    let (host, port) = address.rsplit_once(':').ok_or(EXPECTED)?;
    let host = match host.strip_prefix('[') {
        Some(inner) => inner.strip_suffix(']').ok_or(EXPECTED)?,
        None if host.contains(':') => return Err("an IPv6 address in brackets"),
        None => host,
    };
    if host.is_empty() {
        return Err(EXPECTED);
    }
    Ok(Endpoint(Place::Tls {
        host: host.to_owned(),
        port: port.parse().map_err(|_| "a port from 0 to 65535")?,
        node: node.parse().map_err(|_| EXPECTED)?,
    }))
}

impl Serialize for Endpoint {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Endpoint {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_print_as_they_are_parsed() {
        for text in [
            "ipc:///run/sconce/volume.sock",
            "tls://10.0.0.7:7300/node-a",
            "tls://[::1]:7300/node-a.example",
            "inproc://volume",
        ] {
            let endpoint: Endpoint = text.parse().expect(text);
            assert_eq!(endpoint.to_string(), text);
        }
    }

    #[test]
    fn what_is_no_endpoint_is_named_with_what_would_be_right() {
        let long = format!("ipc:///{}", "x".repeat(120));
        for (text, expected) in [
            ("/run/volume.sock", "ipc:///PATH"),
            ("ipc://relative.sock", "absolute path"),
            ("tcp://1.2.3.4:80", "plain TCP does not exist"),
            ("tls://host:70000/a", "port"),
            ("tls://host:7000", "NODE"),
            ("tls://::1:7000/a", "brackets"),
            ("tls://host:7000/Not A Node", "NODE"),
            ("inproc://", "name"),
            (long.as_str(), "at most 90 bytes"),
        ] {
            let error = text.parse::<Endpoint>().expect_err(text).to_string();
            assert!(error.contains(expected) && error.contains(text), "{error}");
        }
    }
}
