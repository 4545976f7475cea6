//! Keeps: `sconce import`: a raw image into a new volume.
//! Order: the volume is made, written, and stored on the back ends; then the command ends.
//! Crash: a volume that is written in part stays when the command is killed.
//! Knows no volume-router.

use std::fs::File;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::Path;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt};
use rustix::fs::{SeekFrom, seek};
use sconce_fs_router::routing::Volume;
use sconce_schemas::wire::volume::{IoFlags, VolumeControl};
use sconce_schemas::{CLUSTER_BYTES, VolumeSize};
use tokio::sync::mpsc;

use super::progress::{bar, spinner};
use super::{CHUNK, UNDERWAY_MAX, stream};
use crate::args::{Format, Import};
use crate::cluster::Cluster;
use crate::size::shown;
use crate::view::{CopiedView, print};
use crate::volume;

/// Data at an offset, or how far the file was looked through.
type Piece = (u64, Bytes);

/// Runs `sconce import`.
///
/// # Errors
/// The file cannot be read, the path is taken, or the volume cannot be written.
pub async fn run(cluster: &Cluster, import: &Import, format: Format) -> Result<()> {
    if stream::is_stream(&import.file)? {
        return stream::import(cluster, import, format).await;
    }
    if import.discard_changes {
        bail!("--discard-changes is for streams: a raw image makes a new volume");
    }
    let name = import.file.display();
    let file = File::open(&import.file).with_context(|| format!("cannot open {name}"))?;
    let length = length(&file, &import.file)?;
    let size = match import.size {
        Some(size) if size.bytes() < length => {
            bail!(
                "{name} has {}: a volume of {} cannot hold it",
                shown(length),
                shown(size.bytes())
            );
        }
        Some(size) => size,
        None => VolumeSize::new(length).with_context(|| format!("{name}"))?,
    };
    let made = volume::make(cluster, &import.path, size, &import.placement).await?;
    let copied = async {
        let volume = cluster.volume(&made).await?;
        let copied = copy(file, length, &volume)
            .await
            .with_context(|| format!("importing {name}"))?;
        let waiting = spinner("storing on the back ends");
        volume::store(cluster, &made).await?;
        waiting.finish_and_clear();
        Ok::<u64, anyhow::Error>(copied)
    };
    let copied = match copied.await {
        Ok(copied) => copied,
        Err(error) => {
            // Half an image is worth nothing; the path is free for another attempt.
            let removed = cluster.names.remove_file(&import.path).await;
            let told = removed
                .as_ref()
                .map(|removed| vec![removed.volume])
                .unwrap_or_default();
            cluster
                .owners
                .tell(&told, |volume| VolumeControl::Delete { volume })
                .await;
            return Err(error.context(match removed {
                Ok(_) => format!("{} was removed again", import.path),
                Err(_) => format!(
                    "{} is incomplete: remove it with sconce volume delete",
                    import.path
                ),
            }));
        }
    };
    let view = CopiedView {
        path: import.path.to_string(),
        file: name.to_string(),
        size_bytes: size.bytes(),
        copied_bytes: copied,
    };
    print(format, &view, |view| {
        format!(
            "{} holds {} ({} of data)",
            view.path,
            view.file,
            shown(view.copied_bytes)
        )
    })
}

/// Bytes of a file or block device.
fn length(file: &File, path: &Path) -> Result<u64> {
    let metadata = file.metadata()?;
    if metadata.is_file() {
        return Ok(metadata.len());
    }
    if metadata.file_type().is_block_device() {
        return Ok(seek(file, SeekFrom::End(0))?);
    }
    bail!("{} is neither a file nor a block device", path.display())
}

/// Writes all of the file that is not zero; answers how many bytes that was.
async fn copy(file: File, length: u64, volume: &Volume) -> Result<u64> {
    let progress = bar("importing", length);
    let (pieces, mut read) = mpsc::channel(UNDERWAY_MAX);
    let reading = std::thread::spawn(move || read_all(&file, length, &pieces));
    let mut writes = FuturesUnordered::new();
    let mut copied = 0;
    loop {
        tokio::select! {
            piece = read.recv(), if writes.len() < UNDERWAY_MAX => match piece {
                None => break,
                Some((offset, data)) => {
                    progress.set_position(offset);
                    copied += data.len() as u64;
                    writes.push(volume.write(offset, data, IoFlags::default()));
                }
            },
            Some(written) = writes.next() => written?,
        }
    }
    while let Some(written) = writes.next().await {
        written?;
    }
    match reading.join() {
        Ok(done) => done?,
        Err(_) => bail!("the thread that reads the file panicked"),
    }
    volume.flush().await?;
    progress.finish_and_clear();
    Ok(copied)
}

