//! Keeps: what `sconce inspect` and `sconce check` print for people. Programs take the JSON.
//! Order, crash: nothing.
//! Knows no back end.

use std::fmt::Write as _;

use comfy_table::Table;
use sconce_inspect::report::VolumeReport;
use sconce_inspect::show::{
    CheckpointView, ManifestView, MapView, ObjectsView, RootView, ScoView, VolumeSummary,
};
use sconce_inspect::{Report, Verdict};

use crate::size::shown;
use crate::view::columns;

/// Orphans that are listed without --verbose.
const ORPHANS_SHOWN: usize = 3;

fn table(header: &[&str]) -> Table {
    columns(header, &[])
}

fn or_dash<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

const fn verdict(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Consistent => "consistent",
        Verdict::Unknown => "could not be judged",
        Verdict::Inconsistent => "NOT CONSISTENT",
    }
}

pub(super) fn report(report: &Report, verbose: bool) -> String {
    let mut text = String::new();
    for volume in &report.volumes {
        of_volume(&mut text, volume, report.data, verbose);
    }
    for backend in &report.backends {
        if let Some(problem) = &backend.problem {
            let _ = writeln!(text, "back end {}: {problem}", backend.backend);
        }
    }
    let bad = report
        .volumes
        .iter()
        .filter(|volume| volume.verdict != Verdict::Consistent)
        .count();
    let _ = write!(
        text,
        "{} volumes, {bad} not consistent or not judged: {}",
        report.volumes.len(),
        verdict(report.verdict)
    );
    text
}

fn of_volume(text: &mut String, volume: &VolumeReport, data: bool, verbose: bool) {
    let name = volume
        .path
        .as_ref()
        .map_or_else(|| volume.id.clone(), |path| format!("{path} ({})", volume.id));
    let _ = writeln!(text, "{name}: {}", verdict(volume.verdict));
    let _ = writeln!(
        text,
        "  {} mapped of {}, {} snapshots, {} ancestors; {} SCOs with {} live and {} dead clusters, {} nodes",
        shown(volume.allocated_bytes),
        shown(volume.size_bytes),
        volume.snapshots,
        volume.ancestors.len(),
        volume.scos,
        volume.live_slots,
        volume.dead_slots,
        volume.nodes
    );
    if volume.behind > 0 {
        let _ = writeln!(
            text,
            "  {} SCOs behind the manifest: the next start of the volume replays them",
            volume.behind
        );
    }
    if data {
        let _ = writeln!(text, "  {} clusters read and compared", volume.clusters_read);
    }
    for problem in &volume.problems {
        let _ = writeln!(text, "  problem: {}", problem.text);
    }
    let told = volume.problems.len() as u64;
    if volume.problem_count > told {
        let _ = writeln!(text, "  and {} problems more", volume.problem_count - told);
    }
    if volume.orphans.is_empty() {
        return;
    }
    let _ = writeln!(
        text,
        "  {} objects that nothing refers to, {}{}",
        volume.orphans.len(),
        shown(volume.orphan_bytes),
        if verbose {
            ":"
        } else {
            " (--verbose lists them all):"
        }
    );
    let most = if verbose { usize::MAX } else { ORPHANS_SHOWN };
    for orphan in volume.orphans.iter().take(most) {
        let _ = writeln!(text, "    {}: {}", orphan.object, orphan.why);
    }
}

pub(super) fn volumes(volumes: &[VolumeSummary]) -> String {
    let mut rows = table(&[
        "PATH",
        "ID",
        "SIZE",
        "MAPPED",
        "SNAPSHOTS",
        "ANCESTORS",
        "SCOS",
        "MAPS",
        "MANIFEST",
    ]);
    let mut problems = String::new();
    for volume in volumes {
        let objects = |kind| volume.objects.get(kind).cloned().unwrap_or_default();
        let taken = |kind| {
            let ObjectsView { count, bytes, .. } = objects(kind);
            format!("{count} ({})", shown(bytes))
        };
        rows.add_row(vec![
            or_dash(volume.path.as_ref()),
            volume.id.clone(),
            or_dash(volume.size_bytes.map(shown)),
            or_dash(volume.allocated_bytes.map(shown)),
            volume.snapshots.len().to_string(),
            volume.ancestors.len().to_string(),
            taken("sco"),
            taken("map"),
            or_dash(volume.manifest.as_ref().and_then(|name| name.rsplit('/').next())),
        ]);
        for problem in &volume.problems {
            let _ = write!(problems, "\nproblem: {}", problem.text);
        }
    }
    format!("{rows}{problems}")
}

fn root(root: &RootView) -> String {
    match (&root.object, root.offset, root.length) {
        (Some(object), Some(offset), Some(length)) => format!(
            "{object} at {offset}, {length} bytes, {} deltas, {} levels above the leaves",
            root.deltas.unwrap_or_default(),
            root.height
        ),
        _ => "empty".to_owned(),
    }
}

