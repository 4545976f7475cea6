//! The engine's part: writes and reads of a volume, with everything beside it answered at once.

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use sconce_schemas::geometry::VolumeSize;
use sconce_schemas::records::{DtlMode, EpochStart};
use sconce_schemas::wire::volume::{IoCode, IoFlags, IoRequest, VolumeReply};
use sconce_schemas::{ByteLen, Epoch, ScoId, ScoSize, SessionId, VolumeId};
use sconce_volume::{
    CheckpointPolicy, Effect, Event, Recovery, ScrubPolicy, SessionSlot, Step, SweepPolicy, Ticket, Volume,
    VolumeConfig,
};

const BLOCK: usize = 4096;
const BLOCK_LEN: u64 = BLOCK as u64;
const SIZE: u64 = 8 << 30;
/// Operations in a batch.
const DEPTH: u64 = 32;
/// What is written before reads are counted.
const WRITTEN: u64 = 16_384;

pub(crate) fn writes(operations: u64) -> anyhow::Result<()> {
    let mut engine = Engine::new()?;
    engine.run(IoCode::Write, operations);
    engine.ended(operations)
}

pub(crate) fn reads(operations: u64) -> anyhow::Result<()> {
    let mut engine = Engine::new()?;
    engine.run(IoCode::Write, WRITTEN);
    engine.chance = chance();
    engine.run(IoCode::Read, operations);
    engine.ended(WRITTEN + operations)
}

struct Engine {
    volume: Volume,
    session: SessionSlot,
    data: Bytes,
    chance: fastrand::Rng,
    number: u64,
    /// Operations that were answered, and not by a refusal.
    ended: u64,
    effects: Vec<Effect>,
}

/// The same each time: what is read was written.
fn chance() -> fastrand::Rng {
    fastrand::Rng::with_seed(1)
}

impl Engine {
    fn new() -> anyhow::Result<Self> {
        let config = VolumeConfig {
            id: VolumeId([1; 16]),
            epoch: Epoch(1),
            path: "/counts.raw".into(),
            pool: "default".into(),
            sco_size: ScoSize::default(),
            initial_size: VolumeSize::new(SIZE)?,
            epochs: vec![EpochStart {
                epoch: Epoch(1),
                first_sco: ScoId(1),
            }],
            origin: None,
            map_memory: ByteLen(1 << 30),
            // None is due: they are not counted.
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
        Ok(Self {
            session: volume.open_session(SessionId(1)).context("a session")?,
            volume,
            data: Bytes::from(vec![7; BLOCK]),
            chance: chance(),
            number: 0,
            effects: Vec::new(),
            ended: 0,
        })
    }

    fn run(&mut self, code: IoCode, operations: u64) {
        for _ in 0..operations {
            self.number += 1;
            let number = self.number;
            let data = match code {
                IoCode::Write => self.data.clone(),
                _ => Bytes::new(),
            };
            let request = IoRequest {
                handle: 0,
                number,
                below: number,
                code,
                flags: IoFlags::default(),
                offset: self.chance.u64(0..SIZE / BLOCK_LEN) * BLOCK_LEN,
                length: BLOCK_LEN,
            };
            self.volume.apply(
                Event::Io {
                    ticket: Ticket(number),
                    session: self.session,
                    request,
                    data,
                },
                &mut self.effects,
            );
            if number.is_multiple_of(DEPTH) {
                self.volume
                    .apply(Event::BatchEnd { now_us: number }, &mut self.effects);
            }
            self.answer();
        }
    }

    fn ended(&self, operations: u64) -> anyhow::Result<()> {
        let ended = self.ended;
        // The last batch may be open.
        ensure!(
            ended + DEPTH > operations,
            "of {operations} operations {ended} were done"
        );
        Ok(())
    }

    /// Opening a SCO and holding a batch are answered at once.
    fn answer(&mut self) {
        while let Some(effect) = self.effects.pop() {
            let event = match effect {
                Effect::OpenSco { header } => Event::ScoOpened { sco: header.id },
                Effect::Append(append) => Event::AppendHeld { upto: append.seq },
                Effect::Read { .. }
                | Effect::Reply {
                    reply: VolumeReply::Done,
                    ..
                } => {
                    self.ended += 1;
                    continue;
                }
                _ => continue,
            };
            self.volume.apply(event, &mut self.effects);
        }
    }
}
