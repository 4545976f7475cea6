//! Crash points: the closed list of places where a test ends a process, in path order.
//!
//! Keeps: which point is armed, and how many passes it lets through.
//! Order: the list is the order in which a write, then a recovery, and last a deletion passes the points.
//! Crash: that is what it is for.
//! Knows no service.

use std::sync::atomic::{AtomicU32, Ordering};

/// The environment variable that arms a point: `<name>` or `<name>:<nth pass>`, the first pass being 1.
pub const CRASH_ENV: &str = "SCONCE_CRASH_AT";

macro_rules! points {
    ($($(#[$doc:meta])* $point:ident = $name:literal,)+) => {
        /// A place where a process may be ended.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Point {
            $($(#[$doc])* $point,)+
        }

        impl Point {
            /// All points, in path order.
            pub const ALL: &[Point] = &[$(Point::$point,)+];

            /// The point's name, as [`CRASH_ENV`] takes it.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Point::$point => $name,)+
                }
            }
        }
    };
}

points! {
    /// volume-router: a batch is in the open SCO; the engine, whose map has it, does not know that it is held.
    AfterAppend = "after-append",
    /// volume-router: a write is held as its promise says; the acknowledgement has not left.
    BeforeAck = "before-ack",
    /// volume-router: a SCO is closed, its upload not begun.
    AfterScoClosed = "after-sco-closed",
    /// storage-router: an object's bytes are in its temporary file, synced.
    AfterTempWritten = "after-temp-written",
    /// storage-router: the object has its name; the directory is not yet synced.
    AfterRename = "after-rename",
    /// volume-router: a SCO is on the back end, the volume does not know it yet.
    AfterScoUploaded = "after-sco-uploaded",
    /// volume-router: a checkpoint is on the back end, no manifest refers to it.
    AfterCheckpointStored = "after-checkpoint-stored",
    /// volume-router: a manifest is on the back end, the registry does not know it.
    AfterManifestStored = "after-manifest-stored",
    /// registry host: a commit is in the journal, not yet in sled.
    AfterJournal = "after-journal",
    /// registry host: a commit is in sled, its answer has not left.
    AfterApply = "after-apply",
    /// volume-router: the registry has the volume's new record, nothing was recycled.
    AfterRecordUpdated = "after-record-updated",
    /// volume-router: local SCO files are free again.
    AfterRecycle = "after-recycle",
    /// volume-router: what is kept of SCOs was read for a bundle, here or for a neighbour's volume; nothing is put.
    BeforeBundlePut = "before-bundle-put",
    /// volume-router: a bundle is on the back end, the volume's owner does not know it yet.
    AfterBundlePut = "after-bundle-put",
    /// volume-router: a recovery has replayed, and does not serve yet.
    DuringRecovery = "during-recovery",
    /// volume-router: an object of a deleted volume is gone, others are not.
    DuringErasure = "during-erasure",
    /// volume-router: nothing is left of a deleted volume but its record.
    AfterErasure = "after-erasure",
}

/// A value of [`CRASH_ENV`] that arms nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{CRASH_ENV} is {value:?}; right would be one of {}, with :<n> for the nth pass (from 1)",
    Point::ALL.iter().map(|point| point.name()).collect::<Vec<_>>().join(", ")
)]
pub struct CrashError {
    /// The value.
    pub value: String,
}

const UNREAD: u32 = 0;
const UNARMED: u32 = 1;
/// `ARMED + index`: the point with that index is armed.
const ARMED: u32 = 2;

static STATE: AtomicU32 = AtomicU32::new(UNREAD);
static PASSES_LEFT: AtomicU32 = AtomicU32::new(0);

/// Passes a point: ends the process where the environment asks for it, otherwise costs one relaxed load.
#[inline]
pub fn hit(point: Point) {
    if STATE.load(Ordering::Relaxed) != UNARMED {
        pass(point);
    }
}

/// Reads the environment now, so that a wrong value is told at the start of a process rather than at its
/// first point.
///
/// # Errors
/// The value names no point.
pub fn arm_from_env() -> Result<(), CrashError> {
    let state = match std::env::var(CRASH_ENV) {
        Err(_) => UNARMED,
        Ok(value) => {
            let (index, nth) = parse(&value).ok_or(CrashError { value })?;
            PASSES_LEFT.store(nth, Ordering::Relaxed);
            ARMED + index
        }
    };
    STATE.store(state, Ordering::Release);
    Ok(())
}

fn parse(value: &str) -> Option<(u32, u32)> {
    let (name, nth) = match value.split_once(':') {
        Some((name, nth)) => (name, nth.parse().ok().filter(|nth| *nth > 0)?),
        None => (value, 1),
    };
    let index = Point::ALL.iter().position(|point| point.name() == name)?;
    Some((u32::try_from(index).ok()?, nth))
}

#[cold]
fn pass(point: Point) {
    if STATE.load(Ordering::Acquire) == UNREAD
        && let Err(error) = arm_from_env()
    {
        // A misspelt point would make its test pass without testing anything.
        tracing::error!(%error, "wrong environment");
        std::process::exit(2);
    }
    let armed = STATE.load(Ordering::Acquire).checked_sub(ARMED);
    let is_armed = armed.is_some_and(|index| Point::ALL.get(index as usize) == Some(&point));
    if is_armed && PASSES_LEFT.fetch_sub(1, Ordering::Relaxed) == 1 {
        tracing::warn!(point = point.name(), "crash point reached: aborting");
        std::process::abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_parse_with_and_without_a_pass() {
        for (index, point) in Point::ALL.iter().enumerate() {
            let index = u32::try_from(index).unwrap();
            assert_eq!(parse(point.name()), Some((index, 1)));
            assert_eq!(parse(&format!("{}:7", point.name())), Some((index, 7)));
        }
    }

    #[test]
    fn wrong_values_name_themselves_and_the_list() {
        for value in [
            "",
            "nowhere",
            "after-append:0",
            "after-append:x",
            "after-append:-1",
        ] {
            assert_eq!(parse(value), None, "{value:?}");
        }
        let value = "nowhere".to_owned();
        let text = CrashError { value }.to_string();
        assert!(
            text.contains("\"nowhere\"") && text.contains("after-append, before-ack"),
            "{text}"
        );
    }
}
