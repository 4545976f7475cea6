//! The identity of a back end as a file in its directory.
//!
//! Keeps: the file `sconce-backend` with one line.
//! Order: it is durable before the first object.
//! Crash: it is there whole or not at all.
//! Knows no registry, where the identity is remembered as well.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

use crate::identity::{IDENTITY_BYTES_MAX, IDENTITY_FILE, Identity};

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

    /// Writes the file into `root` through a temporary file at `temp`, durably. Somebody else may have been first;
    /// what counts is what the file says afterwards.
    pub(super) fn write_new(&self, root: &Path, temp: &Path) -> io::Result<()> {
        let mut file = File::create(temp)?;
        write!(file, "{self}")?;
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
    use sconce_schemas::BackendId;

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
