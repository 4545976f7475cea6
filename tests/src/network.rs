//! Networks of machines on this one: each machine has a network namespace and an address of its own, on one switch that loses
//! what it is told to lose.
//!
//! Keeps: the namespaces, each held by a process of its own, and what is lost between them.
//! Order: what is lost changes as a whole: no packet meets half of a change.
//! Crash: the holders end with the test, and the namespaces with their holders; nothing is left to remove.
//! Knows no service. Takes root, and a kernel with network namespaces, bridges and nftables.

use std::ffi::OsStr;
use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::{client, wait};

/// A bound for what takes milliseconds.
const STEP: Duration = Duration::from_secs(30);
/// The longest name that Linux gives a network interface.
const NAME_MAX: usize = 15;
/// The set of pairs between which everything is lost, and how nftables is told of it.
const LOST_SET: &str = "lost";
const LOST: &str = "bridge switch lost";

/// What of a machine's traffic is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// All of it.
    Both,
    /// What it sends: it hears everybody, and nobody hears it.
    From,
    /// What is sent to it: everybody hears it, and it hears nobody.
    To,
}

/// The switch and the machines on it.
#[derive(Debug)]
pub struct Network {
    switch: Namespace,
    machines: Vec<(String, Namespace)>,
    /// What is lost between which two, in this direction.
    lost: Vec<(String, String)>,
}

impl Network {
    /// A switch that nothing is connected to.
    ///
    /// # Errors
    /// Not root, or the kernel has no network namespaces, bridges or nftables.
    pub fn new() -> Result<Self> {
        let switch = Namespace::new().context("a network namespace for the switch")?;
        switch.script(&format!(
            "ip link add name switch type bridge && ip link set switch up && \
             nft 'table bridge switch {{ \
                set {LOST_SET} {{ type ifname . ifname; }}; \
                chain forward {{ type filter hook forward priority 0; iifname . oifname @{LOST_SET} drop; }}; }}'"
        ))?;
        Ok(Self {
            switch,
            machines: Vec::new(),
            lost: Vec::new(),
        })
    }

    /// Connects a machine; gives its address.
    ///
    /// # Errors
    /// The name is none that a network interface can have, or the kernel refuses.
    pub fn add(&mut self, name: &str) -> Result<Ipv4Addr> {
        ensure!(
            name.len() <= NAME_MAX,
            "machine {name:?} needs a name of at most {NAME_MAX} bytes"
        );
        let address = Ipv4Addr::new(10, 77, 0, u8::try_from(self.machines.len() + 1)?);
        let machine =
            Namespace::new().with_context(|| format!("a network namespace for the machine {name}"))?;
        self.switch.script(&format!(
            "ip link add name {name} type veth peer name net netns {} && ip link set dev {name} master switch up",
            machine.holder.id()
        ))?;
        machine.script(&format!(
            "ip link set lo up && ip address add {address}/24 broadcast + dev net && ip link set net up"
        ))?;
        self.machines.push((name.to_owned(), machine));
        Ok(address)
    }

    /// `program`, to run on this machine.
    ///
    /// # Errors
    /// There is no such machine.
    pub fn command(&self, machine: &str, program: impl AsRef<OsStr>) -> Result<Command> {
        let found = self.machines.iter().find(|(name, _)| name == machine);
        let (_, namespace) = found.with_context(|| format!("there is no machine {machine}"))?;
        Ok(namespace.command(program))
    }

    /// From now on what `from` sends to `to` is lost.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn lose(&mut self, from: &str, to: &str) -> Result<()> {
        self.lost.push((from.to_owned(), to.to_owned()));
        self.tell_switch()
    }

    /// Cuts a machine off from all others.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn cut(&mut self, machine: &str, cut: Cut) -> Result<()> {
        for (other, _) in self.machines.iter().filter(|(other, _)| other != machine) {
            if cut != Cut::To {
                self.lost.push((machine.to_owned(), other.clone()));
            }
            if cut != Cut::From {
                self.lost.push((other.clone(), machine.to_owned()));
            }
        }
        self.tell_switch()
    }

    /// Cuts some machines off from all others, and not from each other.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn split(&mut self, together: &[&str]) -> Result<()> {
        let is_in = |name: &String| together.contains(&name.as_str());
        let names: Vec<&String> = self.machines.iter().map(|(name, _)| name).collect();
        let across = names
            .iter()
            .flat_map(|from| names.iter().map(move |to| (*from, *to)));
        let across = across.filter(|(from, to)| is_in(from) != is_in(to));
        let across: Vec<_> = across.map(|(from, to)| (from.clone(), to.clone())).collect();
        self.lost.extend(across);
        self.tell_switch()
    }

    /// Nothing is lost any more.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn mend(&mut self) -> Result<()> {
        self.lost.clear();
        self.tell_switch()
    }

    fn tell_switch(&self) -> Result<()> {
        let pairs: Vec<String> = self
            .lost
            .iter()
            .map(|(from, to)| format!("\"{from}\" . \"{to}\""))
            .collect();
        let add = match pairs.is_empty() {
            true => String::new(),
            false => format!("; add element {LOST} {{ {} }}", pairs.join(", ")),
        };
        let changes = format!("flush set {LOST}{add}");
        client::run(
            self.switch
                .command("timeout")
                .arg("30")
                .arg("nft")
                .arg(changes)
                .stdin(Stdio::null()),
        )
        .map(drop)
    }
}

