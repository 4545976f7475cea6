//! Every crash point, once: the test program starts itself again with the point armed.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, ExitStatus};

use sconce_runtime::crash::{self, CRASH_ENV, Point};

const ROLE: &str = "SCONCE_TEST_PASS_ALL_POINTS";
const SIGABRT: i32 = 6;

/// Not a test of its own: passes every point twice when started by the others.
#[test]
fn pass_all_points() {
    if std::env::var_os(ROLE).is_none() {
        return;
    }
    for _ in 0..2 {
        for point in Point::ALL {
            println!("passing {}", point.name());
            crash::hit(*point);
        }
    }
}

fn pass_all_with(armed: Option<&str>) -> (ExitStatus, Vec<String>) {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "pass_all_points", "--nocapture", "--test-threads=1"]);
    child.env(ROLE, "1").env_remove(CRASH_ENV);
    if let Some(value) = armed {
        child.env(CRASH_ENV, value);
    }
    let output = child.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let passed = text.lines().filter_map(|line| line.split_once("passing "));
    (output.status, passed.map(|(_, name)| name.to_owned()).collect())
}

#[test]
fn every_point_ends_the_process_where_it_is_armed() {
    for (index, point) in Point::ALL.iter().enumerate() {
        let (status, passed) = pass_all_with(Some(point.name()));
        assert_eq!(status.signal(), Some(SIGABRT), "{point:?}");
        assert_eq!(passed.len(), index + 1, "{point:?} at its first pass");
        assert_eq!(passed.last().map(String::as_str), Some(point.name()));
    }
    let second = format!("{}:2", Point::BeforeAck.name());
    let (status, passed) = pass_all_with(Some(&second));
    assert_eq!(status.signal(), Some(SIGABRT));
    assert_eq!(passed.len(), Point::ALL.len() + 2);
}

#[test]
fn an_unarmed_process_passes_all_and_a_wrong_name_ends_it_with_an_error() {
    let (status, passed) = pass_all_with(None);
    assert!(status.success());
    assert_eq!(passed.len(), Point::ALL.len() * 2);
    let (status, passed) = pass_all_with(Some("after-nothing"));
    assert_eq!(status.code(), Some(2));
    assert_eq!(passed.len(), 1);
}
