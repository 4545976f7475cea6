//! Keeps: `sconce verify`: whether a stream is whole and what was written.
//! Order: all of it is read.
//! Crash: nothing.
//! Knows no cluster.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use anyhow::{Context, Result};
use sconce_schemas::stream::{StreamEnd, StreamHeader};
use serde::Serialize;

use super::read::{Next, StreamReader};
use crate::args::{Format, Verify};
use crate::size::shown;
use crate::view::print;

/// What a stream is.
#[derive(Debug, Serialize)]
struct StreamView {
    /// The file.
    file: String,
    /// The source volume's path.
    path: String,
    /// The snapshot that it leads to, by its name at the source.
    to: String,
    /// The snapshot that it begins with, if it is incremental.
    from: Option<String>,
    /// Size of the volume then.
    size_bytes: u64,
    /// Data in it.
    data_bytes: u64,
    /// Zeros and holes in it, which take no room.
    zero_bytes: u64,
    records: u64,
}

/// Reads all of a stream.
pub(super) fn whole(input: impl Read) -> Result<(StreamHeader, StreamEnd)> {
    let mut reader = StreamReader::new(input)?;
    loop {
        if let Next::End(end) = reader.next()? {
            return Ok((reader.header, end));
        }
    }
}

/// What comes from a file, or with `-` from standard input.
pub(super) fn input(path: &Path) -> Result<Box<dyn Read + Send>> {
    if path == Path::new("-") {
        return Ok(Box::new(io::stdin()));
    }
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    Ok(Box::new(BufReader::with_capacity(1 << 20, file)))
}

/// Runs `sconce verify`.
///
/// # Errors
/// It is no stream, it is cut off, altered, or of a newer version.
pub fn run(verify: &Verify, format: Format) -> Result<()> {
    let name = verify.file.display();
    let (header, end) = whole(input(&verify.file)?).with_context(|| name.to_string())?;
    let view = StreamView {
        file: name.to_string(),
        path: header.path,
        to: header.to.name,
        from: header.from.map(|from| from.name),
        size_bytes: header.to.size.bytes(),
        data_bytes: end.data_bytes,
        zero_bytes: end.zero_bytes,
        records: end.records,
    };
    print(format, &view, |view| {
        let since = view.from.as_ref();
        let since = since.map_or_else(String::new, |from| format!(" since {from}"));
        format!(
            "{} is whole: {}@{}{since}, {} of data in {} records",
            view.file,
            view.path,
            view.to,
            shown(view.data_bytes),
            view.records
        )
    })
}
