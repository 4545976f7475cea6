use std::fmt::Write as _;
use std::fs;

use super::*;

const FS: u32 = 10;
const VOLUME: u32 = 20;
const OTHER: u32 = 21;
const ID: &str = "00112233445566778899aabbccddeeff";

/// Steps of a write: who, what, microseconds since the step before.
const WRITE: [(u32, &str, u64); 9] = [
    (FS, "sconce_nbd:entry", 0),
    (FS, "sconce_bus:request_out", 10),
    (VOLUME, "sconce_bus:request_in", 20),
    (VOLUME, "sconce_volume:receive", 5),
    (VOLUME, "sconce_volume:append", 30),
    (VOLUME, "sconce_volume:ack", 20),
    (VOLUME, "sconce_bus:reply_out", 5),
    (FS, "sconce_bus:reply_in", 5),
    (FS, "sconce_nbd:exit", 5),
];

#[derive(Default)]
struct Trace(Vec<(u64, String)>);

impl Trace {
    /// An event at so many microseconds.
    fn event(&mut self, at_us: u64, (host, pid): (&str, u32), point: &str, operation: u64, action: &str) {
        let volume = if point.starts_with("sconce_bus") { "" } else { ID };
        let line = format!(
            "[{}.{:09}] {host} {point}: {{ cpu_id = 0 }}, {{ vpid = {pid}, procname = \"io\" }}, {{ operation = 0x{operation:X}, \
             action = ( \"{action}\" : container = 1 ), volume = \"{volume}\", address = 4096, length = 512, \
             status = ( \"ok\" : container = 0 ) }}",
            at_us / 1_000_000,
            at_us % 1_000_000 * 1000
        );
        self.0.push((at_us, line));
    }

    /// A write that begins then; its acknowledgement takes so much longer.
    fn write(&mut self, operation: u64, begin_us: u64, longer_us: u64) {
        let mut at = begin_us;
        for (pid, point, after) in WRITE {
            at += after;
            if point == "sconce_volume:ack" {
                at += longer_us;
            }
            self.event(at, ("one", pid), point, operation, "write");
        }
    }

    fn analyzed(mut self, beside: &str) -> Analysis {
        self.0.sort();
        let mut text = beside.to_owned();
        for (_, line) in self.0 {
            let _ = writeln!(text, "{line}");
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("trace.txt");
        fs::write(&path, text).unwrap();
        analysis(&path, &[], 3).unwrap()
    }
}

fn near(found: f64, wanted: f64) -> bool {
    (found - wanted).abs() <= wanted * 0.01
}

#[test]
fn the_time_of_writes_is_where_it_was_spent() {
    let mut trace = Trace::default();
    for number in 1..=200 {
        // Of three the acknowledgement takes 10 ms.
        let longer = if number > 197 { 10_000 } else { 0 };
        trace.write(number, number * 1000, longer);
    }
    let analysis = trace.analyzed("");
    assert_eq!(
        (analysis.operations, analysis.incomplete, analysis.lost),
        (200, 0, 0)
    );
    assert_eq!(
        (analysis.events, analysis.points["sconce_volume:append"]),
        (1800, 200)
    );
    let [write] = analysis.classes.as_slice() else {
        panic!("{:?}", analysis.classes);
    };
    assert_eq!(
        (write.name.as_str(), write.times.count, write.failed),
        ("nbd write", 200, 0)
    );
    assert!(near(write.times.p50_us, 100.0), "{:?}", write.times);
    assert!(near(write.times.max_us, 10_100.0), "{:?}", write.times);
    let steps: Vec<(&str, &str, &str)> = write
        .steps
        .iter()
        .map(|step| (step.from.as_str(), step.to.as_str(), step.place.as_str()))
        .collect();
    assert_eq!(steps.len(), WRITE.len() - 1);
    assert_eq!(steps[1].2, "fs-router → volume-router");
    assert_eq!(
        steps[4],
        (
            "volume-router volume:append",
            "volume-router volume:ack",
            "volume-router"
        )
    );
    // The steps' shares are all of the time; among the slow ones the acknowledgement is.
    let whole: f64 = write.steps.iter().map(|step| step.share).sum();
    assert!(near(whole, 1.0), "{whole}");
    let ack = &write.steps[4];
    assert!(near(
        ack.share,
        (197.0 * 20.0 + 3.0 * 10_020.0) / (200.0 * 100.0 + 30_000.0)
    ));
    assert!(near(ack.slow_share, 10_020.0 / 10_100.0), "{}", ack.slow_share);
    assert!(near(ack.times.p50_us, 20.0) && near(ack.times.max_us, 10_020.0));
    let verdict = write.verdict();
    assert!(
        verdict.starts_with(
            "Most of it, 68.0 %, and 99.2 % of the slowest 1 %, goes into volume-router volume:append → "
        ),
        "{verdict}"
    );
    let place = |name: &str| write.places.iter().find(|place| place.name == name).unwrap();
    assert!(near(place("volume-router").times.p50_us, 60.0));
    assert!(near(place("fs-router").times.p50_us, 15.0));
    // The slowest come first, with all their events.
    let slowest: Vec<f64> = write.slowest.iter().map(|slow| slow.duration_us).collect();
    assert_eq!(slowest, [10_100.0; 3]);
    assert_eq!(write.slowest[0].events.len(), WRITE.len());
    assert_eq!(write.slowest[0].volume, ID);
}

#[test]
fn what_is_cut_off_or_lost_is_told_and_in_no_figure() {
    let mut trace = Trace::default();
    trace.write(1, 1000, 0);
    // Begun before, not ended, and of nobody.
    trace.event(2000, ("one", VOLUME), "sconce_volume:ack", 2, "write");
    trace.event(3000, ("one", FS), "sconce_nbd:entry", 3, "write");
    trace.event(3001, ("one", VOLUME), "sconce_volume:ack", 0, "none");
    let analysis = trace.analyzed("WARNING: Tracer discarded 5 events between [a] and [b] in trace \"x\".\n");
    assert_eq!((analysis.operations, analysis.incomplete), (3, 2));
    assert_eq!((analysis.of_no_operation, analysis.lost), (1, 5));
    assert_eq!(analysis.classes[0].times.count, 1);
    let text = analysis.text();
    assert!(text.contains("lost at least 5 events"), "{text}");
}

#[test]
fn clocks_of_several_machines_are_told_of() {
    let mut trace = Trace::default();
    trace.event(1000, ("one", FS), "sconce_nbd:entry", 1, "read");
    trace.event(1500, ("two", FS), "sconce_volume:receive", 1, "read");
    trace.event(2000, ("one", FS), "sconce_nbd:exit", 1, "read");
    let analysis = trace.analyzed("");
    assert_eq!(analysis.hosts, ["one", "two"]);
    let places: Vec<&str> = analysis.classes[0]
        .steps
        .iter()
        .map(|step| step.place.as_str())
        .collect();
    assert_eq!(
        places,
        [
            "fs-router → volume-router (another machine)",
            "volume-router → fs-router (another machine)"
        ]
    );
    assert!(
        analysis.warnings()[0].contains("only their sum"),
        "{:?}",
        analysis.warnings()
    );
}

#[test]
fn jobs_twins_and_clients_without_points_are_kinds_of_their_own() {
    let mut trace = Trace::default();
    for (at, process, point, operation, action) in [
        (100, VOLUME, "sconce_volume:upload_entry", 1, "put"),
        (900, VOLUME, "sconce_volume:upload_exit", 1, "put"),
        (100, VOLUME, "sconce_volume:twin_send", 2, "write"),
        (150, OTHER, "sconce_volume:twin_receive", 2, "write"),
        (210, VOLUME, "sconce_volume:twin_ack", 2, "write"),
        (300, VOLUME, "sconce_bus:request_in", 3, "none"),
        (310, VOLUME, "sconce_volume:receive", 3, "flush"),
        (350, VOLUME, "sconce_bus:reply_out", 3, "none"),
    ] {
        trace.event(at, ("one", process), point, operation, action);
    }
    let analysis = trace.analyzed("");
    let found: Vec<(&str, f64)> = analysis
        .classes
        .iter()
        .map(|class| (class.name.as_str(), class.times.max_us))
        .collect();
    let names: Vec<&str> = found.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, ["upload", "twin", "bus flush"]);
    assert!(near(found[1].1, 110.0), "{found:?}");
    assert_eq!(
        analysis.classes[1].steps[0].place,
        "volume-router → volume-router"
    );
}

