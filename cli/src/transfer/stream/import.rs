//! Keeps: `sconce import` of a stream: a snapshot into a new volume, or the next snapshot of a volume that has the one
//! before.
//! Order: the target is marked by a snapshot of how it was; records are written; what was written is looked at; the
//! snapshot that the stream leads to is taken; the mark goes.
//! Crash: the mark says that an import is half done, and which. The same command again continues: what was written already
//! is read and compared, not written again.
//! Knows no volume-router.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt};
use sconce_fs_router::names::{NamesError, Resolved, SnapshotPath};
use sconce_fs_router::routing::{View, Volume};
use sconce_schemas::log_record::check_metadata;
use sconce_schemas::stream::{RecordHead, RecordKind, StreamHeader, StreamSnapshot};
use sconce_schemas::wire::volume::{ChangeKind, IoFlags, Since, SnapshotStatus, VolumeControl};
use tokio::sync::mpsc;

use super::read::{Next, StreamReader};
use super::{IMPORTS, MARK, ORIGIN_SNAPSHOT, ORIGIN_VOLUME, identity, verify};
use crate::args::{Format, Import};
use crate::cluster::{Cluster, explained};
use crate::diff::Runs;
use crate::size::shown;
use crate::snapshot;
use crate::transfer::UNDERWAY_MAX;
use crate::transfer::progress::{bar, spinner};
use crate::view::{CopiedView, print};
use crate::volume;

/// A target that is marked, and where to go on.
struct Target {
    file: Resolved,
    /// Ranges that an earlier try wrote.
    written: Vec<Range<u64>>,
}

/// Runs `sconce import` of a stream.
///
/// # Errors
/// The stream is not whole, or does not fit the target.
pub(in crate::transfer) async fn run(cluster: &Cluster, import: &Import, format: Format) -> Result<()> {
    let name = import.file.display().to_string();
    if import.size.is_some() {
        bail!("a stream says its volume's size: leave --size out");
    }
    if is_regular(&import.file)? {
        // Before anything is changed: all of it is there, and is what was written.
        let path = import.file.clone();
        let checking = spinner("checking the stream");
        let checked = tokio::task::spawn_blocking(move || verify::whole(verify::input(&path)?)).await?;
        checking.finish_and_clear();
        checked.with_context(|| name.clone())?;
    }
    let input = verify::input(&import.file)?;
    let reader = StreamReader::new(input).with_context(|| name.clone())?;
    let header = reader.header.clone();
    let to = SnapshotPath {
        volume: import.path.clone(),
        name: header.to.name.clone(),
    };
    let copied = match prepare(cluster, import, &header).await? {
        None => {
            eprintln!("{to} is there already");
            0
        }
        Some(target) => {
            let copied = apply(cluster, &target, reader).await.with_context(|| {
                format!(
                    "importing {name}: {} is half done, as its snapshot {MARK} says; the same command continues, \
                     and `sconce snapshot rollback {}@{MARK}` undoes it",
                    import.path, import.path
                )
            })?;
            finish(cluster, &target.file, &header).await?;
            copied
        }
    };
    let view = CopiedView {
        path: to.to_string(),
        file: name,
        size_bytes: header.to.size.bytes(),
        copied_bytes: copied,
    };
    print(format, &view, |view| {
        format!(
            "{} holds {} ({} of data written)",
            view.path,
            view.file,
            shown(view.copied_bytes)
        )
    })
}

fn is_regular(path: &Path) -> Result<bool> {
    if path == Path::new("-") {
        return Ok(false);
    }
    let metadata = std::fs::metadata(path).with_context(|| format!("cannot open {}", path.display()))?;
    Ok(metadata.is_file())
}

/// What a mark says of the import that it is of.
fn mark_of(header: &StreamHeader) -> String {
    let id = |snapshot: &StreamSnapshot| format!("{}/{}", snapshot.volume, snapshot.id);
    let from = header.from.as_ref().map_or_else(|| "nothing".to_owned(), id);
    format!("{from} to {}", id(&header.to))
}

