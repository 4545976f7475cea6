//! A damaged sled, and a damaged snapshot or journal: noticed, set aside, rebuilt from the other.

use std::fs;
use std::path::{Path, PathBuf};

use sconce_registry::{Change, Entry, OpenError, Registry, Revision};
use sconce_runtime::Chance;
use sconce_tracing::Witness;

/// A registry directory with two generations of history, as an orderly end leaves it, and what is in it.
async fn written() -> (tempfile::TempDir, Contents) {
    let dir = tempfile::tempdir().unwrap();
    let registry = Registry::sled(dir.path()).unwrap();
    for n in 0..30_u64 {
        let large = vec![u8::try_from(n).unwrap(); 60_000];
        let mut changes = vec![Change::put(format!("large/{}", n % 4), None, large)];
        changes.push(Change::put(format!("small/{n:02}"), None, vec![7; 50]));
        if n % 3 == 1 {
            changes.push(Change::delete(format!("small/{:02}", n / 2), None));
        }
        registry.commit(changes).await.unwrap();
    }
    let contents = contents(&registry).await;
    let names = names(dir.path());
    assert!(
        names.contains(&"journal.2".to_owned()),
        "compacted once: {names:?}"
    );
    (dir, contents)
}

type Contents = (Revision, Vec<Entry>);

