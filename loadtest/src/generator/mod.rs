//! The generator: requests at times that a schedule sets, whatever the server does, and each answer's time from there on.
//!
//! Keeps: what each block must hold, and the times of all requests.
//! Order: a request is sent at its time, or as soon after it as there is room; its latency counts from its time. So a server that
//! stalls is seen by all requests that were due meanwhile, not by the few that were under way (no coordinated omission).
//! Crash: nothing; figures of a generator that failed are lost.
//! Knows NBD, and the bus through the `sconce` command's library.

mod ledger;
mod nbd;
#[cfg(test)]
mod tests;
mod timer;

use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use hdrhistogram::Histogram;
use sconce_cli::cluster::Cluster;
use sconce_fs_router::routing::Volume;
use sconce_schemas::wire::volume::IoFlags;
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, TryAcquireError};
use tokio::task::LocalSet;

use crate::report::{Times, histogram};
use ledger::{Ledger, Turn};
use nbd::Nbd;
use timer::Timer;

/// Requests that are filled or read back at a time, and bytes of each.
const PASS_DEPTH: usize = 16;
const PASS_BYTES: usize = 256 << 10;
/// What is not answered so long after the end is an error.
const LAST_ANSWERS: Duration = Duration::from_secs(90);
const LOOK_EACH: Duration = Duration::from_millis(5);
/// Problems that are told; the others are counted.
const TOLD_MAX: usize = 20;

/// Which way requests go.
#[derive(Debug, Clone)]
pub(crate) enum Via {
    /// The socket of an NBD server, and an export.
    Nbd(PathBuf, String),
    /// The settings of the `sconce` command, and a volume's path: the bus itself, without an fs-router.
    Bus(PathBuf, String),
}

/// When requests are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Arrivals {
    /// At the same distance.
    Even,
    /// At random, independently of each other: as those of many guests.
    Random,
}

/// What is to be generated.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) via: Via,
    /// Bytes of the volume that are written and read.
    pub(crate) bytes: u64,
    pub(crate) block: usize,
    /// Of 100 requests.
    pub(crate) reads: u8,
    pub(crate) per_second: f64,
    pub(crate) arrivals: Arrivals,
    /// Requests under way at most; others wait, and their time counts.
    pub(crate) in_flight_max: u32,
    /// A flush after so many writes.
    pub(crate) flush_each: Option<u32>,
    /// The volume is new, so it is zeros.
    pub(crate) is_zero: bool,
    /// All blocks are written before.
    pub(crate) fill: bool,
    pub(crate) duration: Duration,
    /// Of the figures over time.
    pub(crate) interval: Duration,
    pub(crate) seed: u64,
}

/// What a generator tells while it runs.
#[derive(Debug, Default)]
pub(crate) struct Live {
    pub(crate) answered: AtomicU64,
    pub(crate) problems: AtomicU64,
}

/// A part of the time of a run.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct Sample {
    /// Its begin, in seconds.
    pub(crate) at_s: f64,
    /// Requests that were answered in it.
    pub(crate) answered: u64,
    /// Of requests that were due in it.
    pub(crate) times: Times,
}

/// What a generator found.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Found {
    pub(crate) samples: Vec<Sample>,
    /// From when a request was due to its answer, by kind.
    pub(crate) latency: Vec<(String, Times)>,
    /// The same of all.
    pub(crate) all: Times,
    /// From when requests were sent: what a closed loop would have seen.
    pub(crate) service: Times,
    /// Counts by latency in microseconds, for a plot.
    pub(crate) spread: Vec<(f64, u64)>,
    /// Requests that could not be sent because all blocks that were tried had one; in no figure.
    pub(crate) skipped: u64,
    pub(crate) reconnects: u32,
    /// Reads that were compared with what had been written, the reading back at the end too.
    pub(crate) verified: u64,
    pub(crate) errors: u64,
    pub(crate) mismatches: u64,
    /// The first of them.
    pub(crate) told: Vec<String>,
}

/// A volume, in one of the two ways.
enum Target {
    Nbd(Nbd),
    Bus(Volume),
}

