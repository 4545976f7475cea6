//! A volume's files in the write buffer.
//!
//! Keeps: for each local SCO its file, whether it is stored, and whether it has appends that are not synced.
//! Order: none.
//! Crash: the files' headers give the table again.
//! Knows no content.

use std::collections::HashMap;
use std::sync::Arc;

use sconce_schemas::sco::ScoHeader;
use sconce_schemas::{Epoch, ScoId};

use crate::device::{FoundSco, ScoFile};

/// One SCO's file.
#[derive(Debug, Clone)]
pub(crate) struct Local {
    /// What its header says.
    pub(crate) header: ScoHeader,
    /// The file.
    pub(crate) file: Arc<ScoFile>,
    /// Its object is on the back ends.
    pub(crate) stored: bool,
    /// It has appends that are not synced.
    unsynced: bool,
}

/// The table.
#[derive(Debug, Default)]
pub(crate) struct Locals {
    scos: HashMap<ScoId, Local>,
    /// SCOs with appends that are not synced: usually the open one alone.
    unsynced: Vec<ScoId>,
}

impl Locals {
    /// Puts a file into the table; gives another that was there for this SCO.
    pub(crate) fn insert(&mut self, header: ScoHeader, file: Arc<ScoFile>, stored: bool) -> Option<Local> {
        let local = Local {
            header,
            file,
            stored,
            unsynced: false,
        };
        self.scos.insert(header.id, local)
    }

    /// Puts a file into the table whose batches a recovery replayed: they were held, but nobody knows whether they
    /// were synced, or whether the last sync of them failed.
    pub(crate) fn insert_recovered(&mut self, header: ScoHeader, file: Arc<ScoFile>) {
        self.insert(header, file, false);
        // What a flush from here on promises includes them.
        self.append_to(header.id);
    }

    /// A SCO's entry.
    pub(crate) fn get(&self, sco: ScoId) -> Option<&Local> {
        self.scos.get(&sco)
    }

    /// The file that a batch goes to; from here on it has something that is not synced.
    pub(crate) fn append_to(&mut self, sco: ScoId) -> Option<&Arc<ScoFile>> {
        let local = self.scos.get_mut(&sco)?;
        if !std::mem::replace(&mut local.unsynced, true) {
            self.unsynced.push(sco);
        }
        Some(&local.file)
    }

    /// The files with appends that are not synced; they count as synced from here on.
    pub(crate) fn take_unsynced(&mut self) -> Vec<Arc<ScoFile>> {
        let scos = &mut self.scos;
        let take = |sco: ScoId| {
            let local = scos.get_mut(&sco)?;
            local.unsynced = false;
            Some(Arc::clone(&local.file))
        };
        self.unsynced.drain(..).filter_map(take).collect()
    }

    /// A SCO that takes no more appends is synced.
    pub(crate) fn synced(&mut self, sco: ScoId) {
        if let Some(local) = self.scos.get_mut(&sco)
            && std::mem::replace(&mut local.unsynced, false)
        {
            self.unsynced.retain(|unsynced| *unsynced != sco);
        }
    }

    /// A SCO's object is on the back ends.
    pub(crate) fn stored(&mut self, sco: ScoId) {
        if let Some(local) = self.scos.get_mut(&sco) {
            local.stored = true;
        }
    }

    /// Takes a SCO out of the table, if it is of this epoch.
    pub(crate) fn remove(&mut self, sco: ScoId, epoch: Epoch) -> Option<Arc<ScoFile>> {
        if self.scos.get(&sco)?.header.epoch != epoch {
            return None;
        }
        self.scos.remove(&sco).map(|local| local.file)
    }

    /// Everything, as the device's start would find it.
    pub(crate) fn into_found(self) -> Vec<FoundSco> {
        let found = |local: Local| FoundSco {
            header: local.header,
            file: local.file,
        };
        self.scos.into_values().map(found).collect()
    }
}
