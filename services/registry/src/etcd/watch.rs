//! A long poll over etcd's stream of events.
//!
//! Keeps: one stream, for one poll.
//! Order: etcd sends a revision's events together and revisions in order; a poll ends with a whole revision.
//! Crash: nothing; the next poll starts after what this one told.
//! Knows no other request.

use std::time::Duration;

use etcd_client::{Client, EventType, WatchOptions, WatchResponse, WatchStream};
use sconce_schemas::wire::registry::{Revision, WatchEvent};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::errors::Failure;
use super::keys::{Keys, PROBE};
use super::{DEADLINE, revision_of, to_i64, to_u64};
use crate::Watched;

/// etcd sends what happened before a watch began within a tenth of a second: a shorter wait could miss it.
const WAIT_MIN: Duration = Duration::from_millis(300);
/// Largest answer: etcd sends up to 1000 revisions of the past at once. More than this counts as lost.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// One poll.
pub(super) struct Watch {
    client: Client,
    /// Notices when another member is asked: the one that this stream is from may be silent because it is cut off.
    moves: watch::Receiver<usize>,
    keys: Keys,
    prefix: String,
    after: Revision,
}

impl Watch {
    pub(super) fn new(
        (client, moves): (Client, watch::Receiver<usize>),
        keys: Keys,
        prefix: &str,
        after: Revision,
    ) -> Self {
        Self {
            client,
            moves,
            keys,
            prefix: prefix.to_owned(),
            after,
        }
    }

    /// Waits up to `wait` for the first events.
    pub(super) async fn wait(mut self, wait: Duration) -> Result<Watched, Failure> {
        let until = Instant::now() + wait.max(WAIT_MIN);
        let mut moves = self.moves.clone();
        let opened = tokio::select! {
            opened = tokio::time::timeout(DEADLINE, self.open()) => opened,
            // Asked again, of the member that answers.
            _ = moves.changed() => return Ok(self.told(Vec::new(), self.after, false)),
        };
        let mut stream = opened.unwrap_or_else(|_| Err(Failure::late(DEADLINE)))?;
        loop {
            let message = tokio::select! {
                message = timeout_at(until, stream.message()) => message,
                _ = moves.changed() => return Ok(self.told(Vec::new(), self.after, false)),
            };
            let Ok(message) = message else {
                // Later revisions may be under way, so this is all that is known.
                return Ok(self.told(Vec::new(), self.after, false));
            };
            let response = match message.map_err(Failure::from) {
                Ok(Some(response)) => response,
                Ok(None) => return Err(Failure::other("the stream of events ended".to_owned())),
                Err(failure) if failure.is_too_large() => return self.lost().await,
                Err(failure) => return Err(failure),
            };
            if response.compact_revision() > 0 {
                return self.lost().await;
            }
            if response.canceled() {
                return Err(Failure::other(format!(
                    "watch refused: {}",
                    response.cancel_reason()
                )));
            }
            // etcd sends events a moment before it counts their revision, so that only a read tells for certain.
            if response.created()
                && revision_of(response.header()) < self.after
                && self.newest().await? < self.after
            {
                // An etcd that was restored from an older backup: the caller's copy is of another past.
                return self.lost().await;
            }
            if let Some(last) = response.events().last().and_then(|event| event.kv()) {
                let revision = Revision(to_u64(last.mod_revision()));
                let events = self.events(&response);
                return Ok(self.told(events, revision, false));
            }
        }
    }

    async fn open(&mut self) -> Result<WatchStream, Failure> {
        let (start, end) = self.keys.range(&self.prefix, None);
        let options = WatchOptions::new()
            .with_range(end)
            .with_start_revision(to_i64(self.after.0.saturating_add(1)));
        let mut client = self
            .client
            .watch_client()
            .max_decoding_message_size(ANSWER_BYTES_MAX);
        client.watch(start, Some(options)).await.map_err(Failure::from)
    }

    fn events(&self, response: &WatchResponse) -> Vec<WatchEvent> {
        let events = response.events().iter().filter_map(|event| {
            let kv = event.kv()?;
            let key = self.keys.key(kv.key())?;
            let entry = match event.event_type() {
                EventType::Put => self.keys.entry(kv.clone()),
                EventType::Delete => None,
            };
            let revision = Revision(to_u64(kv.mod_revision()));
            Some(WatchEvent { key, entry, revision })
        });
        events.collect()
    }

    async fn lost(&mut self) -> Result<Watched, Failure> {
        let newest = self.newest().await?;
        Ok(self.told(Vec::new(), newest, true))
    }

    /// etcd's newest revision, as a linearizable read tells it.
    async fn newest(&mut self) -> Result<Revision, Failure> {
        let found = tokio::time::timeout(DEADLINE, self.client.get(PROBE, None)).await;
        let found = found
            .map_err(|_| Failure::late(DEADLINE))?
            .map_err(Failure::from)?;
        Ok(revision_of(found.header()))
    }

    fn told(&self, events: Vec<WatchEvent>, revision: Revision, lost: bool) -> Watched {
        Watched {
            events,
            revision,
            lost,
        }
    }
}
