//! The back ends that this service reaches: those of its settings, and those that the registry says where they are.
//!
//! Keeps: each back end that is open; in the registry, who each of them is and, of those that a command added, where.
//! Order: a back end has its identity before the registry knows it; whoever comes later compares.
//! Crash: a start or an addition that ended in between is completed by the next.
//! Knows no pools.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail};
use sconce_registry::record::decode;
use sconce_registry::{Change, CommitError, Registry, RegistryError, Revision};
use sconce_runtime::Events;
use sconce_schemas::records::{BackendPlace, BackendRecord, PlacementEntry, S3Place, keys};
use sconce_schemas::wire::event::What;
use sconce_schemas::wire::storage::BackendStatus;
use sconce_schemas::wire::{Refusal, RefusalCode};
use sconce_schemas::{BackendId, NodeName};

use crate::backend::{BackendError, Identified};
use crate::checked::Checked;
use crate::directory::{DirectoryBackend, DirectorySettings};
use crate::s3::S3Backend;
use crate::settings::{Settings, StoreSettings};
use crate::workers::Workers;

/// The back ends, by name.
pub(super) struct Backends {
    registry: Registry,
    /// `None`: others made the back ends, and none is opened.
    opener: Option<Opener>,
    open: Mutex<HashMap<String, Open>>,
    /// What the registry names and cannot be opened here, and why.
    unusable: Mutex<BTreeMap<String, String>>,
    /// One addition, or look at the registry, at a time.
    turn: tokio::sync::Mutex<()>,
}

#[derive(Clone)]
struct Open {
    checked: Arc<Checked>,
    /// The back end itself, and who it has to be; `None`: others made it.
    identified: Option<(Arc<dyn Identified>, BackendId)>,
    /// The settings say where it is, so the registry's place does not count here.
    is_from_settings: bool,
    /// Where it is; empty where others made it.
    place: String,
}

/// How back ends are opened.
struct Opener {
    node: NodeName,
    workers: Workers,
    events: Events,
    deadline: Duration,
    /// What may be under way at one of them: at most half of all, so that one that hangs leaves the rest to the others.
    requests: usize,
    bytes: u64,
}

impl Opener {
    fn new(settings: &Settings, workers: &Workers, events: &Events) -> Self {
        let limits = &settings.limits;
        let sharers = settings.backends.len().max(2);
        Self {
            node: settings.node.name.clone(),
            workers: workers.clone(),
            events: events.clone(),
            deadline: limits.backend_deadline.duration(),
            requests: limits.requests / sharers,
            bytes: limits.bytes.bytes() / sharers as u64,
        }
    }

    fn open(
        &self,
        name: &str,
        store: &StoreSettings,
        expected: Option<BackendId>,
    ) -> Result<Arc<dyn Identified>, String> {
        Ok(match store {
            StoreSettings::Directory(root) => Arc::new(DirectoryBackend::new(DirectorySettings {
                name: name.to_owned(),
                root: root.clone(),
                node: self.node.clone(),
                expected,
            })),
            StoreSettings::S3(s3) => Arc::new(S3Backend::new(name, s3, self.deadline, expected)?),
        })
    }

    fn checked(&self, backend: Arc<dyn Identified>) -> Arc<Checked> {
        let checked = Checked::new(backend, self.workers.clone(), self.deadline);
        let checked = checked.at_most(self.requests, self.bytes);
        Arc::new(checked.telling(self.events.clone()))
    }

    /// Opens a back end of the settings. One that is known and absent now is served as absent, until it is back.
    async fn recognised(
        &self,
        registry: &Registry,
        name: &str,
        store: &StoreSettings,
    ) -> anyhow::Result<(Arc<dyn Identified>, BackendId)> {
        let known = registry.get_record::<BackendRecord>(&keys::backend(name)).await?;
        let expected = known.as_ref().map(|(record, _)| record.id);
        let found = self.open(name, store, expected).map_err(anyhow::Error::msg)?;
        let id = match (found.attach().await, known) {
            (Ok(id), None) => {
                let record = BackendRecord {
                    name: name.to_owned(),
                    id,
                    place: None,
                };
                register(registry, &*found, record).await?.id
            }
            (Ok(_), Some((record, _))) => record.id,
            // Nothing was ever stored there: most likely a wrong place in the settings.
            (Err(error), None) => bail!("{error}"),
            (Err(error), Some((record, _))) => {
                let (backend, cause) = (
                    name.to_owned(),
                    format!("serving without it until it is back: {error}"),
                );
                self.events.tell(What::BackendFails { backend, cause });
                record.id
            }
        };
        Ok((found, id))
    }
}

