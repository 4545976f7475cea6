//! Reads of objects that are kept as fragments.
//!
//! Keeps: heads that were read, so that a read of a range is one read of one back end.
//! Order: the fragment that holds the range; where that is missing, bad or slow, the range is rebuilt from others.
//! Crash: nothing.
//! Knows no kind of back end.

use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use sconce_fragments::{open_chunk, rebuild};
use sconce_schemas::ObjectName;
use sconce_schemas::fragment::{ChunkPlace, FragmentHead, SHARD_UNIT};

use super::gather::{Gathered, gather};
use super::{Coded, Known, Set, closed};
use crate::backend::BackendError;
use crate::checked::{CHECK_HERE_BYTES, damaged};
use crate::pool::repair::is_gone_for_good;
use crate::pool::{Answer, Pool};

/// What is read of a fragment for its head: the heads of objects up to some 30 MiB are not longer.
const HEAD_GUESS: u64 = 4096;

/// A part of a read: what it needs of one fragment.
struct Part {
    fragment: usize,
    /// Chunks that have it.
    chunks: Range<usize>,
    /// Where the first of them begins in the object.
    at: u64,
    /// They lie there as they are, neither compressed nor encrypted: of the first and the last only a part is read. What
    /// lies before them in the body may be compressed all the same.
    is_clear: bool,
    /// What is wanted of the object.
    wanted: Range<u64>,
}

impl Pool {
    /// Reads a range of an object; fewer bytes, or none, where it ends before.
    pub(in crate::pool) async fn read_fragments(
        self: &Arc<Self>,
        name: ObjectName,
        range: Range<u64>,
    ) -> Result<Bytes, Vec<Answer>> {
        let Some(coded) = &self.coded else {
            return Err(Vec::new());
        };
        let mut noted = Vec::new();
        // What is asked of an object that is gone must not be answered for by its head.
        let known = self
            .known(coded, &name)
            .filter(|known| range.start < range.end.min(known.set.head.cut().length));
        let known = match known {
            Some(known) => known,
            None => self.read_head(coded, name, &mut noted).await?,
        };
        let is_any_gone = |answers: &[Answer]| answers.iter().any(|answer| is_gone_for_good(&answer.error));
        let done = match self.read_by(coded, name, &known.set, &range, &mut noted).await {
            Err(answers) if is_any_gone(&answers) => {
                coded.forget(&name);
                self.read_by_survey(coded, name, &known.set, &range, answers)
                    .await
            }
            done => done,
        };
        if done.is_ok() {
            if self.was_changed() && is_any_gone(&noted) {
                // It may have moved.
                coded.forget(&name);
            }
            self.repair_later(name, &noted);
        }
        done
    }

    /// Length of an object, as one of its fragments says now.
    pub(in crate::pool) async fn length_by_fragments(
        self: &Arc<Self>,
        name: ObjectName,
    ) -> Result<u64, Vec<Answer>> {
        let Some(coded) = &self.coded else {
            return Err(Vec::new());
        };
        let mut noted = Vec::new();
        let known = self.read_head(coded, name, &mut noted).await?;
        self.repair_later(name, &noted);
        Ok(known.set.head.cut().length)
    }

    /// Some fragments contradict the head that was taken: by that of most of them.
    async fn read_by_survey(
        self: &Arc<Self>,
        coded: &Coded,
        name: ObjectName,
        tried: &Set,
        range: &Range<u64>,
        answers: Vec<Answer>,
    ) -> Result<Bytes, Vec<Answer>> {
        let survey = self.survey(coded, name).await;
        let chosen = survey.chosen(self.quorum).map(|set| Arc::clone(&set.head));
        let mut seats = survey.seats;
        // Who did not answer may have another one of them.
        for (fragment, _) in survey.failed.iter().filter(|(_, error)| !is_gone_for_good(error)) {
            if let Some(seat) = seats.get_mut(*fragment).filter(|_| self.was_changed()) {
                *seat = None;
            }
        }
        let Some(head) = chosen.filter(|head| *head != tried.head || seats != tried.seats) else {
            return Err(answers);
        };
        let best = Set { head, seats };
        let mut noted = Vec::new();
        let read = self.read_by(coded, name, &best, range, &mut noted).await?;
        if best.seats.iter().all(Option::is_some) {
            self.know(coded, name, best);
        }
        noted.extend(answers);
        self.repair_later(name, &noted);
        Ok(read)
    }

