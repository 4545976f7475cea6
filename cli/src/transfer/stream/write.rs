//! Keeps: a stream that is being written: its checksum, and what was written so far.
//! Order: from the header to the end.
//! Crash: `FILE.partial` has what was written; the next try continues it after its last whole record. The file gets its
//! name when all of it is on disk.
//! Knows no cluster.

use std::fs::{File, OpenOptions};
use std::io::{BufReader, BufWriter, Read as _, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use ring::digest::{Context as Digest, SHA256};
use sconce_schemas::stream::{RecordHead, RecordKind, StreamEnd, StreamHeader, StreamOrder};

use super::read::{Next, StreamReader};

/// A stream that is being written.
pub(super) struct StreamWriter<W> {
    out: W,
    pub(super) order: StreamOrder,
    digest: Digest,
    /// Everything, the end too, was there already.
    pub(super) is_over: bool,
}

impl<W: Write> StreamWriter<W> {
    /// Begins with the header.
    pub(super) fn new(mut out: W, header: &StreamHeader) -> Result<Self> {
        let bytes = header.to_bytes();
        out.write_all(&bytes)?;
        let mut digest = Digest::new(&SHA256);
        digest.update(&bytes);
        Ok(Self {
            out,
            order: StreamOrder::new(header.to.size),
            digest,
            is_over: false,
        })
    }

    /// Writes a record.
    pub(super) fn record(
        &mut self,
        kind: RecordKind,
        offset: u64,
        length: u64,
        payload: &[u8],
    ) -> Result<()> {
        let head = RecordHead {
            kind,
            number: self.order.records,
            offset,
            length,
            payload: u32::try_from(payload.len())?,
        };
        self.order.take(&head)?;
        let bytes = head.to_bytes(payload);
        self.out.write_all(&bytes)?;
        self.out.write_all(payload)?;
        self.digest.update(&bytes);
        self.digest.update(payload);
        Ok(())
    }

    /// Writes out what is held back.
    pub(super) fn flush(&mut self) -> Result<()> {
        Ok(self.out.flush()?)
    }

    /// Writes the end, and gives the output back.
    pub(super) fn end(mut self, size: u64) -> Result<W> {
        if !self.is_over {
            let end = StreamEnd {
                records: self.order.records,
                data_bytes: self.order.data_bytes,
                zero_bytes: self.order.zero_bytes,
                sha256: self.digest.finish().as_ref().to_vec(),
            };
            let payload = end.to_bytes();
            let head = RecordHead {
                kind: RecordKind::End,
                number: self.order.records,
                offset: size,
                length: 0,
                payload: u32::try_from(payload.len())?,
            };
            self.out.write_all(&head.to_bytes(&payload))?;
            self.out.write_all(&payload)?;
        }
        self.out.flush()?;
        Ok(self.out)
    }
}

/// The file that a stream is written to until it is whole.
pub(super) fn partial_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".partial");
    name.into()
}

/// Begins the file of a stream, or continues what an earlier try left.
pub(super) fn open(path: &Path, header: &StreamHeader, force: bool) -> Result<StreamWriter<BufWriter<File>>> {
    let partial = partial_of(path);
    let mut options = OpenOptions::new();
    let options = options.read(true).write(true).create(true).truncate(false);
    let mut file = options
        .open(&partial)
        .with_context(|| format!("cannot write {}", partial.display()))?;
    file.try_lock()
        .with_context(|| format!("another export writes {}", partial.display()))?;
    if file.metadata()?.len() > 0 && !force {
        match continued(&mut file, header) {
            Ok(Some(writer)) => return Ok(writer),
            // It ended within its header.
            Ok(None) => {}
            Err(error) => bail!(
                "{} is there, but cannot be continued: {error:#}\nremove it, or add --force to begin again",
                partial.display()
            ),
        }
    }
    file.set_len(0)?;
    file.seek(SeekFrom::Start(0))?;
    StreamWriter::new(BufWriter::new(file), header)
}

/// Whether a file ends within these bytes.
fn is_begin_of(file: &mut File, bytes: &[u8]) -> Result<bool> {
    let mut begin = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.take(bytes.len() as u64 + 1).read_to_end(&mut begin)?;
    Ok(begin.len() < bytes.len() && bytes.starts_with(&begin))
}

/// The stream of a file after its last whole record; `None`: not even its header is there.
fn continued(file: &mut File, header: &StreamHeader) -> Result<Option<StreamWriter<BufWriter<File>>>> {
    if is_begin_of(file, &header.to_bytes())? {
        return Ok(None);
    }
    file.seek(SeekFrom::Start(0))?;
    let mut reader = StreamReader::new(BufReader::with_capacity(1 << 20, &mut *file))?;
    if !reader.header.is_same_step(header) {
        bail!(
            "it is of snapshot {:?} of {}",
            reader.header.to.name,
            reader.header.path
        );
    }
    let is_over = loop {
        match reader.next() {
            Ok(Next::Record(..)) => {}
            Ok(Next::End(_)) => break true,
            // Whatever is wrong from here on is written again.
            Err(_) => break false,
        }
    };
    let (order, digest, position) = (reader.order, reader.digest.clone(), reader.position);
    drop(reader);
    if is_over {
        file.seek(SeekFrom::End(0))?;
    } else {
        file.set_len(position)?;
        file.seek(SeekFrom::Start(position))?;
    }
    let out = BufWriter::new(file.try_clone()?);
    Ok(Some(StreamWriter {
        out,
        order,
        digest,
        is_over,
    }))
}

/// Everything is written: the file gets its name.
pub(super) fn finish(out: BufWriter<File>, path: &Path) -> Result<()> {
    let file = out.into_inner().map_err(|error| error.into_error())?;
    file.sync_all()?;
    std::fs::rename(partial_of(path), path)?;
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(directory.unwrap_or(Path::new(".")))?.sync_all()?;
    Ok(())
}
