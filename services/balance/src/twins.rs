//! Who is to keep a volume's twin.
//!
//! Keeps: nothing.
//! Order: where an operator wants it; in another failure domain than the owner; at whoever owned the volume before, which has most of
//! it; where the least is; by name.
//! Crash: nothing.
//! Knows nobody's room: who has none refuses, and the next one is asked.

use sconce_schemas::NodeName;
use sconce_schemas::records::NodeRecord;

use crate::{Pool, Volume};

/// How well a volume-router does as the host of a twin: the least does best.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct TwinRank {
    is_not_wanted: bool,
    shares_domain: bool,
    is_not_former: bool,
    streams: usize,
    name: NodeName,
}

impl TwinRank {
    /// `domain`: the owner's failure domain; `wanted`: where an operator wants the twin; `former`: who owned the volume before it was moved;
    /// `streams`: what the node keeps already.
    #[must_use]
    pub fn of(
        node: &NodeRecord,
        domain: &str,
        (wanted, former): (Option<&NodeName>, Option<&NodeName>),
        streams: usize,
    ) -> Self {
        Self {
            is_not_wanted: wanted != Some(&node.name),
            shares_domain: node.failure_domain() == domain,
            is_not_former: former != Some(&node.name),
            streams,
            name: node.name.clone(),
        }
    }
}

impl Pool {
    /// Where the twin of a volume should be rather than where it is: where an operator wants it, or in another failure domain than its
    /// owner. Less than that is worth no moment without a twin.
    #[must_use]
    pub fn better_twin(&self, volume: &Volume) -> Option<&NodeName> {
        let now = volume.twin.as_ref()?;
        let domain = &self.routers.get(&volume.owner)?.failure_domain;
        let wanted = volume.twin_host.as_ref();
        let others = self.takers().filter(|router| router.name != volume.owner);
        let may_be = |name: &NodeName| wanted.is_none_or(|wanted| !wanted.only || wanted.node == *name);
        let rank = |name: &NodeName, its_domain: Option<&String>| {
            let is_wanted = wanted.is_some_and(|wanted| wanted.node == *name);
            (!is_wanted, its_domain.is_none_or(|its| its == domain))
        };
        let its_domain = self.routers.get(now).map(|router| &router.failure_domain);
        let streams = self.streams();
        let best = others
            .filter(|router| may_be(&router.name))
            .map(|router| {
                let rank = rank(&router.name, Some(&router.failure_domain));
                let streams = streams.get(&router.name).copied().unwrap_or_default();
                (rank, streams, &router.name)
            })
            .min()?;
        (best.0 < rank(now, its_domain)).then_some(best.2)
    }

    /// The failure domain that a volume's owner shares with its twin, if they do.
    #[must_use]
    pub fn shared_domain(&self, owner: &NodeName, twin: &NodeName) -> Option<&str> {
        let domain = |node| {
            self.routers
                .get(node)
                .map(|router| router.failure_domain.as_str())
        };
        domain(owner).filter(|shared| domain(twin) == Some(shared))
    }
}
