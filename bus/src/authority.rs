//! The pool's own authority: who may speak to whom between hosts.
//!
//! Keeps: the authority's key and certificate, as two PEM files; issues certificates to nodes.
//! Order: a certificate is valid from an hour before it is issued (clocks differ) until its time is over.
//! Crash: files are written beside and renamed: whole or not there. An existing authority is never overwritten, since
//! every node's certificate would be worth nothing.
//! Knows no sockets.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use sconce_schemas::NodeName;

/// File of the authority's certificate, in its directory: every node has a copy.
pub const AUTHORITY_CERTIFICATE: &str = "authority.crt";
/// File of the authority's key, in its directory: only `sconce pool` needs it.
pub const AUTHORITY_KEY: &str = "authority.key";

/// How long the authority itself is valid: longer than any pool without an operator's visit.
const AUTHORITY_DAYS: u32 = 20 * 365;
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const CLOCKS_DIFFER: Duration = Duration::from_secs(60 * 60);

/// Why a certificate or key could not be made, read or written. Names the file.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The file system refused.
    #[error("{}: cannot {action}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What came back.
        source: io::Error,
    },
    /// It is there already.
    #[error("{}: there is an authority already; its nodes' certificates hang on it, so it is not replaced", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// A key that others may read.
    #[error("{}: a key must only be readable by its owner, but its mode is {mode:04o}: chmod 600 it", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// Not a certificate or key.
    #[error("{}: is not {expected} in PEM: {detail}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What would be right.
        expected: &'static str,
        /// What is wrong.
        detail: String,
    },
    /// A certificate could not be made.
    #[error("cannot make a certificate for {subject}: {detail}")]
    Issue {
        /// Whose.
        subject: String,
        /// What is wrong.
        detail: String,
    },
}

/// The pool's authority.
pub struct Authority {
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A node's certificate and key, as PEM.
pub struct NodeCertificate {
    /// Whose it is.
    pub node: NodeName,
    /// The certificate.
    pub certificate: String,
    /// The key; whoever has it is that node.
    pub key: String,
}

/// When a certificate is valid.
#[derive(Debug, Clone, Copy)]
pub struct Validity {
    /// From when on.
    pub from: SystemTime,
    /// For how many days.
    pub days: u32,
}

impl Validity {
    /// From now (an hour ago: clocks differ) on.
    #[must_use]
    pub fn days(days: u32) -> Self {
        Self {
            from: SystemTime::now() - CLOCKS_DIFFER,
            days,
        }
    }

    fn apply(self, params: &mut CertificateParams) {
        let since = self.from.duration_since(UNIX_EPOCH).unwrap_or_default();
        params.not_before = rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(since.as_secs());
        params.not_after = params.not_before + DAY * self.days;
    }
}

impl Authority {
    /// Makes the authority of `pool` and writes it into `dir` (made 0700 where missing).
    ///
    /// # Errors
    /// There is one in `dir` already, or it cannot be written.
    pub fn create(pool: &str, dir: &Path) -> Result<Self, AuthorityError> {
        for file in [AUTHORITY_KEY, AUTHORITY_CERTIFICATE] {
            let path = dir.join(file);
            if path.exists() {
                return Err(AuthorityError::Exists { path });
            }
        }
        let issue = |e: rcgen::Error| AuthorityError::Issue {
            subject: format!("the authority of pool {pool}"),
            detail: e.to_string(),
        };
        let key = KeyPair::generate().map_err(issue)?;
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let name = format!("Sconce pool {pool}");
        params.distinguished_name.push(DnType::CommonName, name);
        Validity::days(AUTHORITY_DAYS).apply(&mut params);
        let certificate = params.self_signed(&key).map_err(issue)?.pem();

        make_directory(dir)?;
        // The key first: a certificate without its key would look like an authority and be none.
        write_new(&dir.join(AUTHORITY_KEY), &key.serialize_pem(), 0o600)?;
        write_new(&dir.join(AUTHORITY_CERTIFICATE), &certificate, 0o644)?;
        Self::from_pem(dir, certificate, key)
    }

