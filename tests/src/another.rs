//! Another process of a service that a cluster's scripts start once: a second volume-router, a second fs-router.
//!
//! Keeps: its settings, a copy of the first one's with a name, a run directory and sockets of its own.
//! Order: it is started after the cluster, and stopped before it.
//! Crash: it is killed with the test.
//! Knows the service as a process; its log is judged with the cluster's.

use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use toml::{Table, Value};

use crate::client;
use crate::cluster::{Cluster, SOON, Service};

/// The process.
#[derive(Debug)]
pub struct Another {
    service: Service,
    name: String,
    child: Option<Child>,
}

impl Another {
    /// Writes its settings, which `edit` may change; starts nothing.
    ///
    /// # Errors
    /// The first one's settings cannot be read.
    pub fn prepare(
        cluster: &Cluster,
        service: Service,
        name: &str,
        edit: impl FnOnce(&mut Table),
    ) -> Result<Self> {
        let path = cluster.path(&format!("{}.toml", service.name()));
        let mut settings: Table = fs::read_to_string(&path)?.parse()?;
        let own = cluster.path(name);
        fs::DirBuilder::new().mode(0o700).create(&own)?;
        fs::DirBuilder::new().mode(0o700).create(own.join("bus"))?;
        let node = settings.get_mut("node").and_then(Value::as_table_mut);
        let node = node.with_context(|| format!("{} has no section [node]", path.display()))?;
        node.insert("name".to_owned(), name.into());
        // It stands for another machine.
        node.insert("host".to_owned(), name.into());
        node.insert("run_dir".to_owned(), own.display().to_string().into());
        edit(&mut settings);
        fs::write(cluster.path(&format!("{name}.toml")), toml::to_string(&settings)?)?;
        Ok(Self {
            service,
            name: name.to_owned(),
            child: None,
        })
    }

    /// The same for a volume-router, with a write buffer and an endpoint of its own; gives the buffer's directory too.
    ///
    /// # Errors
    /// As [`Another::prepare`].
    pub fn volume_router(cluster: &Cluster, name: &str) -> Result<(Self, PathBuf)> {
        let own = cluster.path(name);
        let (buffer, socket) = (own.join("buffer"), own.join("bus/volume.sock"));
        let router = Self::prepare(cluster, Service::VolumeRouter, name, |settings| {
            let mut set = |section: &str, key: &str, value: Value| {
                let section = settings.get_mut(section).and_then(Value::as_table_mut);
                section.map(|section| section.insert(key.to_owned(), value))
            };
            set("buffer", "dir", buffer.display().to_string().into());
            set(
                "node",
                "endpoints",
                vec![format!("ipc://{}", socket.display())].into(),
            );
        })?;
        Ok((router, buffer))
    }

    /// Starts it.
    ///
    /// # Errors
    /// The binary is not built.
    pub fn start(&mut self, cluster: &Cluster) -> Result<()> {
        self.start_with(cluster, &[])
    }

    /// Starts it with variables of the environment.
    ///
    /// # Errors
    /// As [`Another::start`].
    pub fn start_with(&mut self, cluster: &Cluster, environment: &[(&str, &str)]) -> Result<()> {
        let mut log = fs::OpenOptions::new();
        let log = log
            .create(true)
            .append(true)
            .open(cluster.path(&format!("{}.log", self.name)))?;
        // Whatever becomes of the test, nothing stays.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL"])
            .arg(Cluster::binaries()?.join(self.service.name()))
            .arg("--config")
            .arg(cluster.path(&format!("{}.toml", self.name)))
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        self.child = Some(child);
        Ok(())
    }

    /// Its process id.
    ///
    /// # Errors
    /// It does not run.
    pub fn pid(&self) -> Result<u32> {
        Ok(self.child.as_ref().context("it does not run")?.id())
    }

    /// `kill -9`; it stays down.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill(&mut self) -> Result<()> {
        let mut child = self.child.take().context("it does not run")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Stops it in order.
    ///
    /// # Errors
    /// It does not run, or ends otherwise than in order.
    pub fn stop(&mut self) -> Result<()> {
        let mut child = self.child.take().context("it does not run")?;
        client::run(client::command("kill", SOON).args(["-TERM", &child.id().to_string()]))?;
        let status = child.wait()?;
        ensure!(status.success(), "{} ended with {status}", self.name);
        Ok(())
    }
}

impl Drop for Another {
    fn drop(&mut self) {
        // One that ended by itself cannot be killed any more.
        let _ = self.kill();
    }
}
