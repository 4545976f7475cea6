//! The twin's host: what it takes from a stream, and when it gives up what it has.
//!
//! Keeps: the rules of services/volume-router/src/twin/host.rs and of announce.rs.
//! Order: what it reads the record for it does in a later step; an `Attach` that comes later, and a takeover, supersede one that was read for.
//! Crash: see `world`: no stream is known any more, the files stay.
//! Knows the streams that reach it, in any order; what one says, in its order.
//!
//! | step | carried out by |
//! |---|---|
//! | `HostReadsForAttach`, `HostAttaches` | `twin/host.rs` `attach` (with `may_attach`), `attached` |
//! | `HostAppends` | `twin/files.rs` `carry_out` |
//! | `HostDetaches` | `twin/host.rs` `say`, `give_up` |
//! | `HostReadsForSilent`, `HostGivesUp` | `twin/host.rs` `look_for_silent` |
//! | `HostReadsForLeft`, `HostGivesUp` | `announce.rs` `give_up_what_is_over` with `leaves_nothing`, `leaves_no_twin` |

use crate::rules::{Attaching, Planted};
use crate::state::{Doubt, Phase, SCOS, Sco, State, Stream};
use crate::step::{Next, Step};

pub(crate) fn offer(n: u8, next: &mut Next<'_>) {
    let from = next.from;
    let node = from.nodes[usize::from(n)];
    for (at, stream) in (0..).zip(&from.streams) {
        let Some(stream) = stream.filter(|stream| stream.host == n) else {
            continue;
        };
        if stream.asked {
            reads_for_attach(n, at, &stream, next);
        }
        if node.hosts == Some(at) {
            hears(n, at, &stream, next);
        }
    }
    if let Some(at) = node.attach
        && let Some(stream) = from.streams[usize::from(at)]
    {
        attaches(n, at, &stream, next);
    }
    if next.rules.limits.doubts {
        doubts(n, next);
    }
}

fn reads_for_attach(n: u8, at: u8, stream: &Stream, next: &mut Next<'_>) {
    let record = &next.from.record;
    let is_relied_on = record.in_sync.is_some() || record.buffer == Some(next.from.buffer(n));
    let is_of_it = (record.owner, record.epoch) == (stream.owner, stream.epoch);
    let is_named = next.rules.attaching != Attaching::NamesRevision || stream.fresh;
    let may = (is_of_it && !is_relied_on && is_named) || next.rules.lacks(Planted::AttachWithoutRecord);
    next.go(Step::HostReadsForAttach(n, at), |s| {
        s.nodes[usize::from(n)].attach = may.then_some(at);
        for (earlier, other) in s.streams.iter_mut().enumerate() {
            if let Some(other) = other.as_mut().filter(|_| stream.after & (1 << earlier) != 0) {
                other.asked = false;
            }
        }
        if let Some(stream) = &mut s.streams[usize::from(at)] {
            stream.asked = false;
        }
    });
}

fn attaches(n: u8, at: u8, stream: &Stream, next: &mut Next<'_>) {
    let node = &next.from.nodes[usize::from(n)];
    let is_newer = |file: &Sco| file.batches != 0 && file.epoch > stream.epoch;
    let may = node.phase == Phase::Idle && !node.files.iter().any(is_newer);
    let rules = next.rules;
    let is_written = rules.attaching == Attaching::IsWritten;
    next.go(Step::HostAttaches(n, at), |s| {
        s.nodes[usize::from(n)].attach = None;
        if !may {
            return;
        }
        if is_written {
            s.record.stream = Some(at);
            s.record_written(rules);
        }
        s.gives_up(n);
        s.nodes[usize::from(n)].hosts = Some(at);
        let wiped = s.nodes[usize::from(n)].wiped;
        if let Some(stream) = &mut s.streams[usize::from(at)] {
            stream.attached = true;
            stream.wiped = wiped;
        }
    });
}

fn hears(n: u8, at: u8, stream: &Stream, next: &mut Next<'_>) {
    let first = stream.flight & stream.flight.wrapping_neg();
    if first != 0 {
        let keeps_unsynced = next.rules.limits.power_losses > 0;
        next.go(Step::HostAppends(n, at), |s| {
            if let Some(stream) = &mut s.streams[usize::from(at)] {
                stream.flight &= !first;
                stream.held |= first;
            }
            let place = s.batches[usize::try_from(first.trailing_zeros()).unwrap_or_default()];
            let node = &mut s.nodes[usize::from(n)];
            // What comes once the log was replayed is no part of it.
            if matches!(node.phase, Phase::Serving(_)) {
                return;
            }
            let file = &mut node.files[usize::from(place.sco)];
            if file.batches == 0 || file.epoch != place.epoch {
                *file = Sco {
                    epoch: place.epoch,
                    first: place.first,
                    batches: 0,
                };
            }
            file.batches |= first;
            if keeps_unsynced {
                node.unsynced |= first;
            }
        });
    }
    if stream.detach {
        next.go(Step::HostDetaches(n, at), |s| s.gives_up(n));
    }
}

fn doubts(n: u8, next: &mut Next<'_>) {
    let from = next.from;
    let node = &from.nodes[usize::from(n)];
    let is_relied_on = from.relies_on(n);
    let rules = next.rules;
    let writes = rules.attaching == Attaching::IsWritten;
    match (node.doubt, node.hosts) {
        (Some(doubt), _) => next.go(Step::HostGivesUp(n), |s| {
            s.nodes[usize::from(n)].doubt = None;
            let still = match doubt {
                Doubt::Silent(at) => node.hosts == Some(at) && !from.is_used(at),
                Doubt::Left => node.hosts.is_none() && node.phase == Phase::Idle,
            };
            if still {
                if writes {
                    s.record.stream = None;
                    s.record_written(rules);
                }
                s.gives_up(n);
            }
        }),
        (None, Some(at)) if !is_relied_on && !from.is_used(at) => {
            next.go(Step::HostReadsForSilent(n), |s| {
                s.nodes[usize::from(n)].doubt = Some(Doubt::Silent(at));
            });
        }
        (None, None) if node.phase == Phase::Idle && is_over(n, from) => {
            next.go(Step::HostReadsForLeft(n), |s| {
                s.nodes[usize::from(n)].doubt = Some(Doubt::Left);
            });
        }
        _ => {}
    }
}

/// Whether the record says that nobody needs what is left here.
fn is_over(n: u8, from: &State) -> bool {
    let (record, buffer) = (&from.record, from.buffer(n));
    let files = &from.nodes[usize::from(n)].files;
    let newest = files.iter().filter(|file| file.batches != 0).map(|file| file.epoch).max();
    let is_elsewhere = record.buffer.is_some_and(|named| named != buffer);
    newest.is_some_and(|newest| newest <= record.epoch)
        && record.owner != n
        && is_elsewhere
        && record.in_sync != Some(buffer)
}

impl State {
    /// A host's stream is over, and what it had of the volume is nobody's.
    pub(crate) fn gives_up(&mut self, n: u8) {
        let node = &mut self.nodes[usize::from(n)];
        node.hosts = None;
        node.files = [Sco::default(); SCOS];
        node.unsynced = 0;
    }

    /// Whether an owner says things in this stream: it would not be silent.
    fn is_used(&self, at: u8) -> bool {
        let uses = |n: u8| {
            self.owner(n)
                .is_some_and(|owner| owner.stream == at && owner.twin.listens())
        };
        (0..).zip(&self.nodes).any(|(n, _)| uses(n))
    }
}
