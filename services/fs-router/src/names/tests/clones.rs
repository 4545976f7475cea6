//! What clones depend on stays, whoever competes: of a clone and what would take its parent away, one happens.

use sconce_schemas::records::{
    CloneRecord, ManifestRef, Origin, ROOT_INODE, RemovalRecord, VolumePhase, VolumeRecord, keys,
};
use sconce_schemas::{Epoch, ManifestSeq, NodeName, SnapshotId, VolumeId, VolumeSize};

use sconce_runtime::Chance;

use super::competitors::{block_on, on_threads};
use super::lossy::Remote;
use super::{names, path, tree, volume};
use crate::names::clones::Snapshot;
use crate::names::{Keep, Names, NamesError, NewEntry, Replace, Resolved};

const ROUNDS: u64 = 144;
/// Of the answers to commits, one in so many is lost.
const LOST_ONE_IN: u64 = 50;

async fn file(names: &Names, at: &str) -> Resolved {
    let made = names
        .create_volume(&path(at), &volume(), NewEntry::FILE, true)
        .await;
    made.unwrap()
}

fn snapshot(volume: VolumeId) -> Snapshot {
    Snapshot {
        volume,
        id: SnapshotId(7),
        size: VolumeSize::new(1 << 20).unwrap(),
        removals: 0,
    }
}

async fn clone(names: &Names, volume: VolumeId, at: &str) -> Result<Resolved, NamesError> {
    let told = Snapshot {
        removals: names.removals(volume).await?,
        ..snapshot(volume)
    };
    names.create_clone(told, &path(at), NewEntry::FILE).await
}

fn is_cloned<T>(refused: &Result<T, NamesError>, clone: &str) -> bool {
    matches!(refused, Err(NamesError::Cloned { clones, .. }) if clones == clone)
}

/// Two do something at the same time, each with names of its own, and take turns at the registry, which is behind the
/// bus; the first begins up to 12 turns before or after the other. Gives what became of it.
async fn at_once<A, B>(
    remote: &Remote,
    round: u64,
    one: impl AsyncFnOnce(Names) -> A,
    other: impl AsyncFnOnce(Names) -> B,
) -> (A, B) {
    let later = async |turns: u64| {
        for _ in 0..turns {
            remote.registry.get("nothing").await.ok();
        }
    };
    let offset = round % 24;
    let one = async {
        later(offset.saturating_sub(12)).await;
        one(remote.names(round * 2)).await
    };
    let other = async {
        later(12_u64.saturating_sub(offset)).await;
        other(remote.names(round * 2 + 1)).await
    };
    tokio::join!(one, other)
}

#[test]
fn of_a_clone_and_the_end_of_its_parents_name_one_happens() {
    let remote = Remote::new(41, LOST_ONE_IN);
    let base = remote.names(41);
    let holder: NodeName = "fs-1".parse().unwrap();
    // In another directory: one that both change would be a conflict by itself.
    block_on(base.make_directories(&path("/vms"))).unwrap();
    let mut won = [0; 2];
    for round in 0..ROUNDS {
        let parent = block_on(file(&base, "/parent"));
        block_on(file(&base, "/other"));
        // It goes by an unlink, by a move over it, or while it is open.
        let ends = async |names: Names| match round % 3 {
            0 => names.unlink(ROOT_INODE, "parent", Keep::Nothing).await.map(drop),
            1 => {
                let (from, to) = (path("/other"), path("/parent"));
                names.rename_path(&from, &to, Replace::Yes).await.map(drop)
            }
            _ => {
                let keep = Keep::Open {
                    holder: &holder,
                    is_open: &|_| true,
                    is_used: &|_| false,
                };
                names.unlink(ROOT_INODE, "parent", keep).await.map(drop)
            }
        };
        let clones = async |names: Names| clone(&names, parent.volume, "/vms/clone").await;
        block_on(async {
            let (ended, cloned) = at_once(&remote, round / 3, ends, clones).await;
            match cloned {
                Ok(_) => {
                    won[0] += 1;
                    assert!(is_cloned(&ended, "/vms/clone"), "round {round}: {ended:?}");
                    base.remove_file(&path("/vms/clone")).await.unwrap();
                    base.remove_file(&path("/parent")).await.unwrap();
                }
                Err(refused) => {
                    won[1] += 1;
                    assert!(matches!(refused, NamesError::NotFound { .. }), "{refused}");
                    ended.unwrap();
                    // Nobody clones it later either; and nothing keeps a nameless file from going.
                    let late = clone(&base, parent.volume, "/late").await;
                    assert!(matches!(late, Err(NamesError::NotFound { .. })), "{late:?}");
                    if round % 3 == 2 {
                        base.remove_nameless(&holder, parent.inode).await.unwrap();
                    }
                    let phase = base.volume(parent.volume).await.unwrap().phase;
                    assert_eq!(phase, VolumePhase::Deleting, "round {round}");
                }
            }
            for left in ["/other", "/parent"] {
                let _ = base.remove_file(&path(left)).await;
            }
        });
    }
    assert!(won.iter().all(|won| *won > 0), "one always wins: {won:?}");
}

