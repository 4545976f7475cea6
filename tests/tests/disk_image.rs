//! Proofs 1 and 2: a real Debian disk goes in over NBD, comes out again, and boots, over NBD and over FUSE.

use std::time::Duration;

use anyhow::{Result, ensure};
use sconce_tests::cluster::Cluster;
use sconce_tests::image::DebianImage;
use sconce_tests::{client, full, guest};

const COPY: Duration = Duration::from_secs(300);
const VOLUME: &str = "/vm1/disk.raw";

fn import(cluster: &Cluster, image: &DebianImage) -> Result<String> {
    cluster.sconce(["volume", "create", VOLUME, "--size", "1G"])?;
    let uri = cluster.nbd_uri(VOLUME);
    let disk = image.disk().display().to_string();
    client::qemu_img(COPY, ["convert", "-n", "-f", "raw", "-O", "raw", &disk, &uri])?;
    Ok(uri)
}

#[test]
fn a_debian_disk_goes_in_and_comes_out_equal() -> Result<()> {
    let image = DebianImage::get()?;
    let cluster = Cluster::start()?;
    let uri = import(&cluster, &image)?;
    let disk = image.disk().display().to_string();
    client::qemu_img(COPY, ["compare", "-f", "raw", "-F", "raw", &disk, &uri])?;

    let out = cluster.path("out.raw");
    client::run(client::command("nbdcopy", COPY).arg(&uri).arg(&out))?;
    client::same_bytes(&image.disk(), &out)?;

    // What qemu-img left out as zeros takes no space, and clients are told so.
    let map = client::run(client::command("nbdinfo", COPY).args(["--map", "--totals", &uri]))?;
    let bytes_of = |kind: &str| -> u64 {
        let fields = map
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>());
        let of_kind = fields.filter(|fields| fields.last().is_some_and(|last| last.contains(kind)));
        of_kind
            .filter_map(|fields| fields.first()?.parse::<u64>().ok())
            .sum()
    };
    ensure!(
        bytes_of("hole") > 500 << 20,
        "a half-empty disk has fewer holes than that:\n{map}"
    );
    let allocated = cluster.show(VOLUME)?["allocated_bytes"].as_u64().unwrap_or(0);
    ensure!(
        allocated > 100 << 20 && allocated < 600 << 20,
        "{allocated} bytes allocated"
    );
    cluster.finish()
}

#[test]
fn the_disk_boots_over_nbd_and_over_fuse_and_keeps_what_the_guest_wrote() -> Result<()> {
    let image = DebianImage::get()?;
    let cluster = Cluster::start()?;
    let uri = import(&cluster, &image)?;
    ensure!(
        guest::boot(&image, &uri)? == 1,
        "the guest found a count before its first boot"
    );
    // The guest's own file, counted on by the next boot, which comes through the other front end.
    let mounted = cluster.mounted(VOLUME).display().to_string();
    ensure!(
        guest::boot(&image, &mounted)? == 2,
        "the first boot's file is not there through FUSE"
    );
    if full() {
        ensure!(
            guest::boot(&image, &uri)? == 3,
            "the second boot's file is not there through NBD"
        );
    }
    cluster.finish()
}
