//! Running other people's programs: each with a deadline, each failure with what the program said.
//!
//! Keeps: nothing.
//! Order: output is read while the program runs, so that a full pipe never holds it.
//! Crash: a program that overstays is killed by `timeout`, also when the test is gone.
//! Knows no cluster.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// `program` under coreutils' `timeout`, with no standard input.
#[must_use]
pub fn command(program: impl AsRef<OsStr>, limit: Duration) -> Command {
    let mut command = Command::new("timeout");
    command
        .arg("--kill-after=5")
        .arg(format!("{}", limit.as_secs().max(1)))
        .arg(program)
        .stdin(Stdio::null());
    command
}

/// Runs it to its end and returns its standard output.
///
/// # Errors
/// It cannot be started, ends with a status other than 0, or overstays; with the end of what it said.
pub fn run(command: &mut Command) -> Result<String> {
    let output = output(command)?;
    if !output.status.success() {
        bail!("{}", told(command, &output));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a program that must refuse what it is asked, and returns what it says on standard error.
///
/// # Errors
/// It cannot be started, or succeeds.
pub fn refused(command: &mut Command) -> Result<String> {
    let output = output(command)?;
    if output.status.success() {
        bail!("succeeded, and should not have: {}", told(command, &output));
    }
    Ok(String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Runs it to its end, whatever that is.
///
/// # Errors
/// It cannot be started.
pub fn output(command: &mut Command) -> Result<Output> {
    command
        .output()
        .with_context(|| format!("{command:?} (is its Debian package installed? scripts/packages test)"))
}

fn told(command: &Command, output: &Output) -> String {
    let end = |bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    };
    format!(
        "{command:?}: {} (124 is a passed deadline)\n{}\n{}",
        output.status,
        end(&output.stdout),
        end(&output.stderr)
    )
}

/// `qemu-img` on `arguments`, within `limit`.
///
/// # Errors
/// As [`run`].
pub fn qemu_img<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(limit: Duration, arguments: I) -> Result<String> {
    run(command("qemu-img", limit).args(arguments))
}

/// Whether two files hold the same bytes, by `cmp`.
///
/// # Errors
/// They do not; `cmp` says where.
pub fn same_bytes(a: &Path, b: &Path) -> Result<()> {
    run(command("cmp", Duration::from_secs(300)).arg(a).arg(b)).map(drop)
}
