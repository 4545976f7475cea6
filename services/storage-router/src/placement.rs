//! Where an object belongs: weighted rendezvous hashing over a pool's placement map.
//!
//! Keeps: the back ends' weights, and a hash of each one's name.
//! Order: the same map and name give the same ranking on every machine, for ever (golden values in the tests).
//! Crash: nothing; placement is a pure function.
//! Knows no back ends beyond their names.
//!
//! Each back end draws a number in (0, 1) from its own and the object's name and divides its negative logarithm by
//! its weight; the smallest wins. So a back end that is added takes its share from all others and nothing else
//! moves (Schindler, Thaler, Ravishankar). All in integers: a logarithm in floating point differs between machines.

use sconce_schemas::ObjectName;
use sconce_schemas::records::PlacementEntry;

/// Ranks back ends for an object.
pub trait Placement: Send + Sync {
    /// All back ends, as indices into the placement map: the object belongs on the first ones, and is looked for on
    /// the others when the map has changed. Those that take no new objects come last.
    fn rank(&self, name: &ObjectName) -> Vec<usize>;

    /// How many back ends take new objects: the first so many of every ranking.
    fn takers(&self) -> usize;
}

/// Weighted rendezvous hashing. A weight of 0 means: takes no new objects.
#[derive(Debug, Clone)]
pub struct Rendezvous {
    /// Hash of the back end's name, and its weight.
    entries: Vec<(u64, u32)>,
}

impl Rendezvous {
    /// Placement by this map.
    #[must_use]
    pub fn new(map: &[PlacementEntry]) -> Self {
        let entry = |entry: &PlacementEntry| (mix(fnv1a(entry.backend.as_bytes())), entry.weight);
        Self {
            entries: map.iter().map(entry).collect(),
        }
    }
}

impl Placement for Rendezvous {
    fn rank(&self, name: &ObjectName) -> Vec<usize> {
        let object = fnv1a(name.to_string().as_bytes());
        let mut ranked: Vec<(u64, u64, u32, usize)> = self
            .entries
            .iter()
            .enumerate()
            .map(|(index, (backend, weight))| {
                let drawn = mix(object ^ backend);
                (neg_log2(drawn), drawn, *weight, index)
            })
            .collect();
        ranked.sort_by(|a, b| {
            // a / wa < b / wb, without dividing; a weight of 0 makes the quotient infinite.
            let (left, right) = (
                u128::from(a.0) * u128::from(b.2),
                u128::from(b.0) * u128::from(a.2),
            );
            let takes = (b.2 > 0).cmp(&(a.2 > 0));
            takes.then(left.cmp(&right)).then(a.1.cmp(&b.1))
        });
        ranked.into_iter().map(|(_, _, _, index)| index).collect()
    }

    fn takers(&self) -> usize {
        self.entries.iter().filter(|(_, weight)| *weight > 0).count()
    }
}

