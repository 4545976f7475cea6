//! What changed since a snapshot, as qemu's dirty bitmaps show it, with real clients.

use sconce_schemas::SnapshotId;

use crate::model::{Cluster, nbdsh, run, succeed, wait_for};

const MIB: u64 = 1 << 20;
const MONDAY: SnapshotId = SnapshotId(5);
const TUESDAY: SnapshotId = SnapshotId(6);
const EXPORT: &str = "/vm1/disk.raw";

/// Monday: 64 KiB of `m`. Tuesday: 4 KiB of `t` at 8 KiB, a hole at 16 KiB. Since: 4 KiB of `n` at 1 MiB.
fn cluster() -> Cluster {
    let cluster = Cluster::start();
    let volume = cluster.create(EXPORT, 2 * MIB);
    let uri = cluster.uri(EXPORT);
    let take = |id, name| cluster.models.with(volume, |model| model.take_snapshot(id, name));
    nbdsh(&format!("h.connect_uri('{uri}')\nh.pwrite(b'm' * 65536, 0)"));
    take(MONDAY, "monday");
    nbdsh(&format!(
        "h.connect_uri('{uri}')\nh.pwrite(b't' * 4096, 8192)\nh.trim(4096, 16384)"
    ));
    take(TUESDAY, "tuesday");
    nbdsh(&format!("h.connect_uri('{uri}')\nh.pwrite(b'n' * 4096, 1048576)"));
    cluster
}

/// What `nbdinfo --map` of a context says: offset, length, state.
fn map(cluster: &Cluster, export: &str, context: &str) -> Vec<(u64, u64, u64)> {
    let text = succeed("nbdinfo", &[&format!("--map={context}"), &cluster.uri(export)]);
    let line = |line: &str| {
        let mut words = line.split_whitespace().map_while(|word| word.parse().ok());
        (
            words.next().unwrap(),
            words.next().unwrap(),
            words.next().unwrap(),
        )
    };
    text.lines().map(line).collect()
}

#[test]
fn each_snapshot_is_a_bitmap_of_what_differs_from_it() {
    let cluster = cluster();
    let monday = "qemu:dirty-bitmap:monday";
    let since_monday = [
        (0, 8192, 0),
        (8192, 4096, 1),
        (12288, 4096, 0),
        (16384, 4096, 1),
        (20480, MIB - 20480, 0),
        (MIB, 4096, 1),
        (MIB + 4096, MIB - 4096, 0),
    ];
    assert_eq!(map(&cluster, EXPORT, monday), since_monday);
    let tuesday = map(&cluster, EXPORT, "qemu:dirty-bitmap:tuesday");
    assert_eq!(
        tuesday,
        [(0, MIB, 0), (MIB, 4096, 1), (MIB + 4096, MIB - 4096, 0)]
    );
    // Between two snapshots.
    let between = map(&cluster, "/vm1/disk.raw@tuesday", monday);
    assert_eq!(between[..4], since_monday[..4]);
    assert_eq!(between[4], (20480, 2 * MIB - 20480, 0));
}

#[test]
fn bitmaps_are_listed_with_the_export_and_only_those_that_there_are() {
    let cluster = cluster();
    let listed = |export: &str, queries: &str| {
        let uri = cluster.uri(export);
        nbdsh(&format!(
            "h.set_opt_mode(True)\nh.connect_uri('{uri}')\nnames = []\nfor query in {queries}:\n  \
             h.add_meta_context(query)\nh.opt_list_meta_context(names.append)\nprint(*sorted(names))"
        ))
    };
    // A listing leaves out what an owner does not tell in two seconds.
    let lists = |export: &str, queries: &str, right: &str| {
        wait_for(&format!("{queries} of {export}: {right:?}"), || {
            listed(export, queries) == right
        });
    };
    let all = "base:allocation qemu:dirty-bitmap:monday qemu:dirty-bitmap:tuesday\n";
    lists(EXPORT, "[]", all);
    lists(
        EXPORT,
        "['qemu:']",
        "qemu:dirty-bitmap:monday qemu:dirty-bitmap:tuesday\n",
    );
    lists(EXPORT, "['qemu:dirty-bitmap:', 'base:']", all);
    lists(
        EXPORT,
        "['qemu:dirty-bitmap:tuesday', 'qemu:dirty-bitmap:sunday', 'x:y']",
        "qemu:dirty-bitmap:tuesday\n",
    );
    // Nothing differs from itself.
    lists(
        "/vm1/disk.raw@tuesday",
        "[]",
        "base:allocation qemu:dirty-bitmap:monday\n",
    );
    wait_for("a bitmap beside the export", || {
        succeed("nbdinfo", &[&cluster.uri(EXPORT)]).contains("qemu:dirty-bitmap:monday")
    });
}

