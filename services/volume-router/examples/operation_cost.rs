//! What an operation costs at the owner: a volume-router in this process, reached over the real bus, without a back
//! end (the write buffer takes it all).
//!
//!     cargo run --release -p sconce-volume-router --example operation_cost -- DIR [SECONDS]
//!
//! DIR is on the disk to be measured; a directory is made and removed there.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use sconce_bus::{ClientEvent, Endpoint, Hello, Network, Protocol, Role, Version, ZeromqSettings, connect};
use sconce_registry::Registry;
use sconce_runtime::{Clock, Stop};
use sconce_schemas::records::{VolumeRecord, keys};
use sconce_schemas::wire::volume::{
    IoCode, IoFlags, IoRequest, VolumeControl, VolumeControlReply, VolumeReply, VolumeRequest,
};
use sconce_schemas::{ScoSize, SessionId, VolumeId, VolumeSize};
use sconce_volume_router::device::SystemDisk;
use sconce_volume_router::{Components, Settings};

const NODE: &str = "volume-router";
const SIZE: u64 = 1 << 30;
const BLOCK: u64 = 4096;
const VOLUME: VolumeId = VolumeId([1; 16]);

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let dir = arguments.next().context("where? operation_cost DIR [SECONDS]")?;
    let seconds: u64 = arguments.next().map_or(Ok(3), |text| text.parse())?;
    let dir = tempfile::tempdir_in(dir)?;
    let network = Network::zeromq(ZeromqSettings {
        run_dir: dir.path().to_owned(),
    });
    let (registry, stop) = (Registry::memory(), Stop::new());
    let settings = settings(dir.path())?;
    let components = Components {
        network: network.clone(),
        registry: registry.clone(),
        clock: Clock::system(),
        disk: Arc::new(SystemDisk),
        stop: stop.clone(),
    };
    let service = std::thread::spawn(move || {
        sconce_volume_router::block_on(sconce_volume_router::run(settings, components))
    });
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let endpoint = format!("ipc://{}/bus/{NODE}-0.sock", dir.path().display()).parse()?;
    let measured = measure(&network, &endpoint, &registry, Duration::from_secs(seconds));
    tokio::task::LocalSet::new().block_on(&runtime, measured)?;
    stop.request();
    service
        .join()
        .map_err(|_| anyhow::anyhow!("the service panicked"))???;
    Ok(())
}

fn settings(dir: &Path) -> anyhow::Result<Settings> {
    std::fs::create_dir(dir.join("bus"))?;
    std::fs::set_permissions(
        dir.join("bus"),
        std::os::unix::fs::PermissionsExt::from_mode(0o700),
    )?;
    let run = dir.display();
    let text = format!(
        "[node]\nname = \"{NODE}\"\nrun_dir = \"{run}\"\n[registry]\nhome = \"remote\"\nendpoint = \"ipc:///none\"\n\
         [buffer]\ndir = \"{run}/buffer\"\nsize = \"16 GiB\"\n[limits]\nthreads = 1\n\
         [volumes]\nstop_within = \"1s\"\n"
    );
    let path = dir.join("settings.toml");
    std::fs::write(&path, text)?;
    Ok(sconce_runtime::settings::load(&path)?)
}

fn hello() -> anyhow::Result<Hello> {
    Ok(Hello {
        version: Version::CURRENT,
        protocol: Protocol::Volume,
        role: Role::Client,
        node: "operation-cost".parse()?,
    })
}

