//! One fetch for all that want the same piece.

mod support;

use std::cell::Cell;
use std::rc::Rc;

use bytes::Bytes;
use futures_util::future::join_all;
use sconce_cache::{Cache, Flights, Joined, Turn, Use};
use support::{MemoryDisk, key, open, piece};
use tokio::sync::Notify;
use tokio::time::timeout;

type Fetched = Result<Bytes, String>;

const PIECE: u32 = 1000;
/// Of a paused clock: it passes when nothing else can happen.
const SOON: std::time::Duration = std::time::Duration::from_secs(1);

/// What a service does, without its fetches: `fetch` is called where the caller leads.
async fn get<F>(cache: &Cache, flights: &Flights<String>, number: u32, fetch: impl FnOnce() -> F) -> Fetched
where
    F: Future<Output = Fetched>,
{
    if let Some(piece) = cache.get(&key(number), Use::Counts).await {
        return Ok(piece);
    }
    let flight = match flights.join(cache, key(number)) {
        Joined::Over(piece) => return Ok(piece),
        Joined::Leads(flight) => flight,
        Joined::Follows(follower) => match follower.await {
            Turn::Landed(fetched) => return fetched,
            Turn::Leads(flight) => flight,
        },
    };
    let fetched = fetch().await;
    if let Ok(piece) = &fetched {
        cache.put(key(number), piece.clone());
    }
    flight.land(&fetched);
    fetched
}

#[tokio::test(start_paused = true)]
async fn many_that_want_one_piece_fetch_it_once() {
    let (cache, flights) = (open(&MemoryDisk::default(), 40, PIECE).await, Flights::default());
    let fetches = Cell::new(0);
    let one = |number: u32| {
        let fetches = &fetches;
        get(&cache, &flights, number, move || async move {
            fetches.set(fetches.get() + 1);
            tokio::task::yield_now().await;
            Ok(piece(number, PIECE))
        })
    };
    let got = join_all((0..100).map(|index| one(index % 5))).await;
    for (index, got) in (0..100).zip(got) {
        assert_eq!(got, Ok(piece(index % 5, PIECE)));
    }
    assert_eq!(fetches.get(), 5);
    cache.settled().await;
    assert_eq!(one(3).await, Ok(piece(3, PIECE)));
    assert_eq!(fetches.get(), 5, "it is in the cache");
}

#[tokio::test(start_paused = true)]
async fn an_error_is_told_to_those_that_wait_and_forgotten() {
    let (cache, flights) = (open(&MemoryDisk::default(), 40, PIECE).await, Flights::default());
    let failing = || {
        get(&cache, &flights, 1, || async {
            tokio::task::yield_now().await;
            Err("no".to_owned())
        })
    };
    for got in join_all((0..10).map(|_| failing())).await {
        assert_eq!(got, Err("no".to_owned()));
    }
    let got = get(&cache, &flights, 1, || async { Ok(piece(1, PIECE)) }).await;
    assert_eq!(got, Ok(piece(1, PIECE)));
}

#[tokio::test(start_paused = true)]
async fn a_fetcher_that_is_cancelled_strands_nobody() {
    let local = tokio::task::LocalSet::new();
    local
        .run_until(async {
            let cache = open(&MemoryDisk::default(), 40, PIECE).await;
            let flights = Flights::default();
            let fetches = Rc::new(Cell::new(0));
            let go = Rc::new(Notify::new());
            let tasks: Vec<_> = (0..6)
                .map(|_| {
                    let (cache, flights) = (cache.clone(), flights.clone());
                    let (fetches, go) = (fetches.clone(), go.clone());
                    tokio::task::spawn_local(async move {
                        let fetch = || async {
                            fetches.set(fetches.get() + 1);
                            go.notified().await;
                            Ok(piece(7, PIECE))
                        };
                        get(&cache, &flights, 7, fetch).await
                    })
                })
                .collect();
            let mut tasks = tasks.into_iter();
            let settle = || async {
                for _ in 0..20 {
                    tokio::task::yield_now().await;
                }
            };
            settle().await;
            assert_eq!(fetches.get(), 1);
            // The leader goes, then one that waits, then the leader that took over.
            let (first, second) = (tasks.next().unwrap(), tasks.next().unwrap());
            first.abort();
            settle().await;
            assert_eq!(fetches.get(), 2, "the next one fetches");
            second.abort();
            settle().await;
            assert_eq!(fetches.get(), 3);
            go.notify_one();
            for task in tasks {
                assert_eq!(task.await.unwrap(), Ok(piece(7, PIECE)));
            }
            assert_eq!(fetches.get(), 3);
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_lead_passes_over_those_that_are_gone_and_ends_with_the_last() {
    let cache = open(&MemoryDisk::default(), 40, PIECE).await;
    let flights = Flights::<String>::default();
    let Joined::Leads(leader) = flights.join(&cache, key(1)) else {
        panic!("the first leads")
    };
    let followers: Vec<_> = (0..4)
        .map(|_| match flights.join(&cache, key(1)) {
            Joined::Follows(follower) => follower,
            Joined::Leads(_) | Joined::Over(_) => panic!("two lead"),
        })
        .collect();
    let mut followers = followers.into_iter();
    drop(followers.next());
    drop(leader);
    let Some(second) = followers.next() else { panic!() };
    let Ok(Turn::Leads(leader)) = timeout(SOON, second).await else {
        panic!("the first that still waits leads")
    };
    // It is told, and goes before it looks.
    drop(leader);
    drop(followers.next());
    let Some(last) = followers.next() else { panic!() };
    let Ok(Turn::Leads(leader)) = timeout(SOON, last).await else {
        panic!("the last that waits leads")
    };
    leader.land(&Ok(Bytes::new()));
    assert!(flights.is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_was_fetched_since_the_lookup_is_not_fetched_again() {
    let cache = open(&MemoryDisk::default(), 40, PIECE).await;
    let flights = Flights::<String>::default();
    cache.put(key(1), piece(1, PIECE));
    let Joined::Over(found) = flights.join(&cache, key(1)) else {
        panic!("it is there")
    };
    assert_eq!(found, piece(1, PIECE));
    assert!(flights.is_empty());
}
