//! Keeps: `sconce diff`, and how changed ranges are asked for.
//! Order: ranges ascend.
//! Crash: nothing; the command can be given again.
//! Knows no volume-router.

use std::io::{self, BufWriter, Write};

use anyhow::{Result, bail};
use sconce_fs_router::routing::{View, Volume};
use sconce_schemas::wire::volume::{ChangeKind, Since};

use crate::args::{Diff, Format};
use crate::cluster::Cluster;
use crate::size::shown;

/// A range that differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// What it is now; never [`ChangeKind::Same`].
    pub kind: ChangeKind,
}

/// The ranges that differ, an answer of the owner at a time.
pub struct Runs {
    volume: Volume,
    at: u64,
    end: u64,
}

impl Runs {
    /// Those of a view that compares, in `at..end`.
    #[must_use]
    pub fn new(volume: Volume, at: u64, end: u64) -> Self {
        Self { volume, at, end }
    }

    /// The next ones, perhaps none yet; `None`: that was all.
    ///
    /// # Errors
    /// A snapshot is gone, or the map is damaged.
    pub async fn next(&mut self) -> Result<Option<Vec<Run>>> {
        if self.at >= self.end {
            return Ok(None);
        }
        let mut runs = Vec::new();
        let from = self.at;
        for extent in self.volume.changes(self.at, self.end - self.at).await? {
            let length = extent.length.min(self.end - self.at);
            if extent.kind != ChangeKind::Same && length > 0 {
                runs.push(Run {
                    offset: self.at,
                    length,
                    kind: extent.kind,
                });
            }
            self.at += length;
        }
        if self.at == from {
            bail!("the volume's owner tells nothing of what lies at byte {from}");
        }
        Ok(Some(runs))
    }

    /// Up to where it was told what differs.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.at
    }
}

/// Bytes of each kind.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Totals {
    ranges: u64,
    data: u64,
    zeros: u64,
    holes: u64,
}

impl Totals {
    fn add(&mut self, run: Run) {
        self.ranges += 1;
        match run.kind {
            ChangeKind::Same => {}
            ChangeKind::Data => self.data += run.length,
            ChangeKind::Zeros => self.zeros += run.length,
            ChangeKind::Hole => self.holes += run.length,
        }
    }
}

fn word(kind: ChangeKind) -> &'static str {
    match kind {
        ChangeKind::Same => "same",
        ChangeKind::Data => "data",
        ChangeKind::Zeros => "zeros",
        ChangeKind::Hole => "hole",
    }
}

/// Runs `sconce diff`.
///
/// # Errors
/// There is no such volume or snapshot, or the two have nothing in common.
pub async fn run(cluster: &Cluster, diff: &Diff, format: Format) -> Result<()> {
    let to = cluster.resolve(&diff.to.volume).await?;
    let from = cluster.resolve(&diff.from.volume).await?;
    let since = Since {
        volume: (from.volume != to.volume).then_some(from.volume),
        snapshot: diff.from.name.clone(),
    };
    let view = View::changes(diff.to.snapshot.clone(), Some(since));
    let volume = cluster.open_view(&to, view).await?;
    let size = volume.opened().await?.size.bytes();
    let runs = Runs::new(volume, 0, size);
    let mut out = BufWriter::new(io::stdout().lock());
    match format {
        Format::Table => table(&mut out, runs, size).await,
        Format::Json => json(&mut out, runs, diff, size).await,
    }
}

/// Joins what answers cut apart, and gives each whole range to `each`.
async fn joined(mut runs: Runs, mut each: impl FnMut(Run) -> io::Result<()>) -> Result<()> {
    let mut last: Option<Run> = None;
    while let Some(next) = runs.next().await? {
        for run in next {
            match &mut last {
                Some(before) if before.kind == run.kind && before.offset + before.length == run.offset => {
                    before.length += run.length;
                }
                _ => {
                    if let Some(whole) = last.replace(run) {
                        each(whole)?;
                    }
                }
            }
        }
    }
    last.map_or(Ok(()), each)?;
    Ok(())
}

async fn table(out: &mut impl Write, runs: Runs, size: u64) -> Result<()> {
    writeln!(out, "{:>20} {:>20}  NOW", "OFFSET", "LENGTH")?;
    let mut totals = Totals::default();
    joined(runs, |run| {
        totals.add(run);
        writeln!(out, "{:>20} {:>20}  {}", run.offset, run.length, word(run.kind))
    })
    .await?;
    let changed = totals.data + totals.zeros + totals.holes;
    writeln!(
        out,
        "{} of {} changed, in {} ranges: {} data, {} zeros, {} holes",
        shown(changed),
        shown(size),
        totals.ranges,
        shown(totals.data),
        shown(totals.zeros),
        shown(totals.holes)
    )?;
    Ok(out.flush()?)
}

/// One value, written while it is found: there may be millions of ranges.
async fn json(out: &mut impl Write, runs: Runs, diff: &Diff, size: u64) -> Result<()> {
    let quoted = |text: String| serde_json::Value::from(text);
    write!(
        out,
        "{{\"from\":{},\"to\":{},\"size_bytes\":{size},\"ranges\":[",
        quoted(diff.from.to_string()),
        quoted(diff.to.to_string())
    )?;
    let mut totals = Totals::default();
    joined(runs, |run| {
        let comma = if totals.ranges == 0 { "" } else { "," };
        totals.add(run);
        let (offset, length, now) = (run.offset, run.length, word(run.kind));
        write!(
            out,
            "{comma}\n{{\"offset\":{offset},\"length\":{length},\"now\":\"{now}\"}}"
        )
    })
    .await?;
    writeln!(
        out,
        "],\n\"data_bytes\":{},\"zeros_bytes\":{},\"holes_bytes\":{}}}",
        totals.data, totals.zeros, totals.holes
    )?;
    Ok(out.flush()?)
}
