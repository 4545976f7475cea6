//! What is decided, on pools that fit a screen, and that random pools come to rest whatever the nodes have not heard yet.

use std::time::Duration;

use proptest::prelude::*;
use sconce_schemas::records::Place;

use super::*;

const MINUTE_US: u64 = 60_000_000;

fn name(text: &str) -> NodeName {
    text.parse().unwrap()
}

/// `vr-1@host/domain`, `vr-1@host`, or `vr-1`.
fn router(text: &str) -> NodeRecord {
    let (node, place) = text.split_once('@').unwrap_or((text, text));
    let (host, domain) = place.split_once('/').unwrap_or((place, place));
    NodeRecord {
        name: name(node),
        role: Role::VolumeRouter,
        endpoints: Vec::new(),
        version: String::new(),
        pid: 1,
        place: Some(Place {
            host: host.parse().unwrap(),
            failure_domain: domain.parse().unwrap(),
        }),
        buffer: None,
    }
}

fn volume(number: u8, owner: &str, twin: Option<&str>) -> Volume {
    Volume {
        id: VolumeId([number; 16]),
        owner: name(owner),
        owned_since_us: None,
        wants_twin: twin.is_some(),
        twin: twin.map(name),
        twin_host: None,
        moves_to: None,
        pinned: false,
    }
}

fn pool(routers: &[&str], drained: &[&str], volumes: Vec<Volume>) -> Pool {
    let routers: Vec<NodeRecord> = routers.iter().map(|text| router(text)).collect();
    let drained = drained.iter().map(|text| name(text)).collect();
    Pool::new(&routers, drained, volumes)
}

fn even(pool: &Pool) -> Vec<Move> {
    pool.even_out(Band::EVEN, |_| true, |_| 0)
}

const AUTO: Band = Band {
    volumes: 2,
    percent: 10,
};

fn give(pool: &Pool, me: &str) -> Option<Move> {
    pool.give(&name(me), AUTO, |_| true, |_| 0).map(|give| give.step)
}

#[test]
fn a_node_that_joins_gets_its_share_and_no_more_is_moved_than_that() {
    let volumes = (0..12).map(|number| volume(number, ["a", "b"][usize::from(number % 2)], None));
    let moves = even(&pool(&["a", "b", "c", "d"], &["d"], volumes.collect()));
    assert_eq!(moves.len(), 4);
    assert!(moves.iter().all(|step| step.to == name("c")));
    let of = |node: &str| moves.iter().filter(|step| step.from == name(node)).count();
    assert_eq!((of("a"), of("b")), (2, 2));
}

#[test]
fn what_is_even_stays() {
    let volumes = vec![volume(1, "a", None), volume(2, "b", None), volume(3, "b", None)];
    assert_eq!(even(&pool(&["a", "b"], &[], volumes)), Vec::new());
    assert_eq!(even(&pool(&[], &[], vec![volume(1, "a", None)])), Vec::new());
}

#[test]
fn volumes_go_to_their_twins_then_the_least_busy_go_and_pinned_ones_stay() {
    let mut volumes = vec![
        volume(1, "a", None),
        volume(2, "a", Some("b")),
        volume(3, "a", Some("c")),
        volume(4, "a", None),
    ];
    let busy = |volume: &Volume| u64::from(volume.id != VolumeId([4; 16]));
    let moved = |volumes: &[Volume]| {
        let moves = pool(&["a", "b"], &[], volumes.to_vec()).even_out(Band::EVEN, |_| true, busy);
        moves.into_iter().map(|step| step.volume.0[0]).collect::<Vec<_>>()
    };
    assert_eq!(moved(&volumes), [2, 4]);
    volumes[1].pinned = true;
    volumes[3].moves_to = Some(name("b"));
    // That one is on its way already.
    assert_eq!(moved(&volumes), [1]);
}

#[test]
fn what_is_drained_goes_to_its_twin_else_to_who_has_the_fewest() {
    let volumes = vec![
        volume(1, "b", None),
        volume(2, "a", Some("b")),
        volume(3, "a", Some("gone")),
    ];
    let pool = pool(&["a", "b", "c"], &["a"], volumes);
    let mut loads = pool.loads();
    let mut next = |number: u8| pool.successor(pool.volume(VolumeId([number; 16])).unwrap(), &mut loads);
    assert_eq!(next(2), Some(name("b")));
    assert_eq!(next(3), Some(name("c")));
}