    /// Reads the authority in `dir`.
    ///
    /// # Errors
    /// A file is missing, open to others, or not what it should be.
    pub fn load(dir: &Path) -> Result<Self, AuthorityError> {
        let certificate = read(&dir.join(AUTHORITY_CERTIFICATE))?;
        let path = dir.join(AUTHORITY_KEY);
        let key = KeyPair::from_pem(&read_key(&path)?).map_err(|e| AuthorityError::Malformed {
            path,
            expected: "a private key",
            detail: e.to_string(),
        })?;
        Self::from_pem(dir, certificate, key)
    }

    fn from_pem(dir: &Path, certificate: String, key: KeyPair) -> Result<Self, AuthorityError> {
        let issuer = Issuer::from_ca_cert_pem(&certificate, key).map_err(|e| AuthorityError::Malformed {
            path: dir.join(AUTHORITY_CERTIFICATE),
            expected: "an authority's certificate",
            detail: e.to_string(),
        })?;
        Ok(Self { certificate, issuer })
    }

    /// The authority's certificate, as PEM: what each node needs to know its peers by.
    #[must_use]
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// Issues a certificate to `node`, with which it may both serve and connect. `hosts` are further names or
    /// addresses under which it is reached; its own name is always among them.
    ///
    /// # Errors
    /// A host is not a name or address.
    pub fn issue(
        &self,
        node: &NodeName,
        hosts: &[String],
        validity: Validity,
    ) -> Result<NodeCertificate, AuthorityError> {
        let issue = |e: rcgen::Error| AuthorityError::Issue {
            subject: node.to_string(),
            detail: e.to_string(),
        };
        let key = KeyPair::generate().map_err(issue)?;
        let mut names = vec![node.to_string()];
        names.extend(hosts.iter().filter(|host| **host != node.as_str()).cloned());
        let mut params = CertificateParams::new(names).map_err(issue)?;
        params.distinguished_name.push(DnType::CommonName, node.as_str());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        validity.apply(&mut params);
        let certificate = params.signed_by(&key, &self.issuer).map_err(issue)?;
        Ok(NodeCertificate {
            node: node.clone(),
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        })
    }
}

impl NodeCertificate {
    /// Writes `NODE.crt` and `NODE.key` (0600) into `dir` (made 0700 where missing), in place of older ones; gives
    /// their paths.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn write(&self, dir: &Path) -> Result<(PathBuf, PathBuf), AuthorityError> {
        make_directory(dir)?;
        let certificate = dir.join(format!("{}.crt", self.node));
        let key = dir.join(format!("{}.key", self.node));
        write(&key, &self.key, 0o600)?;
        write(&certificate, &self.certificate, 0o644)?;
        Ok((certificate, key))
    }
}

fn failed(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> AuthorityError {
    move |source| AuthorityError::File {
        path: path.to_owned(),
        action,
        source,
    }
}

fn make_directory(dir: &Path) -> Result<(), AuthorityError> {
    use std::os::unix::fs::DirBuilderExt;
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(failed(dir, "make the directory"))
}

/// Writes a file that must not be there yet.
fn write_new(path: &Path, text: &str, mode: u32) -> Result<(), AuthorityError> {
    let temporary = write_beside(path, text, mode)?;
    // A link, unlike a rename, refuses to replace what another process made meanwhile.
    let linked = std::fs::hard_link(&temporary, path);
    let _ = std::fs::remove_file(&temporary);
    linked.map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists => AuthorityError::Exists {
            path: path.to_owned(),
        },
        _ => failed(path, "write")(source),
    })?;
    sync_directory(path)
}

fn write(path: &Path, text: &str, mode: u32) -> Result<(), AuthorityError> {
    let temporary = write_beside(path, text, mode)?;
    std::fs::rename(&temporary, path).map_err(failed(path, "write"))?;
    sync_directory(path)
}

