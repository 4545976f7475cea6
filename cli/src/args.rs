//! Keeps: the command line: its words, options and what they may be.
//! Order, crash: nothing; arguments are values.
//! Knows no cluster.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};
use clap_complete::Shell;
use sconce_fs_router::names::{PathError, PoolPath, SnapshotPath};
use sconce_schemas::access::{AccessChange, AccessMode};
use sconce_schemas::records::{Compression, DtlMode, PlacementEntry, Protection, S3Place};
use sconce_schemas::{NodeName, ScoSize, VolumeSize};
use url::Url;

use crate::size::{parse_sco_size, parse_volume_size};

const AFTER_HELP: &str = "\
Examples:
  sconce volume create /vm1/disk.raw --size 10G
  sconce volume list
  sconce import debian.raw /vm1/debian.raw
  sconce export /vm1/debian.raw copy.raw
  sconce snapshot create /vm1/debian.raw@monday
  sconce export /vm1/debian.raw@tuesday tuesday.stream --from monday
  sconce clone /vm1/debian.raw@monday /vm2/debian.raw
  sconce status
  sconce events --since 1h --follow

Without --cluster, the cluster is the one of $SCONCE_CLUSTER, else of run/sconce.toml in this directory or one above
it, else of the checkout that this command was built in. docs/operating/cli.md has the JSON output and exit codes.";

/// Virtual disks on object storage.
#[derive(Debug, Parser)]
#[command(name = "sconce", version, about, after_help = AFTER_HELP, propagate_version = true)]
pub struct Cli {
    /// Client settings of the cluster to talk to.
    #[arg(long, global = true, value_name = "FILE", alias = "settings", value_hint = ValueHint::FilePath)]
    pub cluster: Option<PathBuf>,

    /// How to print what a command found.
    #[arg(
        long,
        short,
        global = true,
        value_enum,
        default_value_t,
        value_name = "FORMAT"
    )]
    pub output: Format,

    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// How results are printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs: documented and stable.
    Json,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create, list, show, resize and delete volumes.
    #[command(subcommand)]
    Volume(Volume),

    /// Create, list, show and delete snapshots, and go back to one.
    #[command(subcommand)]
    Snapshot(Snapshot),

    /// Make a volume that begins as a snapshot; nothing is copied.
    ///
    /// The clone shares what it does not change with its parent, which cannot be deleted meanwhile.
    Clone(CloneFrom),

    /// Make a volume a template, which takes no writes, or a volume again.
    #[command(subcommand)]
    Template(Template),

    /// Show how dead space is given back.
    #[command(subcommand)]
    Scrub(Scrub),

    /// Show what changed between two snapshots, or since a snapshot.
    ///
    /// Each line is a range of bytes and what it is now: data, zeros (allocated), or a hole.
    Diff(Diff),

    /// Copy a raw disk image into a new volume, or apply a backup stream.
    ///
    /// Holes and runs of zeros take no space in the volume. A stream of a whole snapshot makes a volume; one with --from
    /// is the next snapshot of a volume that has the one before. All is stored on the back ends before the command returns.
    Import(Import),

    /// Copy a volume or a snapshot into a raw disk image, or a snapshot into a backup stream.
    ///
    /// What the volume never wrote becomes a hole in the image. A stream that was cut short is continued by the same
    /// command.
    Export(Export),

    /// Check that a backup stream is whole and as it was written.
    Verify(Verify),

    /// List volume-routers, spread volumes over them, and empty one before its machine is stopped.
    #[command(subcommand)]
    Node(Node),

    /// Show the services, pools and back ends, whether they answer, who owns the volumes, what is at risk, and what waits for whom.
    ///
    /// The table lists the volumes that need a look and counts the others; the JSON has all. Exits with 1 when something does not
    /// answer, or a volume is not served or not as safe as it should be.
    Status(Status),

    /// Show what happened to volumes, nodes and back ends, as the services tell it.
    ///
    /// Each service keeps its newest events for as long as it runs. What is not known any more is told as a gap. With --output json
    /// each line is a JSON value.
    Events(Events),

    /// Write names and volume records again from what is on the back ends, after the registry was lost.
    ///
    /// Volumes that the registry knows stay as they are, so it can be run again.
    Recover(Recover),

    /// Show what back ends hold: volumes, manifests, maps, SCOs. Needs no service and no registry; changes nothing.
    #[command(subcommand)]
    Inspect(crate::inspect::Inspect),

    /// Prove volumes on back ends consistent, or say what is lost, damaged or wrong. Needs no service; changes nothing.
    ///
    /// Stop the services first: what changes while it is read cannot be judged. Exits with 0 when all is consistent,
    /// with 1 when it is not, with 2 when it could not be judged.
    Check(crate::inspect::Check),

    /// Create, list, show and remove storage pools, and prepare what nodes share.
    #[command(subcommand)]
    Pool(Pool),

    /// Add, list and remove the directories and buckets that pools are on.
    #[command(subcommand)]
    Backend(Backend),

    /// Print a completion script for a shell.
    ///
    /// For bash: source <(sconce completion bash)
    Completion {
        /// The shell.
        shell: Shell,
    },
}

