//! Keeps: `sconce export --stream`: a snapshot, or what differs between two, as a stream.
//! Order: records ascend; data is read ahead.
//! Crash: the next try continues `FILE.partial` after its last whole record.
//! Knows no volume-router.

use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::thread::JoinHandle;

use anyhow::{Context, Result, anyhow, bail};
use bytes::Bytes;
use futures_util::stream::{StreamExt, iter};
use sconce_fs_router::names::{Resolved, SnapshotPath};
use sconce_fs_router::routing::{View, Volume};
use sconce_schemas::CLUSTER_BYTES;
use sconce_schemas::stream::{RECORD_DATA_MAX, RecordKind, StreamHeader};
use sconce_schemas::wire::volume::{ChangeKind, Since, SnapshotStatus};
use tokio::sync::mpsc;

use super::identity;
use super::write::{self, StreamWriter};
use crate::args::{Export, Format};
use crate::cluster::Cluster;
use crate::diff::{Run, Runs};
use crate::size::shown;
use crate::snapshot;
use crate::transfer::UNDERWAY_MAX;
use crate::transfer::progress::bar;
use crate::view::{CopiedView, print};

/// A record on its way to the file.
type Written = (RecordKind, u64, u64, Bytes);

/// A snapshot, and the volume that has it.
struct Found {
    file: Resolved,
    status: SnapshotStatus,
}

async fn find(cluster: &Cluster, path: &SnapshotPath) -> Result<Found> {
    let file = cluster.resolve(&path.volume).await?;
    let status = snapshot::find(cluster, &file, path).await?;
    Ok(Found { file, status })
}

/// Runs `sconce export` of a stream.
///
/// # Errors
/// There is no such snapshot, the two have nothing in common, or the file cannot be written.
pub(in crate::transfer) async fn run(cluster: &Cluster, export: &Export, format: Format) -> Result<()> {
    let Some(name) = &export.path.snapshot else {
        bail!(
            "a stream is of a snapshot, which does not change: sconce snapshot create {0}@NAME, then export {0}@NAME",
            export.path
        );
    };
    let to_path = SnapshotPath {
        volume: export.path.volume.clone(),
        name: name.clone(),
    };
    let to = find(cluster, &to_path).await?;
    let from = match &export.from {
        None => None,
        Some(text) => Some(find(cluster, &from_path(&to_path, text)?).await?),
    };
    let header = StreamHeader {
        path: to.file.path.to_string(),
        cluster_bytes: CLUSTER_BYTES,
        record_bytes_max: RECORD_DATA_MAX,
        from: from.as_ref().map(|from| identity(from.file.volume, &from.status)),
        to: identity(to.file.volume, &to.status),
    };
    let base = from.as_ref().map(|from| from.status.id);
    let since = from.map(|from| Since {
        volume: (from.file.volume != to.file.volume).then_some(from.file.volume),
        snapshot: from.status.name,
    });
    let size = to.status.size.bytes();
    let source = Source {
        changes: cluster
            .open_view(
                &to.file,
                View::changes(Some(name.clone()), since).exactly(Some(to.status.id), base),
            )
            .await?,
        data: cluster
            .open_view(&to.file, View::snapshot(name.clone(), Some(to.status.id)))
            .await?,
    };
    let copied = if export.file == Path::new("-") {
        let writer = StreamWriter::new(BufWriter::new(io::stdout()), &header)?;
        let (copied, mut out) = source.copy(writer, size).await?;
        out.flush()?;
        copied
    } else {
        to_file(&source, export, &header).await?
    };
    let view = CopiedView {
        path: export.path.to_string(),
        file: export.file.display().to_string(),
        size_bytes: size,
        copied_bytes: copied,
    };
    let told = |view: &CopiedView| {
        format!(
            "{} holds {} ({} of data)",
            view.file,
            view.path,
            shown(view.copied_bytes)
        )
    };
    if view.file == "-" {
        eprintln!("{}", told(&view));
        return Ok(());
    }
    print(format, &view, told)
}

/// `--from` names a snapshot of the volume, or with its path one of a volume that it is a clone of.
fn from_path(to: &SnapshotPath, text: &str) -> Result<SnapshotPath> {
    let whole = if text.contains('@') {
        text.to_owned()
    } else {
        format!("{}@{text}", to.volume)
    };
    Ok(whole.parse()?)
}

async fn to_file(source: &Source, export: &Export, header: &StreamHeader) -> Result<u64> {
    let name = export.file.display();
    match std::fs::symlink_metadata(&export.file) {
        Ok(metadata) if !metadata.is_file() => bail!("{name} exists and is no regular file; choose another"),
        Ok(_) if !export.force => bail!("{name} exists; choose another file, or add --force to overwrite it"),
        _ => {}
    }
    let writer = write::open(&export.file, header, export.force)?;
    if writer.order.records > 0 {
        eprintln!(
            "continuing {} after record {}",
            write::partial_of(&export.file).display(),
            writer.order.records - 1
        );
    }
    let (copied, out) = source
        .copy(writer, header.to.size.bytes())
        .await
        .with_context(|| {
            let partial = write::partial_of(&export.file);
            format!("{} can be continued by the same command", partial.display())
        })?;
    write::finish(out, &export.file).with_context(|| format!("cannot write {name}"))?;
    Ok(copied)
}