#[test]
fn of_a_clone_and_the_removal_of_its_snapshot_one_happens() {
    let remote = Remote::new(42, LOST_ONE_IN);
    let base = remote.names(42);
    let parent = block_on(file(&base, "/parent")).volume;
    let mut won = [0; 2];
    for round in 0..ROUNDS {
        let removes = async |names: Names| names.begin_removal(parent, SnapshotId(7)).await;
        let clones = async |names: Names| clone(&names, parent, "/clone").await;
        block_on(async {
            let (removed, cloned) = at_once(&remote, round, removes, clones).await;
            match cloned {
                Ok(_) => {
                    won[0] += 1;
                    assert!(is_cloned(&removed, "/clone"), "round {round}: {removed:?}");
                    // The refused removal has left nothing behind.
                    clone(&base, parent, "/second").await.unwrap();
                    base.remove_file(&path("/second")).await.unwrap();
                    base.remove_file(&path("/clone")).await.unwrap();
                }
                Err(refused) => {
                    won[1] += 1;
                    assert!(matches!(refused, NamesError::BeingRemoved { .. }), "{refused}");
                    removed.unwrap();
                    base.end_removal(parent, SnapshotId(7)).await.unwrap();
                }
            }
        });
    }
    assert!(won.iter().all(|won| *won > 0), "one always wins: {won:?}");
}

#[tokio::test]
async fn a_removal_that_was_cut_short_is_done_again_and_nothing_is_cloned_before() {
    let names = tree(43).await;
    let parent = file(&names, "/parent").await.volume;
    names.begin_removal(parent, SnapshotId(7)).await.unwrap();
    for _ in 0..2 {
        let cloned = clone(&names, parent, "/clone").await;
        assert!(
            matches!(cloned, Err(NamesError::BeingRemoved { .. })),
            "{cloned:?}"
        );
        names.begin_removal(parent, SnapshotId(7)).await.unwrap();
    }
    // Of another snapshot a clone is made meanwhile.
    let other = Snapshot {
        id: SnapshotId(8),
        ..snapshot(parent)
    };
    names
        .create_clone(other, &path("/clone"), NewEntry::FILE)
        .await
        .unwrap();
    for _ in 0..2 {
        names.end_removal(parent, SnapshotId(7)).await.unwrap();
    }
    assert_eq!(
        names
            .read_many::<RemovalRecord>("removing/", None, 10)
            .await
            .unwrap()
            .len(),
        0
    );
}

/// The record of a clone that its manifest tells of, after the registry was lost.
async fn known_clone(names: &Names, parent: VolumeId) -> VolumeRecord {
    let size = VolumeSize::new(1 << 20).unwrap();
    let of = names.volume(parent).await.unwrap();
    VolumeRecord {
        manifest: Some(ManifestRef {
            seq: ManifestSeq(1),
            epoch: Epoch(1),
        }),
        origin: Some(Origin {
            volume: parent,
            snapshot: SnapshotId(7),
        }),
        ..names.fresh_record(size, of.sco_size, of.pool, of.owner)
    }
}

