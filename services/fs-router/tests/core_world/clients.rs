//! Front ends: what they ask for, what they expect, and how they go.

use super::*;

impl World {
    /// A random operation on clusters that no other operation is at, so that its result is known.
    pub(crate) fn submit(&mut self) {
        let index = self.below(self.volumes.len());
        let first = self.below(CLUSTERS);
        let count = 1 + self.below(9.min(CLUSTERS - first));
        let range = first..first + count;
        if range.clone().any(|at| self.volumes[index].busy.contains(&at)) {
            return;
        }
        let (offset, length) = ((first * CLUSTER_LEN) as u64, (count * CLUSTER_LEN) as u64);
        let token = Token(self.next_token);
        let operation = match self.chance.below(6) {
            0 | 1 => {
                let data: Vec<u8> = range
                    .clone()
                    .flat_map(|at| cluster_of(self.stamp_for(token, at)))
                    .collect();
                Operation::write(offset, data.into(), 0)
            }
            2 => Operation::write_zeroes(offset, length, 0),
            3 => Operation::flush(),
            _ => {
                let skip = self.chance.below(300);
                Operation::read(offset + skip, length - skip - self.chance.below(300))
            }
        };
        let mut effects = Vec::new();
        let volume = &mut self.volumes[index];
        let front_end = if self.chance.one_of(1, 4) {
            self.fleeting
        } else {
            STEADY
        };
        let accepted = self
            .core
            .submit(volume.key, front_end, token, operation.clone(), &mut effects);
        if let Err(back) = accepted {
            assert_eq!(back, operation, "an operation that finds no room comes back");
            return;
        }
        self.next_token += 1;
        if operation.code != IoCode::Flush {
            self.volumes[index].busy.extend(range);
        }
        self.wants.insert(token, (index, front_end, operation));
        self.carry_out(effects);
        self.drain();
    }

    pub(super) fn stamp_for(&self, token: Token, cluster: usize) -> [u8; 8] {
        stamp(token.0 * 1000 + cluster as u64)
    }

    /// The fleeting front end goes, and another comes.
    pub(super) fn abandon(&mut self) {
        let gone = self.fleeting;
        self.fleeting = FrontEndKey(gone.0 + 1);
        let left: Vec<Token> = self
            .wants
            .iter()
            .filter(|(_, (_, who, _))| *who == gone)
            .map(|(token, _)| *token)
            .collect();
        for token in left {
            let (index, _, operation) = self.wants.remove(&token).unwrap();
            if operation.code != IoCode::Flush {
                let volume = &mut self.volumes[index];
                for at in clusters(&operation) {
                    if operation.code.changes() {
                        volume.haunted.insert(at);
                    } else {
                        volume.busy.remove(&at);
                    }
                }
            }
        }
        let mut effects = Vec::new();
        self.core.abandon(self.now, gone, &mut effects);
        self.carry_out(effects);
        for volume in &self.volumes {
            assert!(
                volume.haunted.is_empty() || volume.orphaned,
                "nobody was told of orphans"
            );
        }
    }

    /// From here on what was abandoned has happened or never will.
    pub(super) fn settled(&mut self, id: VolumeId) {
        let volume = self.volumes.iter_mut().find(|v| v.id == id).unwrap();
        assert!(
            std::mem::replace(&mut volume.orphaned, false),
            "told without reason"
        );
        for at in std::mem::take(&mut volume.haunted) {
            volume.expected[at] = volume.clusters[at];
            volume.busy.remove(&at);
        }
    }

    pub(super) fn completed(&mut self, front_end: FrontEndKey, token: Token, outcome: Outcome) {
        let (index, who, operation) = self.wants.remove(&token).expect("an operation completes once");
        assert_eq!(front_end, who);
        self.completed += 1;
        let range = clusters(&operation);
        let first = range.start;
        match (operation.code, outcome) {
            (IoCode::Flush, Outcome::Done) => return,
            (code, Outcome::Refused(refusal)) if self.volumes[index].of.is_some() => {
                let is_gone = self.volumes[index].named != Some(SNAPSHOT.1);
                match refusal.code {
                    RefusalCode::ReadOnly => assert!(code.changes(), "{code:?}: {refusal}"),
                    RefusalCode::NotFound => {
                        assert!(is_gone && !code.changes(), "{code:?}: {refusal}");
                        self.ended_gone += 1;
                    }
                    _ => panic!("{code:?}: {refusal}"),
                }
                if code == IoCode::Flush {
                    return;
                }
            }
            (code, Outcome::Done) if self.volumes[index].of.is_some() => {
                panic!("{code:?} of a snapshot is done");
            }
            (IoCode::Write, Outcome::Done) => {
                for at in range.clone() {
                    self.volumes[index].expected[at] = self.stamp_for(token, at);
                }
            }
            (IoCode::WriteZeroes, Outcome::Done) => {
                range
                    .clone()
                    .for_each(|at| self.volumes[index].expected[at] = [0; 8]);
            }
            (IoCode::Read, Outcome::Read(data)) => {
                let whole: Vec<u8> = range
                    .clone()
                    .flat_map(|at| cluster_of(self.volumes[index].expected[at]))
                    .collect();
                let skip = usize::try_from(operation.offset).unwrap() - first * CLUSTER_LEN;
                let length = usize::try_from(operation.length).unwrap();
                assert_eq!(data.len(), operation.length);
                assert_eq!(
                    &data.into_bytes()[..],
                    &whole[skip..skip + length],
                    "a read after an acknowledged write"
                );
            }
            (code, outcome) => panic!("{code:?} ended as {outcome:?}"),
        }
        for at in range {
            self.volumes[index].busy.remove(&at);
        }
    }

    /// What the volumes hold is what was acknowledged.
    pub(crate) fn check_content(&self) {
        for volume in &self.volumes {
            for at in 0..CLUSTERS {
                if !volume.busy.contains(&at) {
                    assert_eq!(
                        volume.clusters[at], volume.expected[at],
                        "cluster {at} of {}",
                        volume.id
                    );
                }
            }
        }
    }
}

/// Clusters that an operation is at.
fn clusters(operation: &Operation) -> std::ops::Range<usize> {
    let first = usize::try_from(operation.offset).unwrap() / CLUSTER_LEN;
    let end = usize::try_from(operation.offset + operation.length).unwrap();
    first..end.div_ceil(CLUSTER_LEN)
}