fn write_beside(path: &Path, text: &str, mode: u32) -> Result<PathBuf, AuthorityError> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}", std::process::id()));
    let temporary = PathBuf::from(temporary);
    let mut options = OpenOptions::new();
    let opened = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(&temporary);
    opened
        .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()))
        .map_err(failed(path, "write"))?;
    Ok(temporary)
}

fn sync_directory(path: &Path) -> Result<(), AuthorityError> {
    let dir = path.parent().unwrap_or(Path::new("."));
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(failed(path, "make the name durable"))
}

fn read(path: &Path) -> Result<String, AuthorityError> {
    std::fs::read_to_string(path).map_err(failed(path, "read"))
}

/// Reads a key, and refuses one that others may read too.
///
/// # Errors
/// It cannot be read, or others may read it.
pub fn read_key(path: &Path) -> Result<String, AuthorityError> {
    let metadata = std::fs::metadata(path).map_err(failed(path, "read"))?;
    let mode = metadata.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(AuthorityError::Open {
            path: path.to_owned(),
            mode,
        });
    }
    read(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str) -> NodeName {
        name.parse().expect("a name")
    }

    #[test]
    fn an_authority_is_made_once_and_found_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let dir = dir.path().join("pool");
        let made = Authority::create("lab", &dir).expect("made");
        let mode = |file: &str| std::fs::metadata(dir.join(file)).expect("there").mode() & 0o777;
        assert_eq!((mode(AUTHORITY_KEY), mode(AUTHORITY_CERTIFICATE)), (0o600, 0o644));
        let again = Authority::create("lab", &dir).err().expect("refused").to_string();
        assert!(
            again.contains("authority.key") && again.contains("already"),
            "{again}"
        );
        let loaded = Authority::load(&dir).expect("loaded");
        assert_eq!(loaded.certificate(), made.certificate());
        let files = std::fs::read_dir(&dir).expect("listed").count();
        assert_eq!(files, 2, "nothing temporary is left");
    }

    #[test]
    fn a_key_that_others_may_read_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().expect("a directory");
        Authority::create("lab", dir.path()).expect("made");
        let key = dir.path().join(AUTHORITY_KEY);
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o640)).expect("set");
        let error = Authority::load(dir.path()).err().expect("refused").to_string();
        assert!(
            error.contains("authority.key") && error.contains("0640") && error.contains("chmod 600"),
            "{error}"
        );
    }

    #[test]
    fn errors_name_the_file() {
        let dir = tempfile::tempdir().expect("a directory");
        let missing = Authority::load(dir.path()).err().expect("refused").to_string();
        assert!(missing.contains("authority.crt"), "{missing}");
        Authority::create("lab", dir.path()).expect("made");
        std::fs::write(dir.path().join(AUTHORITY_CERTIFICATE), "nonsense").expect("written");
        let malformed = Authority::load(dir.path()).err().expect("refused").to_string();
        assert!(
            malformed.contains("authority.crt") && malformed.contains("PEM"),
            "{malformed}"
        );
    }

    #[test]
    fn a_node_gets_its_files_and_may_get_newer_ones() {
        let dir = tempfile::tempdir().expect("a directory");
        let authority = Authority::create("lab", dir.path()).expect("made");
        let issue = || authority.issue(&node("node-a"), &["10.0.0.7".to_owned()], Validity::days(30));
        let (certificate, key) = issue().expect("issued").write(dir.path()).expect("written");
        assert_eq!(
            certificate.file_name().and_then(|n| n.to_str()),
            Some("node-a.crt")
        );
        assert_eq!(std::fs::metadata(&key).expect("there").mode() & 0o777, 0o600);
        let first = std::fs::read_to_string(&certificate).expect("read");
        issue().expect("issued").write(dir.path()).expect("written over");
        assert_ne!(std::fs::read_to_string(&certificate).expect("read"), first);
        let wrong = authority.issue(&node("node-a"), &["no host é".to_owned()], Validity::days(1));
        assert!(wrong.err().expect("refused").to_string().contains("node-a"));
    }
}
