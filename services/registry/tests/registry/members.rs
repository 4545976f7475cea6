//! An etcd of three members, of which one has connections and answers nothing: what is stopped, or cut off, is like that.

use std::time::Duration;

use sconce_registry::{Change, CommitError, Registry, Revision};
use tokio::time::{Instant, timeout};

use crate::etcd_server::EtcdServer;

/// A lease that a node may have: it is renewed at a third of it.
const TTL: Duration = Duration::from_secs(15);

/// A commit of which a lost answer may have told that it is done: then it is asked for again, and its key is there by then or from then on.
async fn commits(registry: &Registry, change: Change) {
    let mut is_unknown = false;
    loop {
        match registry.commit(vec![change.clone()]).await {
            Err(CommitError::Unknown { .. }) => is_unknown = true,
            Err(CommitError::Conflict { .. }) if is_unknown => return,
            done => {
                done.unwrap();
                return;
            }
        }
    }
}

async fn lease_and_commits_go_on(registry: &Registry, from: usize) {
    let mut lease = registry.lease(TTL).await.unwrap();
    let key = format!("leased/{from}");
    commits(
        registry,
        Change::put(key.clone(), None, vec![1]).under(lease.id()),
    )
    .await;
    for number in from..from + 8 {
        let asked = Instant::now();
        lease.keep_alive().await.unwrap();
        assert!(
            asked.elapsed() < TTL * 2 / 3,
            "a renewal took {:?} of {TTL:?}",
            asked.elapsed()
        );
        // With a revision that it expects, as records are written.
        let change = Change::put(format!("number/{number:03}"), Some(Revision::ABSENT), vec![2]);
        timeout(TTL, commits(registry, change)).await.unwrap();
    }
    assert!(registry.get(&key).await.unwrap().is_some(), "the lease was lost");
}

#[tokio::test]
async fn a_member_that_answers_nothing_costs_no_lease() {
    let members = EtcdServer::start_three();
    let registry = EtcdServer::registry_of(&members).await;
    lease_and_commits_go_on(&registry, 0).await;
    for (at, member) in members.iter().enumerate() {
        member.signal("STOP");
        // If it was the leader the others elect another one first.
        let probed = timeout(3 * TTL, registry.get("nothing")).await;
        assert!(probed.unwrap().is_ok());
        lease_and_commits_go_on(&registry, 100 * (at + 1)).await;
        member.signal("CONT");
    }
}

#[tokio::test]
async fn a_watch_does_not_stay_with_a_member_that_answers_nothing() {
    let members = EtcdServer::start_three();
    let registry = EtcdServer::registry_of(&members).await;
    // With which member the watch is, nobody tells: each of them is stopped once.
    for (at, member) in members.iter().enumerate() {
        let after = registry.revision().await.unwrap();
        let watching = tokio::spawn({
            let registry = registry.clone();
            async move {
                let mut after = after;
                loop {
                    let watched = registry.watch("watched/", after, TTL * 20).await.unwrap();
                    after = watched.revision;
                    if !watched.events.is_empty() {
                        break;
                    }
                }
            }
        });
        member.signal("STOP");
        let probed = timeout(3 * TTL, registry.get("nothing")).await;
        assert!(probed.unwrap().is_ok());
        let change = Change::put(format!("watched/{at}"), Some(Revision::ABSENT), vec![3]);
        commits(&registry, change).await;
        timeout(2 * TTL, watching)
            .await
            .expect("the event came late")
            .unwrap();
        member.signal("CONT");
    }
}
