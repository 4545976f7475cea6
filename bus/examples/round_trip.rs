//! How fast the bus is: 4 KiB writes to a server in a process of its own, at several depths.
//!
//!     cargo run --release -p sconce-bus --example round_trip
//!
//! Prints round-trip times, requests a second, and CPU time of both processes together for each request.

use std::error::Error;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use bytes::Bytes;
use sconce_bus::{
    ClientEvent, Endpoint, Hello, Identity, Limits, Network, Protocol, Receiver, Role, Sender, Server,
    ServerEvent, Version, ZeromqSettings, bind, connect,
};
use sconce_schemas::wire::volume::{IoCode, IoFlags, IoRequest, VolumeReply, VolumeRequest};

const CLUSTER: usize = 4096;
const WARM_UP: Duration = Duration::from_millis(300);
const MEASURED: Duration = Duration::from_secs(3);

type Failure = Box<dyn Error>;

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let set = tokio::task::LocalSet::new();
    match arguments.next().as_deref() {
        Some("serve") => {
            let dir = arguments.next().ok_or("serve DIR")?;
            set.block_on(&runtime, serve(Path::new(&dir)))
        }
        _ => {
            let dir = std::env::temp_dir().join(format!("sconce-bus-{}", std::process::id()));
            std::fs::create_dir(&dir)?;
            let server = Command::new(std::env::current_exe()?)
                .arg("serve")
                .arg(&dir)
                .spawn()?;
            let result = set.block_on(&runtime, measure_all(&dir, &server));
            stop(server)?;
            std::fs::remove_dir_all(&dir)?;
            result
        }
    }
}

fn stop(mut server: Child) -> Result<(), Failure> {
    server.kill()?;
    server.wait()?;
    Ok(())
}

fn place(dir: &Path) -> Result<(Network, Endpoint), Failure> {
    let network = Network::zeromq(ZeromqSettings {
        run_dir: dir.to_owned(),
    });
    Ok((network, Endpoint::ipc(&dir.join("bus").join("volume.sock"))?))
}

async fn serve(dir: &Path) -> Result<(), Failure> {
    let (network, endpoint) = place(dir)?;
    let identity = Identity {
        node: "server".parse()?,
        role: Role::VolumeRouter,
        protocol: Protocol::Volume,
        limits: Limits::of(Protocol::Volume),
    };
    let mut server: Server<VolumeRequest, VolumeReply> = bind(&network, &endpoint, identity).await?;
    loop {
        if let ServerEvent::Requests(requests) = server.next().await {
            for request in requests {
                request.reply.send(VolumeReply::Done, Bytes::new());
            }
        }
    }
}

async fn measure_all(dir: &Path, server: &Child) -> Result<(), Failure> {
    let (network, endpoint) = place(dir)?;
    let hello = Hello {
        version: Version::CURRENT,
        protocol: Protocol::Volume,
        role: Role::Client,
        node: "client".parse()?,
    };
    let (sender, mut receiver) = connect::<VolumeRequest, VolumeReply>(&network, &endpoint, hello);
    while !matches!(receiver.next().await, ClientEvent::Up(_)) {}
    println!("depth   p50 us   p99 us   kops/s   CPU us/op");
    for depth in [1, 8, 32, 128] {
        measure(&sender, &mut receiver, depth, WARM_UP).await?;
        let cpu = cpu_seconds(server)?;
        let measured = measure(&sender, &mut receiver, depth, MEASURED).await?;
        let cpu = cpu_seconds(server)? - cpu;
        let count = measured.len() as f64;
        println!(
            "{depth:5} {:8.1} {:8.1} {:8.1} {:11.2}",
            percentile(&measured, 50),
            percentile(&measured, 99),
            count / MEASURED.as_secs_f64() / 1e3,
            cpu / count * 1e6
        );
    }
    Ok(())
}

/// Keeps `depth` writes outstanding for `time`; the round-trip time of each.
async fn measure(
    sender: &Sender<VolumeRequest>,
    receiver: &mut Receiver<VolumeReply>,
    depth: usize,
    time: Duration,
) -> Result<Vec<Duration>, Failure> {
    let data = Bytes::from(vec![7; CLUSTER]);
    let mut started = vec![Instant::now(); depth];
    let mut times = Vec::with_capacity(1 << 22);
    let until = Instant::now() + time;
    let mut free: Vec<usize> = (0..depth).collect();
    let mut outstanding = 0;
    loop {
        let now = Instant::now();
        if now < until {
            while let Some(slot) = free.pop() {
                started[slot] = now;
                sender.send(slot as u64, 0, &write(slot), data.clone(), 0)?;
                outstanding += 1;
            }
        }
        if outstanding == 0 {
            return Ok(times);
        }
        if let ClientEvent::Replies(replies) = receiver.next().await {
            let now = Instant::now();
            for reply in replies {
                let slot = usize::try_from(reply.id)?;
                times.push(now - started[slot]);
                free.push(slot);
                outstanding -= 1;
            }
        }
    }
}

fn write(slot: usize) -> VolumeRequest {
    VolumeRequest::Io(IoRequest {
        handle: 3,
        number: 1_000_000 + slot as u64,
        below: 1_000_000,
        code: IoCode::Write,
        flags: IoFlags::default(),
        offset: (slot * CLUSTER) as u64,
        length: CLUSTER as u64,
    })
}

fn percentile(times: &[Duration], percent: usize) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let index = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(index).map_or(0.0, |time| time.as_secs_f64() * 1e6)
}

/// User and system time of this process and the server.
fn cpu_seconds(server: &Child) -> Result<f64, Failure> {
    let mut ticks = 0.0;
    for id in [std::process::id(), server.id()] {
        let stat = std::fs::read_to_string(format!("/proc/{id}/stat"))?;
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
        ticks += fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
    }
    // Linux counts in hundredths of a second.
    Ok(ticks / 100.0)
}
