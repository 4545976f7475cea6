//! The twin's host: what it takes from a stream, and when it gives up what it has.
//!
//! Keeps: the rules of services/volume-router/src/twin/host.rs and of announce.rs.
//! Order: what it reads the record for it does in a later step; an `Attach` that comes later, and a takeover, supersede one that the
//! record was read for.
//! Crash: see `world`: no stream is known any more, the files stay.
//! Knows the streams that reach it, in any order; what one says, in its order.
//!
//! | step | carried out by |
//! |---|---|
//! | `HostReadsForAttach`, `HostAttaches` | `twin/host.rs` `attach` (with `may_attach`), `attached` |
//! | `HostAppends` | `twin/files.rs` `carry_out` |
//! | `HostDetaches` | `twin/host.rs` `say`, `give_up` |
//! | `HostReadsRecord`, `HostGivesUp` | `twin/host.rs` `look_for_silent`; `announce.rs` `give_up_what_is_over` |
//! | `StreamBreaks` | `twin/host.rs` `broken`: the files stay |

use crate::rules::{Planted, Streams};
use crate::state::{Doubt, Phase, Proof, SCOS, Sco, State, Stream};
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
    let may = (is_of_it && !is_relied_on) || next.rules.lacks(Planted::AttachWithoutRecord);
    next.go(Step::HostReadsForAttach(n, at), |s| {
        s.nodes[usize::from(n)].attach = may.then_some(at);
        if let Some(stream) = &mut s.streams[usize::from(at)] {
            stream.asked = false;
        }
    });
}

fn attaches(n: u8, at: u8, stream: &Stream, next: &mut Next<'_>) {
    let node = &next.from.nodes[usize::from(n)];
    let is_newer = |file: &Sco| file.batches != 0 && file.epoch > stream.epoch;
    let may = node.phase == Phase::Idle && !node.files.iter().any(is_newer);
    let supersedes = match (next.rules.streams, next.rules.planted) {
        (Streams::InRecord, _) | (_, Some(Planted::AttachOutOfOrder | Planted::AttachWithoutRecord)) => 0,
        _ => stream.after,
    };
    let rules = next.rules;
    next.go(Step::HostAttaches(n, at), |s| {
        s.nodes[usize::from(n)].attach = None;
        if !may {
            return;
        }
        if rules.streams == Streams::InRecord {
            s.record.stream = Some(at);
            s.record_written(rules);
        }
        s.gives_up(n);
        let node = &mut s.nodes[usize::from(n)];
        node.hosts = Some(at);
        if !rules.lacks(Planted::GiveUpBehindAttach) {
            node.doubt = None;
        }
        node.kept_for = stream.epoch;
        let (wiped, boot) = (node.wiped, node.boot);
        if let Some(stream) = &mut s.streams[usize::from(at)] {
            stream.attached = true;
            (stream.wiped, stream.boot) = (wiped, boot);
        }
        // They are refused from here on.
        for (earlier, other) in s.streams.iter_mut().enumerate() {
            if let Some(other) = other.as_mut().filter(|_| supersedes & (1 << earlier) != 0) {
                other.asked = false;
            }
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
    let has_files = newest_epoch(&node.files).is_some() || next.rules.lacks(Planted::GiveUpBehindAttach);
    let proof = Proof {
        epoch: from.record.epoch,
        elsewhere: from.record.in_sync.is_some(),
    };
    if node.hosts.is_some() {
        next.go(Step::StreamBreaks(n), |s| s.nodes[usize::from(n)].hosts = None);
    }
    let mut read = |doubt| {
        next.go(Step::HostReadsRecord(n), |s| {
            s.nodes[usize::from(n)].doubt = Some(doubt)
        });
    };
    match (node.doubt, node.hosts) {
        (None, Some(at)) if !from.relies_on(n) && !from.is_used(at) => read(Doubt::Silent(at, proof)),
        (None, None) if has_files && is_anothers(n, from) => read(Doubt::Left(proof)),
        (Some(doubt), _) => gives_up(n, doubt, next),
        _ => {}
    }
}

fn gives_up(n: u8, doubt: Doubt, next: &mut Next<'_>) {
    let from = next.from;
    let node = &from.nodes[usize::from(n)];
    let (is_still, epoch, proof) = match doubt {
        Doubt::Silent(at, proof) => {
            let epoch = from.streams[usize::from(at)].map(|stream| stream.epoch);
            (node.hosts == Some(at) && !from.is_used(at), epoch, proof)
        }
        Doubt::Left(proof) => {
            let is_still = node.hosts.is_none() && node.phase == Phase::Idle;
            let epoch = match next.rules.lacks(Planted::GiveUpByHeaders) {
                true => newest_epoch(&node.files),
                false => Some(node.kept_for),
            };
            (is_still, epoch, proof)
        }
    };
    let is_of_it = epoch.is_some_and(|epoch| epoch == proof.epoch);
    let is_earlier = epoch.is_some_and(|epoch| epoch < proof.epoch);
    let rules = next.rules;
    let by_record = rules.streams == Streams::InRecord;
    let may_go =
        by_record || is_earlier || (is_of_it && (proof.elsewhere || rules.lacks(Planted::GiveUpAsRead)));
    next.go(Step::HostGivesUp(n), |s| {
        s.nodes[usize::from(n)].doubt = None;
        if is_still && may_go {
            if by_record {
                s.record.stream = None;
                s.record_written(rules);
            }
            s.gives_up(n);
        }
    });
}

fn newest_epoch(files: &[Sco]) -> Option<u8> {
    files
        .iter()
        .filter(|file| file.batches != 0)
        .map(|file| file.epoch)
        .max()
}

/// Whether the record says that another buffer is the owner's, and that this one is not the twin.
fn is_anothers(n: u8, from: &State) -> bool {
    let (record, buffer) = (&from.record, from.buffer(n));
    let is_elsewhere = record.buffer.is_some_and(|named| named != buffer);
    let is_idle = from.nodes[usize::from(n)].phase == Phase::Idle;
    is_idle && is_elsewhere && record.owner != n && record.in_sync != Some(buffer)
}

impl State {
    /// A host's stream is over, and what it had of the volume is nobody's.
    pub(crate) fn gives_up(&mut self, n: u8) {
        let node = &mut self.nodes[usize::from(n)];
        node.hosts = None;
        node.files = [Sco::default(); SCOS];
        node.unsynced = 0;
        node.kept_for = 0;
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
