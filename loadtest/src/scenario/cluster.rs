//! The cluster of a scenario: brought up with its volume-routers, or one that runs; its volumes; what chaos does to its services.
//!
//! Keeps: the processes of what has no supervisor.
//! Order: volumes are there, and their twins in sync, before any load.
//! Crash: dropped, what was brought up is stopped.
//! Knows `compose/local/cluster`, the `sconce` command, and process ids.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::file::{Action, Chaos, Dtl, Scenario, VOLUME_ROUTER, Volume};
use super::recording::Recording;
use crate::cpu;
use crate::sconce::{Another, SERVICES, Sconce};

const SOON: Duration = Duration::from_secs(60);
const LOOK_EACH: Duration = Duration::from_millis(10);
/// A service that is slow stops and goes on so often.
const SLOW_EACH: Duration = Duration::from_millis(20);
const BUFFER: &str = "4 GiB";

/// A cluster.
#[derive(Debug)]
pub(super) struct Cluster {
    pub(super) sconce: Sconce,
    /// Volume-routers without a supervisor; `None`: stopped now.
    others: Mutex<BTreeMap<String, Option<Another>>>,
}

/// A volume as it was found or made.
#[derive(Debug, Clone)]
pub(super) struct Prepared {
    pub(super) id: String,
    /// It is new: zeros.
    pub(super) is_new: bool,
}

impl Cluster {
    /// Brings it up in `run`, or attaches to one.
    pub(super) fn open(scenario: &Scenario, run: &Path, recording: Option<&Recording>) -> Result<Cluster> {
        if let Some(attach) = &scenario.cluster.attach {
            return Ok(Cluster {
                sconce: Sconce::attach(attach)?,
                others: Mutex::default(),
            });
        }
        let mut sconce = Sconce::prepare(run)?;
        if let Some(recording) = recording {
            let (name, home) = recording.environment();
            sconce.give(name, home);
        }
        let buffer = scenario.cluster.buffer.map(|size| size.to_string());
        let buffer = buffer.as_deref().unwrap_or(BUFFER);
        let setting = |size: &str| format!("size = \"{size}\"");
        sconce.replace_settings(VOLUME_ROUTER, &setting(BUFFER), &setting(buffer))?;
        sconce.up()?;
        let mut others = BTreeMap::new();
        for name in scenario.services().into_iter().skip(SERVICES.len()) {
            let other = sconce.another_volume_router(&name, buffer)?;
            others.insert(name, Some(other));
        }
        Ok(Cluster {
            sconce,
            others: Mutex::new(others),
        })
    }

    /// A volume: the one that is there, or a new one. With a twin it is waited for.
    pub(super) fn prepare(&self, volume: &Volume) -> Result<Prepared> {
        let is_new = self.show(&volume.path).is_err();
        if is_new {
            let (size, dtl) = (volume.size.bytes().to_string(), volume.dtl.name());
            let mut command = vec!["volume", "create", &volume.path, "--size", &size, "--dtl", dtl];
            if self.sconce.path(VOLUME_ROUTER).with_extension("pid").exists() {
                // Chaos names services: who owns what is to be known.
                command.extend(["--owner", VOLUME_ROUTER]);
            }
            self.sconce.command(&command)?;
        }
        let shown = self.show(&volume.path)?;
        let found = shown["size_bytes"].as_u64().unwrap_or(0);
        if found < volume.size.bytes() {
            bail!(
                "volume {} has {found} bytes, and the scenario says {}; remove it, or change the scenario",
                volume.path,
                volume.size.bytes()
            );
        }
        if volume.dtl != Dtl::None {
            self.wait_for_twin(&volume.path)?;
        }
        let id = shown["id"].as_str().unwrap_or_default().to_owned();
        Ok(Prepared { id, is_new })
    }

    fn wait_for_twin(&self, path: &str) -> Result<()> {
        let begun = Instant::now();
        while begun.elapsed() < SOON {
            if self.show(path)?["dtl_state"] == "in_sync" {
                return Ok(());
            }
            thread::sleep(LOOK_EACH);
        }
        bail!("volume {path} has no twin that is in sync after {SOON:?}")
    }

