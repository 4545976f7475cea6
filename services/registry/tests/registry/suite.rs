//! What every home has to do, asked through the handle only.

use std::collections::BTreeMap;
use std::time::Duration;

use sconce_registry::limits::{CHANGES_MAX, KEY_BYTES_MAX, VALUE_BYTES_MAX};
use sconce_registry::{Change, CommitError, Lease, Registry, RegistryError, Revision, WatchEvent, Watched};
use sconce_runtime::{Chance, Moment};
use sconce_schemas::records::{NodeRecord, keys};
use sconce_schemas::wire::Role;
use tokio::time::Instant;

/// A home under test; dropping it ends it.
pub(crate) trait Subject {
    fn registry(&self) -> Registry;
    /// Makes the home forget the events up to now, as it may at any time.
    async fn forget_events(&self);
}

/// How long a test waits for what has to happen.
pub(crate) const SOON: Duration = Duration::from_secs(20);

fn put(key: &str, expected: Option<u64>, value: &str) -> Change {
    Change::put(key, expected.map(Revision), value.as_bytes().to_vec())
}

async fn value(registry: &Registry, key: &str) -> Option<String> {
    let entry = registry.get(key).await.unwrap()?;
    assert_eq!(entry.key, key);
    Some(String::from_utf8(entry.value).unwrap())
}

fn conflict(key: &str, found: Revision) -> CommitError {
    let key = key.to_owned();
    CommitError::Conflict { key, found }
}

pub(crate) async fn compare_and_swap(subject: &impl Subject) {
    let registry = subject.registry();
    assert_eq!(registry.get("k").await.unwrap(), None);
    let first = registry.commit(vec![put("k", Some(0), "one")]).await.unwrap();
    assert_eq!(value(&registry, "k").await.as_deref(), Some("one"));
    assert_eq!(registry.get("k").await.unwrap().unwrap().revision, first);

    let again = registry.commit(vec![put("k", Some(0), "two")]).await;
    assert_eq!(again, Err(conflict("k", first)), "it is there already");
    let second = registry
        .commit(vec![put("k", Some(first.0), "two")])
        .await
        .unwrap();
    assert!(second > first);
    let stale = registry.commit(vec![put("k", Some(first.0), "three")]).await;
    assert_eq!(stale, Err(conflict("k", second)));
    let any = registry.commit(vec![put("k", None, "three")]).await.unwrap();
    assert_eq!(value(&registry, "k").await.as_deref(), Some("three"));

    let stale = registry.commit(vec![Change::delete("k", Some(second))]).await;
    assert_eq!(stale, Err(conflict("k", any)));
    let gone = registry
        .commit(vec![Change::delete("k", Some(any))])
        .await
        .unwrap();
    assert!(gone > any);
    assert_eq!(registry.get("k").await.unwrap(), None);
    let missing = registry.commit(vec![put("k", Some(any.0), "four")]).await;
    assert_eq!(missing, Err(conflict("k", Revision::ABSENT)));
    let fresh = registry.commit(vec![put("k", Some(0), "")]).await.unwrap();
    assert!(fresh > gone, "a revision never comes back");
    assert_eq!(value(&registry, "k").await.as_deref(), Some(""));
}

pub(crate) async fn all_changes_or_none(subject: &impl Subject) {
    let registry = subject.registry();
    let both = vec![
        put("a", Some(0), "1"),
        put("b", Some(0), "1"),
        put("c", None, "1"),
    ];
    let revision = registry.commit(both).await.unwrap();
    for key in ["a", "b", "c"] {
        assert_eq!(registry.get(key).await.unwrap().unwrap().revision, revision);
    }
    let mixed = vec![
        put("a", Some(revision.0), "2"),
        Change::delete("c", None),
        put("b", Some(0), "2"),
        put("d", Some(0), "2"),
    ];
    assert_eq!(registry.commit(mixed).await, Err(conflict("b", revision)));
    for (key, wanted) in [("a", Some("1")), ("b", Some("1")), ("c", Some("1")), ("d", None)] {
        assert_eq!(value(&registry, key).await.as_deref(), wanted);
    }
    let good = vec![
        put("a", Some(revision.0), "2"),
        Change::delete("b", Some(revision)),
    ];
    let next = registry.commit(good).await.unwrap();
    assert!(next > revision);
    assert_eq!(value(&registry, "b").await, None);
}

