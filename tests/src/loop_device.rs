//! A loop device over a file, with a file system that is mounted while a test uses it. Needs root.
//!
//! Keeps: the device, and whether it is mounted.
//! Order: unmounted before it is detached, also when a test fails.
//! Crash: a killed test leaves the device; `losetup --detach` of a later run's name does not clash with it.
//! Knows no cluster.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;

use crate::client;

const STEP: Duration = Duration::from_secs(120);

/// An attached loop device.
#[derive(Debug)]
pub struct LoopDevice {
    device: String,
    mounted: Option<PathBuf>,
}

impl LoopDevice {
    /// Attaches `file`.
    ///
    /// # Errors
    /// `losetup` fails: not root, or no loop device.
    pub fn attach(file: &Path) -> Result<LoopDevice> {
        let device = client::run(
            client::command("losetup", STEP)
                .args(["--find", "--show"])
                .arg(file),
        )?;
        Ok(LoopDevice {
            device: device.trim().to_owned(),
            mounted: None,
        })
    }

    /// Makes an ext4 file system on it.
    ///
    /// # Errors
    /// `mkfs.ext4` fails.
    pub fn format(&self) -> Result<()> {
        client::run(
            client::command("mkfs.ext4", STEP)
                .args(["-q", "-F"])
                .arg(&self.device),
        )
        .map(drop)
    }

    /// Mounts it.
    ///
    /// # Errors
    /// `mount` fails.
    pub fn mount(&mut self, at: &Path, options: &str) -> Result<()> {
        fs::create_dir_all(at)?;
        client::run(
            client::command("mount", STEP)
                .args(["-o", options])
                .arg(&self.device)
                .arg(at),
        )?;
        self.mounted = Some(at.to_owned());
        Ok(())
    }

    /// Unmounts it.
    ///
    /// # Errors
    /// `umount` fails.
    pub fn unmount(&mut self) -> Result<()> {
        if let Some(at) = self.mounted.take() {
            client::run(client::command("umount", STEP).arg(at))?;
        }
        Ok(())
    }

    /// Checks the file system without changing it.
    ///
    /// # Errors
    /// It is not clean; with what `e2fsck` found.
    pub fn check(&self) -> Result<()> {
        client::run(
            client::command("e2fsck", STEP)
                .args(["-f", "-n"])
                .arg(&self.device),
        )
        .map(drop)
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        // A failure here follows another one, which is reported.
        let _ = self.unmount();
        let _ = client::output(client::command("losetup", STEP).arg("--detach").arg(&self.device));
    }
}