    /// The head that as many fragments have as are needed to read; one that fewer have is of a put that was never answered
    /// for, or was refused. What was found bad before is noted.
    async fn read_head(
        &self,
        coded: &Coded,
        name: ObjectName,
        noted: &mut Vec<Answer>,
    ) -> Result<Arc<Known>, Vec<Answer>> {
        let seats = self.seats(name, coded.needed()).await;
        let order = self.working_first(&seats.of, 0..self.width);
        let read = |fragment: usize| self.head_of(coded, name, fragment, &seats);
        let needed = coded.needed();
        let Gathered { good, failed } = gather(&order, needed, coded.care.hedge_after, read).await;
        let mut failed = answers(&seats.of, failed);
        let first = good.first().map(|(_, head)| Arc::clone(head));
        let is_one = good.iter().all(|(_, head)| Some(head) == first.as_ref());
        let head = match first {
            None => return Err(failed),
            Some(head) if good.len() == needed && is_one => head,
            Some(_) => {
                let survey = self.survey(coded, name).await;
                match survey.chosen(self.quorum) {
                    Some(set) => Arc::clone(&set.head),
                    None => {
                        failed.extend(survey.answers());
                        failed.extend(survey.too_few(self.quorum));
                        return Err(failed);
                    }
                }
            }
        };
        noted.extend(failed);
        if seats.away.iter().all(Option::is_none) {
            let seats = seats.of;
            return Ok(self.know(coded, name, Set { head, seats }));
        }
        // Who did not answer may have another one of them than the one that is looked for there.
        let known = |(seat, away): (Option<usize>, &Option<BackendError>)| seat.filter(|_| away.is_none());
        let seats = seats.of.into_iter().zip(&seats.away).map(known).collect();
        Ok(Arc::new(Known {
            set: Set { head, seats },
            placement_version: self.record.placement_version,
        }))
    }

    /// The head of a fragment, at a back end.
    pub(super) async fn head_at(
        &self,
        coded: &Coded,
        name: ObjectName,
        fragment: usize,
        backend: Option<usize>,
    ) -> Result<Arc<FragmentHead>, BackendError> {
        let backend = self.backend(backend.ok_or(BackendError::NotFound)?)?;
        let number = u8::try_from(fragment).unwrap_or(u8::MAX);
        let (id, mut bytes) = backend.get_start(name, number, HEAD_GUESS).await?;
        let length = FragmentHead::len_of(&bytes).map_err(|error| damaged(&error))?;
        if length > bytes.len() {
            bytes = backend.get_of(name, Some(id), 0, length as u64).await?;
        }
        let head = FragmentHead::from_bytes(&bytes).map_err(|error| damaged(&error))?;
        if head.set() != id.set {
            return Err(BackendError::Damaged {
                what: format!(
                    "its envelope says head {:08x}, its head is {:08x}",
                    id.set,
                    head.set()
                ),
            });
        }
        if coded.policy.encrypted && head.sealing().is_none() {
            return Err(BackendError::Damaged {
                what: "it is in clear, and the pool is encrypted".to_owned(),
            });
        }
        let cut = head.cut();
        if (usize::from(cut.data), cut.width()) != (coded.needed(), self.width) {
            return Err(BackendError::Damaged {
                what: format!(
                    "it is one of {}+{} fragments, and the pool keeps {}",
                    cut.data, cut.parity, self.record.protection
                ),
            });
        }
        Ok(Arc::new(head))
    }

