//! Guests: they write, discard, flush and read through an fs-router, several at a time, and remember what they were told.
//!
//! Keeps: nothing; the history does.
//! Order: each guest waits for an answer before its next question, unless it gives one up.
//! Crash: with their fs-router guests are gone, and others come.
//! Knows no owners: the fs-router's routing finds them.

use std::rc::Rc;
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use sconce_bus::Role;
use sconce_fs_router::routing::{Components, Incarnation, Limits, Orphans, Router, Volume};
use sconce_runtime::{Chance, Stop};
use sconce_schemas::wire::Refusal;
use sconce_schemas::wire::volume::IoFlags;
use sconce_schemas::{CLUSTER_BYTES, VolumeId};
use tokio::time::timeout;

use crate::history::Begun;
use crate::linear::{Value, What};
use crate::machine::{Machine, Site, node};

/// Clusters of a volume that guests use, in groups that are far enough apart for the map to have several leaves.
const CLUSTERS: u64 = 24;
const GROUP: u64 = 4;
const APART: u64 = 600;
/// Bytes of a volume.
pub(crate) const SIZE: u64 = CLUSTERS / GROUP * APART * CLUSTER_BYTES;
/// Longer than anything takes once every fault is over.
const LONG: Duration = Duration::from_secs(120);

/// Pauses are so much longer once the storm is over.
const CALMER: u64 = 8;

/// What guests do in a run.
#[derive(Debug, Clone)]
pub(crate) struct Load {
    pub(crate) volumes: Vec<VolumeId>,
    /// Guests of each volume on each fs-router.
    pub(crate) guests: u64,
    /// Longest pause between an answer and the next question.
    pub(crate) pause_ms: u64,
    /// Out of 100 operations: those that read.
    pub(crate) reads: u64,
}

/// A volume's id.
pub(crate) fn volume(number: u8) -> VolumeId {
    VolumeId([number + 1; 16])
}

fn offset(cluster: u64) -> u64 {
    (cluster / GROUP * APART + cluster % GROUP) * CLUSTER_BYTES
}

/// Runs an fs-router's routing and its guests until the run is over.
pub(crate) async fn run(machine: &Machine, site: &Rc<Site>, stop: &Stop) -> anyhow::Result<()> {
    let router = router(machine, site)?;
    let mut guests = Vec::new();
    for index in 0..site.load.volumes.len() {
        let volume = router.attach_volume(site.load.volumes[index]);
        for number in 0..site.load.guests {
            let guest = Guest {
                site: Rc::clone(site),
                name: machine.name,
                index,
                only_reads: number == 0 && site.load.reads > 0,
                volume: volume.clone(),
                chance: site.chance.borrow_mut().fork(),
            };
            guests.push(tokio::task::spawn_local(guest.live()));
        }
    }
    for guest in guests {
        guest.await?;
    }
    stop.request();
    Ok(())
}

fn router(machine: &Machine, site: &Site) -> anyhow::Result<Router> {
    let number = site.incarnations.get() + 1;
    site.incarnations.set(number);
    let incarnation = Incarnation::to_be_told();
    incarnation.tell(number);
    let components = Components {
        node: node(machine.name)?,
        role: Role::FsRouter,
        network: site.network.clone(),
        registry: site.registry_from(machine.name, Role::FsRouter)?,
        clock: machine.clock.clone(),
        limits: Limits::default(),
        orphans: Orphans::default(),
        incarnation,
        cache: None,
        counts: std::sync::Arc::default(),
    };
    Ok(Router::new(components, 0, site.chance.borrow_mut().fork()))
}

/// Reads everything once: what is there when all is over.
pub(crate) async fn look(machine: &Machine, site: &Rc<Site>) -> anyhow::Result<()> {
    let router = router(machine, site)?;
    for index in 0..site.load.volumes.len() {
        let mut guest = Guest {
            site: Rc::clone(site),
            name: machine.name,
            index,
            only_reads: true,
            volume: router.attach_volume(site.load.volumes[index]),
            chance: site.chance.borrow_mut().fork(),
        };
        for group in 0..CLUSTERS / GROUP {
            if timeout(LONG, guest.read(group * GROUP, GROUP)).await.is_err() {
                let trouble = guest.volume.trouble();
                let text = format!("volume {index} cannot be read although all is well: {trouble:?}");
                site.history.borrow_mut().fail(text);
                break;
            }
        }
    }
    Ok(())
}

struct Guest {
    site: Rc<Site>,
    name: &'static str,
    index: usize,
    /// It only reads, and waits for nothing: where writes hang, somebody still looks.
    only_reads: bool,
    volume: Volume,
    chance: Chance,
}

