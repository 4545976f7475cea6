//! CPU time of processes, from `/proc/<pid>/stat`: it sums all threads, those that ended included.
//!
//! Keeps: nothing.
//! Order: none.
//! Crash: a process that is gone is an error: its time would be missing.
//! Knows Linux.

use std::fs;
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result};

/// CPU seconds, user and system, that a process used since it started.
pub(crate) fn seconds(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    let ticks = user_and_system(&text).with_context(|| format!("{path} holds {text:?}"))?;
    Ok(ticks / ticks_per_second())
}

/// Fields 14 and 15; the name in field 2 may hold anything, so counting starts behind its last parenthesis.
fn user_and_system(stat: &str) -> Option<f64> {
    let (_, behind_name) = stat.rsplit_once(')')?;
    let mut fields = behind_name.split_whitespace().skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

fn ticks_per_second() -> f64 {
    static TICKS: OnceLock<f64> = OnceLock::new();
    *TICKS.get_or_init(|| {
        let told = Command::new("getconf").arg("CLK_TCK").output();
        let text = told.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
        // 100 on every Linux that Debian ships.
        text.ok().and_then(|text| text.parse().ok()).unwrap_or(100.0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_spaces_and_parentheses_is_skipped() {
        let stat = "42 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 1500 250 0 0 20";
        assert_eq!(user_and_system(stat), Some(1750.0));
        assert_eq!(user_and_system("42 (short) S 1"), None);
    }

    #[test]
    fn this_process_has_used_some() {
        assert!(seconds(std::process::id()).unwrap() >= 0.0);
    }
}
