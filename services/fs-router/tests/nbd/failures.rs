//! What goes wrong behind the routing core while clients are at work: they see pauses, never errors, and nothing is
//! applied twice.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use sconce_fs_router::routing::{Components, Incarnation, Limits, Orphans, Router};
use sconce_runtime::{Chance, Clock};
use sconce_schemas::VolumeId;
use sconce_schemas::wire::volume::IoFlags;
use sconce_schemas::wire::{Refusal, RefusalCode, Remedy, Role};
use tokio::task::LocalSet;

use crate::model::{Cluster, Owner, Trouble, nbdsh, random_file, run, succeed, wait_for};

const MIB: u64 = 1 << 20;

/// A client that writes and verifies for a while.
fn fio(cluster: &Cluster, path: &str) -> Child {
    Command::new("timeout")
        .args(["--kill-after=5", "120", "fio", "--name=load", "--ioengine=nbd"])
        .arg(format!("--uri={}", cluster.uri(path)))
        .args([
            "--rw=randwrite",
            "--bsrange=4k-64k",
            "--iodepth=16",
            "--size=24m",
            "--io_size=400m",
        ])
        .args([
            "--verify=crc32c",
            "--verify_fatal=1",
            "--randrepeat=0",
            "--output-format=terse",
            "--verify_state_save=0",
        ])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn finish(child: Child) {
    let output = child.wait_with_output().unwrap();
    assert!(
        output.status.success(),
        "{}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

fn applied(cluster: &Cluster, volume: VolumeId) -> u64 {
    cluster.models.with(volume, |model| model.applied).unwrap()
}

/// Waits until the load has come this much further.
fn progress(cluster: &Cluster, volume: VolumeId, by: u64) {
    let from = applied(cluster, volume);
    wait_for("progress", || applied(cluster, volume) >= from + by);
}

#[test]
fn an_owner_that_is_killed_under_load_is_a_pause() {
    let mut cluster = Cluster::start();
    let volume = cluster.create("/disk.raw", 24 * MIB);
    let load = fio(&cluster, "/disk.raw");
    for _ in 0..8 {
        progress(&cluster, volume, 300);
        cluster.owner.restart();
    }
    finish(load);
}

#[test]
fn a_volume_that_moves_under_load_is_a_pause() {
    let cluster = Cluster::start();
    let volume = cluster.create("/disk.raw", 24 * MIB);
    let other = Owner::start(
        &cluster.network,
        cluster.dir.path(),
        "vr-2",
        cluster.models.clone(),
    );
    let load = fio(&cluster, "/disk.raw");
    let owners = [&other, &cluster.owner];
    for turn in 0..6 {
        progress(&cluster, volume, 300);
        let (to, from) = (owners[turn % 2], owners[(turn + 1) % 2]);
        // The old owner stops first; for a moment nobody owns the volume and the registry names the old one.
        from.not_mine.lock().unwrap().push(volume);
        to.not_mine.lock().unwrap().clear();
        cluster.move_volume(volume, to);
    }
    finish(load);
}

#[test]
fn refusals_that_pass_are_held() {
    let cluster = Cluster::start();
    let volume = cluster.create("/disk.raw", 24 * MIB);
    let load = fio(&cluster, "/disk.raw");
    for _ in 0..4 {
        progress(&cluster, volume, 200);
        cluster.models.with(volume, |model| {
            let waits = Refusal {
                remedy: Remedy::Reject,
                code: RefusalCode::WaitsForOwner,
                text: "the volume waits".to_owned(),
            };
            let busy = Refusal::retry(RefusalCode::Unavailable, "the write buffer is full");
            model.refuse_next = [vec![waits; 5], vec![busy; 40]].concat();
        });
    }
    finish(load);
}

#[test]
fn a_volume_that_waits_is_described_at_once_and_refused_with_the_reason() {
    let cluster = Cluster::start();
    let volume = cluster.create("/waits.raw", MIB);
    cluster.create("/serves.raw", 2 * MIB);
    cluster.note_size(volume, 3 * MIB);
    cluster.owner.waiting.lock().unwrap().push(volume);
    check_waits(&cluster, "it waits for another write buffer");
}

#[test]
fn a_volume_whose_owner_is_gone_is_described_at_once_and_refused_with_the_reason() {
    let cluster = Cluster::start();
    let volume = cluster.create("/waits.raw", MIB);
    cluster.create("/serves.raw", 2 * MIB);
    cluster.note_size(volume, 3 * MIB);
    let other = Owner::start(
        &cluster.network,
        cluster.dir.path(),
        "vr-2",
        cluster.models.clone(),
    );
    cluster.move_volume(volume, &other);
    cluster.forget_node("vr-2");
    check_waits(&cluster, "waits for its owner vr-2, which is not running");
}

/// /waits.raw is not served, and nobody waits long to be told.
fn check_waits(cluster: &Cluster, why: &str) {
    let started = Instant::now();
    // A listing leaves out the size that an owner does not tell in two seconds.
    wait_for("a listing with both sizes", || {
        let listed = succeed("nbdinfo", &["--list", "--json", &cluster.uri("")]);
        let has = |size: u64| listed.contains(&format!("\"export-size\": {size}"));
        has(2 * MIB) && has(3 * MIB)
    });
    // The reason is among what the client traces.
    let uri = cluster.uri("/waits.raw");
    let output = run("env", &["LIBNBD_DEBUG=1", "nbdinfo", "--size", &uri]);
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains(why), "{said}");
    // Less than an owner that runs is waited for, though the process began just now.
    assert!(
        started.elapsed() < Duration::from_secs(25),
        "{:?}",
        started.elapsed()
    );
}

#[test]
fn data_on_the_back_ends_is_read_from_there() {
    let cluster = Cluster::start();
    let volume = cluster.create("/disk.raw", 16 * MIB);
    let image = random_file(cluster.dir.path(), "image", 16 << 20, 2);
    let (image, uri) = (image.to_str().unwrap(), cluster.uri("/disk.raw"));
    succeed("nbdcopy", &[image, &uri]);
    cluster.chill(volume);
    // Damaged now and then, gone now and then, busy often: repaired, asked for again, waited for.
    let trouble = [
        Trouble::Flip,
        Trouble::Busy,
        Trouble::Gone,
        Trouble::Busy,
        Trouble::Flip,
    ];
    cluster.owner.trouble.lock().unwrap().extend(trouble);
    succeed("qemu-img", &["compare", "-f", "raw", "-F", "raw", image, &uri]);
    assert!(
        cluster.owner.trouble.lock().unwrap().is_empty(),
        "it was read from there"
    );
    nbdsh(&format!(
        "h.set_strict_mode(0)\nh.connect_uri('{uri}')\nimage = open('{image}', 'rb').read()\n\
         for at, count in ((4095, 2), (262143, 300000), (0, 1), (16777215, 1)):\n\
         \x20 assert h.pread(count, at) == image[at:at + count]"
    ));
}

#[test]
fn damaged_data_is_an_error_that_names_it_and_never_data() {
    let cluster = Cluster::start();
    let volume = cluster.create("/disk.raw", MIB);
    let image = random_file(cluster.dir.path(), "image", 1 << 20, 2);
    succeed("nbdcopy", &[image.to_str().unwrap(), &cluster.uri("/disk.raw")]);
    cluster.chill(volume);
    let read = |trouble: Trouble| {
        cluster.owner.trouble.lock().unwrap().extend([trouble; 12]);
        let script = format!(
            "import nbd, errno\nh = nbd.NBD()\nh.set_debug(True)\nh.connect_uri('{}')\n\
             try:\n  h.pread(4096, 8192)\n  print('data')\n\
             except nbd.Error as error:\n  print(errno.errorcode[error.errnum])",
            cluster.uri("/disk.raw")
        );
        let output = run("/usr/bin/python3", &["-c", &script]);
        cluster.owner.trouble.lock().unwrap().clear();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        (String::from_utf8_lossy(&output.stdout).trim().to_owned(), text)
    };
    for trouble in [Trouble::Flip, Trouble::Gone] {
        let (outcome, text) = read(trouble);
        assert_eq!(outcome, "EIO", "{text}");
        let object = "c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0/sco/000000000001.00000001.0000";
        for wanted in [format!("volume {volume}, byte 8192"), object.to_owned()] {
            assert!(text.contains(&wanted), "{wanted:?} is not in {text}");
        }
    }
    // And the next read is as good as ever.
    nbdsh(&format!(
        "h.connect_uri('{}')\nassert h.pread(4096, 8192) == open('{}', 'rb').read()[8192:12288]",
        cluster.uri("/disk.raw"),
        image.display()
    ));
}

#[test]
fn a_client_that_connects_while_the_owner_is_away_waits_for_it() {
    let mut cluster = Cluster::start();
    cluster.create("/disk.raw", MIB);
    cluster.owner.kill();
    let uri = cluster.uri("/disk.raw");
    let client = std::thread::spawn(move || succeed("nbdinfo", &["--size", &uri]));
    // It got as far as it can: it holds a place, and the router asks for the owner again and again.
    std::thread::yield_now();
    cluster.owner.restart();
    assert_eq!(client.join().unwrap().trim(), "1048576");
}

#[test]
fn an_orderly_stop_answers_what_was_asked() {
    let mut cluster = Cluster::start();
    let volume = cluster.create("/disk.raw", 24 * MIB);
    let mut load = fio(&cluster, "/disk.raw");
    progress(&cluster, volume, 200);
    cluster.stop();
    assert!(!cluster.socket().exists(), "the socket is gone");
    // The client is told of the end by the connection's, and has no open question to this service.
    let status = load.wait().unwrap();
    assert!(!status.success());
}

/// The futures of [`sconce_fs_router::routing::Volume`], as the command line uses them.
#[test]
fn volumes_as_futures_survive_a_restart() {
    let mut cluster = Cluster::start();
    let volume = cluster.create("/disk.raw", 4 * MIB);
    let components = Components {
        node: "cli-1".parse().unwrap(),
        role: Role::Client,
        network: cluster.network.clone(),
        registry: cluster.registry.clone(),
        clock: Clock::system(),
        limits: Limits::default(),
        orphans: Orphans::default(),
        incarnation: Incarnation::command(),
        cache: None,
        counts: std::sync::Arc::default(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let local = LocalSet::new();
    local.block_on(&runtime, async {
        let router = Router::new(components, 0, Chance::seeded(1));
        let disk = router.volume(volume).await.unwrap();
        disk.write(4096, Bytes::from(vec![5; 8192]), IoFlags(IoFlags::FUA))
            .await
            .unwrap();
        cluster.owner.kill();
        let mut writes: Vec<_> = (0..2000_u64)
            .map(|at| {
                let disk = disk.clone();
                let data = Bytes::from(vec![u8::try_from(at % 251).unwrap(); 512]);
                tokio::task::spawn_local(async move { disk.write(at * 2048, data, IoFlags(0)).await })
            })
            .collect();
        tokio::task::yield_now().await;
        // Dropped futures neither hang nor harm.
        writes.drain(1500..).for_each(|write| write.abort());
        cluster.owner.restart();
        for write in writes {
            write.await.unwrap().unwrap();
        }
        let read = disk.read(2048 * 7, 512).await.unwrap().into_bytes();
        assert_eq!(read, vec![7; 512]);
        let missing = router.volume(VolumeId([9; 16])).await.err().unwrap();
        assert_eq!(missing.code, RefusalCode::NotFound);
        assert!(missing.text.contains(&"09".repeat(16)), "{missing}");
    });
    assert_eq!(cluster.models.with(volume, |model| model.again).unwrap(), 0);
}

#[test]
fn what_a_lost_client_left_behind_does_not_overtake_its_next_connection() {
    let mut cluster = Cluster::with(2, 256);
    let volume = cluster.create("/disk.raw", MIB);
    let uri = cluster.uri("/disk.raw");
    for round in 0..5_u8 {
        // A client asks for writes and is gone at once, while the owner is not there.
        let old = b'a' + round;
        let script = format!(
            "h.connect_uri('{uri}')\nimport os, sys\nsys.stdout.write('up\\n'); sys.stdout.flush()\nsys.stdin.readline()\n\
             for i in range(100): h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(b'{}' * 4096)), i * 4096)\n\
             while h.aio_in_flight() > 0 and h.poll(200) == 1: pass\nos._exit(0)",
            char::from(old)
        );
        let mut client = Command::new("/usr/bin/python3")
            .args(["-c", &format!("import nbd\nh = nbd.NBD()\n{script}")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut up = String::new();
        std::io::BufRead::read_line(
            &mut std::io::BufReader::new(client.stdout.as_mut().unwrap()),
            &mut up,
        )
        .unwrap();
        cluster.owner.kill();
        std::io::Write::write_all(client.stdin.as_mut().unwrap(), b"go\n").unwrap();
        assert!(client.wait().unwrap().success());
        cluster.owner.restart();
        let new = char::from(b'A' + round);
        nbdsh(&format!(
            "h.connect_uri('{uri}')\nfor i in range(100): h.pwrite(b'{new}' * 4096, i * 4096)"
        ));
        cluster.owner.restart();
        nbdsh(&format!(
            "h.connect_uri('{uri}')\nassert h.pread(409600, 0) == b'{new}' * 409600"
        ));
    }
    let _ = (volume, Duration::ZERO);
}
