//! Keeps: the way to a cluster: its registry, its names, its services.
//! Order: everything connects when it is first needed.
//! Crash: nothing is kept here.
//! Knows no command.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use sconce_bus::{Hello, Network, Protocol, Role, Version, ZeromqSettings};
use sconce_fs_router::names::{Names, NamesError, PoolPath, Resolved};
use sconce_fs_router::peers::{Identity, Owners, PeerError, StorageRouters, is_served};
use sconce_fs_router::routing::{Components, Incarnation, Limits, Orphans, Router, View, Volume};
use sconce_registry::{Registry, RegistrySettings};
use sconce_runtime::{Chance, Clock};
use sconce_schemas::VolumeId;
use sconce_schemas::records::NodeRecord;

use crate::access::AccessView;
use crate::settings::{self, Settings};
use crate::view::{FlattenView, LastMoveView, MovingView, VolumeView, WantedHostView, time_shown};

/// How long an owner is waited for where live figures are only nice to have.
pub const LIVE_DEADLINE: Duration = Duration::from_secs(2);
/// How long a volume that is to be read or written is waited for before the command says what it waits for.
const OPEN_PATIENCE: Duration = Duration::from_secs(5);

/// A cluster.
pub struct Cluster {
    /// What the client settings say.
    pub settings: Settings,
    /// The pool's tree.
    pub names: Names,
    /// Volume-routers.
    pub owners: Owners,
    /// Storage-routers.
    pub storage: StorageRouters,
    identity: Identity,
    registry: Registry,
}

impl Cluster {
    /// The cluster whose settings `option` or the usual places name. In a `LocalSet`.
    ///
    /// # Errors
    /// There are no settings, or they are wrong.
    pub async fn open(option: Option<&Path>) -> Result<Cluster> {
        let file = settings::find(option)?;
        let settings = Settings::load(&file)?;
        if let RegistrySettings::Sled { dir, .. } = &settings.registry {
            bail!(
                "settings file {}: the registry in {} belongs to the service that hosts it; clients reach it with \
                 home = \"remote\" and that service's endpoint",
                file.display(),
                dir.display()
            );
        }
        let node = match &settings.node {
            Some(node) => node.clone(),
            None => format!("sconce-{}", std::process::id()).parse()?,
        };
        let zeromq = ZeromqSettings {
            run_dir: settings.run_dir.join("bus"),
        };
        let network = match settings.tls.clone() {
            Some(tls) => Network::zeromq_and_tls(zeromq, tls),
            None => Network::zeromq(zeromq),
        };
        let hello = Hello {
            version: Version::CURRENT,
            protocol: Protocol::Registry,
            role: Role::Client,
            node: node.clone(),
        };
        let registry = Registry::open(&settings.registry, &network, hello)
            .await
            .with_context(|| format!("settings file {}", file.display()))?;
        Ok(Self::over(
            settings,
            registry,
            Identity {
                network,
                role: Role::Client,
                node,
            },
        ))
    }

    /// The cluster behind a registry.
    #[must_use]
    pub fn over(settings: Settings, registry: Registry, identity: Identity) -> Cluster {
        let names = Names::new(registry.clone(), Clock::system(), Chance::from_os());
        Cluster {
            settings,
            owners: Owners::new(names.clone(), identity.clone()),
            storage: StorageRouters::new(names.clone(), identity.clone()),
            names,
            identity,
            registry,
        }
    }

    /// The file at `path`, with an error that says where to look.
    ///
    /// # Errors
    /// There is none, or the registry is unreachable.
    pub async fn resolve(&self, path: &PoolPath) -> Result<Resolved> {
        self.names.resolve(path).await.map_err(explained)
    }

