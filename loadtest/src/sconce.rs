//! Sconce as it is measured: its three services in a run directory of their own.
//!
//! Keeps: the run directory, until it is dropped.
//! Order: settings are written, then changed, then the services start.
//! Crash: dropped without `stop`, the services are stopped.
//! Knows `compose/local/cluster` and the `sconce` command.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};

/// The services' names.
pub(crate) const SERVICES: [&str; 3] = ["fs-router", "volume-router", "storage-router"];

/// A Sconce.
#[derive(Debug)]
pub(crate) struct Sconce {
    run: PathBuf,
    /// What services that are started from now on have in their environment beside ours.
    environment: Vec<(&'static str, OsString)>,
    stopped: bool,
}

/// A service beside those of the scripts.
#[derive(Debug)]
pub(crate) struct Another(Child);

impl Another {
    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Asks it to stop in order, and waits.
    pub(crate) fn stop(mut self) -> Result<()> {
        succeed(Command::new("kill").args(["-TERM", &self.pid().to_string()]))?;
        let status = self.0.wait()?;
        ensure!(status.success(), "it ended with {status}");
        Ok(())
    }
}

impl Drop for Another {
    fn drop(&mut self) {
        // It may be over already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What was stored on the back ends since the storage-router started.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Written {
    pub(crate) objects: u64,
    pub(crate) bytes: u64,
}

impl Sconce {
    /// Settings in `run`, nothing started.
    pub(crate) fn prepare(run: &Path) -> Result<Sconce> {
        fs::create_dir_all(run)?;
        let sconce = Sconce {
            run: run.canonicalize()?,
            environment: Vec::new(),
            stopped: false,
        };
        sconce.script(&["settings"])?;
        Ok(sconce)
    }

    /// One that runs, started by the same scripts. It is not stopped.
    pub(crate) fn attach(run: &Path) -> Result<Sconce> {
        let run = run
            .canonicalize()
            .with_context(|| format!("run directory {}", run.display()))?;
        let sconce = Sconce {
            run,
            environment: Vec::new(),
            stopped: true,
        };
        sconce.status()?;
        Ok(sconce)
    }

    /// Services that are started from now on have this in their environment.
    pub(crate) fn give(&mut self, variable: &'static str, value: impl Into<OsString>) {
        self.environment.push((variable, value.into()));
    }

    /// Adds lines to a service's settings; before the start.
    pub(crate) fn add_settings(&self, service: &str, lines: &str) -> Result<()> {
        let path = self.run.join(format!("{service}.toml"));
        let mut file = OpenOptions::new().append(true).open(&path)?;
        file.write_all(lines.as_bytes())
            .with_context(|| path.display().to_string())
    }

    /// Changes the settings of a service; before the start.
    pub(crate) fn replace_settings(&self, service: &str, from: &str, to: &str) -> Result<()> {
        let path = self.run.join(format!("{service}.toml"));
        let text = fs::read_to_string(&path)?;
        ensure!(text.contains(from), "{} does not have {from:?}", path.display());
        fs::write(&path, text.replace(from, to)).map_err(Into::into)
    }

    /// Starts all and waits until they answer.
    pub(crate) fn up(&self) -> Result<()> {
        self.script(&["up"])
    }

    /// A path in the run directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.run.join(name)
    }

    /// The URI of an export.
    pub(crate) fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}/nbd.sock", self.run.display())
    }

    /// The `sconce` command on this cluster; gives what it prints.
    pub(crate) fn command(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(binaries()?.join("sconce"));
        command.arg("--cluster").arg(self.run.join("sconce.toml"));
        succeed(command.args(arguments))
    }

    /// `sconce status`.
    pub(crate) fn status(&self) -> Result<serde_json::Value> {
        let text = self.command(&["status", "--services", "--output", "json"])?;
        serde_json::from_str(&text).context("sconce status --output json")
    }

    /// A figure of all back ends together.
    pub(crate) fn backend_sum(&self, figure: &str) -> Result<u64> {
        let status = self.status()?;
        let backends = status["backends"]
            .as_array()
            .context("sconce status has no backends")?;
        let figures = backends.iter().map(|backend| backend[figure].as_u64());
        figures
            .sum::<Option<u64>>()
            .with_context(|| format!("sconce status does not tell {figure}"))
    }

    /// What was stored so far.
    pub(crate) fn written(&self) -> Result<Written> {
        Ok(Written {
            objects: self.backend_sum("written_objects")?,
            bytes: self.backend_sum("written_bytes")?,
        })
    }

    /// A service's process id.
    pub(crate) fn pid(&self, service: &str) -> Result<u32> {
        let path = self.run.join(format!("{service}.pid"));
        let text = fs::read_to_string(&path).with_context(|| format!("pid file {}", path.display()))?;
        text.trim()
            .parse()
            .with_context(|| format!("pid file {} holds {text:?}", path.display()))
    }

    /// Starts a further volume-router, with a write buffer of its own; it ends when it is dropped.
    pub(crate) fn another_volume_router(&self, name: &str, buffer: &str) -> Result<Another> {
        let own = self.run.join(name);
        fs::DirBuilder::new().mode(0o700).create(&own)?;
        fs::DirBuilder::new().mode(0o700).create(own.join("bus"))?;
        let (run, own) = (self.run.display(), own.display());
        let settings = format!(
            "[node]\nname = \"{name}\"\nrun_dir = \"{own}\"\n\
             [registry]\nhome = \"remote\"\nendpoint = \"ipc://{run}/bus/registry.sock\"\n\
             [buffer]\ndir = \"{own}/buffer\"\nsize = \"{buffer}\"\n"
        );
        fs::write(self.run.join(format!("{name}.toml")), settings)?;
        self.start_another(name)
    }

    /// Starts a further volume-router that was stopped.
    pub(crate) fn start_another(&self, name: &str) -> Result<Another> {
        let mut log = OpenOptions::new();
        let log = log
            .create(true)
            .append(true)
            .open(self.run.join(format!("{name}.log")))?;
        let process = Command::new(binaries()?.join("volume-router"))
            .arg("--config")
            .arg(self.run.join(format!("{name}.toml")))
            .envs(self.environment.iter().cloned())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        Ok(Another(process))
    }

    /// Stops a service in order.
    pub(crate) fn stop_service(&self, service: &str) -> Result<()> {
        self.script(&["stop", service])
    }

    /// Starts a service that was stopped; it does not answer yet.
    pub(crate) fn start_service(&self, service: &str) -> Result<()> {
        self.script(&["start", service])
    }

    /// Has the supervisor start a service anew, in order.
    pub(crate) fn swap_service(&self, service: &str) -> Result<()> {
        self.script(&["swap", service])
    }

    /// Stops it in order.
    pub(crate) fn stop(mut self) -> Result<()> {
        self.stopped = true;
        self.script(&["down"])
    }

    fn script(&self, what: &[&str]) -> Result<()> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../compose/local/cluster");
        let mut command = Command::new(script);
        command
            .args(what)
            .envs(self.environment.iter().cloned())
            .env("RUN", &self.run)
            .env("BIN", binaries()?);
        succeed(&mut command).map(drop)
    }
}

impl Drop for Sconce {
    fn drop(&mut self) {
        if !self.stopped {
            let _ = self.script(&["down"]);
        }
    }
}

/// Where the services' binaries are: beside this one.
fn binaries() -> Result<PathBuf> {
    let here = std::env::current_exe()?;
    here.parent()
        .map(Path::to_owned)
        .context("loadtest's own directory")
}

/// Runs a command to its end and returns what it printed.
pub(crate) fn succeed(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{command:?}: {}: {}",
        output.status,
        said.trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
