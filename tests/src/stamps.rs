//! Clusters that say when they were written: what tells a lost write, a torn one and a late one from a kept one.
//!
//! Keeps: which cluster each sequence number was written to, and which numbers were acknowledged.
//! Order: numbers are given out in the order in which writes are sent and never twice.
//! Crash: after one, the numbers above the newest that is found are given up; the acknowledged must not be among them.
//! Knows no connection.

use anyhow::{Result, ensure};

/// Bytes of a cluster (DESIGN.md §2).
pub const CLUSTER: usize = 4096;

/// Stands in the history for a write that a crash took, which nobody was promised.
const GIVEN_UP: usize = usize::MAX;

/// The history of a stamped volume.
#[derive(Debug)]
pub struct Stamps {
    clusters: usize,
    /// The cluster that each number was written to; number 1 is at index 0.
    history: Vec<usize>,
    /// The numbers up to this one are acknowledged or given up.
    promised: usize,
    /// Acknowledged numbers above `promised`.
    early: Vec<usize>,
    /// For each cluster the newest write to it that was acknowledged, or found by a judgement.
    kept: Vec<usize>,
}

impl Stamps {
    /// The history of an empty volume of so many clusters.
    #[must_use]
    pub fn new(clusters: usize) -> Self {
        Self {
            clusters,
            history: Vec::new(),
            promised: 0,
            early: Vec::new(),
            kept: vec![0; clusters],
        }
    }

    /// The next number, for a write to `cluster`, and the cluster's content.
    pub fn next(&mut self, cluster: usize) -> (usize, Vec<u8>) {
        self.history.push(cluster);
        let number = self.history.len();
        (number, content(number, cluster))
    }

    /// The write with this number was acknowledged.
    pub fn acknowledged(&mut self, number: usize) {
        self.keep(number);
        self.early.push(number);
        while let Some(at) = self.early.iter().position(|n| *n == self.promised + 1) {
            self.early.swap_remove(at);
            self.promised += 1;
        }
    }

    fn keep(&mut self, number: usize) {
        if let Some(cluster) = self.cluster_of(number)
            && let Some(kept) = self.kept.get_mut(cluster)
        {
            *kept = number.max(*kept);
        }
    }

    /// The cluster that a number was written to, unless the number was given up.
    #[must_use]
    pub fn cluster_of(&self, number: usize) -> Option<usize> {
        let cluster = self.history.get(number.checked_sub(1)?)?;
        (*cluster != GIVEN_UP).then_some(*cluster)
    }

    /// How many numbers were given out.
    #[must_use]
    pub fn sent(&self) -> usize {
        self.history.len()
    }

    /// The numbers up to this one were acknowledged or given up.
    #[must_use]
    pub fn promised(&self) -> usize {
        self.promised
    }

    /// Numbers above this one may be lost although they were acknowledged: an operator accepted that.
    pub fn accept_loss_beyond(&mut self, number: usize) {
        self.promised = self.promised.min(number);
        self.early.clear();
        self.kept.fill(0);
        (1..=self.promised).for_each(|number| self.keep(number));
    }

    /// The newest write to a cluster that was acknowledged, or found by a judgement.
    #[must_use]
    pub fn kept(&self, cluster: usize) -> usize {
        self.kept.get(cluster).copied().unwrap_or_default()
    }