#[test]
fn of_a_clone_that_is_recovered_and_the_removal_of_its_snapshot_one_happens() {
    let remote = Remote::new(46, LOST_ONE_IN);
    let base = remote.names(46);
    let parent = block_on(file(&base, "/parent")).volume;
    let mut won = [0; 2];
    for round in 0..ROUNDS {
        let removes = async |names: Names| names.begin_removal(parent, SnapshotId(7)).await;
        let recovers = async |names: Names| {
            let record = known_clone(&names, parent).await;
            names.adopt(&path("/clone"), record, NewEntry::FILE).await
        };
        block_on(async {
            let (removed, recovered) = at_once(&remote, round, removes, recovers).await;
            match recovered {
                Ok(_) => {
                    won[0] += 1;
                    assert!(is_cloned(&removed, "/clone"), "round {round}: {removed:?}");
                    base.remove_file(&path("/clone")).await.unwrap();
                }
                Err(refused) => {
                    won[1] += 1;
                    assert!(matches!(refused, NamesError::BeingRemoved { .. }), "{refused}");
                    removed.unwrap();
                    base.end_removal(parent, SnapshotId(7)).await.unwrap();
                }
            }
        });
    }
    assert!(won.iter().all(|won| *won > 0), "one always wins: {won:?}");
}

#[tokio::test]
async fn who_was_told_of_snapshots_before_one_was_removed_clones_none() {
    let names = tree(48).await;
    let parent = file(&names, "/parent").await.volume;
    let told = snapshot(parent);
    let withdrawn = names.begin_removal(parent, SnapshotId(6)).await.unwrap();
    names.withdraw_removal(withdrawn).await.unwrap();
    names
        .create_clone(told, &path("/stays"), NewEntry::FILE)
        .await
        .unwrap();
    names.remove_file(&path("/stays")).await.unwrap();
    names.begin_removal(parent, SnapshotId(6)).await.unwrap();
    for _ in 0..2 {
        names.end_removal(parent, SnapshotId(6)).await.unwrap();
    }
    let refused = names
        .create_clone(told, &path("/new/clone"), NewEntry::FILE)
        .await;
    assert!(
        matches!(refused, Err(NamesError::SnapshotsRemoved { volume }) if volume == parent),
        "{refused:?}"
    );
    assert!(
        names.resolve(&path("/new")).await.is_err(),
        "nothing is left behind"
    );
    clone(&names, parent, "/new/clone").await.unwrap();
}

#[tokio::test]
async fn of_several_who_remove_a_snapshot_none_takes_anothers_mark_away() {
    let names = tree(47).await;
    let parent = file(&names, "/parent").await.volume;
    let is_marked = async || {
        let cloned = clone(&names, parent, "/clone").await;
        matches!(cloned, Err(NamesError::BeingRemoved { .. }))
    };
    let begin = async || names.begin_removal(parent, SnapshotId(7)).await.unwrap();
    // Alone, and refused by the owner.
    let alone = begin().await;
    assert!(is_marked().await);
    names.withdraw_removal(alone).await.unwrap();
    clone(&names, parent, "/clone").await.unwrap();
    // A clone that is there leaves no mark, and takes none away.
    let refused = names.begin_removal(parent, SnapshotId(7)).await;
    assert!(is_cloned(&refused, "/clone"), "{refused:?}");
    names.remove_file(&path("/clone")).await.unwrap();
    // Of two, one is refused; the other may yet be heard by the owner.
    let (first, second) = (begin().await, begin().await);
    for removal in [first, second] {
        names.withdraw_removal(removal).await.unwrap();
        assert!(is_marked().await);
    }
    names.end_removal(parent, SnapshotId(7)).await.unwrap();
    assert!(!is_marked().await);
}

#[tokio::test]
async fn a_clone_that_is_refused_leaves_no_directories_behind() {
    let names = tree(48).await;
    let parent = file(&names, "/parent").await.volume;
    names.begin_removal(parent, SnapshotId(7)).await.unwrap();
    clone(&names, parent, "/new/deep/clone").await.unwrap_err();
    let gone = VolumeId::from_u128(5);
    clone(&names, gone, "/new/deep/clone").await.unwrap_err();
    assert!(names.find(&path("/new")).await.is_err());
}

