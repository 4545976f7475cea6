//! A cluster with three volume-routers, each with a write buffer of its own, whose machines can be lost, disk and all.
//!
//! Keeps: the cluster; the first volume-router is its own one.
//! Order: what is said of a machine that is lost is announced before any is.
//! Crash: as the cluster's.
//! Knows the volumes by their records.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::another::Another;
use crate::checked;
use crate::cluster::{Cluster, SOON, Service};
use crate::edit;
use crate::wait;

/// The volume-routers, the cluster's own first.
pub const NODES: [&str; 3] = ["volume-router", "vr-2", "vr-3"];

/// The machines.
#[derive(Debug)]
pub struct Machines {
    /// With the first of them, and the other services.
    pub cluster: Cluster,
    /// With their buffers.
    others: Vec<(&'static str, Another, PathBuf)>,
}

impl Machines {
    /// Starts them, each with a lease of `lease`: the longer, the rarer a busy machine ends one of somebody who lives.
    ///
    /// # Errors
    /// They do not come up.
    pub fn start(lease: Duration) -> Result<Self> {
        let lease = format!("{}s", lease.as_secs());
        let mut cluster = Cluster::start_with(|run| edit::set(run, "volume-router", "volumes.lease", lease))?;
        for told in [
            // What is said of a machine that is lost.
            "the twin of the write buffer is lost",
            "cannot be reached",
            "may have acknowledged writes that are only in the write buffer",
            // What a busy machine makes of others.
            "volume is served here no more",
            "does not work now: trying again",
        ] {
            cluster.announce(told);
        }
        let mut others = Vec::new();
        for name in &NODES[1..] {
            let (mut other, buffer) = Another::volume_router(&cluster, name)?;
            other.start(&cluster)?;
            others.push((*name, other, buffer));
        }
        Ok(Self { cluster, others })
    }

    /// Who owns the volume.
    ///
    /// # Errors
    /// The registry does not say.
    pub fn owner(&self, volume: &str) -> Result<String> {
        let shown = self.cluster.show(volume)?;
        Ok(shown["owner"].as_str().context("no owner is shown")?.to_owned())
    }

    /// Whether the volume's twin has every acknowledged write.
    ///
    /// # Errors
    /// The registry does not say.
    pub fn is_in_sync(&self, volume: &str) -> Result<Option<()>> {
        let shown = self.cluster.show(volume)?;
        Ok((shown["dtl_state"] == "in_sync").then_some(()))
    }

    /// Waits until it has.
    ///
    /// # Errors
    /// It has not within [`SOON`].
    pub fn wait_in_sync(&self, volume: &str) -> Result<()> {
        wait::until("the twin to be in sync", SOON, || self.is_in_sync(volume)).map(drop)
    }

    /// The volume's owner dies, and its disk is gone. Where its twin was given up a moment before, what it had is the only copy: then its disk
    /// stays and it is started again. Gives whether it is lost.
    ///
    /// # Errors
    /// It did not run, or the registry does not say.
    pub fn lose(&mut self, name: &str, volume: &str) -> Result<bool> {
        let buffer = self.kill(name)?;
        // By what is in the registry once the owner cannot change it any more.
        let shown = || Ok(self.cluster.show(volume).ok());
        let (shown, _) = wait::until("the volume's record", SOON, shown)?;
        if shown["owner"] == name && shown["dtl_state"] != "in_sync" {
            self.replace(name)?;
            return Ok(false);
        }
        fs::remove_dir_all(buffer).with_context(|| format!("removing the write buffer of {name}"))?;
        Ok(true)
    }

    /// The process dies and stays down. Gives where its write buffer is.
    fn kill(&mut self, name: &str) -> Result<PathBuf> {
        match self.others.iter_mut().find(|(other, ..)| *other == name) {
            Some((_, other, buffer)) => {
                other.kill()?;
                Ok(buffer.clone())
            }
            None => {
                self.cluster.kill_for_good(Service::VolumeRouter)?;
                Ok(self.cluster.path("buffer"))
            }
        }
    }

    /// The machine comes back, with an empty disk where it was lost.
    ///
    /// # Errors
    /// Its binary is not built.
    pub fn replace(&mut self, name: &str) -> Result<()> {
        match self.others.iter_mut().find(|(other, ..)| *other == name) {
            Some((_, other, _)) => other.start(&self.cluster),
            None => self.cluster.start_service(Service::VolumeRouter),
        }
    }

    /// Ends the test: with one volume-router left everything is stored, checked, and the logs are judged.
    ///
    /// # Errors
    /// Something that is stored is not consistent, or as [`Cluster::finish`].
    pub fn finish(self) -> Result<()> {
        drop(self.others);
        checked::stopped_and_consistent(&self.cluster)?;
        self.cluster.finish()
    }
}