#[test]
fn a_node_gives_only_its_own_and_only_while_the_picture_is_calm() {
    let five_and_none = || {
        (0..5)
            .map(|number| volume(number, "a", Some("b")))
            .collect::<Vec<_>>()
    };
    let start = pool(&["a", "b", "c"], &[], five_and_none());
    assert_eq!(give(&start, "a").map(|step| step.to), Some(name("b")));
    assert_eq!(give(&start, "b"), None);
    // Within the band.
    let near = vec![volume(1, "a", None), volume(2, "a", None)];
    assert_eq!(give(&pool(&["a", "b"], &[], near), "a"), None);
    // One at a time.
    let mut moving = five_and_none();
    moving[0].moves_to = Some(name("c"));
    assert_eq!(give(&pool(&["a", "b", "c"], &[], moving), "a"), None);
    // A takeover is about to come.
    let mut lost = five_and_none();
    lost.push(volume(9, "gone", Some("b")));
    assert_eq!(give(&pool(&["a", "b", "c"], &[], lost), "a"), None);
    // One that waits for a person keeps nobody from anything.
    let mut waits = five_and_none();
    waits.push(volume(9, "gone", None));
    assert!(give(&pool(&["a", "b", "c"], &[], waits), "a").is_some());
    // Nothing to, and from, those that are drained, and nothing that has no twin and wants one.
    assert_eq!(give(&pool(&["a", "b"], &["b"], five_and_none()), "a"), None);
    assert_eq!(give(&pool(&["a", "b"], &["a"], five_and_none()), "a"), None);
    let mut degraded = five_and_none();
    degraded.iter_mut().for_each(|volume| volume.twin = None);
    assert_eq!(give(&pool(&["a", "b"], &[], degraded), "a"), None);
}

#[test]
fn no_volume_goes_where_its_twin_could_not_be_apart() {
    // `only` keeps the twin at `z`: in `z`'s rack the volume would share it.
    let mut kept = volume(1, "a", Some("z"));
    kept.twin_host = Some(TwinHost {
        node: name("z"),
        only: true,
    });
    let routers = ["a@a/one", "b@b/two", "z@z/two", "c@c/three"];
    let three = pool(&routers, &[], vec![kept.clone()]);
    let may = |to: &str| three.keeps_promises(&kept, &name(to));
    assert_eq!((may("b"), may("z"), may("c")), (false, false, true));
    // Without the operator's wish all racks do.
    let free = volume(1, "a", Some("z"));
    let may = |to: &str| three.keeps_promises(&free, &name(to));
    assert_eq!((may("b"), may("z"), may("c")), (true, true, true));
    // Where there is one rack nothing is lost.
    let one = pool(&["a@a/one", "b@b/one"], &[], vec![free.clone()]);
    assert!(one.keeps_promises(&free, &name("b")));
    // Where the other rack's nodes are drained, all that is left shares one.
    let left = pool(&["a@a/one", "b@b/two", "c@c/two"], &["a"], vec![free.clone()]);
    assert!(!left.keeps_promises(&volume(1, "a", Some("b")), &name("c")));
}

#[test]
fn a_twin_is_where_it_is_wanted_then_apart_then_where_the_least_is() {
    let nodes = ["b@b/one", "c@c/two", "d@d/two", "e@e/one"].map(router);
    let ranked = |wanted: Option<&str>, former: Option<&str>, streams: [usize; 4]| {
        let (wanted, former) = (wanted.map(name), former.map(name));
        let rank = |at: &usize| {
            TwinRank::of(
                &nodes[*at],
                "one",
                (wanted.as_ref(), former.as_ref()),
                streams[*at],
            )
        };
        let mut order: Vec<usize> = (0..4).collect();
        order.sort_by_key(rank);
        let names = order.into_iter().map(|at| nodes[at].name.to_string());
        names.collect::<Vec<_>>().join("")
    };
    assert_eq!(ranked(None, None, [0, 0, 0, 0]), "cdbe");
    assert_eq!(ranked(None, None, [0, 9, 3, 0]), "dcbe");
    // What the former owner has need not be copied; but not in the owner's rack.
    assert_eq!(ranked(None, Some("c"), [0, 9, 3, 0]), "cdbe");
    assert_eq!(ranked(None, Some("e"), [0, 0, 0, 0]), "cdeb");
    assert_eq!(ranked(Some("e"), Some("c"), [0, 9, 0, 9]), "ecdb");
}

