//! Which services there are; and which come and go, told as events.
//!
//! Keeps: the services that are in the registry, as this process saw it last.
//! Order: what is there at the start is no event, except this process itself; from then on each coming and going is, as soon as the registry
//! tells of it. Each service that watches tells what it sees: whoever reads several streams finds the same more than once.
//! Crash: nothing; the next start lists anew.
//! Knows no service's work.

use std::collections::BTreeMap;
use std::time::Duration;

use sconce_runtime::{Backoff, Chance, Events, Stop};
use sconce_schemas::NodeName;
use sconce_schemas::records::{NodeRecord, keys};
use sconce_schemas::wire::event::What;
use sconce_schemas::wire::registry::Revision;

use crate::record::decode;
use crate::{Registry, RegistryError};

/// How long a watch waits for a change.
const WATCH_WAIT: Duration = Duration::from_secs(30);

/// By their keys.
type Known = BTreeMap<String, NodeRecord>;

impl Registry {
    /// The services that are in the registry, in the order of their names. One whose record is damaged is not among them, and keeps nobody
    /// from the others: it runs, but nobody knows where it is reached.
    ///
    /// # Errors
    /// As [`Registry::list`].
    pub async fn nodes(&self) -> Result<Vec<NodeRecord>, RegistryError> {
        Ok(self.readable_nodes().await?.into_values().collect())
    }

    async fn readable_nodes(&self) -> Result<Known, RegistryError> {
        let mut there = Known::new();
        for entry in self.list(keys::NODES, None, usize::MAX).await? {
            match decode::<NodeRecord>(&entry) {
                Ok(record) => drop(there.insert(entry.key, record)),
                Err(error) => tracing::debug!(%error, "a service's record is damaged"),
            }
        }
        Ok(there)
    }
}

/// Tells which services come and go, until the stop. `me`: this process, which is told of where it is seen first.
pub async fn tell(registry: Registry, me: NodeName, events: Events, stop: Stop) {
    let mut watch = Watch {
        registry,
        me: (keys::node(&me), std::process::id()),
        events,
        known: None,
        after: None,
    };
    let mut backoff = Backoff::new(
        Duration::from_millis(50),
        Duration::from_secs(2),
        Chance::from_os(),
    );
    loop {
        let looked = tokio::select! {
            biased;
            () = stop.requested() => return,
            looked = watch.look() => looked,
        };
        match looked {
            Ok(()) => backoff.reset(),
            Err(error) => {
                tracing::debug!(%error, "the registry does not tell now which services come and go");
                tokio::select! {
                    biased;
                    () = stop.requested() => return,
                    () = tokio::time::sleep(backoff.wait()) => {}
                }
            }
        }
    }
}

struct Watch {
    registry: Registry,
    /// Key and process.
    me: (String, u32),
    events: Events,
    /// `None`: nothing was seen yet.
    known: Option<Known>,
    /// `None`: list.
    after: Option<Revision>,
}

impl Watch {
    async fn look(&mut self) -> Result<(), RegistryError> {
        let Some(after) = self.after else {
            // The revision first: what changes after it is seen, if need be once more.
            let revision = self.registry.revision().await?;
            let there = self.registry.readable_nodes().await?;
            self.listed(there);
            self.after = Some(revision);
            return Ok(());
        };
        let watched = self.registry.watch(keys::NODES, after, WATCH_WAIT).await?;
        self.after = (!watched.lost).then_some(watched.revision);
        for event in watched.events {
            match event.entry.map(|entry| decode::<NodeRecord>(&entry)) {
                None => self.changed(&event.key, None),
                Some(Ok(record)) => self.changed(&event.key, Some(record)),
                Some(Err(error)) => tracing::debug!(%error, "a service's record is damaged"),
            }
        }
        Ok(())
    }