/// Commands on volumes.
#[derive(Debug, Subcommand)]
pub enum Volume {
    /// Create an empty volume; directories of its path that are missing are made.
    Create(Create),
    /// List volumes.
    #[command(visible_alias = "ls")]
    List {
        /// Only those below this directory.
        #[arg(default_value = "/")]
        directory: PoolPath,
    },
    /// Show one volume.
    Show {
        /// The volume's path.
        path: PoolPath,
    },
    /// Change a volume's size.
    Resize {
        /// The volume's path.
        path: PoolPath,
        /// The new size.
        #[arg(value_parser = parse_volume_size)]
        size: VolumeSize,
        /// Allow a smaller size: what lies beyond is lost.
        #[arg(long)]
        shrink: bool,
    },
    /// Change what a volume keeps, and where it may be.
    #[command(group = clap::ArgGroup::new("what").required(true).multiple(true).args(["history", "placement"]))]
    Set {
        /// The volume's path.
        path: PoolPath,
        /// How far back any moment of it can be had: 24h, 7days, or off.
        #[arg(long, value_parser = parse_window, value_name = "WINDOW")]
        history: Option<HistoryWindow>,
        /// Whether it may be moved without an operator.
        #[arg(long, value_enum)]
        placement: Option<Moves>,
    },
    /// Delete a volume: its name goes at once, its space comes back in time (`sconce status` shows how far that is).
    #[command(visible_alias = "rm")]
    Delete {
        /// The volume's path.
        path: PoolPath,
    },
    /// Wait until all that was written to a volume is on the back ends.
    Sync {
        /// The volume's path.
        path: PoolPath,
    },
    /// Make a clone independent of the volumes that it comes from: what they hold is copied, in the background.
    ///
    /// Its parent, and the snapshot that it was cloned from, can be deleted then. Snapshots of the clone that are older than that need
    /// them as long as they are there. `sconce volume show` tells how far it is.
    Flatten {
        /// The volume's path.
        path: PoolPath,
        /// Return only when it is independent.
        #[arg(long)]
        wait: bool,
    },
    /// Keep a twin of a volume's write buffer on another volume-router, or none.
    ///
    /// `sconce volume show` tells whether it has every acknowledged write.
    #[command(group = clap::ArgGroup::new("what").required(true).multiple(true).args(["mode", "host"]))]
    Dtl {
        /// The volume's path.
        path: PoolPath,
        /// What the twin is waited for.
        #[arg(value_enum)]
        mode: Option<Dtl>,
        /// The volume-router that is to keep it from now on, whenever it can; auto: whichever is best.
        #[arg(long, value_name = "NODE")]
        host: Option<WantedHost>,
        /// Rather no twin than one elsewhere.
        #[arg(long, requires = "host")]
        only: bool,
    },
    /// Show which front end may write a volume, or change that.
    ///
    /// The first that writes may write, and no other, until it is done or its node is gone.
    Access(AccessArguments),
    /// Move a volume to another volume-router, which goes on with everything that is acknowledged. Guests wait for a moment.
    Move {
        /// The volume's path.
        path: PoolPath,
        /// The volume-router that is to own it.
        node: NodeName,
    },
    /// Let another volume-router own a volume whose owner is gone.
    Takeover {
        /// The volume's path.
        path: PoolPath,
        /// The new owner. Default: a running volume-router other than the owner, else the owner itself.
        #[arg(long, value_name = "NODE")]
        to: Option<NodeName>,
        /// Accept the loss of acknowledged writes that are only in the old owner's write buffer.
        #[arg(long)]
        force: bool,
    },
}

/// Commands on volume-routers.
#[derive(Debug, Subcommand)]
pub enum Node {
    /// List the volume-routers: what they own, whose twins they keep, whether they are drained.
    #[command(visible_alias = "ls")]
    List,
    /// Move all of a volume-router's volumes and twins elsewhere, and give it no others.
    ///
    /// It can be stopped, wiped or replaced then. Given again it goes on.
    Drain {
        /// The volume-router.
        node: NodeName,
        /// Accept that volumes which want a twin have none, where no volume-router is left that could keep it.
        #[arg(long)]
        degrade: bool,
    },
    /// Spread the volumes evenly over the volume-routers that are not drained, after one has joined.
    Balance {
        /// Only tell what would be moved.
        #[arg(long)]
        dry_run: bool,
    },
    /// A drained volume-router may be given volumes and twins again.
    Undrain {
        /// The volume-router.
        node: NodeName,
    },
}

