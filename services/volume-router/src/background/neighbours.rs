//! Other volume-routers of the pool, which may write bundles in this one's place.
//!
//! Keeps: a connection to each, and until when it is not asked again.
//! Order: one after the other until one has time. Whatever the answer is, or if there is none, the owner may do the work itself at
//! any moment: the same object comes of it.
//! Crash: what a neighbour was asked for it may still do, but not for the next ownership.
//! Knows no plan: what is asked for is whole.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use sconce_bus::{CallError, Caller, Endpoint, Hello, Network, Role};
use sconce_registry::Registry;
use sconce_schemas::wire::volume::{VolumeControl, VolumeControlReply, VolumeReply, VolumeRequest};
use sconce_schemas::wire::{RefusalCode, Remedy};
use sconce_schemas::{ByteLen, NodeName, ObjectName};
use tokio::time::Instant;

use super::bundle::{Bundle, JobError};
use crate::actor::Owner;
use crate::node::running;
use crate::settings::{ScrubHelp, ScrubSettings};

/// How long a list of volume-routers is believed.
const NODES_AGE_MAX: Duration = Duration::from_secs(10);
/// One that has no time is not asked again for so long.
const BUSY_REST: Duration = Duration::from_secs(1);
/// One that did not answer, or wrongly: it may be gone, or still be at it.
const TROUBLE_REST: Duration = Duration::from_secs(60);

/// Lives on one thread.
pub(super) struct Neighbours {
    network: Network,
    registry: Registry,
    hello: Hello,
    help: ScrubHelp,
    within: Duration,
    known: RefCell<Vec<Rc<Neighbour>>>,
    listed: Cell<Option<Instant>>,
    turn: Cell<usize>,
}

struct Neighbour {
    name: NodeName,
    endpoint: Endpoint,
    caller: Caller<VolumeRequest, VolumeReply>,
    rests_until: Cell<Option<Instant>>,
}

impl Neighbour {
    fn rest(&self, time: Duration) {
        self.rests_until.set(Some(Instant::now() + time));
    }

    fn rests(&self) -> bool {
        self.rests_until.get().is_some_and(|until| Instant::now() < until)
    }
}

impl Neighbours {
    pub(super) fn new(network: Network, registry: Registry, hello: Hello, settings: &ScrubSettings) -> Self {
        Self {
            network,
            registry,
            hello,
            help: settings.help,
            within: settings.help_within.duration(),
            known: RefCell::default(),
            listed: Cell::new(None),
            turn: Cell::new(0),
        }
    }

    /// When they are asked.
    pub(super) const fn help(&self) -> ScrubHelp {
        self.help
    }

    /// Asks one after the other to write the bundle. `None`: none did, or it is not known whether one does.
    pub(super) async fn write(&self, owner: &Owner, bundle: &Bundle) -> Option<Result<ByteLen, JobError>> {
        let ObjectName::Sco { id: sco, version, .. } = bundle.job().bundle else {
            return None;
        };
        let control = VolumeControl::WriteBundle(Box::new(bundle.job().clone()));
        let request = VolumeRequest::Control(control);
        let index: Bytes = bundle.index().to_bytes().into();
        for neighbour in self.awake().await {
            owner.help(|help| {
                help.at = Some(neighbour.name.clone());
                help.give(sco, version);
            });
            let asked = neighbour.caller.call(&request, index.clone(), 0, self.within);
            let answer = asked.await.map(|(reply, _)| reply);
            owner.help(|help| help.at = None);
            match answer {
                Ok(VolumeReply::Control(VolumeControlReply::BundleWritten { length }))
                    if length.0 == bundle.index().object_len() =>
                {
                    owner.help(|help| help.written += 1);
                    return Some(Ok(length));
                }
                // The owner has to choose another name.
                Ok(VolumeReply::Refused(refusal)) if refusal.code == RefusalCode::Exists => {
                    return Some(Err(JobError::Exists(refusal)));
                }
                Ok(VolumeReply::Refused(refusal)) if refusal.remedy == Remedy::Retry => {
                    neighbour.rest(BUSY_REST);
                }
                answer => {
                    self.trouble(&neighbour, &answer);
                    owner.help(|help| help.taken_back += 1);
                    return None;
                }
            }
        }
        None
    }

    fn trouble(&self, neighbour: &Neighbour, answer: &Result<VolumeReply, CallError>) {
        tracing::debug!(neighbour = %neighbour.name, ?answer, "no good answer for a bundle: written here");
        neighbour.rest(TROUBLE_REST);
        if let Err(CallError::Refused(_)) = answer {
            // A connection that was refused stays so; the next one may be welcome.
            self.known
                .borrow_mut()
                .retain(|known| known.endpoint != neighbour.endpoint);
        }
    }

    /// Those that may be asked now, another first each time.
    async fn awake(&self) -> Vec<Rc<Neighbour>> {
        let fresh = self.listed.get().is_some_and(|at| at.elapsed() < NODES_AGE_MAX);
        if !fresh {
            self.list().await;
        }
        let mut awake: Vec<_> = self.known.borrow().iter().map(Rc::clone).collect();
        awake.retain(|neighbour| !neighbour.rests());
        if !awake.is_empty() {
            let turn = self.turn.replace(self.turn.get().wrapping_add(1));
            let first = turn % awake.len();
            awake.rotate_left(first);
        }
        awake
    }

    /// While the registry cannot tell, those that were there are asked.
    async fn list(&self) {
        let Ok(nodes) = running(&self.registry, Role::VolumeRouter).await else {
            return;
        };
        let others = nodes.into_iter().filter(|node| node.name != self.hello.node);
        // Any of a node's endpoints will do: its scrubs are one thread's.
        let found = others.filter_map(|node| {
            let endpoint: Endpoint = node.endpoints.first()?.parse().ok()?;
            Some((node.name, endpoint))
        });
        let mut known = self.known.borrow_mut();
        let before = std::mem::take(&mut *known);
        known.extend(found.map(|(name, endpoint)| {
            let same = before
                .iter()
                .find(|known| known.name == name && known.endpoint == endpoint);
            same.map_or_else(|| Rc::new(self.neighbour(name, endpoint)), Rc::clone)
        }));
        self.listed.set(Some(Instant::now()));
    }

    fn neighbour(&self, name: NodeName, endpoint: Endpoint) -> Neighbour {
        Neighbour {
            caller: Caller::new(&self.network, &endpoint, self.hello.clone()),
            name,
            endpoint,
            rests_until: Cell::new(None),
        }
    }
}
