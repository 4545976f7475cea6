//! Clients that die, lie or flood: each harms only itself.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use sconce_runtime::settings::ByteSize;

use crate::model::{Cluster, LONG, succeed, wait_for};

const MIB: u64 = 1 << 20;
const IHAVEOPT: u64 = 0x4948_4156_454f_5054;

struct Raw {
    stream: UnixStream,
}

impl Raw {
    fn connect(cluster: &Cluster) -> Raw {
        let stream = UnixStream::connect(cluster.socket()).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream.set_write_timeout(Some(LONG)).unwrap();
        Raw { stream }
    }

    /// With the greeting taken and answered.
    fn greeted(cluster: &Cluster) -> Raw {
        let mut raw = Self::connect(cluster);
        let greeting: [u8; 18] = raw.take();
        assert_eq!(&greeting[..8], b"NBDMAGIC");
        raw.send(&3_u32.to_be_bytes());
        raw
    }

    /// Through the handshake by `GO`.
    fn going(cluster: &Cluster, name: &str) -> Raw {
        let mut raw = Self::greeted(cluster);
        raw.option(7, &go(name));
        loop {
            let (kind, _) = raw.option_reply();
            match kind {
                1 => return raw,
                3 => {}
                other => panic!("GO was answered with {other:#x}"),
            }
        }
    }

    fn send(&mut self, bytes: &[u8]) {
        // The server may have hung up already, which reads will show.
        let _ = self.stream.write_all(bytes);
    }

    fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    fn option(&mut self, number: u32, data: &[u8]) {
        self.send(&option(number, data));
    }

    fn option_reply(&mut self) -> (u32, Vec<u8>) {
        let header: [u8; 20] = self.take();
        assert_eq!(&header[..8], &0x0003_e889_0455_65a9_u64.to_be_bytes());
        let kind = u32::from_be_bytes(header[12..16].try_into().unwrap());
        let length = u32::from_be_bytes(header[16..].try_into().unwrap());
        let mut data = vec![0; length as usize];
        self.stream.read_exact(&mut data).unwrap();
        (kind, data)
    }

    fn request(&mut self, flags: u16, kind: u16, cookie: u64, offset: u64, length: u32) {
        self.send(&request(flags, kind, cookie, offset, length));
    }

    /// A simple reply's error and cookie.
    fn simple_reply(&mut self) -> (u32, u64) {
        let header: [u8; 16] = self.take();
        assert_eq!(&header[..4], &0x6744_6698_u32.to_be_bytes());
        let error = u32::from_be_bytes(header[4..8].try_into().unwrap());
        (error, u64::from_be_bytes(header[8..].try_into().unwrap()))
    }

    /// The server hangs up; whatever it says before is taken.
    fn is_hung_up(&mut self) -> bool {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            Ok(_) => true,
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }
}

fn option(number: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = IHAVEOPT.to_be_bytes().to_vec();
    bytes.extend(number.to_be_bytes());
    bytes.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
    bytes.extend(data);
    bytes
}

fn text(text: &str) -> Vec<u8> {
    let mut bytes = u32::try_from(text.len()).unwrap().to_be_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes
}

fn go(name: &str) -> Vec<u8> {
    let mut bytes = text(name);
    bytes.extend(0_u16.to_be_bytes());
    bytes
}

fn request(flags: u16, kind: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    let mut bytes = 0x2560_9513_u32.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(length.to_be_bytes());
    bytes
}

/// A good client is served as ever.
fn check_alive(cluster: &Cluster) {
    assert_eq!(
        succeed("nbdinfo", &["--size", &cluster.uri("/disk.raw")]).trim(),
        "1048576"
    );
}