#[tokio::test]
async fn what_is_refused_names_the_clones_and_ends_with_them() {
    let names = tree(44).await;
    let parent = file(&names, "/images/debian.raw").await.volume;
    let first = clone(&names, parent, "/vm1/disk.raw").await.unwrap().volume;
    clone(&names, first, "/vm2/disk.raw").await.unwrap();
    let refused = async |at: &str| names.remove_file(&path(at)).await.unwrap_err().to_string();
    let parents = refused("/images/debian.raw").await;
    assert!(parents.contains("/vm1/disk.raw"), "{parents}");
    // A clone of a clone holds the one that it came from.
    assert!(refused("/vm1/disk.raw").await.contains("/vm2/disk.raw"));
    let removal = names.begin_removal(parent, SnapshotId(7)).await.unwrap_err();
    assert!(removal.to_string().contains("/vm1/disk.raw"), "{removal}");
    // By their names now.
    names
        .rename_path(&path("/vm1"), &path("/web"), Replace::No)
        .await
        .unwrap();
    assert!(refused("/images/debian.raw").await.contains("/web/disk.raw"));
    for number in 0..9 {
        clone(&names, parent, &format!("/more/{number}")).await.unwrap();
    }
    let many = refused("/images/debian.raw").await;
    assert!(many.contains('…') && many.len() < 300, "{many}");
    for number in 0..9 {
        names
            .remove_file(&path(&format!("/more/{number}")))
            .await
            .unwrap();
    }
    for at in ["/vm2/disk.raw", "/web/disk.raw", "/images/debian.raw"] {
        names.remove_file(&path(at)).await.unwrap();
    }
    assert_eq!(
        names
            .read_many::<CloneRecord>("clone/", None, 10)
            .await
            .unwrap()
            .len(),
        0
    );
}

#[test]
fn many_that_clone_and_remove_leave_no_clone_without_its_parent() {
    for seed in 0..4 {
        let base = block_on(tree(seed));
        block_on(file(&base, "/0"));
        on_threads(4, |actor| {
            let names = names(base.registry().clone(), seed * 100 + actor);
            let mut chance = Chance::seeded(seed * 1000 + actor);
            block_on(async {
                for _ in 0..100 {
                    let (from, to) = (chance.below(6).to_string(), chance.below(6).to_string());
                    let done = match chance.below(4) {
                        0 => names.unlink(ROOT_INODE, &from, Keep::Nothing).await.map(drop),
                        1 => match names.resolve(&path(&format!("/{from}"))).await {
                            Ok(found) => match names.begin_removal(found.volume, SnapshotId(7)).await {
                                Ok(_) => names.end_removal(found.volume, SnapshotId(7)).await,
                                Err(refused) => Err(refused),
                            },
                            Err(error) => Err(error),
                        },
                        _ => match names.resolve(&path(&format!("/{from}"))).await {
                            Ok(found) => clone(&names, found.volume, &format!("/{to}")).await.map(drop),
                            Err(_) => names
                                .create_file(ROOT_INODE, &to, &volume(), NewEntry::FILE)
                                .await
                                .map(drop),
                        },
                    };
                    if let Err(error @ (NamesError::Unavailable { .. } | NamesError::Busy { .. })) = done {
                        panic!("seed {seed}: {error}");
                    }
                }
            });
        });
        block_on(check(&base, seed));
    }
}

/// Each clone has its parent, and each of what depends on a volume is a clone that exists.
async fn check(names: &Names, seed: u64) {
    let volumes = names
        .read_many::<VolumeRecord>("volume/", None, 10_000)
        .await
        .unwrap();
    let active: Vec<&VolumeRecord> = volumes
        .iter()
        .map(|seen| &seen.record)
        .filter(|record| record.phase == VolumePhase::Active)
        .collect();
    let mut expected: Vec<String> = Vec::new();
    for record in &active {
        let Some(origin) = record.origin else { continue };
        assert!(
            active.iter().any(|parent| parent.id == origin.volume),
            "seed {seed}: a clone lost its parent"
        );
        expected.push(keys::clone(origin.volume, record.id));
    }
    expected.sort();
    let found = names
        .read_many::<CloneRecord>("clone/", None, 10_000)
        .await
        .unwrap();
    let found: Vec<&String> = found.iter().map(|seen| &seen.key).collect();
    assert_eq!(found, expected.iter().collect::<Vec<_>>(), "seed {seed}");
}