    /// What is known of a volume: from its owner if that answers soon, else from the registry.
    ///
    /// # Errors
    /// There is no record of it, or the registry is unreachable.
    pub async fn view(&self, file: &Resolved) -> Result<VolumeView, NamesError> {
        let record = self.names.volume(file.volume).await?;
        let path = file.path.as_str();
        let mount_path = self.settings.mount_path(path);
        let mut view = VolumeView {
            path: path.to_owned(),
            id: file.volume.to_string(),
            size_bytes: record.known_size().bytes(),
            allocated_bytes: None,
            owner: record.owner.to_string(),
            epoch: record.epoch.0,
            dtl_state: record.dtl_state,
            dtl_mode: record.dtl_mode,
            dtl_host: record.dtl_host.as_ref().map(ToString::to_string),
            dtl_shared_domain: None,
            dtl_wanted_host: record.twin_host.as_ref().map(WantedHostView::from),
            pinned: record.pinned,
            moving: record.moving.as_ref().map(MovingView::from),
            last_move: record.last_move.as_ref().map(LastMoveView::from),
            nbd_uri: self.settings.nbd_uri(path),
            mount_path: mount_path.map(|path| path.display().to_string()),
            pool: record.pool,
            sco_size_bytes: u64::from(record.sco_size.slots()) * sconce_schemas::CLUSTER_BYTES,
            unstored_bytes: None,
            state: "unknown".to_owned(),
            live: false,
            history_seconds: None,
            history_from: None,
            clone_of: None,
            flatten: None,
            access: AccessView::new(&record.access, Clock::system().unix_micros()),
        };
        if let Some(origin) = record.origin {
            view.clone_of = Some(self.path_or_id(origin.volume).await);
        }
        match self.owners.show(file.volume, LIVE_DEADLINE).await {
            Ok(status) if is_served(&status) => {
                view.size_bytes = status.size.bytes();
                view.allocated_bytes = Some(status.allocated.0);
                view.owner = status.owner.to_string();
                view.epoch = status.epoch.0;
                view.dtl_state = status.dtl_state;
                view.dtl_mode = status.dtl_mode.unwrap_or_default();
                view.dtl_host = status.dtl_host.map(|host| host.to_string());
                view.unstored_bytes = Some(status.unstored.0);
                view.state = status.state;
                view.live = true;
                let window = status.history.map_or(0, |history| history.window_us);
                view.history_seconds = Some(window.div_ceil(1_000_000));
                // The first whole second.
                let from = status.history.and_then(|history| history.from_us);
                view.history_from = from.map(|from| time_shown(from.saturating_add(999_999)));
                view.flatten = status.flatten.map(FlattenView::from);
            }
            Ok(status) => view.state = status.state,
            Err(PeerError::Absent { node }) => {
                view.state = format!("waits for its owner {node}, which is not running");
            }
            Err(_) => {}
        }
        if let Some(host) = &view.dtl_host {
            let nodes = self.names.nodes().await?;
            let domain = |name: &str| {
                let node = nodes.iter().find(|node| node.name.as_str() == name);
                node.map(NodeRecord::failure_domain)
            };
            let shared = domain(host).filter(|its| domain(&view.owner) == Some(its));
            view.dtl_shared_domain = shared.map(str::to_owned);
        }
        Ok(view)
    }

    /// A volume's path, or its id where that cannot be had.
    pub async fn path_or_id(&self, volume: VolumeId) -> String {
        let path = async {
            let record = self.names.volume(volume).await?;
            self.names.path_of(record.inode).await
        };
        path.await
            .map_or_else(|_| volume.to_string(), |path| path.to_string())
    }

    /// Opens a volume for reading and writing. Its owner is waited for; what it waits for is told meanwhile.
    ///
    /// # Errors
    /// The volume is gone, or its owner will not open it.
    pub async fn volume(&self, file: &Resolved) -> Result<Volume> {
        self.opened(file, self.router().attach_volume(file.volume)).await
    }

    /// Opens a view of a volume: a snapshot, or two roots to be compared. As [`Cluster::volume`].
    ///
    /// # Errors
    /// The volume or a snapshot is gone, or its owner will not open it.
    pub async fn open_view(&self, file: &Resolved, view: View) -> Result<Volume> {
        self.opened(file, self.router().attach_view(file.volume, view))
            .await
    }

    fn router(&self) -> Router {
        let components = Components {
            node: self.identity.node.clone(),
            role: self.identity.role,
            network: self.identity.network.clone(),
            registry: self.registry.clone(),
            clock: Clock::system(),
            limits: Limits::default(),
            orphans: Orphans::default(),
            incarnation: Incarnation::command(),
            cache: None,
            counts: std::sync::Arc::default(),
        };
        Router::new(components, 0, Chance::from_os())
    }

    async fn opened(&self, file: &Resolved, volume: Volume) -> Result<Volume> {
        let opening = volume.opened();
        tokio::pin!(opening);
        loop {
            match tokio::time::timeout(OPEN_PATIENCE, &mut opening).await {
                Ok(opened) => {
                    opened.with_context(|| format!("cannot open {}", file.path))?;
                    return Ok(volume.clone());
                }
                Err(_) => {
                    let trouble = volume
                        .trouble()
                        .unwrap_or_else(|| "its owner does not answer".to_owned());
                    eprintln!(
                        "waiting for {}: {trouble} (`sconce status` shows the services)",
                        file.path
                    );
                }
            }
        }
    }
}

/// An error of the tree with what to do about it.
#[must_use]
pub fn explained(error: NamesError) -> anyhow::Error {
    let advice = match &error {
        NamesError::NotFound { .. } => "`sconce volume list` shows the volumes that there are",
        NamesError::Exists { .. } => "choose another path, or remove it first: sconce volume delete PATH",
        NamesError::Unavailable { .. } => {
            "is the cluster running? start it with `make up`, or name another one: --cluster FILE"
        }
        NamesError::NoPool { .. } => "choose one with --pool",
        _ => return error.into(),
    };
    anyhow::anyhow!("{error}\n{advice}")
}
