//! What is said of volumes: at risk, waiting, and how many.

use sconce_schemas::records::{LastMove, MoveWhy, Moving};
use sconce_schemas::{ByteLen, Epoch, ScoSize, VolumeSize};

use super::*;
use crate::testing::{name, volume};

fn record(number: u8, dtl_state: DtlState) -> VolumeRecord {
    VolumeRecord {
        inode: 100,
        epoch: Epoch(3),
        buffer: Some("b-1".to_owned()),
        dtl_mode: match dtl_state {
            DtlState::Off => DtlMode::None,
            _ => DtlMode::Sync,
        },
        dtl_host: (dtl_state == DtlState::InSync).then(|| name("vr-2")),
        dtl_state,
        epoch_since_us: Some(1_000_000),
        ..volume(number, "vr-1")
    }
}

fn said(record: &VolumeRecord, unstored: u64, state: &str) -> VolumeStatus {
    VolumeStatus {
        id: record.id,
        size: VolumeSize::default(),
        allocated: ByteLen(0),
        owner: record.owner.clone(),
        epoch: if state == "serving" {
            record.epoch
        } else {
            Epoch::NONE
        },
        dtl_state: record.dtl_state,
        dtl_mode: Some(record.dtl_mode),
        dtl_host: record.dtl_host.clone(),
        sco_size: ScoSize::default(),
        unstored: ByteLen(unstored),
        map_memory: ByteLen(0),
        state: state.to_owned(),
        state_since_us: Some(2_000_000),
        path: Some(format!("/v{}", record.id.0[0])),
        dtl_trouble: None,
        history: None,
        flatten: None,
        scrub: None,
    }
}

fn views(records: &[VolumeRecord], said: &[VolumeStatus], running: &[&str]) -> Vec<OwnedView> {
    let running: Vec<NodeName> = running.iter().map(|text| name(text)).collect();
    let owner = name("vr-1");
    let answers = [(&owner, said)];
    let answers = if running.contains(&owner) {
        &answers[..]
    } else {
        &[]
    };
    // Each in a failure domain of its own, but for those that are called as of one rack.
    let running = running.iter().map(|node| {
        let domain = node
            .as_str()
            .split_once(".rack")
            .map_or(node.as_str(), |_| "rack");
        (node, domain)
    });
    let owned = Owned::new(records, answers, running);
    let paths = owned
        .to_name(true)
        .into_iter()
        .map(|id| (id, format!("/v{}", id.0[0])));
    let paths = paths.collect();
    owned.views(&paths)
}

#[test]
fn bytes_in_one_write_buffer_are_at_risk_and_those_in_two_are_not() {
    let records = [
        record(1, DtlState::InSync),
        record(2, DtlState::Degraded),
        record(3, DtlState::Off),
        record(4, DtlState::Off),
    ];
    let answers = [
        said(&records[0], 500, "serving"),
        said(&records[1], 4096, "serving"),
        said(&records[2], 8192, "serving"),
        said(&records[3], 0, "serving"),
    ];
    let views = views(&records, &answers, &["vr-1", "vr-2"]);
    let at_risk: Vec<_> = views.iter().map(|view| view.at_risk_bytes).collect();
    assert_eq!(at_risk, [Some(0), Some(4096), Some(8192), Some(0)]);
    let risks = risks(&views);
    assert_eq!(
        (
            risks.len(),
            risks[0].node.as_str(),
            risks[0].bytes,
            risks[0].volumes
        ),
        (1, "vr-1", 12_288, 2)
    );
    assert_eq!(risks[0].paths, ["/v3", "/v2"], "the most first");
    let counts = counts(&views);
    assert_eq!(
        (counts.total, counts.in_sync, counts.degraded, counts.without_twin),
        (4, 1, 1, 2)
    );
    // What nobody asked a twin for is at risk and no problem.
    let problems = problems(&views);
    assert!(
        problems.len() == 1 && problems[0].ends_with("/v2"),
        "{problems:?}"
    );
    let table = attention_table(&views).unwrap();
    assert!(table.contains("/v2") && !table.contains("/v3"), "{table}");
    assert_eq!(views[1].owned_since.as_deref(), Some("1970-01-01T00:00:01Z"));
    assert_eq!(views[1].state_since.as_deref(), Some("1970-01-01T00:00:02Z"));
}

#[test]
fn a_twin_in_the_owners_failure_domain_is_a_problem_of_those_that_wait_for_it() {
    let near = |number| VolumeRecord {
        owner: name("vr-1.rack"),
        dtl_host: Some(name("vr-2.rack")),
        ..record(number, DtlState::InSync)
    };
    let records = [
        near(1),
        VolumeRecord {
            dtl_mode: DtlMode::Async,
            ..near(2)
        },
        VolumeRecord {
            dtl_host: Some(name("vr-3")),
            ..near(3)
        },
    ];
    let answers: Vec<VolumeStatus> = records.iter().map(|record| said(record, 1, "serving")).collect();
    let owner = name("vr-1.rack");
    let (second, third) = (name("vr-2.rack"), name("vr-3"));
    let running = [(&owner, "rack"), (&second, "rack"), (&third, "elsewhere")];
    let answers = [(&owner, answers.as_slice())];
    let views = Owned::new(&records, &answers, running.into_iter()).views(&BTreeMap::new());
    let shared = views.iter().map(|view| view.dtl_shared_domain.as_deref());
    assert_eq!(shared.collect::<Vec<_>>(), [Some("rack"), Some("rack"), None]);
    let problems = problems(&views);
    assert!(
        problems.len() == 1 && problems[0].ends_with(": /v1") && problems[0].starts_with("1 volumes"),
        "{problems:?}"
    );
}