/// FNV-1a, 64 bits: <http://www.isthe.com/chongo/tech/comp/fnv/>.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// The finalizer of splitmix64: every bit of the input changes half of the output's.
fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// -log2(drawn / 2^64), in units of 2^-32, at least 1. By repeated squaring: one bit of the logarithm a step.
fn neg_log2(drawn: u64) -> u64 {
    let drawn = drawn.max(1);
    let zeros = drawn.leading_zeros();
    let mut log = u64::from(63 - zeros);
    let mut x = u128::from(drawn << zeros);
    for _ in 0..32 {
        x = (x * x) >> 63;
        let bit = x >> 64;
        log = (log << 1) | u64::from(bit == 1);
        x >>= bit;
    }
    (64 << 32) - log
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use sconce_schemas::{Epoch, ScoId, VolumeId};

    use super::*;

    fn object(id: u64) -> ObjectName {
        ObjectName::Sco {
            volume: VolumeId::from_u128(0xfeed),
            id: ScoId(id),
            epoch: Epoch(1),
            version: 0,
        }
    }

    fn map(weights: &[u32]) -> Vec<PlacementEntry> {
        let entry = |(index, weight): (usize, &u32)| PlacementEntry {
            backend: format!("disk-{index}"),
            weight: *weight,
        };
        weights.iter().enumerate().map(entry).collect()
    }

    #[test]
    fn the_logarithm_is_right() {
        for drawn in [1, 2, 3, 1 << 31, 0x1234_5678_9abc_def0, 1 << 63, u64::MAX - 1] {
            #[expect(
                clippy::cast_precision_loss,
                reason = "compared with what floating point gives"
            )]
            let (exact, ours) = (
                64.0 - (drawn as f64).log2(),
                neg_log2(drawn) as f64 / (1_u64 << 32) as f64,
            );
            assert!((exact - ours).abs() < 1e-9, "{drawn}: {exact} {ours}");
        }
        assert_eq!(neg_log2(u64::MAX), 1);
        assert_eq!(neg_log2(0), 64 << 32);
    }

    #[test]
    fn placement_never_changes() {
        let places = Rendezvous::new(&map(&[1, 1, 2, 5, 0]));
        let ranks: Vec<Vec<usize>> = (1..=5).map(|id| places.rank(&object(id))).collect();
        assert_eq!(ranks, GOLDEN, "where objects are stored depends on this");
        assert_eq!(places.takers(), 4);
    }

    const GOLDEN: [[usize; 5]; 5] = [
        [2, 3, 0, 1, 4],
        [0, 1, 3, 2, 4],
        [2, 3, 1, 0, 4],
        [3, 0, 1, 2, 4],
        [3, 2, 1, 0, 4],
    ];

    #[test]
    fn objects_spread_by_weight_on_every_rank() {
        const OBJECTS: u64 = 20_000;
        let weights = [1, 1, 2, 4];
        let places = Rendezvous::new(&map(&weights));
        let mut first = [0_u64; 4];
        let mut second = [0_u64; 4];
        for id in 0..OBJECTS {
            let rank = places.rank(&object(id));
            first[rank[0]] += 1;
            second[rank[1]] += 1;
        }
        for (index, weight) in weights.iter().enumerate() {
            let due = OBJECTS * u64::from(*weight) / 8;
            assert!(first[index].abs_diff(due) < due / 20, "{first:?}");
            // P(second = i) = sum over j != i of w_j/W * w_i/(W - w_j).
            let due: u64 = (0..4)
                .filter(|j| *j != index)
                .map(|j| OBJECTS * u64::from(weights[j] * weight) / (8 * u64::from(8 - weights[j])))
                .sum();
            assert!(second[index].abs_diff(due) < due / 20, "{second:?} {index} {due}");
        }
    }

    proptest! {
        #[test]
        fn every_back_end_is_ranked_once_and_takers_first(
            weights in prop::collection::vec(0..5_u32, 1..9), id in any::<u64>()
        ) {
            let places = Rendezvous::new(&map(&weights));
            let rank = places.rank(&object(id));
            let mut sorted = rank.clone();
            sorted.sort_unstable();
            prop_assert_eq!(sorted, (0..weights.len()).collect::<Vec<_>>());
            prop_assert!(rank[..places.takers()].iter().all(|index| weights[*index] > 0));
        }

        #[test]
        fn a_back_end_that_is_added_moves_nothing_between_the_others(
            weights in prop::collection::vec(1..1000_u32, 2..9), id in any::<u64>()
        ) {
            let added = weights.len() - 1;
            let before = Rendezvous::new(&map(&weights[..added])).rank(&object(id));
            let mut after = Rendezvous::new(&map(&weights)).rank(&object(id));
            after.retain(|index| *index != added);
            prop_assert_eq!(before, after);
        }

        #[test]
        fn more_weight_only_moves_objects_there(
            weights in prop::collection::vec(1..1000_u32, 2..9), more in 1..1000_u32, id in any::<u64>()
        ) {
            let position = |rank: &[usize]| rank.iter().position(|index| *index == 0);
            let before = Rendezvous::new(&map(&weights)).rank(&object(id));
            let mut heavier = weights.clone();
            heavier[0] += more;
            let after = Rendezvous::new(&map(&heavier)).rank(&object(id));
            prop_assert!(position(&after) <= position(&before));
            let others = |rank: Vec<usize>| rank.into_iter().filter(|index| *index != 0).collect::<Vec<_>>();
            prop_assert_eq!(others(before), others(after));
        }

        #[test]
        fn the_order_of_the_map_does_not_matter(weights in prop::collection::vec(1..9_u32, 2..9), id in any::<u64>()) {
            let map = map(&weights);
            let reversed: Vec<_> = map.iter().rev().cloned().collect();
            let names = |map: &[PlacementEntry]| -> Vec<String> {
                let rank = Rendezvous::new(map).rank(&object(id));
                rank.into_iter().map(|index| map[index].backend.clone()).collect()
            };
            prop_assert_eq!(names(&map), names(&reversed));
        }
    }
}