    fn show(&self, path: &str) -> Result<Value> {
        let text = self
            .sconce
            .command(&["volume", "show", path, "--output", "json"])?;
        serde_json::from_str(&text).context("sconce volume show --output json")
    }

    fn pid(&self, service: &str) -> Result<u32> {
        let others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        match others.get(service) {
            Some(Some(other)) => Ok(other.pid()),
            Some(None) => bail!("{service} is stopped"),
            None => self.sconce.pid(service),
        }
    }

    /// Process ids and CPU seconds of the services that run now.
    pub(super) fn cpu(&self, services: &[String]) -> BTreeMap<String, (u32, f64)> {
        let used = |service: &String| {
            let pid = self.pid(service).ok()?;
            Some((service.clone(), (pid, cpu::seconds(pid).ok()?)))
        };
        services.iter().filter_map(used).collect()
    }

    fn signal(&self, service: &str, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.pid(service)?).ok().and_then(Pid::from_raw);
        let pid = pid.with_context(|| format!("{service} has no process id"))?;
        kill_process(pid, signal).with_context(|| format!("{signal:?} to {service}"))
    }

    /// Does it, and returns when it is over.
    pub(super) fn strike(&self, chaos: &Chaos, until: impl Fn() -> bool) -> Result<()> {
        let service = chaos.service.as_str();
        let lasts = chaos.lasts.map_or(Duration::ZERO, |lasts| lasts.duration());
        match chaos.action {
            Action::Swap | Action::Kill => {
                let before = self.pid(service)?;
                match chaos.action {
                    Action::Kill => self.signal(service, Signal::KILL)?,
                    _ => self.sconce.swap_service(service)?,
                }
                self.wait_for_another(service, before)
            }
            Action::Restart => self.restart(service),
            Action::Pause => {
                self.signal(service, Signal::STOP)?;
                let over = wait(lasts, &until);
                self.signal(service, Signal::CONT)?;
                over
            }
            Action::Slow => {
                let stopped = SLOW_EACH.mul_f64(f64::from(chaos.share.unwrap_or(50)) / 100.0);
                let begun = Instant::now();
                while begun.elapsed() < lasts && !until() {
                    self.signal(service, Signal::STOP)?;
                    thread::sleep(stopped);
                    self.signal(service, Signal::CONT)?;
                    thread::sleep(SLOW_EACH - stopped);
                }
                Ok(())
            }
        }
    }

    fn wait_for_another(&self, service: &str, before: u32) -> Result<()> {
        let begun = Instant::now();
        while begun.elapsed() < SOON {
            if self.sconce.pid(service).is_ok_and(|pid| pid != before) {
                return Ok(());
            }
            thread::sleep(LOOK_EACH);
        }
        bail!("{service} is not started again after {SOON:?}")
    }

    fn restart(&self, service: &str) -> Result<()> {
        if SERVICES.contains(&service) {
            self.sconce.stop_service(service)?;
            return self.sconce.start_service(service);
        }
        let take = || {
            let mut others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
            others.get_mut(service).and_then(Option::take)
        };
        take().with_context(|| format!("{service} is stopped"))?.stop()?;
        let started = self.sconce.start_another(service)?;
        let mut others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        others.insert(service.to_owned(), Some(started));
        Ok(())
    }

    /// Stops what was brought up; one that was attached to goes on.
    pub(super) fn close(self, attached: bool) -> Result<()> {
        if attached {
            return Ok(());
        }
        self.sconce.stop()
    }
}

/// Sleeps that long, or until it is time to end.
fn wait(lasts: Duration, until: impl Fn() -> bool) -> Result<()> {
    let begun = Instant::now();
    while begun.elapsed() < lasts && !until() {
        thread::sleep(LOOK_EACH.min(lasts.saturating_sub(begun.elapsed())));
    }
    Ok(())
}
