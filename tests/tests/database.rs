//! Proof 4: a database in a guest goes on and keeps what it committed, whatever is lost, moved or swapped under its disk, and when
//! the guest's own power is cut.

use std::collections::VecDeque;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use sconce_tests::cluster::{Cluster, SOON, Service};
use sconce_tests::guest::{BOOT, Guest};
use sconce_tests::image::{DATABASE_INIT, DebianImage};
use sconce_tests::machines::{Machines, NODES};
use sconce_tests::{client, full, rounds, seed, wait};

const VOLUME: &str = "/database.raw";
/// So long a guest's driver waits for a disk's answer before it counts as an error (SCSI; that of virtio waits for ever).
const PATIENCE: Duration = Duration::from_secs(30);
/// Commits between two faults, and before the first: more than one checkpoint of the database's log.
const COMMITS: u64 = 25;
/// What a kernel says of a disk that failed it.
const ALARMS: [&str; 9] = [
    "I/O error",
    "EXT4-fs error",
    "EXT4-fs warning",
    "Aborting journal",
    "Remounting filesystem read-only",
    "lost async page write",
    "critical target error",
    "blocked for more than",
    "Kernel panic",
];

/// What happens under the guest's disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// The owner is killed, and its write buffer is lost; its twin takes over.
    OwnerLost,
    /// A planned move.
    Moved,
    /// The fs-router hands over to its next process.
    FsRouterSwapped,
    /// The fs-router is killed and started again: the guest's qemu connects anew.
    FsRouterKilled,
    /// The storage-router is stopped in order and started again, and the registry with it.
    StorageRouterSwapped,
    /// Likewise, killed.
    StorageRouterKilled,
    /// qemu is killed, and the guest is booted again.
    PowerCut,
}

/// Those that are left out of a short run come last: fio verifies a disk through each of them in other tests.
const FAULTS: [Fault; 7] = [
    Fault::OwnerLost,
    Fault::FsRouterKilled,
    Fault::StorageRouterSwapped,
    Fault::PowerCut,
    Fault::Moved,
    Fault::FsRouterSwapped,
    Fault::StorageRouterKilled,
];
const FAULTS_SHORT: usize = 4;

/// Of a volume-router. Beside other tests one that it renews in time although it waits for the machine, and still short of what a guest's
/// driver waits.
fn lease() -> Duration {
    Duration::from_secs(if full() { 2 } else { 5 })
}

/// A line of the guest's console.
enum Heard {
    /// It reports a commit, and that is noted.
    Commit,
    Other(String),
}

/// A guest that commits entries with ascending numbers (tests/guest/database).
struct Database {
    image: DebianImage,
    /// Its disk, for qemu: a client that connects again.
    disk: String,
    guest: Guest,
    /// Lines of its console that were read. What it says of its database counts for what it had reported until then: later lines are
    /// read after that is judged.
    known: usize,
    /// Those of them that report no commit and were not asked for yet.
    others: VecDeque<String>,
    /// The last commit that it has reported.
    last: u64,
    /// When, and the longest time between two since the last fault.
    reported: Instant,
    pause: Duration,
}

impl Database {
    fn boot(image: DebianImage, socket: &Path) -> Result<Self> {
        let disk = format!(
            "driver=raw,file.driver=nbd,file.server.type=unix,file.server.path={},file.export={VOLUME},file.reconnect-delay={}",
            socket.display(),
            SOON.as_secs()
        );
        let guest = Guest::start(&image, &disk, Some(DATABASE_INIT))?;
        let mut database = Self {
            image,
            disk,
            guest,
            known: 0,
            others: VecDeque::new(),
            last: 0,
            reported: Instant::now(),
            pause: Duration::ZERO,
        };
        database.is_whole()?;
        Ok(database)
    }

    /// The next line that it has said, if there is one.
    fn next_line(&mut self) -> Result<Option<Heard>> {
        let Some(line) = self.guest.line(self.known) else {
            return Ok(None);
        };
        self.known += 1;
        let text = line.text;
        for alarm in ALARMS {
            ensure!(!text.contains(alarm), "the guest's kernel says: {text}");
        }
        let id = text
            .strip_prefix("committed ")
            .and_then(|id| id.strip_suffix('.'));
        let Some(id) = id.and_then(|id| id.parse().ok()) else {
            return Ok(Some(Heard::Other(text)));
        };
        ensure!(id > self.last, "commit {id} is reported after {}", self.last);
        self.pause = self.pause.max(line.at - self.reported);
        (self.last, self.reported) = (id, line.at);
        Ok(Some(Heard::Commit))
    }

    /// Hears all that it has said.
    fn hear(&mut self) -> Result<()> {
        while let Some(heard) = self.next_line()? {
            if let Heard::Other(text) = heard {
                self.others.push_back(text);
            }
        }
        Ok(())
    }

    /// The next line that reports no commit, if there is one.
    fn next_other(&mut self) -> Result<Option<String>> {
        if let Some(text) = self.others.pop_front() {
            return Ok(Some(text));
        }
        while let Some(heard) = self.next_line()? {
            if let Heard::Other(text) = heard {
                return Ok(Some(text));
            }
        }
        Ok(None)
    }

    /// What it says of `key` next, as soon as it does; what it says after that is not heard yet.
    fn says(&mut self, key: &str) -> Result<String> {
        let found = wait::until(&format!("the guest to say {key}"), BOOT, || {
            while let Some(text) = self.next_other()? {
                ensure!(!text.starts_with("database: "), "the guest gives up: {text}");
                if let Some((_, said)) = text.split_once(key) {
                    return Ok(Some(said.to_owned()));
                }
            }
            Ok(None)
        });
        Ok(found.with_context(|| self.console())?.0)
    }

