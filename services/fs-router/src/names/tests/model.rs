//! Random operations, each compared with what a plain map of paths says.

use std::collections::BTreeMap;

use sconce_runtime::Chance;
use sconce_schemas::VolumeId;
use sconce_schemas::records::{InodeKind, ROOT_INODE, VolumePhase};

use super::{path, tree, volume};
use crate::names::{Keep, Names, NamesError, NewEntry, PoolPath, Replace};

/// Paths and what is there; `None` is a directory. The root is not in it.
#[derive(Default)]
pub(super) struct Model(pub(super) BTreeMap<String, Option<VolumeId>>);

#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Done,
    NotFound,
    Exists,
    NotDirectory,
    IsDirectory,
    NotEmpty,
    Cycle,
}

impl Outcome {
    fn of<T>(result: Result<T, NamesError>) -> Outcome {
        match result {
            Ok(_) => Outcome::Done,
            Err(NamesError::NotFound { .. }) => Outcome::NotFound,
            Err(NamesError::Exists { .. }) => Outcome::Exists,
            Err(NamesError::NotDirectory { .. }) => Outcome::NotDirectory,
            Err(NamesError::IsDirectory { .. }) => Outcome::IsDirectory,
            Err(NamesError::NotEmpty { .. }) => Outcome::NotEmpty,
            Err(NamesError::Cycle { .. }) => Outcome::Cycle,
            Err(other) => panic!("{other}"),
        }
    }
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').unwrap().0
}

impl Model {
    /// Whether the path's directory is there.
    fn reach(&self, path: &str) -> Result<(), Outcome> {
        let mut at = String::new();
        for name in parent(path).split('/').skip(1) {
            at = format!("{at}/{name}");
            match self.0.get(&at) {
                None => return Err(Outcome::NotFound),
                Some(Some(_)) => return Err(Outcome::NotDirectory),
                Some(None) => {}
            }
        }
        Ok(())
    }

    fn is_empty(&self, directory: &str) -> bool {
        let below = format!("{directory}/");
        !self.0.keys().any(|path| path.starts_with(&below))
    }

    fn create(&mut self, path: &str, entry: Option<VolumeId>) -> Result<(), Outcome> {
        self.reach(path)?;
        if self.0.contains_key(path) {
            return Err(Outcome::Exists);
        }
        self.0.insert(path.to_owned(), entry);
        Ok(())
    }

    fn unlink(&mut self, path: &str) -> Result<(), Outcome> {
        self.reach(path)?;
        match self.0.get(path) {
            None => Err(Outcome::NotFound),
            Some(None) => Err(Outcome::IsDirectory),
            Some(Some(_)) => self.0.remove(path).map(drop).ok_or(Outcome::NotFound),
        }
    }

    fn rmdir(&mut self, path: &str) -> Result<(), Outcome> {
        self.reach(path)?;
        match self.0.get(path) {
            None => Err(Outcome::NotFound),
            Some(Some(_)) => Err(Outcome::NotDirectory),
            Some(None) if !self.is_empty(path) => Err(Outcome::NotEmpty),
            Some(None) => self.0.remove(path).map(drop).ok_or(Outcome::NotFound),
        }
    }

    fn rename(&mut self, from: &str, to: &str, replace: Replace) -> Result<(), Outcome> {
        self.reach(from)?;
        self.reach(to)?;
        let moved = *self.0.get(from).ok_or(Outcome::NotFound)?;
        if from == to {
            return Ok(());
        }
        let target = self.0.get(to).copied();
        if target.is_some() && replace == Replace::No {
            return Err(Outcome::Exists);
        }
        if moved.is_none() && to.starts_with(&format!("{from}/")) {
            return Err(Outcome::Cycle);
        }
        match (moved, target) {
            (None, Some(Some(_))) => return Err(Outcome::NotDirectory),
            (Some(_), Some(None)) => return Err(Outcome::IsDirectory),
            (None, Some(None)) if !self.is_empty(to) => return Err(Outcome::NotEmpty),
            _ => {}
        }
        self.0.remove(to);
        let below = format!("{from}/");
        let tail = |path: &String| path.strip_prefix(from).map(str::to_owned);
        let moving: Vec<_> = self
            .0
            .iter()
            .filter(|(path, _)| *path == from || path.starts_with(&below))
            .filter_map(|(path, entry)| Some((path.clone(), format!("{to}{}", tail(path)?), *entry)))
            .collect();
        for (old, new, entry) in moving {
            self.0.remove(&old);
            self.0.insert(new, entry);
        }
        Ok(())
    }
}

fn outcome(result: Result<(), Outcome>) -> Outcome {
    result.err().unwrap_or(Outcome::Done)
}

/// A path of one to four components from a small alphabet, so that operations meet.
fn any_path(chance: &mut Chance) -> String {
    let depth = 1 + chance.below(4);
    (0..depth)
        .map(|_| format!("/{}", ["a", "b", "c"][usize::try_from(chance.below(3)).unwrap()]))
        .collect()
}