pub(crate) async fn a_commit_that_changes_nothing(subject: &impl Subject) {
    let registry = subject.registry();
    let revision = registry.commit(vec![put("a", None, "1")]).await.unwrap();
    let nothing = vec![
        Change::delete("absent", None),
        Change::delete("gone", Some(Revision(0))),
    ];
    assert_eq!(registry.commit(nothing).await, Ok(revision));
    assert_eq!(registry.revision().await, Ok(revision));
    let same = registry.commit(vec![put("a", None, "1")]).await.unwrap();
    assert!(same > revision, "the same value is a change: who watches is told");
}

pub(crate) async fn listing_in_pages(subject: &impl Subject) {
    let registry = subject.registry();
    let wanted: Vec<String> = (0..25).map(|n| format!("page/{n:02}")).collect();
    let changes = wanted.iter().map(|key| put(key, None, key)).collect();
    registry.commit(changes).await.unwrap();
    let neighbours = ["page", "page.", "page0", "pagf", "a", "z", "page/é"];
    registry
        .commit(neighbours.iter().map(|key| put(key, None, "x")).collect())
        .await
        .unwrap();

    let (mut seen, mut after, mut pages) = (Vec::new(), None::<String>, 0);
    loop {
        let page = registry.list("page/", after.as_deref(), 10).await.unwrap();
        pages += 1;
        seen.extend(page.iter().map(|entry| entry.key.clone()));
        if page.len() < 10 {
            break;
        }
        after = seen.last().cloned();
    }
    let mut all = wanted.clone();
    all.push("page/é".to_owned());
    assert_eq!((seen, pages), (all, 3));
    let whole = registry.list("", None, 1000).await.unwrap();
    assert_eq!(whole.len(), 25 + neighbours.len());
    assert!(whole.is_sorted_by(|a, b| a.key < b.key));
    assert_eq!(registry.list("nothing/", None, 5).await.unwrap(), []);
    let beyond = registry.list("page/", Some("page/24"), 5).await.unwrap();
    assert_eq!(beyond.len(), 1, "only the one after it");
    let before = registry.list("page/", Some("a"), 1).await.unwrap();
    assert_eq!(before[0].key, "page/00", "a place before the prefix is its start");
}

pub(crate) async fn listing_large_values(subject: &impl Subject) {
    let registry = subject.registry();
    let large = "x".repeat(700_000);
    for n in 0..5 {
        registry
            .commit(vec![put(&format!("large/{n}"), None, &large)])
            .await
            .unwrap();
    }
    let all = registry.list("large/", None, 10).await.unwrap();
    assert_eq!(all.len(), 5, "fewer than the limit means that there are no more");
    assert!(all.iter().all(|entry| entry.value.len() == large.len()));
    assert_eq!(registry.list("large/", None, 4).await.unwrap().len(), 4);
}

/// Follows a prefix until an event satisfies `last`.
async fn follow(
    registry: &Registry,
    prefix: &str,
    from: Revision,
    last: impl Fn(&WatchEvent) -> bool,
) -> Vec<WatchEvent> {
    let (mut events, mut after, give_up) = (Vec::new(), from, Instant::now() + SOON);
    loop {
        assert!(
            Instant::now() < give_up,
            "after {} events at {after}",
            events.len()
        );
        let watched = registry
            .watch(prefix, after, Duration::from_secs(2))
            .await
            .unwrap();
        assert!(!watched.lost);
        assert!(watched.revision >= after);
        assert!(
            watched
                .events
                .iter()
                .all(|event| event.revision <= watched.revision)
        );
        after = watched.revision;
        events.extend(watched.events);
        if events.last().is_some_and(&last) {
            return events;
        }
    }
}

pub(crate) async fn a_watch_loses_and_reorders_nothing(subject: &impl Subject) {
    const COMMITS: usize = 150;
    let registry = subject.registry();
    let from = registry.commit(vec![put("w/start", None, "")]).await.unwrap();
    let writer = registry.clone();
    let written = tokio::spawn(async move {
        let mut revisions = Vec::new();
        for n in 0..COMMITS {
            let (a, b) = (format!("w/a/{}", n % 7), format!("w/b/{}", n % 5));
            let number = n.to_string();
            let mut changes = vec![put(&a, None, &number), put("noise", None, &number)];
            changes.push(if n % 3 == 2 {
                Change::delete(b, None)
            } else {
                put(&b, None, &number)
            });
            revisions.push(writer.commit(changes).await.unwrap());
        }
        writer.commit(vec![put("w/end", None, "")]).await.unwrap();
        revisions
    });
    let end = |event: &WatchEvent| event.key == "w/end";
    let events = follow(&registry, "w/", from, end).await;
    let late = follow(&registry, "w/", from, end).await;
    assert_eq!(events, late, "who watches later is told the same");
    let revisions = written.await.unwrap();

    assert!(events.is_sorted_by_key(|event| event.revision));
    let puts_of_a: Vec<(Revision, String)> = events
        .iter()
        .filter(|event| event.key.starts_with("w/a/"))
        .map(|event| {
            let entry = event.entry.as_ref().unwrap();
            assert_eq!((entry.revision, &entry.key), (event.revision, &event.key));
            (event.revision, String::from_utf8(entry.value.clone()).unwrap())
        })
        .collect();
    let wanted: Vec<_> = revisions
        .iter()
        .copied()
        .zip((0..COMMITS).map(|n| n.to_string()))
        .collect();
    assert_eq!(puts_of_a, wanted, "each commit once, in order");
    let state = events.iter().fold(BTreeMap::new(), |mut state, event| {
        match &event.entry {
            Some(entry) => state.insert(event.key.clone(), entry.clone()),
            None => state.remove(&event.key),
        };
        state
    });
    let mut listed = registry.list("w/", None, 1000).await.unwrap();
    listed.retain(|entry| entry.key != "w/start");
    assert_eq!(
        state.into_values().collect::<Vec<_>>(),
        listed,
        "events lead to what is there"
    );
}

