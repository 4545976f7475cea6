//! Which process of its node this is.
//!
//! Keeps: a number that is higher than that of every process of the node before it.
//! Order: it comes with the node's announcement; until then nothing is written.
//! Crash: the next process has a higher one.
//! Knows no registry.

use std::sync::Arc;

use sconce_runtime::Chance;
use sconce_schemas::NodeName;
use tokio::sync::watch;

/// Which process of its node this is, once that is known. Clones share it, across threads.
#[derive(Debug, Clone)]
pub struct Incarnation {
    known: Arc<watch::Sender<Option<u64>>>,
    is_command: bool,
}

impl Incarnation {
    /// That of a service, which [`Incarnation::tell`] tells.
    #[must_use]
    pub fn to_be_told() -> Self {
        Self {
            known: Arc::new(watch::Sender::new(None)),
            is_command: false,
        }
    }

    /// That of a command: it is not in the registry, and its own front end.
    #[must_use]
    pub fn command() -> Self {
        Self {
            known: Arc::new(watch::Sender::new(Some(0))),
            is_command: true,
        }
    }

    /// It is this one.
    pub fn tell(&self, number: u64) {
        self.known.send_replace(Some(number));
    }

    /// The number, as soon as it is known.
    pub(super) async fn number(&self) -> u64 {
        let mut known = self.known.subscribe();
        // The sender lives in `self`.
        let known = known.wait_for(Option::is_some).await;
        known.ok().and_then(|known| *known).unwrap_or(0)
    }

    /// What owners know this front end by: its node, or a name of its own.
    pub(super) fn front_end(&self, node: &NodeName, chance: &mut Chance) -> NodeName {
        if !self.is_command {
            return node.clone();
        }
        let (name, number) = (node.to_string(), chance.u64());
        let kept = name.len().min(46);
        // What is cut off a name leaves one, with what is put behind it.
        format!("{}-{number:016x}", &name[..kept])
            .parse()
            .unwrap_or_else(|_| node.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_command_has_a_name_of_its_own_and_a_service_its_nodes() {
        let mut chance = Chance::seeded(1);
        let node: NodeName = "x".repeat(63).parse().unwrap();
        let command = Incarnation::command();
        let (one, other) = (
            command.front_end(&node, &mut chance),
            command.front_end(&node, &mut chance),
        );
        assert!(one != other && one != node);
        assert_eq!(command.number().await, 0);
        let service = Incarnation::to_be_told();
        assert_eq!(service.front_end(&node, &mut chance), node);
        service.clone().tell(7);
        assert_eq!(service.number().await, 7);
    }
}