/// Registers a back end that was given its identity, and gives the record that is there then: whoever is first decides.
async fn register(
    registry: &Registry,
    found: &dyn Identified,
    ours: BackendRecord,
) -> anyhow::Result<BackendRecord> {
    let key = keys::backend(&ours.name);
    match registry
        .put_record(&key, Some(Revision::ABSENT), &ours, None)
        .await
    {
        Ok(_) => return Ok(ours),
        // Somebody else was first, or it was us and the answer was lost.
        Err(CommitError::Conflict { .. } | CommitError::Unknown { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    let (registered, _) = registry
        .get_record::<BackendRecord>(&key)
        .await?
        .context("the registry lost the record; try again")?;
    if ours.id != registered.id {
        found.expect(registered.id);
        tracing::warn!(
            backend = found.name(), ours = %ours.id, registered = %registered.id,
            "another storage-router registered this back end with another identity: serving without ours"
        );
    }
    Ok(registered)
}

impl Backends {
    /// Opens the back ends of the settings.
    pub(super) async fn of_settings(
        settings: &Settings,
        registry: &Registry,
        workers: &Workers,
        events: &Events,
    ) -> anyhow::Result<Self> {
        let opener = Opener::new(settings, workers, events);
        let mut open = HashMap::new();
        for backend in &settings.backends {
            let name = backend.name.to_string();
            let recognised = opener.recognised(registry, &name, &backend.store).await;
            let (found, id) = recognised.with_context(|| format!("back end {name}"))?;
            let place = backend.store.place();
            open.insert(
                name,
                Open {
                    checked: opener.checked(Arc::clone(&found)),
                    identified: Some((found, id)),
                    is_from_settings: true,
                    place,
                },
            );
        }
        Ok(Self::new(registry, Some(opener), open))
    }

    /// Back ends that somebody else made.
    pub(super) fn made(registry: &Registry, made: impl IntoIterator<Item = Arc<Checked>>) -> Self {
        let open = made.into_iter().map(|checked| {
            let name = checked.name().to_owned();
            let open = Open {
                checked,
                identified: None,
                is_from_settings: true,
                place: String::new(),
            };
            (name, open)
        });
        Self::new(registry, None, open.collect())
    }

    fn new(registry: &Registry, opener: Option<Opener>, open: HashMap<String, Open>) -> Self {
        Self {
            registry: registry.clone(),
            opener,
            open: Mutex::new(open),
            unusable: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
        }
    }

    /// Those that are open, by name.
    pub(super) fn all(&self) -> HashMap<String, Arc<Checked>> {
        let open = self.open();
        let checked = open
            .iter()
            .map(|(name, open)| (name.clone(), Arc::clone(&open.checked)));
        checked.collect()
    }

    /// What is known of each, sorted by name.
    pub(super) async fn statuses(&self) -> Vec<BackendStatus> {
        let open = self.all();
        let asked = open.values().map(|backend| backend.status());
        let mut statuses = futures_util::future::join_all(asked).await;
        let unusable = self.unusable.lock().unwrap_or_else(PoisonError::into_inner);
        statuses.extend(unusable.iter().map(|(name, why)| BackendStatus {
            name: name.clone(),
            state: why.clone(),
            ..BackendStatus::default()
        }));
        statuses.sort_by(|a, b| a.name.cmp(&b.name));
        statuses
    }

    /// Opens what the registry has and is not open here, and lets go of what it does not have any more.
    pub(super) async fn look(&self) -> Result<(), RegistryError> {
        let Some(opener) = &self.opener else {
            return Ok(());
        };
        let _turn = self.turn.lock().await;
        let entries = self.registry.list(keys::BACKENDS, None, usize::MAX).await?;
        let mut unusable = BTreeMap::new();
        let mut listed = Vec::new();
        for entry in &entries {
            let name = entry.key.strip_prefix(keys::BACKENDS).unwrap_or(&entry.key);
            listed.push(name);
            let opened = decode::<BackendRecord>(entry).map_err(|error| error.to_string());
            let opened = opened.and_then(|record| {
                let store = record.place.as_ref().map(StoreSettings::try_from).transpose()?;
                if self.is_open(name, record.id, store.as_ref()) {
                    return Ok(None);
                }
                let Some(store) = store else {
                    return Ok(None);
                };
                // Whoever asks it first finds out whether it is there.
                Ok(Some((
                    opener.open(name, &store, Some(record.id))?,
                    record.id,
                    store,
                )))
            });
            match opened {
                Ok(Some((backend, id, store))) => self.insert(opener, name, (backend, id), &store),
                Ok(None) => {}
                Err(why) => drop(unusable.insert(name.to_owned(), why)),
            }
        }
        let is_there =
            |name: &String, open: &mut Open| open.is_from_settings || listed.contains(&name.as_str());
        self.open().retain(is_there);
        *self.unusable.lock().unwrap_or_else(PoisonError::into_inner) = unusable;
        Ok(())
    }

    /// Whether it is open as the registry has it. One of the settings that is another one by now, since it was removed and added
    /// elsewhere, is absent from here on.
    fn is_open(&self, name: &str, id: BackendId, store: Option<&StoreSettings>) -> bool {
        let mut open = self.open();
        let Some(found) = open.get_mut(name) else {
            return false;
        };
        let Some((identified, expected)) = &mut found.identified else {
            return true;
        };
        if !found.is_from_settings {
            let is_there = store.is_some_and(|store| store.place() == found.place);
            return is_there && *expected == id;
        }
        if *expected != id {
            identified.expect(id);
            *expected = id;
            tracing::warn!(
                backend = name, place = found.place, registered = %id,
                "the registry has another back end of this name than the settings: it is absent here"
            );
        }
        true
    }

    /// Whether everything that the registry names is open, or is no business of this service.
    pub(super) fn are_usable(&self) -> bool {
        self.unusable
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_empty()
    }

    fn insert(
        &self,
        opener: &Opener,
        name: &str,
        (backend, id): (Arc<dyn Identified>, BackendId),
        store: &StoreSettings,
    ) {
        let open = Open {
            checked: opener.checked(Arc::clone(&backend)),
            identified: Some((backend, id)),
            is_from_settings: false,
            place: store.place(),
        };
        tracing::info!(backend = name, place = open.place, "back end opened");
        self.open().insert(name.to_owned(), open);
    }

    /// Sets up a back end and registers it with its place, for all storage-routers.
    pub(super) async fn add(&self, name: &NodeName, place: BackendPlace) -> Result<BackendRecord, Refusal> {
        let name = name.as_str();
        let Some(opener) = &self.opener else {
            let text = "this storage-router's back ends are made by others; it adds none";
            return Err(Refusal::reject(RefusalCode::Unsupported, text));
        };
        let store = StoreSettings::try_from(&place)
            .map_err(|why| Refusal::reject(RefusalCode::Invalid, format!("back end {name}: {why}")))?;
        let _turn = self.turn.lock().await;
        if let Some(known) = self.known(name, &store).await? {
            let is_same = known.place.as_ref() == Some(&place);
            return if is_same { Ok(known) } else { Err(taken(&known)) };
        }
        let unavailable = |why: String| Refusal::retry(RefusalCode::Unavailable, why);
        let backend = opener
            .open(name, &store, None)
            .map_err(|why| Refusal::reject(RefusalCode::Invalid, format!("back end {name}: {why}")))?;
        let id = backend.attach().await.map_err(|error| {
            let text = format!("back end {name} at {place}: {error}");
            match error {
                BackendError::Unavailable { .. } | BackendError::Full => unavailable(text),
                _ => Refusal::reject(RefusalCode::Invalid, text),
            }
        })?;
        let record = BackendRecord {
            name: name.to_owned(),
            id,
            place: Some(place.clone()),
        };
        let registered = register(&self.registry, &*backend, record).await;
        let registered = registered.map_err(|error| unavailable(format!("back end {name}: {error:#}")))?;
        if registered.place.as_ref() != Some(&place) {
            return Err(taken(&registered));
        }
        self.insert(opener, name, (backend, registered.id), &store);
        Ok(registered)
    }

    /// The record of a back end of this name; refused where another one has its place.
    async fn known(&self, name: &str, store: &StoreSettings) -> Result<Option<BackendRecord>, Refusal> {
        let listed = self.registry.list_records::<BackendRecord>(keys::BACKENDS).await;
        let listed = listed.map_err(|error| Refusal::retry(RefusalCode::Unavailable, error.to_string()))?;
        let is_there = |place: &BackendPlace| {
            StoreSettings::try_from(place).is_ok_and(|other| other.place() == store.place())
        };
        let by_record = listed
            .iter()
            .map(|(_, record, _)| record)
            .filter(|record| record.place.as_ref().is_some_and(is_there))
            .map(|record| record.name.clone());
        let by_settings = self.open();
        let by_settings = by_settings
            .iter()
            .filter(|(_, open)| open.place == store.place())
            .map(|(name, _)| name.clone());
        if let Some(other) = by_record.chain(by_settings).find(|other| other != name) {
            let text = format!(
                "{} is the place of back end {other}; each back end has a place of its own",
                store.place()
            );
            return Err(Refusal::reject(RefusalCode::Exists, text));
        }
        let mut records = listed.into_iter().map(|(_, record, _)| record);
        Ok(records.find(|record| record.name == name))
    }

    /// Changes that make a commit conditional on these back ends being registered: whoever removes one of them meanwhile
    /// conflicts with it.
    pub(super) async fn hold(&self, placed: &[PlacementEntry]) -> Result<Vec<Change>, Refusal> {
        let mut held = Vec::new();
        for PlacementEntry { backend, .. } in placed {
            let key = keys::backend(backend);
            match self.registry.get(&key).await {
                // As it is stored: what newer builds wrote into it stays.
                Ok(Some(entry)) => held.push(Change::put(key, Some(entry.revision), entry.value)),
                // One that others made is in no registry.
                Ok(None) if self.opener.is_none() && self.open().contains_key(backend) => {}
                Ok(None) | Err(RegistryError::Invalid(_)) => return Err(self.no_such_backend(backend).await),
                Err(error) => return Err(Refusal::retry(RefusalCode::Unavailable, error.to_string())),
            }
        }
        Ok(held)
    }

    async fn no_such_backend(&self, name: &str) -> Refusal {
        let listed = self.registry.list(keys::BACKENDS, None, usize::MAX).await;
        let listed = listed.unwrap_or_default();
        let known: Vec<&str> = listed
            .iter()
            .filter_map(|entry| entry.key.strip_prefix(keys::BACKENDS))
            .collect();
        let known = match known.is_empty() {
            true => "none".to_owned(),
            false => known.join(", "),
        };
        let text = format!(
            "there is no back end {name}; there are: {known}. `sconce backend add {name} --dir PATH` adds one"
        );
        Refusal::reject(RefusalCode::NotFound, text)
    }

    fn open(&self) -> MutexGuard<'_, HashMap<String, Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn taken(known: &BackendRecord) -> Refusal {
    let at = match &known.place {
        Some(place) => format!("at {place}"),
        None => "by the settings of storage-routers".to_owned(),
    };
    let text = format!(
        "back end {0} is there already, {at}; choose another name, or remove it first: sconce backend remove {0}",
        known.name
    );
    Refusal::reject(RefusalCode::Exists, text)
}

impl TryFrom<&BackendPlace> for StoreSettings {
    type Error = String;

    fn try_from(place: &BackendPlace) -> Result<Self, String> {
        match place {
            BackendPlace::Directory(path) if path.starts_with('/') => {
                Ok(Self::Directory(PathBuf::from(path)))
            }
            BackendPlace::Directory(path) => Err(format!("dir = {path:?}; right would be an absolute path")),
            BackendPlace::S3(s3) => Ok(Self::S3(Box::new(S3Place::clone(s3).try_into()?))),
        }
    }
}
