//! Checkpoint objects: what they hold, whoever refers to it.
//!
//! Keeps: nothing.
//! Order: nodes as the index has them.
//! Crash: nothing.
//! Knows no trees.

use sconce_schemas::ObjectName;
use sconce_schemas::checkpoint::decode_index;
use sconce_schemas::wire::storage::OBJECT_BYTES_MAX;

use crate::report::ProblemKind;
use crate::store::Store;
use crate::subject::{Spot, Subject, kind_of};

/// Reads a checkpoint object of this volume whole; what is wrong with it is told.
pub(crate) async fn check(store: &Store, subject: &mut Subject, name: ObjectName) {
    let spot = Spot::of("checkpoint").object(name);
    let Some(copies) = subject.maps.get(&name).cloned() else {
        return;
    };
    let answers = store.read(name, &copies, 0, OBJECT_BYTES_MAX).await;
    let Some(object) = subject.take(store, &spot, answers) else {
        return;
    };
    if let Err(error) = decode_index(subject.id, &object) {
        subject.tell(kind_of(&error), &spot, error);
        return;
    }
    if let Some(wrong) = wrong_header(name, &object) {
        subject.tell(ProblemKind::Mismatch, &spot, wrong);
    }
}

/// What in the header does not fit the name. (`decode_index` has looked at its length and its CRC.)
fn wrong_header(name: ObjectName, object: &[u8]) -> Option<String> {
    let word = |at: usize| {
        let bytes = object.get(at..)?.first_chunk::<8>()?;
        Some(u64::from_le_bytes(*bytes))
    };
    let ObjectName::Map { volume, id, epoch } = name else {
        return None;
    };
    let found = (object.get(8..24), word(24), word(32));
    let due = (Some(volume.0.as_slice()), Some(id.0), Some(epoch.0));
    (found != due).then(|| "its header is that of another checkpoint".to_owned())
}
