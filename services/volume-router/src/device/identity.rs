//! The write buffer's identity: by it a volume's record says where its unstored writes are.
//!
//! Keeps: a random id in the file `buffer.id`.
//! Order: the id is synced before the first volume is told of it.
//! Crash: a file that a crash tore is no id, and no record names it yet: it is made anew.
//! Knows no SCOs.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

use sconce_runtime::Chance;

const NAME: &str = "buffer.id";
const DIGITS: usize = 32;

/// The identity of the write buffer in `dir`, made at its first use.
pub(super) fn of(dir: &Path, chance: &mut Chance) -> io::Result<String> {
    let path = dir.join(NAME);
    match fs::read_to_string(&path) {
        Ok(text) if is_id(text.trim_end()) => return Ok(text.trim_end().to_owned()),
        Ok(text) if text.len() >= DIGITS => {
            let text =
                format!("holds {text:?}, which is no identity; right would be {DIGITS} hexadecimal digits");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let id = format!("{:032x}", chance.u128());
    let temporary = dir.join("buffer.id.new");
    let mut file = File::create(&temporary)?;
    writeln!(file, "{id}")?;
    file.sync_all()?;
    fs::rename(&temporary, &path)?;
    File::open(dir)?.sync_all()?;
    Ok(id)
}

fn is_id(text: &str) -> bool {
    text.len() == DIGITS && text.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_stays_and_differs_from_another() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut chance = Chance::from_os();
        let first = of(one.path(), &mut chance).unwrap();
        assert_eq!(of(one.path(), &mut chance).unwrap(), first);
        assert_ne!(of(two.path(), &mut chance).unwrap(), first);
    }

    #[test]
    fn a_torn_identity_is_made_anew_and_a_foreign_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(NAME);
        fs::write(&path, "").unwrap();
        let id = of(dir.path(), &mut Chance::from_os()).unwrap();
        assert!(is_id(&id));
        fs::write(&path, "this is somebody else's file, keep off\n").unwrap();
        let error = of(dir.path(), &mut Chance::from_os()).unwrap_err();
        assert!(error.to_string().contains("somebody else's"), "{error}");
    }
}
