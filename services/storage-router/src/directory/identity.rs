//! The file by which a back end's directory is known: which back end it is, and that it is there at all.
//!
//! Keeps: one line, `sconce-backend 1 <name> <32 hex digits>`.
//! Order: it is durable before the first object.
//! Crash: it is there whole or not at all.
//! Knows no registry, where the identity is remembered as well.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

use sconce_schemas::BackendId;

/// Name of the file in the back end's directory.
pub const IDENTITY_FILE: &str = "sconce-backend";

/// Longest file that can be one: a name, an id and two words.
const IDENTITY_BYTES_MAX: u64 = 256;

/// What the identity file says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) name: String,
    pub(super) id: BackendId,
}

impl Identity {
    /// Reads the file in `root`; `None` where there is none.
    pub(super) fn read(root: &Path) -> io::Result<Option<Self>> {
        let path = root.join(IDENTITY_FILE);
        let text = match fs::metadata(&path) {
            Ok(file) if file.len() > IDENTITY_BYTES_MAX => String::new(),
            Ok(_) => fs::read_to_string(&path)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        Self::parse(&text).map(Some).ok_or_else(|| {
            let right = format!(
                "{} is not of the form \"sconce-backend 1 <name> <id>\"",
                path.display()
            );
            io::Error::new(io::ErrorKind::InvalidData, right)
        })
    }

    fn parse(text: &str) -> Option<Self> {
        let mut words = text.strip_suffix('\n')?.split(' ');
        let (IDENTITY_FILE, "1") = (words.next()?, words.next()?) else {
            return None;
        };
        let identity = Self {
            name: words.next()?.to_owned(),
            id: words.next()?.parse().ok()?,
        };
        words.next().is_none().then_some(identity)
    }

    /// Writes the file into `root` through a temporary file at `temp`, durably. Somebody else may have been first;
    /// what counts is what the file says afterwards.
    pub(super) fn write_new(&self, root: &Path, temp: &Path) -> io::Result<()> {
        let mut file = File::create(temp)?;
        writeln!(file, "{IDENTITY_FILE} 1 {} {}", self.name, self.id)?;
        file.sync_all()?;
        let linked = fs::hard_link(temp, root.join(IDENTITY_FILE));
        fs::remove_file(temp)?;
        match linked {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => File::open(root)?.sync_all(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_identity_stays_and_anything_else_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let identity = |id| Identity {
            name: "disk-1".to_owned(),
            id: BackendId(id),
        };
        assert_eq!(Identity::read(dir.path()).unwrap(), None);
        identity(7).write_new(dir.path(), &dir.path().join("t")).unwrap();
        identity(8).write_new(dir.path(), &dir.path().join("t")).unwrap();
        assert_eq!(Identity::read(dir.path()).unwrap(), Some(identity(7)));
        let path = dir.path().join(IDENTITY_FILE);
        let good = fs::read_to_string(&path).unwrap();
        for wrong in [
            "",
            "sconce-backend 2 disk-1 00000000000000000000000000000007\n",
            "sconce-backend 1 disk-1 7\n",
            good.trim_end(),
            &format!("{} more\n", good.trim_end()),
            &"x".repeat(10_000),
        ] {
            fs::write(&path, wrong).unwrap();
            let error = Identity::read(dir.path()).unwrap_err().to_string();
            assert!(error.contains("sconce-backend 1 <name> <id>"), "{error}");
        }
    }
}
