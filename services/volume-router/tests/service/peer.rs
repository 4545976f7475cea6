//! Another volume-router of a cluster's pool, in a process of its own.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use sconce_schemas::records::NodeRecord;

use crate::cluster::{Cluster, until};

pub(crate) struct Peer {
    router: Child,
    pub(crate) name: &'static str,
    log: PathBuf,
}

impl Peer {
    /// Starts it, and waits until the registry knows this run of it.
    pub(crate) async fn start(cluster: &Cluster, name: &'static str, settings: &str) -> Self {
        Self::start_with(cluster, name, settings, &[]).await
    }

    /// The same with variables of the environment.
    pub(crate) async fn start_with(
        cluster: &Cluster,
        name: &'static str,
        settings: &str,
        environment: &[(&str, &str)],
    ) -> Self {
        Self::begin(cluster, (name, name), settings, environment).await
    }

    /// The same in a failure domain that may be others' too.
    pub(crate) async fn start_in(
        cluster: &Cluster,
        domain: &str,
        name: &'static str,
        settings: &str,
    ) -> Self {
        Self::begin(cluster, (name, domain), settings, &[]).await
    }

    async fn begin(
        cluster: &Cluster,
        (name, domain): (&'static str, &str),
        settings: &str,
        environment: &[(&str, &str)],
    ) -> Self {
        // A volume-router's process is the only one of its directory.
        let (run, log) = (cluster.path(name), cluster.path(&format!("{name}.log")));
        let text = format!(
            "[node]\nname = \"{name}\"\nrun_dir = \"{run}\"\nendpoints = [\"{endpoint}\"]\nhost = \"{domain}\"\n\
             [registry]\nhome = \"remote\"\nendpoint = \"{registry}\"\n\
             [log]\nlevel = \"debug\"\n\
             [buffer]\ndir = \"{run}/buffer\"\nsize = \"64 MiB\"\n{settings}",
            run = run.display(),
            endpoint = cluster.endpoint(name),
            registry = cluster.endpoint("registry"),
        );
        std::fs::create_dir_all(&run).unwrap();
        let path = cluster.path(&format!("{name}.toml"));
        std::fs::write(&path, text).unwrap();
        let to_log = std::fs::File::create(&log).unwrap();
        let router = Command::new(env!("CARGO_BIN_EXE_volume-router"))
            .arg("--config")
            .arg(path)
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(to_log.try_clone().unwrap())
            .stderr(to_log)
            .spawn()
            .unwrap();
        let peer = Self { router, name, log };
        let registry = cluster.registry().await;
        until("the peer to be announced", async || {
            let nodes = registry.nodes().await.ok()?;
            let is_it = |node: &NodeRecord| node.name.as_str() == name && node.pid == peer.router.id();
            nodes.iter().any(is_it).then_some(())
        })
        .await;
        peer
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) {
        self.router.kill().unwrap();
        self.router.wait().unwrap();
    }

    pub(crate) fn signal(&self, name: &str) {
        let pid = self.router.id().to_string();
        let sent = Command::new("kill").args([name, &pid]).status();
        assert!(sent.unwrap().success());
    }

    /// Stops all its threads. On a busy machine some run on for a while after the signal.
    pub(crate) async fn hold(&self) {
        self.signal("-STOP");
        let tasks = format!("/proc/{}/task", self.router.id());
        let is_held = |task: std::io::Result<std::fs::DirEntry>| {
            let stat = std::fs::read_to_string(task.unwrap().path().join("stat")).unwrap_or_default();
            stat.rsplit_once(") ")
                .is_none_or(|(_, state)| state.starts_with('T'))
        };
        until("all threads to be stopped", async || {
            std::fs::read_dir(&tasks).unwrap().all(is_held).then_some(())
        })
        .await;
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        self.router.try_wait().unwrap().is_some()
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It may be over already.
        let _ = self.router.kill();
        let _ = self.router.wait();
        if std::thread::panicking() {
            eprintln!("{}:\n{}", self.name, self.log());
        }
    }
}
