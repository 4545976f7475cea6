//! Volumes and twins that are put elsewhere without anybody asking (docs/decisions/0173, 0174).
//!
//! Keeps: what was seen over time: who runs since when, where IO comes from, what did not work.
//! Order: one thing at a time: a twin that could be better first, then a volume that is far from its IO, then one that others should have.
//! Crash: the next start begins to look anew, and waits as long as at first.
//! Knows no volume's state: what is to be done the volumes do themselves, and they refuse what cannot be done now. What is decided
//! `sconce_balance` decides, from what was seen.

mod io;
mod seen;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use sconce_balance::{FollowRule, IoWindow, Origin, Pool, Stable, Volume};
use sconce_registry::RegistryError;
use sconce_runtime::Chance;
use sconce_schemas::records::{MoveWhy, NodeRecord};
use sconce_schemas::wire::event::What;
use sconce_schemas::{ByteLen, NodeName, VolumeId};
use tokio::time::Instant;

use crate::node::{Node, drained};

pub(crate) use io::{IoCount, IoCounts};
pub(crate) use seen::Seen;

/// A twin that was given up for a better place and is not there afterwards is not given up for that again so soon, unless another process is
/// there.
const TWIN_AGAIN: Duration = Duration::from_secs(600);

/// A move that nobody asked for.
#[derive(Debug, Clone)]
pub(crate) struct Chosen {
    /// In a word.
    pub(crate) why: MoveWhy,
    /// For people.
    pub(crate) what: What,
}

/// Looks and acts until it is aborted.
pub(crate) async fn run(node: Arc<Node>) {
    let every = node.placement.every.duration();
    let mut chance = Chance::from_os();
    let mut autopilot = Autopilot::new(node);
    loop {
        // Not all at the same moment.
        let spread = chance.u64() % 51;
        tokio::time::sleep(every.mul_f64(0.75 + spread as f64 / 100.0)).await;
        if let Err(error) = autopilot.look().await {
            tracing::debug!(%error, "the registry does not tell where volumes could be");
        }
    }
}

struct Autopilot {
    node: Arc<Node>,
    begun: Instant,
    stable: Stable,
    windows: HashMap<VolumeId, IoWindow>,
    /// Volumes that could not be moved, and until when they stay.
    rests: HashMap<VolumeId, Duration>,
    /// Twins that were given up for another place: which process there, and when.
    tries: HashMap<VolumeId, ((NodeName, u32), Duration)>,
}

impl Autopilot {
    fn new(node: Arc<Node>) -> Self {
        Self {
            begun: node.clock.now(),
            node,
            stable: Stable::default(),
            windows: HashMap::new(),
            rests: HashMap::new(),
            tries: HashMap::new(),
        }
    }

    fn now(&self) -> Duration {
        self.node.clock.now().saturating_duration_since(self.begun)
    }

    async fn look(&mut self) -> Result<(), RegistryError> {
        let now = self.now();
        self.count_io(now);
        // Not all of the pool was seen yet, or not long ago this node's volumes may have become another's.
        let Some(volumes) = self.node.seen.volumes().filter(|_| self.node.gate.is_open()) else {
            return Ok(());
        };
        let nodes = self.node.registry.nodes().await?;
        let pool = Pool::new(&nodes, drained(&self.node.registry).await?, volumes);
        self.stable.look(&pool, now);
        self.forget_others(&pool, now);
        if self.mend_twin(&pool, now).await {
            return Ok(());
        }
        let is_stable = self.stable.stable_for(now) >= self.node.placement.stable.duration();
        if is_stable && pool.is_calm() {
            let chosen = self.follow_io(&pool, &nodes, now);
            if let Some((volume, to, chosen)) = chosen.or_else(|| self.rebalance(&pool, &nodes, now)) {
                self.move_to(volume, to, chosen).await;
            }
        }
        Ok(())
    }

    fn count_io(&mut self, now: Duration) {
        let window = self.node.placement.window.duration();
        for (volume, client, bytes) in self.node.io.take() {
            let seen = self
                .windows
                .entry(volume)
                .or_insert_with(|| IoWindow::new(window, now));
            seen.add(&client, bytes, now);
        }
    }

    /// What was seen of volumes that are another's by now says nothing any more.
    fn forget_others(&mut self, pool: &Pool, now: Duration) {
        let own: HashSet<VolumeId> = self.own(pool).map(|volume| volume.id).collect();
        self.windows.retain(|volume, _| own.contains(volume));
        self.tries.retain(|volume, _| own.contains(volume));
        self.rests.retain(|_, until| now < *until);
    }

