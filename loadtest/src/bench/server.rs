//! The servers that are compared: Sconce's three services, and qemu-nbd on a raw file with two kinds of caching.
//!
//! Keeps: the processes, and the directory with their data.
//! Order: a server is measured once it is quiet: what an earlier run left to do is done.
//! Crash: dropped without `stop`, the processes are killed.
//! Knows how each is started and asked to end.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;

use crate::cpu;
use crate::sconce::{SERVICES, Sconce, succeed};

const VOLUME: &str = "/bench.raw";
/// A server that uses no more of a core than this is quiet.
const QUIET_SHARE: f64 = 0.03;
const QUIET_OVER: Duration = Duration::from_millis(700);
const QUIET_WITHIN: Duration = Duration::from_secs(120);
/// Longer than what scrubbing waits for between two requests: the grace of a minute, and a manifest.
const REST_OVER: Duration = Duration::from_secs(75);
const REST_WITHIN: Duration = Duration::from_secs(900);
const START_WITHIN: Duration = Duration::from_secs(10);

/// Which server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) enum Kind {
    /// The three services.
    Sconce,
    /// qemu-nbd, `--cache=none --aio=io_uring`.
    QemuNone,
    /// qemu-nbd, `--cache=writeback`.
    QemuWriteback,
}

impl Kind {
    pub(super) const ALL: [Kind; 3] = [Kind::QemuNone, Kind::Sconce, Kind::QemuWriteback];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Kind::Sconce => "Sconce",
            Kind::QemuNone => "qemu-nbd none",
            Kind::QemuWriteback => "qemu-nbd writeback",
        }
    }
}

/// What an idle Sconce does.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Idle {
    /// Over how long this was watched.
    pub(crate) seconds: u32,
    /// Share of one core that all services together used.
    pub(crate) core_share: f64,
    /// Requests that the back ends served meanwhile.
    pub(crate) backend_requests: u64,
}

/// A running server with a disk.
#[derive(Debug)]
pub(super) struct Server {
    kind: Kind,
    uri: String,
    running: Running,
}

#[derive(Debug)]
enum Running {
    Sconce(Sconce),
    Qemu(Qemu),
}

/// A qemu-nbd, killed when it is dropped.
#[derive(Debug)]
struct Qemu(Child);

impl Drop for Qemu {
    fn drop(&mut self) {
        // It has ended already, or does so now; there is nobody to tell.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Server {
    /// Starts one with an empty disk below `dir`.
    pub(super) fn start(kind: Kind, dir: &Path, size_mib: u32) -> Result<Server> {
        match kind {
            Kind::Sconce => Self::start_sconce(&dir.join("run"), size_mib),
            Kind::QemuNone => Self::start_qemu(kind, dir, size_mib, &["--cache=none", "--aio=io_uring"]),
            Kind::QemuWriteback => Self::start_qemu(kind, dir, size_mib, &["--cache=writeback"]),
        }
    }

    fn start_sconce(run: &Path, size_mib: u32) -> Result<Server> {
        let sconce = Sconce::prepare(run)?;
        sconce.up()?;
        sconce.command(&["volume", "create", VOLUME, "--size", &format!("{size_mib}M")])?;
        Ok(Server {
            kind: Kind::Sconce,
            uri: sconce.uri(VOLUME),
            running: Running::Sconce(sconce),
        })
    }

    fn start_qemu(kind: Kind, dir: &Path, size_mib: u32, options: &[&str]) -> Result<Server> {
        let name = format!("{kind:?}");
        let (disk, socket) = (dir.join(format!("{name}.raw")), dir.join(format!("{name}.sock")));
        File::create(&disk)?.set_len(u64::from(size_mib) << 20)?;
        let child = Command::new("qemu-nbd")
            .args(["--persistent", "--shared=8", "--format=raw", "--discard=unmap"])
            .args(options)
            .arg("--socket")
            .arg(&socket)
            .arg(&disk)
            .stdin(Stdio::null())
            .spawn()
            .context("qemu-nbd (Debian package qemu-utils)")?;
        let uri = format!("nbd+unix:///?socket={}", socket.display());
        let server = Server {
            kind,
            uri,
            running: Running::Qemu(Qemu(child)),
        };
        let begun = Instant::now();
        while !socket.exists() {
            ensure!(begun.elapsed() < START_WITHIN, "{} does not start", kind.name());
            thread::sleep(Duration::from_millis(5));
        }
        Ok(server)
    }

    pub(super) fn kind(&self) -> Kind {
        self.kind
    }

    pub(super) fn uri(&self) -> &str {
        &self.uri
    }

    /// CPU seconds of all the server's processes since they started.
    pub(super) fn cpu_seconds(&self) -> Result<f64> {
        self.pids()?.into_iter().map(cpu::seconds).sum()
    }

    fn pids(&self) -> Result<Vec<u32>> {
        match &self.running {
            Running::Qemu(qemu) => Ok(vec![qemu.0.id()]),
            Running::Sconce(sconce) => SERVICES.iter().map(|service| sconce.pid(service)).collect(),
        }
    }

    /// Waits until the server has nothing left to do and the kernel has written what it kept back.
    pub(super) fn settle(&self) -> Result<()> {
        succeed(&mut Command::new("sync"))?;
        let begun = Instant::now();
        while begun.elapsed() < QUIET_WITHIN {
            let before = self.cpu_seconds()?;
            thread::sleep(QUIET_OVER);
            if self.cpu_seconds()? - before <= QUIET_SHARE * QUIET_OVER.as_secs_f64() {
                return Ok(());
            }
        }
        bail!(
            "{} is still busy {QUIET_WITHIN:?} after its last request",
            self.kind.name()
        )
    }

    /// Waits until nothing is left to be given back either: no request to a back end for a while.
    fn rest(&self) -> Result<()> {
        let begun = Instant::now();
        let mut last = (self.backend_requests()?, Instant::now());
        while last.1.elapsed() < REST_OVER {
            if begun.elapsed() > REST_WITHIN {
                bail!("the back ends still have requests {REST_WITHIN:?} after the last of the benchmark");
            }
            thread::sleep(QUIET_OVER);
            let requests = self.backend_requests()?;
            if requests != last.0 {
                last = (requests, Instant::now());
            }
        }
        self.settle()
    }

    /// Watches Sconce doing nothing.
    pub(super) fn idle(&self, seconds: u32) -> Result<Idle> {
        self.rest()?;
        let (requests, cpu) = (self.backend_requests()?, self.cpu_seconds()?);
        thread::sleep(Duration::from_secs(u64::from(seconds)));
        let core_share = (self.cpu_seconds()? - cpu) / f64::from(seconds);
        Ok(Idle {
            seconds,
            core_share,
            backend_requests: self.backend_requests()? - requests,
        })
    }

    /// Requests that the back ends served since the storage-router started.
    fn backend_requests(&self) -> Result<u64> {
        match &self.running {
            Running::Qemu(_) => Ok(0),
            Running::Sconce(sconce) => sconce.backend_sum("requests"),
        }
    }

    /// Ends the server in order.
    pub(super) fn stop(self) -> Result<()> {
        match self.running {
            Running::Qemu(_) => Ok(()),
            Running::Sconce(sconce) => sconce.stop(),
        }
    }
}
