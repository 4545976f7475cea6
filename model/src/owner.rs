//! The owner: what it writes, acknowledges and stores, and how it finds a twin and gives one up.
//!
//! Keeps: the engine's rules (services/volume/src/twin.rs, change.rs) and those of its host (services/volume-router/src/twin/ours.rs).
//! Order: a batch is here, and told to a twin that listens; then perhaps acknowledged; a SCO is closed, then perhaps stored.
//! Crash: see `world`.
//! Knows the record only by what it writes there; so it goes on when it is in charge no more.
//!
//! | step | carried out by |
//! |---|---|
//! | `Append`, `Reply` | `change.rs` `append_cluster`, `frontier.rs` `upkeep` with `twin.rs` `acknowledges_upto` |
//! | `AppendAtTwinAlone` | the same, where the owner dies between `twin/stream.rs` `append` and `device/file.rs` `append` |
//! | `CloseSco`, `Upload` | `volume.rs`, `twin.rs` `upload_with_twin` |
//! | `Synced`, `Flushed` | `frontier.rs`, `twin.rs` `flushes_upto` |
//! | `SendsAttach`, `AttachUnanswered`, `TwinAttached` | `twin/ours.rs` `seek`, `attach`; `twin.rs` `twin_attached` |
//! | `TwinCopied`, `TwinHeld`, `TwinSynced` | `twin/stream.rs` `copy`, `hear`, `sync` |
//! | `RecordInSync`, `TwinInSync` | `twin.rs` `twin_upkeep`; `owner/record.rs` `note_in_sync` |
//! | `TwinLost`, `RecordDegraded` | `twin.rs` `twin_lost`; `owner/record.rs` `note_degraded` |
//! | `Release`, `HandOver` | `owner/record.rs` `release`, `hand_over` |

use crate::rules::{Planted, Streams};
use crate::state::{
    Batch, Buffer, Object, Owner, Phase, SCO_BATCHES, SCOS, STREAMS, Sco, State, Stream, Twin,
};
use crate::step::{Next, Step};

pub(crate) fn offer(n: u8, next: &mut Next<'_>) {
    let Some(owner) = next.from.owner(n).copied() else {
        return;
    };
    writes(n, &owner, next);
    acknowledges(n, &owner, next);
    if next.rules.limits.uploads {
        stores(n, &owner, next);
    }
    if next.rules.limits.power_losses > 0 {
        syncs(n, &owner, next);
    }
    seeks(n, &owner, next);
    if next.rules.lacks(Planted::ResumeCutStream) && owner.twin == Twin::Detached {
        resumes(n, &owner, next);
    }
    joins(n, &owner, next);
    loses(n, &owner, next);
    hands_over(n, &owner, next);
}

/// Changes the owner that a node is.
fn with(s: &mut State, n: u8, change: impl FnOnce(&mut Owner)) {
    if let Some(owner) = s.owner_mut(n) {
        change(owner);
    }
}

fn stream<'a>(s: &'a mut State, owner: &Owner) -> Option<&'a mut Stream> {
    s.streams[usize::from(owner.stream)].as_mut()
}

fn writes(n: u8, owner: &Owner, next: &mut Next<'_>) {
    let limits = &next.rules.limits;
    let from = next.from;
    let node = &from.nodes[usize::from(n)];
    let has_room = |sco: &u8| node.files[usize::from(*sco)].batches.count_ones() < SCO_BATCHES;
    let open = owner.open.filter(has_room);
    if from.written >= limits.writes || (open.is_none() && owner.next_sco >= limits.scos) {
        return;
    }
    let sco = open.unwrap_or(owner.next_sco);
    let first = u8::try_from(owner.log.count_ones()).unwrap_or(u8::MAX);
    let place = Batch {
        epoch: owner.epoch,
        sco,
        first: open.map_or(first, |sco| node.files[usize::from(sco)].first),
    };
    let bit = 1 << from.written;
    let told = |s: &mut State| {
        s.batches[usize::from(s.written)] = place;
        s.written += 1;
        if let Some(stream) = stream(s, owner).filter(|_| owner.twin.listens()) {
            stream.flight |= bit;
        }
    };
    let loses_power = limits.power_losses > 0;
    next.go(Step::Append(n), |s| {
        told(s);
        let node = &mut s.nodes[usize::from(n)];
        let file = &mut node.files[usize::from(sco)];
        if open.is_none() {
            *file = Sco {
                epoch: owner.epoch,
                first,
                batches: 0,
            };
        }
        file.batches |= bit;
        if loses_power {
            node.unsynced |= bit;
        }
        with(s, n, |owner| {
            owner.log |= bit;
            owner.open = Some(sco);
            owner.next_sco = owner.next_sco.max(sco + 1);
        });
    });
    if owner.twin.listens() {
        next.go(Step::AppendAtTwinAlone(n), |s| {
            told(s);
            s.crash(n);
        });
    }
}