impl Target {
    async fn open(via: &Via) -> Result<Target> {
        match via {
            Via::Nbd(socket, export) => Ok(Target::Nbd(Nbd::connect(socket, export).await?)),
            Via::Bus(settings, path) => {
                let cluster = Cluster::open(Some(settings)).await?;
                let file = cluster.resolve(&path.parse()?).await?;
                Ok(Target::Bus(cluster.volume(&file).await?))
            }
        }
    }

    async fn read(&self, offset: u64, length: usize) -> Result<Bytes> {
        match self {
            Target::Nbd(nbd) => nbd.read(offset, length).await,
            Target::Bus(volume) => Ok(volume.read(offset, length as u64).await?.into_bytes()),
        }
    }

    async fn write(&self, offset: u64, data: Bytes) -> Result<()> {
        match self {
            Target::Nbd(nbd) => nbd.write(offset, data).await,
            Target::Bus(volume) => Ok(volume.write(offset, data, IoFlags(0)).await?),
        }
    }

    async fn flush(&self) -> Result<()> {
        match self {
            Target::Nbd(nbd) => nbd.flush().await,
            Target::Bus(volume) => Ok(volume.flush().await?),
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Read,
    Write,
    Flush,
}

const KINDS: [(&str, Kind); 3] = [
    ("read", Kind::Read),
    ("write", Kind::Write),
    ("flush", Kind::Flush),
];

/// A running generator.
struct Running {
    plan: Plan,
    target: Target,
    ledger: RefCell<Ledger>,
    counts: RefCell<Counts>,
    live: Arc<Live>,
    begun: Cell<Instant>,
}

struct Counts {
    kinds: [Histogram<u64>; 3],
    service: Histogram<u64>,
    /// By the interval in which requests were due.
    due: Vec<Histogram<u64>>,
    /// By the interval in which they were answered.
    answered: Vec<u64>,
    found: Found,
}

/// A generator that is ready: the volume is filled. Lives on one thread.
pub(crate) struct Generator {
    running: Rc<Running>,
}

/// Runs a generator on this thread: prepares, says that it is `ready`, waits until `begin` says when, generates, reads back.
pub(crate) fn run(
    plan: Plan,
    live: Arc<Live>,
    ready: impl FnOnce(),
    begin: impl Fn() -> Result<Option<Instant>>,
) -> Result<Found> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    LocalSet::new().block_on(&runtime, async move {
        let generator = Generator::prepare(plan, live).await?;
        ready();
        // Looked at again and again: connections stay alive meanwhile.
        let begin = loop {
            match begin()? {
                Some(begin) => break begin,
                None => tokio::time::sleep(LOOK_EACH).await,
            }
        };
        generator.generate(begin).await?;
        generator.finish().await
    })
}

impl Generator {
    async fn prepare(plan: Plan, live: Arc<Live>) -> Result<Generator> {
        let target = Target::open(&plan.via).await?;
        let ledger = Ledger::new(plan.seed, plan.bytes, plan.block, plan.is_zero)?;
        let counts = Counts {
            kinds: [histogram()?, histogram()?, histogram()?],
            service: histogram()?,
            due: Vec::new(),
            answered: Vec::new(),
            found: Found::default(),
        };
        let fill = plan.fill;
        let running = Rc::new(Running {
            plan,
            target,
            ledger: RefCell::new(ledger),
            counts: RefCell::new(counts),
            live,
            begun: Cell::new(Instant::now()),
        });
        if fill {
            running.pass(Pass::Fill).await.context("filling the volume")?;
        }
        Ok(Generator { running })
    }

