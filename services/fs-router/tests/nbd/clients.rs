//! The NBD front end with real clients, over a model of an owner behind the real bus.

use crate::model::{Cluster, LONG, nbdsh, random_file, run, succeed};
use sconce_schemas::wire::volume::IoFlags;

const MIB: u64 = 1 << 20;

#[test]
fn exports_are_listed_and_described() {
    let cluster = Cluster::start();
    cluster.create("/vm1/disk.raw", 64 * MIB);
    cluster.create("/vm2/notes.xml", 2000);
    let list = succeed("nbdinfo", &["--list", &cluster.uri("")]);
    assert!(
        list.contains("export=\"/vm1/disk.raw\"") && list.contains("export=\"/vm2/notes.xml\""),
        "{list}"
    );
    for name in ["/vm1/disk.raw", "//vm1/disk.raw"] {
        let info = succeed("nbdinfo", &[&cluster.uri(name)]);
        for wanted in [
            "export-size: 67108864",
            "protocol: newstyle-fixed without TLS, using structured packets",
            "can_cache: false",
            "can_df: true",
            "can_fast_zero: true",
            "can_flush: true",
            "can_fua: true",
            "can_multi_conn: true",
            "can_trim: true",
            "can_zero: true",
            "is_read_only: false",
            "block_size_minimum: 512",
            "block_size_preferred: 4096",
            "block_size_maximum: 33554432",
            "base:allocation",
        ] {
            assert!(info.contains(wanted), "{wanted:?} is not in {info}");
        }
    }
    assert!(succeed("nbdinfo", &["--size", &cluster.tcp_uri("/vm1/disk.raw")]).contains("67108864"));
    let odd = succeed("nbdinfo", &[&cluster.uri("/vm2/notes.xml")]);
    assert!(
        odd.contains("export-size: 2000") && odd.contains("block_size_minimum: 1"),
        "{odd}"
    );
}

#[test]
fn what_cannot_be_had_is_told_by_name() {
    let cluster = Cluster::start();
    cluster.create("/vm1/disk.raw", MIB);
    for (name, wanted) in [
        ("/vm1/other.raw", "/vm1/other.raw does not exist"),
        ("/vm1", "/vm1 is a directory"),
        ("/vm1/../x", "reserved"),
        ("", "/ is a directory"),
    ] {
        let refused = run("nbdinfo", &[&cluster.uri(&format!("/{name}"))]);
        let text = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success(), "{name}");
        // The client shows the server's text only when it is told to.
        let told = run(
            "env",
            &["LIBNBD_DEBUG=1", "nbdinfo", &cluster.uri(&format!("/{name}"))],
        );
        let told = String::from_utf8_lossy(&told.stderr).into_owned();
        assert!(told.contains(wanted), "{name}: {wanted:?} is not in {text}{told}");
    }
}

#[test]
fn images_go_in_and_come_out_the_same() {
    let cluster = Cluster::with(2, 256);
    cluster.create("/disk.raw", 48 * MIB);
    let dir = cluster.dir.path();
    // Data, a hole, data at an odd place, and an end that is no multiple of anything large.
    let image = random_file(dir, "image", 20 << 20, 1);
    let file = std::fs::OpenOptions::new().write(true).open(&image).unwrap();
    file.set_len(48 * MIB).unwrap();
    let image = image.to_str().unwrap();
    succeed("qemu-io", &["-f", "raw", "-c", "write -P 7 30000640 1536", image]);
    let uri = cluster.uri("/disk.raw");
    succeed(
        "qemu-img",
        &[
            "convert", "-n", "-f", "raw", "-O", "raw", "-W", "-m", "16", image, &uri,
        ],
    );
    succeed("qemu-img", &["compare", "-f", "raw", "-F", "raw", image, &uri]);
    let map = succeed("nbdinfo", &["--map", &uri]);
    assert!(map.contains("hole,zero"), "{map}");
    for (from, back) in [
        (uri.clone(), dir.join("back")),
        (cluster.tcp_uri("/disk.raw"), dir.join("back-tcp")),
    ] {
        succeed("nbdcopy", &[&from, back.to_str().unwrap()]);
        succeed("cmp", &[image, back.to_str().unwrap()]);
        let blocks = std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(&back).unwrap());
        assert!(
            blocks * 512 < 30 * MIB,
            "holes come out as holes: {blocks} blocks"
        );
    }
    // In again by another client, with many connections and large requests.
    cluster.create("/copy.raw", 48 * MIB);
    let copy = cluster.tcp_uri("/copy.raw");
    succeed(
        "nbdcopy",
        &[
            "--connections=4",
            "--request-size=33554432",
            "--flush",
            image,
            &copy,
        ],
    );
    succeed("qemu-img", &["compare", "-f", "raw", "-F", "raw", image, &copy]);
}

