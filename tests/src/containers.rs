//! The cluster of compose/compose.yaml, with a project name of its own.
//!
//! Keeps: the compose project.
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
pub struct Containers(());

impl Containers {
    /// Makes the images from the binaries under test, and starts the services.
    ///
    /// # Errors
    /// No Docker engine, or something does not start.
    pub fn up(scale: &[&str]) -> Result<Containers> {
        let images = checkout().join("compose/build-images.sh");
        client::run(client::command(images, STEP).env("BIN", crate::cluster::Cluster::binaries()?))?;
        let containers = Containers(());
        let mut up = containers.compose(&["up", "--detach"]);
        for service in scale {
            up.arg("--scale").arg(service);
        }
        client::run(&mut up)?;
        Ok(containers)
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
            .arg(checkout().join("compose/compose.yaml"))
            .args(arguments);
        command
    }

    /// Runs the `sconce` command in the fs-router's container.
    ///
    /// # Errors
    /// It fails; with what it said.
    pub fn sconce(&self, arguments: &[&str]) -> Result<String> {
        client::run(
            self.compose(&["exec", "-T", "fs-router", "sconce"])
                .args(arguments),
        )
    }

    /// The name of a network of the project.
    #[must_use]
    pub fn network(&self, name: &str) -> String {
        format!("{PROJECT}_{name}")
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
