//! Keeps: what commands print, as JSON and as tables. The JSON is documented in docs/operating/cli.md and stable:
//! fields are added, never renamed or removed.
//! Order, crash: nothing; views are values.
//! Knows no cluster.

use std::collections::BTreeMap;

use comfy_table::{CellAlignment, Table, presets};
use sconce_schemas::records::{DtlMode, DtlState, LastMove, Moving, TwinHost};
use sconce_schemas::wire::volume::FlattenProgress;
use serde::{Serialize, Serializer};

use crate::access::AccessView;
use crate::args::Format;
use crate::deletions::{DeletionView, deletion_table};
use crate::owned::{OwnedView, RiskView, VolumeCounts, attention_table, counts_line, move_table, risk_table};
use crate::size::shown;

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VolumeView {
    /// Path in the pool's tree.
    pub path: String,
    /// The volume's id.
    pub id: String,
    /// Size as the guest sees it; what the owner last told the registry where `live` is false.
    pub size_bytes: u64,
    /// Bytes of clusters that are mapped; null where `live` is false.
    pub allocated_bytes: Option<u64>,
    /// The volume-router that serves it.
    pub owner: String,
    /// Number of the ownership; 0 before the first.
    pub epoch: u64,
    /// `in_sync`, `degraded` or `off`.
    #[serde(serialize_with = "dtl_state")]
    pub dtl_state: DtlState,
    /// What a twin of its write buffer is waited for: `none`, `async` or `sync`.
    pub dtl_mode: DtlMode,
    /// The volume-router that has the twin, or is getting it; missing where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dtl_host: Option<String>,
    /// The failure domain that the owner and the twin are both in; missing where they are in different ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dtl_shared_domain: Option<String>,
    /// Where an operator wants the twin to be; missing where nobody said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dtl_wanted_host: Option<WantedHostView>,
    /// Whether it is moved only where an operator asks for that; missing where it is not so.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub pinned: bool,
    /// The move that is under way; missing where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub moving: Option<MovingView>,
    /// The last move that is over; missing where there was none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_move: Option<LastMoveView>,
    /// For NBD clients; null where the settings name no NBD socket.
    pub nbd_uri: Option<String>,
    /// Path in the FUSE mount; null where the settings name no mount.
    pub mount_path: Option<String>,
    /// Storage pool.
    pub pool: String,
    /// Data bytes of a SCO.
    pub sco_size_bytes: u64,
    /// Acknowledged bytes that are only in the write buffer; null where `live` is false.
    pub unstored_bytes: Option<u64>,
    /// `serving`, or what the volume waits for; `unknown` where its owner did not answer.
    pub state: String,
    /// Whether the figures are those of the owner that serves it; otherwise they are what the registry has.
    pub live: bool,
    /// How far back any moment of it can be had, in seconds; 0: its history is off; null where `live` is false.
    pub history_seconds: Option<u64>,
    /// The first moment that can be had; null where there is none.
    pub history_from: Option<String>,
    /// The volume that a clone depends on; missing where it depends on none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clone_of: Option<String>,
    /// How far a clone is on its way to independence; missing where it is not on it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flatten: Option<FlattenView>,
    /// Which front ends may write it.
    pub access: AccessView,
}

/// Where an operator wants a twin to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WantedHostView {
    /// The volume-router.
    pub node: String,
    /// And nowhere else.
    pub only: bool,
}

impl From<&TwinHost> for WantedHostView {
    fn from(host: &TwinHost) -> Self {
        Self {
            node: host.node.to_string(),
            only: host.only,
        }
    }
}

/// A move that is under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MovingView {
    /// Who is to own the volume.
    pub to: String,
    /// Why: `asked`, `io` (its IO comes from there), `balance` (its owner had more volumes), or `other`.
    pub why: String,
}

impl From<&Moving> for MovingView {
    fn from(moving: &Moving) -> Self {
        Self {
            to: moving.to.to_string(),
            why: moving.why.as_str().to_owned(),
        }
    }
}

/// A move that is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LastMoveView {
    /// Who owned the volume before.
    pub from: String,
    /// Who owned it then.
    pub to: String,
    /// When.
    pub at: String,
    /// Why, likewise.
    pub why: String,
}