    async fn generate(&self, begin: Instant) -> Result<()> {
        let running = &self.running;
        let plan = &running.plan;
        running.begun.set(begin);
        let room = Arc::new(Semaphore::new(usize::try_from(plan.in_flight_max)?));
        let timer = Timer::new()?;
        let mut chance = fastrand::Rng::with_seed(plan.seed);
        let (mut due, mut writes) = (Duration::ZERO, 0_u32);
        while due < plan.duration {
            timer.until(begin + due).await?;
            let permit = match Arc::clone(&room).try_acquire_owned() {
                Ok(permit) => permit,
                Err(TryAcquireError::NoPermits) => Arc::clone(&room).acquire_owned().await?,
                Err(TryAcquireError::Closed) => bail!("the room for requests is closed"),
            };
            let kind = if plan.flush_each.is_some_and(|each| writes >= each) {
                writes = 0;
                Kind::Flush
            } else if chance.u8(..100) < plan.reads {
                Kind::Read
            } else {
                writes += 1;
                Kind::Write
            };
            let turn = match kind {
                Kind::Read => running.ledger.borrow_mut().read(&mut chance),
                Kind::Write => running.ledger.borrow_mut().write(&mut chance),
                Kind::Flush => None,
            };
            if turn.is_some() || matches!(kind, Kind::Flush) {
                let running = Rc::clone(running);
                tokio::task::spawn_local(async move {
                    running.request(kind, turn, due).await;
                    drop(permit);
                });
            } else {
                running.counts.borrow_mut().found.skipped += 1;
            }
            due += gap(plan, &mut chance);
        }
        // All permits back: all are answered.
        let all = tokio::time::timeout(LAST_ANSWERS, room.acquire_many(plan.in_flight_max)).await;
        ensure!(
            all.is_ok(),
            "{} requests are not answered {LAST_ANSWERS:?} after the last one",
            usize::try_from(plan.in_flight_max)?.saturating_sub(room.available_permits())
        );
        Ok(())
    }

    /// Reads back what was written, and gives all figures.
    async fn finish(self) -> Result<Found> {
        let running = self.running;
        running
            .pass(Pass::ReadBack)
            .await
            .context("reading the volume back")?;
        let mut counts = running.counts.borrow_mut();
        let interval = running.plan.interval.as_secs_f64();
        let samples = counts.due.iter().zip(&counts.answered).zip(0_u32..);
        let samples = samples.map(|((due, answered), number)| Sample {
            at_s: f64::from(number) * interval,
            answered: *answered,
            times: Times::of(due),
        });
        let samples = samples.collect();
        let mut all = histogram()?;
        for kind in &counts.kinds {
            all.add(kind)?;
        }
        let latency = KINDS.iter().zip(&counts.kinds);
        let latency = latency.filter(|(_, times)| !times.is_empty());
        let latency = latency
            .map(|((name, _), times)| ((*name).to_owned(), Times::of(times)))
            .collect();
        let spread = all.iter_recorded();
        let spread = spread
            .map(|step| {
                (
                    step.value_iterated_to() as f64 / 1000.0,
                    step.count_since_last_iteration(),
                )
            })
            .collect();
        let service = Times::of(&counts.service);
        let mut found = std::mem::take(&mut counts.found);
        found.samples = samples;
        found.latency = latency;
        found.all = Times::of(&all);
        found.service = service;
        found.spread = spread;
        if let Target::Nbd(nbd) = &running.target {
            found.reconnects = nbd.reconnects();
        }
        Ok(found)
    }
}

/// To the next request.
fn gap(plan: &Plan, chance: &mut fastrand::Rng) -> Duration {
    let mean = 1.0 / plan.per_second;
    match plan.arrivals {
        Arrivals::Even => Duration::from_secs_f64(mean),
        // The exponential distribution; never the logarithm of zero.
        Arrivals::Random => Duration::from_secs_f64(-mean * (1.0 - chance.f64()).ln()),
    }
}

#[derive(Clone, Copy)]
enum Pass {
    Fill,
    ReadBack,
}

impl Running {
    fn offset(&self, block: usize) -> u64 {
        block as u64 * self.plan.block as u64
    }

    async fn request(&self, kind: Kind, turn: Option<Turn>, due: Duration) {
        let sent = Instant::now();
        let done = self.perform(turn, kind).await;
        let answered = Instant::now();
        if let Some(turn) = turn {
            self.ledger.borrow_mut().over(turn);
        }
        match done {
            Ok(()) => self.count(kind, due, sent, answered),
            Err(error) => self.problem(format!("{kind:?} due at {:.3} s: {error:#}", due.as_secs_f64())),
        }
    }

    async fn perform(&self, turn: Option<Turn>, kind: Kind) -> Result<()> {
        match (kind, turn) {
            (Kind::Write, Some(turn)) => {
                let content = self.ledger.borrow().content(turn);
                self.target.write(self.offset(turn.block), content).await?;
                self.ledger.borrow_mut().written(turn);
                Ok(())
            }
            (Kind::Read, Some(turn)) => {
                let data = self.target.read(self.offset(turn.block), self.plan.block).await?;
                self.judge(turn, &data);
                Ok(())
            }
            _ => self.target.flush().await,
        }
    }