pub(crate) async fn a_watch_waits_and_wakes(subject: &impl Subject) {
    let registry = subject.registry();
    let from = registry.commit(vec![put("other", None, "1")]).await.unwrap();
    let started = Instant::now();
    let none = registry
        .watch("w/", from, Duration::from_millis(300))
        .await
        .unwrap();
    assert!(started.elapsed() >= Duration::from_millis(290));
    assert!(none.events.is_empty() && !none.lost && none.revision >= from);
    let none = registry.watch("w/", from, Duration::ZERO).await.unwrap();
    assert!(none.events.is_empty() && !none.lost);

    let waiting = {
        let registry = registry.clone();
        tokio::spawn(async move { registry.watch("w/", from, SOON).await.unwrap() })
    };
    registry.commit(vec![put("other", None, "2")]).await.unwrap();
    let revision = registry.commit(vec![put("w/k", None, "1")]).await.unwrap();
    let woken = tokio::time::timeout(SOON / 2, waiting)
        .await
        .expect("woken before its time")
        .unwrap();
    assert_eq!(woken.events.len(), 1);
    assert_eq!(
        (woken.events[0].key.as_str(), woken.events[0].revision),
        ("w/k", revision)
    );
}

pub(crate) async fn a_watch_that_is_too_far_behind_is_told(subject: &impl Subject) {
    let registry = subject.registry();
    let early = registry.commit(vec![put("w/k", None, "1")]).await.unwrap();
    for value in ["2", "3"] {
        registry.commit(vec![put("w/k", None, value)]).await.unwrap();
    }
    subject.forget_events().await;
    let now = registry.commit(vec![put("x", None, "")]).await.unwrap();
    let Watched {
        events,
        revision,
        lost,
    } = registry.watch("w/", early, SOON).await.unwrap();
    assert!(lost && events.is_empty());
    assert!(revision >= now, "from here on nothing is missed");
    let beyond = Revision(revision.0 + 1000);
    let ahead = registry.watch("w/", beyond, Duration::ZERO).await.unwrap();
    assert!(
        ahead.lost && ahead.revision < beyond,
        "a copy of what never was, or was undone by a restore"
    );
    registry.commit(vec![put("w/k", None, "4")]).await.unwrap();
    let next = registry.watch("w/", revision, SOON).await.unwrap();
    assert!(!next.lost && next.events.len() == 1);
}

pub(crate) async fn leases_end_with_their_keys(subject: &impl Subject) {
    let registry = subject.registry();
    // A commit may take longer than a lease lives on a busy machine: then it begins again, with another lease.
    let (lease, from) = loop {
        let from = registry.revision().await.unwrap();
        let lease = registry.lease(Duration::from_secs(1)).await.unwrap();
        let under = |key: &str| put(key, None, "x").under(lease.id());
        let leased = vec![under("l/a"), under("l/b"), under("l/freed")];
        let leased = match registry.commit(leased).await {
            Err(CommitError::LeaseGone { .. }) => continue,
            leased => leased.unwrap(),
        };
        let freed = put("l/freed", Some(leased.0), "y");
        match registry.commit(vec![freed]).await {
            Err(CommitError::Conflict { .. }) => {}
            freed => {
                freed.unwrap();
                break (lease, from);
            }
        }
    };
    let is_gone = |event: &WatchEvent| event.entry.is_none();
    let events = follow(&registry, "l/", from, |event| {
        event.key == "l/b" && is_gone(event)
    })
    .await;
    let gone: Vec<_> = events.iter().filter(|event| is_gone(event)).collect();
    let keys: Vec<_> = gone.iter().map(|event| event.key.as_str()).collect();
    assert_eq!(keys, ["l/a", "l/b"]);
    assert_eq!(gone[0].revision, gone[1].revision, "in one commit");
    assert_eq!(value(&registry, "l/a").await, None);
    assert_eq!(
        value(&registry, "l/freed").await.as_deref(),
        Some("y"),
        "set again without the lease"
    );

    let id = lease.id();
    let late = registry
        .commit(vec![put("l/c", None, "x").under(id), put("l/d", None, "x")])
        .await;
    assert_eq!(late, Err(CommitError::LeaseGone { lease: id }));
    assert_eq!(value(&registry, "l/d").await, None);
    let mut lease = lease;
    assert_eq!(
        lease.keep_alive().await,
        Err(RegistryError::LeaseGone { lease: id })
    );
    lease.revoke().await.unwrap();
}

