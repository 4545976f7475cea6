//! Where the access key of an S3 back end comes from.
//!
//! Keeps: the key as it was read last, and of which version of its file that was.
//! Order: a file that changed is read again before the next request is signed.
//! Crash: nothing; keys are only read.
//! Knows no server. A secret is in no text that leaves this module, `Debug` included.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use object_store::CredentialProvider;
use object_store::aws::AwsCredential;

use super::fault::{Fault, Kind};

/// Where the access key comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credentials {
    /// `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and, if there is one, `AWS_SESSION_TOKEN`.
    Environment,
    /// A profile in a file of the form of `~/.aws/credentials`; read again when it changes.
    File {
        /// The file.
        path: PathBuf,
        /// The section in it.
        profile: String,
    },
    /// The role of the machine that this runs on, from the cloud's metadata service.
    InstanceProfile {
        /// Another place of the metadata service than `http://169.254.169.254`.
        endpoint: Option<String>,
    },
}

/// A file that is read again when it changes.
#[derive(Debug)]
pub(super) struct KeyFile {
    path: PathBuf,
    profile: String,
    known: Mutex<Option<Known>>,
}

#[derive(Debug, Clone)]
struct Known {
    version: Version,
    key: Arc<AwsCredential>,
}

/// What differs between two versions of a file: who replaces one by a rename makes another inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Version {
    inode: u64,
    length: u64,
    modified: (i64, i64),
}

impl KeyFile {
    pub(super) fn new(path: PathBuf, profile: String) -> Self {
        Self {
            path,
            profile,
            known: Mutex::new(None),
        }
    }

    fn key(&self) -> Result<Arc<AwsCredential>, String> {
        let version = version(&self.path)?;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = known.as_ref().filter(|known| known.version == version) {
            return Ok(Arc::clone(&known.key));
        }
        let text = std::fs::read_to_string(&self.path).map_err(|error| wrong(&self.path, &error))?;
        let key = Arc::new(parse(&text, &self.profile).map_err(|error| wrong(&self.path, &error))?);
        *known = Some(Known {
            version,
            key: Arc::clone(&key),
        });
        Ok(key)
    }
}

#[async_trait::async_trait]
impl CredentialProvider for KeyFile {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        // A few lines, from memory unless it changed: not worth a thread of its own.
        self.key().map_err(|what| object_store::Error::Generic {
            store: "S3",
            source: Box::new(Fault::new(Kind::Denied, what)),
        })
    }
}

/// The key in the environment.
///
/// # Errors
/// It is not there; the text names the variable.
pub(super) fn of_environment() -> Result<AwsCredential, String> {
    from_variables(|name| std::env::var(name).ok())
}

fn from_variables(get: impl Fn(&str) -> Option<String>) -> Result<AwsCredential, String> {
    let needed = |name: &str| {
        get(name).filter(|value| !value.is_empty()).ok_or_else(|| {
            format!(
                "credentials = \"environment\": {name} is not set; right would be AWS_ACCESS_KEY_ID and \
                 AWS_SECRET_ACCESS_KEY in the service's environment, or credentials_file in the settings"
            )
        })
    };
    Ok(AwsCredential {
        key_id: needed("AWS_ACCESS_KEY_ID")?,
        secret_key: needed("AWS_SECRET_ACCESS_KEY")?,
        token: get("AWS_SESSION_TOKEN").filter(|value| !value.is_empty()),
    })
}

fn version(path: &Path) -> Result<Version, String> {
    let file = std::fs::metadata(path).map_err(|error| wrong(path, &error))?;
    let mode = file.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(wrong(
            path,
            &format!("its mode is {mode:04o}, so others may read it; right would be 0600"),
        ));
    }
    Ok(Version {
        inode: file.ino(),
        length: file.len(),
        modified: (file.mtime(), file.mtime_nsec()),
    })
}

fn wrong(path: &Path, why: &dyn std::fmt::Display) -> String {
    format!("credentials_file = {path:?}: {why}")
}