pub(super) fn manifest(manifest: &ManifestView) -> String {
    let mut rows = table(&["MANIFEST", ""]);
    let mut row = |name: &str, value: String| {
        rows.add_row(vec![name.to_owned(), value]);
    };
    row("object", manifest.object.clone());
    row("path", manifest.path.clone());
    row("pool", manifest.pool.clone());
    row("size", shown(manifest.size_bytes));
    row("mapped", shown(manifest.allocated_bytes));
    row("SCO size", shown(manifest.sco_size_bytes));
    row(
        "takes writes",
        if manifest.read_only { "no" } else { "yes" }.to_owned(),
    );
    row(
        "covers",
        format!("batch {}, SCO {}", manifest.covered_batch, manifest.covered_sco),
    );
    row("newest checkpoint", manifest.checkpoint.to_string());
    row("map", root(&manifest.map));
    row("SCO table", root(&manifest.sco_table));
    for volume in &manifest.lineage {
        let epochs = volume
            .epochs
            .iter()
            .map(|start| format!("{} from SCO {}", start.epoch, start.first_sco));
        row(
            "lineage",
            format!(
                "{}: epochs {}",
                volume.volume,
                epochs.collect::<Vec<_>>().join(", ")
            ),
        );
    }
    if let Some(origin) = &manifest.origin {
        row(
            "began as",
            format!("snapshot {} of {}", origin.snapshot, origin.volume),
        );
    }
    row("comes from", or_dash(manifest.parent.as_ref()));
    row("sessions", manifest.sessions.to_string());
    for snapshot in &manifest.snapshots {
        row(
            &format!("snapshot {}", snapshot.id),
            format!(
                "{:?}, {}, taken {} at SCO {} slot {}, from {}, {} mapped",
                snapshot.name,
                snapshot.state,
                snapshot.created,
                snapshot.at_sco,
                snapshot.at_slots,
                or_dash(snapshot.parent.as_ref()),
                shown(snapshot.allocated_bytes)
            ),
        );
    }
    for object in &manifest.condemned {
        row("waits to be deleted", object.clone());
    }
    rows.to_string()
}

pub(super) fn checkpoint(checkpoint: &CheckpointView) -> String {
    let mut rows = table(&[
        "TREE", "LEVEL", "INDEX", "OFFSET", "LENGTH", "VALUES", "DELTA ON", "PROBLEM",
    ]);
    for node in &checkpoint.nodes {
        rows.add_row(vec![
            node.tree.to_owned(),
            node.level.to_string(),
            node.index.to_string(),
            node.offset.to_string(),
            node.length.to_string(),
            or_dash(node.values),
            or_dash(node.delta_on),
            or_dash(node.problem.as_ref()),
        ]);
    }
    format!("{}: {} bytes\n{rows}", checkpoint.object, checkpoint.length_bytes)
}

pub(super) fn map(map: &MapView) -> String {
    let mut rows = table(&["ADDRESS", "LENGTH", "KIND", "SCO", "EPOCH", "SLOT", "VOLUME"]);
    for extent in &map.extents {
        rows.add_row(vec![
            extent.address.to_string(),
            shown(extent.length),
            extent.kind.to_owned(),
            or_dash(extent.sco),
            or_dash(extent.epoch),
            or_dash(extent.slot),
            or_dash(extent.volume.as_ref()),
        ]);
    }
    let mut text = format!("{} ({}), {}\n{rows}", map.path, map.volume, map.of);
    for problem in &map.problems {
        let _ = write!(text, "\nproblem: {problem}");
    }
    text
}

pub(super) fn sco(sco: &ScoView) -> String {
    let mut rows = table(&[
        "BATCH", "TIME", "ENTRY", "SLOT", "ADDRESS", "LENGTH", "CRC32C", "CONTENT",
    ]);
    for batch in &sco.batches {
        for entry in &batch.entries {
            rows.add_row(vec![
                batch.batch.to_string(),
                batch.time.clone(),
                entry.record.clone().unwrap_or_else(|| entry.kind.to_owned()),
                or_dash(entry.slot),
                or_dash(entry.address),
                or_dash(entry.length),
                or_dash(entry.crc.map(|crc| format!("{crc:08x}"))),
                or_dash(entry.content),
            ]);
        }
    }
    for member in &sco.members {
        for entry in &member.entries {
            rows.add_row(vec![
                "-".to_owned(),
                "-".to_owned(),
                format!("SCO {} of epoch {}", member.sco, member.epoch),
                or_dash(entry.slot),
                or_dash(entry.address),
                or_dash(entry.length),
                or_dash(entry.crc.map(|crc| format!("{crc:08x}"))),
                or_dash(entry.content),
            ]);
        }
    }
    let mut text = format!(
        "{}\n{} clusters written, {} stored, {} of them bad; {} batches from {} on; {}\n{rows}",
        sco.object,
        sco.slots,
        sco.kept,
        sco.bad,
        sco.batches.len(),
        sco.first_batch,
        shown(sco.length_bytes)
    );
    if let Some(problem) = &sco.log_problem {
        let _ = write!(text, "\nproblem: the log ends early: {problem}");
    }
    text
}