impl Guest {
    async fn live(mut self) {
        while !self.site.is_over.get() {
            let longest = self.site.load.pause_ms * if self.site.is_calm.get() { CALMER } else { 1 };
            let pause = self.chance.below(longest * 1000);
            tokio::time::sleep(Duration::from_micros(pause)).await;
            match self.only_reads || self.chance.one_of(3, 100) {
                // Whoever asked goes away: it happens or not, now or later.
                true => {
                    let patience = Duration::from_millis(self.chance.below(300));
                    let _ = timeout(patience, self.act()).await;
                }
                false => self.act_to_the_end().await,
            }
        }
    }

    async fn act_to_the_end(&mut self) {
        let (site, volume) = (Rc::clone(&self.site), self.volume.clone());
        let (name, index) = (self.name, self.index);
        let acting = self.act();
        tokio::pin!(acting);
        loop {
            match timeout(LONG, &mut acting).await {
                Ok(()) => return,
                // While there are faults an answer may take as long as they last.
                Err(_) if !site.is_over.get() => {}
                Err(_) => break,
            }
        }
        let trouble = volume.trouble();
        let text =
            format!("a guest of {name} is not answered by volume {index} although all is well: {trouble:?}");
        site.history.borrow_mut().fail(text);
    }

    async fn act(&mut self) {
        let count = 1 + self.chance.below(GROUP);
        let within = self.chance.below(GROUP - count + 1);
        let first = self.chance.below(CLUSTERS / GROUP) * GROUP + within;
        let drawn = self.chance.below(100);
        let reads = if self.only_reads {
            100
        } else {
            self.site.load.reads
        };
        match drawn {
            drawn if drawn < reads => self.read(first, count).await,
            98.. => self.flush().await,
            93..98 => self.discard(first, count).await,
            _ => self.write(first, count).await,
        }
    }

    async fn read(&mut self, first: u64, count: u64) {
        let begun = self.begin(first, &vec![What::Read(0); usize::try_from(count).unwrap_or(1)]);
        let found = self.volume.read(offset(first), count * CLUSTER_BYTES).await;
        let Some(found) = self.answered(found) else { return };
        let bytes = found.into_bytes();
        let cluster = usize::try_from(CLUSTER_BYTES).unwrap_or(usize::MAX);
        for (begun, bytes) in begun.into_iter().zip(bytes.chunks(cluster)) {
            match value_of(bytes) {
                Some(value) => self.site.history.borrow_mut().end(begun, Some(value)),
                None => {
                    let text = format!(
                        "volume {}: a read found a cluster that no write left so: {begun:?}",
                        self.index
                    );
                    self.site.history.borrow_mut().fail(text);
                }
            }
        }
    }

    async fn write(&mut self, first: u64, count: u64) {
        let values: Vec<Value> = (0..count)
            .map(|_| self.site.history.borrow_mut().fresh())
            .collect();
        let whats: Vec<What> = values.iter().copied().map(What::Write).collect();
        let begun = self.begin(first, &whats);
        let flags = match self.chance.one_of(1, 20) {
            true => IoFlags(IoFlags::FUA),
            false => IoFlags(0),
        };
        let written = self.volume.write(offset(first), bytes_of(&values), flags).await;
        if self.answered(written).is_some() {
            begun
                .into_iter()
                .for_each(|begun| self.site.history.borrow_mut().end(begun, None));
        }
    }

    async fn discard(&mut self, first: u64, count: u64) {
        let begun = self.begin(first, &vec![What::Write(0); usize::try_from(count).unwrap_or(1)]);
        let discarded = self
            .volume
            .discard(offset(first), count * CLUSTER_BYTES, IoFlags(0))
            .await;
        if self.answered(discarded).is_some() {
            begun
                .into_iter()
                .for_each(|begun| self.site.history.borrow_mut().end(begun, None));
        }
    }

    async fn flush(&mut self) {
        let flushed = self.volume.flush().await;
        self.answered(flushed);
    }

    fn begin(&self, first: u64, whats: &[What]) -> Vec<Begun> {
        let mut history = self.site.history.borrow_mut();
        let begin = |(what, cluster): (&What, u64)| history.begin((self.index, cluster), *what);
        whats.iter().zip(first..).map(begin).collect()
    }

    /// A guest sees a pause, never an error.
    fn answered<T>(&self, answer: Result<T, Refusal>) -> Option<T> {
        answer
            .inspect_err(|refusal| {
                let text = format!(
                    "a guest of {} got an error from volume {}: {refusal}",
                    self.name, self.index
                );
                self.site.history.borrow_mut().fail(text);
            })
            .ok()
    }
}

fn bytes_of(values: &[Value]) -> Bytes {
    let words = usize::try_from(CLUSTER_BYTES / 8).unwrap_or(0);
    let mut bytes = BytesMut::with_capacity(values.len() * words * 8);
    for value in values {
        (0..words).for_each(|_| bytes.put_u64_le(*value));
    }
    bytes.freeze()
}

/// The value that all of a cluster is.
fn value_of(bytes: &[u8]) -> Option<Value> {
    let word = bytes.first_chunk::<8>()?;
    let is_whole = bytes.chunks(8).all(|other| other == word);
    is_whole.then(|| Value::from_le_bytes(*word))
}
