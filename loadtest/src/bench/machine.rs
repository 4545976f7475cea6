//! Where and when a benchmark ran: figures without it say nothing.
//!
//! Keeps: the command, date, commit and machine.
//! Order: none.
//! Crash: nothing.
//! Knows Linux and git.

use std::fs;
use std::process::Command;
use std::thread;

use anyhow::Result;
use serde::Serialize;

use super::Options;

/// What a reader needs to judge figures or to get them again.
#[derive(Debug, Serialize)]
pub(super) struct Machine {
    pub(super) command: String,
    pub(super) date: String,
    pub(super) commit: String,
    pub(super) cpu: String,
    pub(super) cores: usize,
    pub(super) kernel: String,
}

impl Machine {
    /// This machine now.
    pub(super) fn here(options: &Options) -> Result<Machine> {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo")?;
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name"));
        let mut command = format!(
            "loadtest bench --seconds {} --rounds {} --size-mib {}",
            options.seconds, options.rounds, options.size_mib
        );
        for part in &options.only {
            command.push_str(&format!(" --only {part}"));
        }
        Ok(Machine {
            command,
            date: told("date", &["-u", "+%F"]),
            commit: told("git", &["describe", "--always", "--dirty"]),
            cpu: model
                .map_or("unknown", |text| text.trim_start_matches([' ', '\t', ':']))
                .to_owned(),
            cores: thread::available_parallelism()?.get(),
            kernel: told("uname", &["-r"]),
        })
    }
}

fn told(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    text.ok()
        .filter(|text| !text.is_empty())
        .unwrap_or_else(|| "unknown".to_owned())
}