fn acknowledges(n: u8, owner: &Owner, next: &mut Next<'_>) {
    let rules = next.rules;
    let alone = !owner.twin.is_waited_for()
        || rules.lacks(Planted::AckBeforeTwin)
        || (rules.lacks(Planted::DegradeAfterAck) && owner.twin == Twin::Losing);
    let may = match alone {
        true => owner.log,
        false => owner.log & owner.held,
    };
    let may = may & !next.from.excused;
    // A guest that was told so by one whose loss an operator accepted was told nothing that counts.
    if may & !next.from.acked != 0 && owner.epoch >= next.from.void_before {
        next.go(Step::Reply(n), |s| s.acked |= may);
    }
}

fn stores(n: u8, owner: &Owner, next: &mut Next<'_>) {
    let from = next.from;
    if owner.open.is_some() {
        next.go(Step::CloseSco(n), |s| with(s, n, |owner| owner.open = None));
    }
    let node = &from.nodes[usize::from(n)];
    let mut all_stored = owner.open.is_none();
    for (at, file) in (0..).zip(&node.files) {
        let is_closed = owner.open != Some(at) && file.batches & owner.log != 0;
        let object = from.objects[usize::from(file.epoch)][usize::from(at)];
        all_stored &= file.batches & owner.log == 0 || object.stored;
        if !is_closed || object.sco.batches != 0 || file.batches & node.unsynced != 0 {
            continue;
        }
        let at_twin = match () {
            () if next.rules.lacks(Planted::UploadNotGated) => u8::MAX,
            () if next.rules.lacks(Planted::UploadBeforeTwinSync) => owner.held,
            () => owner.synced,
        };
        if !owner.twin.is_waited_for() || file.batches & !at_twin == 0 {
            let (epoch, file) = (usize::from(file.epoch), *file);
            next.go(Step::Upload(n, at), |s| {
                s.objects[epoch][usize::from(at)] = Object {
                    sco: file,
                    stored: false,
                };
            });
        }
    }
    let in_charge = (from.record.owner, from.record.epoch) == (n, owner.epoch);
    if all_stored && in_charge && from.record.covered < owner.next_sco {
        let rules = next.rules;
        next.go(Step::Release(n), |s| {
            (s.record.buffer, s.record.buffer_boot) = (None, 0);
            s.record.without_twin();
            s.record.covered = owner.next_sco;
            s.record_written(rules);
            s.nodes[usize::from(n)].phase = Phase::Idle;
        });
    }
}

fn syncs(n: u8, owner: &Owner, next: &mut Next<'_>) {
    let node = &next.from.nodes[usize::from(n)];
    if node.unsynced != 0 {
        next.go(Step::Synced(n), |s| s.nodes[usize::from(n)].unsynced = 0);
    }
    let mut flushed = (next.from.acked | next.from.excused) & owner.log & !node.unsynced;
    if owner.twin.is_waited_for() {
        flushed &= owner.synced;
    }
    if flushed & !next.from.flushed != 0 && owner.epoch >= next.from.void_before {
        next.go(Step::Flushed(n), |s| {
            s.acked |= flushed;
            s.flushed |= flushed;
            s.excused &= !flushed;
        });
    }
}

