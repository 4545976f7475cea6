//! Where a volume's IO comes from, and where it is to go for that.
//!
//! Keeps: what each client asked of a volume, over a window of time, in a few slices.
//! Order: looks are told in the order of their times.
//! Crash: the window begins anew; nothing is decided before it is full.
//! Knows no clock and no connections.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use sconce_schemas::NodeName;

use crate::{Pool, Volume};

/// Slices of a window: so much of it is thrown away at a time.
const SLICES: u32 = 10;

/// Bytes that each client asked for or sent within the last window.
#[derive(Debug, Clone)]
pub struct IoWindow {
    window: Duration,
    since: Duration,
    /// With the times at which they begin.
    slices: VecDeque<(Duration, BTreeMap<NodeName, u64>)>,
}

impl IoWindow {
    /// One that begins now.
    #[must_use]
    pub const fn new(window: Duration, now: Duration) -> Self {
        Self {
            window,
            since: now,
            slices: VecDeque::new(),
        }
    }

    /// A client asked for, or sent, so many more bytes since it was told of last.
    pub fn add(&mut self, client: &NodeName, bytes: u64, now: Duration) {
        let slice = self.window / SLICES;
        let is_over = |(begun, _): &(Duration, _)| now.saturating_sub(*begun) >= slice;
        if self.slices.back().is_none_or(is_over) {
            self.slices.push_back((now, BTreeMap::new()));
        }
        if let Some((_, slice)) = self.slices.back_mut() {
            let sum = slice.entry(client.clone()).or_default();
            *sum = sum.saturating_add(bytes);
        }
    }

    /// What came from whom within the window; `None` while it is not full.
    pub fn sums(&mut self, now: Duration) -> Option<BTreeMap<NodeName, u64>> {
        let sums = self.so_far(now);
        (now.saturating_sub(self.since) >= self.window).then_some(sums)
    }

    /// The same, also of one that is not full.
    pub fn so_far(&mut self, now: Duration) -> BTreeMap<NodeName, u64> {
        let window = self.window;
        while self
            .slices
            .pop_front_if(|(begun, _)| now.saturating_sub(*begun) >= window)
            .is_some()
        {}
        let mut sums = BTreeMap::new();
        for (client, bytes) in self.slices.iter().flat_map(|(_, slice)| slice) {
            let sum: &mut u64 = sums.entry(client.clone()).or_default();
            *sum = sum.saturating_add(*bytes);
        }
        sums
    }
}

/// Where IO comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The client's machine and failure domain; `None` where nobody knows it.
    pub place: Option<(String, String)>,
    /// How much.
    pub bytes: u64,
}

/// When a volume goes to where its IO comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FollowRule {
    /// At least so much of a hundred comes from there.
    pub percent: u8,
    /// And there is at least so much of it, in bytes.
    pub bytes_min: u64,
}

/// Where a volume is to go for its IO.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Follow {
    /// Who is to own it.
    pub to: NodeName,
    /// The machine or failure domain that the IO comes from.
    pub from: String,
    /// How much of it does, of a hundred.
    pub percent: u8,
    /// All of it.
    pub bytes: u64,
}

/// What most of the IO comes from.
struct Most<'a> {
    name: &'a str,
    percent: u8,
}

impl FollowRule {
    fn most<'a>(
        self,
        origins: &'a [Origin],
        name: impl Fn(&'a (String, String)) -> &'a str,
    ) -> Option<Most<'a>> {
        let all = total(origins);
        let mut sums: BTreeMap<&str, u64> = BTreeMap::new();
        for origin in origins {
            if let Some(place) = &origin.place {
                let sum = sums.entry(name(place)).or_default();
                *sum = sum.saturating_add(origin.bytes);
            }
        }
        let (name, bytes) = sums.into_iter().max_by_key(|(_, bytes)| *bytes)?;
        let percent = u128::from(bytes) * 100 / u128::from(all.max(1));
        let percent = u8::try_from(percent).unwrap_or(100);
        (percent >= self.percent).then_some(Most { name, percent })
    }
}

fn total(origins: &[Origin]) -> u64 {
    let add = |sum: u64, origin: &Origin| sum.saturating_add(origin.bytes);
    origins.iter().fold(0, add)
}

impl Pool {
    /// Where a volume is to go for its IO: to a volume-router on the machine that most of it comes from, else to one in that failure
    /// domain. `None`: it stays.
    #[must_use]
    pub fn follow(&self, volume: &Volume, origins: &[Origin], rule: FollowRule) -> Option<Follow> {
        let bytes = total(origins);
        let stays = volume.pinned || volume.moves_to.is_some() || volume.is_degraded();
        if stays || bytes < rule.bytes_min || self.is_in_move(&volume.owner) {
            return None;
        }
        let owner = self.routers.get(&volume.owner)?;
        let loads = self.loads();
        let least = |is_there: &dyn Fn(&crate::Router) -> bool| {
            let there = self.takers().filter(|router| is_there(router));
            there
                .filter(|router| !self.is_in_move(&router.name) && self.keeps_promises(volume, &router.name))
                .min_by_key(|router| loads.get(&router.name))
        };
        let follow = |most: Most<'_>, to: &NodeName| Follow {
            to: to.clone(),
            from: most.name.to_owned(),
            percent: most.percent,
            bytes,
        };
        if let Some(most) = rule.most(origins, |(host, _)| host) {
            if owner.host == most.name {
                return None;
            }
            if let Some(router) = least(&|router| router.host == most.name) {
                return Some(follow(most, &router.name));
            }
        }
        let most = rule.most(origins, |(_, domain)| domain)?;
        if owner.failure_domain == most.name {
            return None;
        }
        let router = least(&|router| router.failure_domain == most.name)?;
        Some(follow(most, &router.name))
    }

    /// Whether a volume is where its IO comes from, so that spreading volumes evenly should take another one.
    #[must_use]
    pub fn is_near_its_io(&self, volume: &Volume, origins: &[Origin], rule: FollowRule) -> bool {
        let Some(owner) = self.routers.get(&volume.owner) else {
            return false;
        };
        let by_host = rule.most(origins, |(host, _)| host);
        let by_domain = rule.most(origins, |(_, domain)| domain);
        let is_near = by_host.is_some_and(|most| most.name == owner.host)
            || by_domain.is_some_and(|most| most.name == owner.failure_domain);
        is_near && total(origins) >= rule.bytes_min
    }
}
