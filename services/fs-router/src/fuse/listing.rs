//! Keeps: where the reader of a directory is, and the page of names around that place.
//! Order: names come sorted; one that is made or removed while the directory is read may come or not, others come once.
//! Crash: nothing.
//! Knows no kernel: a place is the number of entries before it.

use super::snapshots::Found;
use crate::names::{Entry, LIST_MAX, Names, NamesError};

/// A directory that is being read: one of the tree, or the snapshots of one.
pub(super) enum OpenDirectory {
    Tree(Listing),
    /// What was found is missing until it is asked for.
    Snapshots(u64, Option<Found>),
}

/// A directory of the tree that is being read.
#[derive(Debug)]
pub(super) struct Listing {
    directory: u64,
    /// Entries before the page.
    before: u64,
    page: Vec<Entry>,
    /// Whether nothing follows the page.
    last: bool,
    started: bool,
}

impl Listing {
    pub(super) fn new(directory: u64) -> Self {
        Self {
            directory,
            before: 0,
            page: Vec::new(),
            last: false,
            started: false,
        }
    }

    /// The entries from the `place`-th on that are at hand, at least one unless there are no more. A place of 0
    /// reads the directory anew.
    pub(super) async fn from(&mut self, names: &Names, place: u64) -> Result<&[Entry], NamesError> {
        if place == 0 || place < self.before {
            *self = Self::new(self.directory);
        }
        loop {
            let skip = usize::try_from(place - self.before).unwrap_or(usize::MAX);
            if skip < self.page.len() || self.last {
                return Ok(self.page.get(skip..).unwrap_or_default());
            }
            self.next_page(names).await?;
        }
    }

    async fn next_page(&mut self, names: &Names) -> Result<(), NamesError> {
        let after = self.page.last().map(|entry| entry.name.clone());
        let page = names.list(self.directory, after.as_deref(), LIST_MAX).await?;
        if self.started {
            self.before += self.page.len() as u64;
        }
        self.started = true;
        self.last = page.len() < LIST_MAX;
        self.page = page;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use sconce_registry::Registry;
    use sconce_runtime::{Chance, Clock};
    use sconce_schemas::records::ROOT_INODE;

    use super::*;
    use crate::names::NewEntry;

    #[tokio::test]
    async fn a_directory_larger_than_a_page_is_read_once_and_can_be_read_again() {
        let names = Names::new(Registry::memory(), Clock::system(), Chance::seeded(1));
        let total = LIST_MAX + 20;
        for n in 0..total {
            names
                .make_directory(ROOT_INODE, &format!("d{n:05}"), NewEntry::DIRECTORY)
                .await
                .unwrap();
        }
        let mut listing = Listing::new(ROOT_INODE);
        for start in [0, 0, 1010, 3] {
            let mut place = start;
            loop {
                let entries = listing.from(&names, place).await.unwrap();
                // As the kernel does: it takes what fits and asks again from there.
                let Some(entry) = entries.first() else { break };
                assert_eq!(entry.name, format!("d{place:05}"));
                place += entries.len().min(7) as u64;
            }
            assert_eq!(place, total as u64);
        }
    }
}
