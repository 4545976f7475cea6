//! Backups for real: streams from one pool into another, cut, altered, interrupted, continued; changed blocks by the tools
//! of others.

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use sconce_tests::client;
use sconce_tests::cluster::{Cluster, SOON};

const DISK: &str = "/vm1/disk.raw";
const COPY: &str = "/backup/disk.raw";
const MIB: u64 = 1 << 20;

/// Bytes that depend on a seed alone.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Runs a script with libnbd on an export.
fn nbdsh(cluster: &Cluster, export: &str, script: &str) -> Result<String> {
    let uri = cluster.nbd_uri(export);
    let script = format!("import nbd\nh = nbd.NBD()\nh.connect_uri('{uri}')\n{script}");
    client::run(client::command("/usr/bin/python3", SOON).args(["-c", &script]))
}

/// A raw image of a snapshot.
fn image(cluster: &Cluster, snapshot: &str) -> Result<Vec<u8>> {
    let path = cluster.path("image.raw");
    let file = path.display().to_string();
    cluster.sconce(["export", snapshot, &file, "--force"])?;
    fs::read(&path).context("the exported image")
}

fn path_of(cluster: &Cluster, name: &str) -> (PathBuf, String) {
    let path = cluster.path(name);
    let text = path.display().to_string();
    (path, text)
}

