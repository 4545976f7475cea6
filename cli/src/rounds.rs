//! Keeps: how far storage-routers are with what they do to all that is in a pool: its deep scrub, the move of its objects.
//! Order, crash: nothing; views are values.
//! Knows no cluster.

use sconce_schemas::NodeName;
use sconce_schemas::records::{DeepScrubRecord, MoveRecord, PoolRecord};
use serde::Serialize;

use crate::size;
use crate::view::{time_shown, unknown};

/// A deep scrub that is under way, or the last one.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct DeepScrubView {
    /// Who does it now; null where nobody does.
    node: Option<String>,
    /// Whether a round is asked for that has not begun.
    asked: bool,
    /// When it began.
    begun: String,
    /// When it ended; null while it is under way.
    ended: Option<String>,
    /// When it ends if it goes on as it did; null where it is not under way, or has read nothing.
    estimated_end: Option<String>,
    /// Objects that there were when it began.
    expected_objects: u64,
    /// Objects that it read.
    objects: u64,
    /// Bytes that it read.
    bytes: u64,
    /// Objects of which something was bad, and is good again.
    repaired: u64,
    /// Objects of which a part could not be reached or written.
    left: u64,
    /// Objects of which no good copy is left.
    lost: u64,
}

impl DeepScrubView {
    pub(crate) fn new(record: &DeepScrubRecord, node: Option<&NodeName>, now_us: u64) -> Self {
        let is_under_way = record.ended_us.is_none();
        let estimated = estimated_end(record.begun_us, now_us, record.objects, record.expected);
        Self {
            node: node.map(ToString::to_string),
            asked: record.is_asked,
            begun: time_shown(record.begun_us),
            ended: record.ended_us.map(time_shown),
            estimated_end: estimated.filter(|_| is_under_way),
            expected_objects: record.expected,
            objects: record.objects,
            bytes: record.bytes,
            repaired: record.repaired,
            left: record.left,
            lost: record.lost,
        }
    }

    pub(crate) fn shown(&self) -> String {
        let found = format!(
            "{} of {} objects, {} read, {} repaired, {} could not be reached, {} without a good copy",
            self.objects,
            self.expected_objects,
            size::shown(self.bytes),
            self.repaired,
            self.left,
            self.lost
        );
        match (&self.ended, self.asked) {
            (Some(_), true) => "asked for, begins soon".to_owned(),
            (Some(_), _) if self.expected_objects == 0 => format!("none since {}", self.begun),
            (Some(ended), _) => format!("ended {ended}: {found}"),
            (None, _) => under_way(
                &self.begun,
                self.node.as_ref(),
                &found,
                self.estimated_end.as_ref(),
            ),
        }
    }
}

/// A move of a pool's objects that is under way, or the last one.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct MoveView {
    /// Who does it now; null where nobody does.
    node: Option<String>,
    /// Storage-routers that do not know yet where objects may be; it goes on when they do.
    waits_for: Vec<String>,
    /// When it began.
    begun: String,
    /// When all was where it belongs; null while it is under way.
    ended: Option<String>,
    /// When all has been looked at if it goes on as it did; null where nothing was yet, or what was left is waited for.
    estimated_end: Option<String>,
    /// Objects that there were when they were last counted.
    expected_objects: u64,
    /// Objects of these that were looked at.
    objects: u64,
    /// Objects of which something was moved.
    moved: u64,
    /// Bytes that were written for it.
    bytes: u64,
    /// Objects of which something could not be reached or written yet.
    left: u64,
}

impl MoveView {
    /// `None` where the record is of a move before the one that the pool waits for.
    pub(crate) fn new(
        pool: &PoolRecord,
        record: &MoveRecord,
        node: Option<&NodeName>,
        now_us: u64,
    ) -> Option<Self> {
        let is_under_way = record.ended_us.is_none();
        if pool.change.is_some() && !is_under_way {
            return None;
        }
        let estimated = estimated_end(record.begun_us, now_us, record.objects, record.expected);
        Some(Self {
            node: node.map(ToString::to_string),
            waits_for: record.waits_for.iter().map(ToString::to_string).collect(),
            begun: time_shown(record.begun_us),
            ended: record.ended_us.map(time_shown),
            estimated_end: estimated.filter(|_| is_under_way && record.objects < record.expected),
            expected_objects: record.expected,
            objects: record.objects,
            moved: record.moved,
            bytes: record.bytes,
            left: record.left,
        })
    }

    fn shown(&self) -> String {
        match self.waits_for.as_slice() {
            [] => {}
            [one] => return format!("waiting until {one} knows"),
            several => return format!("waiting until these know: {}", several.join(", ")),
        }
        let found = format!(
            "{} of {} objects looked at, {} moved, {} written",
            self.objects,
            self.expected_objects,
            self.moved,
            size::shown(self.bytes),
        );
        if let Some(ended) = &self.ended {
            return format!("ended {ended}: {found}");
        }
        let found = format!("{found}, {} could not be moved yet", self.left);
        under_way(
            &self.begun,
            self.node.as_ref(),
            &found,
            self.estimated_end.as_ref(),
        )
    }
}

/// How far a pool's objects are from where they are wanted.
pub(crate) fn placement_shown(is_settled: bool, moving: Option<&MoveView>) -> String {
    let last = |moving: &&MoveView| moving.ended.is_some();
    match (is_settled, moving) {
        (true, moving) => match moving.filter(last) {
            Some(moving) => format!("settled; the last move {}", moving.shown()),
            None => "settled".to_owned(),
        },
        (false, Some(moving)) => moving.shown(),
        (false, None) => "announced, begins soon".to_owned(),
    }
}