#[test]
fn handshakes_that_are_wrong_are_answered_or_ended() {
    const INVALID: u32 = (1 << 31) + 3;
    const UNSUPPORTED: u32 = (1 << 31) + 1;
    const UNKNOWN: u32 = (1 << 31) + 6;
    let cluster = Cluster::start();
    cluster.create("/disk.raw", MIB);
    let queries = |count: u32, rest: &[u8]| [&text("/disk.raw")[..], &count.to_be_bytes(), rest].concat();
    // Option, data, the last reply to it.
    let answered: Vec<(u32, Vec<u8>, u32)> = vec![
        (7, vec![], INVALID),
        (7, vec![0, 0, 0, 9], INVALID),
        (7, u32::MAX.to_be_bytes().to_vec(), INVALID),
        (7, [text("/disk.raw"), vec![0, 5]].concat(), INVALID),
        (7, [text("/disk.raw"), vec![0, 0, 0]].concat(), INVALID),
        (7, go("/none"), UNKNOWN),
        (7, go(&"x".repeat(5000)), INVALID),
        (7, go("a\0b"), INVALID),
        (
            7,
            [&4_u32.to_be_bytes()[..], &[0xff; 4], &[0, 0]].concat(),
            INVALID,
        ),
        (6, go("/none"), UNKNOWN),
        (3, vec![1], INVALID),
        (8, vec![1], INVALID),
        // Metadata contexts before structured replies.
        (10, queries(0, &[]), INVALID),
        (9, queries(1, &[]), INVALID),
        (9, queries(u32::MAX, &[]), INVALID),
        (9, queries(0, &[7]), INVALID),
        (9, queries(0, &[]), 1),
        // STARTTLS, extended headers, and what nobody knows.
        (5, vec![], UNSUPPORTED),
        (11, vec![], UNSUPPORTED),
        (0xffff_ffff, vec![1, 2, 3], UNSUPPORTED),
    ];
    for (number, data, wanted) in answered {
        let mut raw = Raw::greeted(&cluster);
        raw.option(number, &data);
        let mut last = raw.option_reply();
        while last.0 == 3 || last.0 == 4 {
            last = raw.option_reply();
        }
        assert_eq!(
            last.0,
            wanted,
            "option {number} with {data:?}: {}",
            String::from_utf8_lossy(&last.1)
        );
        // The handshake goes on.
        raw.option(2, &[]);
        assert_eq!(raw.option_reply().0, 1);
        assert!(raw.is_hung_up());
    }
    let hung_up: Vec<(&str, Vec<u8>)> = vec![
        ("flags of oldstyle", 0_u32.to_be_bytes().to_vec()),
        ("unknown flags", 0x13_u32.to_be_bytes().to_vec()),
        ("no option", [&3_u32.to_be_bytes()[..], &[7; 40]].concat()),
        (
            "an endless option",
            [
                &3_u32.to_be_bytes()[..],
                &IHAVEOPT.to_be_bytes(),
                &[0, 0, 0, 7, 0xff, 0xff, 0xff, 0xff],
            ]
            .concat(),
        ),
        (
            "an unknown export the old way",
            [&3_u32.to_be_bytes()[..], &option(1, b"/none")].concat(),
        ),
        (
            "option after option",
            [&3_u32.to_be_bytes()[..], &option(99, &[]).repeat(200)].concat(),
        ),
    ];
    for (what, bytes) in hung_up {
        let mut raw = Raw::connect(&cluster);
        let _: [u8; 18] = raw.take();
        raw.send(&bytes);
        assert!(raw.is_hung_up(), "{what}");
    }
    check_alive(&cluster);
}

