//! What services use while there is load: CPU each interval, and now and then what `sconce status` says.
//!
//! Keeps: samples until the run is over.
//! Order: by time.
//! Crash: a service that is away for a moment has no figure in that sample.
//! Knows `/proc`, and the JSON of `sconce status`.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::cluster::Cluster;

/// `sconce status` is a process of its own: asked each interval it would be a load itself.
const STATUS_EACH: u32 = 5;

/// CPU seconds that each service used from one sample to the next.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Cpu {
    /// Its end, in seconds.
    pub(crate) at_s: f64,
    pub(crate) seconds: BTreeMap<String, f64>,
}

/// What a cluster says of itself.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct Status {
    pub(crate) at_s: f64,
    /// Bytes in write buffers that are on no back end.
    pub(crate) unstored_bytes: u64,
    /// Since the storage-routers started.
    pub(crate) backend_requests: u64,
    pub(crate) backend_written_bytes: u64,
}

/// Samples of a run.
#[derive(Debug, Default)]
pub(super) struct Meter {
    pub(super) cpu: Vec<Cpu>,
    pub(super) status: Vec<Status>,
    last: BTreeMap<String, (u32, f64)>,
}

impl Meter {
    /// Takes samples until it is `over`.
    pub(super) fn run(
        cluster: &Cluster,
        services: &[String],
        (begin, interval): (Instant, Duration),
        over: impl Fn() -> bool,
    ) -> Meter {
        let mut meter = Meter {
            last: cluster.cpu(services),
            ..Meter::default()
        };
        for number in 1_u32.. {
            let due = begin + interval * number;
            while Instant::now() < due && !over() {
                let wait = due.saturating_duration_since(Instant::now());
                std::thread::sleep(wait.min(Duration::from_millis(20)));
            }
            meter.sample(cluster, services, begin);
            if number % STATUS_EACH == 1 || over() {
                meter.ask(cluster, begin);
            }
            if over() {
                break;
            }
        }
        meter
    }

    fn sample(&mut self, cluster: &Cluster, services: &[String], begin: Instant) {
        let now = cluster.cpu(services);
        let mut seconds = BTreeMap::new();
        for (service, (pid, used)) in &now {
            // One that was started meanwhile has used all that it has.
            let before = self.last.get(service).filter(|(known, _)| known == pid);
            seconds.insert(service.clone(), used - before.map_or(0.0, |(_, used)| *used));
        }
        self.cpu.push(Cpu {
            at_s: begin.elapsed().as_secs_f64(),
            seconds,
        });
        self.last.extend(now);
    }

    fn ask(&mut self, cluster: &Cluster, begin: Instant) {
        let Ok(said) = cluster.sconce.status() else {
            return;
        };
        let sum = |list: &str, figure: &str| -> u64 {
            let all = said[list].as_array().into_iter().flatten();
            all.filter_map(|one: &Value| one[figure].as_u64()).sum()
        };
        self.status.push(Status {
            at_s: begin.elapsed().as_secs_f64(),
            unstored_bytes: sum("nodes", "buffer_unstored_bytes"),
            backend_requests: sum("backends", "requests"),
            backend_written_bytes: sum("backends", "written_bytes"),
        });
    }
}
