//! A writer that stamps clusters over NBD, many writes at a time, and does not let go: a connection that breaks is
//! made again, and what was not acknowledged is sent again.
//!
//! Keeps: the stamps, and which requests are under way.
//! Order: stamps leave in the order of their numbers.
//! Crash: after a broken connection the whole volume is judged before anything is sent again.
//! Knows no services.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::nbd::{Ask, Nbd};
use crate::stamps::{CLUSTER, Stamps};
use crate::wait;

/// Longer than any pause that a guest would forgive.
const PATIENCE: Duration = Duration::from_secs(60);
const DEPTH: usize = 16;
/// Most clusters of one write.
const RUN_MAX: usize = 16;
/// Bytes of one read when the volume is judged.
const READ: u32 = 1 << 20;
/// Each so many writes one flush.
const FLUSH_EACH: u32 = 50;

/// The writer.
#[derive(Debug)]
pub struct Writer {
    socket: PathBuf,
    export: String,
    nbd: Nbd,
    clusters: usize,
    stamps: Stamps,
    /// The numbers that each request carries; none for a flush.
    under_way: BTreeMap<u64, Vec<usize>>,
    random: fastrand::Rng,
    /// When the last answer came.
    last_answer: Instant,
    /// The longest time without one while something was under way.
    longest_pause: Duration,
}

impl Writer {
    /// Connects to an empty volume.
    ///
    /// # Errors
    /// No connection.
    pub fn connect(socket: &Path, export: &str, seed: u64) -> Result<Writer> {
        let nbd = Nbd::connect(socket, export, PATIENCE).context("connecting the writer")?;
        let clusters = usize::try_from(nbd.size())? / CLUSTER;
        Ok(Writer {
            socket: socket.to_owned(),
            export: export.to_owned(),
            nbd,
            clusters,
            stamps: Stamps::new(clusters),
            under_way: BTreeMap::new(),
            random: fastrand::Rng::with_seed(seed),
            last_answer: Instant::now(),
            longest_pause: Duration::ZERO,
        })
    }

    /// Writes for so long, whatever happens on the other side of the connection.
    ///
    /// # Errors
    /// The connection broke (`Ok(false)` is not an error: see the return value), or a request was answered with an
    /// error, which a guest would have seen.
    ///
    /// Returns whether the connection still stands.
    pub fn write_for(&mut self, time: Duration) -> Result<bool> {
        let begun = Instant::now();
        while begun.elapsed() < time {
            if !self.step()? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Writes until an answer comes to what is sent from now on; returns how long that took.
    ///
    /// # Errors
    /// As [`Writer::write_for`], and when the connection cannot be made again.
    pub fn first_answer(&mut self, since: Instant) -> Result<Duration> {
        let mut connected = true;
        loop {
            if !connected {
                self.reconnect()?;
            }
            let sent_from = self.stamps.sent();
            loop {
                connected = self.step()?;
                if !connected {
                    break;
                }
                if self.stamps.promised() > sent_from {
                    return Ok(self.last_answer.duration_since(since));
                }
            }
        }
    }

    /// Waits for all answers, then judges the volume.
    ///
    /// # Errors
    /// As [`Writer::write_for`]; the volume does not hold exactly what was acknowledged.
    pub fn check(&mut self) -> Result<()> {
        while !self.under_way.is_empty() {
            if !self.receive()? {
                return self.reconnect();
            }
        }
        let found = self.judge()?;
        ensure!(
            found == self.stamps.sent(),
            "all {} writes are acknowledged, the volume ends with {found}",
            self.stamps.sent()
        );
        Ok(())
    }

    /// The longest time without an answer, from now on or, at the end, since then.
    pub fn take_longest_pause(&mut self) -> Duration {
        self.last_answer = Instant::now();
        std::mem::take(&mut self.longest_pause)
    }

    /// How many clusters were written so far.
    #[must_use]
    pub fn written(&self) -> usize {
        self.stamps.sent()
    }

    /// Numbers above this one may be lost although they were acknowledged: an operator accepted that.
    pub fn accept_loss_beyond(&mut self, number: usize) {
        self.stamps.accept_loss_beyond(number);
    }

    /// Connects again and judges what the volume holds: all that was acknowledged, and a prefix.
    ///
    /// # Errors
    /// No connection within the writer's patience, or the volume is wrong.
    pub fn reconnect(&mut self) -> Result<()> {
        self.under_way.clear();
        let (nbd, _) = wait::until("an NBD connection", PATIENCE, || {
            Ok(Nbd::connect(&self.socket, &self.export, PATIENCE).ok())
        })?;
        self.nbd = nbd;
        self.judge().map(drop)
    }

    fn judge(&mut self) -> Result<usize> {
        let mut volume = Vec::with_capacity(self.clusters * CLUSTER);
        for offset in (0..self.nbd.size()).step_by(usize::try_from(READ)?) {
            let length = u32::try_from((self.nbd.size() - offset).min(u64::from(READ)))?;
            volume.extend(
                self.nbd
                    .ask(Ask::Read, offset, length, &[])
                    .context("reading the volume")?,
            );
        }
        self.stamps.judge(&volume)
    }

    /// One write more, or one answer.
    fn step(&mut self) -> Result<bool> {
        if self.under_way.len() >= DEPTH {
            return self.receive();
        }
        if self.random.u32(0..FLUSH_EACH) == 0 {
            let sent = self.nbd.send(Ask::Flush, 0, 0, &[]).ok();
            return Ok(self.sent(sent, Vec::new()));
        }
        let length = if self.random.bool() {
            1
        } else {
            self.random.usize(1..=RUN_MAX)
        };
        let first = self.random.usize(0..=self.clusters - length);
        let mut data = Vec::with_capacity(length * CLUSTER);
        let mut numbers = Vec::with_capacity(length);
        for cluster in first..first + length {
            let (number, content) = self.stamps.next(cluster);
            numbers.push(number);
            data.extend(content);
        }
        let sent = self
            .nbd
            .send(
                Ask::Write,
                (first * CLUSTER) as u64,
                u32::try_from(data.len())?,
                &data,
            )
            .ok();
        Ok(self.sent(sent, numbers))
    }

    /// Notes a request that left; `None`: the connection broke.
    fn sent(&mut self, request: Option<u64>, numbers: Vec<usize>) -> bool {
        let Some(request) = request else {
            return false;
        };
        self.under_way.insert(request, numbers);
        true
    }

    /// Takes one answer; `false`: the connection broke.
    fn receive(&mut self) -> Result<bool> {
        let answer = match self.nbd.receive() {
            Ok(answer) => answer,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                return Err(error).context("a request was held for a minute");
            }
            Err(error) if error.kind() == io::ErrorKind::InvalidData => return Err(error.into()),
            Err(_) => return Ok(false),
        };
        let numbers = self.under_way.remove(&answer.request).unwrap_or_default();
        ensure!(answer.error == 0, "IO error {} reached the client", answer.error);
        for number in numbers {
            self.stamps.acknowledged(number);
        }
        let now = Instant::now();
        self.longest_pause = self.longest_pause.max(now - self.last_answer);
        self.last_answer = now;
        Ok(true)
    }
}
