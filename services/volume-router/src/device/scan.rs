//! The start-up scan: what each file of the buffer holds, told by its header alone.
//!
//! Keeps: nothing; the answer goes to the pool.
//! Order: by the files' names, so that two scans of the same files find the same; a SCO's number and epoch say where it belongs.
//! Crash: a file without room for a header was being made when a process died: it holds nothing and is removed. One is
//! free only if its header is zeros: what cannot be read, or is wrong, may be the only copy of something and is kept.
//! Knows no content beyond the header: recovery judges that.

use std::fs::{self, DirEntry, OpenOptions};
use std::io;
use std::mem::MaybeUninit;
use std::path::Path;
use std::sync::Arc;

use sconce_schemas::sco::{HEADER_LEN, ScoHeader};

use super::file::BufferFile;
use super::pool::Shared;
use super::unknown::Unknown;

/// Reads the header of every file in the buffer.
pub(super) fn scan(shared: &Arc<Shared>) -> io::Result<()> {
    let mut entries = fs::read_dir(&shared.dir)?.collect::<io::Result<Vec<_>>>()?;
    entries.sort_unstable_by_key(DirEntry::file_name);
    for entry in entries {
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
    let file = BufferFile::new(number, file, length, false);
    match header(shared, &file) {
        Ok(None) => shared.found(file, None),
        Ok(Some(header)) if header.size.file_len() == length => shared.found(file, Some(header)),
        Ok(Some(header)) => {
            let text = format!("{length} bytes long, its header says {}", header.size.file_len());
            keep(shared, &path, file, Some(header), &text);
        }
        Err(text) => keep(shared, &path, file, None, &text),
    }
    Ok(())
}

/// What the header says; `None`: it is zeros.
fn header(shared: &Shared, file: &BufferFile) -> Result<Option<ScoHeader>, String> {
    let mut bytes = [MaybeUninit::uninit(); HEADER_LEN];
    match shared.disk.read(&file.file, &mut bytes, 0, false) {
        Ok(HEADER_LEN) => {}
        Ok(length) => return Err(format!("only {length} bytes of its header can be read")),
        Err(error) => return Err(error.to_string()),
    }
    // SAFETY: `Disk::read` wrote all `HEADER_LEN` bytes.
    let bytes = bytes.map(|byte| unsafe { byte.assume_init() });
    if bytes == [0; HEADER_LEN] {
        return Ok(None);
    }
    ScoHeader::from_bytes(&bytes)
        .map(Some)
        .map_err(|error| error.to_string())
}

fn keep(shared: &Shared, path: &Path, file: BufferFile, header: Option<ScoHeader>, detail: &str) {
    tracing::warn!(
        file = %path.display(),
        detail,
        "a file of the write buffer is not as it should be: kept, and used for nothing else"
    );
    shared.keep_unknown(Unknown { file, header });
}
