//! Ways to the other volume-routers that may keep twins of this thread's volumes.
//!
//! Keeps: a connection to each endpoint that was used, and for a moment which volume-routers run.
//! Order: none; in which order the others are asked is each volume's business.
//! Crash: nothing; who runs is asked of the registry.
//! Knows no volume's state.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;
use std::time::Duration;

use sconce_bus::{Caller, Endpoint, Hello, Network, Role};
use sconce_registry::{Registry, RegistryError};
use sconce_schemas::records::NodeRecord;
use sconce_schemas::wire::volume::{VolumeReply, VolumeRequest};
use sconce_schemas::wire::{Refusal, RefusalCode};
use sconce_schemas::{NodeName, VolumeId};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::node::{drained, running};
use crate::owner::record::RecordError;

/// How long a list of volume-routers is believed: many volumes look for another twin at the same time.
const NODES_AGE_MAX: Duration = Duration::from_secs(1);
/// SCOs that are in memory at a time to be copied: each is up to 64 MiB.
const COPIES_MAX: usize = 4;

/// A connection to another volume-router.
pub(super) type Line = Caller<VolumeRequest, VolumeReply>;

/// Lives on one thread.
pub(crate) struct Lines {
    network: Network,
    registry: Registry,
    hello: Hello,
    lines: RefCell<HashMap<String, Line>>,
    nodes: RefCell<Vec<NodeRecord>>,
    /// Those that are drained.
    drained: RefCell<BTreeSet<NodeName>>,
    listed: Cell<Option<Instant>>,
    /// Room for SCOs that are copied.
    pub(super) copies: Rc<Semaphore>,
}

impl Lines {
    pub(crate) fn new(network: Network, registry: Registry, hello: Hello) -> Self {
        Self {
            network,
            registry,
            hello,
            lines: RefCell::default(),
            nodes: RefCell::default(),
            drained: RefCell::default(),
            listed: Cell::new(None),
            copies: Rc::new(Semaphore::new(COPIES_MAX)),
        }
    }

    /// The other volume-routers that run and are not drained.
    pub(super) async fn others(&self) -> Result<Vec<NodeRecord>, RegistryError> {
        self.list_if_old().await?;
        Ok(self.nodes.borrow().clone())
    }

    /// Whether a node is drained.
    pub(super) async fn is_drained(&self, node: &NodeName) -> Result<bool, RegistryError> {
        self.list_if_old().await?;
        Ok(self.drained.borrow().contains(node))
    }

    /// Whether a volume may be moved to a node: it is a volume-router that runs and is not drained.
    pub(crate) async fn may_be_moved_to(&self, node: &NodeName) -> Result<(), RecordError> {
        self.list().await?;
        let why = match self.nodes.borrow().iter().any(|running| running.name == *node) {
            true => return Ok(()),
            false if self.drained.borrow().contains(node) => "is drained",
            false => "is no volume-router that is in the registry: start it, or see sconce node list",
        };
        let text = format!("{node} {why}");
        Err(RecordError::Refused(Refusal::retry(
            RefusalCode::Unavailable,
            text,
        )))
    }

    async fn list_if_old(&self) -> Result<(), RegistryError> {
        let fresh = self.listed.get().is_some_and(|at| at.elapsed() < NODES_AGE_MAX);
        match fresh {
            true => Ok(()),
            false => self.list().await,
        }
    }

    /// Who runs is asked anew: one may have come just now.
    pub(super) fn forget_who_runs(&self) {
        self.listed.set(None);
    }

    async fn list(&self) -> Result<(), RegistryError> {
        let mut others = running(&self.registry, Role::VolumeRouter).await?;
        let drained = drained(&self.registry).await?;
        others.retain(|node| node.name != self.hello.node && !drained.contains(&node.name));
        *self.drained.borrow_mut() = drained;
        // A stream to a node that is drained now has its line itself.
        let is_used = |endpoint: &String, _: &mut Line| {
            others
                .iter()
                .any(|node| node.endpoints.iter().any(|known| known == endpoint))
        };
        self.lines.borrow_mut().retain(is_used);
        *self.nodes.borrow_mut() = others;
        self.listed.set(Some(Instant::now()));
        Ok(())
    }

    /// The connection to the thread of a node that keeps a volume's twin; `None`: its record names none that can be used.
    pub(super) fn line(&self, node: &NodeRecord, volume: VolumeId) -> Option<Line> {
        let text = node.endpoint_of(volume)?;
        let endpoint: Endpoint = text.parse().ok()?;
        let mut lines = self.lines.borrow_mut();
        let line = lines
            .entry(text.to_owned())
            .or_insert_with(|| Caller::new(&self.network, &endpoint, self.hello.clone()));
        Some(line.clone())
    }

    /// A connection that was refused stays so; the next one may be welcome.
    pub(super) fn forget(&self, node: &NodeRecord, volume: VolumeId) {
        if let Some(endpoint) = node.endpoint_of(volume) {
            self.lines.borrow_mut().remove(endpoint);
        }
    }
}
