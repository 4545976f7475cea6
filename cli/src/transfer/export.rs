//! Keeps: `sconce export`: a volume into a raw image.
//! Order: what is there under the file's name stays until the new file is complete and on disk.
//! Crash: what was written so far stays beside it, as `FILE.<pid>.partial`, when the command is killed.
//! Knows no volume-router.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use futures_util::stream::{StreamExt, iter};
use sconce_fs_router::routing::{Piece, ReadData, Volume};
use sconce_schemas::wire::volume::ExtentKind;
use tokio::sync::mpsc;

use super::progress::bar;
use super::{CHUNK, UNDERWAY_MAX};
use crate::args::{Export, Format};
use crate::cluster::Cluster;
use crate::size::shown;
use crate::view::{CopiedView, print};

/// Bytes of one listing of extents: bounds the list of chunks, however large the volume is.
const LISTING: u64 = 16 << 30;

/// What a read found at an offset.
type Found = (u64, ReadData);

/// Runs `sconce export`.
///
/// # Errors
/// There is no such volume, it cannot be read, or the file cannot be written.
pub async fn run(cluster: &Cluster, export: &Export, format: Format) -> Result<()> {
    check(&export.file, export.force)?;
    let from = cluster.resolve(&export.path).await?;
    let volume = cluster.volume(&from).await?;
    let size = volume.opened().await?.size.bytes();
    let name = export.file.display();
    let partial = Partial::create(&export.file)?;
    let copied = copy(&volume, partial.file.try_clone()?, size)
        .await
        .with_context(|| format!("exporting to {name}"))?;
    partial.finish(&export.file)?;
    let view = CopiedView {
        path: export.path.to_string(),
        file: name.to_string(),
        size_bytes: size,
        copied_bytes: copied,
    };
    print(format, &view, |view| {
        format!(
            "{} holds {} ({} of data)",
            view.file,
            view.path,
            shown(view.copied_bytes)
        )
    })
}

fn check(path: &Path, force: bool) -> Result<()> {
    let name = path.display();
    match std::fs::symlink_metadata(path) {
        Ok(metadata) if !metadata.is_file() => bail!("{name} exists and is no regular file; choose another"),
        Ok(_) if !force => bail!("{name} exists; choose another file, or add --force to overwrite it"),
        _ => Ok(()),
    }
}

/// The file while it is written, beside its place; removed if it does not get there.
struct Partial {
    file: File,
    path: Option<PathBuf>,
}

impl Partial {
    fn create(target: &Path) -> Result<Self> {
        let mut name = target.as_os_str().to_owned();
        name.push(format!(".{}.partial", std::process::id()));
        let path = PathBuf::from(name);
        let opened = OpenOptions::new().write(true).create_new(true).open(&path);
        let file = opened.with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self {
            file,
            path: Some(path),
        })
    }

    /// Puts it in its place.
    fn finish(mut self, target: &Path) -> Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        std::fs::rename(path, target)
            .with_context(|| format!("naming {} {}", path.display(), target.display()))?;
        self.path = None;
        let parent = target.parent().filter(|parent| !parent.as_os_str().is_empty());
        let directory = File::open(parent.unwrap_or(Path::new(".")))?;
        // Its name survives a loss of power as its content does.
        Ok(directory.sync_all()?)
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // The command has failed already, and says why.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Reads all data of the volume into the file; answers how many bytes that was.
async fn copy(volume: &Volume, file: File, size: u64) -> Result<u64> {
    let progress = bar("exporting", size);
    let (found, to_write) = mpsc::channel(UNDERWAY_MAX);
    let writing = std::thread::spawn(move || write_all(&file, size, to_write));
    let mut copied = 0;
    let mut at = 0;
    'copying: while at < size {
        // A listing covers at least the start of the range; its data is read before the next one.
        let (chunks, end) = data_from(volume, at, size).await?;
        let reads = chunks
            .into_iter()
            .map(async |(offset, length)| (offset, volume.read(offset, length).await));
        let mut reads = iter(reads).buffer_unordered(UNDERWAY_MAX);
        while let Some((offset, data)) = reads.next().await {
            let data = data?;
            copied += data.len();
            progress.inc(data.len());
            if found.send((offset, data)).await.is_err() {
                // The file cannot be written: its thread says why.
                break 'copying;
            }
        }
        at = end;
        progress.set_position(at);
    }
    drop(found);
    match writing.join() {
        Ok(written) => written?,
        Err(_) => bail!("the thread that writes the file panicked"),
    }
    progress.finish_and_clear();
    Ok(copied)
}

/// What of the volume from `at` on holds data, in chunks, and up to where that was told.
async fn data_from(volume: &Volume, at: u64, size: u64) -> Result<(Vec<(u64, u64)>, u64)> {
    let mut chunks = Vec::new();
    let mut end = at;
    for extent in volume.extents(at, LISTING.min(size - at)).await? {
        let next = end.saturating_add(extent.length).min(size);
        if extent.kind == ExtentKind::Data {
            let mut offset = end;
            while offset < next {
                let length = CHUNK.min(next - offset);
                chunks.push((offset, length));
                offset += length;
            }
        }
        end = next;
    }
    if end == at {
        bail!("the volume's owner tells nothing of what lies at byte {at}");
    }
    Ok((chunks, end))
}

/// Writes what comes; zeros stay holes. The file is on disk when this ends.
fn write_all(file: &File, size: u64, mut found: mpsc::Receiver<Found>) -> Result<()> {
    file.set_len(size)?;
    while let Some((mut offset, data)) = found.blocking_recv() {
        for piece in data.into_pieces() {
            let length = piece.len();
            if let Piece::Data(bytes) = piece {
                file.write_all_at(&bytes, offset)
                    .with_context(|| format!("writing at byte {offset}"))?;
            }
            offset += length;
        }
    }
    file.sync_all()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_there_is_only_replaced_when_asked_and_by_a_whole_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image.raw");
        check(&path, false).unwrap();
        std::fs::write(&path, "old").unwrap();
        let error = check(&path, false).unwrap_err().to_string();
        assert!(error.contains("--force"), "{error}");
        check(&path, true).unwrap();
        let error = check(dir.path(), true).unwrap_err().to_string();
        assert!(error.contains("no regular file"), "{error}");

        let failed = Partial::create(&path).unwrap();
        failed.file.write_all_at(b"half", 0).unwrap();
        drop(failed);
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        let whole = Partial::create(&path).unwrap();
        whole.file.write_all_at(b"new", 0).unwrap();
        whole.finish(&path).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        let names = std::fs::read_dir(dir.path()).unwrap();
        assert_eq!(names.count(), 1, "nothing is left beside it");
    }

    #[test]
    fn zeros_stay_holes() {
        use std::os::unix::fs::MetadataExt;
        let file = tempfile::tempfile().unwrap();
        let (sender, found) = mpsc::channel(4);
        let mut data = ReadData::default();
        data.push(Piece::Zeros(1 << 20));
        data.push(Piece::Data(vec![9; 4096].into()));
        sender.try_send((1 << 20, data)).unwrap();
        drop(sender);
        write_all(&file, 10 << 20, found).unwrap();
        let metadata = file.metadata().unwrap();
        assert_eq!(metadata.len(), 10 << 20);
        assert!(
            metadata.blocks() * 512 <= 64 << 10,
            "{} blocks",
            metadata.blocks()
        );
        let mut read = [0; 4096];
        file.read_exact_at(&mut read, 2 << 20).unwrap();
        assert_eq!(read, [9; 4096]);
    }
}