    /// Reads a range by this head from these back ends.
    async fn read_by(
        &self,
        coded: &Coded,
        name: ObjectName,
        set: &Set,
        range: &Range<u64>,
        noted: &mut Vec<Answer>,
    ) -> Result<Bytes, Vec<Answer>> {
        let parts = parts_of(&set.head, range);
        let reads = parts.iter().map(|part| self.read_part(coded, name, set, part));
        let mut read = Vec::with_capacity(parts.len());
        for (bytes, failed) in futures_util::future::join_all(reads).await {
            match bytes {
                Some(bytes) => {
                    read.push(bytes);
                    noted.extend(failed);
                }
                None => return Err(failed),
            }
        }
        if let [only] = &mut read[..] {
            return Ok(std::mem::take(only));
        }
        let mut whole = BytesMut::with_capacity(read.iter().map(Bytes::len).sum());
        read.iter().for_each(|bytes| whole.extend_from_slice(bytes));
        Ok(whole.freeze())
    }

    async fn read_part(
        &self,
        coded: &Coded,
        name: ObjectName,
        set: &Set,
        part: &Part,
    ) -> (Option<Bytes>, Vec<Answer>) {
        // With one piece, each fragment holds it: gathering one of them is all that there is to do.
        if set.head.cut().data == 1 {
            return self.rebuild_part(coded, name, set, part, None).await;
        }
        let direct = self.read_direct(coded, name, set, part);
        let seat = set.seats.get(part.fragment).copied().flatten();
        let is_working = seat.is_some_and(|seat| self.backend(seat).is_ok_and(|backend| backend.works()));
        tokio::pin!(direct);
        if is_working {
            let first = tokio::time::timeout(coded.care.hedge_after, &mut direct).await;
            match first {
                Ok(Ok(bytes)) => return (Some(bytes), Vec::new()),
                Ok(Err(error)) => {
                    let failed = Answer {
                        backend: seat.unwrap_or(0),
                        error,
                    };
                    if matches!(failed.error, BackendError::Locked { .. }) {
                        return (None, vec![failed]);
                    }
                    let (bytes, mut more) = self
                        .rebuild_part(coded, name, set, part, Some(part.fragment))
                        .await;
                    more.insert(0, failed);
                    return (bytes, more);
                }
                Err(_) => {}
            }
        }
        let others = self.rebuild_part(coded, name, set, part, Some(part.fragment));
        tokio::pin!(others);
        tokio::select! {
            biased;
            read = &mut direct => match read {
                Ok(bytes) => (Some(bytes), Vec::new()),
                Err(error) => {
                    let (bytes, mut more) = others.await;
                    more.insert(0, Answer { backend: seat.unwrap_or(0), error });
                    (bytes, more)
                }
            },
            (bytes, mut failed) = &mut others => match bytes {
                Some(bytes) => (Some(bytes), failed),
                None => match direct.await {
                    Ok(bytes) => (Some(bytes), failed),
                    Err(error) => {
                        failed.insert(0, Answer { backend: seat.unwrap_or(0), error });
                        (None, failed)
                    }
                },
            },
        }
    }

    /// Out of the fragment that holds it.
    async fn read_direct(
        &self,
        coded: &Coded,
        name: ObjectName,
        set: &Set,
        part: &Part,
    ) -> Result<Bytes, BackendError> {
        let seat = set.seats.get(part.fragment).copied().flatten();
        let body = part.body_range(&set.head);
        let stored = self.read_body(name, set, part.fragment, seat, body).await?;
        self.open_part(coded, name, set, part, stored).await
    }

    /// A range of a fragment's body; where the body ends before, what there is.
    pub(super) async fn read_body(
        &self,
        name: ObjectName,
        set: &Set,
        fragment: usize,
        seat: Option<usize>,
        range: Range<u64>,
    ) -> Result<Bytes, BackendError> {
        let end = range.end.min(set.head.body_bytes(fragment));
        if range.start >= end {
            return Ok(Bytes::new());
        }
        let backend = self.backend(seat.ok_or_else(unknown)?)?;
        let (body_at, due) = (set.head.cut().body_at() as u64, end - range.start);
        let read = backend
            .get_of(name, set.head.id_of(fragment), body_at + range.start, due)
            .await?;
        if read.len() as u64 == due {
            return Ok(read);
        }
        Err(BackendError::Damaged {
            what: format!("{} of {due} bytes of fragment {fragment} are there", read.len()),
        })
    }

