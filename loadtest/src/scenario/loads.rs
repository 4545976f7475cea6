//! The loads of a scenario: each on a thread of its own, the generator's or fio.
//!
//! Keeps: nothing.
//! Order: a load fills its volume, waits at the gate, and begins with the others.
//! Crash: a load that fails before the gate keeps it shut.
//! Knows the generator and fio.

use std::fs;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::Run;
use super::file::{Client, Load};
use super::outcome::OfLoad;
use crate::fio;
use crate::generator::{self, Found, Live, Plan, Sample, Via};
use crate::report::Times;

impl Run<'_> {
    pub(super) fn load(&self, load: &Load, live: Arc<Live>) -> Result<OfLoad> {
        let found = match &load.client {
            Client::Open { .. } => self.generate(load, live),
            Client::Fio { rw, depth } => self.fio(load, rw, *depth),
        };
        if found.is_err() {
            self.gate.fail();
        }
        Ok(OfLoad {
            name: load.name.clone(),
            volume: load.volume.clone(),
            is_open: matches!(load.client, Client::Open { .. }),
            block: load.block,
            found: found?,
        })
    }

    fn generate(&self, load: &Load, live: Arc<Live>) -> Result<Found> {
        let Client::Open {
            bus,
            per_second,
            reads,
            arrivals,
            in_flight_max,
        } = load.client
        else {
            anyhow::bail!("it is fio's");
        };
        let (volume, prepared) = self.volume(load)?;
        let sconce = &self.cluster.sconce;
        let via = match bus {
            true => Via::Bus(sconce.path("sconce.toml"), load.volume.clone()),
            false => Via::Nbd(sconce.path("nbd.sock"), load.volume.clone()),
        };
        // Of several generators on a volume (they only read then) one fills it.
        let is_first = self
            .scenario
            .generator_of(&load.volume)
            .is_some_and(|first| first.name == load.name);
        let is_alone = self
            .scenario
            .loads
            .iter()
            .filter(|other| other.volume == load.volume)
            .count()
            == 1;
        let plan = Plan {
            via,
            bytes: volume.size.bytes(),
            block: usize::try_from(load.block)?,
            reads,
            per_second,
            arrivals,
            in_flight_max,
            flush_each: load.flush_each,
            is_zero: prepared.is_new && is_alone,
            fill: volume.fill && is_first,
            duration: self.scenario.duration.duration(),
            interval: self.scenario.interval.duration(),
            seed: fastrand::u64(..),
        };
        generator::run(plan, live, || self.gate.arrive(), || self.gate.begin())
    }

    fn volume(&self, load: &Load) -> Result<(&super::file::Volume, &super::Prepared)> {
        let mut volumes = self.scenario.volumes.iter().zip(self.volumes);
        volumes
            .find(|(volume, _)| volume.path == load.volume)
            .with_context(|| format!("volume {} is none of the scenario's", load.volume))
    }

    fn fio(&self, load: &Load, rw: &str, depth: u32) -> Result<Found> {
        let (volume, _) = self.volume(load)?;
        let size_mib = u32::try_from(volume.size.bytes() >> 20)?;
        let uri = self.cluster.sconce.uri(&load.volume);
        let fills = volume.fill && self.scenario.generator_of(&load.volume).is_none();
        let is_first = self
            .scenario
            .loads
            .iter()
            .find(|first| first.volume == load.volume);
        if fills && is_first.is_some_and(|first| first.name == load.name) {
            fio::fill(&uri, size_mib)?;
        }
        let logs = self.dir.join("fio");
        fs::create_dir_all(&logs)?;
        let begin = self.gate.ready()?;
        thread::sleep(begin.saturating_duration_since(Instant::now()));
        let asked = fio::Load {
            rw,
            block: &load.block.to_string(),
            depth,
            flush_each: load.flush_each,
            per_second_max: None,
        };
        let interval = self.scenario.interval.duration();
        let seconds = u32::try_from(self.scenario.duration.duration().as_secs())?;
        let (figures, logged) = fio::run_logged(
            &asked,
            (&uri, size_mib, seconds),
            &logs.join(&load.name),
            interval,
        )?;
        Ok(found(&figures, &logged, interval))
    }
}

/// fio's figures as the generator's; of latency over time it knows the mean, of all requests some percentiles.
fn found(figures: &fio::Figures, logged: &[fio::Logged], interval: Duration) -> Found {
    let all = Times {
        count: figures.operations,
        mean_us: figures.mean_us,
        p50_us: figures.median_us,
        p90_us: figures.p90_us,
        p99_us: figures.p99_us,
        p999_us: figures.p999_us,
        max_us: figures.longest_us,
    };
    let sample = |logged: &fio::Logged| {
        let answered = Duration::from_secs_f64((logged.per_second * interval.as_secs_f64()).max(0.0) / 1e6);
        Sample {
            at_s: (logged.at_s - interval.as_secs_f64()).max(0.0),
            answered: u64::try_from(answered.as_micros()).unwrap_or(u64::MAX),
            times: Times {
                count: 1,
                mean_us: logged.mean_us,
                ..Times::default()
            },
        }
    };
    Found {
        samples: logged.iter().map(sample).collect(),
        all,
        service: all,
        ..Found::default()
    }
}