#[test]
fn fio_verifies_what_it_wrote() {
    let cluster = Cluster::with(2, 256);
    cluster.create("/fio.raw", 64 * MIB);
    let uri = format!("--uri={}", cluster.uri("/fio.raw"));
    for block in ["--bs=4k", "--bsrange=512-1m"] {
        succeed(
            "fio",
            &[
                "--name=verify",
                "--ioengine=nbd",
                &uri,
                "--rw=randwrite",
                block,
                "--iodepth=32",
                "--size=32m",
                "--numjobs=2",
                "--offset_increment=32m",
                "--verify=crc32c",
                "--verify_fatal=1",
                "--randrepeat=0",
                "--group_reporting",
                "--verify_state_save=0",
            ],
        );
    }
}

#[test]
fn flags_of_commands_reach_the_owner() {
    let cluster = Cluster::start();
    let volume = cluster.create("/disk.raw", 8 * MIB);
    let flags_after = |script: &str| {
        nbdsh(&format!(
            "h.connect_uri('{}')\n{script}",
            cluster.uri("/disk.raw")
        ));
        cluster
            .models
            .with(volume, |model| (model.last_flags, model.written(), model.flushes))
            .unwrap()
    };
    let (flags, written, _) = flags_after("h.pwrite(b'x' * 8192, 0, nbd.CMD_FLAG_FUA)");
    assert_eq!((flags.0, written), (IoFlags::FUA, 2));
    let (flags, written, _) = flags_after("h.zero(4096, 0)");
    assert_eq!((flags.0, written), (0, 1));
    let (flags, written, _) =
        flags_after("h.zero(8192, 4096, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA | nbd.CMD_FLAG_FAST_ZERO)");
    assert_eq!((flags.0, written), (IoFlags::FUA | IoFlags::NO_HOLE, 2));
    let (flags, written, _) = flags_after("h.trim(8 * 1024 * 1024, 0, nbd.CMD_FLAG_FUA)");
    assert_eq!((flags.0, written), (IoFlags::FUA, 0));
    let (_, _, flushes) = flags_after("h.flush()");
    assert_eq!(flushes, 1);
}

#[test]
fn block_status_tells_data_zeros_and_holes() {
    let cluster = Cluster::start();
    cluster.create("/disk.raw", 1 << 41);
    let out = nbdsh(&format!(
        r#"
h.add_meta_context("base:allocation")
h.connect_uri("{}")
h.pwrite(b"d" * 8192, 4096)
h.zero(4096, 12288, nbd.CMD_FLAG_NO_HOLE)
def status(count, offset, flags=0):
    found = []
    def extents(context, offset, entries, error):
        assert context == "base:allocation"
        found.extend(zip(entries[::2], entries[1::2]))
    h.block_status(count, offset, extents, flags)
    print(found)
status(32768, 0)
status(32768, 0, nbd.CMD_FLAG_REQ_ONE)
h.set_strict_mode(0)
status(5000, 4608)
status(0xffffe000, 1 << 40)
h.trim(1 << 31, 0)
status(32768, 0)
"#,
        cluster.uri("/disk.raw")
    ));
    assert_eq!(
        out,
        "[(4096, 3), (8192, 0), (4096, 2), (16384, 3)]\n[(4096, 3)]\n[(5000, 0)]\n[(4294959104, 3)]\n[(32768, 3)]\n"
    );
}