pub(crate) async fn leases_are_kept_alive_and_revoked(subject: &impl Subject) {
    let registry = subject.registry();
    // On a machine that stood still for too long it begins again.
    let lease = loop {
        if let Some(lease) = kept_alive(&registry).await {
            break lease;
        }
    };
    lease.revoke().await.unwrap();
    assert_eq!(value(&registry, "l/a").await, None);
}

/// A lease that was kept alive for longer than any home would keep it otherwise; `None`: it was not renewed in time, so that it may
/// have ended.
async fn kept_alive(registry: &Registry) -> Option<Lease> {
    let may_have_ended = |held: Moment| !Moment::now().is_before(held);
    // etcd gives at least two seconds.
    let mut lease = registry.lease(Duration::from_secs(2)).await.unwrap();
    let leased = vec![put("l/a", None, "x").under(lease.id())];
    match registry.commit(leased).await {
        Err(CommitError::LeaseGone { .. }) if may_have_ended(lease.held_until()) => return None,
        leased => drop(leased.unwrap()),
    }
    let until = Instant::now() + Duration::from_secs(5);
    while Instant::now() < until {
        let held = lease.held_until();
        match lease.keep_alive().await {
            Err(RegistryError::LeaseGone { .. }) if may_have_ended(held) => return None,
            kept => kept.unwrap(),
        }
        let held = (held, lease.held_until());
        assert!(held.0.is_before(held.1));
        let found = value(registry, "l/a").await;
        let after = registry.revision().await.unwrap();
        let watched = registry
            .watch("l/", after, Duration::from_millis(400))
            .await
            .unwrap();
        if may_have_ended(held.1) {
            return None;
        }
        assert_eq!(found.as_deref(), Some("x"));
        assert!(watched.events.is_empty());
    }
    Some(lease)
}