#[test]
fn requests_that_are_wrong_are_answered_or_end_the_connection() {
    const EINVAL: u32 = 22;
    const ENOSPC: u32 = 28;
    let cluster = Cluster::start();
    cluster.create("/disk.raw", MIB);
    let mut raw = Raw::going(&cluster, "disk.raw");
    // Flags, command, offset, length, error.
    for (cookie, (flags, kind, offset, length, error)) in [
        (0, 0, 0, 512, 0),
        (0, 0, u64::MAX, 512, EINVAL),
        (0, 0, MIB, 1, EINVAL),
        (0, 0, 0, u32::MAX, EINVAL),
        (0, 0, 0, (32 << 20) + 1, EINVAL),
        (4, 0, 0, 512, EINVAL),
        (0x80, 0, 0, 512, EINVAL),
        (0, 4, MIB, 1, EINVAL),
        (0, 6, MIB - 512, 1024, ENOSPC),
        (0, 6, u64::MAX - 5, 1024, ENOSPC),
        (0x20, 6, 0, 512, EINVAL),
        // No metadata context, no such commands.
        (0, 7, 0, 512, EINVAL),
        (0, 5, 0, 512, EINVAL),
        (0, 8, 0, 512, EINVAL),
        (0, 0xffff, 0, 512, EINVAL),
        (0, 3, 0, 0, 0),
        (0, 4, 0, 0, 0),
    ]
    .into_iter()
    .enumerate()
    {
        raw.request(flags, kind, cookie as u64, offset, length);
        assert_eq!(
            raw.simple_reply(),
            (error, cookie as u64),
            "command {kind} at {offset}, {length} bytes"
        );
        if kind == 0 && error == 0 {
            let _: [u8; 512] = raw.take();
        }
    }
    // A write that is too large is read over and answered; then the connection goes on.
    raw.request(0, 1, 77, 0, (32 << 20) + 4096);
    for _ in 0..=32 << 8 {
        raw.send(&[9; 4096]);
    }
    assert_eq!(raw.simple_reply(), (EINVAL, 77));
    raw.request(0, 3, 78, 0, 0);
    assert_eq!(raw.simple_reply(), (0, 78));
    // A request that is none ends it.
    raw.send(&[0x42; 28]);
    assert!(raw.is_hung_up());
    check_alive(&cluster);
}

#[test]
fn a_client_that_dies_within_a_write_leaves_nothing() {
    let cluster = Cluster::start();
    let volume = cluster.create("/disk.raw", MIB);
    for length in [4096_u32, 1 << 19] {
        let mut raw = Raw::going(&cluster, "/disk.raw");
        raw.request(0, 1, 1, 0, length);
        raw.send(&vec![1; length as usize - 1]);
    }
    let mut raw = Raw::going(&cluster, "/disk.raw");
    raw.request(0, 3, 5, 0, 0);
    assert_eq!(raw.simple_reply(), (0, 5));
    assert_eq!(cluster.models.with(volume, |model| model.applied), Some(0));
    check_alive(&cluster);
}

#[test]
fn a_client_that_does_not_read_is_not_read_from() {
    let cluster = Cluster::start();
    cluster.create("/disk.raw", MIB);
    let mut raw = Raw::going(&cluster, "/disk.raw");
    raw.stream
        .set_write_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    // Each request asks for the whole volume and no answer is read: the server stops taking requests.
    let read = request(0, 0, 1, 0, 1 << 20);
    let mut taken = 0_u64;
    while raw.stream.write_all(&read.repeat(64)).is_ok() {
        taken += 64;
        assert!(taken < 100_000, "the server takes requests without end");
    }
    let held = resident();
    assert!(held < 600 * MIB, "{held} bytes are resident");
    // Others are served meanwhile, on the same thread.
    check_alive(&cluster);
}

#[test]
fn many_clients_together_hold_no_more_than_the_process_gives() {
    let cluster = Cluster::with_memory(1, 256, ByteSize::new(16 * MIB));
    let volume = cluster.create("/disk.raw", 64 * MIB);
    let before = resident();
    let mut hostile = Vec::new();
    for _ in 0..50 {
        // A write of 8 MiB whose last byte never comes.
        let mut raw = Raw::going(&cluster, "/disk.raw");
        raw.request(0, 1, 1, 0, 8 << 20);
        let short = Some(Duration::from_millis(50));
        raw.stream.set_write_timeout(short).unwrap();
        raw.send(&vec![1; (8 << 20) - 1]);
        hostile.push(raw);
    }
    let grown = resident().saturating_sub(before);
    assert!(grown < 100 * MIB, "memory grew by {} KiB", grown >> 10);
    // Requests of ordinary size do not wait for those.
    let mut raw = Raw::going(&cluster, "/disk.raw");
    raw.request(0, 1, 7, 0, 2 << 20);
    raw.send(&vec![7; 2 << 20]);
    assert_eq!(raw.simple_reply(), (0, 7));
    // Large ones do, until there is room.
    raw.request(0, 1, 8, 0, 8 << 20);
    let mut writer = raw.stream.try_clone().unwrap();
    let sending = std::thread::spawn(move || writer.write_all(&vec![8; 8 << 20]).unwrap());
    drop(hostile);
    assert_eq!(raw.simple_reply(), (0, 8));
    sending.join().unwrap();
    raw.request(0, 3, 9, 0, 0);
    assert_eq!(raw.simple_reply(), (0, 9));
    assert!(cluster.models.with(volume, |model| model.applied) >= Some(2));
}

