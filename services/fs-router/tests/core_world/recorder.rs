//! Records what the core sends, and checks that an owner may rely on it.

use super::*;

/// What the core sent to one volume's owner in one session, for the checks.
#[derive(Default)]
pub(super) struct SentLog {
    pub(super) content: HashMap<u64, (IoCode, u64, u64, Bytes)>,
    pub(super) below: u64,
    pub(super) newest: u64,
}

pub(super) struct Recorder<'a> {
    pub(super) flying: &'a mut Vec<Flying>,
    pub(super) fetches: &'a mut Vec<(StorageKey, u64, StorageRequest)>,
    pub(super) links: &'a BTreeMap<usize, LinkState>,
    pub(super) storage: Option<(StorageKey, bool)>,
    pub(super) log: &'a mut HashMap<usize, SentLog>,
    pub(super) may_send: &'a HashMap<(OwnerKey, u32), bool>,
    pub(super) chance: &'a mut Chance,
    pub(super) no_room: u64,
    pub(super) sends: &'a mut u64,
    pub(super) resends: &'a mut u64,
}

impl Wire for Recorder<'_> {
    fn to_owner(
        &mut self,
        link: OwnerKey,
        id: u64,
        _trace: u64,
        request: &VolumeRequest,
        data: Bytes,
        _reply_bytes: u32,
    ) -> Sent {
        let state = &self.links[&link.0];
        assert!(state.up, "sent on a link that is down");
        if self.chance.one_of(self.no_room, 1000) {
            return Sent::NoRoom;
        }
        let mut target = None;
        if let VolumeRequest::Io(io) = request {
            assert_eq!(
                self.may_send.get(&(link, io.handle)),
                Some(&true),
                "sent to an owner that refused or has not opened: {io:?}"
            );
            target = Some(state.handles[&io.handle]);
            self.check(state.handles[&io.handle].0, io, &data);
        }
        self.flying.push(Flying {
            link,
            incarnation: state.incarnation,
            id,
            request: request.clone(),
            data,
            target,
        });
        *self.sends += 1;
        Sent::Taken
    }

    fn to_storage(
        &mut self,
        link: StorageKey,
        id: u64,
        _trace: u64,
        request: &StorageRequest,
        _reply_bytes: u32,
    ) -> Sent {
        assert_eq!(
            self.storage,
            Some((link, true)),
            "sent to a storage-router that is not up"
        );
        if self.chance.one_of(self.no_room, 1000) {
            return Sent::NoRoom;
        }
        self.fetches.push((link, id, request.clone()));
        Sent::Taken
    }
}

impl Recorder<'_> {
    /// Numbers and watermark of a send are as the owner may rely on.
    fn check(&mut self, volume: usize, io: &IoRequest, data: &Bytes) {
        let log = self.log.entry(volume).or_default();
        assert!(
            io.number > 0 && io.below <= io.number,
            "watermark above its number: {io:?}"
        );
        assert!(
            io.below >= log.below,
            "the watermark fell: {io:?}, it was {}",
            log.below
        );
        assert!(
            io.number >= log.below,
            "a number below the watermark was sent again: {io:?}"
        );
        log.below = io.below;
        if !io.code.changes() {
            assert_eq!(io.number, log.newest + 1, "what changes nothing takes no number");
            return;
        }
        let content = (io.code, io.offset, io.length, data.clone());
        match log.content.get(&io.number) {
            Some(before) => {
                assert_eq!(*before, content, "a number was given to two operations");
                *self.resends += 1;
            }
            None => {
                assert_eq!(io.number, log.newest + 1, "numbers count up by one");
                log.newest = io.number;
                log.content.insert(io.number, content);
            }
        }
    }
}
