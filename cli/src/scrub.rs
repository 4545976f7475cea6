//! Keeps: `sconce scrub …`.
//! Order: volumes by path.
//! Crash: nothing; the command can be given again.
//! Knows no SCO.

use anyhow::Result;
use futures_util::StreamExt;
use sconce_fs_router::names::{NamesError, PoolPath, Resolved};
use sconce_schemas::wire::volume::ScrubReport;
use serde::Serialize;

use crate::args::{Format, Scrub};
use crate::cluster::{Cluster, LIVE_DEADLINE, explained};
use crate::size::shown;
use crate::view::{columns, print, time_shown, unknown};

/// Owners that are asked at the same time.
const CONCURRENCY: usize = 16;

/// Scrubbing of a volume since its owner opened it; null where the owner did not answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ScrubView {
    /// The volume's path.
    pub path: String,
    /// What it does or why it does not run; `unknown` where the owner did not answer.
    pub state: String,
    /// Bytes of clusters on the back ends, by the last pass.
    pub stored_bytes: Option<u64>,
    /// Those of them that nothing refers to.
    pub dead_bytes: Option<u64>,
    /// How much of that is to be given back.
    pub to_win_bytes: Option<u64>,
    /// What was given back.
    pub won_bytes: Option<u64>,
    /// Objects that hold clusters, by the last pass.
    pub objects: Option<u64>,
    /// Objects that wait to be deleted.
    pub waiting_objects: Option<u64>,
    /// Objects that were written in place of others.
    pub rewritten: Option<u64>,
    /// How many of them other volume-routers wrote in the owner's place.
    pub helped: Option<u64>,
    /// Bundles that the owner wrote after another volume-router that it had asked did not, in time.
    pub taken_back: Option<u64>,
    /// The volume-router that was asked to write the bundle at hand; null: there is none at hand, or the owner writes it.
    pub writing_at: Option<String>,
    /// SCOs that went whole.
    pub removed: Option<u64>,
    /// Objects that nothing referred to, and that a sweep deleted.
    pub swept: Option<u64>,
    /// When a sweep last looked at all the volume's objects; null: not yet.
    pub last_sweep: Option<String>,
    /// Tries that failed.
    pub failures: Option<u64>,
    /// When something was last given back; null: never.
    pub last_success: Option<String>,
    /// When a try last failed; null: never.
    pub last_failure: Option<String>,
}

/// Runs `sconce scrub …`.
///
/// # Errors
/// There is no such volume or directory; the registry is unreachable.
pub async fn run(cluster: &Cluster, command: &Scrub, format: Format) -> Result<()> {
    let Scrub::Status { path } = command;
    let files = volumes(cluster, path).await?;
    let asked = files.iter().map(|file| async {
        let status = cluster.owners.show(file.volume, LIVE_DEADLINE).await;
        let report = status.ok().and_then(|status| status.scrub);
        view(file, report.as_deref())
    });
    let asked = futures_util::stream::iter(asked).buffered(CONCURRENCY);
    let views: Vec<ScrubView> = asked.collect().await;
    print(format, &views, |views| table(views))
}

async fn volumes(cluster: &Cluster, path: &PoolPath) -> Result<Vec<Resolved>> {
    match cluster.names.files(path, usize::MAX).await {
        Ok(mut files) => {
            files.sort_by(|one, other| one.path.cmp(&other.path));
            Ok(files)
        }
        Err(NamesError::NotDirectory { .. }) => Ok(vec![cluster.resolve(path).await?]),
        Err(error) => Err(explained(error)),
    }
}