/// Where records come from.
struct Source {
    /// Tells what differs.
    changes: Volume,
    /// The snapshot.
    data: Volume,
}

impl Source {
    /// Writes all that is not written yet; answers how much data the stream has, and gives the output back.
    async fn copy<W>(&self, writer: StreamWriter<W>, size: u64) -> Result<(u64, W)>
    where
        W: Write + Send + 'static,
    {
        let at = if writer.is_over { size } else { writer.order.at };
        let progress = bar("exporting", size);
        let (records, to_write) = mpsc::channel::<Written>(UNDERWAY_MAX);
        let writing = std::thread::spawn(move || write_all(writer, size, to_write));
        let mut runs = Runs::new(self.changes.clone(), at, size);
        let sent = async {
            while let Some(found) = runs.next().await? {
                let reads = found.into_iter().flat_map(pieces).map(|run| self.record(run));
                // In order, and read ahead.
                let mut reads = iter(reads).buffered(UNDERWAY_MAX);
                while let Some(record) = reads.next().await {
                    if records.send(record?).await.is_err() {
                        // The writer says why.
                        return Ok(());
                    }
                }
                progress.set_position(runs.position());
            }
            Ok::<(), anyhow::Error>(())
        };
        let sent = sent.await;
        if sent.is_err() {
            // Without an end: what is there can be continued.
            let _ = records.send((RecordKind::End, 0, 0, Bytes::new())).await;
        }
        drop(records);
        let written = joined(writing);
        sent?;
        progress.finish_and_clear();
        written?.ok_or_else(|| anyhow!("the stream was not finished"))
    }

    async fn record(&self, run: Run) -> Result<Written> {
        let Run { offset, length, kind } = run;
        Ok(match kind {
            ChangeKind::Data => {
                let data = self.data.read(offset, length).await?.into_bytes();
                (RecordKind::Data, offset, length, data)
            }
            ChangeKind::Zeros => (RecordKind::Zeros, offset, length, Bytes::new()),
            ChangeKind::Hole | ChangeKind::Same => (RecordKind::Hole, offset, length, Bytes::new()),
        })
    }
}

fn joined<T>(thread: JoinHandle<Result<T>>) -> Result<T> {
    thread
        .join()
        .unwrap_or_else(|_| Err(anyhow!("the thread that writes the file panicked")))
}

/// Data in pieces as large as a record may be; zeros are one record, however many.
fn pieces(run: Run) -> impl Iterator<Item = Run> {
    let step = if run.kind == ChangeKind::Data {
        RECORD_DATA_MAX
    } else {
        run.length
    };
    let end = run.offset + run.length;
    let mut at = run.offset;
    std::iter::from_fn(move || {
        // At multiples of the step, where reads are whole.
        let next = match run.kind {
            ChangeKind::Data => ((at / step + 1) * step).min(end),
            _ => end,
        };
        let piece = Run {
            offset: at,
            length: next - at,
            kind: run.kind,
        };
        at = next;
        (piece.length > 0).then_some(piece)
    })
}

/// Writes what comes, and then the end; `None`: it was broken off before that.
fn write_all<W: Write>(
    mut writer: StreamWriter<W>,
    size: u64,
    mut records: mpsc::Receiver<Written>,
) -> Result<Option<(u64, W)>> {
    while let Some((kind, offset, length, payload)) = records.blocking_recv() {
        if kind == RecordKind::End {
            writer.flush()?;
            return Ok(None);
        }
        writer.record(kind, offset, length, &payload)?;
    }
    let copied = writer.order.data_bytes;
    Ok(Some((copied, writer.end(size)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_is_cut_where_records_may_not_be_longer_and_zeros_are_one_record() {
        let run = |kind| Run {
            offset: (1 << 20) - 4096,
            length: (2 << 20) + 8192,
            kind,
        };
        let cut: Vec<(u64, u64)> = pieces(run(ChangeKind::Data))
            .map(|piece| (piece.offset, piece.length))
            .collect();
        assert_eq!(
            cut,
            [
                ((1 << 20) - 4096, 4096),
                (1 << 20, 1 << 20),
                (2 << 20, 1 << 20),
                (3 << 20, 4096)
            ]
        );
        assert_eq!(pieces(run(ChangeKind::Zeros)).count(), 1);
        assert_eq!(pieces(run(ChangeKind::Hole)).next(), Some(run(ChangeKind::Hole)));
    }
}
