//! Single rules of snapshots and of what dies: what a random life reaches too seldom, or what needs much of something.
//!
//! The host here keeps what is stored in memory, so that a volume can begin again from its manifest with nothing in memory.
//! Nodes are loaded when a test says so.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod host;
mod renewal;

use bytes::Bytes;
use sconce_schemas::SnapshotId;
use sconce_schemas::checkpoint::{NodePlace, TreeKind};
use sconce_schemas::wire::volume::IoCode;
use sconce_schemas::wire::{Refusal, RefusalCode};
use sconce_volume::stored::{StoredNode, sco_table_node};
use sconce_volume::{Ask, Event, Ticket};

use host::{Host, LEAF, ROOMY, written};

#[test]
fn discards_of_what_is_not_in_memory_are_few_at_a_time_also_in_a_replay() {
    let leaves = 300;
    let mut host = written(ROOMY, leaves);
    host.restart();
    assert_eq!(host.live(), leaves);
    let before = host.manifest.clone();
    for leaf in 0..leaves {
        let discard = host.io(IoCode::Discard, leaf * LEAF, LEAF);
        while !host.is_done(discard) {
            assert!(!host.loads.is_empty(), "it waits for nothing");
            host.load();
        }
    }
    let unseen = |host: &mut Host| {
        // A checkpoint that nothing was reaped before.
        host.now_us += 10_000_000;
        host.feed(Event::Sync {
            ticket: Ticket(u64::MAX),
        });
        host.store();
        host.store();
        host.manifest
            .as_ref()
            .map_or(0, |manifest| manifest.snapshots.len())
    };
    host.store();
    assert!((1..=64).contains(&unseen(&mut host)));
    // The same in a replay of the log.
    host.manifest = before;
    host.restart();
    assert_eq!(host.volume.status().allocated.0, 0);
    host.tick();
    assert!((1..=64).contains(&unseen(&mut host)));
    host.checkpoint();
    assert_eq!(host.live(), 0);
}

#[test]
fn a_long_discard_of_what_is_not_in_memory_is_done_leaf_by_leaf() {
    let leaves = 40;
    // Memory for one discard at a time of which nothing is known.
    let mut host = written(64 << 10, leaves);
    host.restart();
    for (from, to) in [(0, 3), (3, 38), (38, 40)] {
        let discard = host.io(IoCode::Discard, from * LEAF, (to - from) * LEAF);
        for _ in 0..200 {
            host.load();
            host.turn();
            host.store();
            assert!(host.volume.status().map_memory.0 < 512 << 10);
        }
        assert!(host.is_done(discard));
    }
    assert_eq!(host.volume.status().allocated.0, 0);
    host.checkpoint();
    assert_eq!(host.live(), 0);
}

#[test]
fn the_sco_table_counts_its_scos_when_it_grows_a_level_after_a_restart() {
    let mut host = Host::new(ROOMY);
    for at in 0..530 {
        if at == 500 {
            host.checkpoint();
            host.restart();
        }
        host.io(IoCode::Write, at * 4096, 4096);
        host.load();
        host.now_us += 10_000_000;
        host.tick();
        host.store();
        host.store();
    }
    host.checkpoint();
    let manifest = host.manifest.as_ref().unwrap();
    let scos = manifest.scos_count;
    assert!(manifest.scos.height == 1 && scos > 520, "{scos} SCOs");
    let root = manifest.scos.node.unwrap();
    let place = NodePlace {
        tree: TreeKind::Scos,
        level: 1,
        index: 0,
    };
    let StoredNode::Inner(children) = sco_table_node(place, root, &host.records(root)).unwrap() else {
        panic!("the root is a leaf");
    };
    // No SCO has the number 0.
    let counts: Vec<u64> = children.iter().map(|child| child.count).collect();
    assert_eq!(counts, [511, scos - 511]);
}

#[test]
fn a_node_of_the_sco_table_that_cannot_be_had_is_asked_for_again() {
    let mut host = Host::new(ROOMY);
    // More SCOs than a leaf of the table has.
    for at in 0..520 {
        host.io(IoCode::Write, at * 4096, 4096);
        host.now_us += 10_000_000;
        host.tick();
        host.store();
        host.store();
    }
    host.checkpoint();
    host.restart();
    let overwrite = host.io(IoCode::Write, 0, 4096);
    while !host.is_done(overwrite) {
        let (place, reference) = host.loads.remove(0);
        assert_eq!(place.tree, TreeKind::Map);
        let result = Ok(host.records(reference));
        host.feed(Event::NodeLoaded {
            place,
            reference,
            result,
        });
        host.end_batch();
    }
    for _ in 0..3 {
        let (place, reference) = host.loads.pop().unwrap();
        assert_eq!((place.tree, host.loads.len()), (TreeKind::Scos, 0));
        let result = Err(Refusal::retry(RefusalCode::Unavailable, "no back end"));
        host.feed(Event::NodeLoaded {
            place,
            reference,
            result,
        });
        host.end_batch();
        assert!(host.loads.is_empty(), "not before the next tick");
        host.now_us += 1_000_000;
        host.tick();
    }
    host.checkpoint();
    assert_eq!(host.live(), 520);
}

