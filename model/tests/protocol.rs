//! The protocol is searched to its end, as it is and with one rule after the other left out.
//!
//! With `SCONCE_TEST_FULL=1` there is more of everything (docs/decisions/0171 has numbers); without it the tests whose names say so do
//! nothing.

use std::time::Instant;

use sconce_model::{Broken, Found, Limits, Planted, Rules, Streams, search};

const SMALL: Limits = Limits::small();

fn searched(name: &str, limits: Limits, streams: Streams, planted: Option<Planted>) -> Found {
    assert!(limits.fit(), "{name}: the model has no room for {limits:?}");
    let begun = Instant::now();
    let found = search(&Rules {
        limits,
        streams,
        planted,
    });
    println!(
        "{name}: {} states, {} steps, {} left to the twin, {:.1?}",
        found.states,
        found.steps,
        found.left_to_twin,
        begun.elapsed()
    );
    found
}

fn is_full() -> bool {
    std::env::var_os("SCONCE_TEST_FULL").is_some_and(|value| value == "1")
}

fn holds_with(streams: Streams, name: &str, limits: Limits) {
    let found = searched(&format!("{name}, {streams:?}"), limits, streams, None);
    assert_eq!(found.broken, None, "{name}, {streams:?}");
    let can_be_left = limits.losses > 0;
    assert_eq!(
        found.left_to_twin > 0,
        can_be_left,
        "{name}: states in which the twin alone can go on"
    );
}

fn holds(name: &str, limits: Limits) {
    holds_with(Streams::Numbered, name, limits);
    if is_full() {
        holds_with(Streams::InRecord, name, limits);
    }
}

/// What takes its time.
fn holds_in_full(name: &str, limits: Limits) {
    if is_full() {
        holds(name, limits);
    }
}

fn breaks(planted: Planted, limits: Limits, expected: Broken) {
    let found = searched(&format!("{planted:?}"), limits, Streams::Numbered, Some(planted));
    println!("{planted:?}: {:?}", found.broken);
    let what = found.broken.map(|(what, _)| what);
    assert_eq!(what, Some(expected), "{planted:?}");
}

#[test]
fn holds_with_crashes_and_takeovers() {
    holds("small", SMALL);
    holds(
        "three writes",
        Limits {
            writes: 3,
            scos: 3,
            ..SMALL
        },
    );
}

#[test]
fn holds_where_hosts_give_things_up() {
    holds(
        "doubts",
        Limits {
            doubts: true,
            ..SMALL
        },
    );
}

#[test]
fn holds_with_streams_in_the_record() {
    holds_with(Streams::InRecord, "small", SMALL);
    let doubts = Limits {
        doubts: true,
        ..SMALL
    };
    holds_with(Streams::InRecord, "doubts", doubts);
}

#[test]
fn holds_where_nodes_are_lost_with_their_disks() {
    holds("losses", Limits { losses: 1, ..SMALL });
}

#[test]
fn holds_where_operators_force_takeovers() {
    holds("forces", Limits { forces: 1, ..SMALL });
}

#[test]
fn holds_with_a_back_end() {
    let one_stream = Limits {
        uploads: true,
        writes: 3,
        streams: 1,
        ..SMALL
    };
    holds("uploads", one_stream);
}

#[test]
fn holds_where_power_is_lost() {
    let one_stream = Limits {
        power_losses: 1,
        streams: 1,
        ..SMALL
    };
    holds("power", one_stream);
    let both = Limits {
        power_losses: 2,
        writes: 1,
        ..one_stream
    };
    holds("power, twice", both);
}

#[test]
fn holds_with_a_third_node() {
    let small = Limits {
        nodes: 3,
        writes: 1,
        ..SMALL
    };
    holds("third node", small);
}

#[test]
fn holds_in_full_with_losses_forces() {
    holds_in_full(
        "losses, forces",
        Limits {
            losses: 1,
            forces: 1,
            ..SMALL
        },
    );
    holds_in_full(
        "losses, forces, doubts",
        Limits {
            losses: 1,
            forces: 1,
            doubts: true,
            ..SMALL
        },
    );
}

#[test]
fn holds_in_full_with_back_end_and_losses() {
    holds_in_full(
        "losses, uploads",
        Limits {
            losses: 1,
            uploads: true,
            ..SMALL
        },
    );
}

