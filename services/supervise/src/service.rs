//! The service's processes, one after the other.
//!
//! Keeps: the process that runs.
//! Order: what a process stored before it ended is held before the next one starts.
//! Crash: the process is told to end (SIGTERM) when this one dies.
//! Knows the service as a command.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use command_fds::{CommandFdExt as _, FdMapping};
use rustix::process::{Pid, Resource, Signal, getrlimit, kill_process, setrlimit};
use tokio::signal;
use tokio::signal::unix::{SignalKind, signal};

use crate::events::Events;
use crate::log::{LOOK_EVERY, Log};
use crate::pace::{End, Pace};
use crate::store::Store;

/// The number of the first descriptor that a process is given (sd_listen_fds(3)).
const FIRST: i32 = 3;
/// Only the process itself knows its number, and it has to be told that the descriptors are for it.
const NUMBERED: &str = "LISTEN_PID=$$; export LISTEN_PID; exec \"$@\"";

pub(crate) struct Service {
    pub(crate) command: Vec<OsString>,
    /// Where its output goes.
    pub(crate) log: Option<Log>,
    /// Where it stores descriptors.
    pub(crate) socket: PathBuf,
}

/// What is asked of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    Stop,
    HandOver,
}

impl Service {
    /// For people.
    pub(crate) fn name(&self) -> String {
        let path = self.command.first().map(Path::new);
        let name = path.and_then(Path::file_name).unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    fn start(&self, store: &Store) -> anyhow::Result<Child> {
        let (names, descriptors) = store.copies()?;
        // setpriv and sh become the service: the process is the one that is started here.
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "TERM", "sh", "-c", NUMBERED, "sh"])
            .args(&self.command)
            .stdin(Stdio::null())
            .env("NOTIFY_SOCKET", &self.socket);
        if !descriptors.is_empty() {
            command
                .env("LISTEN_FDS", descriptors.len().to_string())
                .env("LISTEN_FDNAMES", names.join(":"));
        }
        if let Some(log) = &self.log {
            let log = log.open()?;
            command.stdout(log.try_clone()?).stderr(log);
        }
        let given = (FIRST..).zip(descriptors);
        command.fd_mappings(
            given
                .map(|(child_fd, parent_fd)| FdMapping { parent_fd, child_fd })
                .collect(),
        )?;
        command
            .spawn()
            .with_context(|| format!("cannot start {}", self.name()))
    }
}

/// Keeps the service running until this process is asked to stop.
pub(crate) async fn keep(
    service: &Service,
    socket: std::os::unix::net::UnixDatagram,
    events: &Events,
) -> anyhow::Result<()> {
    let mut store = Store::new(socket)?;
    let mut signals = Signals::new()?;
    let mut pace = Pace::default();
    raise_limit();
    events.exits(0);
    loop {
        let started = Instant::now();
        let mut child = service.start(&store)?;
        let (status, stopping) = signals.wait(service, &mut child, &mut store, events).await?;
        store.obey_all()?;
        let end = End {
            ran: started.elapsed(),
            is_failure: !status.success() && status.signal() != Some(Signal::KILL.as_raw()),
        };
        if stopping {
            events.say(&format!("stopped: {status}"));
            return Ok(());
        }
        let pause = pace.ended(end);
        events.exits(pace.failed());
        let (ran, again) = (end.ran.as_millis(), pause.as_millis());
        events.say(&format!(
            "ended after {ran} ms: {status}; starts again in {again} ms"
        ));
        if signals.stops_within(pause).await {
            events.say("stopped while it waited to start again");
            return Ok(());
        }
    }
}

/// The service may store as many descriptors as the system lets it have.
fn raise_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = rustix::process::Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    // With fewer it works as well, for fewer clients.
    let _ = setrlimit(Resource::Nofile, raised);
}

/// What this process may be asked for.
struct Asks {
    term: signal::unix::Signal,
    int: signal::unix::Signal,
    usr2: signal::unix::Signal,
}

struct Signals {
    asks: Asks,
    child: signal::unix::Signal,
    /// Whoever started this may go.
    _hangup: signal::unix::Signal,
    looks: tokio::time::Interval,
}

impl Asks {
    async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.term.recv() => Asked::Stop,
            _ = self.int.recv() => Asked::Stop,
            _ = self.usr2.recv() => Asked::HandOver,
        }
    }
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            asks: Asks {
                term: signal(SignalKind::terminate())?,
                int: signal(SignalKind::interrupt())?,
                usr2: signal(SignalKind::user_defined2())?,
            },
            child: signal(SignalKind::child())?,
            _hangup: signal(SignalKind::hangup())?,
            looks: tokio::time::interval(LOOK_EVERY),
        })
    }

    /// Waits for the end of the service, and passes on what this process is asked for. Gives whether that was to stop.
    async fn wait(
        &mut self,
        service: &Service,
        child: &mut Child,
        store: &mut Store,
        events: &Events,
    ) -> anyhow::Result<(ExitStatus, bool)> {
        let mut stopping = false;
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok((status, stopping));
            }
            let asked = tokio::select! {
                served = store.serve() => match served? {},
                _ = self.child.recv() => continue,
                _ = self.looks.tick() => {
                    if let Some(Err(error)) = service.log.as_ref().map(Log::look) {
                        events.say(&format!("the log grows: {error}"));
                    }
                    continue;
                }
                asked = self.asks.next() => asked,
            };
            stopping |= asked == Asked::Stop;
            let signal = match asked {
                Asked::Stop => Signal::TERM,
                Asked::HandOver => Signal::USR2,
            };
            // It was not waited for, so the number is still its own.
            kill_process(Pid::from_child(child), signal)?;
        }
    }

    /// Whether this process is asked to stop within this time.
    async fn stops_within(&mut self, time: Duration) -> bool {
        let stop = async {
            // A service that does not run has nothing to hand over.
            while self.asks.next().await != Asked::Stop {}
        };
        tokio::time::timeout(time, stop).await.is_ok()
    }
}
