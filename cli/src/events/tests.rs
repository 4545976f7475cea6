//! What is shown of what services tell.

use sconce_schemas::wire::event::Level;

use super::*;
use crate::testing::name;

fn event(seq: u64, time_us: u64, what: What) -> PoolEvent {
    PoolEvent {
        seq,
        time_us,
        level: what.level(),
        volume: None,
        text: what.to_string(),
        what,
    }
}

fn about(volume: u8, path: &str, seq: u64) -> PoolEvent {
    let host = name("vr-2");
    PoolEvent {
        volume: Some(VolumeName {
            id: VolumeId([volume; 16]),
            path: path.to_owned(),
        }),
        text: format!("volume {path}: in sync"),
        ..event(seq, seq, What::InSync { host })
    }
}

fn page(node: &str, run: u64, first: u64, events: Vec<PoolEvent>) -> EventPage {
    EventPage {
        node: name(node),
        run,
        began_us: 50,
        first,
        last: events.last().map_or(0, |event| event.seq),
        events,
    }
}

fn stream(since_us: u64) -> Stream {
    Stream {
        since_us,
        volume: None,
        seen: HashMap::new(),
    }
}

fn told(lines: Lines) -> Vec<(String, String)> {
    lines
        .into_iter()
        .map(|(_, line)| (line.kind, line.text))
        .collect()
}

fn left(time_us: u64, seq: u64) -> PoolEvent {
    let what = What::NodeLeft {
        name: name("vr-1"),
        role: Role::VolumeRouter,
        pid: 7,
    };
    event(seq, time_us, what)
}

#[test]
fn what_is_gone_is_told_and_what_follows_is_not() {
    let mut stream = stream(100);
    let mut heard = Heard::default();
    let lines = told(stream.page(&mut heard, &page("vr-1", 1, 5, vec![about(1, "/a", 150)])));
    assert_eq!(lines[0].0, "gap");
    assert!(lines[0].1.contains("4 older events of vr-1"), "{lines:?}");
    assert_eq!(lines[1].0, "in_sync");
    // One after the other: no gap.
    let lines = stream.page(&mut heard, &page("vr-1", 1, 5, vec![about(1, "/a", 151)]));
    assert_eq!(told(lines).len(), 1);
    // The ring went on while nobody read.
    let lines = told(stream.page(&mut heard, &page("vr-1", 1, 161, vec![about(1, "/a", 161)])));
    assert!(
        lines[0].0 == "gap" && lines[0].1.contains("9 events of vr-1"),
        "{lines:?}"
    );
    // The service is another process.
    let lines = told(stream.page(&mut heard, &page("vr-1", 2, 1, vec![about(1, "/a", 170)])));
    assert!(
        lines[0].0 == "gap" && lines[0].1.contains("started anew") && lines[0].1.contains("its event 161"),
        "{lines:?}"
    );
    assert_eq!((heard.run, heard.after), (2, 170));
}

#[test]
fn what_was_before_the_start_is_told_only_to_those_who_ask_about_it() {
    let whole = |since_us| {
        let events = vec![about(1, "/a", 60), about(1, "/a", 200)];
        told(stream(since_us).page(&mut Heard::default(), &page("vr-1", 1, 1, events)))
    };
    let lines = whole(0);
    assert!(
        lines[0].0 == "gap" && lines[0].1.contains("started at"),
        "{lines:?}"
    );
    assert_eq!(lines.len(), 3);
    assert_eq!(whole(55).len(), 2, "it ran by then");
    assert_eq!(whole(100).len(), 1, "only what happened since");
}

#[test]
fn one_volumes_events_are_found_by_its_id_under_every_path() {
    let mut stream = stream(55);
    stream.volume = Some(("/b".to_owned(), Some(VolumeId([1; 16]))));
    let events = vec![
        about(1, "/a", 60),
        about(2, "/b", 61),
        about(3, "/c", 62),
        left(63, 63),
    ];
    let lines = stream.page(&mut Heard::default(), &page("vr-1", 1, 1, events));
    let volumes: Vec<_> = lines
        .into_iter()
        .map(|(_, line)| (line.volume, line.seq))
        .collect();
    assert_eq!(
        volumes,
        [
            (Some("/a".to_owned()), Some(60)),
            (Some("/b".to_owned()), Some(61))
        ]
    );
}

#[test]
fn a_going_that_several_saw_is_shown_once_and_the_next_one_again() {
    let mut stream = stream(55);
    let (mut first, mut second) = (Heard::default(), Heard::default());
    let shown = |stream: &mut Stream, heard: &mut Heard, node, event| {
        stream.page(heard, &page(node, 1, 1, vec![event])).len()
    };
    assert_eq!(shown(&mut stream, &mut first, "vr-2", left(60, 1)), 1);
    assert_eq!(shown(&mut stream, &mut second, "sr-1", left(61, 1)), 0);
    assert_eq!(
        shown(&mut stream, &mut first, "vr-2", left(70, 2)),
        1,
        "the same observer saw another one"
    );
    assert_eq!(shown(&mut stream, &mut second, "sr-1", left(71, 2)), 0);
    let later = 71 + SAME_WITHIN_US;
    assert_eq!(shown(&mut stream, &mut second, "sr-1", left(later, 3)), 1);
}

/// The golden form: what programs rely on. A field may be added here, never changed or taken away.
#[test]
fn the_json_of_an_event_is_as_documented() {
    let what = What::TwinLost {
        host: name("vr-2"),
        cause: "no answer".to_owned(),
    };
    let event = PoolEvent {
        level: Level::Warning,
        volume: Some(VolumeName {
            id: VolumeId([7; 16]),
            path: "/a".to_owned(),
        }),
        text: "volume /a: lost".to_owned(),
        ..event(9, 1_500_000, what)
    };
    let json = serde_json::to_string(&EventView::of(&name("vr-1"), &event)).unwrap();
    let golden = r#"{"time":"1970-01-01T00:00:01.500000Z","node":"vr-1","seq":9,"kind":"twin_lost","level":"warning","volume":"/a","volume_id":"07070707070707070707070707070707","text":"volume /a: lost","details":{"cause":"no answer","host":"vr-2"}}"#;
    assert_eq!(json, golden);
    let shown = EventView::of(&name("vr-1"), &event).shown();
    assert_eq!(shown, "1970-01-01T00:00:01.500000Z vr-1 warning volume /a: lost");
    // A clock that was wrong is shown all the same.
    assert!(precisely(u64::MAX).starts_with("9999-"));
}
