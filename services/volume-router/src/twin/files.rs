//! One stream of a twin: the SCO files that it has, and what waits for a free one.
//!
//! Keeps: the files by SCO and epoch, how far each is written and synced, the copy under way, the queue.
//! Order: what the stream says is done in its order; while one thing waits for a file, all that follows waits behind it.
//! Crash: batches are whole or do not validate; half a copy has no header, so it is no SCO.
//! Knows no registry and no other stream.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use sconce_bus::Reply;
use sconce_schemas::sco::ScoHeader;
use sconce_schemas::wire::twin::TwinSay;
use sconce_schemas::wire::volume::VolumeReply;
use sconce_schemas::wire::{Refusal, RefusalCode};
use sconce_schemas::{Epoch, ScoId, ScoSize, VolumeId};
use tokio::time::Instant;

use crate::device::{Device, FoundSco, ScoFile};

/// What may wait for a free file, in requests and in bytes. An owner waits two seconds for an answer, and then for none.
const WAITING_MAX: usize = 1024;
const WAITING_BYTES_MAX: usize = 64 << 20;

/// Names a SCO of a stream: copies are of earlier ownerships too.
pub(super) type Key = (ScoId, Epoch);

/// Names a stream among those of a volume: numbers begin anew in each ownership.
pub(super) type StreamId = (Epoch, u64);

/// Something that a stream said, with whom to answer.
pub(super) struct Said {
    pub(super) say: TwinSay,
    pub(super) data: Bytes,
    pub(super) reply: Reply<VolumeReply>,
}

/// What came of it.
pub(super) enum Outcome {
    Done,
    /// There is no free file: [`Stream::waiting`] has it.
    Waits,
    /// These files are to be synced; then it is done.
    Sync(Vec<Unsynced>),
    /// This SCO has all of its parts; once it is synced it is done.
    Copied(FoundSco),
}

/// A file with appends that are not synced, and how many it had when that was asked.
pub(super) struct Unsynced {
    pub(super) key: Key,
    pub(super) written: u64,
    pub(super) file: Arc<ScoFile>,
}

/// Why a stream is over.
pub(super) enum Broken {
    /// It said what makes no sense.
    Said(String),
    /// The write buffer failed.
    Device(io::Error),
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::InvalidInput => Self::Said(error.to_string()),
            _ => Self::Device(error),
        }
    }
}

impl Broken {
    pub(super) fn refusal(&self, path: &str) -> Refusal {
        let text = match self {
            Self::Said(text) => format!("the twin of volume {path} was told what makes no sense: {text}"),
            Self::Device(error) => {
                format!("the write buffer that has the twin of volume {path} failed: {error}")
            }
        };
        match self {
            Self::Said(_) => Refusal::reject(RefusalCode::Invalid, text),
            Self::Device(_) => Refusal::retry(RefusalCode::Unavailable, text),
        }
    }
}

struct Sco {
    header: ScoHeader,
    file: Arc<ScoFile>,
    /// Appends so far, and of these the ones that are synced.
    written: u64,
    synced: u64,
}

struct Copying {
    header: ScoHeader,
    file: Arc<ScoFile>,
    /// Its first part up to here is written last.
    header_area: Bytes,
    next: u64,
    length: u64,
}

/// A stream.
pub(super) struct Stream {
    pub(super) volume: VolumeId,
    pub(super) epoch: Epoch,
    pub(super) number: u64,
    pub(super) path: String,
    pub(super) sco_size: ScoSize,
    /// When it last said anything.
    pub(super) heard: Instant,
    waiting: VecDeque<Said>,
    waiting_bytes: usize,
    scos: BTreeMap<Key, Sco>,
    copy: Option<Copying>,
    released: ScoId,
    device: Device,
}

impl Stream {
    pub(super) fn new(
        device: &Device,
        (volume, epoch, number): (VolumeId, Epoch, u64),
        path: String,
        sco_size: ScoSize,
    ) -> Self {
        Self {
            volume,
            epoch,
            number,
            path,
            sco_size,
            heard: Instant::now(),
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            scos: BTreeMap::new(),
            copy: None,
            released: ScoId::NONE,
            device: device.clone(),
        }
    }

