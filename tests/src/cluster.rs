//! A cluster of real processes in a run directory of its own, as `make up` sets it up.
//!
//! Keeps: the run directory, until the test is over.
//! Order: settings are written, then edited by the test, then the services start; they stop before their logs are judged.
//! Crash: dropped without `finish` (the test failed), everything is killed and the ends of the logs are printed.
//! Knows the services as scripts, process ids and sockets.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::logs::{self, Announced};
use crate::{checkout, client, wait};

/// A bound for everything that takes a moment: generous, because the machine may be busy.
pub const SOON: Duration = Duration::from_secs(60);

/// What makes `compose/local/cluster` as patient: for its environment.
pub const PATIENCE: [(&str, &str); 3] = [
    ("READY_SECONDS", "240"),
    ("STOP_SECONDS", "240"),
    ("KILL_SECONDS", "60"),
];
/// For one of its commands, which stops up to three services.
const SCRIPT: Duration = Duration::from_secs(600);

/// One of the three services.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// Front ends and routing.
    FsRouter,
    /// The volumes' owner.
    VolumeRouter,
    /// Back ends; hosts the registry here.
    StorageRouter,
}

impl Service {
    /// All three, front end first.
    pub const ALL: [Service; 3] = [Service::FsRouter, Service::VolumeRouter, Service::StorageRouter];

    /// Its name: of its binary, settings, log and pid file.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Service::FsRouter => "fs-router",
            Service::VolumeRouter => "volume-router",
            Service::StorageRouter => "storage-router",
        }
    }
}

/// A running cluster.
#[derive(Debug)]
pub struct Cluster {
    dir: TempDir,
    announced: Announced,
    /// What the services find in their environment beside what the test has.
    environment: Vec<(OsString, OsString)>,
    finished: bool,
}

impl Cluster {
    /// Starts one with the settings of `make up`.
    ///
    /// # Errors
    /// It does not come up; with what the services logged.
    pub fn start() -> Result<Cluster> {
        Self::start_with(|_| Ok(()))
    }

    /// Starts one after `edit` changed the settings in the run directory that it is given.
    ///
    /// # Errors
    /// `edit` failed, or the cluster does not come up.
    pub fn start_with(edit: impl FnOnce(&Path) -> Result<()>) -> Result<Cluster> {
        let cluster = Self::prepare()?;
        edit(cluster.run_dir())?;
        cluster.script(&["up"])?;
        Ok(cluster)
    }

    /// A run directory with settings, nothing started.
    ///
    /// # Errors
    /// The settings cannot be written.
    pub fn prepare() -> Result<Cluster> {
        // Short, because a unix socket's path has at most 107 bytes.
        let dir = tempfile::Builder::new().prefix("sconce-").tempdir()?;
        let cluster = Cluster {
            dir,
            announced: Announced::default(),
            environment: Vec::new(),
            finished: false,
        };
        cluster.script(&["settings"])?;
        Ok(cluster)
    }

    /// The run directory.
    #[must_use]
    pub fn run_dir(&self) -> &Path {
        self.dir.path()
    }

    /// A path in the run directory.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The NBD unix socket.
    #[must_use]
    pub fn nbd_socket(&self) -> PathBuf {
        self.path("nbd.sock")
    }

    /// The URI of a volume for libnbd, qemu and fio.
    #[must_use]
    pub fn nbd_uri(&self, volume: &str) -> String {
        format!("nbd+unix:///{volume}?socket={}", self.nbd_socket().display())
    }

    /// Where a volume is in the FUSE mount.
    #[must_use]
    pub fn mounted(&self, volume: &str) -> PathBuf {
        self.path("mnt").join(volume.trim_start_matches('/'))
    }

    /// Log lines that contain `text` are expected from now on.
    pub fn announce(&mut self, text: &'static str) {
        self.announced.add(text);
    }

    /// Services that are started from now on have this in their environment.
    pub fn give(&mut self, variable: impl Into<OsString>, value: impl Into<OsString>) {
        self.environment.push((variable.into(), value.into()));
    }

    /// Where the binaries under test are: `SCONCE_BIN`, or beside the test's own binary.
    ///
    /// # Errors
    /// They are not built.
    pub fn binaries() -> Result<PathBuf> {
        if let Some(asked) = std::env::var_os("SCONCE_BIN") {
            // Tests run in their crate's directory; people name a path as seen from the checkout's.
            return Ok(Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(asked));
        }
        let test = std::env::current_exe()?;
        let profile = test
            .ancestors()
            .nth(2)
            .context("a test binary is in target/<profile>/deps")?;
        if !profile.join("sconce").exists() {
            bail!(
                "{} has no sconce binary; run: cargo build --workspace --bins",
                profile.display()
            );
        }
        Ok(profile.to_owned())
    }

    /// Runs `compose/local/cluster` on this run directory.
    ///
    /// # Errors
    /// It fails; with its output.
    pub fn script(&self, arguments: &[&str]) -> Result<String> {
        client::run(&mut self.script_command(arguments)?)
    }

    /// The command that does so.
    ///
    /// # Errors
    /// The binaries are not built.
    pub fn script_command(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = client::command(checkout().join("compose/local/cluster"), SCRIPT);
        command
            .args(arguments)
            .envs(PATIENCE)
            .envs(self.environment.iter().cloned())
            .env("RUN", self.run_dir())
            .env("BIN", Self::binaries()?);
        Ok(command)
    }