#[test]
fn moves_that_go_on_and_the_last_ones_that_nobody_asked_for_are_shown() {
    let moved = |number, why, at_us| VolumeRecord {
        last_move: Some(LastMove {
            from: name("vr-2"),
            to: name("vr-1"),
            at_us,
            why,
        }),
        ..record(number, DtlState::InSync)
    };
    let going = VolumeRecord {
        moving: Some(Moving {
            from: name("vr-1"),
            to: name("vr-2"),
            mode: DtlMode::Sync,
            why: MoveWhy::Asked,
        }),
        ..record(1, DtlState::InSync)
    };
    let records = [
        going,
        moved(2, MoveWhy::Io, 1_000_000),
        moved(3, MoveWhy::Balance, 9_000_000),
        moved(4, MoveWhy::Asked, 5_000_000),
    ];
    let table = move_table(&views(&records, &[], &["vr-1", "vr-2"])).unwrap();
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines.len(), 4, "{table}");
    for (line, text) in lines[1..]
        .iter()
        .zip(["as was asked", "had more volumes", "its IO comes from there"])
    {
        assert!(line.contains(text), "{table}");
    }
    assert_eq!(move_table(&views(&records[3..], &[], &["vr-1"])), None);
}

#[test]
fn nothing_is_said_where_nothing_is_at_risk() {
    let records = [record(1, DtlState::InSync)];
    let answers = [said(&records[0], 500, "serving")];
    let views = views(&records, &answers, &["vr-1", "vr-2"]);
    assert_eq!((risks(&views), problems(&views)), (Vec::new(), Vec::new()));
    assert_eq!(
        (attention_table(&views), risk_table(&risks(&views))),
        (None, None)
    );
    assert_eq!(counts_line(&counts(&views)), "1 volumes: 1 serving; 1 in sync");
}

#[test]
fn a_volume_whose_owner_is_gone_says_what_to_do() {
    let waits = |record: VolumeRecord, running: &[&str]| {
        let mut views = views(&[record], &[], running);
        let view = views.pop().unwrap();
        assert_eq!((view.state.as_str(), view.path.as_str()), ("waits", "/v1"));
        (view.needs.unwrap(), view.at_risk_bytes)
    };
    let (needs, at_risk) = waits(record(1, DtlState::Degraded), &["vr-2"]);
    assert!(
        needs.contains("only in its write buffer b-1") && needs.ends_with("takeover /v1 --force"),
        "{needs}"
    );
    assert_eq!(at_risk, None, "nobody can say how much");
    let (needs, at_risk) = waits(record(1, DtlState::InSync), &["vr-2"]);
    assert!(
        needs.contains("vr-2 takes it over by itself") && !needs.contains("--force"),
        "{needs}"
    );
    assert_eq!(at_risk, Some(0));
    let (needs, _) = waits(record(1, DtlState::InSync), &["vr-3"]);
    assert!(
        needs.contains("Start one of the two") && needs.ends_with("--force"),
        "{needs}"
    );
    let released = VolumeRecord {
        buffer: None,
        ..record(1, DtlState::Off)
    };
    let (needs, at_risk) = waits(released, &["vr-2"]);
    assert!(!needs.contains("--force"), "{needs}");
    assert_eq!(at_risk, Some(0));
}

#[test]
fn an_owner_says_itself_what_its_volume_waits_for() {
    let records = [record(1, DtlState::Degraded), record(2, DtlState::Off)];
    let answers = [
        said(&records[0], 0, "volume /v1 may have lost something"),
        said(&records[1], 0, "starting"),
    ];
    let views = views(&records, &answers, &["vr-1"]);
    assert_eq!(
        views[0].needs.as_deref(),
        Some("volume /v1 may have lost something")
    );
    assert_eq!(
        (views[1].state.as_str(), &views[1].needs),
        ("starting", &None),
        "that passes by itself"
    );
    assert_eq!(risks(&views)[0].unknown_volumes, 2);
    assert!(risk_table(&risks(&views)).unwrap().contains("unknown"));
}

#[test]
fn ten_thousand_volumes_make_a_short_table() {
    let records: Vec<VolumeRecord> = (0..10_000_u16)
        .map(|number| {
            let mut record = record(0, DtlState::Degraded);
            record.id.0[..2].copy_from_slice(&number.to_be_bytes());
            record
        })
        .collect();
    let answers: Vec<VolumeStatus> = records
        .iter()
        .map(|record| said(record, 4096, "serving"))
        .collect();
    let views = views(&records, &answers, &["vr-1"]);
    let table = attention_table(&views).unwrap();
    assert!(table.lines().count() < LISTED_MAX + 4, "{table}");
    assert!(table.contains("and 9980 more"), "{table}");
    assert!(risk_table(&risks(&views)).unwrap().lines().count() == 2);
    assert_eq!(problems(&views).len(), 1);
}
