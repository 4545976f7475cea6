//! A recording session of LTTng, user space only, and what it recorded.
//!
//! Keeps: a session daemon of its own, where none runs for this user; the trace, until the test is over.
//! Order: a session records before the services start, so that nothing of theirs is missed.
//! Crash: dropped, the session is destroyed and its daemon ends.
//! Knows events as babeltrace2 prints them.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::{client, wait};

/// A bound for each of LTTng's commands.
const SOON: Duration = Duration::from_secs(60);
/// The programs that are needed, of the packages `lttng-tools` and `babeltrace2`.
const PROGRAMS: [&str; 3] = ["lttng", "lttng-sessiond", "babeltrace2"];

/// A session that records all tracepoints of Sconce.
#[derive(Debug)]
pub struct Recording {
    home: TempDir,
    name: String,
    daemon: Option<Child>,
}

/// An event of a trace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    /// Provider and event, as in `sconce_nbd:entry`.
    pub point: String,
    /// The process.
    pub pid: u32,
    /// The fields, by name; enumerations by their word.
    pub fields: BTreeMap<String, String>,
}

impl Recorded {
    /// A field.
    ///
    /// # Errors
    /// The event has none of this name.
    pub fn field(&self, name: &str) -> Result<&str> {
        let found = self.fields.get(name).map(String::as_str);
        found.with_context(|| format!("{} has no field {name}: {:?}", self.point, self.fields))
    }
}

/// Whether LTTng is here. Where it is not, a test has nothing to see: it says so, and in CI it fails.
///
/// # Errors
/// It is not here, and `CI` is set.
pub fn is_here() -> Result<bool> {
    let found = |program: &&str| Command::new(program).arg("--version").output().is_ok();
    let Some(missing) = PROGRAMS.iter().find(|program| !found(program)) else {
        return Ok(true);
    };
    let text = format!("{missing} is missing (scripts/packages test): no tracepoint was looked at");
    ensure!(std::env::var_os("CI").is_none(), "{text}");
    eprintln!("NOT TESTED: {text}");
    Ok(false)
}

impl Recording {
    /// Starts to record.
    ///
    /// # Errors
    /// LTTng fails; with what it said.
    pub fn start() -> Result<Recording> {
        let home = tempfile::Builder::new().prefix("sconce-lttng-").tempdir()?;
        let name = format!("sconce-{}", std::process::id());
        let mut recording = Recording {
            home,
            name,
            daemon: None,
        };
        if !recording.answers()? {
            recording.start_daemon()?;
        }
        let trace = recording.trace().display().to_string();
        let name = recording.name.clone();
        recording.lttng(&["create", &name, "--output", &trace])?;
        recording.lttng(&[
            "enable-channel",
            "-u",
            "-s",
            &name,
            "--subbuf-size=1M",
            "--num-subbuf=8",
            "ch",
        ])?;
        recording.lttng(&["enable-event", "-u", "-s", &name, "-c", "ch", "sconce_*"])?;
        recording.lttng(&["add-context", "-u", "-s", &name, "-c", "ch", "-t", "vpid"])?;
        recording.lttng(&["start", &name])?;
        Ok(recording)
    }

    /// What a process needs in its environment to find the daemon.
    #[must_use]
    pub fn environment(&self) -> (&'static str, &Path) {
        ("LTTNG_HOME", self.home.path())
    }

    /// Stops, and reads what was recorded, in order of time.
    ///
    /// # Errors
    /// LTTng fails, or lost events.
    pub fn finish(self) -> Result<Vec<Recorded>> {
        self.lttng(&["stop", &self.name])?;
        let mut read = client::command("babeltrace2", SOON);
        let read = client::output(read.arg("--fields=loglevel").arg(self.trace()))?;
        let said = String::from_utf8_lossy(&read.stderr);
        ensure!(read.status.success(), "babeltrace2: {}: {said}", read.status);
        ensure!(!said.contains("discarded"), "events were lost: {said}");
        let text = String::from_utf8_lossy(&read.stdout);
        text.lines().map(parse).collect()
    }

    fn trace(&self) -> std::path::PathBuf {
        self.home.path().join("trace")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = client::command("lttng", SOON);
        let (name, home) = self.environment();
        command.arg("--no-sessiond").args(arguments).env(name, home);
        command
    }

    fn lttng(&self, arguments: &[&str]) -> Result<()> {
        client::run(&mut self.command(arguments)).map(drop)
    }

    fn answers(&self) -> Result<bool> {
        Ok(client::output(&mut self.command(&["list"]))?.status.success())
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
            .context("lttng-sessiond")?;
        self.daemon = Some(daemon);
        let answers = || Ok(self.answers()?.then_some(()));
        wait::until("lttng-sessiond to answer", SOON, answers).map(drop)
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        // A session that cannot be destroyed ends with its daemon.
        let _ = client::output(&mut self.command(&["destroy", &self.name]));
        if let Some(mut daemon) = self.daemon.take() {
            let pid = daemon.id().to_string();
            let _ = client::output(client::command("kill", SOON).args(["-TERM", &pid]));
            let _ = daemon.wait();
        }
    }
}

/// A line of babeltrace2's: `[time] (+delta) host provider:event: { … }, { name = value, … }`.
fn parse(line: &str) -> Result<Recorded> {
    let (head, fields) = line
        .split_once(": { ")
        .with_context(|| format!("no event: {line}"))?;
    let point = head.split_whitespace().next_back().unwrap_or_default().to_owned();
    let mut recorded = Recorded {
        point,
        pid: 0,
        fields: BTreeMap::new(),
    };
    for field in fields.replace(['{', '}'], "").split(',') {
        let Some((name, value)) = field.split_once(" = ") else {
            continue;
        };
        // An enumeration is `( "word" : container = number )`.
        let value = match value.trim().strip_prefix("( \"") {
            Some(word) => word.split('"').next().unwrap_or_default(),
            None => value.trim().trim_matches('"'),
        };
        recorded.fields.insert(name.trim().to_owned(), value.to_owned());
    }
    match recorded.fields.get("vpid").map(|pid| pid.parse()) {
        Some(Ok(pid)) => recorded.pid = pid,
        _ => bail!("no process id: {line}"),
    }
    Ok(recorded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_becomes_an_event() {
        let line = "[09:00:01.5] (+0.1) host sconce_nbd:entry: { cpu_id = 1 }, { vpid = 42 }, { operation = 0x1F, \
                    action = ( \"write\" : container = 2 ), volume = \"ab\", address = 4096, length = 8, \
                    status = ( \"ok\" : container = 0 ) }";
        let event = parse(line).unwrap();
        assert_eq!((event.point.as_str(), event.pid), ("sconce_nbd:entry", 42));
        let field = |name| event.field(name).unwrap();
        assert_eq!((field("operation"), field("action")), ("0x1F", "write"));
        assert_eq!(
            (field("volume"), field("address"), field("status")),
            ("ab", "4096", "ok")
        );
        assert!(parse("nothing").is_err() && event.field("colour").is_err());
    }
}
