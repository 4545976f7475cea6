//! Whether a stored SCO is whole: by its own header, TLog and CRCs, without the file that it came from.
//!
//! Keeps: nothing.
//! Order: none.
//! Crash: nothing.
//! Knows no map.

use sconce_schemas::crc::crc32c;
use sconce_schemas::sco::{Batch, EntryKind, ScoHeader};
use sconce_schemas::{CLUSTER_LEN, ObjectName, ScoSize};

use super::{Shared, Subject, Upload};

/// Checks the stored object of an upload: all that the upload would store is there, and good.
///
/// # Errors
/// It is not, or cannot be read: the text goes on after an "and".
pub(super) async fn is_whole(
    shared: &Shared,
    subject: &Subject,
    name: ObjectName,
    upload: &Upload,
) -> Result<(), String> {
    // One byte more shows that the object is longer.
    let object = shared
        .store
        .get_whole(&subject.pool, name, upload.length.0 + 1)
        .await;
    let bytes = match object {
        Ok(Some(bytes)) => bytes,
        Ok(None) => return Err("there is no stored copy".to_owned()),
        Err(error) => return Err(format!("whether there is a stored copy cannot be told: {error}")),
    };
    let (length, tlog_len) = (upload.length.0, upload.tlog_len.0);
    let fits = ScoHeader::from_bytes(&bytes).ok().filter(|header| {
        (header.volume, header.id, header.epoch) == (subject.volume, upload.sco, upload.epoch)
    });
    let checked = sconce_runtime::blocking(move || {
        fits.is_some_and(|header| bytes.len() as u64 == length && holds(&bytes, &header, tlog_len))
    });
    match checked.await {
        Ok(true) => Ok(()),
        _ => Err("the stored copy is not whole either".to_owned()),
    }
}

/// Whether `tlog_len` bytes of whole batches are in the TLog area, with the clusters that they tell of.
fn holds(bytes: &[u8], header: &ScoHeader, tlog_len: u64) -> bool {
    let index = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX);
    let start = index(ScoSize::HEADER_AREA);
    let Some(mut tlog) = bytes.get(start..start.saturating_add(index(tlog_len))) else {
        return false;
    };
    let mut seq = header.first_batch;
    while !tlog.is_empty() {
        let Ok(batch) = Batch::from_bytes(tlog, header.salt()) else {
            return false;
        };
        let crcs = batch.entries.iter().filter_map(|entry| match entry.kind {
            EntryKind::Write { crc, .. } => Some(crc),
            _ => None,
        });
        let first = index(header.size.slot_offset(batch.first_slot));
        let mut clusters = bytes.get(first..).unwrap_or_default().chunks_exact(CLUSTER_LEN);
        let good = |crc| clusters.next().is_some_and(|cluster| crc32c(cluster) == crc);
        if batch.seq != seq || !crcs.into_iter().all(good) {
            return false;
        }
        seq = seq.next();
        tlog = tlog.get(batch.len..).unwrap_or_default();
    }
    true
}

#[cfg(test)]
mod tests {
    use sconce_schemas::sco::{BatchBuilder, Entry};
    use sconce_schemas::{BatchSeq, ClusterAddress, Epoch, ScoId, Slot, VolumeId};

    use super::*;

    #[test]
    fn every_byte_that_counts_is_checked() {
        let size = ScoSize::new(64).unwrap();
        let header = ScoHeader {
            volume: VolumeId([1; 16]),
            id: ScoId(3),
            epoch: Epoch(2),
            size,
            first_batch: BatchSeq(7),
            synced_below: ScoId(1),
        };
        let index = |offset: u64| usize::try_from(offset).unwrap();
        let mut bytes = vec![0; index(size.slot_offset(Slot(4)))];
        bytes[..64].copy_from_slice(&header.to_bytes());
        let mut end = index(ScoSize::HEADER_AREA);
        for (seq, first) in [(7, 0), (8, 2)] {
            let mut batch = BatchBuilder::default();
            for slot in first..first + 2 {
                let cluster = [u8::try_from(slot).unwrap() + 1; CLUSTER_LEN];
                let at = index(size.slot_offset(Slot(slot)));
                bytes[at..at + CLUSTER_LEN].copy_from_slice(&cluster);
                batch.push(&Entry {
                    kind: EntryKind::Write {
                        address: ClusterAddress(slot.into()),
                        crc: crc32c(&cluster),
                    },
                    session: 0,
                    number: 1,
                    last: true,
                });
            }
            let batch = batch.close(header.salt(), BatchSeq(seq), Slot(first), 0);
            bytes[end..end + batch.len()].copy_from_slice(&batch);
            end += batch.len();
        }
        let tlog_len = end as u64 - ScoSize::HEADER_AREA;
        assert!(holds(&bytes, &header, tlog_len));
        assert!(!holds(&bytes, &header, tlog_len + 32), "a batch more was written");
        assert!(!holds(&bytes[..bytes.len() - 1], &header, tlog_len), "cut off");
        for at in [index(ScoSize::HEADER_AREA) + 9, end - 1, bytes.len() - 1] {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1;
            assert!(!holds(&flipped, &header, tlog_len), "byte {at}");
        }
        let later = ScoHeader {
            first_batch: BatchSeq(8),
            ..header
        };
        assert!(!holds(&bytes, &later, tlog_len));
    }
}