/// Commands on snapshots.
#[derive(Debug, Subcommand)]
pub enum Snapshot {
    /// Keep a volume as it is now.
    Create(SnapshotCreate),
    /// List a volume's snapshots, oldest first.
    #[command(visible_alias = "ls")]
    List {
        /// The volume's path.
        path: PoolPath,
    },
    /// Show one snapshot.
    Show {
        /// The snapshot: /vm1/disk.raw@monday.
        path: SnapshotPath,
    },
    /// Delete a snapshot: its name goes at once, its space comes back in time.
    #[command(visible_alias = "rm")]
    Delete(SnapshotDelete),
    /// Make a volume what a snapshot is, or what it was at a moment of its history. Later snapshots stay. Nobody should use
    /// the volume meanwhile.
    Rollback(Rollback),
}

/// Arguments of `sconce snapshot create`.
#[derive(Debug, Args)]
pub struct SnapshotCreate {
    /// The volume and the snapshot's name: /vm1/disk.raw@monday. With --group several, in which *, ? and sets in brackets stand for
    /// parts of names.
    #[arg(required = true, value_name = "PATH@NAME")]
    pub paths: Vec<SnapshotPath>,
    /// Snapshots of several volumes at one instant: '/vm1/*.raw@monday'.
    #[arg(long)]
    pub group: bool,
    /// Something to write down with it; may be given more than once.
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_metadata)]
    pub metadata: Vec<(String, String)>,
    /// Return only when it is on the back ends.
    #[arg(long)]
    pub wait_synced: bool,
    /// Keep what the volume was at a moment of its history, in UTC: 2026-11-22T10:15:03Z.
    #[arg(long, value_name = "TIME", value_parser = parse_moment)]
    pub at: Option<Moment>,
}

/// Arguments of `sconce snapshot delete`.
#[derive(Debug, Args)]
pub struct SnapshotDelete {
    /// The snapshot: /vm1/disk.raw@monday. With --group several, in which *, ? and sets in brackets stand for parts of names.
    #[arg(required = true, value_name = "PATH@NAME")]
    pub paths: Vec<SnapshotPath>,
    /// Snapshots of several volumes: none of them is deleted while one has clones.
    #[arg(long)]
    pub group: bool,
}

/// Arguments of `sconce snapshot rollback`.
#[derive(Debug, Args)]
pub struct Rollback {
    /// The snapshot, or a moment in UTC: /vm1/disk.raw@monday, /vm1/disk.raw@2026-11-22T10:15:03Z.
    pub path: SnapshotPath,
    /// Name of the snapshot that keeps the state before. Default: before-rollback- and a number.
    #[arg(long, value_name = "NAME", conflicts_with = "discard")]
    pub keep_as: Option<String>,
    /// Do not keep the state before.
    #[arg(long)]
    pub discard: bool,
}

/// Arguments of `sconce clone`.
#[derive(Debug, Args)]
pub struct CloneFrom {
    /// The snapshot, or a moment in UTC: /templates/debian.raw@v1, /vm1/disk.raw@2026-11-22T10:15:03Z.
    pub path: SnapshotPath,
    /// The clone's path; directories that are missing are made.
    pub new: PoolPath,
}

/// Commands on scrubbing.
#[derive(Debug, Subcommand)]
pub enum Scrub {
    /// Show what scrubbing does and where, what it won and has to win, and why it does not run where it does not.
    Status {
        /// A volume, or a directory for all volumes in it.
        #[arg(default_value = "/")]
        path: PoolPath,
    },
}

/// Commands on templates.
#[derive(Debug, Subcommand)]
pub enum Template {
    /// The volume takes no writes from now on.
    Set {
        /// The volume's path.
        path: PoolPath,
    },
    /// The volume takes writes again.
    Unset {
        /// The volume's path.
        path: PoolPath,
    },
}

/// A volume, or a snapshot of one: /vm1/disk.raw, /vm1/disk.raw@monday.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    /// The volume.
    pub volume: PoolPath,
    /// The snapshot's name; `None`: the volume as it is.
    pub snapshot: Option<String>,
}

impl fmt::Display for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.snapshot {
            Some(name) => write!(f, "{}@{name}", self.volume),
            None => write!(f, "{}", self.volume),
        }
    }
}

impl FromStr for Root {
    type Err = PathError;

    fn from_str(text: &str) -> Result<Self, PathError> {
        if text.contains('@') {
            let path: SnapshotPath = text.parse()?;
            return Ok(Self {
                volume: path.volume,
                snapshot: Some(path.name),
            });
        }
        Ok(Self {
            volume: text.parse()?,
            snapshot: None,
        })
    }
}

