//! Metadata contexts: `base:allocation`, and `qemu:dirty-bitmap:NAME` for what differs from the snapshot NAME.
//!
//! Keeps: what a client has selected.
//! Order: a selection holds for the export that it was made for, and until the next.
//! Crash: nothing.
//! Knows no socket; owners know the snapshots.

use std::time::Duration;

use sconce_schemas::wire::volume::Since;

use super::negotiation::{Exports, Named, NoExport, OPEN_MAX, PAUSE, START_GRACE};
use super::protocol::handshake::{ContextQuery, OptionReply};
use super::protocol::{BASE_ALLOCATION, BASE_ALLOCATION_ID, DIRTY_BITMAP};
use crate::peers::{Owners, PeerError};
use crate::routing::{SessionHandle, View};

/// How long an owner is waited for by a client that only asks which contexts there are.
const LIST_MAX: Duration = Duration::from_secs(2);
/// Contexts that a client may select.
pub(super) const SELECTED_MAX: usize = 16;

/// A context that was selected, and its id.
pub(super) struct Selected {
    pub(super) id: u32,
    pub(super) kind: ContextKind,
}

pub(super) enum ContextKind {
    /// What is data, zeros and holes.
    Allocation,
    /// What differs from a snapshot: the session that compares.
    Changes(SessionHandle),
}

/// What a client has selected.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Selection {
    /// The export that it is for.
    pub(super) export: String,
    pub(super) allocation: bool,
    /// Names of snapshots.
    pub(super) changes: Vec<String>,
}

impl Selection {
    pub(super) fn len(&self) -> usize {
        self.changes.len() + usize::from(self.allocation)
    }

    /// The contexts, each with its name and its id.
    pub(super) fn named(&self) -> impl Iterator<Item = (u32, String)> {
        let allocation = self
            .allocation
            .then(|| (BASE_ALLOCATION_ID, BASE_ALLOCATION.to_owned()));
        let changes = self.changes.iter().enumerate();
        allocation
            .into_iter()
            .chain(changes.map(|(at, name)| (id_of(at), format!("{DIRTY_BITMAP}{name}"))))
    }
}

/// The id of the context of the snapshot at this place of the selection.
pub(super) fn id_of(at: usize) -> u32 {
    u32::try_from(at).map_or(u32::MAX, |at| BASE_ALLOCATION_ID + 1 + at)
}

/// Whether it is for a listing, which knows wildcards, or to be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum For {
    List,
    Use,
}

impl Exports {
    /// The contexts that a query selects: those of them that there are.
    pub(super) async fn contexts(&self, query: &ContextQuery, what: For) -> Result<Selection, NoExport> {
        let named = self.resolve(&query.name).await?;
        let is_list = what == For::List;
        let all = is_list && query.queries.is_empty();
        let has = |wanted: &str| query.queries.iter().any(|query| query == wanted);
        let allocation = all || has(BASE_ALLOCATION) || (is_list && has("base:"));
        let every = all || (is_list && (has("qemu:") || has(DIRTY_BITMAP)));
        let asked: Vec<&str> = query
            .queries
            .iter()
            .filter_map(|query| query.strip_prefix(DIRTY_BITMAP))
            .filter(|name| !name.is_empty())
            .collect();
        let mut changes = Vec::new();
        if every || !asked.is_empty() {
            changes = self.others(&named, what).await?;
            changes.retain(|name| every || asked.contains(&name.as_str()));
        }
        Ok(Selection {
            export: query.name.clone(),
            allocation,
            changes,
        })
    }

    /// The snapshots that an export can be compared with.
    async fn others(&self, named: &Named, what: For) -> Result<Vec<String>, NoExport> {
        let listed = match self.snapshots(named, what).await {
            Ok(listed) => listed,
            // A listing shows what is known without the owner.
            Err(_) if what == For::List => Vec::new(),
            Err(PeerError::Names(error)) => return Err(error.into()),
            Err(error) => {
                let text = format!("the snapshots of {} are not known now: {error}", named.path);
                let reply = OptionReply::ErrShutdown;
                return Err(NoExport { reply, text });
            }
        };
        let names = listed.into_iter().map(|snapshot| snapshot.name);
        Ok(names
            .filter(|name| named.snapshot.as_ref() != Some(name))
            .collect())
    }

    async fn snapshots(
        &self,
        named: &Named,
        what: For,
    ) -> Result<Vec<sconce_schemas::wire::volume::SnapshotStatus>, PeerError> {
        let owners = Owners::new(self.names.clone(), self.router.identity());
        let deadline = match what {
            For::List => LIST_MAX,
            For::Use => OPEN_MAX,
        };
        loop {
            match owners.snapshots(named.volume, deadline).await {
                Err(PeerError::Absent { .. }) if what == For::Use && self.router.age() < START_GRACE => {
                    tokio::time::sleep(PAUSE).await;
                }
                answer => return answer,
            }
        }
    }
}

/// What a session of a context is on: the export's root, compared with the snapshot.
pub(super) fn view(named: &Named, name: &str) -> View {
    let since = Since {
        volume: None,
        snapshot: name.to_owned(),
    };
    View::changes(named.snapshot.clone(), Some(since))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_context_has_an_id_of_its_own() {
        let selection = Selection {
            export: "/d".to_owned(),
            allocation: true,
            changes: vec!["a".to_owned(), "b".to_owned()],
        };
        let named: Vec<_> = selection.named().collect();
        let wanted = [
            (1, "base:allocation"),
            (2, "qemu:dirty-bitmap:a"),
            (3, "qemu:dirty-bitmap:b"),
        ];
        assert_eq!(named, wanted.map(|(id, name)| (id, name.to_owned())));
        assert_eq!(selection.len(), 3);
    }
}