#[test]
fn a_read_comes_as_chunks_or_whole() {
    let cluster = Cluster::start();
    cluster.create("/disk.raw", 8 * MIB);
    let uri = cluster.uri("/disk.raw");
    let out = nbdsh(&format!(
        r#"
h.connect_uri("{uri}")
h.pwrite(b"a" * 4096 + b"b" * 4096, 4096)
def chunks(flags):
    found = []
    def chunk(data, offset, status, error):
        found.append((offset, len(data), status))
    data = h.pread_structured(20480, 0, chunk, flags)
    assert data == bytearray(4096) + b"a" * 4096 + b"b" * 4096 + bytearray(8192)
    print(found)
chunks(0)
chunks(nbd.CMD_FLAG_DF)
# Not aligned to anything.
h.set_strict_mode(0)
assert h.pread(5, 4094) == bytearray(2) + b"aaa"
h.pwrite(b"zz", 8191)
assert h.pread(6, 8189) == b"aazzbb"
# Larger than a part of the routing core.
import random
big = random.Random(1).randbytes(3 * 1024 * 1024)
h.pwrite(big, 100000)
assert h.pread(len(big), 100000) == big
"#
    ));
    // 1: data, 2: hole.
    assert_eq!(
        out,
        "[(0, 4096, 2), (4096, 8192, 1), (12288, 8192, 2)]\n[(0, 20480, 1)]\n"
    );
    // Without structured replies.
    nbdsh(&format!(
        "h.set_request_structured_replies(False)\nh.connect_uri('{uri}')\n\
         assert h.pread(20480, 0)[4096:8191] == b'a' * 4095\nassert h.pread(4096, 4 << 20) == bytearray(4096)"
    ));
}

#[test]
fn large_requests_on_a_large_empty_volume_are_cheap() {
    let cluster = Cluster::start();
    cluster.create("/disk.raw", 1 << 41);
    let started = std::time::Instant::now();
    nbdsh(&format!(
        "h.connect_uri('{}')\nstep = (1 << 32) - 4096\nat = 0\n\
         while at < 1 << 41:\n  count = min(step, (1 << 41) - at)\n  h.trim(count, at)\n  h.zero(count, at)\n  at += count",
        cluster.uri("/disk.raw")
    ));
    assert!(started.elapsed() < LONG, "{:?}", started.elapsed());
}

#[test]
fn a_resize_is_seen_by_the_next_connection() {
    let cluster = Cluster::start();
    let volume = cluster.create("/disk.raw", MIB);
    let size = || {
        succeed("nbdinfo", &["--size", &cluster.uri("/disk.raw")])
            .trim()
            .to_owned()
    };
    assert_eq!(size(), "1048576");
    cluster.models.with(volume, |model| model.size = 3 * MIB);
    assert_eq!(size(), "3145728");
}

#[test]
fn a_volume_of_an_odd_size_is_read_and_written_to_its_last_byte() {
    let cluster = Cluster::start();
    cluster.create("/notes.xml", 2001);
    let text = random_file(cluster.dir.path(), "text", 2001, 3);
    let (text, uri) = (text.to_str().unwrap(), cluster.uri("/notes.xml"));
    succeed("nbdcopy", &[text, &uri]);
    let back = cluster.dir.path().join("back");
    succeed("nbdcopy", &[&uri, back.to_str().unwrap()]);
    succeed("cmp", &[text, back.to_str().unwrap()]);
    succeed("qemu-img", &["compare", "-f", "raw", "-F", "raw", text, &uri]);
}

#[test]
fn errors_are_the_protocols() {
    let cluster = Cluster::start();
    let volume = cluster.create("/disk.raw", MIB);
    let failing = |script: &str| {
        nbdsh(&format!(
            "import errno\nh.set_strict_mode(0)\nh.connect_uri('{}')\n\
             try:\n  {script}\n  print('done')\nexcept nbd.Error as error:\n  print(errno.errorcode[error.errnum])",
            cluster.uri("/disk.raw")
        ))
        .trim()
        .to_owned()
    };
    assert_eq!(failing("h.pwrite(b'x' * 4096, 1 << 20)"), "ENOSPC");
    assert_eq!(failing("h.zero(8192, (1 << 20) - 4096)"), "ENOSPC");
    assert_eq!(failing("h.pread(4096, 1 << 20)"), "EINVAL");
    assert_eq!(failing("h.trim(8192, (1 << 20) - 4096)"), "EINVAL");
    assert_eq!(failing("h.cache(4096, 0)"), "EINVAL");
    cluster.models.with(volume, |model| model.read_only = true);
    assert_eq!(failing("h.pwrite(b'x' * 4096, 0)"), "EPERM");
    assert!(succeed("nbdinfo", &[&cluster.uri("/disk.raw")]).contains("is_read_only: true"));
    // The connection survives errors.
    cluster.models.with(volume, |model| model.read_only = false);
    assert_eq!(
        failing(
            "\n  for i in range(5):\n    try:\n      h.pread(4096, 1 << 20)\n    except nbd.Error: pass\n  h.pread(4096, 0)"
        ),
        "done"
    );
}