/// Arguments of `sconce diff`.
#[derive(Debug, Args)]
pub struct Diff {
    /// The snapshot to compare with: /vm1/disk.raw@monday; of the same volume, or of one that it is a clone of.
    pub from: SnapshotPath,
    /// What to look at: /vm1/disk.raw@tuesday, or /vm1/disk.raw as it is now.
    pub to: Root,
}

fn parse_metadata(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, _)) if key.starts_with("sconce.") => Err(format!(
            "{key:?}: names that begin with \"sconce.\" are kept for what the command itself writes down"
        )),
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("{text:?} is not KEY=VALUE")),
    }
}

/// Arguments of `sconce volume create`.
#[derive(Debug, Args)]
pub struct Create {
    /// The volume's path: /vm1/disk.raw.
    pub path: PoolPath,
    /// Its size: 10G, 512M, 1TiB.
    #[arg(long, short, value_parser = parse_volume_size)]
    pub size: VolumeSize,
    /// Where it lies.
    #[command(flatten)]
    pub placement: Placement,
    /// How far back any moment of it can be had: 24h, 7days. Default: off.
    #[arg(long, value_parser = parse_window, value_name = "WINDOW")]
    pub history: Option<HistoryWindow>,
}

/// How far back any moment of a volume can be had, in microseconds; 0: it is off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HistoryWindow(pub u64);

/// Shortest and longest window.
const WINDOW_MIN: Duration = Duration::from_secs(1);
const WINDOW_MAX: Duration = Duration::from_secs(3660 * 86_400);

fn parse_window(text: &str) -> Result<HistoryWindow, String> {
    if text == "off" {
        return Ok(HistoryWindow(0));
    }
    let window =
        humantime::parse_duration(text).map_err(|error| format!("{error}; it is a time, as 24h, or off"))?;
    if window < WINDOW_MIN || window > WINDOW_MAX {
        return Err("it is not within 1s and 10years".to_owned());
    }
    Ok(HistoryWindow(
        u64::try_from(window.as_micros()).unwrap_or(u64::MAX),
    ))
}

/// A moment, in microseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment(pub u64);

/// Reads a moment in UTC: 2026-11-22T10:15:03Z, with a fraction of the second if that is wanted.
///
/// # Errors
/// It is none.
pub fn parse_moment(text: &str) -> Result<Moment, String> {
    let wrong =
        |error: &dyn std::fmt::Display| format!("{error}; it is a moment in UTC, as 2026-11-22T10:15:03Z");
    let moment = humantime::parse_rfc3339(text).map_err(|error| wrong(&error))?;
    let since = moment
        .duration_since(std::time::UNIX_EPOCH)
        .map_err(|error| wrong(&error))?;
    Ok(Moment(u64::try_from(since.as_micros()).unwrap_or(u64::MAX)))
}

/// Arguments of `sconce status`.
#[derive(Debug, Args)]
pub struct Status {
    /// Judge only whether the services, pools and back ends answer: what volumes wait for is shown and is no problem.
    #[arg(long)]
    pub services: bool,
}

/// Arguments of `sconce events`.
#[derive(Debug, Args)]
pub struct Events {
    /// Go on with what happens from now on, until the command is ended.
    #[arg(long, short)]
    pub follow: bool,
    /// Only what happened since: 10min ago, or a moment in UTC, as 2026-11-22T10:15:03Z.
    #[arg(long, value_name = "TIME", value_parser = parse_since)]
    pub since: Option<Since>,
    /// Only what happened to this volume.
    #[arg(long, value_name = "PATH")]
    pub volume: Option<PoolPath>,
}

/// Since when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Since {
    /// So long ago.
    Ago(Duration),
    /// A moment.
    At(Moment),
}

fn parse_since(text: &str) -> Result<Since, String> {
    if let Ok(ago) = humantime::parse_duration(text) {
        return Ok(Since::Ago(ago));
    }
    parse_moment(text)
        .map(Since::At)
        .map_err(|error| format!("{error}, nor a time, as 10min"))
}

/// Where a new volume lies.
#[derive(Debug, Args)]
pub struct Placement {
    /// Its storage pool. Default: the pool named `default`, or the only one.
    #[arg(long, value_name = "POOL")]
    pub pool: Option<String>,
    /// Size of its SCOs, 256K to 64M. Default: 4M.
    #[arg(long, value_parser = parse_sco_size, value_name = "SIZE")]
    pub sco_size: Option<ScoSize>,
    /// The volume-router that owns it. Default: the one with the fewest volumes.
    #[arg(long, value_name = "NODE")]
    pub owner: Option<NodeName>,
    /// Keep a twin of its write buffer on another volume-router.
    #[arg(long, value_enum, default_value_t, value_name = "MODE")]
    pub dtl: Dtl,
}