#[test]
fn several_contexts_answer_one_question() {
    let cluster = cluster();
    let out = nbdsh(&format!(
        r#"
h.add_meta_context("base:allocation")
h.add_meta_context("qemu:dirty-bitmap:monday")
h.add_meta_context("qemu:dirty-bitmap:tuesday")
h.add_meta_context("qemu:dirty-bitmap:sunday")
h.connect_uri("{}")
for name in ["base:allocation", "qemu:dirty-bitmap:monday", "qemu:dirty-bitmap:sunday"]:
    print(h.can_meta_context(name))
def ask(offset, length, flags=0):
    found = {{}}
    def extents(context, at, entries, error):
        assert at == offset
        found[context] = list(zip(entries[::2], entries[1::2]))
    h.block_status(length, offset, extents, flags)
    for context in sorted(found):
        print(context, found[context])
ask(4096, 16384)
ask(8192, 16384, nbd.CMD_FLAG_REQ_ONE)
h.pwrite(b"x" * 4096, 4096)
ask(4096, 4096)
"#,
        cluster.uri(EXPORT)
    ));
    assert_eq!(
        out,
        "True\nTrue\nFalse\n\
         base:allocation [(12288, 0), (4096, 3)]\n\
         qemu:dirty-bitmap:monday [(4096, 0), (4096, 1), (4096, 0), (4096, 1)]\n\
         qemu:dirty-bitmap:tuesday [(16384, 0)]\n\
         base:allocation [(8192, 0)]\n\
         qemu:dirty-bitmap:monday [(4096, 1)]\n\
         qemu:dirty-bitmap:tuesday [(16384, 0)]\n\
         base:allocation [(4096, 0)]\n\
         qemu:dirty-bitmap:monday [(4096, 1)]\n\
         qemu:dirty-bitmap:tuesday [(4096, 1)]\n"
    );
}

#[test]
fn qemu_reads_a_bitmap() {
    let cluster = cluster();
    let image = format!(
        "driver=nbd,server.type=unix,server.path={},export={EXPORT},x-dirty-bitmap=qemu:dirty-bitmap:monday",
        cluster.socket().display()
    );
    let map = succeed("qemu-img", &["map", "--output=json", "--image-opts", &image]);
    // What is dirty, qemu shows as not being data.
    for dirty in [
        "\"start\": 8192, \"length\": 4096",
        "\"start\": 1048576, \"length\": 4096",
    ] {
        let line = map.lines().find(|line| line.contains(dirty));
        let line = line.unwrap_or_else(|| panic!("{dirty} is not in {map}"));
        assert!(line.contains("\"data\": false"), "{line}");
    }
    let absent = image.replace("monday", "sunday");
    let refused = run("qemu-img", &["map", "--output=json", "--image-opts", &absent]);
    assert!(!refused.status.success());
}

#[test]
fn a_bitmap_stays_with_the_snapshot_that_it_was_selected_for() {
    let mut cluster = cluster();
    let volume = cluster.names.clone();
    let path = EXPORT.parse().unwrap();
    let volume = cluster.block_on(async { volume.resolve(&path).await.unwrap().volume });
    let uri = cluster.uri(EXPORT);
    // The client stays connected while its snapshot is removed and another takes its name.
    let marker = cluster.dir.path().join("go");
    let done = cluster.dir.path().join("ready");
    let script = format!(
        r#"
import nbd, os, time
h = nbd.NBD()
h.add_meta_context("base:allocation")
h.add_meta_context("qemu:dirty-bitmap:monday")
h.connect_uri("{uri}")
h.block_status(4096, 0, lambda *_: 0)
open("{}", "w").close()
while not os.path.exists("{}"):
    time.sleep(0.01)
try:
    h.block_status(4096, 0, lambda *_: 0)
    print("answered")
except nbd.Error as error:
    print(error.string, error.errnum)
print(len(h.pread(4096, 0)))
"#,
        done.display(),
        marker.display()
    );
    let client = std::thread::spawn(move || succeed("/usr/bin/python3", &["-c", &script]));
    crate::model::wait_for("the client", || done.exists());
    cluster.models.with(volume, |model| {
        model.remove_snapshot(MONDAY);
        model.take_snapshot(SnapshotId(9), "monday");
    });
    // The session has to be opened again, by the name.
    cluster.owner.restart();
    std::fs::write(&marker, "").unwrap();
    let out = client.join().unwrap();
    assert!(out.contains("Input/output error") || out.contains(" 5"), "{out}");
    assert!(out.ends_with("4096\n"), "the connection lives on: {out}");
}

#[test]
fn what_is_not_right_is_refused_as_the_protocol_says() {
    let cluster = cluster();
    let uri = cluster.uri(EXPORT);
    // Without structured replies there are no contexts.
    let out = nbdsh(&format!(
        "h.set_request_structured_replies(False)\nh.add_meta_context('qemu:dirty-bitmap:monday')\n\
         h.connect_uri('{uri}')\nprint(h.can_meta_context('qemu:dirty-bitmap:monday'))"
    ));
    assert_eq!(out, "False\n");
    // More than are taken: none is selected, and the client is told.
    let path = EXPORT.parse().unwrap();
    let volume = cluster.block_on(async { cluster.names.resolve(&path).await.unwrap().volume });
    cluster.models.with(volume, |model| {
        (0..40).for_each(|n| model.take_snapshot(SnapshotId(100 + n), &format!("s{n}")));
    });
    let out = nbdsh(&format!(
        "for n in range(17):\n  h.add_meta_context(f'qemu:dirty-bitmap:s{{n}}')\n\
         h.connect_uri('{uri}')\nprint(h.can_meta_context('qemu:dirty-bitmap:s1'), len(h.pread(4096, 0)))"
    ));
    assert_eq!(out, "False 4096\n");
    let out = nbdsh(&format!(
        "for n in range(16):\n  h.add_meta_context(f'qemu:dirty-bitmap:s{{n}}')\n\
         h.connect_uri('{uri}')\nprint(h.can_meta_context('qemu:dirty-bitmap:s15'))"
    ));
    assert_eq!(out, "True\n");
    // The wildcard selects nothing to be used.
    let out = nbdsh(&format!(
        "h.add_meta_context('qemu:dirty-bitmap:')\nh.add_meta_context('qemu:')\nh.connect_uri('{uri}')\n\
         print(h.can_meta_context('qemu:dirty-bitmap:s1'))"
    ));
    assert_eq!(out, "False\n");
}
