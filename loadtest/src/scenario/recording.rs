//! Recording with LTTng: a session of user space that has all of Sconce's tracepoints.
//!
//! Keeps: a session daemon of its own, where none runs for this user.
//! Order: the session is there before the services start; it records between `start` and `stop`.
//! Crash: dropped, the session is destroyed and its daemon ends; what was recorded stays.
//! Knows the commands of lttng-tools.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::sconce::succeed;

const PROGRAMS: [&str; 3] = ["lttng", "lttng-sessiond", "babeltrace2"];
/// Of a channel, for each core: 64 MiB, a second of a million events.
const CHANNEL: [&str; 2] = ["--subbuf-size=8M", "--num-subbuf=8"];
const DAEMON_WITHIN: Duration = Duration::from_secs(20);

/// A session.
#[derive(Debug)]
pub(super) struct Recording {
    /// Where LTTng's sockets and settings are, for all but root.
    home: PathBuf,
    trace: PathBuf,
    name: String,
    daemon: Option<Child>,
}

/// A program that is not here, if one is not.
pub(super) fn missing() -> Option<&'static str> {
    PROGRAMS
        .into_iter()
        .find(|program| Command::new(program).arg("--version").output().is_err())
}

impl Recording {
    /// A session that will record below `dir`. Services that run already (`attached`) look for its daemon where their user does.
    pub(super) fn prepare(dir: &Path, attached: bool) -> Result<Recording> {
        let usual = std::env::var_os("LTTNG_HOME").or_else(|| std::env::var_os("HOME"));
        let home = match usual.filter(|_| attached) {
            Some(home) => PathBuf::from(home),
            None => dir.to_owned(),
        };
        let mut recording = Recording {
            home,
            trace: dir.join("trace"),
            name: format!("sconce-loadtest-{}", std::process::id()),
            daemon: None,
        };
        if !recording.answers() {
            recording.start_daemon()?;
        }
        let (name, trace) = (recording.name.clone(), recording.trace.display().to_string());
        recording.lttng(&["create", &name, "--output", &trace])?;
        let channel = ["enable-channel", "-u", "-s", &name, CHANNEL[0], CHANNEL[1], "io"];
        recording.lttng(&channel)?;
        recording.lttng(&["enable-event", "-u", "-s", &name, "-c", "io", "sconce_*"])?;
        let context = [
            "add-context",
            "-u",
            "-s",
            &name,
            "-c",
            "io",
            "-t",
            "vpid",
            "-t",
            "procname",
        ];
        recording.lttng(&context)?;
        Ok(recording)
    }

    /// What a service needs in its environment to find the daemon.
    pub(super) fn environment(&self) -> (&'static str, &Path) {
        ("LTTNG_HOME", &self.home)
    }

    pub(super) fn start(&self) -> Result<()> {
        self.lttng(&["start", &self.name])
    }

    pub(super) fn stop(&self) -> Result<()> {
        self.lttng(&["stop", &self.name])
    }

    /// Gives where the recording is, once all of it is there.
    pub(super) fn finish(&self) -> Result<PathBuf> {
        self.lttng(&["destroy", &self.name])?;
        Ok(self.trace.clone())
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("lttng");
        let (name, home) = self.environment();
        command.arg("--no-sessiond").args(arguments).env(name, home);
        command
    }

    fn lttng(&self, arguments: &[&str]) -> Result<()> {
        succeed(&mut self.command(arguments)).map(drop)
    }

    fn answers(&self) -> bool {
        succeed(&mut self.command(&["list"])).is_ok()
    }

    fn start_daemon(&mut self) -> Result<()> {
        let (name, home) = self.environment();
        let daemon = Command::new("lttng-sessiond")
            .arg("--no-kernel")
            .env(name, home)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("lttng-sessiond (Debian package lttng-tools)")?;
        self.daemon = Some(daemon);
        let begun = Instant::now();
        while begun.elapsed() < DAEMON_WITHIN {
            if self.answers() {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(20));
        }
        bail!("lttng-sessiond does not answer after {DAEMON_WITHIN:?}")
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        // It may be destroyed already; one that cannot be ends with its daemon.
        let _ = succeed(&mut self.command(&["destroy", &self.name]));
        if let Some(mut daemon) = self.daemon.take() {
            let _ = succeed(Command::new("kill").args(["-TERM", &daemon.id().to_string()]));
            let _ = daemon.wait();
        }
    }
}
