//! Renewal: the head's trees are stored anew, so that old checkpoints can go.
//!
//! Keeps: how much was stored since the last one, and how far the one under way is.
//! Order: a checkpoint sets the target; from then on no delta is stored on a node before it. A walk lets every node of the map
//! and then of the SCO table be stored again that is before it, some for each checkpoint. At its end the trees need nothing
//! before the target (`Tree::floor`), and what comes from them neither.
//! Crash: begun anew, when as much is stored as makes it worth it. A floor is in the manifest with the tree that has it.
//! Knows no storage. Which objects may go is said by `sweep.rs`.

use sconce_schemas::CheckpointId;
use sconce_schemas::ids::Location;
use sconce_schemas::manifest::{Manifest, RenewalState};

use crate::event::Effect;
use crate::operations::Parked;
use crate::tree::{Missing, Renewed, Value as _};
use crate::volume::Volume;

/// It is worth it once so many times what it stores itself was stored: that bounds what is garbage, and what it costs.
const FACTOR: u64 = 3;
/// Or once so many checkpoints were stored, however small: each is an object.
const CHECKPOINTS_MAX: u64 = 16 << 10;
/// Between two checkpoints nodes are renewed until they take about this part of the map's memory.
const MEMORY_PART: u64 = 8;
/// What a node takes in memory at most, about.
const NODE_BYTES: u64 = 8 << 10;
/// So many are renewed between two checkpoints at least.
const NODES_MIN: u64 = 16;

/// State of a volume's renewals.
#[derive(Debug, Default)]
pub(crate) struct Renewal {
    state: RenewalState,
    walk: Option<Walk>,
}

/// A renewal under way.
#[derive(Debug)]
struct Walk {
    /// Checkpoints before this one are to be needed no more.
    target: CheckpointId,
    at: At,
    /// Bytes that were stored since it began.
    written: u64,
    /// Nodes that may be renewed before the next checkpoint.
    left: u64,
    /// For a node.
    waits: bool,
    /// Until the next tick.
    paused: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    /// In the map, from this number on.
    Map(u64),
    /// In the SCO table.
    Scos(u64),
    /// At the end: the next checkpoint stores what is left.
    End,
    /// It is frozen.
    Frozen,
}

impl Renewal {
    /// As a manifest has it.
    pub(crate) fn restore(manifest: Option<&Manifest>) -> Self {
        Self {
            state: manifest.map_or_else(RenewalState::default, |m| m.renewal),
            walk: None,
        }
    }

    /// For a manifest.
    pub(crate) const fn save(&self) -> RenewalState {
        self.state
    }

    /// A checkpoint's objects are stored.
    pub(crate) fn stored(&mut self, bytes: u64) {
        self.state.written = self.state.written.saturating_add(bytes);
        let Some(walk) = &mut self.walk else { return };
        walk.written = walk.written.saturating_add(bytes);
        if walk.at == At::Frozen {
            self.state = RenewalState {
                written: walk.written,
                renewed: walk.written,
            };
            self.walk = None;
        }
    }

    /// The head is another tree: what was passed is not what it is now.
    pub(crate) fn head_replaced(&mut self) {
        self.walk = None;
    }
}

impl Walk {
    fn wants_turn(&self) -> bool {
        let can_go_on = matches!(self.at, At::Map(_) | At::Scos(_));
        can_go_on && self.left > 0 && !self.waits && !self.paused
    }

    /// Whether it goes on only after a checkpoint.
    fn wants_checkpoint(&self) -> bool {
        self.left == 0 || self.at == At::End
    }
}

impl Volume {
    fn renewal_is_due(&self) -> bool {
        let state = self.renewal.state;
        let map = self.map.count().saturating_mul(u64::from(Location::WIDTH));
        let bytes = state.renewed.max(map).saturating_mul(FACTOR);
        let checkpoints = self.checkpoints.next_id.0.saturating_sub(self.map.floor().0);
        state.written > bytes.max(self.checkpoints.policy.renewal_bytes) || checkpoints > CHECKPOINTS_MAX
    }