/// Reads a profile of a file of the form of `~/.aws/credentials`. Says what is missing and never what is there.
fn parse(text: &str, profile: &str) -> Result<AwsCredential, String> {
    let (mut is_there, mut is_ours) = (false, false);
    let (mut key_id, mut secret_key, mut token) = (None, None, None);
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        if let Some(section) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            is_ours = section.trim() == profile;
            is_there |= is_ours;
            continue;
        }
        let (name, value) = line
            .split_once('=')
            .ok_or_else(|| format!("line {number} is neither [profile] nor name = value"))?;
        if !is_ours {
            continue;
        }
        let value = Some(value.trim().to_owned()).filter(|value| !value.is_empty());
        match name.trim() {
            "aws_access_key_id" => key_id = value,
            "aws_secret_access_key" => secret_key = value,
            "aws_session_token" => token = value,
            // Other programs' settings.
            _ => {}
        }
    }
    if !is_there {
        return Err(format!("it has no profile [{profile}]"));
    }
    let needed = |name: &str| format!("profile [{profile}] has no {name}");
    Ok(AwsCredential {
        key_id: key_id.ok_or_else(|| needed("aws_access_key_id"))?,
        secret_key: secret_key.ok_or_else(|| needed("aws_secret_access_key"))?,
        token,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const FILE: &str = "# keys\n[default]\naws_access_key_id = A1\naws_secret_access_key=sEcReT/1=\n\n\
                        [ backup ]\nregion = x\naws_access_key_id=A2\naws_secret_access_key = sEcReT2\n\
                        aws_session_token = tOkEn\n[half]\naws_access_key_id=A3\n";

    #[test]
    fn a_profile_is_found_and_what_is_missing_is_named() {
        let found = parse(FILE, "default").unwrap();
        assert_eq!(
            (found.key_id.as_str(), found.secret_key.as_str(), found.token),
            ("A1", "sEcReT/1=", None)
        );
        assert_eq!(parse(FILE, "backup").unwrap().token.as_deref(), Some("tOkEn"));
        for (text, profile, wanted) in [
            (FILE, "nobody", "no profile [nobody]"),
            (FILE, "half", "[half] has no aws_secret_access_key"),
            ("", "default", "no profile [default]"),
            ("[default]\nsEcReT\n", "default", "line 2"),
        ] {
            let error = parse(text, profile).unwrap_err();
            assert!(error.contains(wanted) && !error.contains("sEcReT"), "{error}");
        }
    }

    #[test]
    fn a_changed_file_is_read_again_and_an_open_one_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        let write = |text: &str, mode| {
            let new = dir.path().join("new");
            std::fs::write(&new, text).unwrap();
            std::fs::set_permissions(&new, std::fs::Permissions::from_mode(mode)).unwrap();
            std::fs::rename(&new, &path).unwrap();
        };
        let file = KeyFile::new(path.clone(), "default".to_owned());
        assert!(file.key().unwrap_err().contains("keys"));
        write(FILE, 0o600);
        assert_eq!(file.key().unwrap().key_id, "A1");
        write(&FILE.replace("A1", "B1"), 0o600);
        assert_eq!(file.key().unwrap().key_id, "B1");
        write(FILE, 0o644);
        let error = file.key().unwrap_err();
        assert!(error.contains("0644") && error.contains("0600"), "{error}");
    }

    #[test]
    fn the_environment_has_to_hold_both_halves() {
        let of = |pairs: &'static [(&str, &str)]| {
            from_variables(move |name| {
                let pair = pairs.iter().find(|(known, _)| *known == name)?;
                Some(pair.1.to_owned())
            })
        };
        let key = of(&[("AWS_ACCESS_KEY_ID", "A"), ("AWS_SECRET_ACCESS_KEY", "s")]).unwrap();
        assert_eq!((key.key_id.as_str(), key.token), ("A", None));
        assert!(of(&[]).unwrap_err().contains("AWS_ACCESS_KEY_ID is not set"));
        let half = of(&[("AWS_ACCESS_KEY_ID", "A"), ("AWS_SECRET_ACCESS_KEY", "")]);
        assert!(half.unwrap_err().contains("AWS_SECRET_ACCESS_KEY is not set"));
    }

    #[test]
    fn a_secret_is_in_no_text() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        std::fs::write(&path, FILE).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        let file = KeyFile::new(path, "backup".to_owned());
        let key = file.key().unwrap();
        for text in [format!("{file:?}"), format!("{key:?}")] {
            assert!(!text.contains("sEcReT") && !text.contains("tOkEn"), "{text}");
        }
    }
}
