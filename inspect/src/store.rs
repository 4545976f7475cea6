//! The back ends that are looked at, as one: which of them has which object, and what each copy says.
//!
//! Keeps: the back ends.
//! Order: none.
//! Crash: nothing; nothing is ever written.
//! Knows the envelope (by `Checked`); no volume, no registry. So it cannot tell how many copies there should be.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sconce_schemas::object::ObjectKind;
use sconce_schemas::{ObjectName, VolumeId};
use sconce_storage_router::backend::{Backend, BackendError};
use sconce_storage_router::checked::Checked;
use sconce_storage_router::directory::ReadOnlyDirectory;
use sconce_storage_router::workers::Workers;

/// Names in one page of a listing.
const PAGE: usize = 4096;
/// Nobody waits for a check as a guest waits for a read: a slow disk is no reason to give up.
const DEADLINE: Duration = Duration::from_hours(1);

/// Why back ends could not be looked at.
#[derive(Debug, thiserror::Error)]
#[error("back end {backend}: {error}")]
pub struct StoreError {
    /// Its directory, or name.
    pub backend: String,
    /// What it said.
    pub error: BackendError,
}

/// One back end.
struct Place {
    label: String,
    wrong: Option<String>,
    checked: Checked,
}

/// Back ends that hold the objects of a pool together.
pub struct Store {
    places: Vec<Place>,
}

/// Which back ends have each object of a volume, by their number.
pub type Copies = BTreeMap<ObjectName, Vec<usize>>;

/// A copy that is not what was stored.
#[derive(Debug, Clone)]
pub(crate) struct BadCopy {
    pub(crate) backend: usize,
    pub(crate) error: BackendError,
}

/// What all copies of an object said.
#[derive(Debug)]
pub(crate) struct Answers<T> {
    /// The first that is good.
    pub(crate) good: Option<T>,
    pub(crate) bad: Vec<BadCopy>,
}

impl Store {
    /// Back ends by what people call them.
    #[must_use]
    pub fn new(backends: Vec<(String, Arc<dyn Backend>)>) -> Self {
        let place = |(label, backend): (String, Arc<dyn Backend>)| Place {
            label,
            wrong: None,
            checked: Checked::new(backend, Workers::inline(), DEADLINE),
        };
        Self {
            places: backends.into_iter().map(place).collect(),
        }
    }

    /// The back ends in these directories.
    ///
    /// # Errors
    /// One is not there, is no back end's, or may not be read.
    pub fn open(directories: &[PathBuf]) -> Result<Self, StoreError> {
        let mut places = Vec::new();
        for directory in directories {
            let label = directory.display().to_string();
            let opened = ReadOnlyDirectory::open(directory.clone()).map_err(|error| StoreError {
                backend: label.clone(),
                error,
            })?;
            places.push(Place {
                label,
                wrong: opened.wrong().map(str::to_owned),
                checked: Checked::new(Arc::new(opened), Workers::inline(), DEADLINE),
            });
        }
        Ok(Self { places })
    }

    /// What people call the back ends.
    #[must_use]
    pub fn labels(&self) -> Vec<String> {
        self.places.iter().map(|place| place.label.clone()).collect()
    }

    /// What a back end is called.
    pub(crate) fn label(&self, backend: usize) -> &str {
        self.places.get(backend).map_or("?", |place| &place.label)
    }

    /// What is wrong with back ends themselves.
    pub(crate) fn wrong(&self) -> impl Iterator<Item = (&str, &str)> {
        let wrong = |place| {
            let Place { label, wrong, .. }: &Place = place;
            Some((label.as_str(), wrong.as_deref()?))
        };
        self.places.iter().filter_map(wrong)
    }

    /// All volumes that have an object here, ascending.
    ///
    /// # Errors
    /// A back end cannot be listed.
    pub async fn volumes(&self) -> Result<Vec<VolumeId>, StoreError> {
        let mut found = std::collections::BTreeSet::new();
        for place in &self.places {
            let mut after = None;
            loop {
                let page = place.checked.list_volumes(after, PAGE).await;
                let page = page.map_err(|error| place.failed(error))?;
                after = page.last().copied();
                let is_last = page.len() < PAGE;
                found.extend(page);
                if is_last {
                    break;
                }
            }
        }
        Ok(found.into_iter().collect())
    }

    /// A volume's objects of one kind.
    ///
    /// # Errors
    /// A back end cannot be listed.
    pub async fn list(&self, volume: VolumeId, kind: ObjectKind) -> Result<Copies, StoreError> {
        let mut found = Copies::new();
        for (number, place) in self.places.iter().enumerate() {
            let mut after = None;
            loop {
                let page = place.checked.list(volume, kind, after, PAGE).await;
                let page = page.map_err(|error| place.failed(error))?;
                after = page.last().copied();
                let is_last = page.len() < PAGE;
                for name in page {
                    found.entry(name).or_default().push(number);
                }
                if is_last {
                    break;
                }
            }
        }
        Ok(found)
    }

    /// Reads a range of every copy of an object.
    pub(crate) async fn read(
        &self,
        name: ObjectName,
        copies: &[usize],
        offset: u64,
        length: u64,
    ) -> Answers<Bytes> {
        let mut answers = Answers {
            good: None,
            bad: Vec::new(),
        };
        for (backend, place) in self.of(copies) {
            answers.take(backend, place.checked.get(name, offset, length).await);
        }
        answers
    }

    /// The length of an object in bytes, as every copy has it.
    pub(crate) async fn length(&self, name: ObjectName, copies: &[usize]) -> Answers<u64> {
        let mut answers = Answers {
            good: None,
            bad: Vec::new(),
        };
        for (backend, place) in self.of(copies) {
            answers.take(backend, place.checked.stat(name).await);
        }
        answers
    }

    fn of<'a>(&'a self, copies: &'a [usize]) -> impl Iterator<Item = (usize, &'a Place)> {
        let place = |number: &usize| Some((*number, self.places.get(*number)?));
        copies.iter().filter_map(place)
    }
}

impl Place {
    fn failed(&self, error: BackendError) -> StoreError {
        StoreError {
            backend: self.label.clone(),
            error,
        }
    }
}

impl<T> Answers<T> {
    fn take(&mut self, backend: usize, answer: Result<T, BackendError>) {
        match answer {
            Ok(good) => {
                self.good.get_or_insert(good);
            }
            Err(error) => self.bad.push(BadCopy { backend, error }),
        }
    }
}