    /// A checkpoint is being frozen: before which one no node may be that a delta is stored on.
    pub(crate) fn freeze_renewal(&mut self) -> CheckpointId {
        let left = (self.map_memory / MEMORY_PART / NODE_BYTES).max(NODES_MIN);
        let is_due = self.renewal.walk.is_none() && self.renewal_is_due();
        let target = self.checkpoints.next_id;
        let walk = &mut self.renewal.walk;
        if is_due {
            *walk = Some(Walk {
                target,
                at: At::Map(0),
                written: 0,
                left,
                waits: false,
                paused: false,
            });
        }
        let Some(walk) = walk else {
            return CheckpointId::NONE;
        };
        walk.left = left;
        if walk.at == At::End {
            walk.at = At::Frozen;
        }
        walk.target
    }

    /// Whether ticks are needed.
    pub(crate) fn has_to_renew(&self) -> bool {
        self.renewal.walk.is_some() || self.renewal_is_due()
    }

    pub(crate) fn wants_to_renew(&self) -> bool {
        let is_busy = !self.held.is_empty() || self.log.is_opening();
        !is_busy && self.renewal.walk.as_ref().is_some_and(Walk::wants_turn)
    }

    /// A tick: goes on, unless there is something better to do; sees to a checkpoint where none comes by itself.
    pub(crate) fn renewal_tick(&mut self, pressed: bool) {
        if let Some(walk) = &mut self.renewal.walk {
            walk.paused = pressed;
        }
        let wants_checkpoint = match &self.renewal.walk {
            Some(walk) => walk.wants_checkpoint(),
            None => self.renewal_is_due(),
        };
        let comes_by_itself = self.checkpoints.is_running() || self.last_seq() > self.checkpoints.covered;
        if wants_checkpoint && !pressed && !comes_by_itself {
            self.checkpoints.manifest_due = true;
        }
    }

    /// A turn.
    pub(crate) fn renewal_turn(&mut self, effects: &mut Vec<Effect>) {
        for node in 0..self.checkpoints.policy.renewal_step {
            // One at least, however little memory there is.
            if node > 0 && self.has_no_memory_for_more() {
                if let Some(walk) = &mut self.renewal.walk {
                    walk.paused = true;
                }
                return;
            }
            match self.renew_next() {
                Ok(true) => {}
                Ok(false) => return,
                Err(missing) => {
                    if let Some(walk) = &mut self.renewal.walk {
                        walk.waits = true;
                    }
                    return self.wait(missing, Some(Parked::Renewal), effects);
                }
            }
        }
    }

    /// Whether another node may be renewed in this turn.
    fn renew_next(&mut self) -> Result<bool, Missing> {
        let own = self.own_lineage();
        let Some(walk) = self.renewal.walk.as_mut().filter(|walk| walk.left > 0) else {
            return Ok(false);
        };
        let step = match walk.at {
            At::Map(from) => self.map.renew(from, walk.target, own)?,
            At::Scos(from) => self.scos.renew(from, walk.target, own)?,
            At::End | At::Frozen => return Ok(false),
        };
        match step {
            Renewed::UpTo(next, was_old) => {
                walk.left -= u64::from(was_old);
                walk.at = match walk.at {
                    At::Map(_) => At::Map(next),
                    _ => At::Scos(next),
                };
                Ok(was_old)
            }
            Renewed::All if matches!(walk.at, At::Map(_)) => {
                walk.at = At::Scos(0);
                Ok(true)
            }
            Renewed::All => {
                walk.at = At::End;
                self.map.set_floor(walk.target);
                self.scos.set_floor(walk.target);
                Ok(false)
            }
        }
    }

    /// The node that it waited for is there.
    pub(crate) fn renewal_resumed(&mut self, effects: &mut Vec<Effect>) {
        if let Some(walk) = &mut self.renewal.walk {
            walk.waits = false;
            self.renewal_turn(effects);
        }
    }

    /// The node that it waited for cannot be had.
    pub(crate) fn renewal_failed(&mut self) {
        if let Some(walk) = &mut self.renewal.walk {
            (walk.waits, walk.paused) = (false, true);
        }
    }

    /// Whether the map takes all its memory and cannot let go of any: what a walk stores again has to stay until it is stored,
    /// so a checkpoint comes first.
    pub(crate) fn has_no_memory_for_more(&mut self) -> bool {
        if self.map.resident_bytes() <= self.map_memory || self.let_go_of_nodes() <= self.map_memory {
            return false;
        }
        if !self.checkpoints.is_running() {
            self.checkpoints.manifest_due = true;
        }
        true
    }
}