impl From<&LastMove> for LastMoveView {
    fn from(last: &LastMove) -> Self {
        Self {
            from: last.from.to_string(),
            to: last.to.to_string(),
            at: time_shown(last.at_us),
            why: last.why.as_str().to_owned(),
        }
    }
}

/// Why a volume is or was moved, for people.
pub(crate) fn why_shown(why: &str) -> &str {
    match why {
        "asked" => "as was asked",
        "io" => "its IO comes from there",
        "balance" => "its owner had more volumes",
        other => other,
    }
}

/// How far a clone is on its way to independence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FlattenView {
    /// Bytes that were copied since its owner opened it.
    pub copied_bytes: u64,
    /// How much of it was looked at.
    pub percent: u8,
    /// Snapshots of it that need what it comes from; one without a name was removed and is still being counted.
    pub waits_for: Vec<String>,
    /// Whether its history, which reaches back to when it needed it, keeps it from being independent.
    pub waits_for_history: bool,
    /// What went wrong last; it is tried again.
    pub trouble: Option<String>,
}

impl From<FlattenProgress> for FlattenView {
    fn from(progress: FlattenProgress) -> Self {
        Self {
            copied_bytes: progress.copied.0,
            percent: progress.percent,
            waits_for: progress.waits_for,
            waits_for_history: progress.waits_for_history,
            trouble: progress.trouble,
        }
    }
}

impl FlattenView {
    fn shown(&self) -> String {
        let mut text = format!(
            "{} % looked at, {} copied since it was opened",
            self.percent,
            shown(self.copied_bytes)
        );
        let named: Vec<&str> = self
            .waits_for
            .iter()
            .map(String::as_str)
            .filter(|name| !name.is_empty())
            .collect();
        if !named.is_empty() {
            text.push_str(&format!(
                "; waits until these snapshots are deleted: {}",
                named.join(", ")
            ));
        }
        if self.waits_for_history {
            text.push_str("; waits until its history no longer reaches back to before it was done");
        }
        if let Some(trouble) = &self.trouble {
            text.push_str(&format!("; tries again: {trouble}"));
        }
        text
    }
}

fn dtl_state<S: Serializer>(state: &DtlState, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(dtl_name(*state))
}

/// `off`, or the mode and the state: `sync degraded`.
fn dtl_shown(volume: &VolumeView) -> String {
    if volume.dtl_mode == DtlMode::None {
        return dtl_name(volume.dtl_state).to_owned();
    }
    format!("{} {}", volume.dtl_mode.as_str(), dtl_name(volume.dtl_state))
}

pub(crate) fn dtl_name(state: DtlState) -> &'static str {
    match state {
        DtlState::InSync => "in_sync",
        DtlState::Degraded => "degraded",
        DtlState::Off => "off",
    }
}

/// A service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NodeView {
    /// Its name.
    pub name: String,
    /// `fs-router`, `volume-router` or `storage-router`.
    pub role: String,
    /// Build version.
    pub version: String,
    /// Process id on its host.
    pub pid: u32,
    /// Where it is reached.
    pub endpoints: Vec<String>,
    /// `running`, `answers` or what is wrong.
    pub state: String,
    /// Volumes that it serves; null where it is no volume-router or does not answer.
    pub volumes: Option<usize>,
    /// Size of its write buffer; null likewise.
    pub buffer_bytes: Option<u64>,
    /// What of it is not on the back ends yet; null likewise.
    pub buffer_unstored_bytes: Option<u64>,
    /// How many of its volumes it serves now; null likewise.
    pub serving: Option<usize>,
}

/// A back end, as a storage-router sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BackendView {
    /// Its name.
    pub name: String,
    /// The storage-router.
    pub node: String,
    /// `ok`, or what is wrong.
    pub state: String,
    /// Space that it can hold; null where unknown.
    pub capacity_bytes: Option<u64>,
    /// Space that is left; null where unknown.
    pub free_bytes: Option<u64>,
    /// Requests that it served since the storage-router started.
    pub requests: u64,
    /// Requests that failed since then.
    pub errors: u64,
    /// Objects that were stored on it since then.
    pub written_objects: u64,
    /// Bytes that they take there.
    pub written_bytes: u64,
}