    /// Judges a whole volume: it must hold the effect of the numbers up to some number and of no other, that
    /// number at least the newest acknowledged one. Numbers above it are given up.
    ///
    /// # Errors
    /// It holds anything else; the error names a cluster.
    pub fn judge(&mut self, volume: &[u8]) -> Result<usize> {
        ensure!(
            volume.len() == self.clusters * CLUSTER,
            "the volume has {} bytes, not {} clusters",
            volume.len(),
            self.clusters
        );
        let mut found = Vec::with_capacity(self.clusters);
        for (cluster, bytes) in volume.chunks_exact(CLUSTER).enumerate() {
            found.push(self.number_in(cluster, bytes)?);
        }
        let newest = found.iter().copied().max().unwrap_or(0);
        let acknowledged = self
            .early
            .iter()
            .copied()
            .max()
            .unwrap_or(0)
            .max(self.promised_write());
        ensure!(
            newest >= acknowledged,
            "write {acknowledged} was acknowledged, the newest that is found is {newest}"
        );
        let mut expected = vec![0; self.clusters];
        for (at, cluster) in self.history.iter().take(newest).enumerate() {
            if let Some(slot) = expected.get_mut(*cluster) {
                *slot = at + 1;
            }
        }
        for (cluster, (found, expected)) in found.iter().zip(&expected).enumerate() {
            ensure!(
                found == expected,
                "no prefix: cluster {cluster} holds write {found} and not {expected}, while write {newest} is there \
                 (acknowledged up to {acknowledged})"
            );
        }
        for lost in self.history.iter_mut().skip(newest) {
            *lost = GIVEN_UP;
        }
        self.promised = self.history.len();
        self.early.clear();
        Ok(newest)
    }

    /// Judges a whole volume that was written as guests write, never two writes to one cluster under way at a time: each
    /// cluster holds the newest write that was acknowledged, or one that was under way. What it does not hold of those is given up.
    ///
    /// In which order writes to different clusters were kept is nobody's promise while none of them is acknowledged.
    ///
    /// # Errors
    /// A cluster holds anything else.
    pub fn judge_each(&mut self, volume: &[u8]) -> Result<()> {
        ensure!(
            volume.len() == self.clusters * CLUSTER,
            "the volume has {} bytes, not {} clusters",
            volume.len(),
            self.clusters
        );
        let mut all = Vec::with_capacity(self.clusters);
        for (cluster, bytes) in volume.chunks_exact(CLUSTER).enumerate() {
            let found = self.number_in(cluster, bytes)?;
            let kept = self.kept.get(cluster).copied().unwrap_or_default();
            ensure!(
                found >= kept,
                "cluster {cluster} holds write {found}, and write {kept} to it was acknowledged"
            );
            all.push(found);
        }
        all.into_iter().for_each(|found| self.keep(found));
        let under_way = self.promised + 1..=self.history.len();
        for number in under_way.filter(|number| !self.early.contains(number)) {
            let at = number - 1;
            let cluster = self.history[at];
            if self.kept.get(cluster) != Some(&number) {
                self.history[at] = GIVEN_UP;
            }
        }
        self.promised = self.history.len();
        self.early.clear();
        Ok(())
    }

    /// The newest number up to `promised` that was not given up.
    fn promised_write(&self) -> usize {
        let kept = |cluster: &usize| *cluster != GIVEN_UP;
        let promised = self.history.get(..self.promised).unwrap_or_default();
        promised.iter().rposition(kept).map_or(0, |at| at + 1)
    }

    /// The number of the write that a cluster holds whole; 0: it was never written.
    fn number_in(&self, cluster: usize, bytes: &[u8]) -> Result<usize> {
        if bytes.iter().all(|byte| *byte == 0) {
            return Ok(0);
        }
        let number = bytes.first_chunk().map_or(0, |word| u64::from_le_bytes(*word));
        let number = usize::try_from(number)?;
        let written = number.checked_sub(1).and_then(|at| self.history.get(at));
        ensure!(
            written.is_some(),
            "cluster {cluster} holds bytes that were never written to it: it begins with {number:#x}"
        );
        ensure!(
            written == Some(&cluster),
            "cluster {cluster} holds write {number}, which went to {} ({GIVEN_UP}: given up)",
            written.unwrap_or(&GIVEN_UP)
        );
        ensure!(
            bytes == content(number, cluster),
            "cluster {cluster} holds a torn write {number}"
        );
        Ok(number)
    }
}

/// The number of the write that a cluster holds whole, for who does not know what was written to it; 0: it was never written.
///
/// # Errors
/// It holds no write to this cluster, or a torn one.
pub fn number_of(cluster: usize, bytes: &[u8]) -> Result<usize> {
    if bytes.iter().all(|byte| *byte == 0) {
        return Ok(0);
    }
    let number = bytes.first_chunk().map_or(0, |word| u64::from_le_bytes(*word));
    let whole = usize::try_from(number).is_ok_and(|number| bytes == content(number, cluster));
    ensure!(
        whole,
        "cluster {cluster} holds no whole write to it: it begins with {number:#x}"
    );
    Ok(usize::try_from(number)?)
}

