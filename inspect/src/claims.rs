//! What maps say to be in each slot, collected by SCO, so that each SCO is read once.
//!
//! Keeps: a claim for each live slot, for as many SCOs as fit the budget: a window of them, by volume and number.
//! Order: a window that is too full gives up its last SCOs; they are the next one's.
//! Crash: nothing.
//! Knows no objects.

use std::collections::BTreeMap;

use sconce_schemas::ids::Location;
use sconce_schemas::{ClusterAddress, ScoId, VolumeId};

/// A SCO of a volume.
pub(crate) type ScoKey = (VolumeId, ScoId);

/// What maps say of one slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Claim {
    pub(crate) address: ClusterAddress,
    pub(crate) crc: u32,
    /// The head or a snapshot of some volume has it: it must be there.
    pub(crate) is_kept: bool,
    /// The volume's own SCO table counts it.
    pub(crate) is_counted: bool,
}

/// The claims on one SCO, by slot.
#[derive(Debug, Default)]
pub(crate) struct ScoClaims {
    slots: Vec<Option<Claim>>,
}

/// The claims of one window.
#[derive(Debug)]
pub(crate) struct Claims {
    from: ScoKey,
    until: Option<ScoKey>,
    scos: BTreeMap<ScoKey, ScoClaims>,
    slots: usize,
    slots_max: usize,
}

impl ScoClaims {
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u16, Claim)> {
        let numbered = (0..=u16::MAX).zip(&self.slots);
        numbered.filter_map(|(slot, claim)| Some((slot, (*claim)?)))
    }

    pub(crate) fn counted(&self) -> u64 {
        self.iter().filter(|(_, claim)| claim.is_counted).count() as u64
    }
}

impl Claims {
    /// The window from `from` on, of at most about `slots_max` slots.
    pub(crate) fn from(from: ScoKey, slots_max: usize) -> Self {
        Self {
            from,
            until: None,
            scos: BTreeMap::new(),
            slots: 0,
            slots_max,
        }
    }

    /// Where the next window begins; `None`: this is the last.
    pub(crate) const fn until(&self) -> Option<ScoKey> {
        self.until
    }

    /// Whether a SCO is in the window.
    pub(crate) fn covers(&self, key: ScoKey) -> bool {
        key >= self.from && self.until.is_none_or(|until| key < until)
    }

    /// Notes that a map has this location at this address.
    ///
    /// # Errors
    /// Another map, or another address, has something else in the slot.
    pub(crate) fn add(&mut self, volume: VolumeId, location: Location, claim: Claim) -> Result<(), Claim> {
        let key = (volume, location.sco());
        if !self.covers(key) {
            return Ok(());
        }
        let slot = usize::from(location.slot().0);
        let sco = self.scos.entry(key).or_default();
        let before = sco.slots.len();
        if slot >= before {
            // By a half, in steps: SCOs are mostly full.
            sco.slots.resize((slot + 1).next_multiple_of(64), None);
        }
        self.slots += sco.slots.len() - before;
        let known = &mut sco.slots[slot];
        let same = match known {
            None => {
                *known = Some(claim);
                Ok(())
            }
            Some(known) if (known.address, known.crc) == (claim.address, claim.crc) => {
                known.is_kept |= claim.is_kept;
                known.is_counted |= claim.is_counted;
                Ok(())
            }
            Some(known) => Err(*known),
        };
        while self.slots > self.slots_max && self.scos.len() > 1 {
            let Some((last, given_up)) = self.scos.pop_last() else {
                break;
            };
            self.slots -= given_up.slots.len();
            self.until = Some(last);
        }
        same
    }

    /// The SCOs that have claims, in order.
    pub(crate) fn keys(&self) -> impl Iterator<Item = ScoKey> {
        self.scos.keys().copied()
    }

    pub(crate) fn of(&self, key: ScoKey) -> Option<&ScoClaims> {
        self.scos.get(&key)
    }
}

#[cfg(test)]
mod tests {
    use sconce_schemas::{LineageIndex, Slot};

    use super::*;

    fn location(sco: u64, slot: u16) -> Location {
        Location::new(LineageIndex(0), ScoId(sco), Slot(slot), 7)
    }

    fn claim(address: u64) -> Claim {
        Claim {
            address: ClusterAddress(address),
            crc: 7,
            is_kept: true,
            is_counted: false,
        }
    }

    #[test]
    fn windows_together_see_every_claim_once() {
        let volume = VolumeId([1; 16]);
        let mut random = fastrand::Rng::with_seed(3);
        let mut wanted: Vec<(u64, u16)> = (0..40).flat_map(|sco| [(sco + 1, 0), (sco + 1, 63)]).collect();
        let (mut from, mut seen, mut windows) = ((VolumeId::default(), ScoId(0)), Vec::new(), 0);
        loop {
            random.shuffle(&mut wanted);
            let mut claims = Claims::from(from, 5 * 64);
            for (sco, slot) in &wanted {
                assert_eq!(claims.add(volume, location(*sco, *slot), claim(*sco)), Ok(()));
            }
            for key in claims.keys() {
                let of = claims.of(key).unwrap();
                seen.extend(of.iter().map(|(slot, _)| (key.1.0, slot)));
            }
            windows += 1;
            match claims.until() {
                Some(until) => from = until,
                None => break,
            }
        }
        seen.sort_unstable();
        wanted.sort_unstable();
        assert_eq!(seen, wanted);
        assert_eq!(windows, 8);
    }

    #[test]
    fn two_clusters_in_one_slot_are_noticed() {
        let volume = VolumeId([1; 16]);
        let mut claims = Claims::from((VolumeId::default(), ScoId(0)), 1000);
        assert_eq!(claims.add(volume, location(1, 5), claim(9)), Ok(()));
        assert_eq!(claims.add(volume, location(1, 5), claim(9)), Ok(()));
        assert_eq!(claims.add(volume, location(1, 5), claim(8)), Err(claim(9)));
    }
}
