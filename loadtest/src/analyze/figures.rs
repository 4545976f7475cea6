//! Figures of a trace: how long operations took, where in their way that time went, and which were the slowest.
//!
//! Keeps: counts of times for each kind of operation and each of its steps.
//! Order: steps in the order in which operations come by them on average.
//! Crash: nothing.
//! Knows no picture.
//!
//! A step is the time from one event of an operation to its next one, so the times of its steps add up to its own. Where parts
//! of an operation go at the same time, a step is that of whichever part comes by next.

use std::collections::{BTreeMap, HashMap};

use anyhow::Result;
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::operations::{Operation, Operations};
use super::read::{Event, Word};
use crate::report::{Times, histogram, micros, ratio};

/// Steps that are told of an operation; a huge one sent again and again has more.
const WATERFALL_MAX: usize = 200;
/// What is a slow operation: slower than so many percent of its kind.
const SLOW_PERCENT: f64 = 99.0;

/// What a trace says.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Analysis {
    /// From the first event to the last one.
    pub(crate) seconds: f64,
    pub(crate) events: u64,
    pub(crate) operations: u64,
    /// Operations without their begin or end; in no other figure.
    pub(crate) incomplete: u64,
    /// Events that are no operation's.
    pub(crate) of_no_operation: u64,
    /// Events of programs that are not Sconce.
    pub(crate) others: u64,
    /// Events that LTTng lost; what it said of that.
    pub(crate) lost: u64,
    pub(crate) lost_told: Vec<String>,
    pub(crate) hosts: Vec<String>,
    /// Events by point.
    pub(crate) points: BTreeMap<String, u64>,
    /// Bytes of reads that were in the write buffer, and that were on the back ends.
    pub(crate) buffer_bytes: u64,
    pub(crate) stored_bytes: u64,
    /// Kinds of operations, the one first that took the most time in sum.
    pub(crate) classes: Vec<Class>,
}

/// One kind of operation.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Class {
    pub(crate) name: String,
    /// Those that ended with another status than `ok`.
    pub(crate) failed: u64,
    pub(crate) times: Times,
    pub(crate) steps: Vec<Step>,
    /// Time of an operation by the service that it was in, or the two that it was between.
    pub(crate) places: Vec<Place>,
    pub(crate) volumes: Vec<OfVolume>,
    /// Second by second.
    pub(crate) over_time: Vec<Second>,
    pub(crate) slowest: Vec<Slow>,
}

/// From one event to the next.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Step {
    pub(crate) from: String,
    pub(crate) to: String,
    pub(crate) place: String,
    /// Of this kind's whole time.
    pub(crate) share: f64,
    /// Of the time of the slowest 1 % of this kind.
    pub(crate) slow_share: f64,
    pub(crate) times: Times,
}

/// A service, or the way between two.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Place {
    pub(crate) name: String,
    pub(crate) share: f64,
    pub(crate) slow_share: f64,
    /// Sums of an operation.
    pub(crate) times: Times,
}

/// Operations of one volume.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct OfVolume {
    pub(crate) volume: String,
    pub(crate) times: Times,
}

/// Operations that began in one second.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Second {
    pub(crate) second: u64,
    pub(crate) times: Times,
}

/// A slow operation, event by event.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Slow {
    pub(crate) operation: String,
    pub(crate) volume: String,
    /// Seconds since the first event of the trace.
    pub(crate) begin_s: f64,
    pub(crate) duration_us: f64,
    pub(crate) events: Vec<SlowEvent>,
}