fn seeks(n: u8, owner: &Owner, next: &mut Next<'_>) {
    let from = next.from;
    match owner.twin {
        Twin::Detached => {
            let Some(at) = from.free_stream(&next.rules.limits) else {
                return;
            };
            for host in (0..next.rules.limits.nodes).filter(|host| *host != n) {
                let after = from.asked_before(n, host);
                next.go(Step::SendsAttach(n, host), |s| {
                    s.opened += 1;
                    s.streams[usize::from(at)] = Some(Stream {
                        owner: n,
                        epoch: owner.epoch,
                        host,
                        wiped: 0,
                        boot: 0,
                        asked: true,
                        after,
                        attached: false,
                        detach: false,
                        flight: 0,
                        held: 0,
                    });
                    with(s, n, |owner| {
                        owner.twin = Twin::Attaching;
                        owner.stream = at;
                    });
                });
            }
        }
        Twin::Attaching => {
            next.go(Step::AttachUnanswered(n), |s| {
                with(s, n, |owner| owner.twin = Twin::Detached);
            });
            if from.streams[usize::from(owner.stream)].is_some_and(|stream| stream.attached) {
                next.go(Step::TwinAttached(n), |s| attached(s, n, owner));
            }
        }
        _ => {}
    }
}

fn attached(s: &mut State, n: u8, owner: &Owner) {
    if let Some(stream) = stream(s, owner) {
        stream.attached = false;
    }
    let node = &s.nodes[usize::from(n)];
    let mut copies = 0;
    for (at, file) in node.files.iter().enumerate() {
        let object = &s.objects[usize::from(file.epoch)][at];
        if file.batches & owner.log != 0 && !object.stored {
            copies |= 1 << at;
        }
    }
    with(s, n, |owner| {
        owner.open = None;
        owner.twin = Twin::Copying;
        owner.held = owner.log;
        owner.synced = owner.log;
        owner.copies = copies;
        copied(owner);
    });
}

/// Once all is copied acknowledgements wait for the twin.
fn copied(owner: &mut Owner) {
    if owner.copies == 0 {
        owner.twin = Twin::Joining;
        owner.owed = owner.log;
    }
}

/// The fault that a stream's number and its one unbroken sequence are there for.
fn resumes(n: u8, owner: &Owner, next: &mut Next<'_>) {
    let stream = next.from.streams[usize::from(owner.stream)];
    if stream.is_some_and(|stream| (stream.owner, stream.epoch) == (n, owner.epoch)) {
        next.go(Step::Resumes(n), |s| {
            with(s, n, |owner| {
                owner.twin = Twin::Joining;
                owner.held = owner.log;
                owner.synced = owner.log;
                owner.owed = owner.log;
            });
        });
    }
}

fn joins(n: u8, owner: &Owner, next: &mut Next<'_>) {
    let from = next.from;
    let Some(stream) = from.streams[usize::from(owner.stream)]
        .filter(|_| owner.twin.is_waited_for() || owner.twin.listens())
    else {
        return;
    };
    let host = &from.nodes[usize::from(stream.host)];
    let is_known = host.hosts == Some(owner.stream);
    if owner.twin == Twin::Copying {
        let sco = u8::try_from(owner.copies.trailing_zeros()).unwrap_or(u8::MAX);
        let place = usize::from(sco).min(SCOS - 1);
        let file = from.nodes[usize::from(n)].files[place];
        let is_stored = from.objects[usize::from(file.epoch)][place].stored;
        if is_known || is_stored {
            next.go(Step::TwinCopied(n, sco), |s| {
                if is_known {
                    s.nodes[usize::from(stream.host)].files[place] = file;
                }
                with(s, n, |owner| {
                    owner.copies &= owner.copies - 1;
                    copied(owner);
                });
            });
        }
        if next.rules.lacks(Planted::InSyncBeforeCopies) {
            next.go(Step::TwinCopied(n, u8::MAX), |s| {
                with(s, n, |owner| {
                    owner.copies = 0;
                    copied(owner);
                });
            });
        }
    }
    let syncs_show = next.rules.limits.power_losses > 0;
    if owner.twin.listens() && stream.held & !owner.held != 0 {
        next.go(Step::TwinHeld(n), |s| {
            with(s, n, |owner| {
                owner.held |= stream.held;
                if !syncs_show {
                    owner.synced = owner.held;
                }
            });
        });
    }
    if is_known && owner.twin.listens() && owner.held != owner.synced {
        next.go(Step::TwinSynced(n), |s| {
            s.nodes[usize::from(stream.host)].unsynced = 0;
            with(s, n, |owner| owner.synced = owner.held);
        });
    }
    let is_due = match owner.twin {
        Twin::Joining => owner.owed & !owner.synced == 0,
        // The commit met another one: it is read and judged anew.
        Twin::Recording => from.nodes[usize::from(n)].committing.is_none() && !says_so(from, n, owner),
        _ => false,
    };
    let holds = (from.record.owner, from.record.epoch) == (n, owner.epoch);
    let is_named = next.rules.streams != Streams::InRecord || from.record.stream == Some(owner.stream);
    if is_due && holds && is_named {
        next.go(Step::RecordInSync(n), |s| {
            s.nodes[usize::from(n)].committing = Some(owner.stream);
            with(s, n, |owner| {
                owner.twin = Twin::Recording;
                owner.owed = 0;
            });
        });
    }
    if owner.twin == Twin::Recording && says_so(from, n, owner) {
        next.go(Step::TwinInSync(n), |s| {
            with(s, n, |owner| owner.twin = Twin::InSync)
        });
    }
}

