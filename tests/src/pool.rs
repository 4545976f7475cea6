//! A pool of machines on this one: three etcd, two storage-routers, three volume-routers, two fs-routers, each a process with
//! an address, settings, certificates and disks of its own, on a network that can be cut: what compose/cluster.yaml is, without
//! Docker.
//!
//! Keeps: the network, the machines' directories and processes.
//! Order: etcd first; settings are written before a process is started, and may be edited until then.
//! Crash: dropped without `finish` (the test failed), everything is killed and the ends of the logs are printed.
//! Knows the services as processes, and asks them with the `sconce` command of a machine that is never cut off.

use std::ffi::OsStr;
use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tempfile::TempDir;

use crate::cluster::{Cluster, SOON};
use crate::logs::{self, Announced};
use crate::network::Network;
use crate::{checked, client, wait};

/// The machine that asks, and runs nothing.
const OPERATOR: &str = "operator";
/// Where services listen.
const PORT: u16 = 7300;
/// What a service says that ends because it finds no registry: it is to be started again.
const NO_ETCD: &str = "no etcd answers";
/// How long an orderly stop may take.
const STOP: Duration = Duration::from_secs(60);

/// What a machine runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A member of the registry.
    Etcd,
    /// Back ends.
    StorageRouter,
    /// Volumes, write buffers, twins.
    VolumeRouter,
    /// Front ends.
    FsRouter,
}

impl Role {
    /// Its binary.
    const fn binary(self) -> &'static str {
        match self {
            Role::Etcd => "etcd",
            Role::StorageRouter => "storage-router",
            Role::VolumeRouter => "volume-router",
            Role::FsRouter => "fs-router",
        }
    }
}

/// The machines of every pool, in the order in which they start.
pub const MACHINES: [(&str, Role); 10] = [
    ("etcd-1", Role::Etcd),
    ("etcd-2", Role::Etcd),
    ("etcd-3", Role::Etcd),
    ("sr-1", Role::StorageRouter),
    ("sr-2", Role::StorageRouter),
    ("vr-1", Role::VolumeRouter),
    ("vr-2", Role::VolumeRouter),
    ("vr-3", Role::VolumeRouter),
    ("fr-1", Role::FsRouter),
    ("fr-2", Role::FsRouter),
];

/// A machine of the pool.
#[derive(Debug)]
struct Machine {
    name: &'static str,
    role: Role,
    address: Ipv4Addr,
    process: Option<Child>,
}

/// A running pool.
#[derive(Debug)]
pub struct Pool {
    dir: TempDir,
    network: Network,
    machines: Vec<Machine>,
    announced: Announced,
    finished: bool,
}

impl Pool {
    /// Starts one whose volume-routers have leases of `lease`.
    ///
    /// # Errors
    /// Not root, or something does not come up.
    pub fn start(lease: Duration) -> Result<Self> {
        // Short, because a unix socket's path has at most 107 bytes.
        let dir = tempfile::Builder::new().prefix("sconce-").tempdir()?;
        let mut network = Network::new()?;
        let mut machines = Vec::new();
        for (name, role) in MACHINES {
            let address = network.add(name)?;
            machines.push(Machine {
                name,
                role,
                address,
                process: None,
            });
        }
        let operator = network.add(OPERATOR)?;
        let mut pool = Self {
            dir,
            network,
            machines,
            announced: Announced::default(),
            finished: false,
        };
        pool.issue(OPERATOR, operator)?;
        for at in 0..pool.machines.len() {
            pool.prepare(at, lease)?;
        }
        fs::write(
            pool.path("sconce.toml"),
            format!(
                "run_dir = \"{}\"\nnode = \"{OPERATOR}\"\n\n{}",
                pool.dir.path().display(),
                pool.peers(OPERATOR)
            ),
        )?;
        for name in Self::names(Role::Etcd) {
            pool.start_machine(name)?;
        }
        wait::until("etcd to answer", SOON, || {
            let told = client::output(pool.command()?.arg("status"))?;
            let told = String::from_utf8_lossy(&told.stderr).into_owned();
            Ok((!told.contains(NO_ETCD)).then_some(()))
        })?;
        for (name, role) in MACHINES {
            if role != Role::Etcd {
                pool.start_machine(name)?;
            }
        }
        pool.ready()?;
        Ok(pool)
    }