    /// It looks at its database, at each start and before it is switched off: nothing is wrong in it, every commit that was
    /// reported is there with its content, and no other one without its part in another table.
    fn is_whole(&mut self) -> Result<()> {
        let integrity = self.says("integrity: ")?;
        ensure!(integrity == "ok", "integrity_check: {integrity}");
        let told = self.says("entries: ")?;
        let numbers: Result<Vec<u64>, _> = told.split(' ').map(str::parse).collect();
        let Ok([count, last, accounts, wrong]) = numbers.as_deref() else {
            bail!("the guest tells of its entries: {told:?}");
        };
        ensure!(
            *last >= self.last,
            "commit {} was reported, and the last one that is there is {last}",
            self.last
        );
        ensure!(
            count == last && accounts == last && *wrong == 0,
            "of {last} commits {count} are there, the accounts have {accounts}, {wrong} have another content"
        );
        (self.last, self.reported) = (*last, Instant::now());
        Ok(())
    }

    /// Waits for commits that are made from now on.
    fn commits(&mut self) -> Result<()> {
        self.hear()?;
        // The first of them may have been on its way.
        let wanted = self.last + COMMITS;
        let what = format!("commit {wanted}");
        let committed = wait::until(&what, BOOT, || {
            self.hear()?;
            Ok((self.last >= wanted).then_some(()))
        });
        committed.with_context(|| self.console()).map(drop)
    }

    fn cut_power_and_boot(&mut self) -> Result<()> {
        self.guest.cut_power()?;
        // What it reported until then counts.
        self.hear()?;
        self.guest = Guest::start(&self.image, &self.disk, Some(DATABASE_INIT))?;
        (self.known, self.others) = (0, VecDeque::new());
        self.is_whole()
    }

    /// Has it stop, and judges its database and its kernel's log.
    fn stop(&mut self) -> Result<()> {
        self.guest.tell("stop")?;
        self.is_whole()?;
        self.guest.off(BOOT)?;
        self.hear()?;
        ensure!(
            self.others
                .iter()
                .any(|text| text.contains("kernel: ") && text.contains("EXT4-fs (vda): mounted")),
            "the guest's kernel log is not there; {}",
            self.console()
        );
        Ok(())
    }

    fn console(&self) -> String {
        format!(
            "commit {} is the last; the guest's console:\n{}",
            self.last,
            self.guest.end_of_console()
        )
    }
}

fn strike(machines: &mut Machines, database: &mut Database, fault: Fault) -> Result<()> {
    let restart = |machines: &Machines, service| {
        let before = machines.cluster.kill(service)?;
        machines.cluster.restarted(service, before)
    };
    match fault {
        Fault::OwnerLost => {
            let owner = loop {
                machines.wait_in_sync(VOLUME)?;
                let owner = machines.owner(VOLUME)?;
                if machines.lose(&owner, VOLUME)? {
                    break owner;
                }
            };
            database.commits()?;
            let next = machines.owner(VOLUME)?;
            ensure!(next != owner, "{owner} is lost and owns {VOLUME}");
            machines.replace(&owner)?;
        }
        Fault::Moved => {
            let owner = machines.owner(VOLUME)?;
            let to = NODES.iter().find(|node| **node != owner);
            let to = to.context("no other node")?;
            machines.cluster.sconce(["volume", "move", VOLUME, to])?;
            let owner = machines.owner(VOLUME)?;
            ensure!(owner == *to, "{VOLUME} was moved to {to}, and {owner} owns it");
        }
        Fault::FsRouterSwapped => machines.cluster.swap(Service::FsRouter)?,
        Fault::StorageRouterSwapped => machines.cluster.swap(Service::StorageRouter)?,
        Fault::FsRouterKilled => restart(machines, Service::FsRouter)?,
        Fault::StorageRouterKilled => restart(machines, Service::StorageRouter)?,
        Fault::PowerCut => database.cut_power_and_boot()?,
    }
    database.commits()
}

fn import(cluster: &Cluster, image: &DebianImage) -> Result<()> {
    cluster.sconce(["volume", "create", VOLUME, "--size", "1G", "--dtl", "sync"])?;
    let disk = image.disk().display().to_string();
    let uri = cluster.nbd_uri(VOLUME);
    client::qemu_img(BOOT, ["convert", "-n", "-f", "raw", "-O", "raw", &disk, &uri]).map(drop)
}

#[test]
fn a_database_loses_no_commit_whatever_happens_under_its_disk() -> Result<()> {
    let mut random = fastrand::Rng::with_seed(seed());
    let image = DebianImage::get()?;
    let mut machines = Machines::start(lease())?;
    import(&machines.cluster, &image)?;
    let mut database = Database::boot(image, &machines.cluster.nbd_socket())?;
    database.commits()?;
    for round in 0..rounds(1, 10) {
        let mut faults = FAULTS;
        if round > 0 {
            random.shuffle(&mut faults);
        }
        let some = if full() { FAULTS.len() } else { FAULTS_SHORT };
        for fault in faults.into_iter().take(some) {
            let told = || format!("round {round}, {fault:?}");
            database.pause = Duration::ZERO;
            strike(&mut machines, &mut database, fault).with_context(told)?;
            eprintln!(
                "round {round}: {fault:?}, commit {}, longest pause {:?}",
                database.last, database.pause
            );
            ensure!(
                database.pause < PATIENCE,
                "{}: the database waited for {:?}",
                told(),
                database.pause
            );
        }
    }
    database.stop()?;
    drop(database);
    if full() {
        let disk = machines.cluster.mounted(VOLUME);
        client::run(client::command("e2fsck", BOOT).args(["-f", "-n"]).arg(disk))?;
    }
    machines.finish()
}