#[test]
fn holds_in_full_with_back_end_and_forces() {
    holds_in_full(
        "forces, uploads",
        Limits {
            forces: 1,
            uploads: true,
            ..SMALL
        },
    );
}

#[test]
fn holds_in_full_with_back_end_and_power() {
    holds_in_full(
        "power, uploads",
        Limits {
            power_losses: 1,
            uploads: true,
            streams: 1,
            ..SMALL
        },
    );
    holds_in_full(
        "power, two streams",
        Limits {
            power_losses: 1,
            ..SMALL
        },
    );
}

#[test]
fn holds_in_full_with_more_streams() {
    holds_in_full(
        "three streams, four ownerships",
        Limits {
            streams: 3,
            epochs: 4,
            ..SMALL
        },
    );
    holds_in_full("third node, two writes", Limits { nodes: 3, ..SMALL });
}

#[test]
fn holds_in_full_with_third_node_and_losses() {
    holds_in_full(
        "third node, losses",
        Limits {
            nodes: 3,
            losses: 1,
            ..SMALL
        },
    );
}

#[test]
fn holds_in_full_with_third_node_and_forces() {
    holds_in_full(
        "third node, forces",
        Limits {
            nodes: 3,
            forces: 1,
            ..SMALL
        },
    );
}

#[test]
fn holds_in_full_with_third_node_and_doubts() {
    holds_in_full(
        "third node, doubts",
        Limits {
            nodes: 3,
            doubts: true,
            ..SMALL
        },
    );
}

#[test]
fn acknowledgements_have_to_wait_for_the_twin_and_the_record() {
    breaks(Planted::AckBeforeTwin, SMALL, Broken::Twin);
    breaks(Planted::DegradeAfterAck, SMALL, Broken::Twin);
    breaks(Planted::DegradeUnwritten, SMALL, Broken::Twin);
    breaks(Planted::InSyncComparesEpoch, SMALL, Broken::Twin);
    breaks(Planted::InSyncBeforeCopies, SMALL, Broken::Twin);
    breaks(Planted::ResumeCutStream, SMALL, Broken::Twin);
}

#[test]
fn takeovers_have_to_end_the_stream_and_to_be_judged_at_the_commit() {
    breaks(Planted::ClaimWithoutSeal, SMALL, Broken::Owner);
    breaks(Planted::ClaimJudgedEarly, SMALL, Broken::Owner);
    breaks(Planted::BeginKeepsInSync, SMALL, Broken::Twin);
    let losses = Limits { losses: 1, ..SMALL };
    breaks(Planted::ClaimByAnotherBuffer, losses, Broken::Owner);
    breaks(Planted::TakeoverNeedsStream, losses, Broken::Stuck);
}

#[test]
fn what_lost_power_has_to_wait_for_what_did_not() {
    let power = Limits {
        power_losses: 1,
        streams: 1,
        ..SMALL
    };
    breaks(Planted::PowerLossUnseen, power, Broken::Owner);
}

#[test]
fn what_is_stored_has_to_be_on_the_twin() {
    let uploads = Limits {
        uploads: true,
        ..SMALL
    };
    breaks(Planted::UploadNotGated, uploads, Broken::BackEnd);
    let power = Limits {
        power_losses: 1,
        streams: 1,
        ..uploads
    };
    breaks(Planted::UploadBeforeTwinSync, power, Broken::BackEnd);
    let forces = Limits { forces: 1, ..uploads };
    breaks(Planted::ForcedUsesGivenUpTwin, forces, Broken::BackEnd);
}

#[test]
fn hosts_have_to_know_that_nobody_can_rely_on_what_they_give_up() {
    breaks(Planted::AttachOutOfOrder, SMALL, Broken::Twin);
    breaks(Planted::AttachWithoutRecord, SMALL, Broken::Twin);
    let doubts = Limits {
        doubts: true,
        ..SMALL
    };
    breaks(Planted::GiveUpAsRead, doubts, Broken::Twin);
    breaks(Planted::GiveUpByHeaders, doubts, Broken::Twin);
}

#[test]
fn hosts_in_full_have_to_read_the_record_after_the_last_stream_began() {
    if is_full() {
        let third_node = Limits {
            nodes: 3,
            writes: 1,
            doubts: true,
            ..SMALL
        };
        breaks(Planted::GiveUpBehindAttach, third_node, Broken::Twin);
    }
}
