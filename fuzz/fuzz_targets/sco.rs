//! Whatever lies where a SCO should be is its header and its batches, or ends it; as it is and with its CRCs made right.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sconce_fuzz::{seal, seal_before, within_memory};
use sconce_schemas::sco::{BATCH_HEADER_LEN, Batch, BatchBuilder, ENTRY_LEN, HEADER_LEN, ScoHeader};

fuzz_target!(|file: &[u8]| {
    let mut sealed = file.to_vec();
    seal_before(&mut sealed, 0, HEADER_LEN - 4);
    read(file, false);
    read(&sealed, true);
});

fn read(file: &[u8], sealed: bool) {
    let Ok(header) = ScoHeader::from_bytes(file) else {
        return;
    };
    assert_eq!(ScoHeader::from_bytes(&header.to_bytes()), Ok(header));
    let mut tlog = file[HEADER_LEN..].to_vec();
    let mut at = 0;
    loop {
        if sealed && let Some(len) = batch_len(&tlog[at..]) {
            seal(&mut tlog[at..at + len], 0, header.salt());
        }
        let area = &tlog[at..];
        let Ok(batch) = within_memory(area, || Batch::from_bytes(area, header.salt())) else {
            return;
        };
        let mut builder = BatchBuilder::default();
        batch.entries.iter().for_each(|entry| builder.push(entry));
        let again = builder.close(header.salt(), batch.seq, batch.first_slot, batch.time_us);
        assert_eq!(Batch::from_bytes(&again, header.salt()).as_ref(), Ok(&batch));
        at += batch.len;
    }
}

/// Length of the batch at the start of `tlog`, where it is all there.
fn batch_len(tlog: &[u8]) -> Option<usize> {
    let count = usize::from(u16::from_le_bytes([*tlog.get(4)?, *tlog.get(5)?]));
    let len = BATCH_HEADER_LEN + count * ENTRY_LEN;
    (len <= tlog.len()).then_some(len)
}