/// Whether the record says what the owner has asked for.
fn says_so(s: &State, n: u8, owner: &Owner) -> bool {
    let host = s.streams[usize::from(owner.stream)].map(|stream| Buffer {
        node: stream.host,
        wiped: stream.wiped,
    });
    (s.record.owner, s.record.epoch) == (n, owner.epoch)
        && s.record.in_sync.is_some()
        && s.record.in_sync == host
}

/// A planned move (services/volume-router/src/owner/record.rs `hand_over`): nothing is acknowledged any more.
fn hands_over(n: u8, owner: &Owner, next: &mut Next<'_>) {
    let (from, rules) = (next.from, next.rules);
    if owner.twin == Twin::InSync && says_so(from, n, owner) {
        let to = from.record.in_sync.map_or(n, |twin| twin.node);
        next.go(Step::HandOver(n), |s| {
            s.record.owner = to;
            s.record_written(rules);
            s.nodes[usize::from(n)].phase = Phase::Idle;
        });
    }
}

fn loses(n: u8, owner: &Owner, next: &mut Next<'_>) {
    match owner.twin {
        Twin::Copying | Twin::Joining => next.go(Step::TwinLost(n), |s| detach(s, n, owner)),
        Twin::Recording | Twin::InSync => {
            next.go(Step::TwinLost(n), |s| {
                with(s, n, |owner| owner.twin = Twin::Losing)
            });
        }
        Twin::Losing => {
            let record = &next.from.record;
            if (record.owner, record.epoch) != (n, owner.epoch) {
                return;
            }
            if next.rules.lacks(Planted::DegradeUnwritten) && record.in_sync.is_none() {
                return next.go(Step::DegradedAsRead(n), |s| detach(s, n, owner));
            }
            let rules = next.rules;
            next.go(Step::RecordDegraded(n), |s| {
                s.record.without_twin();
                s.record_written(rules);
                detach(s, n, owner);
            });
        }
        Twin::Detached | Twin::Attaching => {}
    }
}

/// It is no twin any more, and is told so (services/volume/src/twin.rs `detach`, services/volume-router/src/twin/stream.rs `detach`).
fn detach(s: &mut State, n: u8, owner: &Owner) {
    if let Some(stream) = stream(s, owner) {
        stream.detach = true;
    }
    with(s, n, |owner| {
        owner.twin = Twin::Detached;
        (owner.held, owner.synced, owner.owed, owner.copies) = (0, 0, 0, 0);
    });
}

impl State {
    /// The streams of an owner to a host whose `Attach` has not come yet.
    fn asked_before(&self, n: u8, host: u8) -> u8 {
        let is_before = |stream: &Option<Stream>| {
            stream.is_some_and(|stream| stream.asked && (stream.owner, stream.host) == (n, host))
        };
        let before = (0..STREAMS).filter(|at| is_before(&self.streams[*at]));
        before.fold(0, |all, at| all | 1 << at)
    }
}