    fn own<'a>(&self, pool: &'a Pool) -> impl Iterator<Item = &'a Volume> + use<'a> {
        let me = self.node.name.clone();
        pool.volumes().filter(move |volume| volume.owner == me)
    }

    /// Has one volume make its twin elsewhere, where that is better; whether that goes on.
    async fn mend_twin(&mut self, pool: &Pool, now: Duration) -> bool {
        let is_recent = |tried: &Duration| now.saturating_sub(*tried) < TWIN_AGAIN;
        let goes_on = |volume: &Volume| {
            let tried = self.tries.get(&volume.id);
            volume.is_degraded() && tried.is_some_and(|(_, tried)| is_recent(tried))
        };
        if self.own(pool).any(goes_on) {
            return true;
        }
        let known_for = self.node.placement.stable.duration();
        let mut found = None;
        for volume in self.own(pool).filter(|volume| volume.moves_to.is_none()) {
            let Some(better) = pool.better_twin(volume).and_then(|better| pool.may_take(better)) else {
                continue;
            };
            let process = (better.name.clone(), better.pid);
            let is_tried = |(before, tried): &(_, _)| *before == process && is_recent(tried);
            let is_new = self.stable.there_for(&better.name, now) < known_for;
            if !is_new && !self.tries.get(&volume.id).is_some_and(is_tried) {
                found = Some((volume, process));
                break;
            }
        }
        let Some((volume, process)) = found else {
            return false;
        };
        let (Some(handle), Some(twin)) = (self.node.volumes.get(volume.id), &volume.twin) else {
            return false;
        };
        self.tries.insert(volume.id, (process, now));
        match handle.leave_twin(twin.clone()).await {
            Ok(()) => true,
            Err(refusal) => {
                tracing::debug!(volume = %volume.id, %refusal, "its twin stays where it is for now");
                false
            }
        }
    }

    /// A volume that is here for long enough, and was not refused lately.
    fn may_go(&self, volume: &Volume, now: Duration) -> bool {
        let settle = u64::try_from(self.node.placement.settle.duration().as_micros()).unwrap_or(u64::MAX);
        let now_us = self.node.clock.unix_micros();
        // A record of an earlier build does not say since when.
        let has_settled = |since: u64| now_us.saturating_sub(since) >= settle;
        let is_served = self.node.volumes.get(volume.id).is_some();
        let rests = self.rests.get(&volume.id).is_some_and(|until| now < *until);
        is_served && !rests && volume.owned_since_us.is_none_or(has_settled)
    }

    /// Where a volume's IO comes from; `None` while it was not watched for long enough.
    fn origins(&mut self, volume: VolumeId, nodes: &[NodeRecord], now: Duration) -> Option<Vec<Origin>> {
        let sums = self.windows.get_mut(&volume)?.sums(now)?;
        Some(origins(&sums, nodes))
    }

    /// The volume with the most IO that comes from elsewhere.
    fn follow_io(
        &mut self,
        pool: &Pool,
        nodes: &[NodeRecord],
        now: Duration,
    ) -> Option<(VolumeId, NodeName, Chosen)> {
        if !self.node.placement.follow_io {
            return None;
        }
        let rule = self.rule();
        let own: Vec<&Volume> = self.own(pool).filter(|volume| self.may_go(volume, now)).collect();
        let mut best = None;
        for volume in own {
            let Some(origins) = self.origins(volume.id, nodes, now) else {
                continue;
            };
            let Some(follow) = pool.follow(volume, &origins, rule) else {
                continue;
            };
            if best
                .as_ref()
                .is_none_or(|(_, other): &(_, sconce_balance::Follow)| other.bytes < follow.bytes)
            {
                best = Some((volume.id, follow));
            }
        }
        let (volume, follow) = best?;
        let what = What::FollowsIo {
            to: follow.to.clone(),
            from: follow.from,
            percent: follow.percent,
            bytes: ByteLen(follow.bytes),
            window_s: self.node.placement.window.duration().as_secs(),
        };
        let why = MoveWhy::Io;
        Some((volume, follow.to, Chosen { why, what }))
    }

    /// The least busy of those that another should have.
    fn rebalance(
        &mut self,
        pool: &Pool,
        nodes: &[NodeRecord],
        now: Duration,
    ) -> Option<(VolumeId, NodeName, Chosen)> {
        let placement = self.node.placement;
        if !placement.rebalance {
            return None;
        }
        let rule = self.rule();
        let own: Vec<&Volume> = self.own(pool).collect();
        let (mut stays, mut busy) = (HashSet::new(), HashMap::new());
        for volume in own {
            let window = self.windows.get_mut(&volume.id);
            let so_far = window.map(|window| window.so_far(now)).unwrap_or_default();
            busy.insert(
                volume.id,
                so_far
                    .values()
                    .fold(0_u64, |sum, bytes| sum.saturating_add(*bytes)),
            );
            let origins = origins(&so_far, nodes);
            // It would come back.
            let is_near = placement.follow_io && pool.is_near_its_io(volume, &origins, rule);
            if is_near || !self.may_go(volume, now) {
                stays.insert(volume.id);
            }
        }
        let may_go = |volume: &Volume| !stays.contains(&volume.id);
        let busy = |volume: &Volume| busy.get(&volume.id).copied().unwrap_or_default();
        let give = pool.give(&self.node.name, placement.band(), may_go, busy)?;
        let count = |volumes: usize| u64::try_from(volumes).unwrap_or(u64::MAX);
        let what = What::Rebalances {
            to: give.step.to.clone(),
            here: count(give.here),
            there: count(give.there),
        };
        let why = MoveWhy::Balance;
        Some((give.step.volume, give.step.to, Chosen { why, what }))
    }

    fn rule(&self) -> FollowRule {
        self.node.placement.follow_rule()
    }

    async fn move_to(&mut self, volume: VolumeId, to: NodeName, chosen: Chosen) {
        let Some(handle) = self.node.volumes.get(volume) else {
            return;
        };
        if let Err(refusal) = handle.move_to(to, Some(chosen)).await {
            // The volume has told whoever reads events.
            tracing::debug!(%volume, %refusal, "stays for now");
            let until = self.now() + self.node.placement.settle.duration();
            self.rests.insert(volume, until);
        }
    }
}

/// By the machines that clients run on, as they are announced.
fn origins(sums: &BTreeMap<NodeName, u64>, nodes: &[NodeRecord]) -> Vec<Origin> {
    let origin = |(client, bytes): (&NodeName, &u64)| {
        let record = nodes.iter().find(|node| node.name == *client);
        Origin {
            place: record.map(|node| (node.host().to_owned(), node.failure_domain().to_owned())),
            bytes: *bytes,
        }
    };
    sums.iter().map(origin).collect()
}
