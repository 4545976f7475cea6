//! Which of the two copies is right, when they are compared at open.
//!
//! Keeps: the rules.
//! Order: the journal is written before sled, so that the journal of a healthy store is never behind.
//! Crash: between the two writes sled lacks the newest commit; everything else that differs is damage.
//! Knows no files: it is told what they hold.

use sconce_schemas::wire::registry::Revision;

use super::log::LogRead;
use crate::image::Image;

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing was ever stored.
    Fresh,
    /// Both hold the same.
    Agree,
    /// sled holds what the log held some commits ago.
    CopyBehind {
        /// How many.
        commits: u64,
    },
    /// The log is right; sled is damaged or gone.
    RebuildCopy {
        /// What is wrong with it.
        why: String,
    },
    /// sled is right; the log is damaged or gone.
    RewriteLog {
        /// What is wrong with it.
        why: String,
    },
}

/// Judges. `copy` is what sled holds: nothing, an image that is whole, or what is wrong with it.
///
/// # Errors
/// Neither holds everything that is known to have been stored: an older state would break what was promised (an
/// epoch that was given out would be given out again), so a person has to decide.
pub(super) fn judge(log: &LogRead, copy: Result<Option<&Image>, &str>) -> Result<Verdict, String> {
    match (log, copy) {
        (LogRead::Usable(logged), Ok(Some(copied))) => {
            let (log_at, copy_at) = (logged.image.revision(), copied.revision());
            if copy_at > log_at {
                let why = format!("the journal ends at revision {log_at}, sled has {copy_at}");
                return Ok(Verdict::RewriteLog { why });
            }
            if logged.digests.get(&copy_at) != Some(&copied.digest()) {
                let why = format!("sled's content at revision {copy_at} is not that of the journal");
                return Ok(Verdict::RebuildCopy { why });
            }
            Ok(match log_at.0 - copy_at.0 {
                0 => Verdict::Agree,
                commits => Verdict::CopyBehind { commits },
            })
        }
        // A first start that was cut off before sled was built.
        (LogRead::Usable(logged), Ok(None)) if logged.image.revision() == Revision::ABSENT => {
            Ok(Verdict::Fresh)
        }
        (LogRead::Usable(_), Ok(None)) => Ok(Verdict::RebuildCopy {
            why: "sled is gone".to_owned(),
        }),
        (LogRead::Usable(_), Err(why)) => Ok(Verdict::RebuildCopy { why: why.to_owned() }),
        (LogRead::Absent, Ok(copied)) => Ok(match copied {
            Some(image) if image.revision() > Revision::ABSENT => Verdict::RewriteLog {
                why: "the snapshot and the journal are gone".to_owned(),
            },
            _ => Verdict::Fresh,
        }),
        (LogRead::Absent, Err(damage)) => {
            Err(format!("the snapshot and the journal are gone; sled: {damage}"))
        }
        (LogRead::Damaged { newest, why, .. }, Ok(Some(copied))) if copied.revision() >= *newest => {
            Ok(Verdict::RewriteLog { why: why.clone() })
        }
        (LogRead::Damaged { newest, why, .. }, copied) => {
            let sled = match copied {
                Ok(Some(image)) => format!("ends at revision {}", image.revision()),
                Ok(None) => "is gone".to_owned(),
                Err(damage) => damage.to_owned(),
            };
            Err(format!("{why}; revision {newest} was stored; sled {sled}"))
        }
    }
}
