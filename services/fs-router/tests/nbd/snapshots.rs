//! Snapshots as exports, and volumes that take no writes, with real clients.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdout, Command, Stdio};

use sconce_schemas::SnapshotId;

use crate::model::{Cluster, Owner, nbdsh, run, succeed};

const MIB: u64 = 1 << 20;
const MONDAY: SnapshotId = SnapshotId(5);

/// A client that stays connected while the test changes the world around it.
struct Client {
    child: Child,
    answers: BufReader<ChildStdout>,
}

impl Client {
    fn connect(uri: &str) -> Client {
        let script = format!(
            "import nbd, sys, errno\nh = nbd.NBD()\nh.set_strict_mode(0)\nh.connect_uri('{uri}')\n\
             for line in sys.stdin:\n  try:\n    print(eval(line), flush=True)\n  \
             except nbd.Error as error:\n    print(errno.errorcode[error.errnum], error.string, flush=True)"
        );
        let mut child = Command::new("timeout")
            .args(["--kill-after=5", "120", "/usr/bin/python3", "-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        let mut client = Client { child, answers };
        // It is connected before the test goes on.
        client.is("h.is_read_only()", "True");
        client
    }

    fn ask(&mut self, expression: &str) -> String {
        let stdin = self.child.stdin.as_mut().unwrap();
        writeln!(stdin, "{expression}").unwrap();
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
        answer.trim().to_owned()
    }

    fn is(&mut self, expression: &str, wanted: &str) {
        assert_eq!(self.ask(expression), wanted, "{expression}");
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// A volume of 1 MiB of `m`, its snapshot of that, and then 3 MiB of `t`.
fn cluster() -> (Cluster, sconce_schemas::VolumeId) {
    let cluster = Cluster::start();
    let volume = cluster.create("/vm1/disk.raw", MIB);
    let uri = cluster.uri("/vm1/disk.raw");
    nbdsh(&format!(
        "h.connect_uri('{uri}')\nh.pwrite(b'm' * 65536, 0)\nh.trim(4096, 4096)"
    ));
    cluster.models.with(volume, |model| {
        model.take_snapshot(MONDAY, "monday");
        model.size = 3 * MIB;
    });
    nbdsh(&format!("h.connect_uri('{uri}')\nh.pwrite(b't' * 65536, 0)"));
    (cluster, volume)
}

#[test]
fn a_snapshot_is_an_export_that_shows_what_was() {
    let (cluster, _) = cluster();
    for name in ["/vm1/disk.raw@monday", "//vm1/disk.raw@monday"] {
        let info = succeed("nbdinfo", &[&cluster.uri(name)]);
        for wanted in [
            "export-size: 1048576",
            "is_read_only: true",
            "can_multi_conn: true",
            "can_df: true",
            "can_flush: true",
            "can_trim: false",
            "can_zero: false",
            "can_fast_zero: false",
            "base:allocation",
            "using structured packets",
        ] {
            assert!(info.contains(wanted), "{wanted:?} is not in {info}");
        }
    }
    let out = nbdsh(&format!(
        r#"
h.add_meta_context("base:allocation")
h.connect_uri("{}")
assert h.pread(12288, 0) == b"m" * 4096 + bytearray(4096) + b"m" * 4096
h.flush()
def extents(context, offset, entries, error):
    print(list(zip(entries[::2], entries[1::2])))
h.block_status(1 << 20, 0, extents)
"#,
        cluster.uri("/vm1/disk.raw@monday")
    ));
    assert_eq!(out, "[(4096, 0), (4096, 3), (57344, 0), (983040, 3)]\n");
    // By several connections, and by the tool that makes backups.
    let back = cluster.dir.path().join("back");
    let (uri, back) = (cluster.uri("/vm1/disk.raw@monday"), back.to_str().unwrap());
    succeed("nbdcopy", &["--connections=4", &uri, back]);
    succeed("qemu-img", &["compare", "-f", "raw", "-F", "raw", back, &uri]);
    assert_eq!(std::fs::metadata(back).unwrap().len(), MIB);
}

#[test]
fn what_takes_no_writes_refuses_them() {
    let (cluster, volume) = cluster();
    cluster.models.with(volume, |model| model.read_only = true);
    for name in ["/vm1/disk.raw@monday", "/vm1/disk.raw"] {
        let mut client = Client::connect(&cluster.uri(name));
        for change in [
            "h.pwrite(b'x' * 4096, 0)",
            "h.trim(4096, 0)",
            "h.zero(4096, 0)",
            "h.pwrite(b'x' * 4096, 0, nbd.CMD_FLAG_FUA)",
        ] {
            let answer = client.ask(change);
            assert!(answer.starts_with("EPERM"), "{name}: {change}: {answer}");
        }
        client.is("len(h.pread(4096, 0))", "4096");
    }
    assert_eq!(cluster.models.with(volume, |model| model.applied), Some(3));
}

#[test]
fn a_snapshot_that_there_is_not_is_told_by_name() {
    let (cluster, _) = cluster();
    for (name, wanted) in [
        (
            "/vm1/disk.raw@tuesday",
            "has no snapshot \"tuesday\"; `sconce snapshot list /vm1/disk.raw` shows",
        ),
        ("/vm1/other.raw@monday", "/vm1/other.raw does not exist"),
        ("/vm1@monday", "/vm1 is a directory"),
        ("/vm1/disk.raw@", "snapshot name"),
        ("/vm1/disk.raw@a@b", "is kept for snapshots"),
    ] {
        let told = run("env", &["LIBNBD_DEBUG=1", "nbdinfo", &cluster.uri(name)]);
        let text = String::from_utf8_lossy(&told.stderr).into_owned();
        assert!(!told.status.success(), "{name}");
        assert!(text.contains(wanted), "{name}: {wanted:?} is not in {text}");
        // What libnbd makes of NBD_REP_ERR_UNKNOWN.
        assert!(text.contains("No such file or directory"), "{name}: {text}");
    }
    // A listing has the volumes only.
    let list = succeed("nbdinfo", &["--list", &cluster.uri("")]);
    assert!(
        list.contains("export=\"/vm1/disk.raw\"") && !list.contains('@'),
        "{list}"
    );
}

#[test]
fn a_snapshot_is_read_on_through_restarts_and_moves_of_its_owner() {
    let (mut cluster, volume) = cluster();
    let mut client = Client::connect(&cluster.uri("/vm1/disk.raw@monday"));
    cluster.owner.restart();
    client.is("h.pread(4096, 0) == b'm' * 4096", "True");
    let other = Owner::start(
        &cluster.network,
        cluster.dir.path(),
        "vr-2",
        cluster.models.clone(),
    );
    cluster.owner.not_mine.lock().unwrap().push(volume);
    cluster.move_volume(volume, &other);
    client.is("h.pread(4096, 8192) == b'm' * 4096", "True");
}

#[test]
fn a_snapshot_that_is_removed_ends_its_readers_even_if_another_takes_its_name() {
    let (mut cluster, volume) = cluster();
    let uri = cluster.uri("/vm1/disk.raw@monday");
    let mut client = Client::connect(&uri);
    client.is("h.pread(4096, 0) == b'm' * 4096", "True");
    cluster.models.with(volume, |model| {
        model.remove_snapshot(MONDAY);
        model.take_snapshot(SnapshotId(6), "monday");
    });
    let answer = client.ask("h.pread(4096, 0)");
    assert!(answer.starts_with("EIO"), "{answer}");
    // Also when it has to be opened again, and each time that it is asked.
    cluster.owner.restart();
    for _ in 0..2 {
        let answer = client.ask("h.pread(4096, 0)");
        assert!(answer.starts_with("EIO"), "{answer}");
    }
    let mut fresh = Client::connect(&uri);
    fresh.is("h.pread(4096, 0) == b't' * 4096, h.get_size()", "(True, 3145728)");
}
