//! A simulated write buffer: recycled files whose unsynced sectors survive a power loss in any subset.
//!
//! Keeps: for each file what reads see, and which sectors of it are not synced yet with what the platter has.
//! Order: none is promised between sectors that are not synced: that is the point.
//! Crash: [`Disk::power_loss`] keeps an arbitrary subset; a killed process loses nothing.
//! Knows the engine only by its SCO headers.

use std::collections::BTreeMap;

use sconce_schemas::sco::{HEADER_LEN, ScoHeader};
use sconce_schemas::{Epoch, ScoId, ScoSize, Slot};
use sconce_volume::{Append, Seal};

const SECTOR: usize = 512;

#[derive(Default)]
struct File {
    bytes: Vec<u8>,
    /// Sectors that were written and not synced: what the platter has, then what each write made of it, and when.
    unsynced: BTreeMap<usize, Vec<(u64, Vec<u8>)>>,
}

/// A bit that was flipped.
pub(crate) struct Damaged {
    file: usize,
    at: usize,
}

/// The write buffer.
pub(crate) struct Disk {
    size: ScoSize,
    files: Vec<File>,
    /// Which file holds which SCO; after a crash found again from the headers.
    table: BTreeMap<ScoId, usize>,
    free: Vec<usize>,
    clock: u64,
}

impl Disk {
    /// A write buffer of `count` files.
    pub(crate) fn new(size: ScoSize, count: usize) -> Self {
        let file = || File {
            bytes: vec![0; usize::try_from(size.file_len()).unwrap()],
            unsynced: BTreeMap::new(),
        };
        let files = (0..count).map(|_| file()).collect();
        Self {
            size,
            files,
            table: BTreeMap::new(),
            free: (0..count).rev().collect(),
            clock: 0,
        }
    }

    pub(crate) fn free_files(&self) -> usize {
        self.free.len()
    }

    /// A moment: everything written up to now is older than what comes.
    pub(crate) fn now(&self) -> u64 {
        self.clock
    }

    fn write(&mut self, file: usize, offset: usize, bytes: &[u8]) {
        self.clock += 1;
        let (clock, file) = (self.clock, &mut self.files[file]);
        let end = offset + bytes.len();
        let sectors = offset / SECTOR..end.div_ceil(SECTOR);
        for sector in sectors.clone() {
            let before = file.bytes[sector * SECTOR..(sector + 1) * SECTOR].to_vec();
            file.unsynced.entry(sector).or_insert_with(|| vec![(0, before)]);
        }
        file.bytes[offset..end].copy_from_slice(bytes);
        for sector in sectors {
            let after = file.bytes[sector * SECTOR..(sector + 1) * SECTOR].to_vec();
            file.unsynced.entry(sector).or_default().push((clock, after));
        }
    }

    /// Takes a file for a SCO, if there is one.
    pub(crate) fn open(&mut self, header: &ScoHeader) -> bool {
        let Some(file) = self.free.pop() else { return false };
        self.write(file, 0, &header.to_bytes());
        self.table.insert(header.id, file);
        true
    }

    /// Carries out a batch; `steps` of its writes (data parts, then the TLog) happen, for a crash in between.
    pub(crate) fn append(&mut self, append: &Append, steps: usize) {
        let file = self.table[&append.sco];
        let mut at = usize::try_from(self.size.slot_offset(append.first_slot)).unwrap();
        for (step, part) in append.data.iter().enumerate() {
            if step < steps {
                self.write(file, at, part);
            }
            at += part.len();
        }
        if append.data.len() < steps {
            let at = usize::try_from(ScoSize::HEADER_AREA + append.tlog_offset).unwrap();
            self.write(file, at, &append.tlog);
        }
    }

    /// Everything written up to `moment` is on the platter; in one SCO's file, or in all.
    pub(crate) fn sync(&mut self, sco: Option<ScoId>, moment: u64) {
        let only = sco.map(|sco| self.table.get(&sco).copied());
        for (at, file) in self.files.iter_mut().enumerate() {
            if only.is_none_or(|only| only == Some(at)) {
                file.unsynced.retain(|_, writes| {
                    let synced = writes
                        .iter()
                        .rposition(|(written, _)| *written <= moment)
                        .unwrap_or(0);
                    writes.drain(..synced);
                    writes.len() > 1
                });
            }
        }
    }