#[test]
fn a_twin_is_made_elsewhere_only_where_that_is_better() {
    let better = |routers: &[&str], drained: &[&str], volume: Volume| {
        pool(routers, drained, vec![volume.clone()])
            .better_twin(&volume)
            .cloned()
    };
    let same_rack = || volume(1, "a", Some("b"));
    let routers = ["a@a/one", "b@b/one", "c@c/two", "d@d/two"];
    assert_eq!(better(&routers[..2], &[], same_rack()), None);
    assert_eq!(better(&routers, &[], same_rack()), Some(name("c")));
    assert_eq!(better(&routers, &["c"], same_rack()), Some(name("d")));
    assert_eq!(better(&routers, &[], volume(1, "a", Some("d"))), None);
    let wished = |only| Volume {
        twin_host: Some(TwinHost {
            node: name("b"),
            only,
        }),
        ..volume(1, "a", Some("d"))
    };
    for only in [false, true] {
        assert_eq!(better(&routers, &[], wished(only)), Some(name("b")));
        // It is not there, or not to be given anything: what there is stays.
        assert_eq!(better(&routers, &["b"], wished(only)), None);
        assert_eq!(better(&["a@a/one", "d@d/two"], &[], wished(only)), None);
    }
    let pool = pool(&routers, &[], vec![same_rack()]);
    assert_eq!(pool.shared_domain(&name("a"), &name("b")), Some("one"));
    assert_eq!(pool.shared_domain(&name("a"), &name("c")), None);
}

fn from(host: &str, domain: &str, bytes: u64) -> Origin {
    Origin {
        place: Some((host.to_owned(), domain.to_owned())),
        bytes,
    }
}

const RULE: FollowRule = FollowRule {
    percent: 80,
    bytes_min: 1000,
};

#[test]
fn a_volume_goes_to_the_machine_that_its_io_comes_from() {
    let routers = ["a@h1/r1", "b@h2/r2", "c@h3/r2"];
    let owned = volume(1, "a", None);
    let follow = |origins: &[Origin], drained: &[&str]| {
        let pool = pool(&routers, drained, vec![owned.clone()]);
        pool.follow(&owned, origins, RULE)
            .map(|follow| (follow.to.to_string(), follow.from, follow.percent))
    };
    let to = |to: &str, from: &str, percent| Some((to.to_owned(), from.to_owned(), percent));
    assert_eq!(follow(&[from("h3", "r2", 5000)], &[]), to("c", "h3", 100));
    assert_eq!(
        follow(&[from("h3", "r2", 8000), from("h1", "r1", 2000)], &[]),
        to("c", "h3", 80)
    );
    assert_eq!(
        follow(&[from("h3", "r2", 7900), from("h1", "r1", 2100)], &[]),
        None
    );
    // Too little to matter.
    assert_eq!(follow(&[from("h3", "r2", 999)], &[]), None);
    // Two machines of one rack together; no volume-router on a machine, but in its rack.
    assert_eq!(
        follow(&[from("h2", "r2", 4000), from("h3", "r2", 4000)], &[]),
        to("b", "r2", 100)
    );
    assert_eq!(follow(&[from("h9", "r2", 4000)], &[]), to("b", "r2", 100));
    assert_eq!(follow(&[from("h3", "r2", 5000)], &["c"]), to("b", "r2", 100));
    assert_eq!(follow(&[from("h3", "r2", 5000)], &["b", "c"]), None);
    // It is there.
    assert_eq!(follow(&[from("h1", "r1", 5000)], &[]), None);
    assert_eq!(follow(&[from("h8", "r1", 5000)], &[]), None);
    // Nobody knows where a client is.
    let unknown = Origin {
        place: None,
        bytes: 5000,
    };
    assert_eq!(follow(std::slice::from_ref(&unknown), &[]), None);
    assert_eq!(follow(&[from("h3", "r2", 5000), unknown], &[]), None);
}

#[test]
fn a_volume_that_must_not_move_does_not_follow_its_io() {
    let origins = [from("h2", "r2", 5000)];
    let follow = |change: &dyn Fn(&mut Volume), others: Vec<Volume>| {
        let mut owned = volume(1, "a", Some("c"));
        change(&mut owned);
        let volumes = others.into_iter().chain([owned.clone()]).collect();
        let pool = pool(&["a@h1/r1", "b@h2/r2", "c@h3/r3"], &[], volumes);
        pool.follow(&owned, &origins, RULE).map(|follow| follow.to)
    };
    assert_eq!(follow(&|_| (), Vec::new()), Some(name("b")));
    assert_eq!(follow(&|volume| volume.pinned = true, Vec::new()), None);
    assert_eq!(follow(&|volume| volume.twin = None, Vec::new()), None);
    assert_eq!(
        follow(&|volume| volume.moves_to = Some(name("c")), Vec::new()),
        None
    );
    let wished = |volume: &mut Volume| {
        volume.twin_host = Some(TwinHost {
            node: name("b"),
            only: false,
        });
    };
    assert_eq!(follow(&wished, Vec::new()), None);
    let moving = Volume {
        moves_to: Some(name("b")),
        ..volume(2, "c", None)
    };
    assert_eq!(follow(&|_| (), vec![moving]), None);
}