/// Finds or makes the target, and marks it; `None`: it has the snapshot already.
async fn prepare(cluster: &Cluster, import: &Import, header: &StreamHeader) -> Result<Option<Target>> {
    let file = match cluster.names.resolve(&import.path).await {
        Ok(file) => file,
        Err(NamesError::NotFound { .. }) if header.from.is_none() => {
            volume::make(cluster, &import.path, header.to.size, &import.placement).await?
        }
        Err(error) => return Err(explained(error)),
    };
    let snapshots = snapshot::snapshots(cluster, &file).await?;
    if snapshots
        .iter()
        .any(|status| identity(file.volume, status).is(&header.to))
    {
        forget_mark(cluster, &file, &snapshots, header).await?;
        return Ok(None);
    }
    check_metadata(&metadata_of(header)).context("what is written down with the snapshot")?;
    let (path, name) = (&import.path, &header.to.name);
    if snapshots.iter().any(|status| status.name == *name) {
        bail!(
            "{path}@{name} is another snapshot than that of the stream: delete it, or choose another volume"
        );
    }
    if let Some(mark) = snapshots.iter().find(|status| status.name == MARK) {
        if mark.metadata.get(IMPORTS) != Some(&mark_of(header)) {
            bail!(
                "{path} is in the middle of another import, as its snapshot {MARK} says: finish that, or undo it with \
                 `sconce snapshot rollback {path}@{MARK} --discard` and `sconce snapshot delete {path}@{MARK}`"
            );
        }
        let written = changed(cluster, &file, since_mark()).await?;
        return Ok(Some(Target { file, written }));
    }
    check_base(cluster, import, &file, &snapshots, header).await?;
    let mark = VolumeControl::TakeSnapshot {
        volume: file.volume,
        id: snapshot::new_id(),
        name: MARK.to_owned(),
        metadata: [(IMPORTS.to_owned(), mark_of(header))].into(),
    };
    cluster
        .owners
        .call(file.volume, mark, snapshot::OWNER_DEADLINE)
        .await?;
    let written = Vec::new();
    Ok(Some(Target { file, written }))
}

fn since_mark() -> Since {
    Since {
        volume: None,
        snapshot: MARK.to_owned(),
    }
}

/// The volume is what the stream begins with.
async fn check_base(
    cluster: &Cluster,
    import: &Import,
    file: &Resolved,
    snapshots: &[SnapshotStatus],
    header: &StreamHeader,
) -> Result<()> {
    let path = &import.path;
    let Some(from) = &header.from else {
        // What a try left that was cut short before its mark is as good as new.
        let is_empty = snapshots.is_empty()
            && cluster.volume(file).await?.opened().await?.size == header.to.size
            && changed_in(cluster.open_view(file, View::changes(None, None)).await?)
                .await?
                .is_empty();
        if is_empty {
            return Ok(());
        }
        bail!("{path} exists; choose another path, or remove it first: sconce volume delete {path}");
    };
    let Some((since, then)) = base_of(cluster, file, snapshots, from).await? else {
        bail!(
            "{path} does not have snapshot {:?} of {}, which the stream begins with ({}/{}): import a stream that leads \
             to it first",
            from.name,
            header.path,
            from.volume,
            from.id
        );
    };
    let size = cluster.volume(file).await?.opened().await?.size;
    let changes = changed(cluster, file, since.clone()).await?;
    if size == then && changes.is_empty() {
        return Ok(());
    }
    if !import.discard_changes || since.volume.is_some() {
        let bytes: u64 = changes.iter().map(|range| range.end - range.start).sum();
        bail!(
            "{path} was changed since {}: {} from byte {} on, size {} (then {}): an increment fits only what it was \
             made for; --discard-changes goes back to the snapshot first",
            since.snapshot,
            shown(bytes),
            changes.first().map_or(0, |range| range.start),
            shown(size.bytes()),
            shown(then.bytes())
        );
    }
    let id = snapshot::new_id();
    let before = SnapshotPath {
        volume: path.clone(),
        name: format!("before-import-{id}"),
    };
    let back = VolumeControl::RollBack {
        volume: file.volume,
        to: since.snapshot,
        id,
        // Kept until the answer is here: by it the owner tells a request that was sent again.
        keep: Some(before.name.clone()),
    };
    cluster
        .owners
        .call(file.volume, back, snapshot::OWNER_DEADLINE)
        .await?;
    snapshot::remove(cluster, file, &before, id).await
}

