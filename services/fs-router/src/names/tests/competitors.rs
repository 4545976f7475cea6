//! Several actors on threads of their own change one tree: what the others cannot see is never half there.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use sconce_runtime::Chance;
use sconce_schemas::records::{InodeRecord, ROOT_INODE, VolumePhase};

use super::model::walk;
use super::{names, path, tree, volume};
use crate::names::{Keep, Names, NamesError, NewEntry, PoolPath, Replace};

const ACTORS: u64 = 4;
const STEPS: usize = 150;

/// How many files and directories there must be, by what the actors were told.
#[derive(Default)]
struct Balance {
    files: AtomicI64,
    directories: AtomicI64,
}

pub(super) fn on_threads(actors: u64, act: impl Fn(u64) + Sync) {
    std::thread::scope(|scope| {
        let act = &act;
        (0..actors).for_each(|actor| drop(scope.spawn(move || act(actor))));
    });
}

pub(super) fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

fn any_path(chance: &mut Chance) -> PoolPath {
    let depth = 1 + chance.below(4);
    let name = |n: u64| ["/a", "/b", "/c", "/d"][usize::try_from(n).unwrap()];
    path(&(0..depth).map(|_| name(chance.below(4))).collect::<String>())
}

async fn step(names: &Names, chance: &mut Chance, balance: &Balance) -> Result<(), NamesError> {
    let at = any_path(chance);
    let (directory, name) = at.split()?;
    let directory = names.resolve_directory(&directory).await?;
    match chance.below(6) {
        0 => {
            names
                .create_file(directory, name, &volume(), NewEntry::FILE)
                .await?;
            balance.files.fetch_add(1, Ordering::Relaxed);
        }
        1 => {
            names.make_directory(directory, name, NewEntry::DIRECTORY).await?;
            balance.directories.fetch_add(1, Ordering::Relaxed);
        }
        2 => {
            names.unlink(directory, name, Keep::Nothing).await?;
            balance.files.fetch_sub(1, Ordering::Relaxed);
        }
        3 => {
            names.remove_directory(directory, name).await?;
            balance.directories.fetch_sub(1, Ordering::Relaxed);
        }
        _ => {
            let to = any_path(chance);
            // Directories replace nothing here, so that the balance is known.
            let renamed = names.rename_path(&at, &to, Replace::No).await?;
            assert_eq!(renamed.replaced, None);
        }
    }
    Ok(())
}

#[test]
fn competitors_leave_a_tree_that_holds_what_they_were_told() {
    for seed in 0..8 {
        let base = block_on(tree(seed));
        let balance = Arc::new(Balance::default());
        on_threads(ACTORS, |actor| {
            let names = names(base.registry().clone(), seed * 100 + actor);
            let mut chance = Chance::seeded(seed * 1000 + actor);
            block_on(async {
                for _ in 0..STEPS {
                    match step(&names, &mut chance, &balance).await {
                        Err(NamesError::Unavailable { cause }) => panic!("{cause}"),
                        Err(NamesError::Damaged { cause, .. }) => panic!("{cause}"),
                        Err(NamesError::Busy { at, .. }) => panic!("{at} stayed busy"),
                        Ok(()) | Err(_) => {}
                    }
                }
            });
        });
        block_on(check(&base, &balance, seed));
    }
}

async fn check(names: &Names, balance: &Balance, seed: u64) {
    let found = walk(names).await;
    let files = found.values().filter(|volume| volume.is_some()).count();
    let directories = found.len() - files;
    assert_eq!(
        i64::try_from(files).unwrap(),
        balance.files.load(Ordering::Relaxed),
        "files, seed {seed}"
    );
    assert_eq!(
        i64::try_from(directories).unwrap(),
        balance.directories.load(Ordering::Relaxed),
        "directories, seed {seed}"
    );
    // Nothing hangs in the air: every inode and every living volume was found by walking down.
    let inodes = names
        .read_many::<InodeRecord>("inode/", None, 1000)
        .await
        .unwrap();
    let below_root = inodes
        .iter()
        .filter(|seen| !seen.key.ends_with(&format!("{ROOT_INODE:016x}")))
        .count();
    assert_eq!(below_root, found.len(), "inodes, seed {seed}");
    let living: BTreeSet<_> = names
        .volumes(None, 1000)
        .await
        .unwrap()
        .into_iter()
        .filter(|volume| volume.phase == VolumePhase::Active)
        .map(|volume| volume.id)
        .collect();
    assert_eq!(
        living,
        found.values().flatten().copied().collect(),
        "volumes, seed {seed}"
    );
}

#[test]
fn of_many_that_make_one_name_one_wins() {
    let base = block_on(tree(1));
    let won = AtomicI64::new(0);
    on_threads(8, |actor| {
        let names = names(base.registry().clone(), actor);
        let made = block_on(names.create_volume(&path("/x/disk.raw"), &volume(), NewEntry::FILE, true));
        match made {
            Ok(_) => _ = won.fetch_add(1, Ordering::Relaxed),
            Err(NamesError::Exists { .. }) => {}
            Err(other) => panic!("{other}"),
        }
    });
    assert_eq!(won.load(Ordering::Relaxed), 1);
    assert_eq!(block_on(walk(&base)).len(), 2);
}

#[test]
fn two_moves_never_make_a_circle() {
    for seed in 0..40 {
        let base = block_on(tree(seed));
        block_on(async {
            base.make_directories(&path("/p/a/x")).await.unwrap();
            base.make_directories(&path("/q/b/y")).await.unwrap();
        });
        // Neither touches what the other moves from: only the directories above the new places meet.
        let moves = [("/p/a", "/q/b/y/a"), ("/q/b", "/p/a/x/b")];
        on_threads(2, |actor| {
            let names = names(base.registry().clone(), seed * 2 + actor);
            let (from, to) = moves[usize::from(actor == 1)];
            let moved = block_on(names.rename_path(&path(from), &path(to), Replace::No));
            assert!(!matches!(
                moved,
                Err(NamesError::Unavailable { .. } | NamesError::Busy { .. })
            ));
        });
        assert_eq!(
            block_on(walk(&base)).len(),
            6,
            "seed {seed}: all six directories hang below the root"
        );
    }
}

#[test]
fn a_directory_is_never_removed_under_a_new_file() {
    let base = block_on(tree(3));
    for round in 0..200 {
        let directory = block_on(base.make_directory(ROOT_INODE, "d", NewEntry::DIRECTORY)).unwrap();
        let start = std::sync::Barrier::new(2);
        let happened = AtomicI64::new(0);
        on_threads(2, |actor| {
            let names = names(base.registry().clone(), round * 2 + actor);
            start.wait();
            let done = match actor {
                0 => block_on(names.remove_directory(ROOT_INODE, "d")).is_ok(),
                _ => block_on(names.create_file(directory, "f", &volume(), NewEntry::FILE)).is_ok(),
            };
            happened.fetch_add(i64::from(done), Ordering::Relaxed);
        });
        assert_eq!(
            happened.load(Ordering::Relaxed),
            1,
            "round {round}: one of the two happens"
        );
        if block_on(base.unlink(directory, "f", Keep::Nothing)).is_ok() {
            block_on(base.remove_directory(ROOT_INODE, "d")).unwrap();
        }
    }
}