fn view(file: &Resolved, report: Option<&ScrubReport>) -> ScrubView {
    let time = |micros: u64| (micros > 0).then(|| time_shown(micros));
    ScrubView {
        path: file.path.to_string(),
        state: report.map_or_else(|| "unknown".to_owned(), |report| report.state.clone()),
        stored_bytes: report.map(|report| report.stored.0),
        dead_bytes: report.map(|report| report.dead.0),
        to_win_bytes: report.map(|report| report.to_win.0),
        won_bytes: report.map(|report| report.won.0),
        objects: report.map(|report| report.objects),
        waiting_objects: report.map(|report| report.condemned),
        rewritten: report.map(|report| report.rewritten),
        helped: report.map(|report| report.helped),
        taken_back: report.map(|report| report.taken_back),
        writing_at: report.and_then(|report| report.writing_at.as_ref().map(ToString::to_string)),
        removed: report.map(|report| report.removed),
        failures: report.map(|report| report.failures),
        swept: report.map(|report| report.swept),
        last_sweep: report.and_then(|report| time(report.last_sweep_us)),
        last_success: report.and_then(|report| time(report.last_success_us)),
        last_failure: report.and_then(|report| time(report.last_failure_us)),
    }
}

fn table(views: &[ScrubView]) -> String {
    let mut table = columns(
        &[
            "PATH",
            "STATE",
            "STORED",
            "DEAD",
            "TO WIN",
            "WON",
            "WAITING",
            "REWRITTEN",
            "HELPED",
            "SWEPT",
            "LAST SUCCESS",
            "LAST FAILURE",
        ],
        &[2, 3, 4, 5, 6, 7, 8, 9],
    );
    let bytes = |bytes: Option<u64>| bytes.map_or_else(unknown, shown);
    let count = |count: Option<u64>| count.map_or_else(unknown, |count| count.to_string());
    for view in views {
        let state = match &view.writing_at {
            Some(node) => format!("{} at {node}", view.state),
            None => view.state.clone(),
        };
        table.add_row([
            view.path.clone(),
            state,
            bytes(view.stored_bytes),
            bytes(view.dead_bytes),
            bytes(view.to_win_bytes),
            bytes(view.won_bytes),
            count(view.waiting_objects),
            count(view.rewritten),
            count(view.helped),
            count(view.swept),
            view.last_success.clone().unwrap_or_else(unknown),
            view.last_failure.clone().unwrap_or_else(unknown),
        ]);
    }
    table.trim_fmt()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> Resolved {
        Resolved {
            inode: 7,
            volume: sconce_schemas::VolumeId([1; 16]),
            path: "/vm1/disk.raw".parse().unwrap(),
        }
    }

    #[test]
    fn what_is_not_known_is_not_shown_as_zero() {
        let silent = view(&file(), None);
        assert_eq!((silent.state.as_str(), silent.dead_bytes), ("unknown", None));
        let json = serde_json::to_value(&silent).unwrap();
        assert!(json["won_bytes"].is_null() && json["last_success"].is_null());
        let lines = table(&[silent]);
        let row: Vec<&str> = lines.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(
            row,
            [
                "/vm1/disk.raw",
                "unknown",
                "-",
                "-",
                "-",
                "-",
                "-",
                "-",
                "-",
                "-",
                "-",
                "-"
            ]
        );
    }

    #[test]
    fn a_volume_is_a_row() {
        let mut report = ScrubReport {
            state: "pressed".to_owned(),
            stored: sconce_schemas::ByteLen(5 << 30),
            condemned: 3,
            rewritten: 40,
            swept: 7,
            last_success_us: 1_000_000,
            ..ScrubReport::default()
        };
        let row = |report: &ScrubReport| {
            let lines = table(&[view(&file(), Some(report))]);
            let row = lines.lines().nth(1).unwrap().split_whitespace();
            row.map(str::to_owned).collect::<Vec<_>>()
        };
        let alone = row(&report);
        assert_eq!(alone[..4], ["/vm1/disk.raw", "pressed", "5", "GiB"]);
        assert_eq!(alone[10..], ["3", "40", "0", "7", "1970-01-01T00:00:01Z", "-"]);
        // Where the work is done is part of what it does.
        report.state = "writing".to_owned();
        (report.writing_at, report.helped) = (Some("vr-2".parse().unwrap()), 39);
        let helped = row(&report);
        assert_eq!(helped[1..4], ["writing", "at", "vr-2"]);
        assert_eq!(helped[12..15], ["3", "40", "39"]);
    }
}