async fn measure(
    network: &Network,
    endpoint: &Endpoint,
    registry: &Registry,
    time: Duration,
) -> anyhow::Result<()> {
    let record = VolumeRecord {
        inode: 1,
        ..VolumeRecord::unowned(
            VOLUME,
            VolumeSize::new(SIZE)?,
            ScoSize::default(),
            "none".to_owned(),
            NODE.parse()?,
        )
    };
    registry
        .put_record(&keys::volume(VOLUME), None, &record, None)
        .await?;
    let rounds = [
        (IoCode::Write, 1),
        (IoCode::Write, 32),
        (IoCode::Read, 1),
        (IoCode::Read, 32),
        (IoCode::Write, 1),
        (IoCode::Write, 32),
    ];
    for (code, depth) in rounds {
        let before = cpu_seconds()?;
        let begun = Instant::now();
        let done = run(network, endpoint, code, depth, time).await?;
        let (took, cpu) = (begun.elapsed().as_secs_f64(), cpu_seconds()? - before);
        let count = f64::from(u32::try_from(done)?);
        println!(
            "{code:?} depth {depth:2}: {:8.0}/s, {:6.1} us each, {:.3} CPU-s per 10000 (client and owner)",
            count / took,
            took / count * 1e6 * f64::from(u32::try_from(depth)?),
            cpu / count * 1e4,
        );
    }
    Ok(())
}

fn cpu_seconds() -> anyhow::Result<f64> {
    let usage = std::fs::read_to_string("/proc/self/stat")?;
    let ticks = usage
        .rsplit(')')
        .next()
        .unwrap_or("")
        .split_whitespace()
        .skip(11)
        .take(2);
    let ticks: Result<Vec<f64>, _> = ticks.map(str::parse).collect();
    Ok(ticks?.iter().sum::<f64>() / 100.0)
}

async fn run(
    network: &Network,
    endpoint: &Endpoint,
    code: IoCode,
    depth: usize,
    time: Duration,
) -> anyhow::Result<u64> {
    let (sender, mut receiver) = connect::<VolumeRequest, VolumeReply>(network, endpoint, hello()?);
    let open = VolumeRequest::Control(VolumeControl::Open {
        volume: VOLUME,
        session: SessionId(fastrand::u64(1..)),
        snapshot: None,
        access: None,
    });
    let handle = loop {
        match receiver.next().await {
            ClientEvent::Up(_) => {
                sender
                    .send(0, 0, &open, Bytes::new(), 0)
                    .map_err(|_| anyhow::anyhow!("no credit"))?;
            }
            ClientEvent::Replies(replies) => match &replies.first().context("an answer")?.body {
                VolumeReply::Control(VolumeControlReply::Opened { handle, .. }) => break *handle,
                VolumeReply::Refused(_) => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    sender
                        .send(0, 0, &open, Bytes::new(), 0)
                        .map_err(|_| anyhow::anyhow!("no credit"))?;
                }
                other => bail!("{other:?}"),
            },
            ClientEvent::Room | ClientEvent::Down(_) => {}
            ClientEvent::Refused(refusal) => bail!("{refusal}"),
        }
    };
    let data = match code {
        IoCode::Write => Bytes::from(vec![7; 4096]),
        _ => Bytes::new(),
    };
    let room = if code == IoCode::Read { 4096 } else { 0 };
    let (mut number, mut done) = (0, 0);
    let mut send = || -> anyhow::Result<()> {
        number += 1;
        let request = VolumeRequest::Io(IoRequest {
            handle,
            number,
            below: u64::saturating_sub(number, 64),
            code,
            flags: IoFlags::default(),
            offset: fastrand::u64(0..SIZE / BLOCK) * BLOCK,
            length: BLOCK,
        });
        sender
            .send(number, 0, &request, data.clone(), room)
            .map_err(|_| anyhow::anyhow!("no credit"))
    };
    let until = Instant::now() + time;
    (0..depth).try_for_each(|_| send())?;
    while Instant::now() < until {
        match receiver.next().await {
            ClientEvent::Replies(replies) => {
                for reply in replies {
                    if let VolumeReply::Refused(refusal) = reply.body {
                        bail!("{refusal}");
                    }
                    done += 1;
                    send()?;
                }
            }
            ClientEvent::Down(_) | ClientEvent::Refused(_) => bail!("the connection was lost"),
            ClientEvent::Up(_) | ClientEvent::Room => {}
        }
    }
    Ok(done)
}
