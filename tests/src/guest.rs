//! A virtual machine: boots a disk in qemu without acceleration and says what its console said.
//!
//! Keeps: nothing.
//! Order: the guest switches itself off, so that its file system is clean and its writes are flushed.
//! Crash: a guest that hangs is killed at its deadline; the end of its console is in the error.
//! Knows the disk as whatever qemu opens: a file or an NBD URI.

use std::time::Duration;

use anyhow::{Result, bail};

use crate::client;
use crate::image::DebianImage;

/// A boot takes 25 s on an idle machine.
const BOOT: Duration = Duration::from_secs(300);

/// Boots the image's kernel with `disk` as its root (a qemu `-drive` file: path or URI) and returns how often the
/// disk says that it was booted.
///
/// # Errors
/// qemu fails or overstays, or the console does not tell the number of boots.
pub fn boot(image: &DebianImage, disk: &str) -> Result<u32> {
    let console = client::run(
        client::command("qemu-system-x86_64", BOOT)
            .args([
                "-accel",
                "tcg",
                "-m",
                "512",
                "-nographic",
                "-no-reboot",
                "-nic",
                "none",
            ])
            .args(["-append", "root=/dev/vda rw console=ttyS0 quiet", "-kernel"])
            .arg(image.kernel())
            .arg("-initrd")
            .arg(image.initrd())
            .arg("-drive")
            .arg(format!(
                "file={disk},format=raw,if=virtio,cache=none,discard=unmap"
            )),
    )?;
    let said = console.lines().find_map(|line| line.split_once("boots: "));
    let Some(count) = said.and_then(|(_, count)| count.trim().parse().ok()) else {
        let end: Vec<&str> = console.lines().rev().take(20).collect();
        bail!(
            "the guest did not tell its boots; its console, last line first:\n{}",
            end.join("\n")
        );
    };
    Ok(count)
}