/// An event of a slow operation.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct SlowEvent {
    /// Since the operation's begin.
    pub(crate) at_us: f64,
    /// Service and point.
    pub(crate) place: String,
    pub(crate) pid: u32,
    pub(crate) address: u64,
    pub(crate) length: u64,
    pub(crate) status: String,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct StepKey {
    points: (Word, Word),
    services: (&'static str, &'static str),
    way: Way,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Way {
    Within,
    BetweenProcesses,
    BetweenMachines,
}

impl StepKey {
    fn of(operations: &Operations, from: &Event, to: &Event) -> Self {
        let way = if from.host != to.host {
            Way::BetweenMachines
        } else if from.pid != to.pid {
            Way::BetweenProcesses
        } else {
            Way::Within
        };
        Self {
            points: (from.point, to.point),
            services: (operations.service(from), operations.service(to)),
            way,
        }
    }

    fn place(self) -> String {
        let (from, to) = self.services;
        match self.way {
            Way::Within => from.to_owned(),
            Way::BetweenProcesses => format!("{from} → {to}"),
            Way::BetweenMachines => format!("{from} → {to} (another machine)"),
        }
    }
}

/// Times of a part of operations.
struct Part {
    histogram: Histogram<u64>,
    sum: u64,
    slow_sum: u64,
    /// Of where it begins, since the operation's begin.
    offset_sum: u64,
}

impl Part {
    fn new() -> Result<Self> {
        Ok(Self {
            histogram: histogram()?,
            sum: 0,
            slow_sum: 0,
            offset_sum: 0,
        })
    }

    fn add(&mut self, nanos: u64, offset: u64, is_slow: bool) -> Result<()> {
        self.histogram.record(nanos)?;
        self.sum += nanos;
        self.offset_sum += offset;
        if is_slow {
            self.slow_sum += nanos;
        }
        Ok(())
    }

    fn offset(&self) -> u64 {
        self.offset_sum / self.histogram.len().max(1)
    }
}

struct Gathered {
    times: Histogram<u64>,
    failed: u64,
    sum: u64,
    slow_sum: u64,
    /// Nanoseconds; slower ones are slow.
    slow_from: u64,
    steps: HashMap<StepKey, Part>,
    places: HashMap<String, Part>,
    volumes: HashMap<Word, Histogram<u64>>,
    over_time: BTreeMap<u64, Histogram<u64>>,
    slowest: Vec<Slow>,
}

impl Gathered {
    fn new() -> Result<Self> {
        Ok(Self {
            times: histogram()?,
            failed: 0,
            sum: 0,
            slow_sum: 0,
            slow_from: 0,
            steps: HashMap::new(),
            places: HashMap::new(),
            volumes: HashMap::new(),
            over_time: BTreeMap::new(),
            slowest: Vec::new(),
        })
    }
}

/// Analyzes operations; of each kind `slowest` are told event by event.
pub(super) fn of(operations: &Operations, slowest: usize) -> Result<Analysis> {
    let times = || operations.events().map(|event| event.time);
    let (begin, end) = (times().min().unwrap_or(0), times().max().unwrap_or(0));
    let mut classes: HashMap<String, Gathered> = HashMap::new();
    // Which are slow is known once all are.
    for operation in operations.whole() {
        let gathered = entry(&mut classes, operation.class.clone())?;
        gathered.times.record(operation.duration())?;
    }
    for gathered in classes.values_mut() {
        // The histogram knows it to 1 %, and gives the upper end.
        let slow_from = gathered.times.value_at_percentile(SLOW_PERCENT);
        gathered.slow_from = gathered.times.lowest_equivalent(slow_from);
    }
    for operation in operations.whole() {
        let gathered = entry(&mut classes, operation.class.clone())?;
        gather(gathered, operations, &operation, (begin, slowest))?;
    }
    let recorded = &operations.recorded;
    let mut points = BTreeMap::new();
    for event in operations.events() {
        *points.entry(operations.text(event.point).to_owned()).or_default() += 1;
    }
    let bytes = |point: &str| {
        let of_it = operations
            .events()
            .filter(|event| operations.text(event.point) == point);
        of_it.map(|event| event.length).sum()
    };
    let mut classes: Vec<(u64, Class)> = classes
        .into_iter()
        .map(|(name, gathered)| (gathered.sum, class(operations, name, gathered)))
        .collect();
    classes.sort_by(|(one, a), (other, b)| other.cmp(one).then_with(|| a.name.cmp(&b.name)));
    Ok(Analysis {
        seconds: micros(end - begin) / 1e6,
        events: operations.events().count() as u64,
        operations: operations.len() as u64,
        incomplete: operations.incomplete,
        of_no_operation: operations.of_none,
        others: recorded.others,
        lost: recorded.lost,
        lost_told: recorded.lost_told.clone(),
        hosts: operations.hosts(),
        points,
        buffer_bytes: bytes("sconce_volume:buffer_hit"),
        stored_bytes: bytes("sconce_volume:stored_location"),
        classes: classes.into_iter().map(|(_, class)| class).collect(),
    })
}

fn entry(classes: &mut HashMap<String, Gathered>, name: String) -> Result<&mut Gathered> {
    use std::collections::hash_map::Entry;
    Ok(match classes.entry(name) {
        Entry::Occupied(known) => known.into_mut(),
        Entry::Vacant(new) => new.insert(Gathered::new()?),
    })
}

fn gather(
    gathered: &mut Gathered,
    operations: &Operations,
    operation: &Operation<'_>,
    (begin, slowest): (u64, usize),
) -> Result<()> {
    let (Some(first), Some(last)) = (operation.events.first(), operation.events.last()) else {
        return Ok(());
    };
    let duration = operation.duration();
    let is_slow = duration >= gathered.slow_from;
    gathered.sum += duration;
    if is_slow {
        gathered.slow_sum += duration;
    }
    if operations.text(last.status) != "ok" {
        gathered.failed += 1;
    }
    let mut places: HashMap<String, u64> = HashMap::new();
    for pair in operation.events.windows(2) {
        let [from, to] = pair else { continue };
        let key = StepKey::of(operations, from, to);
        let nanos = to.time - from.time;
        let part = match gathered.steps.get_mut(&key) {
            Some(part) => part,
            None => gathered.steps.entry(key).or_insert(Part::new()?),
        };
        part.add(nanos, from.time - first.time, is_slow)?;
        *places.entry(key.place()).or_default() += nanos;
    }
    for (place, nanos) in places {
        let part = match gathered.places.get_mut(&place) {
            Some(part) => part,
            None => gathered.places.entry(place).or_insert(Part::new()?),
        };
        part.add(nanos, 0, is_slow)?;
    }
    let volume = operation
        .events
        .iter()
        .map(|event| event.volume)
        .find(|volume| *volume != Word::default());
    if let Some(volume) = volume {
        let times = match gathered.volumes.get_mut(&volume) {
            Some(times) => times,
            None => gathered.volumes.entry(volume).or_insert(histogram()?),
        };
        times.record(duration)?;
    }
    let second = (first.time - begin) / 1_000_000_000;
    let times = match gathered.over_time.get_mut(&second) {
        Some(times) => times,
        None => gathered.over_time.entry(second).or_insert(histogram()?),
    };
    times.record(duration)?;
    let faster = gathered
        .slowest
        .partition_point(|known| known.duration_us >= micros(duration));
    if faster < slowest {
        let told = tell(operations, operation, volume.unwrap_or_default(), begin);
        gathered.slowest.insert(faster, told);
        gathered.slowest.truncate(slowest);
    }
    Ok(())
}

fn tell(operations: &Operations, operation: &Operation<'_>, volume: Word, begin: u64) -> Slow {
    let first = operation.events.first().map_or(begin, |event| event.time);
    let told = |event: &Event| SlowEvent {
        at_us: micros(event.time - first),
        place: operations.place(event),
        pid: event.pid,
        address: event.address,
        length: event.length,
        status: operations.text(event.status).to_owned(),
    };
    Slow {
        operation: format!("0x{:X}", operation.id),
        volume: operations.text(volume).to_owned(),
        begin_s: micros(first - begin) / 1e6,
        duration_us: micros(operation.duration()),
        events: operation.events.iter().take(WATERFALL_MAX).map(told).collect(),
    }
}

fn class(operations: &Operations, name: String, gathered: Gathered) -> Class {
    let (sum, slow_sum) = (gathered.sum as f64, gathered.slow_sum as f64);
    let shares = |part: &Part| (ratio(part.sum as f64, sum), ratio(part.slow_sum as f64, slow_sum));
    let mut steps: Vec<(StepKey, Part)> = gathered.steps.into_iter().collect();
    steps.sort_by_key(|(key, part)| (part.offset(), key.points));
    let step = |(key, part): (StepKey, Part)| {
        let (share, slow_share) = shares(&part);
        let point = |service: &str, point: Word| {
            format!(
                "{service} {}",
                operations.text(point).trim_start_matches("sconce_")
            )
        };
        Step {
            from: point(key.services.0, key.points.0),
            to: point(key.services.1, key.points.1),
            place: key.place(),
            share,
            slow_share,
            times: Times::of(&part.histogram),
        }
    };
    let place = |(name, part): (String, Part)| {
        let (share, slow_share) = shares(&part);
        Place {
            name,
            share,
            slow_share,
            times: Times::of(&part.histogram),
        }
    };
    let mut places: Vec<Place> = gathered.places.into_iter().map(place).collect();
    places.sort_by(|a, b| b.share.total_cmp(&a.share).then_with(|| a.name.cmp(&b.name)));
    let of_volume = |(volume, times): (Word, Histogram<u64>)| OfVolume {
        volume: operations.text(volume).to_owned(),
        times: Times::of(&times),
    };
    let mut volumes: Vec<OfVolume> = gathered.volumes.into_iter().map(of_volume).collect();
    volumes.sort_by(|a, b| {
        b.times
            .p99_us
            .total_cmp(&a.times.p99_us)
            .then_with(|| a.volume.cmp(&b.volume))
    });
    let second = |(second, times): (u64, Histogram<u64>)| Second {
        second,
        times: Times::of(&times),
    };
    Class {
        name,
        failed: gathered.failed,
        times: Times::of(&gathered.times),
        steps: steps.into_iter().map(step).collect(),
        places,
        volumes,
        over_time: gathered.over_time.into_iter().map(second).collect(),
        slowest: gathered.slowest,
    }
}
