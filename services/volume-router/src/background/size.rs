//! The volume's size in its registry record, for whoever asks while the owner does not answer.
//!
//! Keeps: nothing.
//! Order: the size is read when it is written, so that the newest counts whichever job comes last.
//! Crash: the record has an older size until the next owner or the next manifest.
//! Knows no engine.

use std::time::Duration;

use super::Shared;
use super::outage::Tried;
use crate::actor::Owner;
use crate::owner::record::note_size;

/// Changes within this time are one: a file that grows with each write costs the registry one commit a second.
const TOGETHER: Duration = Duration::from_secs(1);

/// Runs until the registry has the size, or the owner is owner no more.
pub(super) async fn run(shared: &Shared, owner: &Owner) {
    tokio::time::sleep(TOGETHER).await;
    owner.reads_size();
    let subject = owner.subject();
    let note = || async {
        let own = owner.ownership();
        Tried::from(note_size(&shared.registry, subject.volume, own, || owner.size()).await)
    };
    let noted = owner.outage().endure(
        "noting a size in the registry",
        &subject.path,
        || owner.is_current(),
        note,
    );
    if let Some(Err(refusal)) = noted.await {
        owner.lost(refusal);
    }
}
