//! A virtual machine: boots a disk in qemu without acceleration; its console is heard, and can be told something.
//!
//! Keeps: what the console said, and when.
//! Order: a guest that switches itself off leaves a clean file system and flushed writes; one whose power is cut does not.
//! Crash: a guest that hangs is killed at its deadline, and with the test; the end of its console is in the error.
//! Knows the disk as whatever qemu opens: a file or an NBD export.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::image::DebianImage;
use crate::wait;

/// A boot takes 25 s on an idle machine.
pub const BOOT: Duration = Duration::from_secs(300);

/// A line of a console, without its end, and when it came.
#[derive(Debug, Clone)]
pub struct Line {
    /// When it was there.
    pub at: Instant,
    /// What it says.
    pub text: String,
}

/// A guest that runs.
#[derive(Debug)]
pub struct Guest {
    process: Child,
    input: ChildStdin,
    console: Arc<Mutex<Vec<Line>>>,
    listening: Option<JoinHandle<()>>,
}

impl Guest {
    /// Boots the image's kernel with `disk` (options of a qemu `-drive`) as its root, and `init` as its first process where that
    /// is not to be systemd.
    ///
    /// # Errors
    /// qemu cannot be started.
    pub fn start(image: &DebianImage, disk: &str, init: Option<&str>) -> Result<Guest> {
        let init = init.map_or_else(String::new, |init| format!(" init={init}"));
        let mut process = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "qemu-system-x86_64"])
            .args(["-accel", "tcg", "-m", "512", "-nodefaults", "-no-reboot"])
            .args(["-display", "none", "-serial", "stdio"])
            .arg("-append")
            .arg(format!("root=/dev/vda rw console=ttyS0 quiet{init}"))
            .arg("-kernel")
            .arg(image.kernel())
            .arg("-initrd")
            .arg(image.initrd())
            .arg("-drive")
            .arg(format!("{disk},if=virtio,cache=none,discard=unmap"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting qemu-system-x86_64 (scripts/packages test)")?;
        let input = process.stdin.take().context("qemu's standard input")?;
        let output = process.stdout.take().context("qemu's standard output")?;
        let console = Arc::<Mutex<Vec<Line>>>::default();
        let heard = Arc::clone(&console);
        Ok(Guest {
            process,
            input,
            console,
            listening: Some(thread::spawn(move || listen(output, &heard))),
        })
    }

    /// What the console said since the first `known` lines.
    #[must_use]
    pub fn said_since(&self, known: usize) -> Vec<Line> {
        let console = self.console.lock().unwrap_or_else(PoisonError::into_inner);
        console.get(known..).unwrap_or_default().to_vec()
    }

    /// Line `number` of what the console said, if it has.
    #[must_use]
    pub fn line(&self, number: usize) -> Option<Line> {
        let console = self.console.lock().unwrap_or_else(PoisonError::into_inner);
        console.get(number).cloned()
    }

    /// The last lines of the console, for an error.
    #[must_use]
    pub fn end_of_console(&self) -> String {
        let lines = self.said_since(0);
        let end = lines.iter().skip(lines.len().saturating_sub(20));
        end.map(|line| line.text.as_str()).collect::<Vec<_>>().join("\n")
    }

    /// Types a line on the console.
    ///
    /// # Errors
    /// qemu has ended.
    pub fn tell(&mut self, line: &str) -> Result<()> {
        Ok(writeln!(self.input, "{line}")?)
    }

    /// Waits until the guest has switched itself off, and everything that it said is heard.
    ///
    /// # Errors
    /// qemu failed, or overstays.
    pub fn off(&mut self, limit: Duration) -> Result<()> {
        let ended = wait::until("the guest to switch itself off", limit, || {
            Ok(self.process.try_wait()?)
        });
        let (status, _) = ended.with_context(|| format!("its console:\n{}", self.end_of_console()))?;
        self.heard_out();
        ensure!(
            status.success(),
            "qemu: {status}; its console:\n{}",
            self.end_of_console()
        );
        Ok(())
    }

    /// Ends it as a lost power supply does; everything that it said is heard.
    ///
    /// # Errors
    /// It has ended before.
    pub fn cut_power(&mut self) -> Result<()> {
        ensure!(
            self.process.try_wait()?.is_none(),
            "the guest has ended; its console:\n{}",
            self.end_of_console()
        );
        self.process.kill()?;
        self.process.wait()?;
        self.heard_out();
        Ok(())
    }

    fn heard_out(&mut self) {
        if let Some(listening) = self.listening.take() {
            // It only reads; a panic there is printed.
            let _ = listening.join();
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // One that ended by itself cannot be killed any more.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn listen(output: ChildStdout, console: &Mutex<Vec<Line>>) {
    let mut output = BufReader::new(output);
    let mut bytes = Vec::new();
    while output.read_until(b'\n', &mut bytes).is_ok_and(|read| read > 0) {
        let text = String::from_utf8_lossy(&bytes).trim_end().to_owned();
        let line = Line {
            at: Instant::now(),
            text,
        };
        console.lock().unwrap_or_else(PoisonError::into_inner).push(line);
        bytes.clear();
    }
}

/// Boots `disk` (a qemu `-drive` file: path or URI) until it switches itself off, and returns how often the disk says that it
/// was booted.
///
/// # Errors
/// qemu fails or overstays, or the console does not tell the number of boots.
pub fn boot(image: &DebianImage, disk: &str) -> Result<u32> {
    let mut guest = Guest::start(image, &format!("file={disk},format=raw"), None)?;
    guest.off(BOOT)?;
    let said = guest.said_since(0);
    let count = said.iter().find_map(|line| line.text.split_once("boots: "));
    count
        .and_then(|(_, count)| count.trim().parse().ok())
        .with_context(|| {
            format!(
                "the guest did not tell its boots; its console:\n{}",
                guest.end_of_console()
            )
        })
}