/// The target's copy of the snapshot that a stream begins with, and its size: one of its own, or what it is a clone of.
async fn base_of(
    cluster: &Cluster,
    file: &Resolved,
    snapshots: &[SnapshotStatus],
    from: &StreamSnapshot,
) -> Result<Option<(Since, sconce_schemas::VolumeSize)>> {
    let is_base = |volume, status: &&SnapshotStatus| identity(volume, status).is(from);
    if let Some(own) = snapshots.iter().find(|status| is_base(file.volume, status)) {
        let since = Since {
            volume: None,
            snapshot: own.name.clone(),
        };
        return Ok(Some((since, own.size)));
    }
    let record = cluster.names.volume(file.volume).await.map_err(explained)?;
    let Some(origin) = record.origin else {
        return Ok(None);
    };
    let parents = cluster
        .owners
        .snapshots(origin.volume, snapshot::OWNER_DEADLINE)
        .await?;
    let found = parents
        .iter()
        .find(|status| status.id == origin.snapshot && is_base(origin.volume, status));
    Ok(found.map(|status| {
        let since = Since {
            volume: Some(origin.volume),
            snapshot: status.name.clone(),
        };
        (since, status.size)
    }))
}

/// The ranges of the volume that differ from a snapshot.
async fn changed(cluster: &Cluster, file: &Resolved, since: Since) -> Result<Vec<Range<u64>>> {
    changed_in(cluster.open_view(file, View::changes(None, Some(since))).await?).await
}

async fn changed_in(view: Volume) -> Result<Vec<Range<u64>>> {
    let size = view.opened().await?.size.bytes();
    let mut runs = Runs::new(view, 0, size);
    let mut ranges = Ranges::default();
    while let Some(found) = runs.next().await? {
        for run in found.iter().filter(|run| run.kind != ChangeKind::Same) {
            ranges.add(run.offset, run.length);
        }
    }
    Ok(ranges.0)
}

/// Ranges that ascend; neighbours are one.
#[derive(Default)]
struct Ranges(Vec<Range<u64>>);

impl Ranges {
    fn add(&mut self, offset: u64, length: u64) {
        match self.0.last_mut() {
            Some(last) if last.end == offset => last.end += length,
            _ => self.0.push(offset..offset + length),
        }
    }
}

/// The parts of a range that are in `ranges` (`true`) and those that are not.
fn parts(range: Range<u64>, ranges: &[Range<u64>]) -> Vec<(Range<u64>, bool)> {
    let (mut parts, mut at) = (Vec::new(), range.start);
    let from = ranges.partition_point(|known| known.end <= range.start);
    for known in ranges[from..].iter().take_while(|known| known.start < range.end) {
        let (start, end) = (known.start.max(range.start), known.end.min(range.end));
        if at < start {
            parts.push((at..start, false));
        }
        parts.push((start..end, true));
        at = end;
    }
    if at < range.end {
        parts.push((at..range.end, false));
    }
    parts
}

/// Writes all records of the stream; answers how much data was written.
async fn apply<R>(cluster: &Cluster, target: &Target, reader: StreamReader<R>) -> Result<u64>
where
    R: Read + Send + 'static,
{
    let size = reader.header.to.size;
    let volume = cluster.volume(&target.file).await?;
    if volume.opened().await?.size != size {
        volume.resize(size).await?;
    }
    let progress = bar("importing", size.bytes());
    let (records, mut read) = mpsc::channel(UNDERWAY_MAX);
    let reading = std::thread::spawn(move || read_all(reader, &records));
    let mut writes = FuturesUnordered::new();
    let mut told = Ranges::default();
    let mut copied = 0;
    loop {
        tokio::select! {
            record = read.recv(), if writes.len() < UNDERWAY_MAX => match record {
                None => break,
                Some((head, payload)) => {
                    progress.set_position(head.offset);
                    told.add(head.offset, head.length);
                    writes.push(write(&volume, head, payload, &target.written));
                }
            },
            Some(written) = writes.next() => copied += written?,
        }
    }
    while let Some(written) = writes.next().await {
        copied += written?;
    }
    match reading.join() {
        Ok(done) => done?,
        Err(_) => bail!("the thread that reads the stream panicked"),
    }
    volume.flush().await?;
    check_written(cluster, &target.file, &told.0).await?;
    progress.finish_and_clear();
    Ok(copied)
}

/// Nothing but what the stream has was changed since the mark.
async fn check_written(cluster: &Cluster, file: &Resolved, told: &[Range<u64>]) -> Result<()> {
    for range in changed(cluster, file, since_mark()).await? {
        let foreign = parts(range, told).into_iter().find(|(_, is_told)| !is_told);
        if let Some((foreign, _)) = foreign {
            bail!(
                "somebody else changed bytes {} to {} of {} meanwhile, so that it is not what the stream leads to",
                foreign.start,
                foreign.end,
                file.path
            );
        }
    }
    Ok(())
}

