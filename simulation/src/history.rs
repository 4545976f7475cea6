//! What clients asked for and were answered, and the trace of a run.
//!
//! Keeps: every operation on every cluster, what went wrong, and one line for each thing that happened.
//! Order: as it happened; the number of a line is the time by which a history is judged.
//! Crash: an operation whose client went has no answer.
//! Knows no services.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

use tokio::time::Instant;

use crate::linear::{Operation, Value, What, is_linearizable};

/// Where a history's operations are: which volume, and which of its clusters.
pub(crate) type Place = (usize, u64);

/// An operation that was begun.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Begun {
    place: Place,
    index: usize,
}

/// All that is written down of a run.
pub(crate) struct History {
    origin: Instant,
    now: u64,
    last_value: Value,
    places: BTreeMap<Place, Vec<Operation>>,
    trace: String,
    pub(crate) failures: Vec<String>,
    pub(crate) acked: u64,
    pub(crate) faults: BTreeMap<&'static str, u64>,
}

impl History {
    pub(crate) fn new() -> Self {
        Self {
            origin: Instant::now(),
            now: 0,
            last_value: 0,
            places: BTreeMap::new(),
            trace: String::new(),
            failures: Vec::new(),
            acked: 0,
            faults: BTreeMap::new(),
        }
    }

    /// Something happened.
    pub(crate) fn note(&mut self, what: fmt::Arguments<'_>) {
        let at = self.origin.elapsed();
        self.now += 1;
        // Writing to a string does not fail.
        let _ = writeln!(self.trace, "{:6} {:10.3} {what}", self.now, at.as_secs_f64());
    }

    /// Something went wrong that must not.
    pub(crate) fn fail(&mut self, what: String) {
        self.note(format_args!("FAILED {what}"));
        self.failures.push(what);
    }

    /// A fault begins.
    pub(crate) fn fault(&mut self, kind: &'static str, what: fmt::Arguments<'_>) {
        *self.faults.entry(kind).or_default() += 1;
        self.note(format_args!("fault {kind}: {what}"));
    }

    /// A value that no write had before.
    pub(crate) fn fresh(&mut self) -> Value {
        self.last_value += 1;
        self.last_value
    }

    /// An operation on one cluster is asked for.
    pub(crate) fn begin(&mut self, place: Place, what: What) -> Begun {
        self.note(format_args!("asked {place:?} {what:?}"));
        let operations = self.places.entry(place).or_default();
        operations.push(Operation {
            what,
            asked: self.now,
            answered: None,
        });
        Begun {
            place,
            index: operations.len() - 1,
        }
    }

    /// It is answered. `found`: what a read found.
    pub(crate) fn end(&mut self, begun: Begun, found: Option<Value>) {
        self.note(format_args!(
            "answered {:?} #{} {found:?}",
            begun.place, begun.index
        ));
        self.acked += 1;
        let operation = self
            .places
            .get_mut(&begun.place)
            .and_then(|operations| operations.get_mut(begun.index));
        if let Some(operation) = operation {
            operation.answered = Some(self.now);
            if let Some(found) = found {
                operation.what = What::Read(found);
            }
        }
    }

    /// Judges every cluster.
    pub(crate) fn judge(&mut self) {
        let wrong: Vec<Place> = self
            .places
            .iter()
            .filter(|(_, operations)| !is_linearizable(operations))
            .map(|(place, _)| *place)
            .collect();
        for place in wrong {
            let shortest = shortest_wrong(&self.places[&place]);
            let told: Vec<String> = shortest
                .iter()
                .map(|operation| {
                    let answered = operation
                        .answered
                        .map_or_else(|| "never".to_owned(), |at| at.to_string());
                    format!(
                        "{:?} asked {} answered {answered}",
                        operation.what, operation.asked
                    )
                })
                .collect();
            self.fail(format!(
                "volume {} cluster {}: not linearizable, of which this is enough: {}",
                place.0,
                place.1,
                told.join("; ")
            ));
        }
    }

    pub(crate) fn operations(&self) -> u64 {
        self.places
            .values()
            .map(|operations| operations.len() as u64)
            .sum()
    }

    pub(crate) fn into_trace(self) -> String {
        self.trace
    }
}

/// A part of a wrong history that is wrong by itself, as far as leaving out one value after another goes.
fn shortest_wrong(operations: &[Operation]) -> Vec<Operation> {
    let mut left = operations.to_vec();
    let value = |operation: &Operation| match operation.what {
        What::Write(value) | What::Read(value) => value,
    };
    let mut values: Vec<Value> = left.iter().map(value).collect();
    values.sort_unstable();
    values.dedup();
    for leave_out in values {
        let without: Vec<Operation> = left
            .iter()
            .filter(|one| value(one) != leave_out)
            .copied()
            .collect();
        if !is_linearizable(&without) {
            left = without;
        }
    }
    let mut at = 0;
    while at < left.len() {
        let mut without = left.clone();
        without.remove(at);
        let is_read = matches!(left[at].what, What::Read(_));
        match is_read && !is_linearizable(&without) {
            true => left = without,
            false => at += 1,
        }
    }
    left
}
