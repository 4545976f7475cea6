//! The storage-router process: settings, logs, pid file, signals; the service itself is the library's [`run`].

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser;
use sconce_bus::{Network, ZeromqSettings};
use sconce_runtime::{Stop, crash, pidfile, settings};
use sconce_storage_router::{Components, Settings, run};
use sconce_tracing::telemetry;
use tokio::task::LocalSet;

/// Stores Sconce's objects on back ends.
#[derive(Debug, Parser)]
#[command(name = "storage-router", version)]
struct Arguments {
    /// The settings file.
    #[arg(value_name = "FILE", required_unless_present = "config")]
    settings: Option<PathBuf>,
    /// The same, by name.
    #[arg(long, value_name = "FILE", conflicts_with = "settings")]
    config: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match start(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Logs may not be set up yet.
            eprintln!("storage-router: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(arguments: &Arguments) -> anyhow::Result<()> {
    let path = arguments.settings.as_ref().or(arguments.config.as_ref());
    let settings: Settings = settings::load(path.context("no settings file")?)?;
    sconce_tracing::init(&settings.log)?;
    let _telemetry = telemetry::start(
        &settings.telemetry,
        telemetry::Identity {
            service: "storage-router",
            node: settings.node.name.as_str(),
            version: env!("CARGO_PKG_VERSION"),
        },
    )?;
    crash::arm_from_env()?;
    let run_dir = settings.node.run_dir.clone();
    let _pid_file = pidfile::write(&run_dir.join("storage-router.pid"))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    LocalSet::new().block_on(&runtime, async {
        let zeromq = ZeromqSettings { run_dir };
        let network = match settings.tls.clone() {
            Some(tls) => Network::zeromq_and_tls(zeromq, tls),
            None => Network::zeromq(zeromq),
        };
        let stop = Stop::on_signals()?;
        let components = Components { network, stop };
        run(settings, components).await
    })
}
