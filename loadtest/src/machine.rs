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
use serde::{Deserialize, Serialize};

/// What a reader needs to judge figures or to get them again.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Machine {
    pub(crate) command: String,
    pub(crate) date: String,
    pub(crate) commit: String,
    pub(crate) cpu: String,
    pub(crate) cores: usize,
    pub(crate) kernel: String,
}

impl Machine {
    /// This machine now.
    pub(crate) fn here(command: String) -> Result<Machine> {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo")?;
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name"));
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

impl std::fmt::Display for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Machine {
            command,
            date,
            commit,
            cpu,
            cores,
            kernel,
        } = self;
        write!(
            f,
            "`{command}`, {date}, commit {commit}, {cores} cores ({cpu}), Linux {kernel}."
        )
    }
}

fn told(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    text.ok()
        .filter(|text| !text.is_empty())
        .unwrap_or_else(|| "unknown".to_owned())
}
