//! A reader of a volume that a stamping writer writes, over a connection of its own: every read has to return at least what was
//! acknowledged before it began.
//!
//! Keeps: its connection.
//! Order: it looks at the board, reads, and then tells the board what it saw.
//! Crash: a connection that breaks is made again.
//! Knows no services.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::board::Board;
use crate::nbd::{Ask, Nbd};
use crate::stamps::{CLUSTER, number_of};
use crate::wait;
use crate::writer::is_broken;

/// Longer than any pause that a guest would forgive.
const PATIENCE: Duration = Duration::from_secs(60);
/// Most clusters of one read.
const RUN_MAX: usize = 16;

/// The reader.
#[derive(Debug)]
pub struct Reader {
    socket: PathBuf,
    export: String,
    nbd: Nbd,
    random: fastrand::Rng,
}

impl Reader {
    /// Connects.
    ///
    /// # Errors
    /// No connection.
    pub fn connect(socket: &Path, export: &str, seed: u64) -> Result<Self> {
        let nbd = Nbd::connect(socket, export, PATIENCE).context("connecting the reader")?;
        Ok(Self {
            socket: socket.to_owned(),
            export: export.to_owned(),
            nbd,
            random: fastrand::Rng::with_seed(seed),
        })
    }

    /// Reads until the board says that it is over.
    ///
    /// # Errors
    /// A read was stale, torn or answered with an error, or the connection cannot be made again.
    pub fn run(&mut self, board: &Board) -> Result<()> {
        while !board.is_over() {
            if !self.step(board)? {
                board.reconnects();
                let connect = || Ok(Nbd::connect(&self.socket, &self.export, PATIENCE).ok());
                self.nbd = wait::until("an NBD connection for the reader", PATIENCE, connect)?.0;
            }
        }
        Ok(())
    }

    /// One read; `false`: the connection broke.
    fn step(&mut self, board: &Board) -> Result<bool> {
        let clusters = usize::try_from(self.nbd.size())? / CLUSTER;
        let length = self.random.usize(1..=RUN_MAX);
        let first = self.random.usize(0..=clusters - length);
        let floors: Vec<usize> = (first..first + length)
            .map(|cluster| board.floor(cluster))
            .collect();
        let (offset, bytes) = (first * CLUSTER, length * CLUSTER);
        let read = self.nbd.ask(Ask::Read, offset as u64, u32::try_from(bytes)?, &[]);
        let read = match read {
            Ok(read) => read,
            Err(error) if is_broken(&error) => return Ok(false),
            Err(error) => return Err(error).context("a read was held for a minute, or answered wrongly"),
        };
        for ((cluster, floor), bytes) in (first..).zip(floors).zip(read.chunks_exact(CLUSTER)) {
            board.read(cluster, number_of(cluster, bytes)?, floor)?;
        }
        Ok(true)
    }
}