/// What a twin of a volume's write buffer on another volume-router is waited for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Dtl {
    /// There is none: until a write is on the back ends, it is on its owner's disk alone.
    #[default]
    None,
    /// A flush waits for it; a write only where it is too far behind.
    Async,
    /// Every write waits for it: the loss of one node loses nothing that was acknowledged.
    Sync,
}

/// Who is to keep a twin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WantedHost {
    /// Whoever does best.
    Auto,
    /// This volume-router.
    Node(NodeName),
}

impl FromStr for WantedHost {
    type Err = sconce_schemas::DecodeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            name => Ok(Self::Node(name.parse()?)),
        }
    }
}

/// Whether a volume may be moved without an operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Moves {
    /// It may, as the volume-routers' settings say.
    Auto,
    /// It is moved only by `sconce volume move` and `sconce node drain`.
    Pinned,
}

impl From<Dtl> for DtlMode {
    fn from(dtl: Dtl) -> Self {
        match dtl {
            Dtl::None => Self::None,
            Dtl::Async => Self::Async,
            Dtl::Sync => Self::Sync,
        }
    }
}

/// Arguments of `sconce volume access`.
#[derive(Debug, Args)]
pub struct AccessArguments {
    /// The volume's path.
    pub path: PoolPath,
    #[command(flatten)]
    asked: AccessAsked,
    /// For how long another front end may take over: 5m, 30s.
    #[arg(long, value_parser = humantime::parse_duration, default_value = "5m", value_name = "TIME", requires = "hand_over")]
    within: Duration,
}

/// What is asked of a volume's write access.
#[derive(Debug, Args)]
#[group(multiple = false)]
struct AccessAsked {
    /// One front end at a time may write.
    #[arg(long)]
    exclusive: bool,
    /// Any front end may write: for clients that agree among themselves, as a cluster file system does.
    #[arg(long)]
    shared: bool,
    /// The next other front end that writes takes over, once; then writes of the one that has access now are refused.
    #[arg(long)]
    hand_over: bool,
    /// The front end that has access is dead: it is taken from it, and whatever it still sends is refused.
    #[arg(long = "break")]
    broken: bool,
}

impl AccessArguments {
    /// What is to be changed; `None`: nothing.
    #[must_use]
    pub fn change(&self) -> Option<AccessChange> {
        let asked = &self.asked;
        let within_us = u64::try_from(self.within.as_micros()).unwrap_or(u64::MAX);
        let mode = |mode| AccessChange::Mode { mode };
        match (asked.exclusive, asked.shared, asked.hand_over, asked.broken) {
            (true, ..) => Some(mode(AccessMode::Exclusive)),
            (_, true, ..) => Some(mode(AccessMode::Shared)),
            (_, _, true, _) => Some(AccessChange::HandOver { within_us }),
            (_, _, _, true) => Some(AccessChange::Break),
            _ => None,
        }
    }
}

/// Arguments of `sconce import`.
#[derive(Debug, Args)]
pub struct Import {
    /// The raw image, or the stream; - is a stream from standard input.
    #[arg(value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    /// The path of the volume that is made, or that the stream is applied to.
    pub path: PoolPath,
    /// Size of the volume. Default: that of the file; a larger one leaves the rest empty.
    #[arg(long, short, value_parser = parse_volume_size)]
    pub size: Option<VolumeSize>,
    /// Of a stream with --from: what was written to the volume since the snapshot that it begins with is lost.
    #[arg(long)]
    pub discard_changes: bool,
    /// Where it lies.
    #[command(flatten)]
    pub placement: Placement,
}

/// Arguments of `sconce verify`.
#[derive(Debug, Args)]
pub struct Verify {
    /// The stream; - is standard input.
    #[arg(value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
}

/// Arguments of `sconce export`.
#[derive(Debug, Args)]
pub struct Export {
    /// The volume, or one of its snapshots: /vm1/disk.raw, /vm1/disk.raw@monday.
    pub path: Root,
    /// The raw image or stream that is made; - is a stream to standard output.
    #[arg(value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    /// Make a backup stream, which sconce import applies, in this or another pool.
    #[arg(long)]
    pub stream: bool,
    /// Only what changed since this snapshot: monday, or /images/debian.raw@v1 that the volume is a clone of. A stream.
    #[arg(long, value_name = "SNAPSHOT")]
    pub from: Option<String>,
    /// Overwrite the file if it exists.
    #[arg(long)]
    pub force: bool,
}