/// Reads the file's data, and sends on what is not zero. Ends early when nobody takes it.
fn read_all(file: &File, length: u64, pieces: &mpsc::Sender<Piece>) -> Result<()> {
    let mut at = 0;
    while let Some((start, end)) = next_data(file, at, length)? {
        let mut offset = start;
        while offset < end {
            let take = CHUNK.min(end - offset);
            let mut buffer = vec![0; usize::try_from(take)?];
            file.read_exact_at(&mut buffer, offset)
                .with_context(|| format!("reading at byte {offset}"))?;
            for piece in filled(offset, &Bytes::from(buffer)) {
                if pieces.blocking_send(piece).is_err() {
                    return Ok(());
                }
            }
            offset += take;
        }
        at = end;
    }
    Ok(())
}

/// The next range of data from `at` on; the whole rest where the file system does not tell holes.
fn next_data(file: &File, at: u64, length: u64) -> Result<Option<(u64, u64)>> {
    if at >= length {
        return Ok(None);
    }
    let start = match seek(file, SeekFrom::Data(at)) {
        Ok(start) => start,
        Err(rustix::io::Errno::NXIO) => return Ok(None),
        Err(rustix::io::Errno::INVAL) => return Ok(Some((at, length))),
        Err(error) => return Err(error.into()),
    };
    let end = seek(file, SeekFrom::Hole(start))?;
    Ok(Some((start, end.min(length))).filter(|(start, end)| start < end))
}

/// The parts of a chunk that are not zero, by clusters of the volume; neighbours together.
fn filled(offset: u64, chunk: &Bytes) -> Vec<Piece> {
    let mut pieces: Vec<Piece> = Vec::new();
    let mut start = 0;
    let mut from = None;
    while start < chunk.len() {
        let to_boundary = CLUSTER_BYTES - (offset + start as u64) % CLUSTER_BYTES;
        let end = chunk
            .len()
            .min(start.saturating_add(usize::try_from(to_boundary).unwrap_or(usize::MAX)));
        let zero = chunk[start..end].iter().all(|byte| *byte == 0);
        match (zero, from) {
            (true, Some(first)) => {
                pieces.push((offset + first as u64, chunk.slice(first..start)));
                from = None;
            }
            (false, None) => from = Some(start),
            _ => {}
        }
        start = end;
    }
    if let Some(first) = from {
        pieces.push((offset + first as u64, chunk.slice(first..)));
    }
    pieces
}

#[cfg(test)]
mod tests {
    use sconce_runtime::Chance;

    use super::*;

    #[test]
    fn the_pieces_are_all_that_is_not_zero() {
        let mut chance = Chance::seeded(5);
        for _ in 0..50 {
            let offset = chance.below(20_000);
            let mut chunk = vec![0; usize::try_from(1 + chance.below(60_000)).unwrap()];
            for _ in 0..chance.below(6) {
                let at = usize::try_from(chance.below(chunk.len() as u64)).unwrap();
                chunk[at] = 1;
            }
            let chunk = Bytes::from(chunk);
            let mut rebuilt = vec![0; chunk.len()];
            let mut last = 0;
            for (at, data) in filled(offset, &chunk) {
                assert!(at >= last, "pieces follow each other");
                last = at + data.len() as u64;
                let from = usize::try_from(at - offset).unwrap();
                rebuilt[from..from + data.len()].copy_from_slice(&data);
                let clusters = data.len() as u64 / CLUSTER_BYTES + 2;
                assert!(data.iter().filter(|byte| **byte != 0).count() > 0 && clusters < 20);
            }
            assert_eq!(rebuilt, chunk);
        }
        assert_eq!(filled(0, &Bytes::from(vec![0; 100_000])), []);
    }

    #[test]
    fn holes_of_a_file_are_passed_over() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(10 << 20).unwrap();
        file.write_all_at(&[7; 5000], 3 << 20).unwrap();
        let (sender, mut read) = mpsc::channel(64);
        read_all(&file, 10 << 20, &sender).unwrap();
        drop(sender);
        let mut pieces = Vec::new();
        while let Ok(piece) = read.try_recv() {
            pieces.push(piece);
        }
        let bytes: usize = pieces.iter().map(|(_, data)| data.len()).sum();
        assert_eq!((pieces[0].0, bytes), (3 << 20, 8192));
    }
}