/// A storage pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PoolView {
    /// Its name.
    pub name: String,
    /// How objects are protected: `replica:1`.
    pub protection: String,
    /// How they are compressed; null where they are not.
    pub compression: Option<String>,
    /// Whether they are encrypted.
    pub encrypted: bool,
    /// The keys of an encrypted pool.
    pub keys: Vec<KeyView>,
    /// Names of its back ends.
    pub backends: Vec<String>,
    /// `ok`, or which storage-router does not serve it as it should, and why.
    pub state: String,
    /// Its placement map.
    pub placement: Vec<PlacementView>,
    /// Whether every object is where the placement map wants it.
    pub settled: bool,
}

/// A back end in a placement map.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PlacementView {
    /// Its name.
    pub backend: String,
    /// What it takes.
    #[serde(flatten)]
    pub share: ShareView,
}

/// What a back end takes of a pool's objects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ShareView {
    /// Its share of new objects, relative to the others'.
    pub weight: u32,
    /// What the weight is to be; 0: it leaves the pool.
    pub wanted: u32,
    /// Whether it is gone for good: nobody waits for what is on it.
    pub lost: bool,
}

impl ShareView {
    /// The weight, and what it is to be.
    pub(crate) fn weight_shown(&self) -> String {
        match self.weight == self.wanted {
            true => self.weight.to_string(),
            false => format!("{} (to be {})", self.weight, self.wanted),
        }
    }

    /// Whether it leaves the pool.
    pub(crate) const fn is_leaving(&self) -> bool {
        self.wanted == 0
    }
}

/// A key of a pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KeyView {
    /// Its id.
    pub id: u32,
    /// What tells it from another key: 16 hexadecimal digits.
    pub fingerprint: String,
}

/// What `sconce status` found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StatusView {
    /// Whether a service of each role runs and all that run answer, and all back ends are `ok`.
    pub healthy: bool,
    /// What is not, for people; empty when healthy.
    pub problems: Vec<String>,
    /// The services.
    pub nodes: Vec<NodeView>,
    /// The storage pools.
    pub pools: Vec<PoolView>,
    /// The back ends.
    pub backends: Vec<BackendView>,
    /// What is deleted, or removed while it is open, and takes space yet.
    pub deletions: Vec<DeletionView>,
    /// How many volumes are how.
    pub volume_counts: VolumeCounts,
    /// What the loss of one node's write buffer would lose.
    pub risks: Vec<RiskView>,
    /// All volumes: who owns them since when, and what they wait for.
    pub volumes: Vec<OwnedView>,
}

/// What `sconce recover` did with a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RecoveredView {
    /// The volume's id.
    pub id: String,
    /// The path that it has now; null where `action` is `failed`.
    pub path: Option<String>,
    /// Its storage pool.
    pub pool: String,
    /// Its size; null where `action` is `failed`.
    pub size_bytes: Option<u64>,
    /// `recovered`, `would recover`, `known` or `failed`.
    pub action: String,
    /// Why it failed, or what a person should know; null otherwise.
    pub note: Option<String>,
}

/// What `sconce import` and `sconce export` copied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CopiedView {
    /// The volume's path.
    pub path: String,
    /// The file.
    pub file: String,
    /// Size of the image.
    pub size_bytes: u64,
    /// Bytes that were not skipped as holes or zeros.
    pub copied_bytes: u64,
}

/// Prints a value as JSON, or what `table` makes of it.
pub fn print<T: Serialize>(
    format: Format,
    value: &T,
    table: impl FnOnce(&T) -> String,
) -> anyhow::Result<()> {
    let text = match format {
        Format::Json => serde_json::to_string_pretty(value)?,
        Format::Table => table(value),
    };
    write_out(text.trim_end())
}

/// Writes a line to standard output; a reader that has gone (`| head`) is no error.
fn write_out(text: &str) -> anyhow::Result<()> {
    use std::io::Write;
    if text.is_empty() {
        return Ok(());
    }
    match writeln!(std::io::stdout(), "{text}") {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        written => Ok(written?),
    }
}

/// Volumes as rows.
#[must_use]
pub fn volume_table(volumes: &[VolumeView]) -> String {
    let mut table = columns(
        &["PATH", "SIZE", "ALLOCATED", "OWNER", "EPOCH", "DTL", "STATE"],
        &[1, 2, 4],
    );
    for volume in volumes {
        table.add_row([
            volume.path.clone(),
            shown(volume.size_bytes),
            volume.allocated_bytes.map_or_else(unknown, shown),
            volume.owner.clone(),
            volume.epoch.to_string(),
            dtl_shown(volume),
            volume.state.clone(),
        ]);
    }
    table.trim_fmt()
}