/// What the command says when it fails.
fn fails(cluster: &Cluster, arguments: &[&str]) -> Result<String> {
    let output = client::output(cluster.command()?.args(arguments))?;
    ensure!(!output.status.success(), "sconce {arguments:?} did not fail");
    Ok(String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Gives a stream to `sconce import` by a pipe, so that it is not looked through first.
fn pipe(cluster: &Cluster, stream: &[u8], to: &str) -> Result<(bool, String)> {
    let mut command = cluster.command()?;
    command
        .args(["import", "-", to])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn()?;
    let mut stdin = child.stdin.take().context("the pipe")?;
    let bytes = stream.to_vec();
    let feeding = std::thread::spawn(move || stdin.write_all(&bytes));
    let output = child.wait_with_output()?;
    // It may have stopped reading.
    let _ = feeding.join();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    Ok((output.status.success(), told))
}

/// Where the records of a stream begin.
fn records(stream: &[u8]) -> Vec<usize> {
    let word = |at: usize| {
        let mut word = [0; 4];
        word.copy_from_slice(&stream[at..at + 4]);
        u32::from_le_bytes(word) as usize
    };
    let mut at = 16 + word(8);
    let mut found = Vec::new();
    while at < stream.len() {
        found.push(at);
        at += 40 + word(at + 32);
    }
    found
}

/// A volume with three snapshots: written at random, with holes and zeros, larger and then smaller.
fn source(cluster: &Cluster) -> Result<()> {
    cluster.create(DISK, "12M")?;
    let data = path_of(cluster, "noise");
    fs::write(&data.0, noise(1, 6 << 20))?;
    let put = |script: &str| {
        nbdsh(
            cluster,
            DISK,
            &format!("d = open('{}', 'rb').read()\n{script}", data.1),
        )
    };
    put("h.pwrite(d[:3 << 20], 1 << 20)\nh.pwrite(d[:4096], 8 << 20)\nh.flush()")?;
    cluster.sconce([
        "snapshot",
        "create",
        "/vm1/disk.raw@one",
        "--metadata",
        "why=first",
    ])?;
    cluster.sconce(["volume", "resize", DISK, "14M"])?;
    put(
        "h.pwrite(d[4 << 20:5 << 20], 2 << 20)\nh.trim(65536, 1 << 20)\nh.zero(65536, 3 << 20, nbd.CMD_FLAG_NO_HOLE)\n\
         h.pwrite(d[5 << 20:(5 << 20) + 512], (13 << 20) + 512)\nh.flush()",
    )?;
    cluster.sconce(["snapshot", "create", "/vm1/disk.raw@two"])?;
    cluster.sconce(["volume", "resize", DISK, "10M", "--shrink"])?;
    put("[h.pwrite(d[i << 12:(i + 1) << 12], (i * 37 % 2500) << 12) for i in range(0, 200)]\nh.flush()")?;
    cluster.sconce(["snapshot", "create", "/vm1/disk.raw@three"])?;
    Ok(())
}

#[test]
fn snapshots_go_into_another_pool_and_are_the_same_there() -> Result<()> {
    let cluster = Cluster::start()?;
    let other = Cluster::start()?;
    source(&cluster)?;
    let (full_path, full) = path_of(&cluster, "one.stream");
    let (step_path, step) = path_of(&cluster, "two.stream");
    let (last_path, last) = path_of(&cluster, "three.stream");
    cluster.sconce(["export", "/vm1/disk.raw@one", &full, "--stream"])?;
    cluster.sconce(["export", "/vm1/disk.raw@two", &step, "--from", "one"])?;
    cluster.sconce(["export", "/vm1/disk.raw@three", &last, "--from", "two"])?;
    ensure!(cluster.sconce(["verify", &step])?.contains("is whole"));
    let step_len = fs::metadata(&step_path)?.len();
    ensure!(step_len < 2 * MIB, "an increment of 1 MiB has {step_len} bytes");

    // What does not fit is refused, and changes nothing.
    let told = fails(&other, &["import", &step, COPY])?;
    ensure!(told.contains("does not exist"), "{told}");
    other.sconce(["import", &full, COPY])?;
    ensure!(image(&other, "/backup/disk.raw@one")? == image(&cluster, "/vm1/disk.raw@one")?);
    let told = fails(&other, &["import", &last, COPY])?;
    ensure!(told.contains("does not have snapshot \"two\""), "{told}");
    ensure!(
        other.sconce(["import", &full, COPY]).is_ok(),
        "it is there already, which is as good"
    );
    let told = fails(&other, &["import", &full, "/vm1/other.raw", "--size", "20M"])?;
    ensure!(told.contains("says its volume's size"), "{told}");

    // A stream that is altered or cut is refused before anything is changed.
    let stream = fs::read(&step_path)?;
    let starts = records(&stream);
    ensure!(starts.len() > 4, "{} records", starts.len());
    let (bad_path, bad) = path_of(&cluster, "bad.stream");
    for (nth, start) in starts.iter().enumerate() {
        for cut in [*start, start + 20] {
            fs::write(&bad_path, &stream[..cut])?;
            let told = fails(&other, &["import", &bad, COPY])?;
            let wanted = format!("record {nth}, at byte {start}");
            ensure!(
                told.contains(&wanted) && told.contains("cut off"),
                "cut at {cut}: {told}"
            );
        }
        let mut flipped = stream.clone();
        flipped[start + 38] ^= 4;
        fs::write(&bad_path, &flipped)?;
        let told = fails(&other, &["import", &bad, COPY])?;
        ensure!(told.contains(&format!("record {nth}, at byte {start}")), "{told}");
    }
    let names = other.sconce(["snapshot", "list", COPY, "--output", "json"])?;
    ensure!(
        !names.contains("sconce-import"),
        "a refused stream left a mark: {names}"
    );

    // By a pipe it is found out in the middle: half of it is there, and looks like that; then it is continued.
    for cut in [starts[1], starts[2] + 20, starts[3], starts[starts.len() - 1]] {
        let (done, told) = pipe(&other, &stream[..cut], COPY)?;
        ensure!(!done && told.contains("is half done"), "cut at {cut}: {told}");
        let names = other.sconce(["snapshot", "list", COPY, "--output", "json"])?;
        ensure!(
            names.contains("sconce-import") && !names.contains("\"two\""),
            "{names}"
        );
    }
    let told = fails(&other, &["import", &last, COPY])?;
    ensure!(
        told.contains("does not have snapshot") || told.contains("in the middle of another import"),
        "{told}"
    );
    other.sconce(["import", &step, COPY])?;
    ensure!(image(&other, "/backup/disk.raw@two")? == image(&cluster, "/vm1/disk.raw@two")?);
    let names = other.sconce(["snapshot", "list", COPY, "--output", "json"])?;
    ensure!(!names.contains("sconce-import"), "{names}");

    // Somebody wrote to the copy: the next increment does not fit, unless that is given up.
    nbdsh(&other, COPY, "h.pwrite(b'x' * 4096, 8192)\nh.flush()")?;
    let told = fails(&other, &["import", &last, COPY])?;
    ensure!(
        told.contains("was changed since two") && told.contains("--discard-changes"),
        "{told}"
    );
    other.sconce(["import", &last, COPY, "--discard-changes"])?;
    for name in ["one", "two", "three"] {
        let (here, there) = (format!("{DISK}@{name}"), format!("{COPY}@{name}"));
        ensure!(
            image(&cluster, &here)? == image(&other, &there)?,
            "{name} differs"
        );
    }
    ensure!(
        other
            .sconce(["snapshot", "show", "/backup/disk.raw@one"])?
            .contains("why")
    );

    // A copy of the copy takes the source's next increment: it is the same snapshot, wherever it is.
    let (_, again) = path_of(&other, "again.stream");
    other.sconce(["export", "/backup/disk.raw@two", &again, "--stream"])?;
    other.sconce(["import", &again, "/third/disk.raw"])?;
    other.sconce(["import", &last, "/third/disk.raw"])?;
    ensure!(image(&other, "/third/disk.raw@three")? == image(&cluster, "/vm1/disk.raw@three")?);

    // An export that was cut is continued.
    let whole = fs::read(&last_path)?;
    let starts = records(&whole);
    let (resumed_path, resumed) = path_of(&cluster, "resumed.stream");
    fs::write(cluster.path("resumed.stream.partial"), &whole[..starts[7] + 9])?;
    let export = ["export", "/vm1/disk.raw@three", &resumed, "--from", "two"];
    let output = client::output(cluster.command()?.args(export))?;
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(
        output.status.success() && told.contains("after record 6"),
        "{told}"
    );
    ensure!(fs::read(&resumed_path)?[..starts[7]] == whole[..starts[7]]);
    cluster.sconce(["verify", &resumed])?;
    fs::remove_file(&full_path)?;

    other.finish()?;
    cluster.finish()
}

#[test]
fn changed_blocks_are_told_by_the_command_by_nbd_and_for_a_clone() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.create(DISK, "1G")?;
    nbdsh(&cluster, DISK, "h.pwrite(b'a' * (1 << 20), 0)\nh.flush()")?;
    cluster.sconce(["snapshot", "create", "/vm1/disk.raw@one", "--wait-synced"])?;
    nbdsh(
        &cluster,
        DISK,
        "h.pwrite(b'b' * 8192, 4096)\nh.trim(4096, 65536)\nh.pwrite(b'c' * 4096, 512 << 20)\nh.flush()",
    )?;
    let json = cluster.sconce(["diff", "/vm1/disk.raw@one", DISK, "--output", "json"])?;
    let found: serde_json::Value = serde_json::from_str(&json)?;
    let wanted = serde_json::json!([
        { "offset": 4096, "length": 8192, "now": "data" },
        { "offset": 65536, "length": 4096, "now": "hole" },
        { "offset": 512 << 20, "length": 4096, "now": "data" },
    ]);
    ensure!(found["ranges"] == wanted, "{json}");
    let table = cluster.sconce(["diff", "/vm1/disk.raw@one", DISK])?;
    ensure!(table.contains("in 3 ranges"), "{table}");
    let uri = cluster.nbd_uri(DISK);
    let map = ["--map=qemu:dirty-bitmap:one", "--totals", &uri];
    let totals = client::run(client::command("nbdinfo", SOON).args(map))?;
    ensure!(
        totals.lines().any(|line| line.trim_start().starts_with("16384 ")),
        "{totals}"
    );
    let dirty = format!(
        "driver=nbd,server.type=unix,server.path={},export={DISK},x-dirty-bitmap=qemu:dirty-bitmap:one",
        cluster.nbd_socket().display()
    );
    let map = client::qemu_img(SOON, ["map", "--output=json", "--image-opts", &dirty])?;
    ensure!(map.contains("\"start\": 4096, \"length\": 8192"), "{map}");

    // A clone, since what it began as.
    cluster.sconce(["clone", "/vm1/disk.raw@one", "/vm2/disk.raw"])?;
    nbdsh(
        &cluster,
        "/vm2/disk.raw",
        "h.pwrite(b'z' * 4096, 1 << 20)\nh.flush()",
    )?;
    let since = ["diff", "/vm1/disk.raw@one", "/vm2/disk.raw", "--output", "json"];
    let found: serde_json::Value = serde_json::from_str(&cluster.sconce(since)?)?;
    let wanted = serde_json::json!([{ "offset": 1 << 20, "length": 4096, "now": "data" }]);
    ensure!(found["ranges"] == wanted, "{found}");
    let told = fails(&cluster, &["diff", "/vm1/disk.raw@none", DISK])?;
    ensure!(told.contains("has no snapshot \"none\""), "{told}");
    cluster.create("/vm3/disk.raw", "1G")?;
    let told = fails(&cluster, &["diff", "/vm1/disk.raw@one", "/vm3/disk.raw"])?;
    ensure!(told.contains("nothing in common"), "{told}");

    // As a stream, onto a clone of the same.
    cluster.sconce(["snapshot", "create", "/vm2/disk.raw@own"])?;
    let (_, step) = path_of(&cluster, "own.stream");
    cluster.sconce([
        "export",
        "/vm2/disk.raw@own",
        &step,
        "--from",
        "/vm1/disk.raw@one",
    ])?;
    cluster.sconce(["clone", "/vm1/disk.raw@one", "/vm4/disk.raw"])?;
    cluster.sconce(["import", &step, "/vm4/disk.raw"])?;
    let same = [
        "diff",
        "/vm1/disk.raw@one",
        "/vm4/disk.raw@own",
        "--output",
        "json",
    ];
    let found: serde_json::Value = serde_json::from_str(&cluster.sconce(same)?)?;
    ensure!(found["ranges"] == wanted, "{found}");
    cluster.finish()
}
