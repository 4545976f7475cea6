//! Tracepoints: what LTTng can record of each operation, step by step, in every service.
//!
//! Keeps: nothing. Whether a point is on is a word that LTTng writes.
//! Order: the list's, which is that of the path ([`Point::ALL`]).
//! Crash: what was not yet in LTTng's buffers is lost with the process.
//! Knows no service. A point that is off costs one relaxed load and a branch; built without LTTng's headers, nothing.

#[cfg(test)]
mod list;
#[cfg(lttng)]
mod on;

use sconce_schemas::VolumeId;
use sconce_schemas::wire::volume::IoCode;
use sconce_schemas::wire::{Refusal, Remedy};

use crate::OperationId;

include!(concat!(env!("OUT_DIR"), "/points.rs"));

/// What an event says: the same fields for all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Step {
    /// The operation, the same at every step in every service; `NONE` where nobody gave it one.
    pub operation: OperationId,
    /// What it does.
    pub action: Action,
    /// Its volume; all zeros where it is not known at this step, as on the bus.
    pub volume: VolumeId,
    /// Where: a byte of the volume, unless the point's text says otherwise.
    pub address: u64,
    /// Bytes.
    pub length: u64,
    /// How it stands.
    pub status: Status,
}

impl Point {
    /// Whether a session records this point now.
    #[inline(always)]
    #[must_use]
    pub fn is_on(self) -> bool {
        #[cfg(lttng)]
        {
            self.linked().0.state.load(std::sync::atomic::Ordering::Relaxed) != 0
        }
        #[cfg(not(lttng))]
        {
            let _ = self;
            false
        }
    }

    /// Records what `step` says, if the point is on; only then is `step` called.
    #[inline(always)]
    pub fn record(self, step: impl FnOnce() -> Step) {
        if self.is_on() {
            self.write(&step());
        }
    }

    #[cold]
    #[cfg(lttng)]
    fn write(self, step: &Step) {
        let volume = hex(step.volume);
        let (_, record) = self.linked();
        // SAFETY: the function is the shim's for this point; the volume ends with a zero byte and outlives the call.
        unsafe {
            record(
                step.operation.0,
                step.action as u8,
                volume.as_ptr().cast(),
                step.address,
                step.length,
                step.status as u8,
            );
        }
    }

    #[cold]
    #[cfg(not(lttng))]
    fn write(self, _: &Step) {}
}

/// The volume as people write it, with a zero byte behind it; nothing for none.
#[cfg(lttng)]
fn hex(volume: VolumeId) -> [u8; 33] {
    let mut text = [0; 33];
    if volume != VolumeId::default() {
        for (at, byte) in volume.0.iter().enumerate() {
            text[2 * at] = b"0123456789abcdef"[usize::from(byte >> 4)];
            text[2 * at + 1] = b"0123456789abcdef"[usize::from(byte & 15)];
        }
    }
    text
}

/// Lets LTTng reach this process's tracepoints. Call it once, after logging is set up; what keeps LTTng away is said at
/// debug level and is no failure.
pub(crate) fn load() {
    #[cfg(lttng)]
    match on::load() {
        Ok(()) => tracing::debug!(points = Point::ALL.len(), "tracepoints can be recorded"),
        Err(why) => tracing::debug!(
            why,
            "tracepoints cannot be recorded here: liblttng-ust is not usable"
        ),
    }
    #[cfg(not(lttng))]
    tracing::debug!("tracepoints cannot be recorded: built without LTTng's headers (liblttng-ust-dev)");
}

impl From<IoCode> for Action {
    fn from(code: IoCode) -> Self {
        match code {
            IoCode::Read => Action::Read,
            IoCode::Write => Action::Write,
            IoCode::Discard => Action::Discard,
            IoCode::WriteZeroes => Action::WriteZeroes,
            IoCode::Flush => Action::Flush,
            IoCode::Extents => Action::Extents,
            IoCode::Resize => Action::Resize,
            IoCode::Changes => Action::Changes,
        }
    }
}

impl From<&Refusal> for Status {
    fn from(refusal: &Refusal) -> Self {
        match refusal.remedy {
            Remedy::Reroute => Status::Reroute,
            Remedy::Retry => Status::Retry,
            Remedy::Reject => Status::Reject,
            Remedy::Damaged => Status::Damaged,
        }
    }
}

#[cfg(test)]
mod tests;
