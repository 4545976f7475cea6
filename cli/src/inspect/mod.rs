//! Keeps: `sconce inspect` and `sconce check`: what back ends hold, without any service and without the registry.
//! Order: arguments are checked before anything is read.
//! Crash: nothing; nothing is ever written.
//! Knows no cluster: it works on back ends' directories.

mod args;
mod tables;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use sconce_inspect::show::{self, ShowError};
use sconce_inspect::subject::Subject;
use sconce_inspect::{Options, Report, Store, Verdict, check};
use sconce_schemas::ObjectName;
use sconce_schemas::object::ObjectKind;

pub use args::{Check, Inspect, Shown};

use crate::args::Format;
use crate::view::print;

/// Exit code where something could not be judged; 1 says that something is wrong.
const NOT_JUDGED: u8 = 2;

/// Runs `sconce check`; gives the exit code.
///
/// # Errors
/// A back end cannot be opened or listed, or there is no such volume: nothing was judged.
pub async fn run_check(command: &Check, format: Format) -> Result<ExitCode> {
    let format = command.shown.format(format);
    let report = judged(command).await?;
    print(format, &report, |report| tables::report(report, command.verbose))?;
    Ok(match report.verdict {
        Verdict::Consistent => ExitCode::SUCCESS,
        Verdict::Inconsistent => ExitCode::FAILURE,
        Verdict::Unknown => ExitCode::from(NOT_JUDGED),
    })
}

/// The exit code of a check that could not be made.
#[must_use]
pub fn not_judged(error: &anyhow::Error) -> ExitCode {
    eprintln!("sconce: {error:#}");
    ExitCode::from(NOT_JUDGED)
}

async fn judged(command: &Check) -> Result<Report> {
    let store = Store::open(&command.backends)?;
    let mut volumes = Vec::new();
    for asked in &command.volumes {
        volumes.push(show::find(&store, asked).await?.id);
    }
    let options = Options {
        volumes,
        data: command.data,
        claims_max: None,
    };
    Ok(check(&store, &options).await?)
}

/// Runs `sconce inspect …`.
///
/// # Errors
/// A back end cannot be opened or listed, or what is to be shown is not there or not readable.
pub async fn run(command: &Inspect, format: Format) -> Result<()> {
    match command {
        Inspect::Volume { volume, shown } => {
            let (store, format) = (open(shown, None)?, shown.format(format));
            let found = match volume {
                None => show::volumes(&store).await?,
                Some(asked) => {
                    let subject = show::find(&store, asked).await?;
                    vec![show::volume(&store, &subject).await]
                }
            };
            print(format, &found, |found| tables::volumes(found))
        }
        Inspect::Manifest { what, shown } => {
            let (store, subject, named) = subject(shown, what).await?;
            check_kind(named, ObjectKind::Manifest)?;
            let found = show::manifest(&store, &subject, named).await?;
            print(shown.format(format), &found, tables::manifest)
        }
        Inspect::Map {
            what,
            snapshot,
            address,
            length,
            shown,
        } => {
            let (store, subject, named) = subject(shown, what).await?;
            check_kind(named, ObjectKind::Map)?;
            if let Some(name) = named {
                let found = show::checkpoint(&store, &subject, name).await?;
                return print(shown.format(format), &found, tables::checkpoint);
            }
            let range = *address..length.map_or(u64::MAX, |length| address.saturating_add(length));
            let found = show::map(&store, &subject, snapshot.as_deref(), range).await?;
            print(shown.format(format), &found, tables::map)
        }
        Inspect::Sco { object, shown } => {
            let (store, subject, named) = subject(shown, object).await?;
            check_kind(named, ObjectKind::Sco)?;
            let Some(name) = named else {
                bail!("{object} is no object: give its name, or the path of its file");
            };
            let found = show::sco(&store, &subject, name).await?;
            print(shown.format(format), &found, tables::sco)
        }
    }
}

/// The back ends, and the volume that is meant by its id, its path, one of its objects, or the file of one.
async fn subject(shown: &Shown, what: &str) -> Result<(Store, Subject, Option<ObjectName>)> {
    let Some((name, root)) = show::object(what) else {
        let store = open(shown, None)?;
        let subject = show::find(&store, what).await?;
        return Ok((store, subject, None));
    };
    let store = open(shown, root)?;
    let subject = Subject::open(&store, name.volume())
        .await
        .map_err(ShowError::from)?;
    Ok((store, subject, Some(name)))
}

fn open(shown: &Shown, root: Option<PathBuf>) -> Result<Store> {
    let mut backends = shown.backends.clone();
    if backends.is_empty() {
        backends.extend(root);
    }
    if backends.is_empty() {
        bail!(
            "which back end? Give its directory with --backend DIR, more than once where a pool has several"
        );
    }
    Store::open(&backends).context("nothing is shown")
}

fn check_kind(named: Option<ObjectName>, wanted: ObjectKind) -> Result<()> {
    match named {
        Some(name) if name.kind() != wanted => bail!(
            "{name} is shown by `sconce inspect {}`, not by `sconce inspect {}`",
            name.kind().as_str(),
            wanted.as_str()
        ),
        _ => Ok(()),
    }
}