/// One volume, a line for each thing.
#[must_use]
pub fn volume_lines(volume: &VolumeView) -> String {
    let mut table = columns(&[], &[]);
    let size = format!("{} ({} bytes)", shown(volume.size_bytes), volume.size_bytes);
    let mut line = |name: &str, value: String| {
        table.add_row([name.to_owned(), value]);
    };
    line("path", volume.path.clone());
    line("id", volume.id.clone());
    line(
        "size",
        if volume.live {
            size
        } else {
            format!("{size}, as the registry knows")
        },
    );
    line("allocated", volume.allocated_bytes.map_or_else(unknown, shown));
    line(
        "not stored yet",
        volume.unstored_bytes.map_or_else(unknown, shown),
    );
    line("state", volume.state.clone());
    line("owner", volume.owner.clone());
    line("epoch", volume.epoch.to_string());
    let host = volume.dtl_host.as_ref();
    let host = host.map_or_else(String::new, |host| format!(", at {host}"));
    let shares = volume.dtl_shared_domain.as_ref();
    let shares = shares.map_or_else(String::new, |domain| {
        format!(", in the owner's failure domain {domain}: what loses the one may lose the other")
    });
    line("DTL", format!("{}{host}{shares}", dtl_shown(volume)));
    if let Some(WantedHostView { node, only }) = &volume.dtl_wanted_host {
        let otherwise = if *only {
            "and nowhere else"
        } else {
            "where that can be"
        };
        line("DTL wanted", format!("at {node}, {otherwise}"));
    }
    if volume.pinned {
        line(
            "placement",
            "pinned: moved only where that is asked for".to_owned(),
        );
    }
    if let Some(MovingView { to, why }) = &volume.moving {
        line("moving", format!("to {to}: {}", why_shown(why)));
    }
    if let Some(last) = &volume.last_move {
        let LastMoveView { from, to, at, why } = last;
        line(
            "last move",
            format!("{at}, from {from} to {to}: {}", why_shown(why)),
        );
    }
    line("write access", volume.access.shown());
    line("pool", volume.pool.clone());
    line("SCO size", shown(volume.sco_size_bytes));
    line("history", history_shown(volume));
    line("NBD", volume.nbd_uri.clone().unwrap_or_else(unknown));
    line("mounted at", volume.mount_path.clone().unwrap_or_else(unknown));
    if let Some(parent) = &volume.clone_of {
        line("clone of", parent.clone());
    }
    if let Some(flatten) = &volume.flatten {
        line("flattening", flatten.shown());
    }
    table.trim_fmt()
}

fn history_shown(volume: &VolumeView) -> String {
    let window = |seconds| humantime::format_duration(std::time::Duration::from_secs(seconds));
    match (volume.history_seconds, &volume.history_from) {
        (None, _) => unknown(),
        (Some(0), _) => "off".to_owned(),
        (Some(seconds), Some(from)) => format!("{}, any moment since {from}", window(seconds)),
        (Some(seconds), None) => format!("{}, which has not begun yet", window(seconds)),
    }
}

/// The status as tables.
#[must_use]
pub fn status_tables(status: &StatusView) -> String {
    let mut nodes = columns(
        &[
            "SERVICE",
            "ROLE",
            "VERSION",
            "PID",
            "STATE",
            "VOLUMES",
            "SERVING",
            "BUFFER",
            "NOT STORED",
        ],
        &[5, 6, 7, 8],
    );
    for node in &status.nodes {
        nodes.add_row([
            node.name.clone(),
            node.role.clone(),
            node.version.clone(),
            node.pid.to_string(),
            node.state.clone(),
            node.volumes.map_or_else(unknown, |count| count.to_string()),
            node.serving.map_or_else(unknown, |count| count.to_string()),
            node.buffer_bytes.map_or_else(unknown, shown),
            node.buffer_unstored_bytes.map_or_else(unknown, shown),
        ]);
    }
    let mut backends = columns(
        &[
            "BACK END", "SEEN BY", "STATE", "CAPACITY", "FREE", "REQUESTS", "ERRORS",
        ],
        &[3, 4, 5, 6],
    );
    for backend in &status.backends {
        backends.add_row([
            backend.name.clone(),
            backend.node.clone(),
            backend.state.clone(),
            backend.capacity_bytes.map_or_else(unknown, shown),
            backend.free_bytes.map_or_else(unknown, shown),
            backend.requests.to_string(),
            backend.errors.to_string(),
        ]);
    }
    let problems: String = status
        .problems
        .iter()
        .map(|problem| format!("\n! {problem}"))
        .collect();
    let pools = pool_table(&status.pools);
    let tables = [nodes.trim_fmt(), pools, backends.trim_fmt()];
    let volumes = [
        Some(counts_line(&status.volume_counts)),
        attention_table(&status.volumes),
        risk_table(&status.risks),
        move_table(&status.volumes),
    ];
    let deletions = deletion_table(&status.deletions);
    let volumes = volumes.into_iter().flatten();
    let tables: Vec<String> = tables.into_iter().chain(volumes).chain(deletions).collect();
    let tables = tables.join("\n\n");
    format!("{tables}\n{problems}")
}