async fn contents(registry: &Registry) -> Contents {
    let entries = registry.list("", None, 1000).await.unwrap();
    (registry.revision().await.unwrap(), entries)
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn set_aside(dir: &Path) -> Vec<String> {
    names(dir)
        .into_iter()
        .filter(|name| name.starts_with("registry.damaged-"))
        .collect()
}

fn copied(from: &Path) -> tempfile::TempDir {
    let to = tempfile::tempdir().unwrap();
    copy_into(from, to.path());
    to
}

fn copy_into(from: &Path, to: &Path) {
    for name in names(from) {
        let (from, to) = (from.join(&name), to.join(&name));
        if from.is_dir() {
            fs::create_dir(&to).unwrap();
            copy_into(&from, &to);
        } else {
            fs::copy(&from, &to).unwrap();
        }
    }
}

/// All files below a path, in order.
fn files(path: &Path) -> Vec<PathBuf> {
    if path.is_file() {
        return vec![path.to_owned()];
    }
    names(path)
        .iter()
        .flat_map(|name| files(&path.join(name)))
        .collect()
}

fn below(chance: &mut Chance, bound: usize) -> usize {
    usize::try_from(chance.below(bound as u64)).unwrap()
}

/// Flips some bits, zeroes a stretch, cuts a file off, or replaces it with nonsense.
fn damage(path: &Path, chance: &mut Chance) {
    let files: Vec<_> = files(path)
        .into_iter()
        .filter(|file| fs::metadata(file).unwrap().len() > 0)
        .collect();
    let file = &files[below(chance, files.len())];
    let mut bytes = fs::read(file).unwrap();
    let at = below(chance, bytes.len());
    match chance.below(5) {
        0 | 1 => {
            for _ in 0..=chance.below(4) {
                let at = below(chance, bytes.len());
                bytes[at] ^= 1 << chance.below(8);
            }
        }
        2 => {
            let end = (at + 1 + below(chance, 5000)).min(bytes.len());
            bytes[at..end].fill(0);
        }
        3 => bytes.truncate(at),
        _ => chance.fill(&mut bytes),
    }
    fs::write(file, bytes).unwrap();
}

/// Opens, compares, and sees that both copies were made good: each alone gives the same again.
///
/// Whether something was wrong has to be told, and has to be nothing else that is.
async fn opens_whole(dir: &Path, wanted: &Contents, what: &str) {
    let gone = !dir.join("sled").exists() || !dir.join("snapshot").exists();
    let witness = Witness::of_this_thread();
    let registry = Registry::sled(dir).unwrap_or_else(|error| panic!("{what}: {error}"));
    let (told, kept) = (
        witness.announced("rebuilding"),
        witness.announced("damaged registry files kept"),
    );
    drop(witness);
    assert_eq!(
        told.is_empty(),
        kept.is_empty() && !gone,
        "{what}: {told:?} {kept:?}"
    );
    assert!(
        contents(&registry).await == *wanted,
        "{what}: what is there differs"
    );
    drop(registry);
    assert!(kept.is_empty() || !set_aside(dir).is_empty(), "{what}");
    let sets = set_aside(dir).len();
    let (no_sled, no_log) = (copied(dir), copied(dir));
    fs::remove_dir_all(no_sled.path().join("sled")).unwrap();
    remove_log(no_log.path());
    for (alone, which) in [(no_sled, "the snapshot and journal"), (no_log, "sled")] {
        let registry = Registry::sled(alone.path()).unwrap();
        assert!(contents(&registry).await == *wanted, "{what}: {which} alone");
    }
    let witness = Witness::of_this_thread();
    drop(Registry::sled(dir).unwrap());
    drop(witness);
    assert_eq!(set_aside(dir).len(), sets, "{what}: nothing is damaged any more");
}

fn remove_log(dir: &Path) {
    for name in names(dir) {
        if name == "snapshot" || name.starts_with("journal.") {
            fs::remove_file(dir.join(name)).unwrap();
        }
    }
}

fn seeds() -> u64 {
    let asked = std::env::var("SCONCE_DAMAGE_SEEDS").ok();
    asked.map_or(25, |seeds| {
        seeds.parse().expect("SCONCE_DAMAGE_SEEDS is a number")
    })
}

#[tokio::test]
async fn a_damaged_sled_is_rebuilt_from_the_snapshot_and_journal() {
    let (dir, wanted) = written().await;
    let mut noticed = 0;
    for seed in 0..seeds() {
        let damaged = copied(dir.path());
        damage(&damaged.path().join("sled"), &mut Chance::seeded(seed));
        opens_whole(damaged.path(), &wanted, &format!("seed {seed}")).await;
        noticed += set_aside(damaged.path()).len();
    }
    assert!(noticed > 0, "some damage was in what sled uses");
}

#[tokio::test]
async fn a_sled_that_is_gone_or_another_ones_is_rebuilt() {
    let (dir, wanted) = written().await;
    let gone = copied(dir.path());
    fs::remove_dir_all(gone.path().join("sled")).unwrap();
    opens_whole(gone.path(), &wanted, "no sled").await;

    let emptied = copied(dir.path());
    for file in files(&emptied.path().join("sled")) {
        fs::write(file, b"").unwrap();
    }
    opens_whole(emptied.path(), &wanted, "empty files").await;
    assert_eq!(set_aside(emptied.path()).len(), 1);

    let other = tempfile::tempdir().unwrap();
    let registry = Registry::sled(other.path()).unwrap();
    registry
        .commit(vec![Change::put("small/01", None, b"another".to_vec())])
        .await
        .unwrap();
    drop(registry);
    let mixed = copied(dir.path());
    fs::remove_dir_all(mixed.path().join("sled")).unwrap();
    fs::create_dir(mixed.path().join("sled")).unwrap();
    copy_into(&other.path().join("sled"), &mixed.path().join("sled"));
    opens_whole(mixed.path(), &wanted, "another registry's sled").await;
    assert_eq!(set_aside(mixed.path()).len(), 1);
}

#[tokio::test]
async fn a_damaged_snapshot_or_journal_is_rebuilt_from_sled() {
    let (dir, wanted) = written().await;
    for seed in 0..seeds() {
        let damaged = copied(dir.path());
        let file = if seed % 2 == 0 { "journal.2" } else { "snapshot" };
        damage(&damaged.path().join(file), &mut Chance::seeded(seed));
        opens_whole(damaged.path(), &wanted, &format!("{file}, seed {seed}")).await;
    }
    for lost in [vec!["journal.2"], vec!["snapshot"], vec!["journal.2", "snapshot"]] {
        let damaged = copied(dir.path());
        for name in &lost {
            fs::remove_file(damaged.path().join(name)).unwrap();
        }
        opens_whole(damaged.path(), &wanted, &format!("no {lost:?}")).await;
    }
}

#[tokio::test]
async fn a_last_commit_that_was_cut_off_is_dropped_without_a_word() {
    let (dir, wanted) = written().await;
    let journal = dir.path().join("journal.2");
    let mut bytes = fs::read(&journal).unwrap();
    bytes.extend_from_slice(&[100, 0, 0, 0, 1, 2, 3, 4, 5, 6]);
    fs::write(&journal, bytes).unwrap();
    opens_whole(dir.path(), &wanted, "a torn tail").await;
    assert_eq!(set_aside(dir.path()), Vec::<String>::new());
}

#[tokio::test]
async fn when_both_are_damaged_the_open_is_refused_and_nothing_is_changed() {
    let (dir, _) = written().await;
    for file in files(&dir.path().join("sled")) {
        fs::write(file, b"nonsense").unwrap();
    }
    fs::remove_file(dir.path().join("journal.2")).unwrap();
    let before = names(dir.path());
    let error = Registry::sled(dir.path()).unwrap_err();
    assert!(matches!(error, OpenError::BothDamaged { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains(&dir.path().display().to_string()), "{text}");
    assert!(
        text.contains("journal.2 is gone") && text.contains("sconce recover"),
        "{text}"
    );
    assert_eq!(names(dir.path()), before);
}

#[tokio::test]
async fn a_sled_that_lost_an_entry_by_itself_is_noticed() {
    let (dir, wanted) = written().await;
    let db = sled::open(dir.path().join("sled")).unwrap();
    db.remove(b"esmall/20").unwrap().unwrap();
    db.flush().unwrap();
    drop(db);
    let alone = copied(dir.path());
    opens_whole(dir.path(), &wanted, "an entry less").await;
    assert_eq!(set_aside(dir.path()).len(), 1);
    remove_log(alone.path());
    let error = Registry::sled(alone.path()).unwrap_err();
    assert!(
        matches!(error, OpenError::BothDamaged { .. }),
        "it is not taken for good: {error}"
    );
}

#[tokio::test]
async fn only_the_newest_few_sets_are_kept() {
    let (dir, wanted) = written().await;
    for time in 1..=7 {
        fs::create_dir(dir.path().join(format!("registry.damaged-000000000{time}"))).unwrap();
    }
    fs::write(dir.path().join("sled/db"), b"nonsense").unwrap();
    opens_whole(dir.path(), &wanted, "many sets").await;
    let sets = set_aside(dir.path());
    assert_eq!(sets.len(), 4);
    assert_eq!(sets[0], "registry.damaged-0000000005");
    assert!(
        dir.path().join(&sets[3]).join("sled/db").exists(),
        "the evidence of now is kept"
    );
}