    /// A path in the pool's directory. A machine's own is below its name.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The directory that all storage-routers store in.
    #[must_use]
    pub fn backend(&self) -> PathBuf {
        self.path("backend")
    }

    /// An fs-router's NBD socket. A unix socket is reached whatever becomes of the network.
    #[must_use]
    pub fn nbd_socket(&self, fs_router: &str) -> PathBuf {
        self.path(fs_router).join("nbd.sock")
    }

    /// What can be cut.
    pub fn network(&mut self) -> &mut Network {
        &mut self.network
    }

    /// Log lines that contain `text` are expected from now on.
    pub fn announce(&mut self, text: &'static str) {
        self.announced.add(text);
    }

    /// The names of all machines that run this.
    pub fn names(role: Role) -> impl Iterator<Item = &'static str> {
        let of_role = MACHINES.into_iter().filter(move |(_, its)| *its == role);
        of_role.map(|(name, _)| name)
    }

    /// Starts a machine's process.
    ///
    /// # Errors
    /// It runs, or its binary is not there.
    pub fn start_machine(&mut self, name: &str) -> Result<()> {
        let at = self.at(name)?;
        let machine = &self.machines[at];
        ensure!(machine.process.is_none(), "{name} runs");
        // etcd's lines are in a form of its own, and judged by nobody.
        let ending = if machine.role == Role::Etcd { "out" } else { "log" };
        let mut log = fs::OpenOptions::new();
        let log = log
            .create(true)
            .append(true)
            .open(self.path(&format!("{name}.{ending}")))?;
        // Whatever becomes of the test, nothing stays.
        let mut command = self.network.command(name, "setpriv")?;
        command.args(["--pdeathsig", "KILL"]);
        match machine.role {
            Role::Etcd => command.arg("etcd").args(self.etcd_arguments(machine)),
            role => command
                .arg(Cluster::binaries()?.join(role.binary()))
                .arg("--config")
                .arg(self.path(&format!("{name}.toml"))),
        };
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let process = command.spawn().with_context(|| {
            format!("starting {name}; is its Debian package installed? scripts/packages test")
        })?;
        self.machines[at].process = Some(process);
        Ok(())
    }

    /// `kill -9`; it stays down.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill(&mut self, name: &str) -> Result<()> {
        let at = self.at(name)?;
        let process = self.machines[at].process.take();
        let mut process = process.with_context(|| format!("{name} does not run"))?;
        process.kill()?;
        process.wait()?;
        Ok(())
    }

    /// Sends a signal (`STOP`, `CONT`, `TERM`) to a machine's process.
    ///
    /// # Errors
    /// It does not run.
    pub fn signal(&self, name: &str, signal: &str) -> Result<()> {
        let process = self.machines[self.at(name)?].process.as_ref();
        let id = process.with_context(|| format!("{name} does not run"))?.id();
        client::run(client::command("kill", SOON).args([format!("-{signal}"), id.to_string()])).map(drop)
    }

    /// A volume-router's disk is gone. Its process has to be down.
    ///
    /// # Errors
    /// It runs, or has no write buffer.
    pub fn wipe(&self, volume_router: &str) -> Result<()> {
        let machine = &self.machines[self.at(volume_router)?];
        ensure!(machine.process.is_none(), "{volume_router} runs");
        let buffer = self.path(volume_router).join("buffer");
        fs::remove_dir_all(&buffer).with_context(|| format!("removing {}", buffer.display()))
    }

    /// Starts the services again that found no registry at their start, as a supervisor does.
    ///
    /// # Errors
    /// A process ended for another reason.
    pub fn tend(&mut self) -> Result<()> {
        let mut again = Vec::new();
        for machine in &mut self.machines {
            let Some(process) = &mut machine.process else {
                continue;
            };
            if let Some(status) = process.try_wait()? {
                let log = self.dir.path().join(format!("{}.log", machine.name));
                let log = fs::read_to_string(log).unwrap_or_default();
                let last = log.lines().last().unwrap_or_default();
                ensure!(
                    last.contains(NO_ETCD),
                    "{} ended by itself with {status}: {last}",
                    machine.name
                );
                machine.process = None;
                again.push(machine.name);
            }
        }
        again.into_iter().try_for_each(|name| self.start_machine(name))
    }

    /// Waits until every machine's service is in the registry, and the front ends answer.
    ///
    /// # Errors
    /// It is not within a minute.
    pub fn ready(&mut self) -> Result<()> {
        wait::until("all services to be in the registry", SOON, || {
            self.tend()?;
            // Its exit code is about what is at risk.
            let told = client::output(self.command()?.args(["status", "--output", "json"]))?;
            let told = String::from_utf8_lossy(&told.stdout).into_owned();
            let missing = self.machines.iter().find(|machine| {
                machine.role != Role::Etcd && !told.contains(&format!("\"{}\"", machine.name))
            });
            let listening = Self::names(Role::FsRouter).all(|name| self.nbd_socket(name).exists());
            Ok((missing.is_none() && listening).then_some(()))
        })
        .map(drop)
    }

    /// The `sconce` command, on the operator's machine.
    ///
    /// # Errors
    /// The binaries are not built.
    pub fn command(&self) -> Result<Command> {
        let mut command = self.network.command(OPERATOR, "timeout")?;
        command
            .args(["--kill-after=5", "120"])
            .arg(Cluster::binaries()?.join("sconce"))
            .arg("--cluster")
            .arg(self.path("sconce.toml"))
            .stdin(Stdio::null());
        Ok(command)
    }

    /// Runs the `sconce` command and returns its output.
    ///
    /// # Errors
    /// It fails; with what it said.
    pub fn sconce<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(&self, arguments: I) -> Result<String> {
        client::run(self.command()?.args(arguments))
    }

    /// A volume's record, as `sconce volume show` has it.
    ///
    /// # Errors
    /// The command fails, or prints no JSON.
    pub fn show(&self, volume: &str) -> Result<Value> {
        let text = self.sconce(["volume", "show", volume, "--output", "json"])?;
        serde_json::from_str(&text).with_context(|| format!("sconce volume show printed {text:?}"))
    }

    /// Ends the test: an orderly stop, the volumes are proved consistent down to the last cluster, the logs are judged.
    ///
    /// # Errors
    /// The stop fails, something is not consistent, or the logs hold what was not announced.
    pub fn finish(mut self) -> Result<()> {
        self.tend()?;
        for role in [Role::FsRouter, Role::VolumeRouter, Role::StorageRouter] {
            self.stop(role)?;
        }
        checked::consistent(&mut checked::check_command(self.command()?, &self.backend()))?;
        logs::judge(self.dir.path(), &self.announced)?;
        self.finished = true;
        Ok(())
    }

    /// Stops all machines of a role in order.
    fn stop(&mut self, role: Role) -> Result<()> {
        for name in Self::names(role) {
            self.signal(name, "TERM")?;
        }
        for machine in self.machines.iter_mut().filter(|machine| machine.role == role) {
            let name = machine.name;
            let Some(mut process) = machine.process.take() else {
                continue;
            };
            let stopped = wait::until(&format!("{name} to stop"), STOP, || Ok(process.try_wait()?));
            let Ok((status, _)) = stopped else {
                process.kill()?;
                bail!("{name} did not stop within {STOP:?}");
            };
            ensure!(status.success(), "{name} ended with {status}");
        }
        Ok(())
    }

    fn at(&self, name: &str) -> Result<usize> {
        let at = self.machines.iter().position(|machine| machine.name == name);
        at.with_context(|| format!("there is no machine {name}"))
    }

    /// A certificate for a machine, in its directory.
    fn issue(&self, name: &str, address: Ipv4Addr) -> Result<()> {
        let authority = self.path("authority");
        client::run(
            client::command(Cluster::binaries()?.join("sconce"), SOON)
                .args(["pool", "init"])
                .arg(&authority)
                .args(["--node", name, "--host", &address.to_string()]),
        )?;
        fs::rename(authority.join(name), self.path(name)).context("what sconce pool init wrote")
    }

    /// A machine's directories, certificate and settings.
    fn prepare(&self, at: usize, lease: Duration) -> Result<()> {
        let Machine {
            name, role, address, ..
        } = &self.machines[at];
        self.issue(name, *address)?;
        let own = self.path(name);
        fs::DirBuilder::new().mode(0o700).create(own.join("bus"))?;
        let own = own.display();
        let section = match role {
            Role::Etcd => return Ok(()),
            Role::StorageRouter => format!(
                "[[backends]]\nname = \"shared\"\ndir = \"{}\"\n\n\
                 [[pools]]\nname = \"default\"\nprotect = \"replica:1\"\nbackends = [\"shared\"]\n",
                self.backend().display()
            ),
            Role::VolumeRouter => format!(
                "[buffer]\ndir = \"{own}/buffer\"\nsize = \"1 GiB\"\n\n[volumes]\nlease = \"{}ms\"\n",
                lease.as_millis()
            ),
            Role::FsRouter => format!("[nbd]\nsocket = \"{own}/nbd.sock\"\n"),
        };
        let endpoints = match role {
            Role::FsRouter => String::new(),
            _ => format!("\"tls://{address}:{PORT}/{name}\""),
        };
        let node = format!(
            "[node]\nname = \"{name}\"\nhost = \"{name}\"\nrun_dir = \"{own}\"\nendpoints = [{endpoints}]\n"
        );
        let settings = format!("{node}\n{}\n{section}", self.peers(name));
        fs::write(self.path(&format!("{name}.toml")), settings)?;
        Ok(())
    }

    /// The registry and the peers, as a machine sees them.
    fn peers(&self, name: &str) -> String {
        let members = self
            .members()
            .map(|member| format!("\"https://{}:2379\"", member.address));
        let members: Vec<String> = members.collect();
        let own = self.path(name);
        let own = own.display();
        let files = format!(
            "authority = \"{own}/authority.crt\"\ncertificate = \"{own}/{name}.crt\"\nkey = \"{own}/{name}.key\"\n"
        );
        format!(
            "[registry]\nhome = \"etcd\"\nendpoints = [{}]\n\n[registry.tls]\n{files}\n[tls]\n{files}",
            members.join(", ")
        )
    }

    fn members(&self) -> impl Iterator<Item = &Machine> {
        self.machines.iter().filter(|machine| machine.role == Role::Etcd)
    }

    fn etcd_arguments(&self, machine: &Machine) -> Vec<String> {
        let (name, address) = (machine.name, machine.address);
        let own = self.path(name);
        let file = |file: &str| own.join(file).display().to_string();
        let (client, peer) = (
            format!("https://{address}:2379"),
            format!("https://{address}:2380"),
        );
        let members = self
            .members()
            .map(|member| format!("{}=https://{}:2380", member.name, member.address));
        let members: Vec<String> = members.collect();
        let (certificate, key) = (file(&format!("{name}.crt")), file(&format!("{name}.key")));
        let arguments = [
            ("name", name),
            ("data-dir", &file("data")),
            // Processes are killed here, never the machine: what is written is there without it. A disk that others keep busy for a second
            // would end leases, and elect leaders.
            ("unsafe-no-fsync", "true"),
            ("listen-client-urls", &client),
            ("advertise-client-urls", &client),
            ("listen-peer-urls", &peer),
            ("initial-advertise-peer-urls", &peer),
            ("initial-cluster", &members.join(",")),
            ("client-cert-auth", "true"),
            ("peer-client-cert-auth", "true"),
            ("trusted-ca-file", &file("authority.crt")),
            ("peer-trusted-ca-file", &file("authority.crt")),
            ("cert-file", &certificate),
            ("peer-cert-file", &certificate),
            ("key-file", &key),
            ("peer-key-file", &key),
        ];
        arguments
            .into_iter()
            .map(|(option, value)| format!("--{option}={value}"))
            .collect()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        for machine in &mut self.machines {
            if let Some(process) = &mut machine.process {
                // One that ended by itself cannot be killed any more.
                let _ = process.kill();
                let _ = process.wait();
            }
        }
        if !self.finished {
            keep_logs(self.dir.path());
            eprintln!("{}", logs::ends(self.dir.path()));
        }
    }
}

/// Where `SCONCE_KEEP` names a directory, the logs of a test that failed are copied to it.
fn keep_logs(dir: &Path) {
    let Some(keep) = std::env::var_os("SCONCE_KEEP").map(PathBuf::from) else {
        return;
    };
    // The test has failed already.
    let _ = fs::create_dir_all(&keep);
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        let is_log = path
            .extension()
            .is_some_and(|extension| extension == "log" || extension == "out");
        if is_log {
            let _ = fs::copy(&path, keep.join(entry.file_name()));
        }
    }
}
