use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Mutex;
use std::thread;

use sconce_fs_router::nbd::protocol::handshake::greeting;

use super::*;

const BYTES: u64 = 1 << 20;

/// What a server does to one of the requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Deed {
    Serve,
    /// Waits before it serves.
    Stall(Duration),
    /// Serves, and changes a byte of the disk.
    Corrupt,
    /// Serves no more, and takes the next connection.
    HangUp,
    /// Answers with an error.
    Fail,
}

/// An NBD server over memory, one request after the other; `deed` says what it does to each request, by its number.
fn serve(listener: &UnixListener, deed: impl Fn(u64) -> Deed, disk: &Mutex<Vec<u8>>) -> Option<()> {
    let mut number = 0;
    loop {
        let (mut stream, _) = listener.accept().ok()?;
        // A client that goes ends its connection.
        let _ = converse(&mut stream, &deed, &mut number, disk);
    }
}

fn converse(
    stream: &mut UnixStream,
    deed: &impl Fn(u64) -> Deed,
    number: &mut u64,
    disk: &Mutex<Vec<u8>>,
) -> std::io::Result<()> {
    stream.write_all(&greeting())?;
    let mut go = [0; 4 + 8 + 4 + 4];
    stream.read_exact(&mut go)?;
    let mut body = vec![0; usize::try_from(u32::from_be_bytes(go[16..].try_into().unwrap())).unwrap()];
    stream.read_exact(&mut body)?;
    let mut ack = 0x0003_e889_0455_65a9_u64.to_be_bytes().to_vec();
    ack.extend([0, 0, 0, 7, 0, 0, 0, 1, 0, 0, 0, 0]);
    stream.write_all(&ack)?;
    loop {
        let mut header = [0; 28];
        stream.read_exact(&mut header)?;
        let request = sconce_fs_router::nbd::protocol::request::Request::parse(&header)
            .unwrap()
            .unwrap();
        let deed = deed(*number);
        *number += 1;
        let from = usize::try_from(request.offset).unwrap();
        let range = from..from + usize::try_from(request.length).unwrap();
        let mut answer = 0x6744_6698_u32.to_be_bytes().to_vec();
        answer.extend(if deed == Deed::Fail { [0, 0, 0, 5] } else { [0; 4] });
        answer.extend(request.cookie.to_be_bytes());
        let mut disk = disk.lock().unwrap();
        match request.kind {
            0 if deed != Deed::Fail => answer.extend(&disk[range.clone()]),
            1 => stream.read_exact(&mut disk[range.clone()])?,
            _ => {}
        }
        match deed {
            Deed::Stall(time) => thread::sleep(time),
            Deed::Corrupt => disk[range.start + 100] ^= 1,
            Deed::HangUp => return Ok(()),
            Deed::Serve | Deed::Fail => {}
        }
        drop(disk);
        stream.write_all(&answer)?;
    }
}

fn generated(change: impl FnOnce(&mut Plan), deed: impl Fn(u64) -> Deed + Send + 'static) -> Found {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("nbd.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    // It ends with the test's process.
    thread::spawn(move || {
        let disk = Mutex::new(vec![0; usize::try_from(BYTES).unwrap()]);
        serve(&listener, deed, &disk)
    });
    let mut plan = Plan {
        via: Via::Nbd(socket, "disk".to_owned()),
        bytes: BYTES,
        block: 4096,
        reads: 50,
        per_second: 400.0,
        arrivals: Arrivals::Even,
        in_flight_max: 64,
        flush_each: Some(16),
        is_zero: true,
        fill: false,
        duration: Duration::from_millis(500),
        interval: Duration::from_millis(100),
        seed: 7,
    };
    change(&mut plan);
    run(plan, Arc::default(), || {}, || Ok(Some(Instant::now()))).unwrap()
}

/// A second in which the server answers nothing is waited for by all requests that were due in it, not by one.
#[test]
fn a_server_that_stalls_is_in_the_percentiles_of_what_was_due() {
    let stalled = |plan: &mut Plan| {
        plan.duration = Duration::from_millis(1500);
        plan.per_second = 200.0;
        plan.in_flight_max = 1;
    };
    let deed = |number| match number {
        50 => Deed::Stall(Duration::from_secs(1)),
        _ => Deed::Serve,
    };
    let found = generated(stalled, deed);
    // None was left out: 300 were due.
    assert_eq!((found.all.count, found.skipped, found.errors), (300, 0, 0));
    // 200 of 300 were due while it stalled, on average half a second before its end.
    assert!(found.all.p50_us > 50_000.0, "{:?}", found.all);
    assert!(found.all.p90_us > 500_000.0, "{:?}", found.all);
    assert!(found.all.max_us > 950_000.0, "{:?}", found.all);
    // By the time from their sending one request was slow.
    assert!(found.service.p99_us < 500_000.0, "{:?}", found.service);
    // Which of them it is says when the machine let both begin.
    assert!(
        found
            .samples
            .iter()
            .any(|due| due.answered == 0 && due.times.p50_us > 500_000.0),
        "{:?}",
        found.samples
    );
}

#[test]
fn what_was_written_is_read_and_compared() {
    let found = generated(|plan| plan.fill = true, |_| Deed::Serve);
    assert_eq!(
        (found.errors, found.mismatches, found.reconnects),
        (0, 0, 0),
        "{:?}",
        found.told
    );
    // Reading back alone compares all blocks.
    assert!(found.verified > BYTES / 4096, "{}", found.verified);
    let kinds: Vec<&str> = found.latency.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(kinds, ["read", "write", "flush"]);
    let counted: u64 = found.spread.iter().map(|(_, count)| count).sum();
    assert_eq!((counted, found.all.count), (200, 200));
}

#[test]
fn a_byte_that_changed_is_found() {
    let deed = |number| match number {
        195 => Deed::Corrupt,
        _ => Deed::Serve,
    };
    let found = generated(|plan| (plan.reads, plan.flush_each) = (0, None), deed);
    assert_eq!((found.mismatches, found.errors), (1, 0), "{:?}", found.told);
    assert!(found.told[0].contains("from its byte 100 on"), "{:?}", found.told);
}

#[test]
fn a_connection_that_is_lost_is_made_again_and_an_error_is_told() {
    let deed = |number| match number {
        40 => Deed::HangUp,
        90 => Deed::Fail,
        _ => Deed::Serve,
    };
    let found = generated(|plan| plan.arrivals = Arrivals::Random, deed);
    assert_eq!(
        (found.reconnects, found.errors, found.mismatches),
        (1, 1, 0),
        "{:?}",
        found.told
    );
    assert!(found.told[0].contains("error 5"), "{:?}", found.told);
}
