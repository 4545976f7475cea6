use std::collections::HashSet;

use super::list::{ACTIONS, POINTS, STATUSES};
use super::*;

#[test]
fn each_point_is_once_in_the_list_with_a_sconce_provider() {
    let names: HashSet<&str> = Point::ALL.iter().map(|point| point.name()).collect();
    assert_eq!(names.len(), POINTS.len());
    assert_eq!(Point::ALL.len(), POINTS.len());
    for (point, (provider, event, says)) in Point::ALL.iter().zip(POINTS) {
        assert_eq!(point.name(), format!("{provider}:{event}"));
        assert!(
            provider.starts_with("sconce_") && says.ends_with('.'),
            "{provider}:{event}"
        );
    }
}

#[test]
fn numbers_in_traces_are_those_of_the_lists() {
    assert_eq!(ACTIONS[Action::WriteZeroes as usize], "write_zeroes");
    assert_eq!(ACTIONS[Action::Control as usize], "control");
    assert_eq!(STATUSES[Status::Damaged as usize], "damaged");
    assert_eq!(Action::from(IoCode::Flush), Action::Flush);
    assert_eq!(Status::from(&Refusal::damaged("gone")), Status::Damaged);
}

#[test]
fn what_is_off_is_not_even_made() {
    for point in Point::ALL {
        assert!(!point.is_on(), "{}", point.name());
        point.record(|| panic!("{} is off", point.name()));
    }
}

#[cfg(lttng)]
#[test]
fn a_volume_is_written_as_people_write_it() {
    let volume = VolumeId(*b"\x00\x01\x10\xff456789abcdef");
    let text = volume.to_string() + "\0";
    assert_eq!(hex(volume), text.as_bytes());
    assert_eq!(hex(VolumeId::default()), [0; 33]);
}