#[test]
fn what_is_near_its_io_is_known() {
    let owned = volume(1, "a", None);
    let pool = pool(&["a@h1/r1", "b@h2/r2"], &[], vec![owned.clone()]);
    let near = |origins: &[Origin]| pool.is_near_its_io(&owned, origins, RULE);
    assert!(near(&[from("h1", "r1", 5000)]));
    assert!(near(&[from("h7", "r1", 5000)]));
    assert!(!near(&[from("h2", "r2", 5000)]));
    assert!(!near(&[from("h1", "r1", 999)]));
}

#[test]
fn a_window_of_io_counts_what_is_in_it_once_it_is_full() {
    let second = Duration::from_secs;
    let (one, other) = (name("one"), name("other"));
    let mut window = IoWindow::new(second(10), second(100));
    for at in 100..109 {
        window.add(&one, 10, second(at));
        assert_eq!(window.sums(second(at)), None, "it is not full");
    }
    window.add(&other, 7, second(109));
    let sums = |window: &mut IoWindow, at| {
        let sums = window.sums(second(at)).unwrap();
        (
            sums.get(&one).copied().unwrap_or(0),
            sums.get(&other).copied().unwrap_or(0),
        )
    };
    assert_eq!(sums(&mut window, 110), (80, 7));
    assert_eq!(sums(&mut window, 114), (40, 7));
    assert_eq!(sums(&mut window, 118), (0, 7));
    assert_eq!(sums(&mut window, 119), (0, 0));
}

#[test]
fn a_picture_is_stable_since_it_changed_last() {
    let second = Duration::from_secs;
    let mut stable = Stable::default();
    let mut look = |pool: &Pool, at: u64| {
        stable.look(pool, second(at));
        let there_for = |node: &str| stable.there_for(&name(node), second(at)).as_secs();
        (
            stable.stable_for(second(at)).as_secs(),
            there_for("a"),
            there_for("b"),
        )
    };
    let two = pool(&["a", "b"], &[], Vec::new());
    assert_eq!(look(&two, 5), (0, 0, 0));
    assert_eq!(look(&two, 8), (3, 3, 3));
    let drained = pool(&["a", "b"], &["b"], Vec::new());
    assert_eq!(look(&drained, 9), (0, 4, 0));
    assert_eq!(look(&drained, 19), (10, 14, 10));
    let mut again = router("b");
    again.pid = 2;
    let restarted = Pool::new(&[router("a"), again], [name("b")].into(), Vec::new());
    assert_eq!(look(&restarted, 20), (0, 15, 0));
    assert_eq!(look(&pool(&["a"], &[], Vec::new()), 21), (0, 16, 0));
}

/// A pool that really is, and what each node has heard of it.
struct World {
    now: Pool,
    views: Vec<(NodeName, Pool, u64)>,
    clock_us: u64,
    moves: BTreeMap<VolumeId, u32>,
    /// Moves that go on, and when they are over.
    under_way: Vec<(VolumeId, u64)>,
}

/// What a node has heard is at most so old.
const STALE_US: u64 = MINUTE_US;
/// A move takes at most so long.
const MOVE_US: u64 = MINUTE_US / 2;
/// A volume that was moved stays for so long.
const SETTLE_US: u64 = 30 * MINUTE_US;

impl World {
    fn of(owners: &[usize], nodes: usize) -> Self {
        let names: Vec<String> = (0..nodes).map(|at| format!("n{at}")).collect();
        let texts: Vec<&str> = names.iter().map(String::as_str).collect();
        let volumes = owners
            .iter()
            .zip(0..)
            .map(|(owner, number)| volume(number, texts[owner % nodes], None));
        let now = pool(&texts, &[], volumes.collect());
        let views = texts.iter().map(|text| (name(text), now.clone(), 0)).collect();
        Self {
            now,
            views,
            clock_us: SETTLE_US,
            moves: BTreeMap::new(),
            under_way: Vec::new(),
        }
    }

    /// Time passes.
    fn pass(&mut self, us: u64) {
        self.clock_us += us;
        let is_over = |(_, over): &mut (VolumeId, u64)| *over <= self.clock_us;
        for (id, over) in self.under_way.extract_if(.., is_over) {
            let mut moved = self.now.volume(id).unwrap().clone();
            moved.owner = moved.moves_to.take().unwrap();
            moved.owned_since_us = Some(over);
            self.now.put(moved);
        }
    }

