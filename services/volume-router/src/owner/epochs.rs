//! The ownerships of a volume that wrote SCOs, put together from all that knows of them.
//!
//! Keeps: nothing.
//! Order: by epoch; an ownership whose first SCO a later one wrote anew is none any more.
//! Crash: nothing.
//! Knows no records beyond their lists.
//!
//! The registry's record has the whole list, unless it was restored from an older state, or made anew from a manifest.
//! Then manifests and the headers in the write buffer know better. Without them SCOs of the newest ownerships would
//! belong to nobody, and acknowledged writes with them.

use sconce_schemas::records::EpochStart;
use sconce_schemas::{Epoch, ScoId};

/// What is known of a volume's ownerships.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Known {
    /// All of them, oldest first.
    pub(super) epochs: Vec<EpochStart>,
    /// Only headers in the write buffer know of the last one: it wrote into this buffer.
    pub(super) last_from_headers: bool,
}

/// Puts together what the record, the manifest that recovery begins with, and the headers in the write buffer say.
///
/// An ownership that neither record nor manifest knows has no SCO that a manifest covers, so none that was taken away
/// from the buffer: its first one is the first that is found.
pub(super) fn known(
    record: &[EpochStart],
    manifest: &[EpochStart],
    headers: impl IntoIterator<Item = (Epoch, ScoId)>,
) -> Known {
    let mut epochs = record.to_vec();
    let missing = |known: &[EpochStart], epoch| known.iter().all(|start| start.epoch != epoch);
    for start in manifest {
        if missing(&epochs, start.epoch) {
            epochs.push(*start);
        }
    }
    let newest = epochs
        .iter()
        .map(|start| start.epoch)
        .max()
        .unwrap_or(Epoch::NONE);
    for (epoch, sco) in headers.into_iter().filter(|(epoch, _)| *epoch > newest) {
        match epochs.iter_mut().find(|start| start.epoch == epoch) {
            Some(start) => start.first_sco = start.first_sco.min(sco),
            None => epochs.push(EpochStart {
                epoch,
                first_sco: sco,
            }),
        }
    }
    epochs.sort_unstable_by_key(|start| start.epoch);
    let mut next = ScoId::MAX.next();
    let mut lasting: Vec<EpochStart> = Vec::with_capacity(epochs.len());
    for start in epochs.into_iter().rev() {
        if start.first_sco < next {
            next = start.first_sco;
            lasting.push(start);
        }
    }
    lasting.reverse();
    Known {
        last_from_headers: lasting.last().is_some_and(|last| last.epoch > newest),
        epochs: lasting,
    }
}

/// Whether a manifest that an ownership stored, and that covers all up to this SCO, is of the log that these ownerships wrote. It is
/// not if it covers what that ownership wrote behind the place where the next one went on: it did not know yet that it was none any
/// more. To begin with that manifest would be to lose what the next one acknowledged.
pub(crate) fn is_of_the_log(epoch: Epoch, covered: ScoId, epochs: &[EpochStart]) -> bool {
    epochs
        .iter()
        .all(|start| start.epoch <= epoch || start.first_sco > covered)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(starts: &[(u64, u64)]) -> Vec<EpochStart> {
        let start = |(epoch, sco): &(u64, u64)| EpochStart {
            epoch: Epoch(*epoch),
            first_sco: ScoId(*sco),
        };
        starts.iter().map(start).collect()
    }

    fn of(record: &[(u64, u64)], manifest: &[(u64, u64)], headers: &[(u64, u64)]) -> Known {
        let headers = headers.iter().map(|(epoch, sco)| (Epoch(*epoch), ScoId(*sco)));
        known(&list(record), &list(manifest), headers)
    }

    #[test]
    fn a_record_that_is_not_old_knows_all() {
        let known = of(&[(1, 1), (3, 9)], &[(1, 1)], &[(1, 8), (3, 9), (3, 10)]);
        assert_eq!(known.epochs, list(&[(1, 1), (3, 9)]));
        assert!(!known.last_from_headers);
        // What the ownership before left behind the end that the next one found is garbage and stays so.
        let known = of(&[(1, 1), (3, 9)], &[], &[(2, 9), (2, 10)]);
        assert_eq!(known.epochs, list(&[(1, 1), (3, 9)]));
    }

    #[test]
    fn an_old_record_is_put_right_by_the_manifest_and_the_headers() {
        let known = of(&[(1, 1)], &[(1, 1), (4, 20)], &[(5, 31), (5, 30), (4, 29)]);
        assert_eq!(known.epochs, list(&[(1, 1), (4, 20), (5, 30)]));
        assert!(known.last_from_headers);
        let known = of(&[], &[(1, 1), (4, 20)], &[]);
        assert_eq!(known.epochs, list(&[(1, 1), (4, 20)]));
        assert!(!known.last_from_headers);
    }

    #[test]
    fn a_manifest_of_an_owner_that_was_displaced_is_not_of_the_log() {
        let epochs = list(&[(1, 1), (5, 10), (6, 12)]);
        let is_of = |epoch, sco, epochs: &[EpochStart]| is_of_the_log(Epoch(epoch), ScoId(sco), epochs);
        assert!(is_of(6, 40, &epochs));
        assert!(is_of(5, 11, &epochs), "what the next one went on from");
        assert!(!is_of(5, 12, &epochs));
        assert!(!is_of(1, 10, &epochs));
        assert!(is_of(5, 12, &epochs[..2]), "nobody wrote after it");
    }

    #[test]
    fn an_ownership_whose_scos_were_written_anew_is_none() {
        // The manifest was written by an ownership that then wrote no SCO that lasted.
        let known = of(&[(1, 1), (3, 9)], &[(1, 1), (2, 9)], &[]);
        assert_eq!(known.epochs, list(&[(1, 1), (3, 9)]));
        let known = of(&[], &[], &[(2, 5), (3, 5), (3, 6)]);
        assert_eq!(known.epochs, list(&[(3, 5)]));
    }
}
