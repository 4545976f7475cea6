//! `fs-router --config FILE`

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Parser;
use sconce_bus::{Hello, Network, Protocol, Role, Version, ZeromqSettings};
use sconce_fs_router::service::{self, Components};
use sconce_fs_router::settings::Settings;
use sconce_registry::{Registry, RegistrySettings};
use sconce_runtime::{Clock, DescriptorStore, Stop, crash, pidfile};
use sconce_tracing::telemetry;

/// Shows a pool's volumes to clients: over NBD, and as files.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// The settings file.
    #[arg(long)]
    config: PathBuf,
}

fn main() -> anyhow::Result<()> {
    // Before anything else is opened.
    let descriptors = DescriptorStore::from_env().context("the descriptors that the last process left")?;
    let arguments = Arguments::parse();
    let settings: Settings = sconce_runtime::settings::load(&arguments.config)?;
    anyhow::ensure!(
        !matches!(settings.registry, RegistrySettings::Sled { .. }),
        "settings file {}: [registry] home is \"sled\", which a storage-router hosts; \
         right here would be \"remote\" with its endpoint, or \"etcd\"",
        arguments.config.display()
    );
    sconce_tracing::init(&settings.log)?;
    let _telemetry = telemetry::start(
        &settings.telemetry,
        telemetry::Identity {
            service: "fs-router",
            node: settings.node.name.as_str(),
            version: env!("CARGO_PKG_VERSION"),
        },
    )?;
    crash::arm_from_env()?;
    let _pid = pidfile::write(&settings.node.run_dir.join("fs-router.pid"))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, start(settings, descriptors))
}

async fn start(settings: Settings, descriptors: DescriptorStore) -> anyhow::Result<()> {
    let stop = match descriptors.is_there() {
        true => Stop::or_hand_over_on_signals()?,
        false => Stop::on_signals()?,
    };
    let zeromq = ZeromqSettings {
        run_dir: settings.node.run_dir.clone(),
    };
    let network = match settings.tls.clone() {
        Some(tls) => Network::zeromq_and_tls(zeromq, tls),
        None => Network::zeromq(zeromq),
    };
    let hello = Hello {
        version: Version::CURRENT,
        protocol: Protocol::Registry,
        role: Role::FsRouter,
        node: settings.node.name.clone(),
    };
    let registry = Registry::open(&settings.registry, &network, hello)
        .await
        .context("registry")?;
    let components = Components {
        network,
        registry,
        clock: Clock::system(),
        descriptors,
    };
    Ok(service::run(settings, components, stop).await?)
}
