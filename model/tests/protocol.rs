//! The protocol is searched to its end, as it is and with one rule after the other left out.
//!
//! With `SCONCE_TEST_FULL` there is more of everything: minutes, and some gigabytes of memory.

use std::time::Instant;

use sconce_model::{Broken, Limits, Planted, Rules, search};

const SMALL: Limits = Limits::small();

fn searched(name: &str, limits: Limits, planted: Option<Planted>) -> sconce_model::Found {
    assert!(limits.fit(), "{name}: the model has no room for {limits:?}");
    let begun = Instant::now();
    let found = search(&Rules { limits, planted });
    println!(
        "{name}: {} states, {} steps, {} left to the twin, {:.1?}",
        found.states,
        found.steps,
        found.left_to_twin,
        begun.elapsed()
    );
    found
}

fn holds(name: &str, limits: Limits) {
    let found = searched(name, limits, None);
    assert_eq!(found.broken, None, "{name}");
    let can_be_left = limits.losses > 0;
    assert_eq!(
        found.left_to_twin > 0,
        can_be_left,
        "{name}: states in which the twin alone can go on"
    );
}

fn breaks(planted: Planted, limits: Limits, expected: Broken) {
    let found = searched(&format!("{planted:?}"), limits, Some(planted));
    let (what, way) = found
        .broken
        .unwrap_or_else(|| panic!("{planted:?} was not found"));
    println!("{planted:?}: {way:?}");
    assert_eq!(what, expected, "{planted:?}: {way:?}");
}

fn is_full() -> bool {
    std::env::var_os("SCONCE_TEST_FULL").is_some()
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
fn holds_with_more_of_everything() {
    if !is_full() {
        return;
    }
    let (losses, forces, power_losses) = (1, 1, 1);
    let all = [
        (
            "losses, forces",
            Limits {
                losses,
                forces,
                ..SMALL
            },
        ),
        (
            "losses, doubts, forces",
            Limits {
                losses,
                forces,
                doubts: true,
                ..SMALL
            },
        ),
        (
            "losses, uploads",
            Limits {
                losses,
                uploads: true,
                ..SMALL
            },
        ),
        (
            "forces, uploads",
            Limits {
                forces,
                uploads: true,
                ..SMALL
            },
        ),
        (
            "power, uploads",
            Limits {
                power_losses,
                uploads: true,
                streams: 1,
                ..SMALL
            },
        ),
        (
            "power",
            Limits {
                power_losses,
                ..SMALL
            },
        ),
        (
            "streams, epochs",
            Limits {
                streams: 3,
                epochs: 4,
                ..SMALL
            },
        ),
        ("third node", Limits { nodes: 3, ..SMALL }),
        (
            "third node, losses",
            Limits {
                nodes: 3,
                losses,
                ..SMALL
            },
        ),
        (
            "third node, forces",
            Limits {
                nodes: 3,
                forces,
                ..SMALL
            },
        ),
        (
            "third node, doubts",
            Limits {
                nodes: 3,
                doubts: true,
                ..SMALL
            },
        ),
    ];
    for (name, limits) in all {
        holds(name, limits);
    }
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
