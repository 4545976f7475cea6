//! A real Debian disk image, made with mmdebstrap and kept under `target/` between runs.
//!
//! Keeps: `target/debian-image`: the image (ext4 without a partition table), its kernel and its initrd.
//! Order: the folder gets its name when everything in it is there.
//! Crash: what a killed run left has another name and is removed by the next.
//! Knows no cluster.

use std::fs::{self, File, OpenOptions, Permissions};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::{checkout, client};

const SIZE: &str = "1G";
const MAKING: Duration = Duration::from_secs(900);
/// Raised when the image is made differently, so that an older one is not taken.
const VERSION: u32 = 2;
/// What boots beside a minimal Debian, and the database; the cloud kernel has the virtio drivers and little else.
const PACKAGES: &str = "initramfs-tools,linux-image-cloud-amd64,sqlite3,systemd-sysv,udev,zstd";
/// An initrd with the drivers of the disk alone: an emulated machine takes seconds to unpack the others.
const DRIVERS: &str = "cd \"$1\" && mkdir -p etc/initramfs-tools/conf.d && echo MODULES=list >etc/initramfs-tools/conf.d/list && \
    printf '%s\\n' virtio_pci virtio_blk ext4 >etc/initramfs-tools/modules";
/// Counts its boots in a file, says the count on the console, and switches itself off.
const UNIT: &str = "[Unit]\nDescription=Counts boots\nAfter=multi-user.target\n\n[Service]\nType=oneshot\n\
    ExecStart=/bin/sh -c 'echo $(( $(cat /var/lib/boots 2>/dev/null || echo 0) + 1 )) > /var/lib/boots; \
    sync; echo \"boots: $(cat /var/lib/boots)\" > /dev/console'\n\
    ExecStartPost=/bin/systemctl poweroff --no-block\n\n[Install]\nWantedBy=multi-user.target\n";

/// A program of the image that can be its first process in place of systemd: a database under load, see there.
const DATABASE: &str = include_str!("../guest/database");
/// Where it is in the image.
pub const DATABASE_INIT: &str = "/usr/local/sbin/database";

/// The image's parts; they are not to be changed.
#[derive(Debug)]
pub struct DebianImage {
    dir: PathBuf,
}

impl DebianImage {
    /// The disk, raw and sparse.
    #[must_use]
    pub fn disk(&self) -> PathBuf {
        self.dir.join("disk.raw")
    }

    /// Its kernel.
    #[must_use]
    pub fn kernel(&self) -> PathBuf {
        self.dir.join("vmlinuz")
    }

    /// Its initrd.
    #[must_use]
    pub fn initrd(&self) -> PathBuf {
        self.dir.join("initrd")
    }

    /// The image, made if no earlier run did: that takes about a minute.
    ///
    /// # Errors
    /// mmdebstrap or mke2fs fail, for example because no Debian mirror is reached; with what they said.
    pub fn get() -> Result<DebianImage> {
        let target = checkout().join("target");
        let image = DebianImage {
            dir: target.join("debian-image").join(VERSION.to_string()),
        };
        fs::create_dir_all(image.dir.parent().unwrap_or(&target))?;
        // Tests are processes of their own; one makes the image, the others wait for it.
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(target.join("debian-image.lock"))?;
        lock.lock()?;
        if !image.dir.exists() {
            make(&image.dir)?;
        }
        Ok(image)
    }
}

fn make(dir: &Path) -> Result<()> {
    let making = dir.with_extension("making");
    if making.exists() {
        fs::remove_dir_all(&making)?;
    }
    let root = making.join("root");
    fs::create_dir_all(&making)?;
    client::run(
        client::command("mmdebstrap", MAKING)
            .args(["--quiet", "--variant=minbase", &format!("--include={PACKAGES}")])
            .arg(format!("--essential-hook={DRIVERS}"))
            .args(["doc", "man", "locale"].map(|kind| format!("--dpkgopt=path-exclude=/usr/share/{kind}/*")))
            .arg("bookworm")
            .arg(&root)
            .arg("http://deb.debian.org/debian"),
    )?;
    let units = root.join("etc/systemd/system");
    fs::write(units.join("boots.service"), UNIT)?;
    symlink(
        "../boots.service",
        units.join("multi-user.target.wants/boots.service"),
    )?;
    let database = root.join(DATABASE_INIT.trim_start_matches('/'));
    fs::write(&database, DATABASE)?;
    fs::set_permissions(&database, Permissions::from_mode(0o755))?;
    for (begins, name) in [("vmlinuz-", "vmlinuz"), ("initrd.img-", "initrd")] {
        fs::copy(only_file(&root.join("boot"), begins)?, making.join(name))?;
    }
    let disk = making.join("disk.raw");
    File::create(&disk)?;
    client::run(
        client::command("mke2fs", MAKING)
            .args(["-q", "-t", "ext4", "-d"])
            .arg(&root)
            .arg(&disk)
            .arg(SIZE),
    )?;
    fs::remove_dir_all(&root)?;
    fs::rename(&making, dir).with_context(|| format!("naming {}", dir.display()))
}

fn only_file(dir: &Path, begins: &str) -> Result<PathBuf> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(begins) {
            return Ok(entry.path());
        }
    }
    anyhow::bail!("no {begins}* in {}", dir.display())
}
