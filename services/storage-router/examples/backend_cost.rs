//! What a put and a range read cost on a directory, beside what the file system alone takes for the same bytes.
//!
//! `cargo run --release -p sconce-storage-router --example backend_cost [DIR]`

use std::fs::File;
use std::future::Future;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use sconce_runtime::Chance;
use sconce_schemas::stored_object::SealedObject;
use sconce_schemas::{Epoch, ObjectName, ScoId, VolumeId};
use sconce_storage_router::checked::Checked;
use sconce_storage_router::directory::{DirectoryBackend, DirectorySettings};
use sconce_storage_router::workers::Workers;

const OBJECT_BYTES: usize = 4 << 20;
const PUTS: u64 = 100;
const READS: u64 = 20_000;

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
    let parent = std::env::args()
        .nth(1)
        .map_or_else(std::env::temp_dir, PathBuf::from);
    let root = parent.join(format!("sconce-backend-cost-{}", std::process::id()));
    let measured = measure(&root).await;
    std::fs::remove_dir_all(&root).with_context(|| format!("cannot remove {}", root.display()))?;
    measured
}

async fn measure(root: &Path) -> anyhow::Result<()> {
    let backend = DirectoryBackend::new(DirectorySettings {
        name: "disk".to_owned(),
        root: root.join("backend"),
        node: "cost".parse()?,
        expected: None,
    });
    backend.attach().await?;
    let disk = Checked::new(
        Arc::new(backend),
        Workers::bounded(2, 1 << 30),
        Duration::from_secs(60),
    );
    let mut bytes = vec![0; OBJECT_BYTES];
    Chance::seeded(1).fill(&mut bytes);
    let data = Bytes::from(bytes);
    let plain = root.join("plain");
    std::fs::create_dir(&plain)?;

    let (mut written, mut put) = (Vec::new(), Vec::new());
    for id in 0..PUTS {
        written.push(timed(async { write_plainly(&plain, id, &data) }).await?);
        put.push(
            timed(async {
                let object = SealedObject::seal(name(id), data.clone())?;
                disk.put(&object).await.map_err(anyhow::Error::from)
            })
            .await?,
        );
    }
    println!(
        "4 MiB, median: write + fsync + fsync of the folder {:?}, put {:?}",
        median(&mut written),
        median(&mut put)
    );
    let sealing = timed(async { SealedObject::seal(name(0), data.clone()).map_err(Into::into) }).await?;
    println!("of which the envelope's checksums {sealing:?}");

    let mut chance = Chance::seeded(2);
    let (mut pread, mut get) = (Vec::new(), Vec::new());
    for _ in 0..READS {
        let (id, offset) = (chance.below(PUTS), chance.below(1024) * 4096);
        pread.push(timed(async { read_plainly(&plain, id, offset) }).await?);
        get.push(timed(async { disk.get(name(id), offset, 4096).await.map_err(Into::into) }).await?);
    }
    println!(
        "4 KiB cached, median: open + pread {:?}, get {:?}",
        median(&mut pread),
        median(&mut get)
    );
    let mut whole = Vec::new();
    for id in 0..PUTS {
        let get = async {
            disk.get(name(id), 0, OBJECT_BYTES as u64)
                .await
                .map_err(Into::into)
        };
        whole.push(timed(get).await?);
    }
    println!("4 MiB cached, median: get {:?}", median(&mut whole));
    Ok(())
}

async fn timed<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<Duration> {
    let start = Instant::now();
    work.await?;
    Ok(start.elapsed())
}

fn write_plainly(folder: &Path, id: u64, data: &[u8]) -> anyhow::Result<()> {
    let mut file = File::create_new(folder.join(id.to_string()))?;
    file.write_all(data)?;
    file.sync_all()?;
    Ok(File::open(folder)?.sync_all()?)
}

fn read_plainly(folder: &Path, id: u64, offset: u64) -> anyhow::Result<Vec<u8>> {
    let mut cluster = vec![0; 4096];
    File::open(folder.join(id.to_string()))?.read_exact_at(&mut cluster, offset)?;
    Ok(cluster)
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}
