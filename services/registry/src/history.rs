//! The changes of the recent past, for watches.
//!
//! Keeps: the newest events within a limit of events and bytes.
//! Order: events are in the order of their revisions; a revision is here whole or not at all.
//! Crash: it is not stored: after a restart a watch that is behind is told to list again.
//! Knows no clock and no tasks.

use std::collections::VecDeque;

use sconce_schemas::wire::registry::{Entry, Revision, WatchEvent};

use crate::Watched;
use crate::limits::{ANSWER_BYTES_MAX, ANSWER_EVENTS_MAX};

/// Most events that are kept.
const EVENTS_MAX: usize = 16_384;
/// Most bytes of keys and values that are kept.
const BYTES_MAX: usize = 8 << 20;

/// Recent events.
#[derive(Debug, Default)]
pub(crate) struct History {
    events: VecDeque<WatchEvent>,
    bytes: usize,
    /// Events up to this revision are not known.
    floor: Revision,
}

impl History {
    /// No events; those up to `floor` are not known.
    pub(crate) fn starting_at(floor: Revision) -> Self {
        Self {
            floor,
            ..Self::default()
        }
    }

    /// Adds the events of one commit.
    pub(crate) fn add(&mut self, events: impl IntoIterator<Item = WatchEvent>) {
        for event in events {
            self.bytes += weight(&event);
            self.events.push_back(event);
        }
        while self.events.len() > EVENTS_MAX || self.bytes > BYTES_MAX {
            let Some(oldest) = self.events.front().map(|event| event.revision) else {
                return;
            };
            self.forget(oldest);
        }
    }

    fn forget(&mut self, revision: Revision) {
        self.floor = revision;
        while let Some(event) = self.events.pop_front_if(|event| event.revision <= revision) {
            self.bytes -= weight(&event);
        }
    }

    /// The events below `prefix` after `after`, where `newest` is the registry's revision. `None`: there are none
    /// yet.
    pub(crate) fn since(&self, prefix: &str, after: Revision, newest: Revision) -> Option<Watched> {
        if after < self.floor || after > newest {
            return Some(Watched {
                events: Vec::new(),
                revision: newest,
                lost: true,
            });
        }
        let start = self.events.partition_point(|event| event.revision <= after);
        let mut events: Vec<WatchEvent> = Vec::new();
        let mut bytes = 0;
        let mut revision = newest;
        for event in self
            .events
            .range(start..)
            .filter(|event| event.key.starts_with(prefix))
        {
            let last = events.last().map(|last| last.revision);
            let full = events.len() >= ANSWER_EVENTS_MAX || bytes > ANSWER_BYTES_MAX;
            if let Some(last) = last.filter(|last| full && *last != event.revision) {
                revision = last;
                break;
            }
            bytes += weight(event);
            events.push(event.clone());
        }
        (!events.is_empty()).then_some(Watched {
            events,
            revision,
            lost: false,
        })
    }
}

fn weight(event: &WatchEvent) -> usize {
    event.key.len()
        + event
            .entry
            .as_ref()
            .map_or(0, |Entry { key, value, .. }| key.len() + value.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(key: &str, revision: u64, len: usize) -> WatchEvent {
        let revision = Revision(revision);
        let entry = Entry {
            key: key.to_owned(),
            value: vec![0; len],
            revision,
        };
        WatchEvent {
            key: key.to_owned(),
            entry: Some(entry),
            revision,
        }
    }

    #[test]
    fn events_after_a_revision_below_a_prefix_in_order() {
        let mut history = History::starting_at(Revision(4));
        history.add([event("a/1", 5, 1), event("b/1", 5, 1)]);
        history.add([event("a/2", 6, 1)]);
        let watched = history.since("a/", Revision(4), Revision(6)).unwrap();
        let keys: Vec<_> = watched.events.iter().map(|event| event.key.as_str()).collect();
        assert_eq!(
            (keys, watched.revision, watched.lost),
            (vec!["a/1", "a/2"], Revision(6), false)
        );
        assert_eq!(history.since("a/", Revision(6), Revision(6)), None);
        assert_eq!(history.since("c/", Revision(4), Revision(6)), None);
    }

    #[test]
    fn what_is_too_old_or_never_was_is_lost() {
        let history = History::starting_at(Revision(4));
        for after in [3, 7] {
            let watched = history.since("", Revision(after), Revision(6)).unwrap();
            assert!(watched.lost && watched.revision == Revision(6), "after {after}");
        }
    }

    #[test]
    fn forgetting_takes_whole_revisions() {
        let mut history = History::default();
        for revision in 1..=9 {
            history.add([event("a", revision, 700_000), event("b", revision, 600_000)]);
        }
        assert!(history.bytes <= BYTES_MAX);
        let floor = history.floor;
        assert!(floor >= Revision(2));
        assert!(
            history
                .since("", Revision(floor.0 - 1), Revision(9))
                .unwrap()
                .lost
        );
        let watched = history.since("", floor, Revision(9)).unwrap();
        assert_eq!(watched.events[0].revision, Revision(floor.0 + 1));
        assert_eq!(watched.events.len() % 2, 0, "both events of each revision");
    }

    #[test]
    fn an_answer_ends_at_a_revision_and_the_next_goes_on_there() {
        let mut history = History::default();
        for revision in 1..=900 {
            history.add([
                event("a", revision, 1),
                event("b", revision, 1),
                event("c", revision, 1),
            ]);
        }
        let (mut after, mut seen) = (Revision(0), Vec::new());
        while let Some(watched) = history.since("", after, Revision(900)) {
            assert!(watched.events.len() <= ANSWER_EVENTS_MAX + 2);
            assert_eq!(watched.events.len() % 3, 0);
            after = watched.revision;
            seen.extend(watched.events.into_iter().map(|event| event.revision.0));
        }
        let wanted: Vec<u64> = (1..=900).flat_map(|revision| [revision; 3]).collect();
        assert_eq!(seen, wanted);
    }
}
