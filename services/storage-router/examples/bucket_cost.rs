//! What a put and a range read cost on a bucket, and what of that is our own thread's processor time: the test server
//! (s3s-fs) is in this process, on threads of its own, and takes the rest.
//!
//! `cargo run --release -p sconce-storage-router --example bucket_cost`

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream;
use sconce_runtime::Chance;
use sconce_schemas::stored_object::SealedObject;
use sconce_schemas::{Epoch, ObjectName, ScoId, VolumeId};
use sconce_storage_router::backend::Identified as _;
use sconce_storage_router::checked::Checked;
use sconce_storage_router::s3::{Credentials, S3Backend, S3Settings, Style};
use sconce_storage_router::workers::Workers;
use sconce_test_s3::{ACCESS_KEY, Options, S3Server, SECRET_KEY};

const OBJECT_BYTES: usize = 4 << 20;
const PUTS: u64 = 40;
const READS: u64 = 2000;

fn name(id: u64) -> ObjectName {
    ObjectName::Sco {
        volume: VolumeId::from_u128(1),
        id: ScoId(id),
        epoch: Epoch(1),
        version: 0,
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let keys = dir.path().join("keys");
    let text = format!("[default]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n");
    std::fs::write(&keys, text)?;
    std::fs::set_permissions(&keys, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    for is_tls in [false, true] {
        let options = Options {
            is_tls,
            ..Options::default()
        };
        let server = S3Server::start(&["vms"], options)?;
        let ca = server
            .certificate()
            .map(|certificate| (dir.path().join("ca.pem"), certificate));
        if let Some((file, certificate)) = &ca {
            std::fs::write(file, certificate)?;
        }
        let settings = S3Settings {
            bucket: "vms".to_owned(),
            endpoint: server.endpoint(),
            region: "us-east-1".to_owned(),
            folder: String::new(),
            style: Style::Path,
            ca: ca.map(|(file, _)| file),
            credentials: Credentials::File {
                path: keys.clone(),
                profile: "default".to_owned(),
            },
            connect_timeout: Duration::from_secs(3),
            request_timeout: Duration::from_secs(8),
            multipart_above: 16 << 20,
        };
        measure(&settings).await?;
    }
    Ok(())
}

async fn measure(settings: &S3Settings) -> anyhow::Result<()> {
    let deadline = Duration::from_secs(30);
    let backend = S3Backend::new("measured", settings, deadline, None).map_err(anyhow::Error::msg)?;
    backend.attach().await?;
    let checked = &Checked::new(Arc::new(backend), Workers::bounded(2, 256 << 20), deadline);
    let mut bytes = vec![0; OBJECT_BYTES];
    Chance::seeded(1).fill(&mut bytes);
    let bytes = Bytes::from(bytes);
    println!("{}", settings.endpoint);
    for (at_once, from) in [(1_usize, 0), (8, PUTS)] {
        let begun = Begun::now()?;
        let put = async |id| {
            checked
                .put(&SealedObject::seal(name(id), bytes.clone())?)
                .await
                .map_err(anyhow::Error::from)
        };
        let mut puts = stream::iter((from..from + PUTS).map(put)).buffer_unordered(at_once);
        while let Some(done) = puts.next().await {
            done?;
        }
        told("put of 4 MiB", at_once, PUTS, &begun)?;
    }
    // Small, because this server reads all of an object to answer for any of it.
    let small = name(1000);
    checked
        .put(&SealedObject::seal(small, bytes.slice(..16 << 10))?)
        .await?;
    for at_once in [1, 8] {
        let begun = Begun::now()?;
        let get = async |number| checked.get(small, number % 4 * 4096, 4096).await;
        let mut gets = stream::iter((0..READS).map(get)).buffer_unordered(at_once);
        while let Some(read) = gets.next().await {
            read.context("read")?;
        }
        told("get of 4 KiB", at_once, READS, &begun)?;
    }
    let begun = Begun::now()?;
    for id in 0..PUTS {
        checked.get(name(id), 0, 4 << 20).await?;
    }
    told("get of 4 MiB", 1, PUTS, &begun)?;
    Ok(())
}

/// A moment, on the clock and on that of the back end's thread.
struct Begun(Instant, Duration);

impl Begun {
    fn now() -> anyhow::Result<Self> {
        Ok(Self(Instant::now(), time_of_thread()?))
    }
}

/// Processor time of the back end's thread so far.
fn time_of_thread() -> anyhow::Result<Duration> {
    let mut sum = 0;
    for task in std::fs::read_dir("/proc/self/task")? {
        let task = task?.path();
        // Threads come and go.
        let read = |file: &str| std::fs::read_to_string(task.join(file)).unwrap_or_default();
        if read("comm").trim() == "s3-measured" {
            sum += read("schedstat")
                .split(' ')
                .next()
                .and_then(|ns| ns.parse::<u64>().ok())
                .context("schedstat")?;
        }
    }
    Ok(Duration::from_nanos(sum))
}

fn told(what: &str, at_once: usize, count: u64, begun: &Begun) -> anyhow::Result<()> {
    let each = |time: Duration| time.as_secs_f64() * 1e3 / count as f64;
    let ours = time_of_thread()?.saturating_sub(begun.1);
    println!(
        "  {what}, {at_once} at once: {:.3} ms each, of which our thread {:.3}",
        each(begun.0.elapsed()),
        each(ours)
    );
    Ok(())
}