/// Pools, as rows.
#[must_use]
pub fn pool_table(pools: &[PoolView]) -> String {
    let mut table = columns(
        &[
            "POOL",
            "PROTECTION",
            "COMPRESSION",
            "ENCRYPTED",
            "BACK ENDS",
            "STATE",
        ],
        &[],
    );
    for pool in pools {
        table.add_row([
            pool.name.clone(),
            pool.protection.clone(),
            pool.compression.clone().unwrap_or_else(unknown),
            yes_or(pool.encrypted, "-"),
            pool.backends.join(", "),
            pool_state_shown(pool),
        ]);
    }
    table.trim_fmt()
}

/// What is wrong with a pool, and whether its objects move: that is not wrong.
fn pool_state_shown(pool: &PoolView) -> String {
    match (pool.settled, pool.state.as_str()) {
        (true, state) => state.to_owned(),
        (false, "ok") => "moving".to_owned(),
        (false, wrong) => format!("{wrong}; moving"),
    }
}

/// A pool, a line for each of its traits.
#[must_use]
pub fn pool_lines(pool: &PoolView) -> String {
    let mut table = columns(&[], &[]);
    let mut add = |name: &str, value: String| {
        table.add_row([name.to_owned(), value]);
    };
    add("pool", pool.name.clone());
    add("protection", pool.protection.clone());
    add("compression", pool.compression.clone().unwrap_or_else(unknown));
    add("encrypted", yes_or(pool.encrypted, "no"));
    for key in &pool.keys {
        add("key", format!("{}, fingerprint {}", key.id, key.fingerprint));
    }
    let weights = pool.placement.iter();
    let weights = weights.map(|placed| format!("{}={}", placed.backend, placed.share.weight_shown()));
    add("back ends", weights.collect::<Vec<_>>().join(", "));
    let leaving = pool.placement.iter().filter(|placed| placed.share.is_leaving());
    let leaving = leaving.map(|placed| match placed.share.lost {
        true => format!("{} (lost)", placed.backend),
        false => placed.backend.clone(),
    });
    let leaving: Vec<String> = leaving.collect();
    if !leaving.is_empty() {
        add("leaving", leaving.join(", "));
    }
    add("state", pool.state.clone());
    table.trim_fmt()
}

/// What was recovered, as rows.
#[must_use]
pub fn recovered_table(volumes: &[RecoveredView]) -> String {
    let mut table = columns(&["VOLUME", "POOL", "PATH", "SIZE", "ACTION", "NOTE"], &[3]);
    for volume in volumes {
        table.add_row([
            volume.id.clone(),
            volume.pool.clone(),
            volume.path.clone().unwrap_or_else(unknown),
            volume.size_bytes.map_or_else(unknown, shown),
            volume.action.clone(),
            volume.note.clone().unwrap_or_default(),
        ]);
    }
    table.trim_fmt()
}

/// A snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SnapshotView {
    /// `/vm1/disk.raw@monday`.
    pub path: String,
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: String,
    /// When it was taken, by the owner's clock (RFC 3339).
    pub created: String,
    /// Size of the volume then.
    pub size_bytes: u64,
    /// Bytes of clusters that were mapped then.
    pub allocated_bytes: u64,
    /// Whether it survives the loss of every router.
    pub synced: bool,
    /// What was written down with it.
    pub metadata: BTreeMap<String, String>,
}