    /// Starts a service that was stopped or killed.
    ///
    /// # Errors
    /// As [`Cluster::script`].
    pub fn start_service(&self, service: Service) -> Result<()> {
        self.script(&["start", service.name()]).map(drop)
    }

    /// Stops a service in order; it stays down.
    ///
    /// # Errors
    /// As [`Cluster::script`].
    pub fn stop_service(&self, service: Service) -> Result<()> {
        self.script(&["stop", service.name()]).map(drop)
    }

    /// Starts a service anew in order, under its supervisor, and waits until it runs as another process.
    ///
    /// # Errors
    /// As [`Cluster::script`], or it does not come back.
    pub fn swap(&self, service: Service) -> Result<()> {
        let before = self.pid(service)?;
        self.script(&["swap", service.name()])?;
        self.restarted(service, before)
    }

    /// Kills a service and its supervisor at once; it stays down.
    ///
    /// # Errors
    /// As [`Cluster::script`].
    pub fn kill_for_good(&self, service: Service) -> Result<()> {
        self.script(&["kill", service.name()]).map(drop)
    }

    /// Waits until everything answers.
    ///
    /// # Errors
    /// It does not within the script's deadline.
    pub fn ready(&self) -> Result<()> {
        self.script(&["ready"]).map(drop)
    }

    /// A service's process id.
    ///
    /// # Errors
    /// It is not running.
    pub fn pid(&self, service: Service) -> Result<u32> {
        let path = self.path(&format!("{}.pid", service.name()));
        let text = fs::read_to_string(&path).with_context(|| format!("pid file {}", path.display()))?;
        text.trim()
            .parse()
            .with_context(|| format!("pid file {} holds {text:?}", path.display()))
    }

    /// Sends a signal (`KILL`, `STOP`, `CONT`, `TERM`) to a service's process, not to its supervisor.
    ///
    /// # Errors
    /// It is not running.
    pub fn signal(&self, service: Service, signal: &str) -> Result<()> {
        let pid = self.pid(service)?;
        client::run(client::command("kill", SOON).args([format!("-{signal}"), pid.to_string()])).map(drop)
    }

    /// `kill -9` of a service's process; returns the process id that it had. Its supervisor starts it again.
    ///
    /// # Errors
    /// It was not running.
    pub fn kill(&self, service: Service) -> Result<u32> {
        let pid = self.pid(service)?;
        self.signal(service, "KILL")?;
        Ok(pid)
    }

    /// Waits until a service runs again as another process than `before`.
    ///
    /// # Errors
    /// It does not within [`SOON`].
    pub fn restarted(&self, service: Service, before: u32) -> Result<()> {
        let what = format!("{} to be started again", service.name());
        wait::until(&what, SOON, || {
            Ok(self.pid(service).ok().filter(|pid| *pid != before))
        })
        .map(drop)
    }

    /// The `sconce` command on this cluster.
    ///
    /// # Errors
    /// The binaries are not built.
    pub fn command(&self) -> Result<Command> {
        let mut command = client::command(Self::binaries()?.join("sconce"), Duration::from_secs(300));
        command.arg("--cluster").arg(self.path("sconce.toml"));
        Ok(command)
    }

    /// Runs the `sconce` command and returns its output.
    ///
    /// # Errors
    /// It fails; with what it said.
    pub fn sconce<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(&self, arguments: I) -> Result<String> {
        client::run(self.command()?.args(arguments))
    }

    /// Creates a volume of `size` (as the command takes it, `1G`).
    ///
    /// # Errors
    /// The command fails.
    pub fn create(&self, volume: &str, size: &str) -> Result<()> {
        self.sconce(["volume", "create", volume, "--size", size])
            .map(drop)
    }

    /// What `sconce volume show` says about a volume.
    ///
    /// # Errors
    /// The command fails, or prints no JSON.
    pub fn show(&self, volume: &str) -> Result<serde_json::Value> {
        let text = self.sconce(["volume", "show", volume, "--output", "json"])?;
        serde_json::from_str(&text).with_context(|| format!("sconce volume show printed {text:?}"))
    }

    /// Bytes of all files under a directory of the run directory.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn files_in(&self, name: &str) -> Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        let mut open = vec![self.path(name)];
        while let Some(dir) = open.pop() {
            for entry in fs::read_dir(&dir).with_context(|| format!("directory {}", dir.display()))? {
                let entry = entry?;
                let list = if entry.file_type()?.is_dir() {
                    &mut open
                } else {
                    &mut found
                };
                list.push(entry.path());
            }
        }
        found.sort();
        Ok(found)
    }

    /// Ends the test: an orderly stop, then the logs are judged.
    ///
    /// # Errors
    /// The stop fails, a service was still there, or the logs hold what was not announced.
    pub fn finish(mut self) -> Result<()> {
        self.script(&["down"])?;
        for service in Service::ALL {
            ensure!(self.pid(service).is_err(), "{} runs after `down`", service.name());
        }
        logs::judge(self.run_dir(), &self.announced)?;
        self.finished = true;
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        for service in Service::ALL {
            // The test has failed already; what cannot be killed is reported by the next test's failure.
            let _ = self.kill_for_good(service);
        }
        let _ = client::output(
            client::command("umount", SOON)
                .arg("--lazy")
                .arg(self.path("mnt")),
        );
        eprintln!("{}", logs::ends(self.run_dir()));
    }
}