    /// Out of others than the fragment that holds it (`without`), or out of any.
    async fn rebuild_part(
        &self,
        coded: &Coded,
        name: ObjectName,
        set: &Set,
        part: &Part,
        without: Option<usize>,
    ) -> (Option<Bytes>, Vec<Answer>) {
        let cut = *set.head.cut();
        let body = part.body_range(&set.head);
        let unit = SHARD_UNIT as u64;
        let aligned = if cut.data == 1 {
            body.clone()
        } else {
            body.start / unit * unit..body.end.next_multiple_of(unit)
        };
        let is_candidate = |fragment: &usize| without != Some(*fragment);
        let order = self.working_first(&set.seats, (0..cut.width()).filter(is_candidate));
        let read = |fragment: usize| {
            let (seat, aligned) = (set.seats.get(fragment).copied().flatten(), aligned.clone());
            let length = to_usize(aligned.end - aligned.start);
            async move {
                let read = self.read_body(name, set, fragment, seat, aligned).await?;
                if cut.data == 1 {
                    return self.open_part(coded, name, set, part, read).await;
                }
                Ok(padded(read, length))
            }
        };
        let needed = usize::from(cut.data);
        let Gathered { mut good, failed } = gather(&order, needed, coded.care.hedge_after, read).await;
        let mut failed = answers(&set.seats, failed);
        if good.len() < needed {
            // Where nobody is absent, what is there is all that is left.
            let is_gone = failed.iter().all(|answer| is_gone_for_good(&answer.error));
            // Bodies that end before were not asked for.
            let mut there = good
                .iter()
                .filter(|(fragment, _)| set.head.body_bytes(*fragment) > aligned.start);
            if let Some((fragment, _)) = there.next().filter(|_| is_gone) {
                let what = format!("of its fragments too few are left: {needed} are needed");
                let error = BackendError::Damaged { what };
                let backend = set.seats.get(*fragment).copied().flatten().unwrap_or(0);
                failed.push(Answer { backend, error });
            }
            return (None, failed);
        }
        if cut.data == 1 {
            return (good.pop().map(|(_, bytes)| bytes), failed);
        }
        let (fragment, parities) = (part.fragment, usize::from(cut.parity));
        let within = to_usize(body.start - aligned.start)..to_usize(body.end - aligned.start);
        let bytes = (within.len() * needed) as u64;
        let job = move || {
            let rebuilt = rebuild(needed, parities, &good, &[fragment]);
            let body = rebuilt.ok().and_then(|mut rebuilt| rebuilt.pop());
            body.map(|(_, body)| body.slice(within))
                .ok_or_else(|| BackendError::Damaged {
                    what: "it cannot be rebuilt from the others".to_owned(),
                })
        };
        let stored = self.on_workers(bytes, job).await;
        let opened = match stored {
            Ok(stored) => self.open_part(coded, name, set, part, stored).await,
            Err(error) => Err(error),
        };
        match opened {
            Ok(bytes) => (Some(bytes), failed),
            Err(error) => {
                let backend = set.seats.get(fragment).copied().flatten().unwrap_or(0);
                failed.push(Answer { backend, error });
                (None, failed)
            }
        }
    }

    async fn open_part(
        &self,
        coded: &Coded,
        name: ObjectName,
        set: &Set,
        part: &Part,
        stored: Bytes,
    ) -> Result<Bytes, BackendError> {
        if part.is_clear {
            return Ok(stored);
        }
        let (head, keys) = (Arc::clone(&set.head), Arc::clone(&coded.care.keys));
        let (chunks, wanted) = (part.chunks.clone(), part.wanted.clone());
        let bytes = wanted.end - wanted.start;
        self.on_workers(bytes, move || {
            let mut left = stored;
            let places = head.cut().chunks().skip(chunks.start).take(chunks.len());
            let opened = places.map(|place| -> Result<Bytes, BackendError> {
                let stored = head.chunk(place.index).map_or(0, |chunk| chunk.stored as usize);
                let stored = left.split_to(stored.min(left.len()));
                let clear = open_chunk(name, &head, &place, &keys, stored).map_err(closed)?;
                Ok(clear.slice(within(&place, &wanted)))
            });
            let mut opened = opened.collect::<Result<Vec<Bytes>, BackendError>>()?;
            if let [only] = &mut opened[..] {
                return Ok(std::mem::take(only));
            }
            let mut whole = BytesMut::with_capacity(opened.iter().map(Bytes::len).sum());
            opened.iter().for_each(|bytes| whole.extend_from_slice(bytes));
            Ok(whole.freeze())
        })
        .await
    }

