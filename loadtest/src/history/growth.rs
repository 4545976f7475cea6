//! Restarts and clones against how long a volume's history is and how large it is.
//!
//! Keeps: points until the plot.
//! Order: from little to much, so that what comes later bears all that was before.
//! Crash: see `history`.
//! Knows simulated fills (`fabricate`): the nodes of a full volume without its data.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Args;
use sconce_fs_router::names::Resolved;

use super::client::{self, Client};
use super::fabricate::fabricate;
use super::plot::{Panel, Point, draw};
use super::{Place, median};
use crate::document;
use crate::fio;
use crate::sconce::Sconce;

const VOLUME: &str = "/history.raw";
/// Random clusters that are written between two snapshots.
const BETWEEN: u32 = 4;
/// Most that the last point may be of the first, for what people call flat.
const FLAT: f64 = 2.0;

/// What to measure.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Numbers of snapshots.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 10, 100, 1000])]
    snapshots: Vec<u32>,
    /// GiB of simulated fill.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 16, 256, 4096])]
    gib: Vec<u64>,
    /// MiB of the volume whose snapshots are taken.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(16..=16384))]
    size_mib: u32,
    /// Restarts and clones at each point; the median counts.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// The plot, as SVG.
    #[arg(long)]
    plot: Option<PathBuf>,
    /// Where, and whereto.
    #[command(flatten)]
    place: Place,
}

/// Measures and reports.
pub(crate) fn run(options: &Options) -> Result<()> {
    ensure!(
        options.snapshots.is_sorted() && options.gib.is_sorted(),
        "--snapshots and --gib go from little to much"
    );
    ensure!(
        options.gib.iter().all(|gib| (1..=65536).contains(gib))
            && options.snapshots.iter().all(|count| *count > 0),
        "--gib takes 1 to 65536, --snapshots at least 1"
    );
    let dir = options.place.fresh("growth")?;
    let by_history = by_history(&Sconce::prepare(&dir.join("history"))?, options)?;
    let by_size = by_size(&Sconce::prepare(&dir.join("size"))?, options)?;
    Place::clear(&dir)?;
    let panels = [
        Panel {
            title: "By history",
            cause: "snapshots",
            points: &by_history,
        },
        Panel {
            title: "By size (simulated fill)",
            cause: "GiB",
            points: &by_size,
        },
    ];
    if let Some(path) = &options.plot {
        document::replace(path, draw(&panels)?.as_bytes())?;
    }
    let list = |numbers: Vec<String>| numbers.join(",");
    let command = format!(
        "loadtest growth --snapshots {} --gib {} --size-mib {} --rounds {}",
        list(options.snapshots.iter().map(ToString::to_string).collect()),
        list(options.gib.iter().map(ToString::to_string).collect()),
        options.size_mib,
        options.rounds
    );
    options.place.report("growth", &command, &table(&panels))
}

fn by_history(sconce: &Sconce, options: &Options) -> Result<Vec<Point>> {
    sconce.up()?;
    let size = format!("{}M", options.size_mib);
    sconce.command(&["volume", "create", VOLUME, "--size", &size])?;
    fio::fill(&sconce.uri(VOLUME), options.size_mib)?;
    let bytes = u64::from(options.size_mib) << 20;
    let (mut points, mut taken) = (Vec::new(), 0);
    for count in &options.snapshots {
        client::with(sconce, async |client| {
            let file = client.file(VOLUME).await?;
            while taken < *count {
                client.scribble(&file, bytes, BETWEEN).await?;
                taken += 1;
                client.take(&file, &format!("s{taken}")).await?;
            }
            client.sync(&file).await
        })?;
        points.push(point(
            sconce,
            options,
            VOLUME,
            &format!("s{taken}"),
            f64::from(*count),
        )?);
    }
    Ok(points)
}

fn by_size(sconce: &Sconce, options: &Options) -> Result<Vec<Point>> {
    sconce.up()?;
    let mut points = Vec::new();
    for gib in &options.gib {
        let volume = format!("/sim/{gib}.raw");
        fabricate(&sconce.path("backend/local"), &volume, gib << 30)?;
        sconce.command(&["recover"])?;
        client::with(sconce, async |client| {
            let file = client.file(&volume).await?;
            client.first_byte(&file, 0).await?;
            client.take(&file, "base").await?;
            client.sync(&file).await
        })?;
        #[expect(clippy::cast_precision_loss, reason = "at most 65,536")]
        let cause = *gib as f64;
        points.push(point(sconce, options, &volume, "base", cause)?);
    }
    Ok(points)
}

/// Restarts and clones of a volume as it is now.
fn point(sconce: &Sconce, options: &Options, volume: &str, snapshot: &str, cause: f64) -> Result<Point> {
    let (mut restarts, mut clones) = (Vec::new(), Vec::new());
    for round in 0..options.rounds {
        client::with(sconce, async |client| {
            let file = client.file(volume).await?;
            restarts.push(restart(sconce, client, &file).await?);
            let from = client.snapshot(&file, snapshot).await?;
            let new = format!("/clones{volume}/{cause}-{round}.raw");
            let begun = Instant::now();
            let (clone, _) = client.clone(&file, &from, &new).await?;
            client.first_byte(&clone, 0).await?;
            clones.push(millis(begun.elapsed()));
            Ok(())
        })?;
    }
    Ok(Point {
        cause,
        restart_ms: median(restarts),
        clone_ms: median(clones),
    })
}

/// From the start of the volume-router, which was stopped in order, to the volume's first byte.
async fn restart(sconce: &Sconce, client: &Client, file: &Resolved) -> Result<f64> {
    sconce.stop_service("volume-router")?;
    let begun = Instant::now();
    sconce.start_service("volume-router")?;
    client.first_byte(file, 0).await?;
    Ok(millis(begun.elapsed()))
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn table(panels: &[Panel<'_>]) -> String {
    let mut text = String::new();
    for panel in panels {
        text.push_str(&format!(
            "| {} | restart to first byte, ms | clone made to its first byte, ms |\n|---:|---:|---:|\n",
            panel.cause
        ));
        for point in panel.points {
            text.push_str(&format!(
                "| {} | {:.0} | {:.1} |\n",
                point.cause, point.restart_ms, point.clone_ms
            ));
        }
        if let (Some(first), Some(last)) = (panel.points.first(), panel.points.last()) {
            let (restart, clone) = (
                last.restart_ms / first.restart_ms.max(1e-6),
                last.clone_ms / first.clone_ms.max(1e-6),
            );
            let is_flat = if restart.max(clone) <= FLAT {
                "flat"
            } else {
                "NOT flat"
            };
            text.push_str(&format!(
                "\n{}, last to first: restart {restart:.2} times, clone {clone:.2} times: {is_flat} (goal: at most {FLAT}).\n\n",
                panel.title
            ));
        }
    }
    text.push_str(
        "Medians. A restart is an orderly stop and the time from the start of the volume-router's process; a clone's time is that \
         of its record in the registry, its first start and a read.\n",
    );
    text
}