/// Arguments of `sconce recover`.
#[derive(Debug, Args)]
pub struct Recover {
    /// Only this storage pool. Default: all.
    #[arg(long, value_name = "POOL")]
    pub pool: Option<String>,
    /// Only say what would be written.
    #[arg(long)]
    pub dry_run: bool,
}

/// Commands on storage pools, and on what their nodes share.
#[derive(Debug, Subcommand)]
pub enum Pool {
    /// Create a storage pool; its policy is fixed from then on.
    Create(PoolCreate),
    /// List the storage pools.
    #[command(visible_alias = "ls")]
    List,
    /// Show one storage pool.
    Show {
        /// The pool's name.
        name: NodeName,
    },
    /// Read and check all that is in a storage pool now, and repair what is not good; it is done once in a period anyway.
    ///
    /// `sconce pool show` tells how far it is.
    DeepScrub {
        /// The pool's name.
        name: NodeName,
    },
    /// Give back ends of a storage pool other shares of its objects, or have back ends join it. Objects move while it is in use.
    ///
    /// With a weight of 0 a back end leaves the pool once nothing is on it. `sconce pool show` tells how far it is. The same again,
    /// or other weights, may be given at any time.
    Place {
        /// The pool's name.
        name: NodeName,
        /// Back ends, and their shares of the objects relative to the others'; those that are not named keep theirs.
        #[arg(required = true, value_name = "BACKEND=WEIGHT")]
        shares: Vec<Share>,
    },
    /// Remove a storage pool that no volume is in. Its back ends stay.
    #[command(visible_alias = "rm")]
    Remove {
        /// The pool's name.
        name: NodeName,
    },
    /// Make the pool's certificate authority, or a node's certificate from it.
    ///
    /// The first call makes the authority in DIR. With --node, a certificate for that node is made in DIR/NODE, which
    /// is to be copied to the node; the authority's key stays where it is.
    Init(PoolInit),
}

/// Arguments of `sconce pool init`.
#[derive(Debug, Args)]
pub struct PoolInit {
    /// Where the authority is kept.
    #[arg(value_hint = ValueHint::DirPath)]
    pub dir: PathBuf,
    /// What the authority calls the pool.
    #[arg(long, value_name = "POOL", default_value = "default")]
    pub name: String,
    /// A node that gets a certificate.
    #[arg(long, value_name = "NAME")]
    pub node: Option<NodeName>,
    /// Host name or address at which the node is reached; may be given more than once.
    #[arg(long = "host", value_name = "HOST", requires = "node")]
    pub hosts: Vec<String>,
}

/// A back end's share of the objects of a pool, relative to the others': NAME=WEIGHT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// The back end.
    pub backend: NodeName,
    /// Its weight; 0: none.
    pub weight: u32,
}

impl FromStr for Share {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let right = format!(
            "right would be NAME=WEIGHT, with a weight of 0 to {}",
            PlacementEntry::WEIGHT_MAX
        );
        let Some((backend, weight)) = text.split_once('=') else {
            return Err(format!("it has no weight; {right}"));
        };
        let backend = backend
            .parse::<NodeName>()
            .map_err(|error| format!("{error}; {right}"))?;
        match weight.parse() {
            Ok(weight @ 0..=PlacementEntry::WEIGHT_MAX) => Ok(Self { backend, weight }),
            _ => Err(format!("its weight is {weight:?}; {right}")),
        }
    }
}

impl From<Share> for PlacementEntry {
    fn from(share: Share) -> Self {
        Self {
            backend: share.backend.to_string(),
            weight: share.weight,
        }
    }
}

/// A back end of a pool that is to be made: NAME or NAME=WEIGHT.
fn parse_first_share(text: &str) -> Result<Share, String> {
    if !text.contains('=') {
        let backend = text.parse::<NodeName>().map_err(|error| error.to_string())?;
        return Ok(Share { backend, weight: 1 });
    }
    match text.parse::<Share>()? {
        Share { weight: 0, .. } => Err(format!(
            "with a weight of 0 it takes no objects; right would be 1 to {}",
            PlacementEntry::WEIGHT_MAX
        )),
        share => Ok(share),
    }
}

/// Arguments of `sconce pool create`.
#[derive(Debug, Args)]
pub struct PoolCreate {
    /// The pool's name: 1 to 63 of a-z 0-9 - and .
    pub name: NodeName,
    /// How objects are protected: replica:3, copies on so many back ends; ec:4+2, fragments of which any 4 are enough.
    #[arg(long, value_name = "POLICY")]
    pub protect: Protection,
    /// The back ends, with commas between, and their shares of the objects relative to each other's; left out: 1.
    #[arg(long, required = true, value_delimiter = ',', value_name = "NAME[=WEIGHT],…", value_parser = parse_first_share)]
    pub backends: Vec<Share>,
    /// Compress what is stored, where that wins a tenth: lz4 or zstd.
    #[arg(long, value_name = "HOW")]
    pub compress: Option<Compression>,
    /// Encrypt what is stored, with the newest key that the storage-routers' settings name for the pool.
    #[arg(long)]
    pub encrypt: bool,
}

