//! The start-up scan: what each file of the buffer holds, told by its header alone.
//!
//! Keeps: nothing; the answer goes to the pool.
//! Order: none; a SCO's number and epoch say where it belongs.
//! Crash: a file of a wrong length was being made when a process died: it holds nothing and is removed.
//! Knows no content beyond the header: recovery judges that.

use std::fs::{self, DirEntry, OpenOptions};
use std::io;
use std::mem::MaybeUninit;
use std::path::Path;
use std::sync::Arc;

use sconce_schemas::sco::{HEADER_LEN, ScoHeader};

use super::file::BufferFile;
use super::pool::Shared;

/// Reads the header of every file in the buffer.
pub(super) fn scan(shared: &Arc<Shared>) -> io::Result<()> {
    for entry in fs::read_dir(&shared.dir)? {
        let entry = entry?;
        let number = entry.file_name().to_str().and_then(|name| name.parse().ok());
        match number {
            Some(number) => take(shared, &entry, number)?,
            None => tracing::warn!(
                file = %entry.path().display(),
                "not a file of the write buffer: left alone"
            ),
        }
    }
    Ok(())
}

fn take(shared: &Arc<Shared>, entry: &DirEntry, number: u64) -> io::Result<()> {
    let path = entry.path();
    let file = OpenOptions::new().read(true).write(true).open(&path)?;
    let length = file.metadata()?.len();
    if length < HEADER_LEN as u64 {
        return fs::remove_file(&path);
    }
    let mut bytes = [MaybeUninit::uninit(); HEADER_LEN];
    let header = match shared.disk.read(&file, &mut bytes, 0, false) {
        Ok(HEADER_LEN) => {
            // SAFETY: `Disk::read` wrote all `HEADER_LEN` bytes.
            let bytes = bytes.map(|byte| unsafe { byte.assume_init() });
            ScoHeader::from_bytes(&bytes).ok()
        }
        Ok(_) => None,
        Err(error) => {
            leave_alone(&path, &error);
            return Ok(());
        }
    };
    match header {
        Some(header) if header.size.file_len() != length => {
            let text = format!("{length} bytes long, its header says {}", header.size.file_len());
            leave_alone(&path, &io::Error::new(io::ErrorKind::InvalidData, text));
            Ok(())
        }
        header => {
            shared.found(BufferFile::new(number, file, length, false), header);
            Ok(())
        }
    }
}

/// A file that cannot be read may hold the only copy of something: it is neither used nor removed.
fn leave_alone(path: &Path, error: &io::Error) {
    tracing::warn!(file = %path.display(), %error, "a file of the write buffer is not as it should be: left alone");
}