    pub(crate) fn seal(&mut self, seal: &Seal) {
        let file = self.table[&seal.sco];
        let from = ScoSize::HEADER_AREA + seal.tlog_len;
        let zeros = vec![0; usize::try_from(self.size.data_offset() - from).unwrap()];
        self.write(file, usize::try_from(from).unwrap(), &zeros);
        self.sync(Some(seal.sco), self.clock);
    }

    /// The first `length` bytes of a SCO's file.
    pub(crate) fn image(&self, sco: ScoId, length: u64) -> Option<&[u8]> {
        let file = self.table.get(&sco)?;
        Some(&self.files[*file].bytes[..usize::try_from(length).unwrap()])
    }

    /// Takes a file for a whole SCO, which is on the platter then; `false`: there is none.
    pub(crate) fn copy(&mut self, sco: ScoId, bytes: &[u8]) -> bool {
        let Some(file) = self.free.pop() else { return false };
        self.write(file, 0, bytes);
        self.table.insert(sco, file);
        self.sync(Some(sco), self.clock);
        true
    }

    /// Takes the files of all SCOs up to this one away.
    pub(crate) fn recycle_upto(&mut self, upto: ScoId) {
        let gone: Vec<ScoId> = self.table.range(..=upto).map(|(sco, _)| *sco).collect();
        gone.into_iter().for_each(|sco| self.recycle(sco));
    }

    pub(crate) fn cluster(&self, sco: ScoId, slot: Slot) -> Option<&[u8]> {
        let at = usize::try_from(self.size.slot_offset(slot)).unwrap();
        Some(&self.files[*self.table.get(&sco)?].bytes[at..at + 4096])
    }

    /// Takes a SCO's file away; what it holds stays until it is used again.
    pub(crate) fn recycle(&mut self, sco: ScoId) {
        if let Some(file) = self.table.remove(&sco) {
            self.free.insert(0, file);
        }
    }

    /// Flips a bit of a SCO's header, of its TLog area or of a cluster: the media did. Gives what takes it back.
    pub(crate) fn damage(&mut self, chance: &mut fastrand::Rng) -> Option<(ScoId, Damaged)> {
        // The last ones: those before them are stored.
        let last = self.table.iter().rev().take(6);
        let held: Vec<(ScoId, usize)> = last.map(|(sco, file)| (*sco, *file)).collect();
        let (sco, file) = *held.get(chance.usize(0..held.len().max(1)))?;
        let data = usize::try_from(self.size.data_offset()).unwrap();
        let tlog = usize::try_from(ScoSize::HEADER_AREA).unwrap();
        let at = match chance.u32(0..4) {
            0 => chance.usize(0..HEADER_LEN),
            1 | 2 => tlog + chance.usize(0..800),
            _ => data + chance.usize(0..4 * 4096),
        };
        let damaged = Damaged { file, at };
        self.flip(&damaged);
        Some((sco, damaged))
    }

    pub(crate) fn flip(&mut self, damaged: &Damaged) {
        self.files[damaged.file].bytes[damaged.at] ^= 0x10;
    }

    /// The power fails: of what was not synced an arbitrary subset of sectors survives.
    pub(crate) fn power_loss(&mut self, chance: &mut fastrand::Rng) {
        let mostly = chance.f64();
        for file in &mut self.files {
            for (sector, writes) in std::mem::take(&mut file.unsynced) {
                if chance.f64() < mostly {
                    let (_, survives) = &writes[chance.usize(0..writes.len())];
                    file.bytes[sector * SECTOR..(sector + 1) * SECTOR].copy_from_slice(survives);
                }
            }
        }
    }

    /// Finds out from the headers what the files hold, as a start does; gives the headers.
    pub(crate) fn scan(&mut self, current: impl Fn(ScoId) -> Option<Epoch>) -> Vec<ScoHeader> {
        self.table.clear();
        self.free.clear();
        let mut headers: Vec<ScoHeader> = Vec::new();
        for (at, file) in self.files.iter().enumerate() {
            let header = ScoHeader::from_bytes(&file.bytes[..HEADER_LEN]).ok();
            match header.filter(|header| current(header.id) == Some(header.epoch)) {
                Some(header) => {
                    self.table.insert(header.id, at);
                    headers.push(header);
                }
                None => self.free.push(at),
            }
        }
        headers
    }
}
