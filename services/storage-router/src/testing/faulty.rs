//! A back end that goes wrong on purpose, by a seed.
//!
//! Keeps: which faults happen, and the seeded source that decides when.
//! Order: one draw for each request, in the order of the requests: a seed repeats a run.
//! Crash: torn puts leave what a crash in the middle of a put leaves.
//! Knows no kind of back end. Bits flip below the envelope's check, as on a disk, so `Checked` has to notice.

use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::BytesMut;
use sconce_runtime::Chance;
use sconce_schemas::object::ObjectKind;
use sconce_schemas::stored_object::SealedObject;
use sconce_schemas::{ObjectName, VolumeId};

use crate::backend::{Backend, BackendError, Pending, Space, StoredRange};

/// Which faults happen, each so many times in a thousand requests (1000: always).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Faults {
    /// A request takes up to [`Faults::delay_max`] longer.
    pub slow: u16,
    /// The longest delay of a slow request.
    pub delay_max: Duration,
    /// A put finds no space.
    pub full: u16,
    /// A request is not done: the back end cannot be reached.
    pub absent: u16,
    /// One bit of what a read gives is flipped.
    pub flip: u16,
    /// A request is done, but its answer says that the back end cannot be reached.
    pub lost_answer: u16,
    /// A put ends in the middle: half of its bytes stay in a temporary file.
    pub torn: u16,
}

/// A back end that goes wrong on purpose. Faults can be changed while it is in use.
pub struct FaultyBackend {
    inner: Arc<dyn Backend>,
    state: Mutex<State>,
    torn_dir: Option<PathBuf>,
}

struct State {
    faults: Faults,
    chance: Chance,
    torn: u64,
}

/// What was drawn for one request.
struct Drawn {
    delay: Option<Duration>,
    is_full: bool,
    is_absent: bool,
    flip: Option<u64>,
    is_answer_lost: bool,
    torn: Option<u64>,
}

impl FaultyBackend {
    /// `inner` with `faults`, drawn from `seed`.
    #[must_use]
    pub fn new(inner: Arc<dyn Backend>, faults: Faults, seed: u64) -> Self {
        Self {
            inner,
            state: Mutex::new(State {
                faults,
                chance: Chance::seeded(seed),
                torn: 0,
            }),
            torn_dir: None,
        }
    }

    /// Torn puts leave their halves in this folder: a directory back end's folder of temporary files.
    #[must_use]
    pub fn with_torn_files_in(mut self, folder: PathBuf) -> Self {
        self.torn_dir = Some(folder);
        self
    }

    /// Other faults from now on.
    pub fn set(&self, faults: Faults) {
        self.lock().faults = faults;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn draw(&self) -> Drawn {
        let State { faults, chance, torn } = &mut *self.lock();
        let mut happens = |times: u16| chance.one_of(u64::from(times), 1000);
        let (is_slow, is_full, is_absent) =
            (happens(faults.slow), happens(faults.full), happens(faults.absent));
        let (is_flipped, is_answer_lost, is_torn) = (
            happens(faults.flip),
            happens(faults.lost_answer),
            happens(faults.torn),
        );
        let delay_max = u64::try_from(faults.delay_max.as_micros()).unwrap_or(u64::MAX);
        let delay = Duration::from_micros(chance.below(delay_max.saturating_add(1)));
        *torn += u64::from(is_torn);
        Drawn {
            delay: is_slow.then_some(delay),
            is_full,
            is_absent,
            flip: is_flipped.then(|| chance.u64()),
            is_answer_lost,
            torn: is_torn.then_some(*torn),
        }
    }

    /// A request with the faults that every kind of request can have.
    async fn with_faults<T>(&self, drawn: &Drawn, request: Pending<'_, T>) -> Result<T, BackendError> {
        if let Some(delay) = drawn.delay {
            tokio::time::sleep(delay).await;
        }
        if drawn.is_absent {
            return Err(unreachable_now("absent on purpose"));
        }
        let answer = request.await;
        if drawn.is_answer_lost {
            return Err(unreachable_now("answer lost on purpose"));
        }
        answer
    }

    async fn put(&self, object: SealedObject, is_new: bool) -> Result<(), BackendError> {
        let drawn = self.draw();
        if drawn.is_full {
            return Err(BackendError::Full);
        }
        if let Some(number) = drawn.torn {
            self.leave_half(number, &object)?;
            return Err(unreachable_now("torn on purpose"));
        }
        let request = if is_new {
            self.inner.put_new(object)
        } else {
            self.inner.replace(object)
        };
        self.with_faults(&drawn, request).await
    }

    fn leave_half(&self, number: u64, object: &SealedObject) -> Result<(), BackendError> {
        let Some(folder) = &self.torn_dir else {
            return Ok(());
        };
        let stored = object.to_stored();
        fs::write(folder.join(format!("torn-{number}")), &stored[..stored.len() / 2])
            .map_err(|error| unreachable_now(&error.to_string()))
    }
}

fn unreachable_now(why: &str) -> BackendError {
    BackendError::Unavailable { why: why.to_owned() }
}

fn flip_bit(stored: &mut StoredRange, random: u64) {
    let bits = stored.bytes.len() as u64 * 8;
    let Some(bit) = random.checked_rem(bits) else {
        return;
    };
    let mut bytes = BytesMut::from(stored.bytes.as_ref());
    if let Some(byte) = usize::try_from(bit / 8).ok().and_then(|at| bytes.get_mut(at)) {
        *byte ^= 1 << (bit % 8);
    }
    stored.bytes = bytes.freeze();
}

impl Backend for FaultyBackend {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn put_new(&self, object: SealedObject) -> Pending<'_, ()> {
        Box::pin(self.put(object, true))
    }

    fn replace(&self, object: SealedObject) -> Pending<'_, ()> {
        Box::pin(self.put(object, false))
    }

    fn read(&self, name: ObjectName, offset: u64, length: u64) -> Pending<'_, StoredRange> {
        Box::pin(async move {
            let drawn = self.draw();
            let request = self.inner.read(name, offset, length);
            let mut stored = self.with_faults(&drawn, request).await?;
            if let Some(random) = drawn.flip {
                flip_bit(&mut stored, random);
            }
            Ok(stored)
        })
    }

    fn list(
        &self,
        volume: VolumeId,
        kind: ObjectKind,
        after: Option<ObjectName>,
        limit: usize,
    ) -> Pending<'_, Vec<ObjectName>> {
        Box::pin(async move {
            let request = self.inner.list(volume, kind, after, limit);
            self.with_faults(&self.draw(), request).await
        })
    }

    fn list_volumes(&self, after: Option<VolumeId>, limit: usize) -> Pending<'_, Vec<VolumeId>> {
        Box::pin(async move {
            let request = self.inner.list_volumes(after, limit);
            self.with_faults(&self.draw(), request).await
        })
    }

    fn delete(&self, name: ObjectName) -> Pending<'_, ()> {
        Box::pin(async move {
            let request = self.inner.delete(name);
            self.with_faults(&self.draw(), request).await
        })
    }

    fn space(&self) -> Pending<'_, Space> {
        Box::pin(async move {
            let request = self.inner.space();
            self.with_faults(&self.draw(), request).await
        })
    }
}