    fn count(&self, kind: Kind, due: Duration, sent: Instant, answered: Instant) {
        self.live.answered.fetch_add(1, Ordering::Relaxed);
        let mut counts = self.counts.borrow_mut();
        let since = answered.saturating_duration_since(self.begun.get());
        let latency = nanos(since.saturating_sub(due));
        let added = counts.add(
            kind,
            latency,
            nanos(answered - sent),
            (self.interval(due), self.interval(since)),
        );
        if let Err(error) = added {
            counts
                .found
                .told
                .push(format!("a time cannot be counted: {error}"));
        }
    }

    fn interval(&self, at: Duration) -> usize {
        let number = at.as_nanos() / self.plan.interval.as_nanos().max(1);
        usize::try_from(number).unwrap_or(usize::MAX)
    }

    fn problem(&self, text: String) {
        self.live.problems.fetch_add(1, Ordering::Relaxed);
        let found = &mut self.counts.borrow_mut().found;
        found.errors += 1;
        tell(&mut found.told, text);
    }

    fn judge(&self, turn: Turn, data: &[u8]) {
        let judged = self.ledger.borrow().judge(turn, data);
        let found = &mut self.counts.borrow_mut().found;
        found.verified += 1;
        if let Err(error) = judged {
            self.live.problems.fetch_add(1, Ordering::Relaxed);
            found.mismatches += 1;
            tell(&mut found.told, error.to_string());
        }
    }

    /// Goes over the whole volume, some pieces at a time.
    async fn pass(self: &Rc<Self>, pass: Pass) -> Result<()> {
        let blocks = self.ledger.borrow().blocks();
        let each = (PASS_BYTES / self.plan.block).max(1);
        let room = Arc::new(Semaphore::new(PASS_DEPTH));
        let mut tasks = tokio::task::JoinSet::new();
        for first in (0..blocks).step_by(each) {
            let permit = Arc::clone(&room).acquire_owned().await?;
            let running = Rc::clone(self);
            tasks.spawn_local(async move {
                let done = match pass {
                    Pass::Fill => running.fill(first, each).await,
                    Pass::ReadBack => running.read_back(first, each).await,
                };
                drop(permit);
                done
            });
        }
        while let Some(done) = tasks.join_next().await {
            done??;
        }
        match pass {
            Pass::Fill => self.target.flush().await,
            Pass::ReadBack => Ok(()),
        }
    }

    async fn fill(&self, first: usize, count: usize) -> Result<()> {
        let (turns, content) = self.ledger.borrow_mut().write_range(first, count);
        self.target.write(self.offset(first), content).await?;
        let mut ledger = self.ledger.borrow_mut();
        turns.into_iter().for_each(|turn| ledger.written(turn));
        Ok(())
    }

    async fn read_back(&self, first: usize, count: usize) -> Result<()> {
        let turns = self.ledger.borrow().read_range(first, count);
        let length = turns.len() * self.plan.block;
        match self.target.read(self.offset(first), length).await {
            Ok(data) => {
                for (turn, data) in turns.iter().zip(data.chunks(self.plan.block)) {
                    self.judge(*turn, data);
                }
                if data.len() != length {
                    self.problem(format!("{} bytes were read back, not {length}", data.len()));
                }
            }
            Err(error) => self.problem(format!(
                "reading back from byte {} on: {error:#}",
                self.offset(first)
            )),
        }
        Ok(())
    }
}

impl Counts {
    fn add(&mut self, kind: Kind, latency: u64, service: u64, (due, answered): (usize, usize)) -> Result<()> {
        self.kinds[kind as usize].record(latency)?;
        self.service.record(service)?;
        while self.due.len() <= due.max(answered) {
            self.due.push(histogram()?);
            self.answered.push(0);
        }
        self.due[due].record(latency)?;
        self.answered[answered] += 1;
        Ok(())
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn tell(told: &mut Vec<String>, text: String) {
    if told.len() < TOLD_MAX {
        told.push(text);
    }
}