    async fn on_workers<T: Send + 'static>(
        &self,
        bytes: u64,
        job: impl FnOnce() -> Result<T, BackendError> + Send + 'static,
    ) -> Result<T, BackendError> {
        if bytes > CHECK_HERE_BYTES as u64 {
            return self.workers.run(bytes, job).await;
        }
        job()
    }

    /// Fragments in their order, those on back ends that failed last time last.
    pub(super) fn working_first(
        &self,
        seats: &[Option<usize>],
        fragments: impl Iterator<Item = usize>,
    ) -> Vec<usize> {
        let mut order: Vec<usize> = fragments.collect();
        order.sort_by_key(|fragment| {
            let seat = seats.get(*fragment).copied().flatten();
            !seat.is_some_and(|seat| self.backend(seat).is_ok_and(|backend| backend.works()))
        });
        order
    }
}

impl Part {
    /// What it needs of the body of its fragment.
    fn body_range(&self, head: &FragmentHead) -> Range<u64> {
        let first = head.chunk(self.chunks.start).map_or(0, |chunk| chunk.at);
        if self.is_clear {
            let start = first + (self.wanted.start - self.at);
            return start..start + (self.wanted.end - self.wanted.start);
        }
        let last = head.chunk(self.chunks.end - 1);
        first..last.map_or(first, |chunk| chunk.at + u64::from(chunk.stored))
    }
}

/// Where a fragment is could not be told.
fn unknown() -> BackendError {
    BackendError::Unavailable {
        why: "the back end that may have it did not answer".to_owned(),
    }
}

/// What a range needs of each fragment, in order.
fn parts_of(head: &FragmentHead, range: &Range<u64>) -> Vec<Part> {
    let cut = head.cut();
    let all = cut.chunks_holding(range);
    let mut parts: Vec<Part> = Vec::new();
    for place in cut.chunks().skip(all.start).take(all.len()) {
        let fragment = usize::from(place.fragment);
        let within = place.at.max(range.start)..(place.at + place.length as u64).min(range.end);
        match parts.last_mut().filter(|last| last.fragment == fragment) {
            Some(last) => {
                last.wanted.end = within.end;
                last.chunks.end = place.index + 1;
            }
            None => parts.push(Part {
                fragment,
                chunks: place.index..place.index + 1,
                at: place.at,
                is_clear: false,
                wanted: within,
            }),
        }
    }
    for part in &mut parts {
        let is_compressed = |index| head.chunk(index).is_some_and(|chunk| chunk.is_compressed);
        // In the clear, the envelope's checks of 4 KiB each are enough: they hold for this fragment of this set alone.
        part.is_clear = head.sealing().is_none() && !part.chunks.clone().any(is_compressed);
    }
    parts
}

/// What is wanted of a chunk.
fn within(place: &ChunkPlace, wanted: &Range<u64>) -> Range<usize> {
    let at = |offset: u64| to_usize(offset.saturating_sub(place.at)).min(place.length);
    at(wanted.start)..at(wanted.end)
}

fn padded(read: Bytes, length: usize) -> Bytes {
    if read.len() >= length {
        return read;
    }
    let mut padded = BytesMut::with_capacity(length);
    padded.extend_from_slice(&read);
    padded.resize(length, 0);
    padded.freeze()
}

pub(super) fn answers(seats: &[Option<usize>], failed: Vec<(usize, BackendError)>) -> Vec<Answer> {
    let answer = |(fragment, error): (usize, BackendError)| Answer {
        backend: seats.get(fragment).copied().flatten().unwrap_or(0),
        error,
    };
    failed.into_iter().map(answer).collect()
}

/// Only for lengths within an object.
fn to_usize(bounded: u64) -> usize {
    usize::try_from(bounded).unwrap_or(usize::MAX)
}