    fn listed(&mut self, there: Known) {
        let Some(known) = &self.known else {
            let (key, pid) = self.me.clone();
            let (me, others) = there
                .into_iter()
                .partition(|(found, record)| *found == key && record.pid == pid);
            self.known = Some(others);
            let me: Known = me;
            me.into_iter()
                .for_each(|(key, record)| self.changed(&key, Some(record)));
            return;
        };
        let gone: Vec<String> = known
            .keys()
            .filter(|key| !there.contains_key(*key))
            .cloned()
            .collect();
        gone.iter().for_each(|key| self.changed(key, None));
        there
            .into_iter()
            .for_each(|(key, record)| self.changed(&key, Some(record)));
    }

    /// The record at `key` is this one now.
    fn changed(&mut self, key: &str, now: Option<NodeRecord>) {
        let Some(known) = &mut self.known else { return };
        match now {
            None => {
                if let Some(NodeRecord { name, role, pid, .. }) = known.remove(key) {
                    self.events.tell(What::NodeLeft { name, role, pid });
                }
            }
            Some(record) => {
                let NodeRecord { name, role, pid, .. } = record.clone();
                let before = known.insert(key.to_owned(), record).map(|before| before.pid);
                // A record that is put back after its lease ended, and nobody saw it go, is the same process.
                if before != Some(pid) {
                    self.events.tell(What::NodeJoined {
                        name,
                        role,
                        pid,
                        in_place_of: before,
                    });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use sconce_runtime::Clock;
    use sconce_schemas::records::Record as _;
    use sconce_schemas::wire::Role;
    use sconce_schemas::wire::event::EventsAsk;
    use sconce_schemas::wire::registry::Change;

    use super::*;

    fn node(name: &str, pid: u32) -> NodeRecord {
        NodeRecord {
            name: name.parse().unwrap(),
            role: Role::VolumeRouter,
            endpoints: Vec::new(),
            version: "0.1.0".to_owned(),
            pid,
            place: None,
            buffer: None,
        }
    }

    async fn put(registry: &Registry, record: &NodeRecord) {
        let put = Change::put(keys::node(&record.name), None, record.to_bytes());
        registry.commit(vec![put]).await.unwrap();
    }

    #[tokio::test]
    async fn who_comes_and_goes_is_told_once_and_who_was_there_is_not() {
        let registry = Registry::memory();
        put(&registry, &node("old", 1)).await;
        let me = node("me", std::process::id());
        put(&registry, &me).await;
        let events = Events::new(me.name.clone(), Clock::system(), &mut Chance::seeded(1));
        let stop = Stop::new();
        let told = tokio::spawn(tell(
            registry.clone(),
            me.name.clone(),
            events.clone(),
            stop.clone(),
        ));
        let mut seen = Vec::new();
        let next = async |seen: &mut Vec<String>, wanted: usize| {
            while seen.len() < wanted {
                let ask = EventsAsk {
                    run: events.page(&EventsAsk::default(), &stop).await.run,
                    after: seen.len() as u64,
                    wait_ms: 10_000,
                };
                let page = events.page(&ask, &stop).await;
                assert!(!page.events.is_empty(), "nothing more was told than {seen:?}");
                seen.extend(page.events.into_iter().map(|event| event.text));
            }
        };
        next(&mut seen, 1).await;
        put(&registry, &node("new", 2)).await;
        put(&registry, &node("new", 2)).await;
        put(&registry, &node("old", 3)).await;
        let gone = Change::delete(keys::node(&"new".parse().unwrap()), None);
        registry.commit(vec![gone]).await.unwrap();
        next(&mut seen, 4).await;
        stop.request();
        told.await.unwrap();
        let mine = format!("volume-router me joined (process {})", std::process::id());
        assert_eq!(
            seen,
            [
                mine.as_str(),
                "volume-router new joined (process 2)",
                "volume-router old joined (process 3, in place of process 1)",
                "volume-router new left (process 2): it stopped, or its lease is over",
            ]
        );
    }
}