/// Snapshots as rows.
#[must_use]
pub fn snapshot_table(snapshots: &[SnapshotView]) -> String {
    let mut table = columns(&["SNAPSHOT", "CREATED", "SIZE", "ALLOCATED", "SYNCED"], &[2, 3]);
    for snapshot in snapshots {
        table.add_row([
            snapshot.path.clone(),
            snapshot.created.clone(),
            shown(snapshot.size_bytes),
            shown(snapshot.allocated_bytes),
            yes_or(snapshot.synced, "not yet"),
        ]);
    }
    table.trim_fmt()
}

/// One snapshot, a line for each thing.
#[must_use]
pub fn snapshot_lines(snapshot: &SnapshotView) -> String {
    let mut table = columns(&[], &[]);
    let mut line = |name: &str, value: String| {
        table.add_row([name.to_owned(), value]);
    };
    line("snapshot", snapshot.path.clone());
    line("id", snapshot.id.clone());
    line("created", snapshot.created.clone());
    line("size", shown(snapshot.size_bytes));
    line("allocated", shown(snapshot.allocated_bytes));
    line("synced", yes_or(snapshot.synced, "not yet"));
    for (key, value) in &snapshot.metadata {
        // Told apart from the snapshot's own, which a key may be called as.
        line("metadata", format!("{key}={value}"));
    }
    table.trim_fmt()
}

fn yes_or(is_so: bool, otherwise: &str) -> String {
    if is_so { "yes" } else { otherwise }.to_owned()
}

/// The end of the year 9999: a later moment, of a clock that was wrong, has no RFC 3339.
const LAST_MOMENT_US: u64 = 253_402_300_799_999_999;

/// A moment in microseconds since 1970, for people and programs alike.
#[must_use]
pub fn time_shown(micros: u64) -> String {
    let micros = micros.min(LAST_MOMENT_US);
    let moment = std::time::UNIX_EPOCH + std::time::Duration::from_micros(micros);
    humantime::format_rfc3339_seconds(moment).to_string()
}

