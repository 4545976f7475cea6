//! Keeps: the arguments of `sconce inspect` and `sconce check`.
//! Order, crash: nothing; arguments are values.
//! Knows no back end.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueHint};

use crate::args::Format;
use crate::size::parse_bytes;

/// Arguments of `sconce check`.
#[derive(Debug, Args)]
pub struct Check {
    /// Directories of back ends: all of a pool's.
    #[arg(required = true, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub backends: Vec<PathBuf>,
    /// Only this volume, by its id or the path that it had; may be given more than once.
    #[arg(long = "volume", value_name = "VOLUME")]
    pub volumes: Vec<String>,
    /// Read each cluster that something refers to, and compare it with the map's CRC.
    #[arg(long)]
    pub data: bool,
    /// List all orphans.
    #[arg(long, short)]
    pub verbose: bool,
    /// How it is printed.
    #[command(flatten)]
    pub shown: Json,
}

/// How something is printed.
#[derive(Debug, Clone, Args)]
pub struct Json {
    /// The same as --output json.
    #[arg(long)]
    pub json: bool,
}

impl Json {
    /// The format, where --output says `format`.
    #[must_use]
    pub const fn format(&self, format: Format) -> Format {
        if self.json { Format::Json } else { format }
    }
}

/// Where something is, and how it is printed.
#[derive(Debug, Clone, Args)]
pub struct Shown {
    /// Directory of a back end; may be given more than once. An object's file tells it by itself.
    #[arg(long = "backend", short = 'b', value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub backends: Vec<PathBuf>,
    /// How it is printed.
    #[command(flatten)]
    pub json: Json,
}

impl Shown {
    /// The format, where --output says `format`.
    #[must_use]
    pub const fn format(&self, format: Format) -> Format {
        self.json.format(format)
    }
}

/// What to show.
#[derive(Debug, Subcommand)]
pub enum Inspect {
    /// The volumes on back ends: newest manifest, snapshots, ancestors, objects.
    Volume {
        /// Only this one, by its id or the path that it had.
        volume: Option<String>,
        /// Where, and how.
        #[command(flatten)]
        shown: Shown,
    },
    /// A manifest.
    Manifest {
        /// A volume, for its newest one; or a manifest object, or its file.
        #[arg(value_name = "VOLUME|OBJECT")]
        what: String,
        /// Where, and how.
        #[command(flatten)]
        shown: Shown,
    },
    /// Where the content of a volume is; or the nodes of a checkpoint object.
    Map {
        /// A volume; or a map object, or its file.
        #[arg(value_name = "VOLUME|OBJECT")]
        what: String,
        /// The map of this snapshot.
        #[arg(long, value_name = "NAME")]
        snapshot: Option<String>,
        /// From this byte offset on.
        #[arg(long, default_value = "0", value_parser = parse_bytes)]
        address: u64,
        /// So many bytes. Default: to the end.
        #[arg(long, value_parser = parse_bytes)]
        length: Option<u64>,
        /// Where, and how.
        #[command(flatten)]
        shown: Shown,
    },
    /// A SCO: its header, its log, and whether its clusters are what the log says.
    Sco {
        /// A SCO object, or its file.
        object: String,
        /// Where, and how.
        #[command(flatten)]
        shown: Shown,
    },
}