/// A network namespace, there for as long as a process that does nothing holds it.
#[derive(Debug)]
struct Namespace {
    holder: Child,
}

impl Namespace {
    fn new() -> Result<Self> {
        let holder = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "unshare", "--net", "sleep", "infinity"])
            .stdin(Stdio::null())
            .spawn()
            .context("setpriv and unshare are of Debian's util-linux")?;
        let mut namespace = Self { holder };
        let ours = fs::read_link("/proc/self/ns/net")?;
        wait::until("a network namespace (root only)", STEP, || {
            if let Some(status) = namespace.holder.try_wait()? {
                anyhow::bail!("unshare --net: {status}; network namespaces take root");
            }
            Ok(fs::read_link(namespace.path())
                .is_ok_and(|its| its != ours)
                .then_some(()))
        })?;
        Ok(namespace)
    }

    fn path(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.holder.id()).into()
    }

    fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", self.path().display()))
            .arg(program);
        command
    }

    fn script(&self, script: &str) -> Result<()> {
        client::run(
            self.command("timeout")
                .args(["30", "sh", "-c", script])
                .stdin(Stdio::null()),
        )
        .context("iproute2 and nftables are Debian packages")
        .map(drop)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // One that ended by itself cannot be killed any more.
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    /// Whether what `from` sends reaches `to`: a datagram is sent to all over and over (an address would have to be asked for, which
    /// takes both directions), until it is heard or time is up.
    fn reaches(network: &Network, from: &str, to: &str, within: &str) -> bool {
        let listen = "import socket, sys; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('', 7)); \
                      s.settimeout(float(sys.argv[1])); print('up', flush=True); s.recv(9); print('heard', flush=True)";
        let mut listener = network
            .command(to, "python3")
            .unwrap()
            .args(["-c", listen, within])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut output = listener.stdout.take().unwrap();
        let mut up = [0; 3];
        output.read_exact(&mut up).unwrap();
        let send = "import socket, time; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
                    s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)\n\
                    while True:\n  s.sendto(b'x', ('10.77.0.255', 7)); time.sleep(0.01)";
        let mut sender = network
            .command(from, "python3")
            .unwrap()
            .args(["-c", send])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut told = String::new();
        output.read_to_string(&mut told).unwrap();
        sender.kill().unwrap();
        sender.wait().unwrap();
        listener.wait().unwrap();
        told.contains("heard")
    }

    #[test]
    fn a_switch_loses_what_it_is_told_to_and_nothing_else_as_root() {
        let mut network = Network::new().unwrap();
        for name in ["a", "b", "c"] {
            network.add(name).unwrap();
        }
        let judge = |network: &Network, expected: [bool; 3], told: &str| {
            for ((from, to), expected) in [("a", "b"), ("b", "a"), ("b", "c")].into_iter().zip(expected) {
                // What comes is waited for; what does not come would take no time on a switch.
                let within = if expected { "20" } else { "0.5" };
                assert_eq!(
                    reaches(network, from, to, within),
                    expected,
                    "{told}: {from} to {to}"
                );
            }
        };
        judge(&network, [true, true, true], "nothing lost");
        for (cut, expected) in [
            (Cut::Both, [false, false, true]),
            (Cut::From, [false, true, true]),
            (Cut::To, [true, false, true]),
        ] {
            network.cut("a", cut).unwrap();
            judge(&network, expected, &format!("{cut:?}"));
            network.mend().unwrap();
        }
        network.lose("b", "c").unwrap();
        judge(&network, [true, true, false], "one direction between two");
        network.cut("a", Cut::From).unwrap();
        judge(&network, [false, true, false], "and one machine unheard");
    }
}
