//! The containers of a file of compose/, with a project name of their own.
//!
//! Keeps: the compose project. One at a time: they take the same ports.
//! Order: images first, then the services; dropped with all its volumes.
//! Crash: a killed test leaves its containers; `docker-compose -p sconce-test down -v` removes them.
//! Knows Docker as its command lines.

use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use crate::{checkout, client};

const STEP: Duration = Duration::from_secs(300);
const PROJECT: &str = "sconce-test";

/// A running compose project.
#[derive(Debug)]
pub struct Containers {
    /// Its file, in compose/.
    file: &'static str,
    /// Where its `sconce` command is run.
    fs_router: &'static str,
}

impl Containers {
    /// Makes the images from the binaries under test, and starts the services.
    ///
    /// # Errors
    /// No Docker engine, or something does not start.
    pub fn up(scale: &[&str]) -> Result<Containers> {
        Self::of("compose.yaml", "fs-router").start(scale)
    }

    /// The same with the machines of compose/cluster.yaml.
    ///
    /// # Errors
    /// As [`Containers::up`].
    pub fn cluster() -> Result<Containers> {
        Self::of("cluster.yaml", "fs-router-1").start(&[])
    }

    fn of(file: &'static str, fs_router: &'static str) -> Self {
        Self { file, fs_router }
    }

    fn start(self, scale: &[&str]) -> Result<Self> {
        let images = checkout().join("compose/build-images.sh");
        client::run(client::command(images, STEP).env("BIN", crate::cluster::Cluster::binaries()?))?;
        let mut up = self.compose(&["up", "--detach"]);
        for service in scale {
            up.arg("--scale").arg(service);
        }
        client::run(&mut up)?;
        Ok(self)
    }

    /// `docker-compose`, or Compose v2 where it is not installed, on this project.
    #[must_use]
    pub fn compose(&self, arguments: &[&str]) -> Command {
        let old = Command::new("docker-compose").arg("version").output().is_ok();
        let mut command = client::command(if old { "docker-compose" } else { "docker" }, STEP);
        if !old {
            command.arg("compose");
        }
        command
            .args(["-p", PROJECT, "-f"])
            .arg(checkout().join("compose").join(self.file))
            .args(arguments);
        command
    }

    /// Runs the `sconce` command in the fs-router's container.
    ///
    /// # Errors
    /// It fails; with what it said.
    pub fn sconce(&self, arguments: &[&str]) -> Result<String> {
        client::run(
            self.compose(&["exec", "-T", self.fs_router, "sconce"])
                .args(arguments),
        )
    }

    /// The name of a network of the project.
    #[must_use]
    pub fn network(&self, name: &str) -> String {
        format!("{PROJECT}_{name}")
    }

    /// Takes a service of compose/cluster.yaml off a network.
    ///
    /// # Errors
    /// It is not on it.
    pub fn disconnect(&self, service: &str, network: &str) -> Result<()> {
        let id = self.ids(service)?.swap_remove(0);
        client::run(client::command("docker", STEP).args([
            "network",
            "disconnect",
            &self.network(network),
            &id,
        ]))
        .map(drop)
    }

    /// Puts it back, with the address that it had.
    ///
    /// # Errors
    /// Another one has the address.
    pub fn connect(&self, service: &str, network: &str, address: &str) -> Result<()> {
        let id = self.ids(service)?.swap_remove(0);
        let network = self.network(network);
        client::run(
            client::command("docker", STEP).args(["network", "connect", "--ip", address, &network, &id]),
        )
        .map(drop)
    }

    /// The ids of a service's containers.
    ///
    /// # Errors
    /// Docker does not answer.
    pub fn ids(&self, service: &str) -> Result<Vec<String>> {
        let text = client::run(&mut self.compose(&["ps", "-q", service]))?;
        Ok(text.lines().map(str::to_owned).collect())
    }
}

impl Drop for Containers {
    fn drop(&mut self) {
        // What cannot be removed is in the way of the next run, which then fails and says so.
        let _ = client::output(&mut self.compose(&["down", "--volumes", "--timeout=5"]));
    }
}
