//! `volume-router --config FILE`

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Parser;
use sconce_bus::{Network, ZeromqSettings};
use sconce_runtime::{Stop, crash, pidfile};
use sconce_tracing::telemetry;
use sconce_volume_router::{Components, Settings, block_on, run};

/// Owns volumes: takes their writes into a local buffer, keeps their maps, stores them on the back ends.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// The settings file.
    #[arg(long)]
    config: PathBuf,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let settings: Settings = sconce_runtime::settings::load(&arguments.config)?;
    sconce_tracing::init(&settings.log)?;
    let _telemetry = telemetry::start(
        &settings.telemetry,
        telemetry::Identity {
            service: "volume-router",
            node: settings.node.name.as_str(),
            version: env!("CARGO_PKG_VERSION"),
        },
    )?;
    crash::arm_from_env()?;
    let named = || format!("settings file {}", arguments.config.display());
    settings.check().with_context(named)?;
    let _pid = pidfile::write(&settings.node.run_dir.join("volume-router.pid"))?;
    block_on(start(settings))?
}

async fn start(settings: Settings) -> anyhow::Result<()> {
    let zeromq = ZeromqSettings {
        run_dir: settings.node.run_dir.join("bus"),
    };
    let network = match settings.tls.clone() {
        Some(tls) => Network::zeromq_and_tls(zeromq, tls),
        None => Network::zeromq(zeromq),
    };
    let components = Components::of(&settings, network, Stop::on_signals()?).await?;
    Ok(run(settings, components).await?)
}
