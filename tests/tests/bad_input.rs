//! Proof 8, at the level of processes: what a person or a stranger gets wrong is told, and harms nothing.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;

use anyhow::{Result, ensure};
use sconce_tests::cluster::{Cluster, SOON, Service};
use sconce_tests::nbd::{Ask, Nbd};
use sconce_tests::{client, seed};

/// Runs the command, which must refuse with a text that has all of `wanted`.
fn refused(cluster: &Cluster, arguments: &[&str], wanted: &[&str]) -> Result<()> {
    let told = client::refused(cluster.command()?.args(arguments))?;
    for part in wanted {
        ensure!(
            told.contains(part),
            "sconce {arguments:?}: {part:?} is not in: {told}"
        );
    }
    ensure!(!told.contains("panicked"), "sconce {arguments:?}: {told}");
    Ok(())
}

#[test]
fn the_command_names_what_is_wrong() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.create("/disk", "64M")?;
    refused(
        &cluster,
        &["volume", "create", "/disk", "--size", "1G"],
        &["/disk", "exists"],
    )?;
    refused(
        &cluster,
        &["volume", "create", "/huge", "--size", "65T"],
        &["65T", "64 TiB"],
    )?;
    refused(&cluster, &["volume", "create", "/none", "--size", "-1"], &["-1"])?;
    refused(
        &cluster,
        &["volume", "create", "relative", "--size", "1G"],
        &["relative", "/relative"],
    )?;
    refused(
        &cluster,
        &["volume", "create", "/a/../b", "--size", "1G"],
        &["/a/../b"],
    )?;
    refused(
        &cluster,
        &["volume", "create", "/disk/below", "--size", "1G"],
        &["/disk"],
    )?;
    refused(&cluster, &["volume", "show", "/absent"], &["/absent"])?;
    refused(&cluster, &["volume", "delete", "/absent"], &["/absent"])?;
    refused(&cluster, &["volume", "resize", "/disk", "1M"], &["--shrink"])?;
    refused(&cluster, &["import", "/no/such/file", "/new"], &["/no/such/file"])?;
    refused(&cluster, &["export", "/absent", "out.raw"], &["/absent"])?;
    // None of it left anything behind.
    let list = cluster.sconce(["volume", "list", "--output", "json"])?;
    let list: serde_json::Value = serde_json::from_str(&list)?;
    ensure!(
        list.as_array().is_some_and(|volumes| volumes.len() == 1),
        "{list}"
    );
    cluster.finish()
}

#[test]
fn a_wrong_settings_file_is_refused_with_key_and_value() -> Result<()> {
    for service in Service::ALL {
        let cluster = Cluster::prepare()?;
        let settings = cluster.path(&format!("{}.toml", service.name()));
        let good = std::fs::read_to_string(&settings)?;
        let cases = [
            (good.replace("name = ", "nmae = "), "nmae"),
            (format!("{good}\n[surprise]\n"), "surprise"),
            ("node = 3".to_owned(), "node"),
            ("[node\n".to_owned(), "line 1"),
            (String::new(), "node"),
        ];
        for (text, wanted) in cases {
            std::fs::write(&settings, &text)?;
            let mut command = client::command(Cluster::binaries()?.join(service.name()), SOON);
            let output = client::output(command.arg("--config").arg(&settings))?;
            let told = String::from_utf8_lossy(&output.stderr).into_owned()
                + &String::from_utf8_lossy(&output.stdout);
            ensure!(!output.status.success(), "{} took {text:?}", service.name());
            ensure!(
                output.status.code() != Some(124),
                "{} did not end with {text:?}",
                service.name()
            );
            let named = told.contains(wanted) && told.contains(&settings.display().to_string());
            ensure!(
                named && !told.contains("panicked"),
                "{}: no {wanted:?} in: {told}",
                service.name()
            );
        }
    }
    Ok(())
}

#[test]
fn an_nbd_client_that_sends_rubbish_harms_only_itself() -> Result<()> {
    let mut random = fastrand::Rng::with_seed(seed());
    let mut cluster = Cluster::start()?;
    cluster.announce("nbd");
    cluster.create("/disk", "16M")?;
    let mut good = Nbd::connect(&cluster.nbd_socket(), "/disk", SOON)?;
    good.ask(Ask::Write, 0, 4096, &[7; 4096])?;
    let pids = Service::ALL.map(|service| cluster.pid(service).ok());
    for round in 0..40 {
        let mut stranger = UnixStream::connect(cluster.nbd_socket())?;
        stranger.set_read_timeout(Some(SOON))?;
        let mut bytes = vec![0; random.usize(1..4096)];
        random.fill(&mut bytes);
        if round % 2 == 0 {
            // A right beginning, then an option that claims 4 GiB.
            let mut hello = 3_u32.to_be_bytes().to_vec();
            hello.extend_from_slice(b"IHAVEOPT");
            hello.extend_from_slice(&7_u32.to_be_bytes());
            hello.extend_from_slice(&u32::MAX.to_be_bytes());
            bytes.splice(0..0, hello);
        }
        // The server may have hung up already, which is as good an answer as any.
        let _ = stranger.write_all(&bytes);
        let _ = stranger.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stranger.take(1 << 20).read_to_end(&mut answer);
        ensure!(
            good.ask(Ask::Read, 0, 4096, &[])? == [7; 4096],
            "round {round}: the other client's data changed"
        );
    }
    // Requests beyond the end, too long, and of an unknown export.
    for (ask, offset, length) in [
        (Ask::Read, 16 << 20, 4096),
        (Ask::Read, u64::MAX - 4095, 4096),
        (Ask::Trim, 1 << 40, 512),
    ] {
        let request = good.send(ask, offset, length, &[])?;
        let answer = good.receive()?;
        ensure!(
            answer.request == request && answer.error != 0,
            "{ask:?} of {length} at {offset} was taken"
        );
    }
    let unknown = Nbd::connect(&cluster.nbd_socket(), "/no/such/disk", SOON);
    ensure!(
        unknown.is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound),
        "an unknown export was opened"
    );
    ensure!(
        pids == Service::ALL.map(|service| cluster.pid(service).ok()),
        "a service was restarted"
    );
    cluster.finish()
}
