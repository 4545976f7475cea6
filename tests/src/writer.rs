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
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::board::Board;
use crate::nbd::{Ask, Nbd};
use crate::stamps::{CLUSTER, Stamps, number_of};
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
    /// When each request was sent, and the numbers that it carries; none for a flush.
    under_way: BTreeMap<u64, (Instant, Vec<usize>)>,
    /// Whether it writes as guests do: never to a cluster that a write is under way to.
    is_guest: bool,
    /// Clusters that writes are under way to.
    busy: Vec<bool>,
    /// Who else is told.
    board: Arc<Board>,
    random: fastrand::Rng,
    /// When the last answer came.
    last_answer: Instant,
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
            is_guest: false,
            busy: vec![false; clusters],
            board: Arc::new(Board::new(clusters)),
            random: fastrand::Rng::with_seed(seed),
            last_answer: Instant::now(),
        })
    }

    /// The same, of a writer that never has two writes to one cluster under way, as a guest's file system. NBD promises no order
    /// between such two; and between others it promises none before they are acknowledged, so that the volume is judged cluster by
    /// cluster.
    ///
    /// # Errors
    /// No connection.
    pub fn connect_guest(socket: &Path, export: &str, seed: u64) -> Result<Writer> {
        let mut writer = Self::connect(socket, export, seed)?;
        writer.is_guest = true;
        Ok(writer)
    }

    /// What readers, and who breaks things, are told.
    #[must_use]
    pub fn board(&self) -> Arc<Board> {
        Arc::clone(&self.board)
    }

    /// Writes until the board says that it is over, and judges the volume when the board asks for it. A connection that breaks is
    /// made again.
    ///
    /// # Errors
    /// As [`Writer::write_for`], [`Writer::check`] and [`Writer::reconnect`].
    pub fn run(&mut self) -> Result<()> {
        let board = self.board();
        while !board.is_over() {
            if board.is_check_wanted() {
                self.check()?;
                board.checked();
            }
            if !self.step()? {
                self.reconnect()?;
            }
        }
        Ok(())
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
        let Some(found) = self.judge()? else {
            return self.reconnect();
        };
        ensure!(
            found == self.stamps.sent(),
            "all {} writes are acknowledged, the volume ends with {found}",
            self.stamps.sent()
        );
        Ok(())
    }

    /// How many clusters were written so far.
    #[must_use]
    pub fn written(&self) -> usize {
        self.stamps.sent()
    }

    /// Numbers above this one may be lost although they were acknowledged: an operator accepted that.
    pub fn accept_loss_beyond(&mut self, number: usize) {
        self.stamps.accept_loss_beyond(number);
        let kept = (0..self.clusters).map(|cluster| self.stamps.kept(cluster));
        self.board.lost_beyond(kept);
    }

    /// Connects again and judges what the volume holds: all that was acknowledged, and a prefix.
    ///
    /// # Errors
    /// No connection within the writer's patience, or the volume is wrong.
    pub fn reconnect(&mut self) -> Result<()> {
        loop {
            self.board.reconnects();
            self.under_way.clear();
            self.busy.fill(false);
            let (nbd, _) = wait::until("an NBD connection", PATIENCE, || {
                Ok(Nbd::connect(&self.socket, &self.export, PATIENCE).ok())
            })?;
            self.nbd = nbd;
            if self.judge()?.is_some() {
                return Ok(());
            }
        }
    }

    /// Gives the newest write that the volume holds; `None`: the connection broke.
    fn judge(&mut self) -> Result<Option<usize>> {
        let mut volume = Vec::with_capacity(self.clusters * CLUSTER);
        let floors: Vec<usize> = (0..self.clusters)
            .map(|cluster| self.board.floor(cluster))
            .collect();
        for offset in (0..self.nbd.size()).step_by(usize::try_from(READ)?) {
            let length = u32::try_from((self.nbd.size() - offset).min(u64::from(READ)))?;
            match self.nbd.ask(Ask::Read, offset, length, &[]) {
                Ok(bytes) => volume.extend(bytes),
                Err(error) if is_broken(&error) => return Ok(None),
                Err(error) => return Err(error).context("reading the volume"),
            }
        }
        let newest = match self.is_guest {
            true => {
                self.stamps.judge_each(&volume)?;
                self.stamps.sent()
            }
            false => self.stamps.judge(&volume)?,
        };
        for ((cluster, bytes), floor) in volume.chunks_exact(CLUSTER).enumerate().zip(floors) {
            self.board.read(cluster, number_of(cluster, bytes)?, floor)?;
        }
        Ok(Some(newest))
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
        let mut first = self.random.usize(0..=self.clusters - length);
        while self.is_guest && self.busy[first..first + length].contains(&true) {
            first = self.random.usize(0..=self.clusters - length);
        }
        self.busy[first..first + length].fill(true);
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
        self.under_way.insert(request, (Instant::now(), numbers));
        true
    }

    /// Takes one answer; `false`: the connection broke.
    fn receive(&mut self) -> Result<bool> {
        let answer = match self.nbd.receive() {
            Ok(answer) => answer,
            Err(error) if is_broken(&error) => return Ok(false),
            Err(error) => return Err(error).context("a request was held for a minute, or answered wrongly"),
        };
        let under_way = self.under_way.remove(&answer.request);
        let (sent, numbers) = under_way.context("an answer to nothing that was asked")?;
        ensure!(answer.error == 0, "IO error {} reached the client", answer.error);
        self.board.answered(sent, numbers.len());
        for number in numbers {
            self.stamps.acknowledged(number);
            if let Some(cluster) = self.stamps.cluster_of(number) {
                self.board.kept(cluster, number);
                self.busy[cluster] = false;
            }
        }
        self.last_answer = Instant::now();
        Ok(true)
    }
}

/// Whether the connection broke, as against a server that does not answer in time, or wrongly.
pub(crate) fn is_broken(error: &io::Error) -> bool {
    !matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::InvalidData
    )
}