/// Commands on back ends.
#[derive(Debug, Subcommand)]
pub enum Backend {
    /// Add a directory or a bucket, for all storage-routers. It is empty, or was this back end before.
    Add(Box<BackendAdd>),
    /// List the back ends, and how each storage-router sees them.
    #[command(visible_alias = "ls")]
    List,
    /// Move everything off a back end, which then leaves its pool, while the pool is in use.
    ///
    /// `sconce pool show` tells how far it is; `sconce pool place POOL NAME=WEIGHT` takes it back.
    Drain {
        /// The back end's name.
        name: NodeName,
        /// It is gone for good: what was on it is made again out of the others, and nobody waits for it.
        #[arg(long)]
        lost: bool,
    },
    /// Remove a back end that no pool uses. What is on it stays.
    #[command(visible_alias = "rm")]
    Remove {
        /// The back end's name.
        name: NodeName,
    },
}

/// Arguments of `sconce backend add`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("place").required(true).args(["dir", "s3"]))]
pub struct BackendAdd {
    /// The back end's name: 1 to 63 of a-z 0-9 - and .
    pub name: NodeName,
    /// An absolute path, the same for every storage-router.
    #[arg(long, value_name = "PATH", value_hint = ValueHint::DirPath)]
    pub dir: Option<PathBuf>,
    /// A bucket, or a folder in it: s3://BUCKET/FOLDER at AWS, else https://HOST:PORT/BUCKET/FOLDER.
    #[arg(long, value_name = "URL", value_parser = parse_s3)]
    pub s3: Option<S3Place>,
    /// The region that requests are signed for.
    #[arg(long, value_name = "REGION", conflicts_with = "dir")]
    pub region: Option<String>,
    /// Where the bucket's name is in a request: path or virtual-hosted.
    #[arg(long, value_name = "STYLE", conflicts_with = "dir")]
    pub style: Option<String>,
    /// A file on each storage-router's machine, with the certificates that the server's has to be signed by.
    #[arg(long, value_name = "FILE", conflicts_with = "dir")]
    pub ca: Option<String>,
    /// Where each storage-router finds the access key: environment, file or instance-profile.
    #[arg(long, value_name = "WHERE", conflicts_with = "dir")]
    pub credentials: Option<String>,
    /// The file with the access key, on each storage-router's machine.
    #[arg(long, value_name = "FILE", conflicts_with = "dir")]
    pub credentials_file: Option<String>,
    /// The profile in that file.
    #[arg(long, value_name = "NAME", requires = "credentials_file")]
    pub profile: Option<String>,
}

