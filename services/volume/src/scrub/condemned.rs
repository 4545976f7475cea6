//! Objects that nothing refers to any more, until they are deleted.
//!
//! Keeps: each of them, and since when no stored manifest refers to it.
//! Order: an object is deleted only after the manifest that no longer refers to it, and a while later.
//! Crash: the manifest has the list; the wait begins anew.
//! Knows no storage: the host deletes.

use sconce_schemas::manifest::CondemnedState;

use super::{ScoObject, Scrub};
use crate::event::Effect;
use crate::volume::Volume;

/// Deletions under way at a time.
const DELETES_MAX: usize = 64;
/// Objects that wait to be deleted: with so many nothing is scrubbed until some are gone. They are in every manifest, and a back
/// end that deletes nothing must not make it longer than anybody reads.
pub(super) const CONDEMNED_MAX: usize = 16_384;

/// An object that nothing refers to any more.
#[derive(Debug, Clone, Copy)]
pub(super) struct Condemned {
    pub(super) object: ScoObject,
    /// Since when no stored manifest refers to it.
    pub(super) free_since_us: Option<u64>,
    pub(super) deleting: bool,
}

impl Scrub {
    /// For a manifest.
    pub(crate) fn save(&self) -> Vec<CondemnedState> {
        let state = |condemned: &Condemned| CondemnedState {
            sco: condemned.object.sco,
            epoch: condemned.object.epoch,
            version: condemned.object.version,
        };
        self.condemned.iter().map(state).collect()
    }

    /// A manifest is stored that condemns these.
    pub(crate) fn manifest_stored(&mut self, saved: &[CondemnedState], now_us: u64) {
        for condemned in self.condemned.iter_mut().filter(|c| c.free_since_us.is_none()) {
            let object = condemned.object;
            let is_it = |state: &CondemnedState| {
                (state.sco, state.epoch, state.version) == (object.sco, object.epoch, object.version)
            };
            if saved.iter().any(is_it) {
                condemned.free_since_us = Some(now_us);
            }
        }
    }

    /// Whether it goes by itself.
    pub(crate) fn is_condemned(&self, object: ScoObject) -> bool {
        self.condemned.iter().any(|condemned| condemned.object == object)
    }

    pub(super) fn condemn(&mut self, object: ScoObject) {
        self.condemned.push(Condemned {
            object,
            free_since_us: None,
            deleting: false,
        });
        self.swaps += 1;
    }
}

impl Volume {
    pub(super) fn delete_condemned(&mut self, effects: &mut Vec<Effect>) {
        let (now_us, grace_us) = (self.now_us, self.scrub.policy.grace_us);
        let under_way = self.scrub.condemned.iter().filter(|condemned| condemned.deleting);
        let mut may_begin = DELETES_MAX.saturating_sub(under_way.count());
        for condemned in &mut self.scrub.condemned {
            match &mut condemned.free_since_us {
                // Since a start, or the clock was set back: counted from now on.
                Some(since) if *since == 0 || *since > now_us => *since = now_us,
                _ if may_begin == 0 => {}
                Some(since) if now_us.saturating_sub(*since) >= grace_us && !condemned.deleting => {
                    condemned.deleting = true;
                    may_begin -= 1;
                    effects.push(Effect::DeleteSco {
                        object: condemned.object,
                    });
                }
                _ => {}
            }
        }
    }

    /// The host deleted an object, or could not and will be asked again.
    pub(crate) fn sco_deleted(&mut self, object: ScoObject, done: bool) {
        let condemned = &mut self.scrub.condemned;
        if done {
            condemned.retain(|condemned| condemned.object != object);
        } else {
            condemned
                .iter_mut()
                .filter(|condemned| condemned.object == object)
                .for_each(|condemned| condemned.deleting = false);
        }
    }
}