fn read_all<R: Read>(mut reader: StreamReader<R>, records: &mpsc::Sender<(RecordHead, Bytes)>) -> Result<()> {
    while let Next::Record(head, payload) = reader.next()? {
        if records.blocking_send((head, payload)).is_err() {
            break;
        }
    }
    Ok(())
}

/// Carries a record out; answers how much data was written. What an earlier try wrote is compared first.
async fn write(volume: &Volume, head: RecordHead, payload: Bytes, written: &[Range<u64>]) -> Result<u64> {
    let RecordHead { offset, length, .. } = head;
    match head.kind {
        RecordKind::Zeros => {
            volume
                .write_zeroes(offset, length, IoFlags(IoFlags::NO_HOLE))
                .await?;
        }
        RecordKind::Hole => volume.write_zeroes(offset, length, IoFlags::default()).await?,
        RecordKind::End => {}
        RecordKind::Data => return write_data(volume, offset, &payload, written).await,
    }
    Ok(0)
}

async fn write_data(volume: &Volume, offset: u64, payload: &Bytes, written: &[Range<u64>]) -> Result<u64> {
    let mut copied = 0;
    for (range, is_written) in parts(offset..offset + payload.len() as u64, written) {
        let from = usize::try_from(range.start - offset)?;
        let data = payload.slice(from..usize::try_from(range.end - offset)?);
        if is_written {
            let found = volume.read(range.start, data.len() as u64).await?;
            if found.into_bytes() == data {
                continue;
            }
        }
        copied += data.len() as u64;
        volume.write(range.start, data, IoFlags::default()).await?;
    }
    Ok(copied)
}

/// What is written down with the snapshot that the stream leads to.
fn metadata_of(header: &StreamHeader) -> BTreeMap<String, String> {
    let mut metadata = header.to.metadata.clone();
    metadata.insert(ORIGIN_VOLUME.to_owned(), header.to.volume.to_string());
    metadata.insert(ORIGIN_SNAPSHOT.to_owned(), header.to.id.to_string());
    metadata
}

/// Takes the snapshot that the stream leads to, stores it, and removes the mark.
async fn finish(cluster: &Cluster, file: &Resolved, header: &StreamHeader) -> Result<()> {
    let take = VolumeControl::TakeSnapshot {
        volume: file.volume,
        id: snapshot::new_id(),
        name: header.to.name.clone(),
        metadata: metadata_of(header),
    };
    cluster
        .owners
        .call(file.volume, take, snapshot::OWNER_DEADLINE)
        .await?;
    let snapshots = snapshot::snapshots(cluster, file).await?;
    forget_mark(cluster, file, &snapshots, header).await?;
    let waiting = spinner("storing on the back ends");
    volume::store(cluster, file).await?;
    waiting.finish_and_clear();
    Ok(())
}

/// Removes the mark of this import, if it is there.
async fn forget_mark(
    cluster: &Cluster,
    file: &Resolved,
    snapshots: &[SnapshotStatus],
    header: &StreamHeader,
) -> Result<()> {
    let mark = snapshots
        .iter()
        .find(|status| status.name == MARK && status.metadata.get(IMPORTS) == Some(&mark_of(header)));
    match mark {
        Some(mark) => {
            let path = SnapshotPath {
                volume: file.path.clone(),
                name: MARK.to_owned(),
            };
            snapshot::remove(cluster, file, &path, mark.id).await
        }
        None => Ok(()),
    }
}

/// Whether a file begins as a stream does.
pub(in crate::transfer) fn is_stream(path: &Path) -> Result<bool> {
    if path == Path::new("-") {
        return Ok(true);
    }
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut first = [0; 4];
    let mut reader = BufReader::new(file);
    Ok(reader.read_exact(&mut first).is_ok() && StreamHeader::is_stream(&first))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_split_into_what_is_known_and_what_is_not() {
        let known = [0..4096, 8192..12288, 20480..24576];
        assert_eq!(
            parts(0..24576, &known),
            [
                (0..4096, true),
                (4096..8192, false),
                (8192..12288, true),
                (12288..20480, false),
                (20480..24576, true)
            ]
        );
        assert_eq!(parts(4096..8192, &known), [(4096..8192, false)]);
        assert_eq!(parts(9000..9001, &known), [(9000..9001, true)]);
        assert_eq!(parts(0..4096, &[]), [(0..4096, false)]);
    }
}