/// A bucket, by its URL.
fn parse_s3(text: &str) -> Result<S3Place, String> {
    let right = "right would be s3://BUCKET/FOLDER at AWS, else https://HOST:PORT/BUCKET/FOLDER";
    let url = Url::parse(text).map_err(|error| format!("{error}; {right}"))?;
    if !url.username().is_empty() || url.password().is_some() || url.query().is_some() {
        return Err(format!(
            "it has credentials or parameters, and the registry keeps no secrets; {right}, and --credentials for where they are"
        ));
    }
    let host = url.host_str().unwrap_or_default();
    let path = url.path().trim_matches('/');
    let (endpoint, bucket, folder) = match url.scheme() {
        "s3" => (None, host, path),
        "http" | "https" => {
            let (bucket, folder) = path.split_once('/').unwrap_or((path, ""));
            (Some(url.origin().ascii_serialization()), bucket, folder)
        }
        _ => return Err(right.to_owned()),
    };
    if bucket.is_empty() {
        return Err(format!("it names no bucket; {right}"));
    }
    Ok(S3Place {
        bucket: bucket.to_owned(),
        endpoint,
        folder: folder.to_owned(),
        ..S3Place::default()
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn since_is_a_moment_or_a_time() {
        let since = |text| parse_since(text);
        assert_eq!(since("10min"), Ok(Since::Ago(Duration::from_secs(600))));
        assert_eq!(since("1970-01-01T00:00:01Z"), Ok(Since::At(Moment(1_000_000))));
        let error = since("yesterday").unwrap_err();
        assert!(
            error.contains("2026-11-22T10:15:03Z") && error.contains("10min"),
            "{error}"
        );
    }

    #[test]
    fn options_may_stand_anywhere() {
        let cli = parse("sconce volume show /vm1/disk.raw --output json --cluster /run/x.toml").unwrap();
        assert_eq!(
            (cli.output, cli.cluster),
            (Format::Json, Some("/run/x.toml".into()))
        );
        let cli = parse("sconce --settings a.toml volume create /d --size 10G --sco-size 1M").unwrap();
        let Command::Volume(Volume::Create(create)) = cli.command else {
            panic!("{:?}", cli.command)
        };
        assert_eq!(create.size.bytes(), 10 << 30);
        assert_eq!(create.placement.sco_size.map(ScoSize::slots), Some(256));
    }

    #[test]
    fn a_bucket_is_its_url() {
        for (url, endpoint, bucket, folder) in [
            ("s3://pictures", None, "pictures", ""),
            ("s3://pictures/a/b/", None, "pictures", "a/b"),
            (
                "https://s3.example:9000/b",
                Some("https://s3.example:9000"),
                "b",
                "",
            ),
            ("http://10.0.0.7:80/b/f", Some("http://10.0.0.7"), "b", "f"),
        ] {
            let place = parse_s3(url).unwrap();
            assert_eq!(
                (place.endpoint.as_deref(), &*place.bucket, &*place.folder),
                (endpoint, bucket, folder)
            );
        }
    }

    #[test]
    fn a_back_end_has_a_weight_which_a_new_pool_may_leave_out() {
        let share = |backend: &str, weight| Share {
            backend: backend.parse().unwrap(),
            weight,
        };
        let cli = parse("sconce pool create vms --protect replica:2 --backends a,b=2,c=1000000").unwrap();
        let Command::Pool(Pool::Create(create)) = cli.command else {
            panic!("{:?}", cli.command)
        };
        assert_eq!(
            create.backends,
            [share("a", 1), share("b", 2), share("c", 1_000_000)]
        );
        let cli = parse("sconce pool place vms a=0 d=3").unwrap();
        let Command::Pool(Pool::Place { shares, .. }) = cli.command else {
            panic!("{:?}", cli.command)
        };
        assert_eq!(shares, [share("a", 0), share("d", 3)]);
    }

    #[test]
    fn what_is_wrong_is_a_usage_error_that_names_it() {
        for (line, said) in [
            (
                "sconce volume create disk.raw --size 1G",
                "write it as \"/disk.raw\"",
            ),
            ("sconce volume create /disk.raw --size 10GB", "write GiB"),
            ("sconce volume create /disk.raw", "--size <SIZE>"),
            ("sconce volume create /disk@x --size 1G", "kept for snapshots"),
            ("sconce volume resize /disk.raw 65T", "at most 64 TiB"),
            ("sconce volume takeover /disk.raw --to VR_1", "node name"),
            ("sconce snapshot create /disk.raw", "\"/disk.raw@NAME\""),
            ("sconce diff /disk.raw /disk.raw", "\"/disk.raw@NAME\""),
            ("sconce diff /disk.raw@a disk.raw", "write it as \"/disk.raw\""),
            ("sconce snapshot create /disk.raw@..", "snapshot name"),
            (
                "sconce snapshot create /disk.raw@a --metadata reason",
                "is not KEY=VALUE",
            ),
            ("sconce pool init /ca --host 10.0.0.7", "--node"),
            ("sconce pool create vms --protect ec:1+1 --backends a", "ec:K+M"),
            ("sconce pool create vms --protect replica:2", "--backends"),
            (
                "sconce pool create vms --protect replica:1 --backends a --compress gzip",
                "lz4 or zstd",
            ),
            (
                "sconce pool create vms --protect replica:1 --backends a,b=x",
                "its weight is \"x\"; right would be NAME=WEIGHT, with a weight of 0 to 1000000",
            ),
            (
                "sconce pool create vms --protect replica:1 --backends a=0",
                "takes no objects; right would be 1 to 1000000",
            ),
            (
                "sconce pool create vms --protect replica:1 --backends A=1",
                "node name",
            ),
            ("sconce pool place vms", "BACKEND=WEIGHT"),
            (
                "sconce pool place vms a",
                "it has no weight; right would be NAME=WEIGHT",
            ),
            ("sconce pool place vms a=1000001", "its weight is \"1000001\""),
            ("sconce backend drain", "<NAME>"),
            ("sconce backend add a", "--dir"),
            ("sconce backend add a --dir /d --s3 s3://b", "cannot be used with"),
            ("sconce backend add a --dir /d --region x", "cannot be used with"),
            (
                "sconce backend add a --s3 https://id:secret@host/b",
                "keeps no secrets",
            ),
            ("sconce backend add a --s3 https://host", "no bucket"),
            ("sconce backend add a --s3 ftp://host/b", "s3://BUCKET"),
        ] {
            let error = parse(line).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{line}");
            assert!(error.to_string().contains(said), "{line}: {error}");
        }
    }
}