/// The number, then words that follow from number and cluster.
fn content(number: usize, cluster: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed((number as u64) << 32 | cluster as u64);
    let mut bytes = Vec::with_capacity(CLUSTER);
    bytes.extend_from_slice(&(number as u64).to_le_bytes());
    while bytes.len() < CLUSTER {
        bytes.extend_from_slice(&random.u64(..).to_le_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(clusters: usize, writes: &[(usize, &Vec<u8>)]) -> Vec<u8> {
        let mut bytes = vec![0; clusters * CLUSTER];
        for (cluster, content) in writes {
            bytes[cluster * CLUSTER..][..CLUSTER].copy_from_slice(content);
        }
        bytes
    }

    #[test]
    fn takes_prefixes_and_nothing_else() {
        let mut stamps = Stamps::new(4);
        let (first, a) = stamps.next(0);
        let (_, b) = stamps.next(1);
        let (_, c) = stamps.next(0);
        stamps.acknowledged(first);
        // The last two were never promised: both prefixes with the first are right.
        assert_eq!(stamps.judge(&volume(4, &[(0, &a), (1, &b)])).unwrap(), 2);
        // What was given up may not come back.
        assert!(stamps.judge(&volume(4, &[(0, &c), (1, &b)])).is_err());
    }

    #[test]
    fn of_a_guest_each_cluster_is_judged_by_itself() {
        let mut stamps = Stamps::new(3);
        let (first, a) = stamps.next(0);
        stamps.acknowledged(first);
        let (second, b) = stamps.next(0);
        let (third, c) = stamps.next(1);
        let (_, d) = stamps.next(2);
        stamps.acknowledged(third);
        // The second and the fourth were under way: each is there or not. What was acknowledged has to be.
        let error = |bytes: Vec<u8>, stamps: &mut Stamps| stamps.judge_each(&bytes).unwrap_err().to_string();
        assert!(error(volume(3, &[(0, &b)]), &mut stamps).contains("write 3 to it was acknowledged"));
        stamps
            .judge_each(&volume(3, &[(0, &a), (1, &c), (2, &d)]))
            .unwrap();
        // The second was given up then, and may not come back; the fourth was found, and may not go.
        assert!(stamps.cluster_of(second).is_none());
        assert!(error(volume(3, &[(0, &b), (1, &c), (2, &d)]), &mut stamps).contains("given up"));
        assert!(error(volume(3, &[(0, &a), (1, &c)]), &mut stamps).contains("write 4 to it"));
        stamps
            .judge_each(&volume(3, &[(0, &a), (1, &c), (2, &d)]))
            .unwrap();
    }

    #[test]
    fn sees_lost_reordered_torn_and_misplaced_writes() {
        let mut stamps = Stamps::new(4);
        let (_, a) = stamps.next(0);
        let (_, b) = stamps.next(1);
        let (third, c) = stamps.next(2);
        stamps.acknowledged(third);
        let reason = |bytes: Vec<u8>, stamps: &mut Stamps| stamps.judge(&bytes).unwrap_err().to_string();
        assert!(reason(volume(4, &[(0, &a), (1, &b)]), &mut stamps).contains("was acknowledged"));
        assert!(reason(volume(4, &[(0, &a), (2, &c)]), &mut stamps).contains("no prefix"));
        assert!(reason(volume(4, &[(0, &a), (1, &b), (3, &c)]), &mut stamps).contains("which went to 2"));
        let mut torn = c.clone();
        torn[CLUSTER - 1] ^= 1;
        assert!(reason(volume(4, &[(0, &a), (1, &b), (2, &torn)]), &mut stamps).contains("torn"));
        assert_eq!(stamps.judge(&volume(4, &[(0, &a), (1, &b), (2, &c)])).unwrap(), 3);
    }
}
