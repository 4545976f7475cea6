//! The events of a trace, as babeltrace2 prints them.
//!
//! Keeps: Sconce's events in little memory, words once each, and what the tracer says that it lost.
//! Order: as babeltrace2 prints, which is that of time over all streams of a trace.
//! Crash: nothing.
//! Knows the text of babeltrace2 2.0; it reads CTF, we do not.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result, bail, ensure};

/// A word that occurs often, by number; 0 is the empty one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Word(u32);

/// Words, each once.
#[derive(Debug)]
pub(super) struct Words {
    numbers: HashMap<String, Word>,
    texts: Vec<String>,
}

impl Default for Words {
    fn default() -> Self {
        let mut words = Self {
            numbers: HashMap::new(),
            texts: Vec::new(),
        };
        words.number("");
        words
    }
}

impl Words {
    fn number(&mut self, text: &str) -> Word {
        if let Some(known) = self.numbers.get(text) {
            return *known;
        }
        // A trace with 2^32 different words does not fit into memory.
        let word = Word(u32::try_from(self.texts.len()).unwrap_or(0));
        self.numbers.insert(text.to_owned(), word);
        self.texts.push(text.to_owned());
        word
    }

    pub(super) fn text(&self, word: Word) -> &str {
        usize::try_from(word.0)
            .ok()
            .and_then(|at| self.texts.get(at))
            .map_or("", String::as_str)
    }

    pub(super) fn known(&self, text: &str) -> Option<Word> {
        self.numbers.get(text).copied()
    }
}

/// An event of Sconce.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Event {
    /// Nanoseconds, since when the trace says.
    pub(super) time: u64,
    pub(super) operation: u64,
    /// Provider and event: `sconce_nbd:entry`.
    pub(super) point: Word,
    pub(super) host: Word,
    /// 0: the session did not record it.
    pub(super) pid: u32,
    pub(super) action: Word,
    pub(super) volume: Word,
    pub(super) status: Word,
    pub(super) address: u64,
    pub(super) length: u64,
}

/// What was recorded.
#[derive(Debug, Default)]
pub(super) struct Recorded {
    pub(super) events: Vec<Event>,
    pub(super) words: Words,
    /// Events that the tracer says it could not record.
    pub(super) lost: u64,
    /// What it said of that.
    pub(super) lost_told: Vec<String>,
    /// Events of other programs.
    pub(super) others: u64,
}

/// Reads a trace: a directory that LTTng wrote, or a file with what babeltrace2 printed of one.
pub(super) fn read(path: &Path) -> Result<Recorded> {
    let of = || format!("trace {}", path.display());
    if path.is_dir() {
        return printed(path).with_context(of);
    }
    let file = File::open(path).with_context(of)?;
    let mut recorded = Recorded::default();
    recorded.take(BufReader::new(file)).with_context(of)?;
    Ok(recorded)
}

/// Has babeltrace2 print it.
fn printed(dir: &Path) -> Result<Recorded> {
    let mut child = Command::new("babeltrace2")
        .args(["--clock-seconds", "--no-delta"])
        .arg("--fields=trace:hostname,trace:procname,trace:vpid")
        .arg(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("babeltrace2 (Debian package babeltrace2)")?;
    let (Some(stdout), Some(mut stderr)) = (child.stdout.take(), child.stderr.take()) else {
        bail!("babeltrace2 has no output");
    };
    // Read meanwhile: a full pipe would hold it.
    let said = thread::spawn(move || {
        let mut said = String::new();
        stderr.read_to_string(&mut said).map(|_| said)
    });
    let mut recorded = Recorded::default();
    let taken = recorded.take(BufReader::with_capacity(1 << 20, stdout));
    let status = child.wait()?;
    let Ok(said) = said.join() else {
        bail!("the thread that reads what babeltrace2 says panicked");
    };
    let said = said?;
    ensure!(status.success(), "babeltrace2: {status}: {}", said.trim());
    taken?;
    said.lines().for_each(|line| recorded.hear(line));
    Ok(recorded)
}

impl Recorded {
    fn take(&mut self, mut lines: impl BufRead) -> Result<()> {
        let (mut line, mut number) = (String::new(), 0_u64);
        loop {
            line.clear();
            if lines.read_line(&mut line)? == 0 {
                return Ok(());
            }
            number += 1;
            let text = line.trim_end();
            if text.starts_with('[') {
                self.event(text)
                    .with_context(|| format!("line {number}: {text}"))?;
            } else {
                self.hear(text);
            }
        }
    }

    /// What babeltrace2 says beside the events.
    fn hear(&mut self, line: &str) {
        let Some((_, behind)) = line.split_once("discarded ") else {
            return;
        };
        let count = behind
            .split_whitespace()
            .next()
            .and_then(|word| word.parse().ok());
        // Packets are whole sub-buffers; how many events were in them nobody knows.
        self.lost += count.unwrap_or(1);
        self.lost_told.push(line.to_owned());
    }

    /// A line `[time] host:procname:vpid provider:event: { … }, { … }`; what is before the event's name may be missing.
    fn event(&mut self, line: &str) -> Result<()> {
        let (head, fields) = line.split_once(": {").context("no event: it has no fields")?;
        let (time, head) = head
            .trim_start_matches('[')
            .split_once(']')
            .context("no event: it has no time")?;
        let mut words = head.split_whitespace();
        let point = words.next_back().unwrap_or_default();
        if !point.starts_with("sconce_") {
            self.others += 1;
            return Ok(());
        }
        // `(+0.000000123)` is the time since the event before.
        let place = words.rfind(|word| !word.starts_with('(')).unwrap_or_default();
        let mut place = place.split(':');
        let host = place.next().unwrap_or_default();
        let number = |name: &str| -> Result<u64> {
            let text = field(fields, name).with_context(|| format!("{point} has no field {name}"))?;
            let parsed = match text.strip_prefix("0x") {
                Some(digits) => u64::from_str_radix(digits, 16),
                None => text.parse(),
            };
            parsed.with_context(|| format!("field {name} is {text:?}, which is no number"))
        };
        let word = |name: &str| field(fields, name).unwrap_or_default();
        let pid = match number("vpid") {
            Ok(pid) => pid,
            // Buffers for each process: it is the stream's.
            Err(_) => place.nth(1).and_then(|pid| pid.parse().ok()).unwrap_or(0),
        };
        let event = Event {
            time: nanoseconds(time).with_context(|| format!("no time: {time:?}"))?,
            operation: number("operation")?,
            point: self.words.number(point),
            host: self.words.number(host),
            pid: u32::try_from(pid)?,
            action: self.words.number(word("action")),
            volume: self.words.number(word("volume")),
            status: self.words.number(word("status")),
            address: number("address")?,
            length: number("length")?,
        };
        self.events.push(event);
        Ok(())
    }
}

/// The value of `name = value`; of an enumeration, `( "word" : container = number )`, its word.
fn field<'a>(fields: &'a str, name: &str) -> Option<&'a str> {
    let mut rest = fields;
    loop {
        let at = rest.find(name)?;
        let (before, behind) = rest.split_at(at);
        rest = behind.get(name.len()..)?;
        // `id` is not `cpu_id`.
        let begins = before.ends_with(' ');
        if let (true, Some(value)) = (begins, rest.strip_prefix(" = ")) {
            let value = value.strip_prefix("( ").unwrap_or(value);
            return match value.strip_prefix('"') {
                Some(text) => text.split('"').next(),
                None => value.split([',', ' ']).next(),
            };
        }
    }
}