#[test]
fn answers_that_are_not_read_count_until_they_are() {
    let cluster = Cluster::with_memory(1, 256, ByteSize::new(16 * MIB));
    let volume = cluster.create("/disk.raw", 64 * MIB);
    let mut writer = Raw::going(&cluster, "/disk.raw");
    writer.request(0, 1, 7, 0, 16 << 20);
    writer.send(&vec![7; 16 << 20]);
    assert_eq!(writer.simple_reply(), (0, 7));
    assert!(cluster.models.with(volume, |model| model.applied) > Some(0));
    let before = resident();
    let mut hostile = Vec::new();
    for _ in 0..30 {
        // Reads of 8 MiB whose answers nobody takes.
        let mut raw = Raw::going(&cluster, "/disk.raw");
        for cookie in 0..4 {
            raw.request(0, 0, cookie, 0, 8 << 20);
        }
        hostile.push(raw);
    }
    // Answered after all of those were taken in, or were not.
    writer.request(0, 3, 8, 0, 0);
    assert_eq!(writer.simple_reply(), (0, 8));
    let grown = resident().saturating_sub(before);
    assert!(grown < 200 * MIB, "memory grew by {} KiB", grown >> 10);
    // Others read what is not too large meanwhile, and anything once there is room again.
    let mut reader = Raw::going(&cluster, "/disk.raw");
    let mut read = |length: u32| {
        let mut answer = vec![0; length as usize];
        reader.request(0, 0, 1, 0, length);
        assert_eq!(reader.simple_reply(), (0, 1));
        reader.stream.read_exact(&mut answer).unwrap();
        assert!(answer.iter().all(|byte| *byte == 7));
    };
    read(4 << 20);
    drop(hostile);
    read(16 << 20);
}

fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

#[test]
fn a_flood_of_requests_is_answered_in_order_of_their_end_and_each_once() {
    let cluster = Cluster::start();
    cluster.create("/disk.raw", MIB);
    let mut raw = Raw::going(&cluster, "/disk.raw");
    let count = 20_000_u64;
    let mut writer = Raw {
        stream: raw.stream.try_clone().unwrap(),
    };
    let sending = std::thread::spawn(move || {
        for cookie in 0..count {
            // Flushes and trims: requests without data, more of them than may be under way.
            writer.request(0, if cookie % 2 == 0 { 3 } else { 4 }, cookie, 0, 0);
        }
    });
    let mut seen = vec![false; usize::try_from(count).unwrap()];
    for _ in 0..count {
        let (error, cookie) = raw.simple_reply();
        let once = !std::mem::replace(&mut seen[usize::try_from(cookie).unwrap()], true);
        assert!(error == 0 && once, "{cookie}");
    }
    sending.join().unwrap();
}

#[test]
fn clients_beyond_the_limit_are_turned_away_and_let_in_later() {
    let cluster = Cluster::with(1, 2);
    cluster.create("/disk.raw", MIB);
    let one = Raw::going(&cluster, "/disk.raw");
    let two = Raw::going(&cluster, "/disk.raw");
    assert!(Raw::connect(&cluster).is_hung_up());
    drop((one, two));
    wait_for("a place", || {
        let mut raw = Raw::connect(&cluster);
        let mut greeting = [0; 18];
        raw.stream.read_exact(&mut greeting).is_ok()
    });
    check_alive(&cluster);
}

#[test]
fn a_handshake_that_takes_for_ever_is_ended() {
    let cluster = Cluster::start();
    let mut raw = Raw::greeted(&cluster);
    let started = Instant::now();
    raw.send(&IHAVEOPT.to_be_bytes()[..5]);
    assert!(raw.is_hung_up());
    assert!(started.elapsed() < LONG);
}
