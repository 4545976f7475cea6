//! The node's place in the pool: its announcement, its lease, and what its volumes' records ask of it.
//!
//! Keeps: nothing of its own.
//! Order: announced first, then the volumes; after a lease that had ended every volume is verified before it is served.
//! Crash: a record that changed meanwhile is found by listing.
//! Knows volumes by their handles.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use sconce_balance::Pool;
use sconce_registry::Revision;
use sconce_registry::announce::{AnnounceError, Announcement, Tenure};
use sconce_runtime::{Backoff, Chance, Stop};
use sconce_schemas::VolumeId;
use sconce_schemas::records::{NodeRecord, VolumePhase, VolumeRecord, keys};
use sconce_schemas::wire::event::What;
use tokio::sync::mpsc;

use crate::buffer;
use crate::deletion::{self, Adoption};
use crate::node::Node;
use crate::owner::record::{self, leaves_no_twin, leaves_nothing};
use crate::placement;
use crate::shard::Begin;
use crate::twin::watch_owners;

/// How long a watch of the volumes' records waits for a change.
const WATCH_WAIT: Duration = Duration::from_secs(30);

/// Announces the node, keeps its lease, begins its volumes and follows their records.
pub(crate) fn announce(
    node: &Arc<Node>,
    record: NodeRecord,
    ttl: Duration,
    begin: Vec<mpsc::Sender<Begin>>,
    stop: Stop,
    withdraw: Stop,
) -> impl Future<Output = Result<(), AnnounceError>> + 'static {
    let node = Arc::clone(node);
    async move {
        let registered = tokio::select! {
            biased;
            registered = register(&node, &record, ttl) => registered,
            () = withdraw.requested() => return Ok(()),
        };
        let tenure = registered.tenure();
        node.gate.hold(tenure.held_until());
        let guard = actix_rt::spawn(guard(Arc::clone(&node), tenure, ttl));
        let (registry, name) = (node.registry.clone(), node.name.clone());
        let nodes = sconce_registry::nodes::tell(registry, name, node.events.clone(), withdraw.clone());
        let nodes = actix_rt::spawn(nodes);
        let buffer = actix_rt::spawn(buffer::watch(node.device.clone(), node.events.clone()));
        let owners = actix_rt::spawn(watch_owners(Arc::clone(&node), begin.clone()));
        let follow = actix_rt::spawn(follow(Arc::clone(&node), begin));
        let autopilot = actix_rt::spawn(placement::run(Arc::clone(&node)));
        let adopt = actix_rt::spawn(Adoption::new(Arc::clone(&node)).run());
        let kept = registered.keep(withdraw).await;
        guard.abort();
        nodes.abort();
        buffer.abort();
        owners.abort();
        follow.abort();
        autopilot.abort();
        adopt.abort();
        node.gate.close();
        // Without its name the node may serve nothing.
        stop.request();
        kept
    }
}

async fn register(node: &Arc<Node>, record: &NodeRecord, ttl: Duration) -> Announcement {
    let mut backoff = Backoff::new(
        Duration::from_millis(20),
        Duration::from_secs(1),
        Chance::from_os(),
    );
    let mut told = false;
    loop {
        match Announcement::register(&node.registry, record, ttl).await {
            Ok(registered) => return registered,
            Err(error) => {
                if !std::mem::replace(&mut told, true) {
                    tracing::warn!(%error, "cannot announce this node: trying again until it is announced");
                }
                tokio::time::sleep(backoff.wait()).await;
            }
        }
    }
}

/// Extends the gate as the lease is renewed. A lease that was renewed after its end may have been another's meanwhile:
/// then every volume is verified before any is served again, and while the registry cannot tell, none is. That may take longer than
/// the lease lasts at first, as long as it does not end again.
async fn guard(node: Arc<Node>, tenure: Tenure, ttl: Duration) {
    let mut verified = tenure.held_since();
    let mut told = verified;
    loop {
        tokio::time::sleep(ttl / 4).await;
        let since = tenure.held_since();
        if since != verified {
            if std::mem::replace(&mut told, since) != since {
                node.events.tell(What::LeaseEnded);
            }
            // What the registry does not tell now it is asked again.
            if !all_verified(&node).await || tenure.held_since() != since {
                continue;
            }
            verified = since;
        }
        node.gate.hold(tenure.held_until());
    }
}

/// Asks the registry about every volume; whether it told of all of them.
async fn all_verified(node: &Node) -> bool {
    let volumes = node.volumes.all();
    let verified = join_all(volumes.iter().map(|(_, volume)| volume.verify())).await;
    verified.into_iter().all(|known| known)
}