/// `seconds.nanoseconds`, or the time of a day as babeltrace2 prints it without `--clock-seconds`.
fn nanoseconds(text: &str) -> Option<u64> {
    let (whole, fraction) = text.split_once('.')?;
    let seconds = whole.split(':').try_fold(0_u64, |sum, part| {
        sum.checked_mul(60)?.checked_add(part.parse().ok()?)
    })?;
    let nanos: u64 = (fraction.len() == 9).then(|| fraction.parse().ok())??;
    seconds.checked_mul(1_000_000_000)?.checked_add(nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = "[1764500000.000000042] host sconce_nbd:entry: { cpu_id = 1 }, { vpid = 42, procname = \"io-0\" }, \
                        { operation = 0x1F, action = ( \"write\" : container = 2 ), volume = \"ab\", address = 4096, \
                        length = 8, status = ( \"ok\" : container = 0 ) }";

    fn taken(text: &str) -> Recorded {
        let mut recorded = Recorded::default();
        recorded.take(text.as_bytes()).unwrap();
        recorded
    }

    #[test]
    fn a_line_becomes_an_event() {
        let recorded = taken(LINE);
        let event = recorded.events[0];
        let text = |word| recorded.words.text(word);
        assert_eq!((event.operation, event.pid), (31, 42));
        assert_eq!((event.address, event.length), (4096, 8));
        assert_eq!(
            (text(event.point), text(event.host)),
            ("sconce_nbd:entry", "host")
        );
        assert_eq!(
            (text(event.action), text(event.status), text(event.volume)),
            ("write", "ok", "ab")
        );
        assert_eq!(event.time, 1_764_500_000_000_000_042);
    }

    #[test]
    fn the_process_may_be_the_streams_and_the_time_that_of_a_day() {
        let line = LINE
            .replace(
                "[1764500000.000000042] host ",
                "[09:00:01.000000005] (+?.?) host:x:77 ",
            )
            .replace("vpid = 42, ", "");
        let recorded = taken(&line);
        assert_eq!(recorded.events[0].pid, 77);
        assert_eq!(recorded.events[0].time, 32_401_000_000_005);
    }

    #[test]
    fn other_programs_are_counted_and_so_is_what_is_lost() {
        let other = LINE.replace("sconce_nbd:entry", "lttng_ust_statedump:start");
        let lost = "WARNING: Tracer discarded 17 events between [1.0] and [2.0] in trace \"x\".";
        let recorded = taken(&[&other, lost, LINE].join("\n"));
        assert_eq!(
            (recorded.others, recorded.lost, recorded.events.len()),
            (1, 17, 1)
        );
    }

    #[test]
    fn what_is_no_event_is_refused_with_its_line() {
        for (bad, why) in [
            ("[x] nothing", "no fields"),
            (&LINE.replace("0x1F", "many"), "field operation is \"many\""),
            (&LINE.replace(", length = 8", ""), "no field length"),
            (&LINE.replace("000000042]", "42]"), "no time"),
        ] {
            let error = Recorded::default().take(bad.as_bytes()).unwrap_err();
            let text = format!("{error:#}");
            assert!(text.contains(why) && text.contains("line 1"), "{text}");
        }
    }
}
