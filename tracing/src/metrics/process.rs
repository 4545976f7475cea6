//! What the system knows of this process.
//!
//! Keeps: nothing.
//! Order: none.
//! Crash: nothing.
//! Knows Linux's `/proc`; what cannot be read there is left out.

use std::fs;

use super::{Metric, Page};
use crate::telemetry;

impl Page {
    /// What each service tells, last of all: who it is, its process, its spans, and whether something was left out.
    pub fn process(&mut self, service: &str, node: &str, version: &str) {
        self.number(Metric::BuildInfo, &[service, node, version], 1);
        self.yes_or_no(Metric::ScrapeIncomplete, &[], self.is_incomplete());
        let spans = telemetry::unsent();
        self.number(Metric::SpansExported, &[], spans.exported);
        self.number(Metric::SpansDropped, &[], spans.dropped);
        self.number(Metric::SpansWaiting, &[], spans.waiting);
        if let Ok(stat) = fs::read_to_string("/proc/self/stat") {
            self.stat(&stat);
        }
        if let Ok(descriptors) = fs::read_dir("/proc/self/fd") {
            // Not the one that reads this.
            let open = descriptors.count().saturating_sub(1) as u64;
            self.number(Metric::ProcessDescriptors, &[], open);
        }
        if let Some(most) = descriptors_max() {
            self.number(Metric::ProcessDescriptorsMax, &[], most);
        }
    }

    /// proc_pid_stat(5). The command, in parentheses, may hold anything.
    fn stat(&mut self, stat: &str) {
        let fields: Vec<&str> = match stat.rsplit_once(')') {
            Some((_, fields)) => fields.split_ascii_whitespace().collect(),
            None => return,
        };
        // By the page's numbers, of which the first two are before the parenthesis's end.
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        // SAFETY: sysconf reads no memory of ours.
        let asked = |name| unsafe { libc::sysconf(name) };
        let (ticks, page) = (asked(libc::_SC_CLK_TCK), asked(libc::_SC_PAGESIZE));
        let (Ok(ticks @ 1..), Ok(page)) = (u32::try_from(ticks), u64::try_from(page)) else {
            return;
        };
        let seconds = |count: u64| count as f64 / f64::from(ticks);
        if let (Some(user), Some(system)) = (field(14), field(15)) {
            self.seconds(Metric::ProcessCpu, &[], seconds(user + system));
        }
        if let Some(resident) = field(24) {
            self.number(Metric::ProcessResident, &[], resident * page);
        }
        if let Some(addresses) = field(23) {
            self.number(Metric::ProcessVirtual, &[], addresses);
        }
        if let (Some(started), Some(booted)) = (field(22), booted()) {
            self.seconds(Metric::ProcessStart, &[], booted as f64 + seconds(started));
        }
        if let Some(threads) = field(20) {
            self.number(Metric::ProcessThreads, &[], threads);
        }
    }
}

/// When the system started, in seconds since 1970.
fn booted() -> Option<u64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    stat.lines()
        .find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok())
}

fn descriptors_max() -> Option<u64> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}