async fn ends(names: &Names, at: &PoolPath) -> Result<(u64, String), NamesError> {
    let (directory, name) = at.split()?;
    Ok((names.resolve_directory(&directory).await?, name.to_owned()))
}

pub(super) async fn step(names: &Names, model: &mut Model, chance: &mut Chance) {
    let text = any_path(chance);
    let at = path(&text);
    match chance.below(6) {
        0 => {
            let made = names.create_volume(&at, &volume(), NewEntry::FILE, false).await;
            let id = made.as_ref().ok().map(|made| made.volume);
            let said = outcome(model.create(&text, Some(id.unwrap_or_default())));
            assert_eq!(Outcome::of(made), said, "create {text}");
        }
        1 => {
            let made = async {
                let (directory, name) = ends(names, &at).await?;
                names.make_directory(directory, &name, NewEntry::DIRECTORY).await
            };
            assert_eq!(
                Outcome::of(made.await),
                outcome(model.create(&text, None)),
                "mkdir {text}"
            );
        }
        2 => {
            let gone = names.remove_file(&at).await;
            assert_eq!(Outcome::of(gone), outcome(model.unlink(&text)), "unlink {text}");
        }
        3 => {
            let gone = async {
                let (directory, name) = ends(names, &at).await?;
                names.remove_directory(directory, &name).await
            };
            assert_eq!(
                Outcome::of(gone.await),
                outcome(model.rmdir(&text)),
                "rmdir {text}"
            );
        }
        _ => {
            let to = any_path(chance);
            let replace = if chance.one_of(4, 5) {
                Replace::Yes
            } else {
                Replace::No
            };
            let moved = names.rename_path(&at, &path(&to), replace).await;
            assert_eq!(
                Outcome::of(moved),
                outcome(model.rename(&text, &to, replace)),
                "rename {text} {to}"
            );
        }
    }
}

/// Everything that the tree has, found by walking down, each inode checked on the way.
pub(super) async fn walk(names: &Names) -> BTreeMap<String, Option<VolumeId>> {
    let mut found = BTreeMap::new();
    let mut directories = vec![(PoolPath::root(), ROOT_INODE)];
    while let Some((at, directory)) = directories.pop() {
        for entry in names.list(directory, None, 1000).await.unwrap() {
            let path = at.join(&entry.name).unwrap();
            let record = names.attributes(entry.inode).await.unwrap();
            assert_eq!(
                (record.parent, &record.name, record.kind),
                (directory, &entry.name, entry.kind)
            );
            assert_eq!(names.path_of(entry.inode).await.unwrap(), path);
            match entry.kind {
                InodeKind::Directory => directories.push((path.clone(), entry.inode)),
                InodeKind::File(id) => {
                    let volume = names.volume(id).await.unwrap();
                    assert_eq!((volume.inode, volume.phase), (entry.inode, VolumePhase::Active));
                }
            }
            let volume = match entry.kind {
                InodeKind::Directory => None,
                InodeKind::File(id) => Some(id),
            };
            assert!(found.insert(path.to_string(), volume).is_none(), "{path} twice");
        }
    }
    found
}

#[tokio::test]
async fn random_operations_do_what_a_plain_map_of_paths_does() {
    for seed in 0..30 {
        let names = tree(seed).await;
        let mut model = Model::default();
        let mut chance = Chance::seeded(seed);
        for _ in 0..300 {
            step(&names, &mut model, &mut chance).await;
        }
        assert_eq!(walk(&names).await, model.0, "seed {seed}");
        let files: BTreeMap<String, Option<VolumeId>> = names
            .files(&PoolPath::root(), usize::MAX)
            .await
            .unwrap()
            .into_iter()
            .map(|file| (file.path.to_string(), Some(file.volume)))
            .collect();
        model.0.retain(|_, entry| entry.is_some());
        assert_eq!(files, model.0, "seed {seed}");
    }
}

#[tokio::test]
async fn a_listing_pages_through_all_names_once() {
    let names = tree(1).await;
    let directory = names.make_directories(&path("/many")).await.unwrap();
    for n in 0..25 {
        names
            .make_directory(directory, &format!("d{n:02}"), NewEntry::DIRECTORY)
            .await
            .unwrap();
    }
    let mut listed: Vec<String> = Vec::new();
    loop {
        let page = names
            .list(directory, listed.last().map(String::as_str), 7)
            .await
            .unwrap();
        let last = page.len() < 7;
        listed.extend(page.into_iter().map(|entry| entry.name));
        if last {
            break;
        }
    }
    assert_eq!(listed, (0..25).map(|n| format!("d{n:02}")).collect::<Vec<_>>());
    let moved = names
        .rename(
            (directory, "d03"),
            (ROOT_INODE, "d03"),
            Replace::Yes,
            Keep::Nothing,
        )
        .await;
    assert_eq!(names.path_of(moved.unwrap().inode).await.unwrap(), path("/d03"));
}