    /// A node hears how things are, if it is to or has not for too long, and does what it thinks right.
    fn act(&mut self, at: usize, hears: bool, takes_us: u64) {
        let clock_us = self.clock_us;
        let (me, view, heard) = &mut self.views[at];
        if hears || clock_us - *heard > STALE_US {
            *view = self.now.clone();
            *heard = clock_us;
        }
        let settled = |volume: &Volume| {
            volume
                .owned_since_us
                .is_none_or(|since| since + SETTLE_US <= clock_us)
        };
        let Some(give) = view.give(me, AUTO, settled, |_| 0) else {
            return;
        };
        let mut given = self.now.volume(give.step.volume).unwrap().clone();
        // The record says otherwise: the compare-and-swap fails.
        let is_mine = given.owner == *me && given.moves_to.is_none();
        // A node does one thing at a time, and knows that it does.
        if !is_mine
            || self
                .now
                .volumes()
                .any(|other| other.owner == *me && other.moves_to.is_some())
        {
            return;
        }
        given.moves_to = Some(give.step.to);
        self.under_way.push((given.id, clock_us + takes_us));
        *self.moves.entry(given.id).or_default() += 1;
        self.now.put(given);
    }

    fn gap(&self) -> usize {
        let loads = self.now.loads();
        loads.values().max().unwrap_or(&0) - loads.values().min().unwrap_or(&0)
    }

    fn total(&self) -> u32 {
        self.moves.values().sum()
    }
}

fn cases() -> u32 {
    if std::env::var_os("SCONCE_TEST_FULL").is_some() {
        2000
    } else {
        32
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases()))]

    /// Whatever nobody has heard yet: after some hours all have what they should, nothing moves any more, and hardly a volume went
    /// twice.
    #[test]
    fn volumes_come_to_rest(
        nodes in 1_usize..9,
        owners in prop::collection::vec(0_usize..64, 0..80),
        busy in 1_usize..9,
        turns in prop::collection::vec((0_usize..9, any::<bool>(), 0..MOVE_US), 1200),
    ) {
        // All on the first few: the others have just joined.
        let owners: Vec<usize> = owners.into_iter().map(|owner| owner % busy.min(nodes)).collect();
        let mut world = World::of(&owners, nodes);
        let width = owners.len() * AUTO.percent / 100 / nodes;
        let (quiet, at_once) = (width.max(AUTO.volumes), world.gap());
        let mut last_move = 0;
        for (turn, (at, hears, takes_us)) in turns.into_iter().enumerate() {
            let before = world.total();
            world.pass(10_000_000);
            world.act(at % nodes, hears, takes_us);
            if world.total() > before {
                last_move = turn;
            }
        }
        world.pass(MOVE_US);
        prop_assert!(world.gap() <= quiet, "{} of {at_once}: {:?}", world.gap(), world.now.loads());
        prop_assert!(last_move < 900, "still moving at turn {last_move}");
        let most = world.moves.values().max().copied().unwrap_or(0);
        prop_assert!(most <= 2, "a volume was moved {most} times");
        // No more than each had too many, and what several sent to one at the same time.
        let mean = owners.len() / nodes;
        let all = owners.iter().collect::<std::collections::BTreeSet<_>>();
        let has = |owner: usize| owners.iter().filter(|other| **other == owner).count();
        let excess: usize = all.into_iter().map(|owner| has(*owner).saturating_sub(mean)).sum();
        prop_assert!(world.total() as usize <= 2 * excess, "{} moves for {excess}", world.total());
    }

    /// With a view that is not old no volume goes twice, and none goes that need not.
    #[test]
    fn who_knows_everything_moves_no_more_than_needed(
        nodes in 1_usize..9,
        owners in prop::collection::vec(0_usize..64, 0..80),
        turns in prop::collection::vec(0_usize..9, 400),
    ) {
        let mut world = World::of(&owners, nodes);
        let mut gap = world.gap();
        for at in turns {
            world.pass(5_000_000);
            world.act(at % nodes, true, 0);
            prop_assert!(world.gap() <= gap, "the gap grew from {gap} to {}", world.gap());
            gap = world.gap();
        }
        prop_assert!(world.moves.values().all(|times| *times == 1));
        let mean = owners.len() / nodes;
        let has = |owner: usize| owners.iter().filter(|other| **other % nodes == owner).count();
        let excess: usize = (0..nodes).map(|owner| has(owner).saturating_sub(mean)).sum();
        prop_assert!(world.total() as usize <= excess);
    }
}