pub(crate) fn columns(names: &[&str], right: &[usize]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    if !names.is_empty() {
        table.set_header(names);
    }
    for column in right {
        if let Some(column) = table.column_mut(*column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

pub(crate) fn unknown() -> String {
    "-".to_owned()
}

#[cfg(test)]
mod tests {
    use sconce_schemas::access::AccessMode;

    use super::*;

    fn volume() -> VolumeView {
        VolumeView {
            path: "/vm1/disk.raw".into(),
            id: "000102030405060708090a0b0c0d0e0f".into(),
            size_bytes: 10 << 30,
            allocated_bytes: Some(4096),
            owner: "vr-1".into(),
            epoch: 3,
            dtl_state: DtlState::InSync,
            dtl_mode: DtlMode::Sync,
            dtl_host: Some("vr-2".into()),
            dtl_shared_domain: None,
            dtl_wanted_host: None,
            pinned: false,
            moving: None,
            last_move: None,
            nbd_uri: Some("nbd+unix:////vm1/disk.raw?socket=/run/nbd.sock".into()),
            mount_path: Some("/run/mnt/vm1/disk.raw".into()),
            pool: "default".into(),
            sco_size_bytes: 4 << 20,
            unstored_bytes: Some(0),
            state: "serving".into(),
            live: true,
            history_seconds: Some(86_400),
            history_from: Some("2026-11-22T10:15:03Z".to_owned()),
            clone_of: None,
            flatten: None,
            access: AccessView {
                mode: AccessMode::Exclusive,
                holder: Some("hv-1".into()),
                since: Some("2026-11-22T10:15:03Z".into()),
                hand_over_until: None,
            },
        }
    }

    /// The golden form: what programs rely on. A field may be added here, never changed or taken away.
    #[test]
    fn the_json_of_a_volume_is_as_documented() {
        let golden = r#"{
  "path": "/vm1/disk.raw",
  "id": "000102030405060708090a0b0c0d0e0f",
  "size_bytes": 10737418240,
  "allocated_bytes": 4096,
  "owner": "vr-1",
  "epoch": 3,
  "dtl_state": "in_sync",
  "dtl_mode": "sync",
  "dtl_host": "vr-2",
  "nbd_uri": "nbd+unix:////vm1/disk.raw?socket=/run/nbd.sock",
  "mount_path": "/run/mnt/vm1/disk.raw",
  "pool": "default",
  "sco_size_bytes": 4194304,
  "unstored_bytes": 0,
  "state": "serving",
  "live": true,
  "history_seconds": 86400,
  "history_from": "2026-11-22T10:15:03Z",
  "access": {
    "mode": "exclusive",
    "holder": "hv-1",
    "since": "2026-11-22T10:15:03Z",
    "hand_over_until": null
  }
}"#;
        assert_eq!(serde_json::to_string_pretty(&volume()).unwrap(), golden);
    }

    #[test]
    fn what_is_said_of_a_volumes_place_is_shown_where_there_is_something_to_say() {
        let lines = volume_lines(&volume());
        for word in ["failure domain", "DTL wanted", "placement", "moving", "last move"] {
            assert!(!lines.contains(word), "{lines}");
        }
        let moved = VolumeView {
            dtl_shared_domain: Some("rack-1".into()),
            dtl_wanted_host: Some(WantedHostView {
                node: "vr-3".into(),
                only: true,
            }),
            pinned: true,
            moving: Some(MovingView {
                to: "vr-3".into(),
                why: "io".into(),
            }),
            last_move: Some(LastMoveView {
                from: "vr-0".into(),
                to: "vr-1".into(),
                at: "2026-11-22T10:15:03Z".into(),
                why: "balance".into(),
            }),
            ..volume()
        };
        let golden = r#""dtl_shared_domain":"rack-1","dtl_wanted_host":{"node":"vr-3","only":true},"pinned":true,"moving":{"to":"vr-3","why":"io"},"last_move":{"from":"vr-0","to":"vr-1","at":"2026-11-22T10:15:03Z","why":"balance"}"#;
        let json = serde_json::to_string(&moved).unwrap();
        assert!(json.contains(golden), "{json}");
        let lines = volume_lines(&moved);
        for text in [
            "at vr-2, in the owner's failure domain rack-1",
            "at vr-3, and nowhere else",
            "pinned",
            "to vr-3: its IO comes from there",
            "2026-11-22T10:15:03Z, from vr-0 to vr-1: its owner had more volumes",
        ] {
            assert!(lines.contains(text), "{text}: {lines}");
        }
    }

    #[test]
    fn a_snapshots_metadata_is_told_apart_and_a_wrong_clock_is_shown() {
        let lines = snapshot_lines(&SnapshotView {
            path: "/vm1/disk.raw@monday".into(),
            name: "monday".into(),
            id: "0000000000000007".into(),
            created: time_shown(u64::MAX),
            size_bytes: 4096,
            allocated_bytes: 0,
            synced: false,
            metadata: [("synced".to_owned(), "yes".to_owned())].into(),
        });
        let line = |name: &str| {
            let found = lines.lines().find_map(|line| line.trim().strip_prefix(name));
            found.map(|value| value.trim().to_owned()).unwrap_or_default()
        };
        assert_eq!(line("synced"), "not yet");
        assert_eq!(line("metadata"), "synced=yes");
        assert_eq!(line("created"), "9999-12-31T23:59:59Z");
        assert_eq!(time_shown(0), "1970-01-01T00:00:00Z");
    }

    #[test]
    fn what_the_owner_did_not_tell_is_null_or_a_dash() {
        let silent = VolumeView {
            allocated_bytes: None,
            unstored_bytes: None,
            state: "unknown".into(),
            live: false,
            history_seconds: None,
            history_from: None,
            ..volume()
        };
        let json = serde_json::to_value(&silent).unwrap();
        assert!(json["allocated_bytes"].is_null() && json["live"] == false);
        assert!(volume_lines(&silent).contains("as the registry knows"));
        let table = volume_table(&[silent]);
        let mut lines = table
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>());
        assert_eq!(
            lines.next().unwrap(),
            ["PATH", "SIZE", "ALLOCATED", "OWNER", "EPOCH", "DTL", "STATE"]
        );
        let row = lines.next().unwrap();
        assert_eq!(
            row,
            [
                "/vm1/disk.raw",
                "10",
                "GiB",
                "-",
                "vr-1",
                "3",
                "sync",
                "in_sync",
                "unknown"
            ]
        );
    }

    #[test]
    fn the_json_of_the_status_is_as_documented() {
        let status = StatusView {
            healthy: true,
            problems: Vec::new(),
            nodes: vec![NodeView {
                name: "vr-1".into(),
                role: "volume-router".into(),
                version: "0.1.0".into(),
                pid: 7,
                endpoints: vec!["ipc:///run/bus/vr.sock".into()],
                state: "answers".into(),
                volumes: Some(2),
                buffer_bytes: Some(1 << 30),
                buffer_unstored_bytes: Some(0),
                serving: Some(1),
            }],
            pools: vec![PoolView {
                name: "default".into(),
                protection: "replica:1".into(),
                compression: None,
                encrypted: true,
                keys: vec![KeyView {
                    id: 1,
                    fingerprint: "00ff00ff00ff00ff".into(),
                }],
                backends: vec!["local".into()],
                state: "ok".into(),
                placement: vec![PlacementView {
                    backend: "local".into(),
                    share: ShareView {
                        weight: 1,
                        wanted: 1,
                        lost: false,
                    },
                }],
                settled: true,
            }],
            backends: vec![BackendView {
                name: "local".into(),
                node: "sr-1".into(),
                state: "ok".into(),
                capacity_bytes: Some(100),
                free_bytes: None,
                requests: 1,
                errors: 0,
                written_objects: 3,
                written_bytes: 5000,
            }],
            deletions: vec![DeletionView {
                id: "000102030405060708090a0b0c0d0e0f".into(),
                node: "vr-1".into(),
                state: "deleting".into(),
                deleted_objects: Some(7),
            }],
            volume_counts: VolumeCounts {
                total: 2,
                serving: 1,
                waiting: 1,
                without_twin: 2,
                ..VolumeCounts::default()
            },
            risks: vec![RiskView {
                node: "vr-1".into(),
                volumes: 1,
                bytes: 4096,
                unknown_volumes: 0,
                paths: vec!["/a".into()],
            }],
            volumes: vec![OwnedView {
                path: "/a".into(),
                id: "000102030405060708090a0b0c0d0e0f".into(),
                owner: "vr-1".into(),
                epoch: 3,
                owned_since: Some("2026-11-22T10:15:03Z".into()),
                state: "waits".into(),
                state_since: None,
                dtl_mode: "none".into(),
                dtl_state: "off".into(),
                dtl_since: None,
                dtl_host: None,
                dtl_trouble: None,
                dtl_shared_domain: None,
                moving: None,
                last_move: None,
                unstored_bytes: Some(4096),
                at_risk_bytes: Some(4096),
                needs: Some("its owner".into()),
                writer: Some("hv-1".into()),
            }],
        };
        let golden = r#"{"healthy":true,"problems":[],"nodes":[{"name":"vr-1","role":"volume-router","version":"0.1.0","pid":7,"endpoints":["ipc:///run/bus/vr.sock"],"state":"answers","volumes":2,"buffer_bytes":1073741824,"buffer_unstored_bytes":0,"serving":1}],"pools":[{"name":"default","protection":"replica:1","compression":null,"encrypted":true,"keys":[{"id":1,"fingerprint":"00ff00ff00ff00ff"}],"backends":["local"],"state":"ok","placement":[{"backend":"local","weight":1,"wanted":1,"lost":false}],"settled":true}],"backends":[{"name":"local","node":"sr-1","state":"ok","capacity_bytes":100,"free_bytes":null,"requests":1,"errors":0,"written_objects":3,"written_bytes":5000}],"deletions":[{"id":"000102030405060708090a0b0c0d0e0f","node":"vr-1","state":"deleting","deleted_objects":7}],"volume_counts":{"total":2,"serving":1,"starting":0,"waiting":1,"unknown":0,"in_sync":0,"degraded":0,"without_twin":2},"risks":[{"node":"vr-1","volumes":1,"bytes":4096,"unknown_volumes":0,"paths":["/a"]}],"volumes":[{"path":"/a","id":"000102030405060708090a0b0c0d0e0f","owner":"vr-1","epoch":3,"owned_since":"2026-11-22T10:15:03Z","state":"waits","state_since":null,"dtl_mode":"none","dtl_state":"off","dtl_since":null,"dtl_host":null,"dtl_trouble":null,"unstored_bytes":4096,"at_risk_bytes":4096,"needs":"its owner","writer":"hv-1"}]}"#;
        assert_eq!(serde_json::to_string(&status).unwrap(), golden);
        let tables = status_tables(&status);
        assert!(tables.contains("1 GiB") && tables.contains("0e0f"), "{tables}");
    }
}