    pub(super) const fn id(&self) -> StreamId {
        (self.epoch, self.number)
    }

    /// Whether something waits for a free file.
    pub(super) fn waits(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Puts something behind what waits.
    pub(super) fn queue(&mut self, said: Said) -> Result<(), Box<(Said, Broken)>> {
        let bytes = self.waiting_bytes.saturating_add(said.data.len());
        if self.waiting.len() >= WAITING_MAX || bytes > WAITING_BYTES_MAX {
            let text = "more waits for a free file of the write buffer than may";
            return Err(Box::new((
                said,
                Broken::Device(io::Error::new(io::ErrorKind::StorageFull, text)),
            )));
        }
        self.waiting_bytes = bytes;
        self.waiting.push_back(said);
        Ok(())
    }

    /// The first of what waits.
    pub(super) fn next(&mut self) -> Option<Said> {
        let said = self.waiting.pop_front()?;
        self.waiting_bytes = self.waiting_bytes.saturating_sub(said.data.len());
        Some(said)
    }

    /// Puts the first of what waits back.
    pub(super) fn put_back(&mut self, said: Said) {
        self.waiting_bytes = self.waiting_bytes.saturating_add(said.data.len());
        self.waiting.push_front(said);
    }

    /// Does what is said. Only [`Outcome::Waits`] leaves it to be done.
    pub(super) fn carry_out(&mut self, said: &Said) -> Result<Outcome, Broken> {
        match &said.say {
            TwinSay::Open {
                sco,
                first_batch,
                synced_below,
            } => self.open(ScoHeader {
                volume: self.volume,
                id: *sco,
                epoch: self.epoch,
                size: self.sco_size,
                first_batch: *first_batch,
                synced_below: *synced_below,
            }),
            TwinSay::Append {
                sco,
                tlog_offset,
                tlog,
                first_slot,
                ..
            } => {
                let known = self.scos.get_mut(&(*sco, self.epoch));
                let known = known
                    .ok_or_else(|| Broken::Said(format!("an append to SCO {sco}, which is not open")))?;
                known.written += 1;
                let data = std::slice::from_ref(&said.data);
                known.file.append(*first_slot, data, *tlog_offset, tlog)?;
                Ok(Outcome::Done)
            }
            TwinSay::Copy {
                sco,
                sco_epoch,
                offset,
                length,
            } => self.copy((*sco, *sco_epoch), offset.0, length.0, &said.data),
            TwinSay::Sync { .. } => Ok(Outcome::Sync(self.unsynced())),
            TwinSay::Release { upto } => {
                self.released = self.released.max(*upto);
                let device = &self.device;
                self.scos.retain(|(sco, _), known| {
                    let stays = sco > upto;
                    if !stays {
                        device.retire(&known.file);
                    }
                    stays
                });
                Ok(Outcome::Done)
            }
            // The host does these before anything that waits.
            TwinSay::Attach { .. } | TwinSay::Detach | TwinSay::Beat => Ok(Outcome::Done),
        }
    }

    fn open(&mut self, header: ScoHeader) -> Result<Outcome, Broken> {
        let key = (header.id, header.epoch);
        if self.scos.contains_key(&key) {
            return Err(Broken::Said(format!(
                "SCO {} was opened a second time",
                header.id
            )));
        }
        let Some(file) = self.device.open_sco(&header)? else {
            return Ok(Outcome::Waits);
        };
        let sco = Sco {
            header,
            file,
            // Its header.
            written: 1,
            synced: 0,
        };
        self.scos.insert(key, sco);
        Ok(Outcome::Done)
    }

    fn copy(&mut self, (sco, epoch): Key, offset: u64, length: u64, data: &Bytes) -> Result<Outcome, Broken> {
        if offset == 0 {
            let header = self.header_of_copy((sco, epoch), length, data)?;
            let Some(file) = self.device.open_copy(self.volume, self.sco_size)? else {
                return Ok(Outcome::Waits);
            };
            let area = usize::try_from(ScoSize::HEADER_AREA).map_err(io::Error::other)?;
            let begun = Copying {
                header,
                file,
                header_area: data.slice(..area.min(data.len())),
                next: 0,
                length,
            };
            self.drop_copy();
            self.copy = Some(begun);
        }
        let not_next = || {
            Broken::Said(format!(
                "a part at {offset} of SCO {sco} does not follow the part before it"
            ))
        };
        let copying = self.copy.as_mut().ok_or_else(not_next)?;
        let is_next = (
            copying.header.id,
            copying.header.epoch,
            copying.next,
            copying.length,
        ) == (sco, epoch, offset, length);
        let end = offset.saturating_add(data.len() as u64);
        if !is_next || data.is_empty() || end > length {
            return Err(not_next());
        }
        let header_area = if offset == 0 { copying.header_area.len() } else { 0 };
        copying.file.write_part(
            data.get(header_area..).unwrap_or_default(),
            offset + header_area as u64,
        )?;
        copying.next = end;
        if end < length {
            return Ok(Outcome::Done);
        }
        copying.file.write_part(&copying.header_area, 0)?;
        let whole = FoundSco {
            header: copying.header,
            file: Arc::clone(&copying.file),
        };
        self.copy = None;
        Ok(Outcome::Copied(whole))
    }

    /// The header of the SCO whose first part this is.
    fn header_of_copy(&self, (sco, epoch): Key, length: u64, data: &Bytes) -> Result<ScoHeader, Broken> {
        let header = ScoHeader::from_bytes(data)
            .map_err(|error| Broken::Said(format!("the first part of SCO {sco}: {error}")))?;
        let is_it =
            (header.volume, header.id, header.epoch, header.size) == (self.volume, sco, epoch, self.sco_size);
        if !is_it {
            let text = format!("the first part of SCO {sco} of epoch {epoch} is of another SCO: {header:?}");
            return Err(Broken::Said(text));
        }
        let lengths = self.sco_size.data_offset()..=self.sco_size.file_len();
        if !lengths.contains(&length) || (data.len() as u64) < ScoSize::HEADER_AREA {
            return Err(Broken::Said(format!(
                "a SCO of {length} bytes with a first part of {}; it is to have {} to {} bytes, and a first part of {} at least",
                data.len(),
                lengths.start(),
                lengths.end(),
                ScoSize::HEADER_AREA,
            )));
        }
        Ok(header)
    }

    /// A copy is synced: it is one of the stream's SCOs, unless it was released meanwhile.
    pub(super) fn copied(&mut self, FoundSco { header, file }: FoundSco) {
        if header.id <= self.released {
            return self.device.retire(&file);
        }
        let sco = Sco {
            header,
            file,
            written: 0,
            synced: 0,
        };
        if let Some(before) = self.scos.insert((header.id, header.epoch), sco) {
            self.device.retire(&before.file);
        }
    }

    /// The files with appends that are not synced.
    fn unsynced(&self) -> Vec<Unsynced> {
        let unsynced = self.scos.iter().filter(|(_, sco)| sco.written > sco.synced);
        unsynced
            .map(|(key, sco)| Unsynced {
                key: *key,
                written: sco.written,
                file: Arc::clone(&sco.file),
            })
            .collect()
    }

    /// These were synced.
    pub(super) fn synced(&mut self, files: &[Unsynced]) {
        for synced in files {
            if let Some(sco) = self.scos.get_mut(&synced.key) {
                sco.synced = sco.synced.max(synced.written);
            }
        }
    }

    fn drop_copy(&mut self) {
        if let Some(copying) = self.copy.take() {
            self.device.retire(&copying.file);
        }
    }

    /// The stream is over: what waits is refused. Gives its SCOs; half a copy is none.
    pub(super) fn end(mut self, refusal: &Refusal) -> Vec<FoundSco> {
        self.drop_copy();
        for said in self.waiting.drain(..) {
            said.reply
                .send(VolumeReply::Refused(refusal.clone()), Bytes::new());
        }
        let found = |sco: Sco| FoundSco {
            header: sco.header,
            file: sco.file,
        };
        self.scos.into_values().map(found).collect()
    }
}