/// Begins the node's volumes, and from then on does what changes of their records ask for.
async fn follow(node: Arc<Node>, begin: Vec<mpsc::Sender<Begin>>) {
    let mut backoff = Backoff::new(
        Duration::from_millis(50),
        Duration::from_secs(2),
        Chance::from_os(),
    );
    let mut after = None;
    loop {
        let followed = match after {
            None => list(&node, &begin).await,
            Some(revision) => watch(&node, &begin, revision).await,
        };
        match followed {
            Ok(next) => {
                backoff.reset();
                after = next;
            }
            Err(error) => {
                tracing::debug!(%error, "the volumes' records cannot be followed now");
                tokio::time::sleep(backoff.wait()).await;
            }
        }
    }
}

type Followed = Result<Option<Revision>, sconce_registry::RegistryError>;

async fn list(node: &Arc<Node>, begin: &[mpsc::Sender<Begin>]) -> Followed {
    let revision = node.registry.revision().await?;
    deletion::give_up_erased(node).await?;
    node.relied.forget();
    let mut seen = Vec::new();
    let mut unknown: HashSet<VolumeId> = node.device.unclaimed().into_iter().collect();
    for entry in node.registry.list(keys::VOLUMES, None, usize::MAX).await? {
        match sconce_registry::record::decode::<VolumeRecord>(&entry) {
            Ok(record) => {
                unknown.remove(&record.id);
                seen.extend(Pool::counts(&record));
                changed(node, begin, &record).await;
            }
            // One damaged record holds up no other volume.
            Err(error) => tracing::error!(%error, "a volume's record is damaged"),
        }
    }
    node.seen.listed(seen);
    for volume in unknown {
        tracing::warn!(
            %volume,
            "the write buffer holds SCOs of a volume that the registry does not know: kept, as they may be the only \
             copy; bring the registry's data back, or make the record anew with: sconce recover"
        );
    }
    Ok(Some(revision))
}

async fn watch(node: &Arc<Node>, begin: &[mpsc::Sender<Begin>], after: Revision) -> Followed {
    let watched = node.registry.watch(keys::VOLUMES, after, WATCH_WAIT).await?;
    if watched.lost {
        return Ok(None);
    }
    for event in watched.events {
        let Some(entry) = event.entry else {
            node.relied.gone(&event.key);
            node.seen.gone(&event.key);
            continue;
        };
        match sconce_registry::record::decode::<VolumeRecord>(&entry) {
            Ok(record) => changed(node, begin, &record).await,
            Err(error) => tracing::error!(%error, "a volume's record is damaged"),
        }
    }
    Ok(Some(watched.revision))
}

/// What a volume's record asks of this node.
async fn changed(node: &Arc<Node>, begin: &[mpsc::Sender<Begin>], record: &VolumeRecord) {
    node.relied.note(record, &node.name, node.device.identity());
    node.seen.note(record);
    let served = node.volumes.get(record.id);
    let ours = record.owner == node.name;
    match (served, ours, record.phase) {
        (_, true, VolumePhase::Deleting) => {
            if let Err(refusal) = deletion::begin(node, record).await {
                tracing::debug!(volume = %record.id, %refusal, "not deleted yet: tried again at the next look");
            }
        }
        (None, true, VolumePhase::Active) => {
            if let Some(shard) = begin.get(node.shard_of(record.id)) {
                // A shard that takes none is stopping.
                let _ = shard.send(Begin::Volume(record.id)).await;
            }
        }
        (Some(volume), true, VolumePhase::Active) => volume.follow(record),
        (Some(volume), false, VolumePhase::Active) => {
            volume.follow(record);
            // Of one that waits here for its owner, too.
            give_up_what_is_over(node, record).await;
        }
        (Some(volume), false, VolumePhase::Deleting) => {
            volume.verify().await;
        }
        (None, false, _) => give_up_what_is_over(node, record).await,
    }
}

/// Another node's: what was left of it here may go once the record proves that nobody needs it.
async fn give_up_what_is_over(node: &Node, record: &VolumeRecord) {
    let buffer = node.device.id();
    let Some(left) = node.device.unclaimed_of(record.id) else {
        return;
    };
    // Whether a record relies on what is here may change where there are twins: not what was seen of it decides, but what it says now.
    // Where the registry cannot tell, they stay.
    let Ok((now, _)) = record::read(&node.registry, record.id).await else {
        return;
    };
    let scos = node.device.give_up(left, |newest| {
        leaves_nothing(&now, buffer, newest) || leaves_no_twin(&now, &node.name, buffer, newest)
    });
    if scos > 0 {
        tracing::info!(volume = %record.id, owner = %record.owner, scos, "gave up what was left of another node's volume");
    }
}
