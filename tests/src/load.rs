//! Clients at work while something is done to the services: what they met, and for how long they waited.
//!
//! Keeps: nothing beyond the run.
//! Order: what the client met is told before what became of the disturber: it says more.
//! Crash: a client that fails ends the test; programs are killed with it.
//! Knows no services.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::cluster::SOON;
use crate::{client, wait};

/// Clients that ask for one thing after the other, and what they met.
#[derive(Debug, Default)]
pub struct Watch {
    is_over: AtomicBool,
    answers: AtomicU64,
}

impl Watch {
    /// How long each of several answers took, of one after the other until it is over.
    ///
    /// # Errors
    /// That of the first that failed.
    pub fn time(&self, mut ask: impl FnMut() -> Result<()>) -> Result<Vec<Duration>> {
        let mut waits = Vec::new();
        while !self.is_over.load(Ordering::Relaxed) {
            let asked = Instant::now();
            ask()?;
            waits.push(asked.elapsed());
            self.answers.fetch_add(1, Ordering::Relaxed);
        }
        Ok(waits)
    }

    /// Waits until the clients are at work again: an answer may be on its way from before.
    ///
    /// # Errors
    /// They are not within [`SOON`].
    pub fn at_work(&self) -> Result<()> {
        let before = self.answers.load(Ordering::Relaxed);
        let is_at_work = || Ok((self.answers.load(Ordering::Relaxed) > before + 100).then_some(()));
        wait::until("100 answers", SOON, is_at_work).map(drop)
    }

    /// Runs `disturb`, and `clients` until it is over.
    ///
    /// # Errors
    /// That of a client, or of the disturber.
    pub fn during<T: Send>(
        &self,
        clients: impl FnOnce() -> Result<T> + Send,
        disturb: impl FnOnce() -> Result<()>,
    ) -> Result<T> {
        thread::scope(|scope| {
            let running = scope.spawn(clients);
            let disturbed = disturb();
            self.is_over.store(true, Ordering::Relaxed);
            let met = running
                .join()
                .map_err(|_| anyhow::anyhow!("a client's thread panicked"))?;
            let met = met.context("a client met an error")?;
            disturbed.map(|()| met)
        })
    }
}

/// `fio` that writes a volume or file over and over, and reads each block back.
#[must_use]
pub fn fio(seconds: u32, target: &[String]) -> Command {
    let mut fio = client::command("fio", Duration::from_secs(1200));
    fio.args([
        "--name=verify",
        "--rw=randwrite",
        "--bs=4k",
        "--size=32m",
        "--iodepth=16",
    ])
    .args(["--verify=crc32c", "--verify_fatal=1", "--verify_backlog=256"])
    .args(["--time_based", "--group_reporting"])
    .arg(format!("--runtime={seconds}"))
    .args(target);
    fio
}

/// The longest waits, one for each round, longest last.
#[must_use]
pub fn pauses(mut waits: Vec<Duration>, rounds: u32) -> Vec<Duration> {
    waits.sort();
    let others = waits.len().saturating_sub(rounds as usize);
    waits.split_off(others)
}

/// An NBD server of qemu's that hands everything on to another one, and connects to that again when it has to, as the
/// disk of a guest does: for clients that cannot.
#[derive(Debug)]
pub struct Reconnecting {
    daemon: Child,
    socket: PathBuf,
}

impl Reconnecting {
    /// Starts one in `dir` that serves `exports` of the server at `host`:`port` under their names.
    ///
    /// # Errors
    /// There is no such export, or it does not start.
    pub fn start(dir: &Path, (host, port): (&str, u16), exports: &[&str]) -> Result<Self> {
        let socket = dir.join("reconnecting.sock");
        let mut daemon = Command::new("setpriv");
        daemon.args(["--pdeathsig", "KILL", "qemu-storage-daemon"]);
        for (number, export) in exports.iter().enumerate() {
            daemon.arg("--blockdev").arg(format!(
                "driver=nbd,node-name=disk{number},server.type=inet,server.host={host},server.port={port},\
                 export={export},reconnect-delay={}",
                SOON.as_secs()
            ));
        }
        daemon
            .arg("--nbd-server")
            .arg(format!("addr.type=unix,addr.path={}", socket.display()));
        for (number, export) in exports.iter().enumerate() {
            daemon.arg("--export").arg(format!(
                "type=nbd,id=export{number},node-name=disk{number},name={export},writable=on"
            ));
        }
        let mut daemon = daemon.stdin(Stdio::null()).spawn()?;
        let made = wait::until("qemu-storage-daemon to listen", SOON, || {
            let ended = daemon.try_wait()?;
            ensure!(ended.is_none(), "qemu-storage-daemon ended: {ended:?}");
            Ok(socket.exists().then_some(()))
        });
        let reconnecting = Self { daemon, socket };
        made.map(|_| reconnecting)
    }

    /// Where it listens.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }
}

impl Drop for Reconnecting {
    fn drop(&mut self) {
        // One that has ended cannot be killed any more.
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}
