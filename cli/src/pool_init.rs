//! Keeps: `sconce pool init`: the pool's certificate authority and its nodes' certificates.
//! Order: the authority is made before the first certificate.
//! Crash: files are whole or not there; the command can be given again.
//! Knows no cluster: it works on files.

use std::path::Path;

use anyhow::{Context, Result, bail};
use sconce_bus::authority::{AUTHORITY_CERTIFICATE, Authority, AuthorityError, Validity};
use sconce_schemas::NodeName;
use serde::Serialize;

use crate::args::{Format, PoolInit};
use crate::view::print;

/// How long a node's certificate is valid.
const NODE_DAYS: u32 = 825;

/// What was made.
#[derive(Debug, Serialize)]
struct InitView {
    /// The authority's directory.
    authority: String,
    /// Whether it was made now.
    created: bool,
    /// The node's certificate; null without --node.
    certificate: Option<String>,
    /// The node's key; null without --node.
    key: Option<String>,
}

/// Runs `sconce pool init`.
///
/// # Errors
/// A file cannot be read or written, or is not what it should be.
pub fn run(init: &PoolInit, format: Format) -> Result<()> {
    let PoolInit {
        dir,
        name,
        node,
        hosts,
    } = init;
    let (authority, created) = authority(dir, name)?;
    if !created && node.is_none() {
        bail!(
            "{} has an authority already; to make a node's certificate add --node NAME",
            dir.display()
        );
    }
    let files = node
        .as_ref()
        .map(|node| issue(&authority, dir, node, hosts))
        .transpose()?;
    let view = InitView {
        authority: dir.display().to_string(),
        created,
        certificate: files.as_ref().map(|files| files.0.clone()),
        key: files.map(|files| files.1),
    };
    print(format, &view, lines)
}

/// The authority in `dir`, made where there is none, and whether it was.
fn authority(dir: &Path, pool: &str) -> Result<(Authority, bool)> {
    match Authority::create(pool, dir) {
        Ok(authority) => Ok((authority, true)),
        Err(AuthorityError::Exists { .. }) => Ok((Authority::load(dir)?, false)),
        Err(error) => Err(error.into()),
    }
}

fn issue(authority: &Authority, dir: &Path, node: &NodeName, hosts: &[String]) -> Result<(String, String)> {
    let certificate = authority.issue(node, hosts, Validity::days(NODE_DAYS))?;
    let to = dir.join(node.as_str());
    let (certificate, key) = certificate.write(&to)?;
    // The node knows its peers by the authority's certificate: all three files go to it.
    let own = to.join(AUTHORITY_CERTIFICATE);
    std::fs::write(&own, authority.certificate())
        .with_context(|| format!("cannot write {}", own.display()))?;
    Ok((certificate.display().to_string(), key.display().to_string()))
}

fn lines(view: &InitView) -> String {
    let mut lines = Vec::new();
    if view.created {
        lines.push(format!(
            "made the pool's authority in {}; keep its key there and nowhere else",
            view.authority
        ));
    }
    if let (Some(certificate), Some(key)) = (&view.certificate, &view.key) {
        lines.push(format!(
            "made {certificate} and {key}; copy their directory to the node and name the files in its section [tls]"
        ));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_is_made_once_and_nodes_get_certificates_from_it() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("ca");
        let init = |node: Option<&str>| {
            let node = node.map(|node| node.parse().unwrap());
            run(
                &PoolInit {
                    dir: dir.clone(),
                    name: "test".to_owned(),
                    node,
                    hosts: vec!["10.0.0.7".to_owned()],
                },
                Format::Json,
            )
        };
        init(None).unwrap();
        let error = init(None).unwrap_err().to_string();
        assert!(error.contains("--node NAME"), "{error}");
        init(Some("vr-1")).unwrap();
        for file in ["vr-1.crt", "vr-1.key", "authority.crt"] {
            assert!(dir.join("vr-1").join(file).is_file(), "{file}");
        }
    }
}
