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

#[cfg(test)]
mod tests {
    use sconce_schemas::registry_log::{StoredChange, StoredCommit};

    use super::*;
    use crate::store::log::Logged;

    /// The image after each of `count` commits, the empty one first.
    fn images(count: u64, value: u8) -> Vec<Image> {
        let mut image = Image::default();
        let mut images = vec![image.clone()];
        for revision in 1..=count {
            let change = StoredChange {
                key: format!("k{}", revision % 3),
                value: Some(vec![value; 3]),
                lease: None,
            };
            image.apply(&StoredCommit {
                revision: Revision(revision),
                changes: vec![change],
            });
            images.push(image.clone());
        }
        images
    }

    fn log_with(images: &[Image], snapshot: usize, last: usize) -> LogRead {
        let digests = images[snapshot..=last]
            .iter()
            .map(|image| (image.revision(), image.digest()))
            .collect();
        LogRead::Usable(Logged::of(images[last].clone(), digests))
    }

    fn damaged_log(newest: u64) -> LogRead {
        LogRead::Damaged {
            generation: 2,
            newest: Revision(newest),
            why: "snapshot damaged".to_owned(),
        }
    }

    #[test]
    fn every_place_of_a_crash_and_every_difference() {
        let ours = images(9, 1);
        let others = images(9, 2);
        for log_at in 0..=9 {
            for copy_at in 0..=9 {
                let log = log_with(&ours, 4.min(log_at), log_at);
                let same = judge(&log, Ok(Some(&ours[copy_at]))).unwrap();
                let wanted_behind = (log_at - copy_at.min(log_at)) as u64;
                match same {
                    Verdict::Agree => assert_eq!(log_at, copy_at),
                    Verdict::CopyBehind { commits } => {
                        assert_eq!((commits, copy_at < log_at), (wanted_behind, true))
                    }
                    // Before the snapshot nothing tells whether sled was right then.
                    Verdict::RebuildCopy { .. } => assert!(copy_at < 4 && copy_at < log_at),
                    Verdict::RewriteLog { .. } => assert!(copy_at > log_at),
                    Verdict::Fresh => panic!("{log_at} {copy_at}"),
                }
                let other = judge(&log, Ok(Some(&others[copy_at]))).unwrap();
                let trusts_the_log = matches!(other, Verdict::RebuildCopy { .. });
                assert!(
                    trusts_the_log || copy_at == 0 || copy_at > log_at,
                    "{log_at} {copy_at} {other:?}"
                );
            }
        }
    }

    #[test]
    fn one_good_copy_is_enough_and_none_is_told() {
        let ours = images(9, 1);
        let log = log_with(&ours, 4, 9);
        assert!(matches!(judge(&log, Ok(None)), Ok(Verdict::RebuildCopy { .. })));
        assert!(matches!(judge(&log, Err("broken")), Ok(Verdict::RebuildCopy { why }) if why == "broken"));
        for copy in [&ours[9], &ours[8]] {
            let verdict = judge(&damaged_log(8), Ok(Some(copy)));
            assert!(matches!(verdict, Ok(Verdict::RewriteLog { .. })), "{verdict:?}");
        }
        assert!(matches!(
            judge(&LogRead::Absent, Ok(Some(&ours[9]))),
            Ok(Verdict::RewriteLog { .. })
        ));
        for (log, copy) in [
            (damaged_log(8), Ok(Some(&ours[7]))),
            (damaged_log(0), Ok(None)),
            (damaged_log(0), Err("broken")),
            (LogRead::Absent, Err("broken")),
        ] {
            assert!(judge(&log, copy).is_err(), "{log:?} {copy:?}");
        }
    }

    #[test]
    fn a_first_start_that_was_cut_off_is_a_first_start() {
        let empty = Image::default();
        let log = log_with(std::slice::from_ref(&empty), 0, 0);
        assert_eq!(judge(&LogRead::Absent, Ok(None)), Ok(Verdict::Fresh));
        assert_eq!(judge(&LogRead::Absent, Ok(Some(&empty))), Ok(Verdict::Fresh));
        assert_eq!(judge(&log, Ok(None)), Ok(Verdict::Fresh));
        assert_eq!(judge(&log, Ok(Some(&empty))), Ok(Verdict::Agree));
    }
}