fn under_way(begun: &str, node: Option<&String>, found: &str, end: Option<&String>) -> String {
    let node = node.map_or("nobody now", String::as_str);
    let end = end.cloned().unwrap_or_else(unknown);
    format!("since {begun} by {node}: {found}; estimated end {end}")
}

/// When what began then ends if it goes on as it did; `None`: nothing was done yet.
fn estimated_end(begun_us: u64, now_us: u64, done: u64, of: u64) -> Option<String> {
    let elapsed = u128::from(now_us.saturating_sub(begun_us));
    let left = u128::from(of.saturating_sub(done));
    let more = (elapsed * left).checked_div(u128::from(done))?;
    let end = now_us.saturating_add(u64::try_from(more).unwrap_or(u64::MAX));
    Some(time_shown(end))
}

#[cfg(test)]
mod tests {
    use sconce_schemas::records::{PlacementEntry, Protection};

    use super::*;

    const AT: u64 = 1_800_000_000_000_000;

    #[test]
    fn the_end_of_a_deep_scrub_is_estimated_by_how_it_went() {
        let record = DeepScrubRecord {
            begun_us: AT,
            expected: 400,
            objects: 100,
            bytes: 5 << 20,
            lost: 1,
            ..DeepScrubRecord::default()
        };
        let node = "sr-1".parse().unwrap();
        let view = DeepScrubView::new(&record, Some(&node), AT + 10_000_000);
        assert_eq!(view.estimated_end, Some(time_shown(AT + 40_000_000)));
        let shown = view.shown();
        assert!(
            shown.contains("by sr-1: 100 of 400 objects") && shown.contains("1 without a good copy"),
            "{shown}"
        );
        let none = DeepScrubRecord {
            objects: 0,
            ..record.clone()
        };
        assert_eq!(DeepScrubView::new(&none, None, AT + 1).estimated_end, None);
        let over = DeepScrubRecord {
            ended_us: Some(AT + 9),
            ..record
        };
        assert_eq!(DeepScrubView::new(&over, None, AT + 10).estimated_end, None);
    }

    fn settled() -> PoolRecord {
        let backends = (1..4).map(|n| format!("disk-{n}"));
        PoolRecord::proposed("vms".to_owned(), Protection::Replicas(2), backends, None, false)
    }

    fn changing() -> PoolRecord {
        let weight = PlacementEntry {
            backend: "disk-4".to_owned(),
            weight: 1,
        };
        settled().announcing(&[weight], &[])
    }

    fn at(pool: &PoolRecord, record: &MoveRecord, seconds: u64) -> String {
        let node = "sr-1".parse().unwrap();
        let view = MoveView::new(pool, record, Some(&node), AT + seconds * 1_000_000);
        placement_shown(pool.change.is_none(), view.as_ref())
    }

    #[test]
    fn a_move_is_shown_from_its_announcement_to_its_end() {
        assert_eq!(placement_shown(true, None), "settled");
        assert_eq!(placement_shown(false, None), "announced, begins soon");
        let waits = |nodes: &[&str]| MoveRecord {
            begun_us: AT,
            waits_for: nodes.iter().map(|node| node.parse().unwrap()).collect(),
            ..MoveRecord::default()
        };
        assert_eq!(at(&changing(), &waits(&["sr-2"]), 1), "waiting until sr-2 knows");
        assert_eq!(
            at(&changing(), &waits(&["sr-2", "sr-3"]), 1),
            "waiting until these know: sr-2, sr-3"
        );
        let record = MoveRecord {
            expected: 400,
            objects: 100,
            moved: 30,
            bytes: 5 << 20,
            left: 2,
            ..waits(&[])
        };
        assert_eq!(
            at(&changing().placing(), &record, 10),
            format!(
                "since {} by sr-1: 100 of 400 objects looked at, 30 moved, 5 MiB written, 2 could not be moved yet; estimated end {}",
                time_shown(AT),
                time_shown(AT + 40_000_000)
            )
        );
        // All was looked at, and what was left waits for its back end: nobody knows until when.
        let left = MoveRecord {
            objects: 400,
            ..record.clone()
        };
        let shown = at(&changing().placing(), &left, 10);
        assert!(shown.ends_with("estimated end -"), "{shown}");
        let over = MoveRecord {
            objects: 400,
            left: 0,
            ended_us: Some(AT + 40_000_000),
            ..record.clone()
        };
        assert_eq!(
            at(&settled(), &over, 50),
            format!(
                "settled; the last move ended {}: 400 of 400 objects looked at, 30 moved, 5 MiB written",
                time_shown(AT + 40_000_000)
            )
        );
        // The end of the move before says nothing of the one that was announced since.
        assert_eq!(at(&changing(), &over, 50), "announced, begins soon");
        // The pool is settled a moment before that is noted.
        assert_eq!(at(&settled(), &record, 50), "settled");
    }

    #[test]
    fn the_json_of_a_move_is_as_documented() {
        let record = MoveRecord {
            begun_us: 0,
            expected: 4,
            objects: 2,
            moved: 1,
            bytes: 4096,
            ..MoveRecord::default()
        };
        let view = MoveView::new(&changing(), &record, None, 1_000_000);
        let golden = r#"{"node":null,"waits_for":[],"begun":"1970-01-01T00:00:00Z","ended":null,"estimated_end":"1970-01-01T00:00:02Z","expected_objects":4,"objects":2,"moved":1,"bytes":4096,"left":0}"#;
        assert_eq!(serde_json::to_string(&view).unwrap(), golden);
    }
}
