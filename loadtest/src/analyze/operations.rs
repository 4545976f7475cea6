//! Operations: the events of each, joined by its id over all services, and what kind of operation it was.
//!
//! Keeps: the events, sorted; who each process is.
//! Order: operations by id; the events of one in order of time.
//! Crash: nothing.
//! Knows the names of the points at which operations begin and end, and who passes which point.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ops::Range;

use super::read::{Event, Recorded, Word, Words};

/// The points at which an operation begins, and the last point of which name it ends with. What begins with the bus has a
/// client that records nothing.
const LIVES: [(&str, &str); 9] = [
    ("sconce_nbd:entry", "sconce_nbd:exit"),
    ("sconce_fuse:entry", "sconce_fuse:exit"),
    ("sconce_bus:request_out", "sconce_bus:reply_in"),
    ("sconce_bus:request_in", "sconce_bus:reply_out"),
    ("sconce_volume:upload_entry", "sconce_volume:upload_exit"),
    ("sconce_volume:checkpoint_entry", "sconce_volume:checkpoint_exit"),
    ("sconce_volume:scrub_entry", "sconce_volume:scrub_exit"),
    ("sconce_volume:takeover_entry", "sconce_volume:takeover_exit"),
    ("sconce_volume:twin_send", "sconce_volume:twin_ack"),
];

/// Whose a process is, by a provider of which it records events; the first that fits counts.
const SERVICES: [(&str, &str); 5] = [
    ("sconce_nbd:", "fs-router"),
    ("sconce_fuse:", "fs-router"),
    ("sconce_volume:", "volume-router"),
    ("sconce_storage:", "storage-router"),
    ("sconce_backend:", "storage-router"),
];

/// A process of a machine.
pub(super) type Process = (Word, u32);

/// An operation from its begin to its end.
#[derive(Debug)]
pub(super) struct Operation<'a> {
    pub(super) id: u64,
    /// `nbd write`, `upload`, …
    pub(super) class: String,
    /// From the event at which it begins to the one at which it ends.
    pub(super) events: &'a [Event],
}

impl Operation<'_> {
    /// Nanoseconds that it took.
    pub(super) fn duration(&self) -> u64 {
        match (self.events.first(), self.events.last()) {
            (Some(first), Some(last)) => last.time.saturating_sub(first.time),
            _ => 0,
        }
    }
}

/// All that was recorded, by operation.
#[derive(Debug)]
pub(super) struct Operations {
    pub(super) recorded: Recorded,
    services: HashMap<Process, &'static str>,
    /// The events of each operation.
    ranges: Vec<Range<usize>>,
    /// Events of no operation.
    pub(super) of_none: u64,
    /// Operations without their begin or end: it was before or after the recording, or is lost.
    pub(super) incomplete: u64,
}

impl Operations {
    /// Sorts out what was recorded.
    pub(super) fn of(mut recorded: Recorded) -> Self {
        let services = services(&recorded.events, &recorded.words);
        let with_id = |event: &Event| event.operation != 0;
        let of_none = recorded.events.iter().filter(|event| !with_id(event)).count() as u64;
        recorded.events.retain(with_id);
        // Stable: events of one nanosecond stay as they were printed.
        recorded.events.sort_by_key(|event| (event.operation, event.time));
        let mut ranges = Vec::new();
        let mut begin = 0;
        for events in recorded
            .events
            .chunk_by(|one, next| one.operation == next.operation)
        {
            ranges.push(begin..begin + events.len());
            begin += events.len();
        }
        let mut operations = Self {
            recorded,
            services,
            ranges,
            of_none,
            incomplete: 0,
        };
        operations.incomplete = (operations.ranges.len() - operations.whole().count()) as u64;
        operations
    }

    /// Leaves only the operations that are of one of these volumes.
    pub(super) fn keep(&mut self, volumes: &[String]) {
        let words = &self.recorded.words;
        let known: HashSet<Word> = volumes.iter().filter_map(|id| words.known(id)).collect();
        let events = &self.recorded.events;
        self.ranges.retain(|range| {
            events[range.clone()]
                .iter()
                .any(|event| known.contains(&event.volume))
        });
        self.incomplete = (self.ranges.len() - self.whole().count()) as u64;
    }

    /// How many there are, incomplete ones too.
    pub(super) fn len(&self) -> usize {
        self.ranges.len()
    }

    /// Those that were recorded from their begin to their end.
    pub(super) fn whole(&self) -> impl Iterator<Item = Operation<'_>> {
        self.ranges
            .iter()
            .filter_map(|range| self.operation(&self.recorded.events[range.clone()]))
    }

    /// All events of the operations that are left.
    pub(super) fn events(&self) -> impl Iterator<Item = &Event> {
        self.ranges
            .iter()
            .flat_map(|range| &self.recorded.events[range.clone()])
    }

    fn operation<'a>(&self, events: &'a [Event]) -> Option<Operation<'a>> {
        let first = events.first()?;
        let words = &self.recorded.words;
        let begin = words.text(first.point);
        let (_, end) = LIVES.iter().find(|(point, _)| *point == begin)?;
        let is_end = |event: &Event| {
            words.text(event.point) == *end && (event.host, event.pid) == (first.host, first.pid)
        };
        let last = events.iter().rposition(is_end)?;
        let events = events.get(..=last)?;
        // The bus does not know what a request does.
        let mut told = events.iter().map(|event| words.text(event.action));
        let action = told.find(|action| *action != "none").unwrap_or("none");
        let kind = begin.trim_start_matches("sconce_");
        let class = match kind.split_once(':') {
            Some((from @ ("nbd" | "fuse" | "bus"), _)) => format!("{from} {action}"),
            Some((_, "twin_send")) => "twin".to_owned(),
            Some((_, job)) => job.trim_end_matches("_entry").to_owned(),
            None => kind.to_owned(),
        };
        Some(Operation {
            id: first.operation,
            class,
            events,
        })
    }

    pub(super) fn text(&self, word: Word) -> &str {
        self.recorded.words.text(word)
    }

    /// The service that recorded an event.
    pub(super) fn service(&self, event: &Event) -> &'static str {
        self.services
            .get(&(event.host, event.pid))
            .copied()
            .unwrap_or("client")
    }

    /// A step's name: `fs-router nbd:entry`.
    pub(super) fn place(&self, event: &Event) -> String {
        let point = self.text(event.point).trim_start_matches("sconce_");
        format!("{} {point}", self.service(event))
    }

    pub(super) fn hosts(&self) -> Vec<String> {
        let hosts: BTreeSet<Word> = self.events().map(|event| event.host).collect();
        hosts.into_iter().map(|host| self.text(host).to_owned()).collect()
    }
}

/// Without its process an event is known by its own provider alone: the bus's are then a client's.
fn services(events: &[Event], words: &Words) -> HashMap<Process, &'static str> {
    let seen: HashSet<(Process, Word)> = events
        .iter()
        .map(|event| ((event.host, event.pid), event.point))
        .collect();
    let mut services = HashMap::new();
    for (provider, service) in SERVICES {
        for (process, point) in &seen {
            if words.text(*point).starts_with(provider) {
                services.entry(*process).or_insert(service);
            }
        }
    }
    services
}