#[test]
fn a_rollback_that_is_asked_for_again_is_not_done_again() {
    let mut host = Host::new(ROOMY);
    host.io(IoCode::Write, 0, 4096);
    host.take(1);
    host.io(IoCode::Write, 4096, 4096);
    let back = Ask::RollBack {
        to: "s1".into(),
        id: SnapshotId(2),
        keep: None,
    };
    let first = host.ask(back.clone());
    assert!(host.is_done(first));
    for restart in [false, true] {
        host.io(IoCode::Write, 8192, 8192);
        // The state before is reaped: nothing of it is left but its id.
        host.checkpoint();
        assert_eq!(host.live(), 3);
        if restart {
            host.restart();
        }
        let again = host.ask(back.clone());
        host.load();
        assert!(host.is_done(again));
        assert_eq!(
            host.volume.status().allocated.0,
            3 * 4096,
            "what came after it stands"
        );
    }
}

#[test]
fn a_write_that_waited_does_not_change_a_template() {
    let mut host = Host::new(ROOMY);
    host.io(IoCode::Write, 0, 4096);
    let waits = host.io(IoCode::Write, 512, 512);
    let fetch = host.fetches.pop().unwrap();
    let template = host.ask(Ask::ReadOnly(true));
    assert!(host.is_done(template));
    host.feed(Event::Fetched {
        fetch,
        result: Ok(Bytes::from(vec![1; 4096])),
    });
    assert_eq!(host.refusal(waits), RefusalCode::ReadOnly);
}

#[test]
fn who_asks_for_the_extents_of_a_snapshot_that_is_removed_meanwhile_is_told() {
    for code in [IoCode::Extents, IoCode::Read] {
        let mut host = written(ROOMY, 2);
        host.take(1);
        host.checkpoint();
        host.restart();
        let request = host.request(code, 0, 0, LEAF);
        let waits = host.number;
        host.feed(Event::SnapshotIo {
            ticket: Ticket(waits),
            snapshot: SnapshotId(1),
            request,
        });
        assert!(host.reply(waits).is_none());
        let removed = host.ask(Ask::Remove { name: "s1".into() });
        assert!(host.is_done(removed));
        host.load();
        assert_eq!(host.refusal(waits), RefusalCode::NotFound);
    }
}

#[test]
fn what_a_checkpoint_froze_is_not_taken_for_what_came_after_it() {
    let leaves = 4;
    let mut host = written(ROOMY, leaves);
    host.restart();
    host.io(IoCode::Discard, 0, 2 * LEAF);
    host.load();
    // A checkpoint freezes what is to be walked over; the walk ends before it is stored.
    host.now_us += 10_000_000;
    host.tick();
    assert_eq!(host.checkpoints.len(), 1);
    host.load();
    host.turn();
    host.io(IoCode::Discard, 2 * LEAF, 2 * LEAF);
    host.load();
    host.store();
    host.store();
    host.checkpoint();
    assert_eq!(host.live(), 0);
}

#[test]
fn a_walk_over_a_large_snapshot_lets_go_of_what_it_has_seen() {
    let leaves = 1500;
    let mut host = written(1 << 20, leaves);
    host.take(1);
    for leaf in 0..leaves {
        let write = host.io(IoCode::Write, leaf * LEAF, 4096);
        while !host.is_done(write) {
            host.load();
            host.store();
            host.now_us += 1_000_000;
            host.tick();
        }
        host.store();
    }
    host.checkpoint();
    assert_eq!(host.live(), 2 * leaves);
    host.restart();
    host.ask(Ask::Remove { name: "s1".into() });
    host.tick();
    let mut most = 0;
    while let Some((place, reference)) = host.loads.pop() {
        let result = Ok(host.records(reference));
        host.feed(Event::NodeLoaded {
            place,
            reference,
            result,
        });
        host.now_us += 10_000;
        host.end_batch();
        host.turn();
        most = most.max(host.volume.status().map_memory.0);
    }
    assert!(most < 1 << 19, "{most} bytes of map nodes");
    host.checkpoint();
    assert_eq!(host.live(), leaves);
}

#[test]
fn removed_snapshots_are_reaped_one_after_the_other_without_waiting_for_ticks() {
    let mut host = Host::new(ROOMY);
    for id in 1..=20 {
        host.io(IoCode::Write, 0, 4096);
        host.take(id);
    }
    host.checkpoint();
    assert_eq!(host.live(), 20);
    for id in 1..=20 {
        host.ask(Ask::Remove {
            name: format!("s{id}"),
        });
    }
    host.tick();
    host.load();
    assert_eq!(host.live(), 1);
}