#[test]
fn a_page_has_all_of_it_and_no_volume_is_mistaken_for_another() {
    let mut trace = Trace::default();
    trace.write(0xABC, 1000, 50);
    trace.write(0xDEF, 2000, 0);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("trace.txt");
    let text: Vec<String> = trace.0.into_iter().map(|(_, line)| line).collect();
    fs::write(&path, text.join("\n")).unwrap();
    let analysis = analysis(&path, &[ID.to_owned()], 1).unwrap();
    let mut page = Page::new("trace");
    analysis.add_to(&mut page, &[]).unwrap();
    let html = page.finish();
    for wanted in ["nbd write 0xABC", "volume-router volume:append", "</svg>"] {
        assert!(html.contains(wanted), "{wanted}");
    }
    let error = super::analysis(&path, &["ffff".to_owned()], 1).unwrap_err();
    assert!(error.to_string().contains("no operation of ffff"), "{error}");
    // Figures are read again as they were written.
    let json = serde_json::to_string(&analysis).unwrap();
    let read: Analysis = serde_json::from_str(&json).unwrap();
    assert_eq!(read.classes[0].times.count, 2);
}

/// A read from the back end and a write, as LTTng recorded them (docs/operating/tracing.md has the read as its example).
#[test]
fn what_lttng_recorded_is_read() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/analyze/recorded.txt");
    let analysis = analysis(&path, &[], 1).unwrap();
    assert_eq!(
        (analysis.operations, analysis.incomplete, analysis.lost),
        (2, 0, 0)
    );
    let names: Vec<&str> = analysis.classes.iter().map(|class| class.name.as_str()).collect();
    assert_eq!(names, ["nbd read", "nbd write"]);
    let read = &analysis.classes[0];
    assert_eq!((read.times.count, read.slowest[0].events.len()), (1, 18));
    let place = |name: &str| read.places.iter().find(|place| place.name == name).unwrap();
    assert!(place("storage-router").share > 0.95, "{:?}", read.places);
    let slow = read
        .steps
        .iter()
        .find(|step| step.to == "storage-router backend:exit")
        .unwrap();
    assert_eq!(slow.from, "storage-router backend:get");
    assert!(near(slow.times.max_us, 118_000.0), "{:?}", slow.times);
    assert_eq!((analysis.buffer_bytes, analysis.stored_bytes), (0, 4096));
}