pub(crate) async fn concurrent_increments_lose_nothing(subject: &impl Subject) {
    const TASKS: u64 = 6;
    const EACH: u64 = 15;
    let registry = subject.registry();
    registry.commit(vec![put("counter", Some(0), "0")]).await.unwrap();
    let tasks: Vec<_> = (0..TASKS)
        .map(|task| {
            let registry = registry.clone();
            tokio::spawn(async move {
                for n in 0..EACH {
                    increment(&registry, &format!("done/{task}/{n}")).await;
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(
        value(&registry, "counter").await,
        Some((TASKS * EACH).to_string())
    );
    let done = registry.list("done/", None, 1000).await.unwrap();
    assert_eq!(done.len() as u64, TASKS * EACH);
}

async fn increment(registry: &Registry, done: &str) {
    loop {
        let entry = registry.get("counter").await.unwrap().unwrap();
        let count: u64 = String::from_utf8(entry.value).unwrap().parse().unwrap();
        let next = put("counter", Some(entry.revision.0), &(count + 1).to_string());
        match registry.commit(vec![next, put(done, Some(0), "")]).await {
            Ok(_) => return,
            Err(CommitError::Conflict { key, found }) => {
                assert_eq!(key, "counter");
                assert!(found > entry.revision);
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// Random commits against a model of them.
pub(crate) async fn random_commits_do_as_a_model_says(subject: &impl Subject) {
    let registry = subject.registry();
    let mut model: BTreeMap<String, (Revision, Vec<u8>)> = BTreeMap::new();
    let mut newest = registry.revision().await.unwrap();
    let mut chance = Chance::seeded(0x5c0ce);
    for step in 0..200 {
        let mut picked: Vec<u64> = (0..=chance.below(3)).map(|_| chance.below(8)).collect();
        picked.sort_unstable();
        picked.dedup();
        let changes: Vec<Change> = picked
            .iter()
            .map(|n| {
                let key = format!("m/{n}");
                let at = model
                    .get(&key)
                    .map_or(Revision::ABSENT, |(revision, _)| *revision);
                let expected = match chance.below(8) {
                    0 => Some(Revision(newest.0 + 7)),
                    1 => None,
                    _ => Some(at),
                };
                match chance.below(3) {
                    0 => Change::delete(key, expected),
                    _ => Change::put(key, expected, format!("{step}").into_bytes()),
                }
            })
            .collect();
        let at = |key: &String| model.get(key).map_or(Revision::ABSENT, |(revision, _)| *revision);
        let refused = changes
            .iter()
            .find(|change| {
                change
                    .expected
                    .is_some_and(|expected| expected != at(&change.key))
            })
            .map(|change| conflict(&change.key, at(&change.key)));
        let changing = changes
            .iter()
            .any(|change| change.value.is_some() || at(&change.key) > Revision(0));
        let outcome = registry.commit(changes.clone()).await;
        if let Some(refused) = refused {
            assert_eq!(outcome, Err(refused), "step {step}");
            continue;
        }
        let revision = outcome.unwrap();
        assert_eq!(revision > newest, changing, "step {step}");
        newest = revision;
        for change in changes {
            match change.value {
                Some(value) => model.insert(change.key, (revision, value)),
                None => model.remove(&change.key),
            };
        }
    }
    let listed = registry.list("m/", None, 100).await.unwrap();
    let listed: Vec<_> = listed
        .into_iter()
        .map(|entry| (entry.key, (entry.revision, entry.value)))
        .collect();
    assert_eq!(listed, model.into_iter().collect::<Vec<_>>());
}

pub(crate) async fn records_by_type(subject: &impl Subject) {
    let registry = subject.registry();
    let record = NodeRecord {
        name: "vr-1".parse().unwrap(),
        role: Role::VolumeRouter,
        endpoints: vec!["ipc:///run/vr-1.sock".to_owned()],
        version: "0.1.0".to_owned(),
        pid: 77,
        place: None,
        buffer: None,
    };
    let key = keys::node(&record.name);
    let revision = registry
        .put_record(&key, Some(Revision::ABSENT), &record, None)
        .await
        .unwrap();
    assert_eq!(
        registry.get_record(&key).await.unwrap(),
        Some((record.clone(), revision))
    );
    let listed = registry.list_records::<NodeRecord>(keys::NODES).await.unwrap();
    assert_eq!(listed, [(key.clone(), record.clone(), revision)]);
    registry
        .commit(vec![put("node/bad", None, "\u{1}no record")])
        .await
        .unwrap();
    let error = registry
        .get_record::<NodeRecord>("node/bad")
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("\"node/bad\"") && error.contains("node record"),
        "{error}"
    );
    assert_eq!(
        registry.nodes().await.unwrap(),
        [record],
        "a damaged one keeps nobody from the others"
    );
}

pub(crate) async fn limits(subject: &impl Subject) {
    let registry = subject.registry();
    let long = "k".repeat(KEY_BYTES_MAX);
    let longer = format!("{long}k");
    assert!(matches!(
        registry.get(&longer).await,
        Err(RegistryError::Invalid(_))
    ));
    assert!(matches!(registry.get("").await, Err(RegistryError::Invalid(_))));
    assert!(matches!(
        registry.list("", None, 0).await,
        Err(RegistryError::Invalid(_))
    ));
    for wrong in [
        vec![],
        vec![put(&longer, None, "")],
        vec![put("a", None, ""), put("a", None, "")],
    ] {
        assert!(matches!(
            registry.commit(wrong).await,
            Err(CommitError::Invalid(_))
        ));
    }
    assert!(matches!(
        registry.lease(Duration::ZERO).await,
        Err(RegistryError::Invalid(_))
    ));

    let largest = vec![7; VALUE_BYTES_MAX];
    registry
        .commit(vec![Change::put(&long, None, largest.clone())])
        .await
        .unwrap();
    assert_eq!(registry.get(&long).await.unwrap().unwrap().value, largest);
    let from = registry.revision().await.unwrap();
    let most = (0..CHANGES_MAX).map(|n| put(&format!("{n:03}{}", &long[3..]), Some(0), "x"));
    let revision = registry.commit(most.collect()).await.unwrap();
    let watched = registry.watch("", from, SOON).await.unwrap();
    assert_eq!(watched.events.len(), CHANGES_MAX);
    assert!(watched.events.iter().all(|event| event.revision == revision));
}
