//! What people are told of a volume's scrubbing.
//!
//! Keeps, order, crash: nothing; it is counted anew each time the volume is opened.
//! Knows no storage: the work itself is in `background/scrub.rs`.

use sconce_schemas::ByteLen;
use sconce_schemas::wire::volume::ScrubReport;
use sconce_volume::ScrubState;

use super::Serving;

impl Serving {
    /// What scrubbing did and has to do.
    pub(in crate::actor) fn scrub_report(&self) -> ScrubReport {
        let status = self.volume.scrub_status();
        let (at, written, taken_back) =
            (self.owner).help(|help| (help.at.clone(), help.written, help.taken_back));
        ScrubReport {
            state: word(status.state).to_owned(),
            stored: ByteLen(status.stored_bytes),
            dead: ByteLen(status.dead_bytes),
            to_win: ByteLen(status.to_win_bytes),
            won: ByteLen(status.won_bytes),
            objects: status.objects,
            condemned: status.condemned as u64,
            rewritten: status.rewritten,
            removed: status.removed,
            failures: status.failures,
            last_success_us: status.last_success_us,
            last_failure_us: status.last_failure_us,
            writing_at: at,
            helped: written,
            taken_back,
            swept: status.swept,
            last_sweep_us: status.last_sweep_us,
        }
    }
}

const fn word(state: ScrubState) -> &'static str {
    match state {
        ScrubState::Idle => "idle",
        ScrubState::Due => "due",
        ScrubState::Searching => "searching",
        ScrubState::Looking => "looking",
        ScrubState::Sealing => "sealing",
        ScrubState::Writing => "writing",
        ScrubState::Pressed => "pressed",
        ScrubState::Counting => "counting",
        ScrubState::Off => "off",
        ScrubState::Failing => "failing",
    }
}
