//! What the engine itself costs: random 4 KiB writes (or reads) in batches, without any IO.
//!
//! `write_cost [write|read] [operations] [depth]`, for `valgrind --tool=callgrind` and for the clock.

use bytes::Bytes;
use sconce_schemas::geometry::VolumeSize;
use sconce_schemas::records::{DtlMode, EpochStart};
use sconce_schemas::wire::volume::{IoCode, IoFlags, IoRequest};
use sconce_schemas::{ByteLen, Epoch, ScoId, ScoSize, SessionId, VolumeId};
use sconce_volume::{
    CheckpointPolicy, Effect, Event, Recovery, ScrubPolicy, Step, SweepPolicy, Ticket, Volume, VolumeConfig,
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let reads = arguments.get(1).is_some_and(|mode| mode == "read");
    let number = |at: usize, default: u64| arguments.get(at).map_or(Ok(default), |text| text.parse());
    let (operations, depth) = (number(2, 200_000)?, number(3, 32)?);
    let config = VolumeConfig {
        id: VolumeId([1; 16]),
        epoch: Epoch(1),
        path: "/cost.raw".into(),
        pool: "default".into(),
        sco_size: ScoSize::default(),
        initial_size: VolumeSize::new(8 << 30)?,
        epochs: vec![EpochStart {
            epoch: Epoch(1),
            first_sco: ScoId(1),
        }],
        origin: None,
        map_memory: ByteLen(1 << 30),
        checkpoint: CheckpointPolicy {
            entries_max: u64::MAX,
            idle_us: u64::MAX,
            age_us: u64::MAX,
            renewal_bytes: u64::MAX,
            renewal_step: 1,
        },
        scrub: ScrubPolicy::default(),
        sweep: SweepPolicy {
            every_us: 0,
            ..SweepPolicy::default()
        },
        dtl: DtlMode::None,
        dtl_behind: ByteLen(0),
    };
    let mut recovery = Recovery::new(config, None, &[])?;
    while let Step::NeedSco { .. } = recovery.step() {
        recovery.sco(None);
    }
    let (mut volume, _) = recovery.finish();
    let mut effects = Vec::new();
    if reads {
        run(&mut volume, &mut effects, IoCode::Write, operations, depth, 1);
    }
    let start = std::time::Instant::now();
    let code = if reads { IoCode::Read } else { IoCode::Write };
    run(&mut volume, &mut effects, code, operations, depth, operations + 1);
    let spent = start.elapsed();
    println!(
        "{operations} operations at depth {depth}: {} ns each",
        spent.as_nanos() / u128::from(operations)
    );
    Ok(())
}

fn run(
    volume: &mut Volume,
    effects: &mut Vec<Effect>,
    code: IoCode,
    operations: u64,
    depth: u64,
    first: u64,
) {
    let Some(session) = volume.open_session(SessionId(1)) else {
        return;
    };
    let data = Bytes::from(vec![7; 4096]);
    let mut chance = fastrand::Rng::with_seed(1);
    for number in first..first + operations {
        let offset = chance.u64(0..(8 << 30) / 4096) * 4096;
        let flags = IoFlags::default();
        let request = IoRequest {
            handle: 0,
            number,
            below: number,
            code,
            flags,
            offset,
            length: 4096,
        };
        let data = if code == IoCode::Write {
            data.clone()
        } else {
            Bytes::new()
        };
        volume.apply(
            Event::Io {
                ticket: Ticket(number),
                session,
                request,
                data,
            },
            effects,
        );
        if number % depth == 0 {
            volume.apply(Event::BatchEnd { now_us: number }, effects);
        }
        // Opening a SCO and holding a batch are answered at once, as the write buffer does.
        while let Some(effect) = effects.pop() {
            match effect {
                Effect::OpenSco { header } => volume.apply(Event::ScoOpened { sco: header.id }, effects),
                Effect::Append(append) => volume.apply(Event::AppendHeld { upto: append.seq }, effects),
                _ => {}
            }
        }
    }
}
